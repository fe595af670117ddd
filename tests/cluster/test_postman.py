"""The Postman collection, by newman, on a live cluster: every request is made, every assertion holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cluster.local import LocalCluster, find_base_port
from tests.unit.test_postman import ALL

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="needs node and npm"
)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("postman"), base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
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


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_the_whole_collection_holds_on_a_live_cluster(local: LocalCluster, role: str, tmp_path: Path) -> None:
    leader = local.wait_leader()
    name = leader if role == "leader" else next(each for each in local.names if each != leader)
    report = tmp_path / "report.json"
    done = walk(
        local.api_url(name),
        *("--reporters", "cli,json", "--reporter-json-export", str(report)),
        REQUIRE_FOLLOWER="true",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(report.read_text())["run"]
    assert run["failures"] == []
    made = {execution["item"]["name"] for execution in run["executions"] if "response" in execution}
    assert made == {each["name"] for each in ALL}
    assert run["stats"]["assertions"]["total"] > 3 * len(ALL)
    assert run["stats"]["assertions"]["failed"] == 0


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
