"""What a stranger's generator makes of `/openapi.json`: nothing that fails, no status that is not described.

Examples follow from the document alone (`derandomize`): every run sends the same ones. A node answers 5xx
here only where it says so itself and nothing is wrong with it: 501 for what it does not implement, 503 where
there is no other member to take leadership, 507 where there is no room.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation

from cluster.local import LocalCluster, find_base_port

EXAMPLES = 10  # an operation
EXAMPLES_OF_STRANGERS = 2  # who get the same answer to everything
DEADLINE_S = 20.0
SAID = {501, 503, 507}
WRONG_TOKEN = "rkv_0123456789abcdef_" + "x" * 40


@schemathesis.serializer("application/x-ndjson")
def lines(context: object, value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(
        tmp_path_factory.mktemp("schemathesis"),
        nodes=1,
        base_port=find_base_port(1),
        auth=request.param == "tokens",
    ) as cluster:
        cluster.start("n1")
        cluster.wait_ready()
        deadline = time.monotonic() + DEADLINE_S
        while cluster.get("n1", "/v1/status")[0] != 200:  # the first token is made after the first election
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield cluster
        assert "internal_error" not in cluster.log_path("n1").read_text()
        assert cluster.stop("n1") == 0


def operations(node: LocalCluster) -> Iterator[APIOperation]:  # type: ignore[type-arg]
    headers = {} if node.token is None else {"Authorization": f"Bearer {node.token}"}
    schema = schemathesis.openapi.from_url(node.api_url("n1") + "/openapi.json", headers=headers)
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        yield result.ok()


def send_examples(
    operation: APIOperation,  # type: ignore[type-arg]
    send: Callable[[Case], None],
    count: int,
) -> None:
    settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )(given(operation.as_strategy())(send))()


@pytest.mark.parametrize(
    ("node", "who"),
    [("open", "nobody"), ("tokens", "admin"), ("tokens", "nobody"), ("tokens", "stranger")],
    indirect=["node"],
)
def test_nothing_fails_and_every_status_is_described(node: LocalCluster, who: str) -> None:
    token = {"admin": node.token, "nobody": None, "stranger": WRONG_TOKEN}[who]
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    seen: dict[str, list[int]] = {}

    def examine(operation: APIOperation) -> None:  # type: ignore[type-arg]
        described = {int(status) for status in operation.definition.raw["responses"]}
        let_in = node.token is None or who == "admin" or operation.definition.raw.get("security") == []

        def send(case: Case) -> None:
            answer = case.call(headers=headers, timeout=20, allow_redirects=False)
            status = answer.status_code
            seen.setdefault(operation.label, []).append(status)
            said = (operation.label, status, case.path_parameters, case.query, answer.content[:300])
            assert status in described, said
            assert status < 500 or status in SAID, said
            assert let_in or status == 401, said

        send_examples(operation, send, EXAMPLES if let_in else EXAMPLES_OF_STRANGERS)

    for operation in operations(node):
        examine(operation)
    assert len(seen) > 40
    if node.token is None or who == "admin":
        assert {200, 201, 400, 404} <= {status for statuses in seen.values() for status in statuses}
