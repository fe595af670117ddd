"""What the API answers, asked again over TLS: the same tests, on both paths."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli import cli
from raftkv.api.limits import Limits
from raftkv.kv.command import Put
from raftkv.tls.credentials import ApiFiles, Credentials, Security, Watcher, client_context
from tests.certificates import Certificates, old_tls
from tests.contract.conftest import Node, start_node
from tests.contract.plain import Http, request
from tests.contract.test_http import *  # noqa: F403


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 what it waits for is spread over many callbacks
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> tuple[Credentials, ssl.SSLContext]:
    """Of the node, and for its clients."""
    certificates = Certificates(tmp_path_factory.mktemp("tls"))
    return certificates.api(), client_context(certificates.ca)


@pytest.fixture(params=["hot", "cold"])
def path_taken(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def node(
    limits: Limits, path_taken: str, credentials: tuple[Credentials, ssl.SSLContext]
) -> AsyncIterator[Node]:
    api, tls = credentials
    made = await start_node(limits, tls=tls, security=Security(api), hot_path=path_taken == "hot")
    yield made
    await made.api.close()


@pytest.fixture
async def http(node: Node) -> Http:
    return node.http


async def test_a_client_that_ends_its_side_ends_the_connection(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """Over TLS asyncio knows no half-closed connections, and complains of who asks for one."""
    async with node.http.connect() as connection:
        connection.send(request("PUT", "/v1/kv/a", [], b"v") + b"GET /v1/kv/a HT")
        sock = connection.writer.get_extra_info("socket")
        await until(lambda: node.service.machine.revision == 1)
        sock.shutdown(socket.SHUT_WR)
        assert await connection.closed()
    await until(lambda: not node.api.connections_open)
    assert not [record for record in caplog.records if record.name == "asyncio"]


# --- the handshake ----------------------------------------------------------------------------------------


async def test_plain_http_and_old_tls_are_refused_and_counted(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    api = node.api.security.api
    assert api is not None
    before = api.refused
    async with Http("127.0.0.1", node.api.port).connect() as plain:
        plain.send(request("GET", "/v1/status"))
        assert await plain.closed()
    with pytest.raises(OSError):  # noqa: PT011  # of what kind is OpenSSL's affair
        await Http("127.0.0.1", node.api.port, tls=old_tls())("GET", "/v1/status")
    await until(lambda: api.refused == before + 2)
    assert "plain HTTP on a port that speaks TLS" in caplog.text
    assert (await node.http("GET", "/livez")).status == 200


@pytest.mark.parametrize("limits", [Limits(tls_handshake_seconds_max=1)])
async def test_a_handshake_that_drips_is_cut_off(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    async with Http("127.0.0.1", node.api.port).connect() as slow:
        closed = asyncio.create_task(slow.closed())
        for byte in b"\x16\x03\x01\x02\x00\x01" + bytes(100):
            slow.send(bytes([byte]))
            await asyncio.wait([closed], timeout=0.1)
            if closed.done():
                break
        assert closed.done()
    assert "no TLS handshake within its deadline" in caplog.text


@pytest.mark.parametrize("limits", [Limits(connections_max=10)])
async def test_handshakes_and_connections_share_one_bound(node: Node) -> None:
    async with AsyncExitStack() as stack:
        silent = [
            await stack.enter_async_context(Http("127.0.0.1", node.api.port).connect()) for _ in range(12)
        ]
        assert await silent[0].closed()  # the oldest went
        assert await silent[1].closed()
        good = await stack.enter_async_context(node.http.connect())  # and the next oldest for this one
        good.send(request("GET", "/livez"))
        assert (await good.reply()).status == 200


# --- renewal ----------------------------------------------------------------------------------------------


async def test_status_and_metrics_tell_of_the_certificates(node: Node) -> None:
    security = (await node.http("GET", "/v1/status")).json["security"]
    assert (security["tls"], security["peer_tls"], security["auth"]) == (True, False, "off")
    (certificate,) = security["certificates"]
    assert certificate["use"] == "api"
    assert "api.raftkv" in certificate["names"]
    assert 364 * 86_400 < certificate["seconds_left"] < 365 * 86_400
    text = (await node.http("GET", "/metrics")).body.decode()
    (line,) = (
        line for line in text.splitlines() if line.startswith("raftkv_tls_certificate_expiry_seconds{")
    )
    assert 364 * 86_400 < float(line.split()[1]) < 365 * 86_400


async def test_without_tls_status_says_so() -> None:
    made = await start_node(Limits())
    try:
        security = (await made.http("GET", "/v1/status")).json["security"]
        assert security == {
            "tls": False,
            "peer_tls": False,
            "auth": "off",
            "certificates": [],
            "reload_problems": [],
        }
    finally:
        await made.api.close()


async def test_certificates_are_renewed_under_load_without_a_failed_request(tmp_path: Path) -> None:
    """Each request on a connection of its own, so each under the certificate of its moment."""
    certificates = Certificates(tmp_path)
    api = certificates.api()
    cert, key = api.files.cert, api.files.key
    made = await start_node(Limits(), security=Security(api), tls=client_context(certificates.ca))
    watcher = Watcher([api], look_seconds=0.01)
    watcher.start()
    statuses: list[int] = []
    seen: set[bytes] = set()
    ended = False

    async def load(worker: int) -> None:
        while not ended:
            async with made.http.connect() as connection:
                tls = connection.writer.get_extra_info("ssl_object")
                seen.add(tls.getpeercert(binary_form=True))
                connection.send(request("PUT", f"/v1/kv/{worker}", [], b"v"))
                statuses.append((await connection.reply()).status)

    async def kept() -> None:
        """One connection throughout, which no renewal ends."""
        async with made.http.connect() as connection:
            while not ended:
                connection.send(request("GET", "/v1/kv/0?consistency=stale"))
                assert (await connection.reply()).status in (200, 404)

    async with asyncio.TaskGroup() as group:
        for worker in range(4):
            group.create_task(load(worker))
        group.create_task(kept())
        for number in range(1, 11):
            pair = certificates.authority.node("api")
            cert.write_bytes(pair.certificate)  # not in one go, as a person would
            key.write_bytes(pair.key)
            await until(lambda number=number: api.reloads >= number and not api.problem)  # type: ignore[misc]
            before = len(statuses)
            await until(lambda before=before: len(statuses) > before + 8)  # type: ignore[misc]
        ended = True
    watcher.stop()
    await made.api.close()
    assert set(statuses) <= {200, 201}
    assert len(seen) >= 10


@pytest.mark.parametrize("limits", [Limits(write_stall_seconds_max=4, idle_seconds_max=1)])
@pytest.mark.parametrize("ending", ["", "close"])
async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(node: Node, ending: str) -> None:
    """Beneath TLS, where nobody sees it, waits what the client has not taken; it is not idle for that."""
    headers = [("Connection", ending)] if ending else []
    for number in range(8):
        node.consensus.machine.apply(number + 1, 0, Put(b"large/%d" % number, os.urandom(1 << 20)))
    reader = socket.create_connection(("127.0.0.1", node.api.port))
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)

    def read_slowly() -> bytes:
        reader.settimeout(20)
        assert node.tls is not None
        with node.tls.wrap_socket(reader, server_hostname="127.0.0.1") as link:
            link.sendall(request("GET", "/v1/kv?prefix=large/", headers))
            received, began = bytearray(), time.monotonic()
            while b"\r\n\r\n" not in received:
                received += link.recv(1024)
            head, _, body = bytes(received).partition(b"\r\n\r\n")
            (length,) = re.findall(rb"Content-Length: (\d+)", head)
            taken = len(body)
            while taken < int(length):
                # 100 KiB/s for longer than the deadline, and then all the rest.
                piece = link.recv(10_000 if time.monotonic() - began < 3 else 1 << 20)
                assert piece, f"cut after {taken} of {int(length)} bytes"
                taken += len(piece)
                if time.monotonic() - began < 3:
                    time.sleep(0.1)
            return head

    assert b"200 OK" in await asyncio.to_thread(read_slowly)


async def test_probes_have_a_port_in_plain_http_and_can_ask_the_api_as_well(
    credentials: tuple[Credentials, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    api, tls = credentials
    made = await start_node(Limits(), tls=tls, security=Security(api), ops=("127.0.0.1", 0))
    try:
        assert made.api.ops_port is not None
        plain = Http("127.0.0.1", made.api.ops_port)
        assert (await plain("GET", "/readyz")).status == 200
        assert b"raftkv_tls_certificate_expiry_seconds" in (await plain("GET", "/metrics")).body
        assert (await plain("GET", "/v1/kv/a")).status == 404  # and for nothing else
        assert isinstance(api.files, ApiFiles)
        monkeypatch.setenv("RAFTKV_API", f"127.0.0.1:{made.api.port}")
        monkeypatch.setenv("RAFTKV_TLS_CERT", str(api.files.cert))
        monkeypatch.setenv("RAFTKV_TLS_KEY", str(api.files.key))
        asked = await asyncio.to_thread(CliRunner().invoke, cli, ["probe", "livez"])
        assert asked.exit_code == 0, asked.output
    finally:
        await made.api.close()
