"""`raftkv journal`: what it prints, how it exits, and that it changes nothing and shows no value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster.journal_cli import journal
from raftkv.journal.disk import OsDisk
from raftkv.journal.wal import Wal

SECRET = b"a value that nobody may see"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    wal = Wal.open(OsDisk(tmp_path / "journal"), 4096, draw_id=lambda size: b"j" * size)
    for index in range(1, 41):
        wal.setCurrentTerm(1 + index // 20, "n1")
        wal.add(SECRET * 10, index, wal.getCurrentTerm())
        wal.setRaftCommitIndex(index - 1)
        if index == 30:
            wal.deleteEntriesFrom(25)
            wal.add(SECRET, 26, 2)
            break
        batch = wal.cut()
        assert batch is not None
        wal.write(batch)
        wal.synced(batch)
    batch = wal.cut()
    assert batch is not None
    wal.write(batch)
    wal.close()
    return tmp_path / "journal"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(journal, [str(argument) for argument in arguments])


def files(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}


def test_inspect_prints_segments_frames_records_and_the_state(directory: Path) -> None:
    before = files(directory)
    result = run("inspect", directory)
    assert result.exit_code == 0, result.output
    for expected in (
        "0000000000000001.journal  4096 bytes, first frame 1, starts the journal anew",
        "goes on",
        "entries 1..1 term=1 bytes=270",
        "hard_state term=1 voted_for=n1",
        "truncate index=26",
        "commit index=25",
        "term          2, voted for n1",
        "log           entries 1 to 26, 6777 bytes, known committed 25",
        "a start would keep all of it",
    ):
        assert expected in result.output
    assert SECRET.decode() not in result.output
    assert files(directory) == before


def test_inspect_speaks_json(directory: Path) -> None:
    shown = json.loads(run("inspect", directory, "-o", "json").output)
    assert (shown["verdict"], shown["term"], shown["voted_for"], shown["last_index"]) == (
        "whole",
        2,
        "n1",
        26,
    )
    frames = [frame for segment in shown["segments"] for frame in segment["frames"]]
    assert [frame["sequence"] for frame in frames] == list(range(1, len(frames) + 1))
    assert {"kind": "entry", "index": 1, "term": 1, "bytes": 270} in frames[1]["records"]
    assert SECRET.decode() not in json.dumps(shown)


def test_verify_exits_0_for_a_whole_journal(directory: Path) -> None:
    result = run("verify", directory)
    assert (result.exit_code, "verdict       whole" in result.output) == (0, True)


def test_verify_exits_0_for_a_torn_tail_and_says_what_goes(directory: Path) -> None:
    (directory / "notes.txt").write_text("mine")
    (directory / "0000000000000099.journal.new").write_text("unfinished")
    last = sorted(directory.glob("*.journal"))[-1]
    data = last.read_bytes()
    end = len(data.rstrip(b"\0"))
    last.write_bytes(data[: end - 20] + bytes(len(data) - end + 20))
    before = files(directory)
    result = run("verify", directory)
    assert result.exit_code == 0
    assert "a crash interrupted" in result.output
    assert "leftovers     0000000000000099.journal.new" in result.output
    assert "not ours      notes.txt: left alone" in result.output
    assert files(directory) == before


def test_verify_exits_1_for_damage_and_says_where_and_what_to_do(directory: Path) -> None:
    first = min(directory.glob("*.journal"))
    data = bytearray(first.read_bytes())
    data[200] ^= 1
    first.write_bytes(data)
    before = files(directory)
    result = run("verify", directory)
    assert result.exit_code == 1
    assert f"the journal is damaged: {first.name} at byte " in result.output
    assert "re-admit" in result.output
    assert json.loads(run("verify", directory, "-o", "json").output)["verdict"] == "damaged"
    assert files(directory) == before


def test_inspect_shows_what_can_be_read_of_a_damaged_journal(directory: Path) -> None:
    last = max(directory.glob("*.journal"))
    data = bytearray(last.read_bytes())
    data[70] ^= 1
    last.write_bytes(data)
    result = run("inspect", directory)
    assert result.exit_code == 0
    assert "entries 1..1 term=1" in result.output
    assert "verdict       damaged" in result.output


def test_verify_exits_1_where_there_is_no_journal(tmp_path: Path) -> None:
    result = run("verify", tmp_path)
    assert (result.exit_code, "There is no journal here" in result.output) == (1, True)


def test_a_missing_directory_is_a_usage_error(tmp_path: Path) -> None:
    assert run("verify", tmp_path / "nowhere").exit_code == 2
