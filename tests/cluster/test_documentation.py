"""The documentation's examples, run as they stand on a cluster of their own; only the ports are replaced."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cluster.examples import Example, Shell, agrees, examples
from cluster.local import LocalCluster, find_base_port

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [page for page in sorted(DOCS.glob("*.md")) if any(examples(page.read_text()))]


def test_pages_with_examples_are_there() -> None:
    assert {"index.md", "http.md", "client.md"} <= {page.name for page in PAGES}


def with_ports_of(cluster: LocalCluster, text: str) -> str:
    for number, name in enumerate(cluster.names):
        text = text.replace(f"127.0.0.1:{8400 + 10 * number}", f"127.0.0.1:{cluster.api_port(name)}")
    return text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_prints_what_the_page_says(page: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    with LocalCluster(tmp_path / "data", base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        environment = {
            "RAFTKV_ENDPOINTS": ",".join(cluster.api_urls()),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        with Shell(here, environment) as shell:
            for example in examples(with_ports_of(cluster, page.read_text())):
                if example.program:
                    check_program(shell, example, here, cluster)
                else:
                    shell.check(example)


def check_program(shell: Shell, example: Example, here: Path, cluster: LocalCluster) -> None:
    """`SyncClient()` asks the nodes of `scripts/up`, which are others here."""
    text = example.text.replace("SyncClient()", f'SyncClient("{",".join(cluster.api_urls())}")')
    (here / "program.py").write_text(text)
    code, shown, errors = shell.run(f"{sys.executable} program.py")
    assert code == 0, f"line {example.line}\n{errors}"
    assert agrees(example.printed or "", shown), (
        f"line {example.line}: {example.printed}\nand printed\n{shown}"
    )
