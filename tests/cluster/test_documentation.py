"""The documentation's examples, run as they stand, each page on a cluster of its own; the ports differ."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cluster.examples import examples
from cluster.local import find_base_port
from cluster.walk import NODES, UP, Walk

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [page for page in sorted(DOCS.glob("*.md")) if any(examples(page.read_text()))]
# What a page takes for granted, where it does not start its nodes itself.
BEFORE = "```sh\nraftkv up\n```\n"


def test_pages_with_examples_are_there() -> None:
    assert {"index.md", "http.md", "client.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_prints_what_the_page_says(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    starts = any(UP.match(example.text) for example in examples(text))
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with Walk(tmp_path, environment=environment, base_port=find_base_port(NODES)) as walk:
        assert walk.through(text if starts else BEFORE + text) > 0
