"""What `raftkv restore` takes, and what it refuses before it touches anything."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cluster.cli import cli
from cluster.restoring import _time

MEMBER = ("--member", "n1=127.0.0.1:8401,http://127.0.0.1:8400")


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("2026-01-02T03:04:05Z", 1_767_323_045_000),
        ("2026-01-02T03:04:05.678+00:00", 1_767_323_045_678),
        ("2026-01-02T05:04:05+02:00", 1_767_323_045_000),
        ("2026-01-02T03:04:05", 1_767_323_045_000),
        ("1767323045.5", 1_767_323_045_500),
        (None, None),
    ],
)
def test_times_are_iso_8601_or_unix_seconds(text: str | None, time_ms: int | None) -> None:
    assert _time(click.Context(cli), click.Option(["--to-time"]), text) == time_ms


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to-time", "yesterday"), "neither ISO 8601"),
        (("--to-revision", "0"), "--to-revision"),
        (("--only", "n1"), "--only needs --member"),
        ((*MEMBER, "--only", "n1"), "--new-cluster-id"),
        ((*MEMBER, "--only", "n9", "--new-cluster-id", "ab" * 16), "none of n1"),
        (("--new-cluster-id", "abc"), "32 hex digits"),
        ((*MEMBER, "--nodes", "3"), "--member names the members"),
        (("--member", "n1"), "--member"),
    ],
)
def test_wrong_usage_is_said_and_makes_nothing(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    store, data_dir = (tmp_path / "store").as_uri(), tmp_path / "data"
    result = CliRunner().invoke(cli, ["restore", "--from", store, "--data-dir", str(data_dir), *words])
    assert result.exit_code == 2
    assert said in result.output
    assert not data_dir.exists()


@pytest.mark.parametrize(
    ("url", "exit_code", "said"),
    [
        ("http://example.org", 2, "rados://POOL/NAMESPACE"),
        ("file:///nowhere/at/all", 3, "no snapshot and no log"),
    ],
)
def test_a_store_without_anything_is_said(tmp_path: Path, url: str, exit_code: int, said: str) -> None:
    words = ["restore", "--from", url, "--data-dir", str(tmp_path / "data"), *MEMBER]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == exit_code, result.output
    assert said in result.output
    assert not (tmp_path / "data").exists()
