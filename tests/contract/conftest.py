"""A node to speak HTTP to.

`http` is a node with a state machine and no cluster behind it, or the node that `CONTRACT_URL` names: then
the same tests run against a real cluster, and those that set up what a cluster does to a node are skipped.
"""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from raftkv.api.app import ApiServer, start_api
from raftkv.api.limits import Limits
from raftkv.service import KVService
from tests.contract.local import LocalConsensus
from tests.contract.plain import Http

EXTERNAL = os.environ.get("CONTRACT_URL")


@dataclass
class Node:
    consensus: LocalConsensus
    service: KVService
    api: ApiServer
    tls: ssl.SSLContext | None = None

    @property
    def http(self) -> Http:
        return Http("127.0.0.1", self.api.port, tls=self.tls)


async def start_node(
    limits: Limits, name: str = "n1", tls: ssl.SSLContext | None = None, **options: object
) -> Node:
    consensus = LocalConsensus(name)
    service = KVService(
        consensus,
        name=name,
        writes_in_flight_max=limits.writes_in_flight_max,
        write_bytes_in_flight_max=limits.write_bytes_in_flight_max,
        reads_in_flight_max=limits.reads_in_flight_max,
        idempotency_bytes_max=limits.idempotency_bytes_max,
        list_bytes_max=limits.list_bytes_max,
        exports_max=limits.exports_max,
    )
    api = await start_api(service, host="127.0.0.1", port=0, limits=limits, **options)  # type: ignore[arg-type]
    return Node(consensus, service, api, tls)


@pytest.fixture
def limits() -> Limits:
    """Parametrize a test with `limits` to change them."""
    return Limits()


@pytest.fixture
async def node(limits: Limits) -> AsyncIterator[Node]:
    if EXTERNAL:
        pytest.skip("sets up what a cluster does to a node")
    made = await start_node(limits)
    yield made
    await made.api.close()


@pytest.fixture
async def http(limits: Limits) -> AsyncIterator[Http]:
    if EXTERNAL:
        url = urlsplit(EXTERNAL)
        assert url.hostname is not None
        yield Http(url.hostname, url.port or 80, (("Raftkv-Route", "forward"),))
        return
    made = await start_node(limits)
    yield made.http
    await made.api.close()


@pytest.fixture
def name() -> str:
    """A key that no other test uses, since a cluster is shared by all."""
    return f"contract-{secrets.token_hex(6)}"
