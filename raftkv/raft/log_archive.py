"""Sends the committed log to the store between snapshots, while this node leads. Sans-IO.

Every `interval_s` what was committed since goes out as one range (`snapshot.ranges`), so that with all disks
gone about the last second is gone. One job at a time on a lane of its own, which no snapshot's upload holds
up; what it carries is a slice of the journal in memory, `RANGE_BYTES_MAX` at most. A store that is away or
slow fails or delays jobs here, and nothing else: the archive lags, says so, and catches up from the journal
in range after range. Where compaction has dropped the next entry meanwhile, the chain is broken: a new one
begins at the journal's start, and what lies between is in a later snapshot or nowhere. That is an alarm.

A new leader reads the end of the chain and goes on from there. Two leaders at once do no harm: both send what
is committed, and a range's name is taken once.

Wall time stands in a range's head, by when its entries had been applied here; it never comes near the state
machine. It is in steps of `TIME_STEP_MS`; where too many had to be remembered, too late rather than early.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from raftkv.errors import RaftkvError, SnapshotDamaged, StoreUnavailable
from raftkv.raft.status import LogArchiveStatus
from raftkv.snapshot.ranges import Entry, Ranges, Tail, encode_range

log = logging.getLogger("raftkv.snapshot")

RANGE_BYTES_MAX: Final = 4 << 20  # of payloads; one larger entry still goes, alone
RANGE_ENTRIES_MAX: Final = 4_000  # so that to put them together holds no thread for more than 2 ms
RETRY_S: Final = (0.5, 10.0)  # the first, and the longest
TIME_STEP_MS: Final = 50
TIMES_MAX: Final = 10_000  # more than eight minutes of constant writing
LAGGING_INTERVALS: Final = 5  # an archive that is so many intervals behind is called lagging

Run = Callable[[Callable[[], Any], Callable[[Any], None]], None]


class Journal(Protocol):
    """(payload, index, term) of each entry in memory, without a gap."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class _Sent:
    tail: Tail
    bytes: int
    cut_at: float


class LogArchive:
    """`clock` is monotonic, `wall_clock` Unix time; both in seconds."""

    def __init__(
        self,
        ranges: Ranges,
        *,
        node: str,
        cluster: str,
        interval_s: float,
        run: Run,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._ranges = ranges
        self._node = node
        self._cluster = cluster
        self._interval_s = interval_s
        self._run = run
        self._clock = clock
        self._wall_clock = wall_clock
        self._times: deque[tuple[int, int]] = deque(maxlen=TIMES_MAX)
        self._term: int | None = None  # that we lead in
        self._looked_term: int | None = None  # in which `_tail` is the chain's end
        self._tail: Tail | None = None
        self._applied = 0
        self._behind_since: float | None = None
        self._due_at = float("-inf")
        self._stopped = False
        self.running = False
        self.ranges = 0
        self.bytes = 0
        self.gaps = 0
        self.failures = 0
        self.failures_in_row = 0
        self.error: RaftkvError | None = None

    def applied(self, index: int) -> None:
        """Up to `index` everything is applied now."""
        step_ms = (int(self._wall_clock() * 1000) // TIME_STEP_MS + 1) * TIME_STEP_MS
        times = self._times
        if times and step_ms <= times[-1][1]:  # also where the clock went back
            times[-1] = (index, times[-1][1])
        else:
            times.append((index, step_ms))

    def stop(self) -> None:
        self._stopped = True

    def pump(self, term: int | None, journal: Journal, applied: int) -> None:
        """Starts what is due. `term`: the one that this node leads in, None where it does not; its no-op is
        applied. `applied`: index of the last entry that is."""
        self._term, self._applied = term, applied
        if term is None:
            self._looked_term = self._tail = self._behind_since = None
            return
        if self._tail is None or applied > self._tail.index:
            if self._behind_since is None:
                self._behind_since = self._clock()
        else:
            self._behind_since = None
        if self.running or self._stopped or self._clock() < self._due_at:
            return
        if self._looked_term != term:
            self._start(lambda: self._ranges.tail(self._cluster), lambda tail: self._looked(term, tail))
        elif self._tail is None:
            self._begin(journal[0][1], journal[0][2])
        elif self._tail.index < journal[0][1]:
            self._broken(self._tail.index, journal[0][1])
        elif applied > self._tail.index:
            self._send(self._tail, journal, applied)

    # --- steps -------------------------------------------------------------------------------------

    def _looked(self, term: int, tail: Tail | None) -> None:
        if self._term == term:
            self._looked_term, self._tail = term, tail

    def _begin(self, index: int, term: int) -> None:
        """A chain of what comes after (index, term)."""
        leads = self._term

        def begun(tail: Tail) -> None:
            log.info("log_archive_begins node=%s after_index=%d", self._node, index)
            self._looked(leads or 0, tail)

        self._start(lambda: self._ranges.begin(self._cluster, index + 1, term), begun)

    def _broken(self, archived: int, first: int) -> None:
        self.gaps += 1
        self._tail = None
        log.error(
            "log_archive_gap node=%s archived_index=%d journal_begins=%d: what lies between is "
            "restored only by a snapshot behind it. The store was away for longer than the journal reaches",
            self._node,
            archived,
            first,
        )

    def _send(self, tail: Tail, journal: Journal, applied: int) -> None:
        at = tail.index - journal[0][1]
        if journal[at][2] != tail.term:
            self._failed(
                SnapshotDamaged(
                    f"the log archive in {self._ranges.url} ends at ({tail.index}, term {tail.term}), this "
                    f"cluster's log has term {journal[at][2]} there: they are of two clusters with one id"
                )
            )
            return
        entries: list[Entry] = []
        size = 0
        for payload, _, term in journal[at + 1 : at + 1 + min(applied - tail.index, RANGE_ENTRIES_MAX)]:
            if entries and size + len(payload) > RANGE_BYTES_MAX:
                break
            size += len(payload)
            entries.append((term, payload))
        last = tail.index + len(entries)
        times = self._times_of(tail.index + 1, last)
        cut_at = self._clock()
        self._due_at = cut_at + self._interval_s if last == applied else cut_at
        self._start(lambda: self._work(tail, entries, times, cut_at), self._sent)

    def _work(self, tail: Tail, entries: list[Entry], times: list[tuple[int, int]], cut_at: float) -> _Sent:
        """On a worker thread."""
        data = encode_range(
            cluster=self._cluster,
            first=tail.index + 1,
            base_term=tail.term,
            previous=tail.sha256,
            times=times,
            entries=entries,
        )
        last = tail.index + len(entries)
        return _Sent(self._ranges.append(tail, data, last, entries[-1][0]), len(data), cut_at)

    def _sent(self, sent: _Sent) -> None:
        self.ranges += 1
        self.bytes += sent.bytes
        while self._times and self._times[0][0] <= sent.tail.index:
            self._times.popleft()
        if self._looked_term is not None and self._looked_term == self._term:
            self._tail = sent.tail
            self._behind_since = sent.cut_at if self._applied > sent.tail.index else None

    def _times_of(self, first: int, last: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for index, time_ms in self._times:
            if index >= last:
                return [*found, (last, time_ms)]
            if index >= first:
                found.append((index, time_ms))
        return [*found, (last, int(self._wall_clock() * 1000))]  # applied before anybody noted it

    # --- jobs --------------------------------------------------------------------------------------

    def _start(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.running = True

        def done(result: Any) -> None:
            self.running = False
            if isinstance(result, BaseException):
                self._failed(result)
            else:
                self.failures_in_row, self.error = 0, None
                then(result)

        self._run(job, done)

    def _failed(self, error: BaseException) -> None:
        """At its first and whenever it changes, a failure is said; it is counted always. The chain's end is
        looked up anew: a range that timed out may be there."""
        if not isinstance(error, RaftkvError):
            error = StoreUnavailable(f"{self._ranges.url}: {type(error).__name__}: {error}", reason="error")
        self.failures += 1
        self.failures_in_row += 1
        first, longest = RETRY_S
        pause_s = min(first * 2 ** min(self.failures_in_row - 1, 10), longest)
        self._due_at = self._clock() + pause_s
        if self._behind_since is None:
            self._behind_since = self._clock()
        if self.error is None or (type(self.error), _reason(self.error)) != (type(error), _reason(error)):
            log.error("log_archive_failed node=%s retry_s=%g error=%s", self._node, pause_s, error)
        self.error = error
        if isinstance(error, SnapshotDamaged):
            self._looked_term = None

    # --- what a person asks ------------------------------------------------------------------------

    def status(self) -> LogArchiveStatus:
        tail = self._tail
        behind_s = 0.0 if self._behind_since is None else self._clock() - self._behind_since
        lagging = behind_s > max(LAGGING_INTERVALS * self._interval_s, LAGGING_INTERVALS)
        leads = self._term is not None
        return LogArchiveStatus(
            state="standby"
            if not leads
            else "failing"
            if self.failures_in_row
            else "lagging"
            if lagging
            else "current",
            index=0 if tail is None else tail.index,
            lag_entries=max(0, self._applied - tail.index) if leads and tail is not None else 0,
            lag_s=round(behind_s, 3) if leads else 0.0,
            ranges=self.ranges,
            bytes=self.bytes,
            gaps=self.gaps,
            failures=self.failures,
            failures_in_row=self.failures_in_row,
            error="" if self.error is None else str(self.error),
        )


def _reason(error: RaftkvError) -> str:
    return error.reason if isinstance(error, StoreUnavailable) else ""
