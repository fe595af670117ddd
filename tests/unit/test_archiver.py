"""When snapshots are published, and by whom: decisions, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from raftkv.errors import SnapshotDamaged, StoreFenced, StoreUnavailable
from raftkv.snapshot.archiver import HOUSEKEEPING_S, ArchivePolicy, Archiver, Situation
from raftkv.snapshot.bucket import DirectoryBucket
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import verify
from raftkv.snapshot.remote import RemoteStore, Retention, attempts
from tests.unit.snapshot_samples import CLUSTER, a_machine, publish

POLICY = ArchivePolicy(interval_s=600, spacing_s=60, retention=Retention(3))


class Node:
    """An archiver, whose jobs run when the test says. `pump` is what a node's tick does."""

    def __init__(self, path: Path, name: str = "n1", policy: ArchivePolicy = POLICY) -> None:
        self.now_s = 1_000.0
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []
        self.local = DirectoryStore.open(path / name)
        self.bucket = DirectoryBucket(path / "shared")
        self.remote = RemoteStore(self.bucket, self.wall)
        self.archiver = Archiver(
            self.remote,
            self.local,
            node=name,
            policy=policy,
            run=lambda job, done: self.jobs.append((job, done)),
            clock=lambda: self.now_s,
            wall_clock=self.wall,
        )
        self.term: int | None = 1
        self.newest: Manifest | None = None
        self.revision = 0

    def wall(self) -> float:
        return 1_700_000_000 + self.now_s

    @property
    def published(self) -> str:
        return "" if self.archiver.published is None else self.archiver.published.snapshot

    def snapshot(self, keys: int) -> Manifest:
        machine = a_machine(1, keys)
        self.newest, self.revision = publish(self.local, machine), machine.revision
        return self.newest

    def pump(self, passed_s: float = 0.0) -> bool:
        self.now_s += passed_s
        return self.archiver.pump(Situation(CLUSTER, self.term, self.newest, self.revision))

    def work(self) -> int:
        """Runs what was given out; how many jobs that was."""
        jobs, self.jobs = self.jobs, []
        for job, done in jobs:
            try:
                result = job()
            except Exception as error:  # noqa: BLE001 as a node's door does
                result = error
            done(result)
        return len(jobs)

    def step(self, passed_s: float = 0.0) -> int:
        self.pump(passed_s)
        return self.work()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def away(node: Node, monkeypatch: pytest.MonkeyPatch, reason: str = "timed_out") -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable("no answer", reason=reason)

    monkeypatch.setattr(node.bucket, "index", fail)


def test_only_the_leader_publishes(node: Node) -> None:
    made = node.snapshot(5)
    node.term = None
    assert node.step(1e6) == 0
    node.term = 2
    assert node.step() == 1
    assert node.remote.list() == [made]
    assert (node.archiver.uploads, node.published) == (1, made.id)


def test_a_new_leader_looks_first_and_does_not_publish_again(tmp_path: Path) -> None:
    first, second = Node(tmp_path, "n1"), Node(tmp_path, "n2")
    made = first.snapshot(9)
    first.step()
    second.term = 2
    second.now_s += 30
    second.snapshot(5)
    assert second.step() == 1
    assert (second.archiver.uploads, second.published) == (0, made.id)
    assert second.archiver.age_s == pytest.approx(30, abs=0.01)
    newer = second.snapshot(12)
    second.step()
    assert second.published == newer.id


def test_a_leader_without_a_snapshot_of_its_own_knows_what_is_there(tmp_path: Path) -> None:
    first, second = Node(tmp_path, "n1"), Node(tmp_path, "n2")
    made = first.snapshot(9)
    first.step()
    second.term = 2
    second.step()
    assert second.published == made.id


def test_snapshots_of_compaction_are_published_at_their_spacing(node: Node) -> None:
    node.snapshot(5)
    node.step()
    for keys in range(6, 12):
        node.snapshot(keys)
        assert node.step(9) == 0
    assert node.step(6.5) == 1
    assert node.published == node.newest.id  # type: ignore[union-attr]
    assert len(node.remote.list()) == 2


def test_a_snapshot_is_asked_for_at_the_interval_if_something_was_written(node: Node) -> None:
    node.snapshot(5)
    node.step()
    assert not node.pump(599)
    node.work()
    assert not node.pump(2)
    node.work()
    node.revision += 1
    assert node.pump()
    node.snapshot(6)
    assert not node.pump()
    assert node.work() == 1
    node.revision += 1
    assert not node.pump(599)


def test_a_first_snapshot_is_asked_for_too(node: Node) -> None:
    node.revision = 1
    node.step()
    assert not node.pump(10)
    node.step(HOUSEKEEPING_S)
    assert node.pump()


def test_an_interval_shorter_than_the_spacing_counts(tmp_path: Path) -> None:
    node = Node(tmp_path, policy=ArchivePolicy(interval_s=5, spacing_s=60))
    node.snapshot(5)
    node.step()
    node.revision += 1
    assert node.pump(6)
    node.snapshot(6)
    assert node.step() == 1


def test_retention_is_kept_and_unfinished_attempts_go_without_anything_new(node: Node) -> None:
    for keys in range(5, 12):
        node.snapshot(keys)
        node.step(100)
    assert len(node.remote.list()) == 3
    assert node.step(HOUSEKEEPING_S) == 1


def test_failures_are_tried_again_ever_later_and_it_catches_up(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = node.snapshot(5)
    tried: list[float] = []
    with monkeypatch.context() as patch:
        away(node, patch)
        for _ in range(3_000):
            if node.step(0.1):
                tried.append(node.now_s)
    pauses = [after - before for before, after in pairwise(tried)]
    assert pauses[:6] == pytest.approx([1, 2, 4, 8, 16, 32], abs=0.2)
    assert max(pauses) == pytest.approx(60, abs=0.2)
    assert node.archiver.failures == node.archiver.failures_in_row == len(tried)
    assert str(node.archiver.error) == "no answer"
    assert node.step(61) == 1
    assert node.remote.list() == [made]
    assert (node.archiver.failures_in_row, node.archiver.error) == (0, None)
    assert node.archiver.failures == len(tried)


def test_a_failing_store_asks_compaction_for_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.snapshot(5)
    away(node, monkeypatch)
    node.revision += 1
    for _ in range(100):
        assert not node.pump(60)
        node.work()


def test_a_request_is_published_at_once_and_answered(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.snapshot(5)
    node.step()
    made = node.snapshot(6)
    answers: list[object] = []
    node.archiver.request(made, answers.append)
    assert node.step() == 1
    assert answers == [made]
    with monkeypatch.context() as patch:
        away(node, patch)
        node.archiver.request(node.snapshot(7), answers.append)
        node.step()
        assert isinstance(answers[-1], StoreUnavailable)
        # The pause after a failure is not for those who ask.
        node.archiver.request(node.snapshot(7), answers.append)
        assert node.step() == 1
    node.archiver.request(node.snapshot(8), answers.append)
    node.term = None
    node.pump()
    assert isinstance(answers[-1], StoreFenced)


def test_a_request_during_a_job_is_done_after_it(node: Node) -> None:
    node.snapshot(5)
    node.pump()
    answers: list[object] = []
    made = node.snapshot(6)
    node.archiver.request(made, answers.append)
    node.pump()
    node.work()
    assert answers == []
    node.step()
    assert answers == [made]


def test_who_is_deposed_on_the_way_publishes_nothing_and_counts_no_failure(tmp_path: Path) -> None:
    old, new = Node(tmp_path, "n1"), Node(tmp_path, "n2")
    old.snapshot(5)
    old.pump()
    old.term = None
    old.pump()
    old.work()
    assert old.remote.list() == []
    assert old.archiver.failures == 0
    new.term = 2
    made = new.snapshot(6)
    new.step()
    # It doesn't know yet that it was deposed: the store does.
    old.term = 1
    old.snapshot(20)
    old.step(100)
    assert new.remote.list() == [made]
    assert isinstance(old.archiver.error, StoreFenced)


def test_retention_here_waits_for_a_snapshot_on_its_way(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    made = node.snapshot(5)
    write = node.bucket.write

    def overtaken(objects: Any) -> None:
        node.snapshot(6)
        node.snapshot(7)
        node.local.retain(1)
        write(objects)

    monkeypatch.setattr(node.bucket, "write", overtaken)
    node.step()
    verify(node.remote, made.id)
    node.local.retain(1)
    assert [each.index for each in node.local.list()] == [node.newest.index]  # type: ignore[union-attr]


def test_a_snapshot_that_retention_took_first_is_no_failure(node: Node) -> None:
    old = node.snapshot(5)
    node.pump()
    newer = node.snapshot(6)
    node.local.delete(old.id)
    node.work()
    assert node.archiver.failures == 0
    node.step(1)
    assert node.remote.list() == [newer]


def test_damage_in_the_store_keeps_no_new_snapshot_from_coming(node: Node) -> None:
    made = node.snapshot(5)
    node.step()
    (attempt,) = attempts(node.bucket.index(), "s", None)
    node.bucket.remove([attempt.manifest_object])
    newer = node.snapshot(6)
    assert node.step(100) == 1
    assert node.published == newer.id
    assert node.archiver.failures == 0
    with pytest.raises(SnapshotDamaged, match=made.id):
        node.remote.list()


def test_a_prune_that_failed_is_tried_again_and_does_not_fail_who_asked(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise StoreUnavailable("no answer", reason="timed_out")

    answers: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(node.remote, "prune", fail)
        made = node.snapshot(5)
        node.archiver.request(made, answers.append)
        node.step()
        assert answers == [made]
        assert node.archiver.failures_in_row == 1
    assert node.step(1.5) == 1
    assert (node.archiver.failures_in_row, node.archiver.failures) == (0, 1)


def test_a_stop_breaks_off_and_answers(node: Node) -> None:
    answers: list[object] = []
    made = node.snapshot(5)
    node.archiver.request(made, answers.append)
    node.pump()
    node.archiver.stop()
    node.work()
    assert isinstance(answers[0], StoreFenced)
    assert node.remote.list() == []
    assert node.step(1e6) == 0
