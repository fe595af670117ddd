"""A newcomer's walk: a fresh clone, and every command of README in it, top to bottom, as it stands there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.examples import Failed
from cluster.walk import LEFT_OUT, WITHOUT_CEPH, Walk, newcomer

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_command_of_readme_prints_what_readme_says(tmp_path: Path) -> None:
    told: list[str] = []
    try:
        walk = newcomer(tmp_path, told.append)
    except Failed as failure:
        pytest.fail("\n".join([*told, str(failure)]))
    reasons = {**LEFT_OUT, **({} if shutil.which("ceph-mon") else WITHOUT_CEPH)}
    assert {reason for _, reason in walk.left_out} <= set(reasons.values())
    assert sum(line.startswith("$ ") for line in told) > 20


def page(*lines: str) -> str:
    return "\n".join(["```sh", *lines, "```", ""])


def test_a_page_that_is_wrong_is_found(tmp_path: Path) -> None:
    with Walk(tmp_path) as walk:
        assert walk.through(page("echo $((1 + 1))  # 2", "false || echo no", "# no")) == 2
        with pytest.raises(Failed, match=r"should print\n3\nand printed\n2"):
            walk.through(page("echo $((1 + 1))  # 3"))
        with pytest.raises(Failed, match="exit code 7"):
            walk.through(page("(exit 7)"))
        with pytest.raises(Failed, match="did not get ready"):
            walk.through(page("scripts/up"))


def test_what_is_left_out_is_told_with_its_reason(tmp_path: Path) -> None:
    told: list[str] = []
    with Walk(tmp_path, left_out={r"^rm\b": "it deletes"}, say=told.append) as walk:
        walk.through(page("rm -rf nothing", "echo b  # b"))
        assert walk.left_out == [("rm -rf nothing", "it deletes")]
    assert told == ["left out: rm -rf nothing\n    it deletes", "$ echo b"]


def test_other_ports_stand_in_where_those_of_the_page_are_taken(tmp_path: Path) -> None:
    with Walk(tmp_path, base_port=12340) as walk:
        assert walk.with_ports("http://127.0.0.1:8400,http://127.0.0.1:8420") == (
            "http://127.0.0.1:12340,http://127.0.0.1:12360"
        )
