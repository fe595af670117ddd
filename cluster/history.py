"""What clients did and were told, and whether a store that keeps its promises could have said so. PURE.

A `Record` is one operation of one client, over all its attempts. Its outcome is one of

- `ok`: it took effect once, between `invoked` and `completed`, and answered `result`;
- `not_applied`: it never took effect and never will;
- `unknown`: it may take effect at any time after `invoked`, or never.

The key's first path segment says which model it follows: `register/…`, `append/…`, `counter/…`; `pair/…` is
a register too, kept in two keys that one transaction writes and one list reads.
Judgements: linearizability of each key, each append exactly once, one order of revisions in real time.
"""

from __future__ import annotations

import itertools
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from cluster import linearizability as lin

Kind = Literal["get", "put", "delete", "cas", "append", "incr"]
Outcome = Literal["ok", "not_applied", "unknown"]
TOKEN_END = ";"  # closes each token in an append key's value


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Times are seconds of one monotonic clock. `completed` is None where the client was still waiting."""

    client: str
    key: str
    kind: Kind
    invoked: float
    completed: float | None
    outcome: Outcome
    value: str | None = None  # put, cas, append: what was written
    expected: str | None = None  # cas: None for absent
    by: int = 0  # incr
    result: str | int | bool | None = None
    revision: int | None = None  # of a write that took effect
    store_revision: int | None = None  # Raftkv-Revision of the answer
    nodes: tuple[str, ...] = ()  # who was asked, in order of attempts
    idempotency_key: str | None = None
    detail: str = ""  # the last thing that went wrong


@dataclass(frozen=True, slots=True)
class Violation:
    """`rule` names the promise that was broken, `evidence` says how; `records` are enough to see it."""

    rule: str
    key: str
    evidence: str
    records: tuple[Record, ...] = ()


class Recorder:
    """Collects records. An operation that never ended is in `records()` as one of unknown outcome."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: dict[int, Record] = {}
        self._done: list[Record] = []
        self._count = 0

    def begin(
        self,
        client: str,
        key: str,
        kind: Kind,
        *,
        value: str | None = None,
        expected: str | None = None,
        by: int = 0,
        idempotency_key: str | None = None,
    ) -> int:
        self._count += 1
        self._open[self._count] = Record(
            client=client,
            key=key,
            kind=kind,
            invoked=self._clock(),
            completed=None,
            outcome="unknown",
            value=value,
            expected=expected,
            by=by,
            idempotency_key=idempotency_key,
        )
        return self._count

    def end(
        self,
        number: int,
        outcome: Outcome,
        *,
        result: str | int | bool | None = None,
        revision: int | None = None,
        store_revision: int | None = None,
        nodes: Sequence[str] = (),
        detail: str = "",
    ) -> Record:
        record = msgspec.structs.replace(
            self._open.pop(number),
            completed=self._clock(),
            outcome=outcome,
            result=result,
            revision=revision,
            store_revision=store_revision,
            nodes=tuple(nodes),
            detail=detail,
        )
        self._done.append(record)
        return record

    def resumed_after_s(self, moment: float) -> float | None:
        """As the function below, over what has ended so far, newest first: cheap enough to poll."""
        recent = itertools.takewhile(lambda record: _completed(record) > moment, reversed(self._done))
        return resumed_after_s(recent, moment)

    def records(self) -> list[Record]:
        return [*self._done, *self._open.values()]


def save(path: Path, records: Iterable[Record]) -> None:
    """One JSON object a line."""
    encoder = msgspec.json.Encoder()
    path.write_bytes(b"".join(encoder.encode(record) + b"\n" for record in records))


def load(path: Path) -> list[Record]:
    decoder = msgspec.json.Decoder(Record)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]


# --- judgements ----------------------------------------------------------------------------------------


def judge(records: Sequence[Record], *, steps_max: int = lin.STEPS_MAX) -> list[Violation]:
    """Every promise that the history breaks. A search that was given up is one: it proved nothing."""
    return [
        *linearizability_violations(records, steps_max=steps_max),
        *append_violations(records),
        *revision_violations(records),
    ]


def by_key(records: Iterable[Record]) -> dict[str, list[Record]]:
    keys: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        keys[record.key].append(record)
    return dict(keys)


def linearizability_violations(
    records: Iterable[Record], *, steps_max: int = lin.STEPS_MAX
) -> list[Violation]:
    found = []
    for key, mine in by_key(records).items():
        verdict = _verdict(key, mine, steps_max)
        if verdict.linearizable is None:
            evidence = f"undecided after {verdict.steps} configurations of {len(mine)} operations"
            found.append(Violation("linearizability", key, evidence, tuple(mine)))
        elif not verdict.linearizable:
            last = f"after {_told(verdict.longest[-1])}" if verdict.longest else "at the start"
            stuck = "; ".join(_told(operation) for operation in verdict.stuck)
            evidence = f"{len(verdict.longest)} operations in order, and {last} none of these fits: {stuck}"
            found.append(Violation("linearizability", key, evidence, tuple(mine)))
    return found


def _verdict(key: str, records: Sequence[Record], steps_max: int) -> lin.Verdict:
    operations = [operation(record) for record in records if _counts(record)]
    match key.split("/", 1)[0]:
        case "register" | "pair":
            return lin.check(lin.Register(), operations, steps_max=steps_max)
        case "append":
            return lin.check(lin.AppendString.of(operations), operations, steps_max=steps_max)
        case "counter":
            return lin.check(lin.Counter(), operations, steps_max=steps_max)
    raise ValueError(
        f"no model for the key {key!r}: it should start with register/, pair/, append/ or counter/"
    )


def _told(operation: lin.Operation) -> str:
    end = "never" if operation.completed is None else f"{operation.completed:.4f}"
    answer = "" if operation.completed is None else f" -> {operation.result!r}"
    return f"[{operation.invoked:.4f} {end}] {operation.client} {operation.call}{answer}"


def _counts(record: Record) -> bool:
    return record.outcome == "ok" or (record.outcome == "unknown" and record.kind != "get")


def operation(record: Record) -> lin.Operation:
    completed = record.completed if record.outcome == "ok" else None
    result: object = record.result.encode() if isinstance(record.result, str) else record.result
    if record.kind == "put" and result is None:  # the answer did not say whether it created the key
        result = lin.ANY
    return lin.Operation(_call(record), result, record.invoked, completed, record.client)


def _call(record: Record) -> Hashable:
    match record.kind:
        case "get":
            return lin.Get()
        case "put":
            return lin.Put(_value(record))
        case "delete":
            return lin.Delete()
        case "cas":
            expected = None if record.expected is None else record.expected.encode()
            return lin.CompareAndSet(expected, _value(record))
        case "append":
            return lin.Append(_value(record))
        case "incr":
            return lin.Increment(record.by)


def _value(record: Record) -> bytes:
    assert record.value is not None, f"a {record.kind} carries a value"
    return record.value.encode()


def append_violations(records: Iterable[Record]) -> list[Violation]:
    """In the value that was read last of each key that only ever grew: every acknowledged token once, every
    unknown one at most once, no other; and a client's acknowledged tokens in the order it sent them.

    Linearizability implies all this where the key was read after its last append; said by itself it is
    quicker to understand. A key without such a read is left alone.
    """
    found = []
    for key, mine in by_key(records).items():
        appends = [record for record in mine if record.kind == "append"]
        reads = [record for record in mine if record.kind == "get" and record.outcome == "ok"]
        grew = len(appends) > 0 and all(record.kind in ("append", "get") for record in mine)
        if not grew or not reads:
            continue
        last = max(reads, key=lambda record: record.invoked)
        if any(_completed(record) >= last.invoked for record in appends if record.outcome == "ok"):
            continue
        value = last.result if isinstance(last.result, str) else ""
        found += [
            Violation("append", key, evidence, (last, *culprits))
            for evidence, culprits in _append_faults(appends, value)
        ]
    return found


def _append_faults(appends: Sequence[Record], value: str) -> list[tuple[str, list[Record]]]:
    faults: list[tuple[str, list[Record]]] = []
    tokens = [token + TOKEN_END for token in value.split(TOKEN_END)[:-1]]
    times = Tally(tokens)
    place = {token: at for at, token in enumerate(tokens)}
    sent = {record.value: record for record in appends}
    for token, record in sent.items():
        count = times[token or ""]
        if record.outcome == "ok" and count == 0:
            faults.append((f"acknowledged {token!r} is lost", [record]))
        if record.outcome == "not_applied" and count > 0:
            faults.append((f"{token!r} is there, though its write was said not to be applied", [record]))
        if count > 1:
            faults.append((f"{token!r} is there {count} times", [record]))
    faults += [(f"{token!r} was never sent", []) for token in times if token not in sent]
    for client in {record.client for record in appends}:
        acknowledged = sorted(
            (record for record in appends if record.client == client and record.outcome == "ok"),
            key=lambda record: record.invoked,
        )
        for before, after in pairwise(acknowledged):
            if place.get(before.value or "", -1) > place.get(after.value or "", len(tokens)):
                faults.append((f"{after.value!r} stands before {before.value!r}", [before, after]))
    return faults


def revision_violations(records: Iterable[Record]) -> list[Violation]:
    """One number for the whole store, so an order over all keys: no two writes share one, a write that began
    after another had been acknowledged has a higher one, and a linearizable read knows of every revision
    that was acknowledged before it began."""
    found = []
    answered = [record for record in records if record.outcome == "ok"]
    writes = [record for record in answered if record.revision is not None]
    writes.sort(key=lambda record: record.revision or 0)
    for before, after in pairwise(writes):
        if before.revision == after.revision:
            evidence = f"revision {after.revision} was given to two writes"
            found.append(Violation("revision", after.key, evidence, (before, after)))
    found += _late(writes, lambda record: record.revision or 0, "a write got")
    reads = [record for record in answered if record.kind == "get" and record.store_revision is not None]
    found += _late(
        [*writes, *reads], lambda record: record.revision or record.store_revision or 0, "a read was of"
    )
    return found


def _late(records: Sequence[Record], revision: Callable[[Record], int], what: str) -> list[Violation]:
    """Answers with a revision below one that a write had been acknowledged with before they were invoked."""
    found = []
    acknowledged = sorted((record for record in records if record.revision is not None), key=_completed)
    highest: Record | None = None
    at = 0
    for record in sorted(records, key=lambda each: each.invoked):
        while at < len(acknowledged) and _completed(acknowledged[at]) < record.invoked:
            if highest is None or (acknowledged[at].revision or 0) > (highest.revision or 0):
                highest = acknowledged[at]
            at += 1
        if highest is not None and revision(record) < (highest.revision or 0):
            evidence = f"{what} revision {revision(record)} after {highest.revision} was acknowledged"
            found.append(Violation("revision", record.key, evidence, (highest, record)))
    return found


def _completed(record: Record) -> float:
    assert record.completed is not None, "an answered operation has a time"
    return record.completed


# --- figures -------------------------------------------------------------------------------------------


def acknowledged_writes(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.kind != "get" and record.outcome == "ok"]


def write_gap(records: Iterable[Record], start: float, end: float) -> tuple[float, float]:
    """(seconds, since when) of the longest stretch of [start, end] in which no write was acknowledged."""
    times = sorted(_completed(record) for record in acknowledged_writes(records))
    moments = [start, *(time for time in times if start < time < end), end]
    return max((after - before, before) for before, after in pairwise(moments))


def resumed_after_s(records: Iterable[Record], moment: float) -> float | None:
    """Until the first acknowledgement of a write that was sent after `moment`; None where none came."""
    times = [_completed(record) for record in acknowledged_writes(records) if record.invoked > moment]
    return min(times) - moment if times else None


def outcomes(records: Iterable[Record]) -> dict[str, int]:
    """How many operations of each kind ended in each way: `{"put ok": 812, …}`, in order of name."""
    tally = Tally(f"{record.kind} {record.outcome}" for record in records)
    return dict(sorted(tally.items()))
