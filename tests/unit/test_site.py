"""The documentation as a site: it builds with no network and no warning; its made pages are of this code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.reference import pages

ROOT = Path(__file__).parents[2]
MKDOCS = Path(sys.executable).parent / "mkdocs"
OFFLINE = ["unshare", "--net"] if os.geteuid() == 0 and shutil.which("unshare") else []
LOADS = re.compile(
    r"<(?:script|img|source|iframe)[^>]* src=[\"']?([^\"' >]+)"
    r"|<link[^>]* rel=[\"']?(?:stylesheet|preconnect|preload|icon)[\"']?[^>]* href=[\"']?([^\"' >]+)"
    r"|@import [\"']?([^\"';]+)|url\(([^)]+)\)"
)

pytestmark = pytest.mark.skipif(not MKDOCS.exists(), reason="mkdocs comes with the docs extra")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*OFFLINE, MKDOCS, "build", "--strict", "--config-file", config, "--site-dir", site],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", pages())
def test_pages_that_are_made_are_of_this_code(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == pages()[name], "run scripts/docs write"


def test_it_builds_and_fetches_nothing(tmp_path: Path) -> None:
    done = build(ROOT / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in tmp_path.glob("*.html")} == names | {"404"}
    for path in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        loaded = ["".join(found) for found in LOADS.findall(path.read_text())]
        assert [each for each in loaded if re.match(r"[\"']?(https?:)?//", each)] == [], path


@pytest.mark.parametrize("planted", ["[gone](gone.md)", "[nowhere](index.md#nowhere)"])
def test_a_planted_dead_link_is_found(planted: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Here\n\n{planted}\n")
    config = re.sub(r"^nav:\n.*", "", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "mkdocs.yml").write_text(config)
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "index.md" in done.stdout + done.stderr


def test_a_page_outside_the_navigation_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "docs" / "lost.md").write_text("# Lost\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "lost.md" in done.stdout + done.stderr
