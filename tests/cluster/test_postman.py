"""The Postman collection, by newman, on a live cluster: every request is made, every assertion holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest
from jsonschema import Draft202012Validator

from cluster.local import LocalCluster, find_base_port
from raftkv.api.openapi import document
from raftkv.api.routes import match
from tests.unit.test_postman import ALL

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="needs node and npm"
)


@pytest.fixture(scope="module")
def local(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    secure = request.param == "secure"
    directory = tmp_path_factory.mktemp("postman")
    with LocalCluster(directory, base_port=find_base_port(), tls=secure, auth=secure) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        deadline = time.monotonic() + 30  # the leader makes the first token once it leads
        while any(cluster.status(name) is None for name in cluster.names):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield cluster


def walk(url: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "loadtest" / "postman" / "run", url, *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    ("local", "role"),
    [("open", "leader"), ("open", "follower"), ("secure", "follower")],
    indirect=["local"],
    ids=lambda each: str(each),
)
def test_the_whole_collection_holds_on_a_live_cluster(local: LocalCluster, role: str, tmp_path: Path) -> None:
    leader = local.wait_leader()
    name = leader if role == "leader" else next(each for each in local.names if each != leader)
    report = tmp_path / "report.json"
    done = walk(
        local.api_url(name),
        *("--reporters", "cli,json", "--reporter-json-export", str(report)),
        REQUIRE_FOLLOWER="true",
        **({"RAFTKV_TOKEN_FILE": str(local.token_path)} if local.auth else {}),
        **({"RAFTKV_CA_FILE": str(local.tls_dir / "ca.pem")} if local.tls else {}),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(report.read_text())["run"]
    assert run["failures"] == []
    made = {execution["item"]["name"] for execution in run["executions"] if "response" in execution}
    assert made == {each["name"] for each in ALL}
    assert run["stats"]["assertions"]["total"] > 3 * len(ALL)
    assert run["stats"]["assertions"]["failed"] == 0
    answers = [each for each in run["executions"] if "response" in each]
    wrong = [sentence for each in answers for sentence in disagreements(each)]
    assert not wrong, "\n".join(wrong)


# --- the answers against the OpenAPI document -------------------------------------------------------------

# What HTTP adds by itself, and what belongs to one page alone.
UNDESCRIBED = {"date", "content-type", "content-length", "connection", "transfer-encoding"}
PAGE = {"content-security-policy"}


def closed(part: Any) -> Any:
    """The same schema with nothing allowed beside what it names."""
    if isinstance(part, list | tuple):
        return [closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    made = {name: part[name] if name == "allOf" else closed(part[name]) for name in part}
    if "allOf" in part:
        made["unevaluatedProperties"] = False
    elif part.get("type") == "object" and "properties" in part:
        made.setdefault("additionalProperties", False)
    return made


DOCUMENT = document("1")
SCHEMAS = {
    # Behind allOf, where the whole is closed and not its parts.
    name: schema if name == "NodeStatus" else closed(schema)
    for name, schema in DOCUMENT["components"]["schemas"].items()
}


def disagreements(execution: Mapping[str, Any]) -> Iterator[str]:
    """What an answer has that the document does not say of it, or lacks: status, headers, members."""
    request, response = execution["request"], execution["response"]
    path = unquote("/" + "/".join(request["url"]["path"])).encode()
    names = [each["key"].encode() for each in request["url"]["query"]]
    try:
        route = match(request["method"], path, names).route
    except Exception:  # noqa: BLE001  # the refusals: no such route, or no such method there
        return
    what = f"{execution['item']['name']}: {request['method']} {route.template} {response['code']}"
    described = DOCUMENT["paths"][route.template][request["method"].lower()]["responses"]
    if str(response["code"]) not in described:
        yield f"{what}: the status is not described"
        return
    answer = described[str(response["code"])]
    sent = {each["key"].lower() for each in response["header"]}
    known = {name.lower() for name in answer["headers"]}
    if unknown := sent - known - UNDESCRIBED - (PAGE if route.name == "docs" else set()):
        yield f"{what}: {unknown} are not described"
    kinds = [each["value"] for each in response["header"] if each["key"].lower() == "content-type"]
    kind = kinds[0] if kinds else ""
    if "json" not in kind or "ndjson" in kind or request["method"] == "HEAD" or "content" not in answer:
        return
    content = answer["content"].get(kind)
    if content is None:
        yield f"{what}: {kind} is not described"
        return
    schema = {**closed(content["schema"]), "components": {"schemas": SCHEMAS}}
    body = json.loads(bytes(response["stream"]["data"]))
    for error in Draft202012Validator(schema).iter_errors(body):
        yield f"{what}: {error.json_path}: {error.message}"


def test_a_planted_disagreement_is_found() -> None:
    def execution(code: int, body: object, *headers: str) -> dict[str, Any]:
        return {
            "item": {"name": "planted"},
            "request": {"method": "GET", "url": {"path": ["v1", "limits"], "query": []}},
            "response": {
                "code": code,
                "header": [{"key": name, "value": "application/json"} for name in ("Content-Type", *headers)],
                "stream": {"data": list(json.dumps(body).encode())},
            },
        }

    assert list(disagreements(execution(200, {"limits": []}, "Request-Id"))) == []
    assert list(disagreements(execution(201, {"limits": []})))
    assert list(disagreements(execution(200, {"limits": []}, "X-Planted")))
    assert list(disagreements(execution(200, {"limits": [], "more": 1})))
    assert list(disagreements(execution(200, {})))


class Wrong(BaseHTTPRequestHandler):
    """Answers everything with 200 and nothing that it should."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_that_answers_otherwise_fails() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Wrong) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            done = walk(f"http://127.0.0.1:{server.server_port}", "--folder", "Node and cluster")
        finally:
            server.shutdown()
            thread.join()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "AssertionError" in done.stdout
