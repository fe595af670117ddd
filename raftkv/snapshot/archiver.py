"""Copies a node's snapshots to the store that the cluster shares, while the node leads. Sans-IO.

Lives on the loop's thread; what blocks is given to `run` as one job at a time and comes back by `done`. It
only reads what compaction made durable: a store that is away, slow, full or refusing fails jobs here, and
neither a write nor a compaction ever waits for one.

Exactly one node publishes: the leader, in its term. A leader that was deposed without knowing is refused by
the store's own record of terms (`remote.claim`, `remote.commit`). A new leader looks first at what is there,
so that it neither publishes again nor misses what its predecessor did not finish.

What is published: the newest local snapshot, at most every `spacing_s`; and one is asked for when nothing
was published for `interval_s` although something was written. After a failure: again after 1 s, then twice
as long each time, a minute at most; so it catches up by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from raftkv.errors import RaftkvError, SnapshotMissing, StoreFenced, StoreUnavailable
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.remote import Attempt, Pruned, RemoteStore, Retention
from raftkv.snapshot.store import Store

log = logging.getLogger("raftkv.snapshot")

RETRY_S: Final = (1.0, 60.0)  # the first, and the longest
HOUSEKEEPING_S: Final = 600.0  # retention by age, and what was given up, also where nothing is published

Done = Callable[[Manifest | BaseException], None]
Run = Callable[[Callable[[], Any], Callable[[Any], None]], None]


@dataclass(frozen=True, slots=True)
class ArchivePolicy:
    """`interval_s` 0: only what compaction makes is published."""

    interval_s: float = 600.0
    spacing_s: float = 60.0
    retention: Retention = field(default_factory=Retention)


@dataclass(frozen=True, slots=True)
class Situation:
    """What the node is at this moment. `term`: the one that it leads in, None where it does not lead."""

    cluster: str
    term: int | None
    newest: Manifest | None  # durable on the local disk
    revision: int  # applied


@dataclass(frozen=True, slots=True)
class _Outcome:
    published: Attempt | None  # the newest in the store
    answer: Manifest | None  # for those who asked
    uploaded: Manifest | None
    seconds: float
    pruned: Pruned | None
    prune_error: RaftkvError | None


class Archiver:
    """`clock` is monotonic, `wall_clock` Unix time; both in seconds."""

    def __init__(
        self,
        store: RemoteStore,
        local: Store,
        *,
        node: str,
        policy: ArchivePolicy,
        run: Run,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._local = local
        self._node = node
        self._policy = policy
        self._run = run
        self._clock = clock
        self._wall_clock = wall_clock
        self._waiting: list[tuple[Manifest, Done]] = []
        self._stopped = False
        self._term: int | None = None  # that we lead in
        self._looked_term: int | None = None  # in which we know what the store has
        self._looked_at = float("-inf")
        self._looked_first = float("-inf")  # in this term
        self._uploaded_at = float("-inf")
        self._not_before = float("-inf")
        self.running = False
        self.published: Attempt | None = None
        self.published_at: float | None = None  # on `clock`
        self.uploads = 0
        self.uploaded_bytes = 0
        self.upload_seconds_last: float | None = None
        self.failures = 0
        self.failures_in_row = 0
        self.error: RaftkvError | None = None

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def leads(self) -> bool:
        return self._term is not None

    @property
    def age_s(self) -> float | None:
        """Of the newest published snapshot; None where this node doesn't know of one."""
        return None if self.published_at is None else max(0.0, self._clock() - self.published_at)

    def request(self, manifest: Manifest, done: Done) -> None:
        """Publishes `manifest` or a newer one as soon as the job under way has ended; `done` gets what the
        store then has, or why not. For the leader."""
        self._waiting.append((manifest, done))
        self._not_before = float("-inf")

    def stop(self) -> None:
        self._stopped = True
        self._answer(StoreFenced("the node is stopping"))

    def pump(self, now: Situation) -> bool:
        """Starts what is due. True where a new local snapshot should be made, for the interval."""
        self._term = now.term
        if self._stopped or self.running:
            return False
        if now.term is None:
            self._looked_term = None
            if self._waiting:
                self._answer(StoreFenced("this node leads no more; ask the leader"))
            return False
        if self._clock() >= self._not_before and self._is_due(now):
            self._start(now.cluster, now.term, now.newest)
            return False
        return self._wants_snapshot(now)

    # --- what is due: decisions ------------------------------------------------------------------------

    def _is_due(self, now: Situation) -> bool:
        if self._waiting or self._looked_term != now.term or self.failures_in_row:
            return True
        if self._clock() - self._looked_at >= HOUSEKEEPING_S:
            return True
        newer = now.newest is not None and (self.published is None or now.newest.index > self.published.index)
        pause_s = self._policy.spacing_s
        if self._policy.interval_s:
            pause_s = min(pause_s, self._policy.interval_s)
        return newer and self._clock() - self._uploaded_at >= pause_s

    def _wants_snapshot(self, now: Situation) -> bool:
        if not self._policy.interval_s or self._looked_term != now.term or self.failures_in_row:
            return False
        since = self._looked_first if self.published_at is None else self.published_at
        if self._clock() - max(since, self._uploaded_at) < self._policy.interval_s:
            return False
        return now.revision > (self.published.revision if self.published is not None else 0)

    # --- the job -----------------------------------------------------------------------------------

    def _start(self, cluster: str, term: int, newest: Manifest | None) -> None:
        asked = [manifest for manifest, _ in self._waiting]
        target = max([*asked, *([newest] if newest is not None else [])], key=_place, default=None)
        self.running = True
        self._run(
            lambda: self._work(cluster, target, term, bool(asked)), lambda result: self._ended(term, result)
        )

    def _work(self, cluster: str, target: Manifest | None, term: int, asked: bool) -> _Outcome:
        """On a worker thread."""
        began = time.monotonic()
        there = self._store.newest(cluster)
        uploaded = answer = None
        if target is not None and (there is None or there.index < target.index):
            # `hold`: compaction may make several snapshots while this one is on its way.
            with self._local.hold(target.id):
                answer = uploaded = self._store.publish(
                    self._local,
                    target.id,
                    term=term,
                    publisher=self._node,
                    going_on=lambda: self._term == term and not self._stopped,
                )
            there = self._store.newest(cluster)
        elif there is not None and asked:
            answer = self._store.manifest(there.snapshot)
        seconds = time.monotonic() - began
        pruned, error = None, None
        try:
            pruned = self._store.prune(cluster=cluster, retention=self._policy.retention, term=term)
        except RaftkvError as problem:
            error = problem
        return _Outcome(there, answer, uploaded, seconds, pruned, error)

    def _ended(self, term: int, result: _Outcome | BaseException) -> None:
        self.running = False
        if isinstance(result, _Outcome):
            self._succeeded(term, result)
            return
        if isinstance(result, SnapshotMissing) and self._term == term:
            # Local retention was quicker than `hold`: the newer one is next.
            self._not_before = self._clock() + RETRY_S[0]
            return
        if isinstance(result, StoreFenced) and (self._term != term or self._stopped):
            log.info("snapshot_publish_broken_off node=%s reason=%s", self._node, result)
            self._answer(result)
            return
        self._failed(result)

    def _succeeded(self, term: int, outcome: _Outcome) -> None:
        if self._looked_term != term:
            self._looked_first = self._clock()
        self._looked_term, self._looked_at = term, self._clock()
        self.published = outcome.published
        if outcome.published is not None:
            self.published_at = self._clock() - max(
                0.0, self._wall_clock() - outcome.published.time_ms / 1000
            )
        if outcome.uploaded is not None:
            manifest = outcome.uploaded
            self._uploaded_at = self._clock()
            self.uploads += 1
            self.uploaded_bytes += manifest.bytes
            self.upload_seconds_last = outcome.seconds
            log.info(
                "snapshot_published node=%s snapshot=%s bytes=%d seconds=%.3f store=%s",
                self._node,
                manifest.id,
                manifest.bytes,
                outcome.seconds,
                self.url,
            )
        if outcome.pruned is not None and (outcome.pruned.snapshots or outcome.pruned.unfinished):
            log.info(
                "snapshots_pruned node=%s snapshots=%d unfinished=%d",
                self._node,
                len(outcome.pruned.snapshots),
                len(outcome.pruned.unfinished),
            )
        if outcome.prune_error is not None:
            self._note(outcome.prune_error)
        else:
            self.failures_in_row, self.error = 0, None
        waiting, self._waiting = self._waiting, []
        for manifest, done in waiting:
            if outcome.answer is not None and outcome.answer.index >= manifest.index:
                done(outcome.answer)
            else:  # asked for while the job was on its way
                self._waiting.append((manifest, done))

    def _failed(self, error: BaseException) -> None:
        if not isinstance(error, RaftkvError):
            error = StoreUnavailable(f"{self.url}: {type(error).__name__}: {error}", reason="error")
        self._note(error)
        self._answer(error)

    def _note(self, error: RaftkvError) -> None:
        """At its first and whenever it changes, a failure is said; it is counted always."""
        self.failures += 1
        self.failures_in_row += 1
        first, longest = RETRY_S
        pause_s = min(first * 2 ** min(self.failures_in_row - 1, 10), longest)
        self._not_before = self._clock() + pause_s
        if self.error is None or (type(self.error), _reason(self.error)) != (type(error), _reason(error)):
            log.error("snapshot_publish_failed node=%s retry_s=%g error=%s", self._node, pause_s, error)
        self.error = error

    def _answer(self, error: RaftkvError) -> None:
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done(error)


def _place(manifest: Manifest) -> tuple[int, int, int]:
    return manifest.index, manifest.term, manifest.time_ms


def _reason(error: RaftkvError) -> str:
    return error.reason if isinstance(error, StoreUnavailable) else ""
