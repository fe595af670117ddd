"""The committed log's way to the store: what a leader sends, when, and what it says when it can't."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftkv.errors import StoreUnavailable
from raftkv.raft import log_archive
from raftkv.raft.log_archive import LogArchive
from raftkv.snapshot.bucket import DirectoryBucket
from raftkv.snapshot.ranges import Ranges

CLUSTER = "c" * 32


class Away(DirectoryBucket):
    """A real bucket that can be away. `lost_answers`: what is created is there, and the answer is lost."""

    away = False
    lost_answers = 0

    def index(self) -> Any:
        self._refuse()
        return super().index()

    def create(self, name: str, data: bytes) -> None:
        self._refuse()
        super().create(name, data)
        if self.lost_answers:
            self.lost_answers -= 1
            raise StoreUnavailable("no answer", reason="timed_out")

    def _refuse(self) -> None:
        if self.away:
            raise StoreUnavailable("the store is away", reason="timed_out")


class Leader:
    """A log that grows, its archive, and time by hand. Jobs run when they are given."""

    def __init__(self, directory: Path, name: str = "n1") -> None:
        self.bucket = Away(directory)
        self.ranges = Ranges(self.bucket)
        self.now = 100.0
        self.journal: list[tuple[bytes, int, int]] = [(b"\2", 1, 0)]
        self.applied = 1
        self.term: int | None = 1
        self.held: list[tuple[Callable[[], Any], Callable[[Any], None]]] | None = None
        self.archive = LogArchive(
            self.ranges,
            node=name,
            cluster=CLUSTER,
            interval_s=1.0,
            run=self.run,
            clock=lambda: self.now,
            wall_clock=lambda: self.now + 1000,
        )

    def run(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        if self.held is not None:
            self.held.append((job, done))
            return
        try:
            result = job()
        except Exception as error:  # noqa: BLE001 as the real door hands it over
            result = error
        done(result)

    def write(self, count: int, size: int = 10) -> None:
        for _ in range(count):
            index = self.journal[-1][1] + 1
            self.journal.append((b"\0" + b"%d" % index + bytes(size), index, self.term or 1))
        self.applied = self.journal[-1][1]
        self.archive.applied(self.applied)

    def compact(self, index: int) -> None:
        del self.journal[: index - self.journal[0][1]]

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.archive.pump(self.term, self.journal, self.applied)
            self.now += 0.02
        self.archive.pump(self.term, self.journal, self.applied)

    def archived(self, index: int = 1, term: int = 0) -> list[bytes]:
        return [
            payload
            for each in self.ranges.walk(CLUSTER, index, term)
            for at, (_, payload) in enumerate(each.entries, each.head.first)
            if at > index
        ]


@pytest.fixture
def leader(tmp_path: Path) -> Leader:
    return Leader(tmp_path / "bucket")


def test_what_is_committed_is_there_within_the_interval(leader: Leader) -> None:
    for _ in range(5):
        leader.write(3)
        leader.pass_time(1.1)
        assert len(leader.archived()) == leader.applied - 1
    status = leader.archive.status()
    assert (status.state, status.index, status.lag_entries, status.lag_s) == ("current", leader.applied, 0, 0)
    assert status.ranges == 5


def test_at_most_one_range_an_interval_and_none_for_nothing(leader: Leader) -> None:
    for _ in range(100):
        leader.write(1)
        leader.pass_time(0.02)
    assert leader.archive.status().ranges <= 3
    leader.pass_time(2)
    sent = leader.archive.status().ranges
    leader.pass_time(10)
    assert leader.archive.status().ranges == sent


def test_a_follower_sends_nothing(leader: Leader) -> None:
    leader.term = None
    leader.write(5)
    leader.pass_time(3)
    assert not leader.bucket.index().entries
    assert leader.archive.status().state == "standby"


def test_a_backlog_goes_in_bounded_ranges_without_waiting(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_archive, "RANGE_BYTES_MAX", 1000)
    leader.write(100, size=100)
    leader.pass_time(0.5)
    assert len(leader.archived()) == 100
    assert leader.archive.status().ranges >= 10
    for each in leader.ranges.walk(CLUSTER, 1, 0):
        assert each.head.raw_bytes <= 1500


def test_a_store_that_was_away_is_caught_up_from_the_journal(
    leader: Leader, caplog: pytest.LogCaptureFixture
) -> None:
    leader.write(3)
    leader.pass_time(2)
    leader.bucket.away = True
    with caplog.at_level(logging.ERROR, "raftkv.snapshot"):
        for _ in range(30):
            leader.write(1)
            leader.pass_time(1)
    status = leader.archive.status()
    assert status.state == "failing"
    assert status.lag_entries == 30
    assert 29 < status.lag_s < 32
    assert 3 <= status.failures <= 12  # further apart each time
    assert "the store is away" in status.error
    assert len([r for r in caplog.records if "log_archive_failed" in r.message]) == 1
    leader.bucket.away = False
    leader.pass_time(12)
    status = leader.archive.status()
    assert (status.state, status.lag_entries, status.gaps, status.error) == ("current", 0, 0, "")
    assert len(leader.archived()) == leader.applied - 1


def test_a_slow_store_holds_one_range_and_says_that_it_lags(leader: Leader) -> None:
    leader.write(1)
    leader.pass_time(1)
    leader.held = []
    for _ in range(20):
        leader.write(5)
        leader.pass_time(1)
    assert len(leader.held) == 1
    assert leader.archive.status().state == "lagging"


def test_entries_that_were_compacted_first_are_a_gap_and_an_alarm(
    leader: Leader, caplog: pytest.LogCaptureFixture
) -> None:
    leader.write(5)
    leader.pass_time(2)
    leader.bucket.away = True
    leader.write(20)
    leader.pass_time(2)
    leader.compact(15)
    leader.bucket.away = False
    with caplog.at_level(logging.ERROR, "raftkv.snapshot"):
        leader.pass_time(12)
    assert leader.archive.status().gaps == 1
    assert any("log_archive_gap" in record.message for record in caplog.records)
    assert len(leader.archived()) == 5
    assert leader.archived(15, 1) == [payload for payload, index, _ in leader.journal if index > 15]


def test_an_answer_that_was_lost_makes_neither_a_gap_nor_a_fork(leader: Leader) -> None:
    leader.write(2)
    leader.pass_time(2)
    leader.bucket.lost_answers = 1
    leader.write(2)
    leader.pass_time(1)
    leader.write(7)
    leader.pass_time(5)
    assert leader.archived() == [payload for payload, index, _ in leader.journal if index > 1]
    assert leader.archive.status().state == "current"


def test_the_next_leader_goes_on_where_the_last_one_ended(leader: Leader, tmp_path: Path) -> None:
    leader.write(5)
    leader.pass_time(2)
    other = Leader(tmp_path / "bucket", "n2")
    other.journal = list(leader.journal)
    other.term = 2
    leader.write(4)  # committed by both, and sent by neither yet
    other.journal = list(leader.journal)
    other.write(3)
    other.pass_time(2)
    leader.pass_time(2)  # does not know that it has been deposed
    assert other.archived() == [payload for payload, index, _ in other.journal if index > 1]
    (chain,) = other.ranges.chains(CLUSTER)
    assert chain.first == 2


def test_a_restored_cluster_begins_at_its_snapshot(leader: Leader) -> None:
    leader.journal = [(b"\1", 40, 7)]
    leader.term = 8
    leader.write(3)
    leader.pass_time(2)
    assert len(leader.archived(40, 7)) == 3


def test_a_log_of_another_history_is_not_joined(leader: Leader, tmp_path: Path) -> None:
    leader.write(5)
    leader.pass_time(2)
    other = Leader(tmp_path / "bucket", "n2")
    other.term = 9
    other.write(10)
    other.pass_time(3)
    assert "two clusters" in other.archive.status().error
    assert len(leader.archived()) == 5


def test_times_say_when_entries_were_applied_at_the_latest(leader: Leader) -> None:
    begun = leader.now
    for _ in range(40):
        leader.write(1)
        leader.pass_time(0.1)
    leader.pass_time(2)
    for each in leader.ranges.walk(CLUSTER, 1, 0):
        for index in range(each.head.first, each.head.last + 1):
            applied_ms = (begun + 1000 + (index - 2) * 0.12) * 1000
            assert applied_ms - 1 <= each.time_ms(index) <= applied_ms + 120 + log_archive.TIME_STEP_MS
