"""The README's commands, as they stand there, against a real cluster. Only the ports are replaced."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import LocalCluster, find_base_port

ROOT = Path(__file__).parents[2]

# The final status of each curl command, block by block. 412: the README's point about conditions.
STATUSES = [
    [201, 200, 200, 200, 200, 200],
    [412, 201],
    [200, 200, 200],
    [200],
    [201],
]

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("readme"), base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        yield cluster


def blocks(cluster: LocalCluster) -> list[str]:
    return re.findall(r"^```\n(.*?)^```$", readme(cluster), re.MULTILINE | re.DOTALL)


def readme(cluster: LocalCluster) -> str:
    """Its text, with this cluster's ports."""
    text = (ROOT / "README.md").read_text()
    for number, name in enumerate(cluster.names):
        text = text.replace(f"127.0.0.1:{8400 + 10 * number}", f"127.0.0.1:{cluster.api_port(name)}")
    return text


def run(script: str, directory: Path, cluster: LocalCluster) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
        env={**os.environ, "RAFTKV_ENDPOINTS": ",".join(cluster.api_urls())},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_curl_command_answers_as_the_readme_says(local: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("a = 1\n")
    (tmp_path / "etc").mkdir()
    with_status = r"""curl() { command curl -sS --max-time 20 --write-out '\n<%{http_code}>\n' "$@"; }"""
    outputs = [run(f"{with_status}\n{block}", tmp_path, local) for block in blocks(local) if "curl" in block]
    found = [[int(status) for status in re.findall(r"^<(\d+)>$", each, re.MULTILINE)] for each in outputs]
    assert found == STATUSES, "\n".join(outputs)
    assert "\nworld\n" in outputs[0]


def test_every_raftkv_command_works_as_the_readme_says(local: LocalCluster, tmp_path: Path) -> None:
    (block,) = (block for block in blocks(local) if "raftkv kv" in block)
    executable = Path(sys.executable).parent / "raftkv"
    output = run(block.replace(".venv/bin/raftkv", str(executable)), tmp_path, local)
    assert "world" in output
    assert all(name in output for name in local.names)


def test_the_python_example_prints_what_it_put(local: LocalCluster, tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", readme(local), re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("b'world'\n", "")
