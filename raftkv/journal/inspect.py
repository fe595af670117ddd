"""Reads a journal offline, changes nothing, and says what a start would make of it.

The same code decides here as at a start (`recovery.py`); this only watches it. Values never appear, only
their sizes: an inspection may be sent to somebody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from raftkv.errors import JournalDamaged
from raftkv.journal.record import (
    Carry,
    CommitHint,
    Compact,
    Entry,
    HardState,
    Record,
    Reset,
    SegmentHeader,
    Truncate,
    parse_name,
)
from raftkv.journal.recovery import FrameFound, Recovered, recover

Verdict = Literal["whole", "torn", "damaged", "absent"]


@dataclass(frozen=True, slots=True)
class RecordReport:
    """`kind` and the numbers that belong to it; `bytes` is the size of a payload."""

    kind: str
    fields: tuple[tuple[str, int | str | None], ...]


@dataclass(frozen=True, slots=True)
class FrameReport:
    sequence: int
    offset: int
    bytes: int
    records: tuple[RecordReport, ...]


@dataclass(slots=True)
class SegmentReport:
    name: str
    bytes: int
    journal_id: str
    anew: bool
    first_sequence: int
    settled_sequence: int
    frames: list[FrameReport] = field(default_factory=list)


@dataclass(slots=True)
class Inspection:
    """`segments` are those that count, as far as they could be read. `message` says what a start would do."""

    directory: str
    verdict: Verdict = "absent"
    message: str = ""
    segments: list[SegmentReport] = field(default_factory=list)
    to_be_removed: list[str] = field(default_factory=list)  # superseded or unfinished
    not_ours: list[str] = field(default_factory=list)
    term: int = 0
    voted_for: str | None = None
    commit_index: int = 0
    first_index: int = 0  # 0: the log is empty
    last_index: int = 0
    log_bytes: int = 0


def inspect(directory: Path) -> Inspection:
    """Raises OSError where a file can't be read, as when a running node deletes it meanwhile."""
    names = sorted(path.name for path in directory.iterdir())
    inspection = Inspection(str(directory))
    inspection.not_ours = [name for name in names if parse_name(name) is None]

    def read(name: str, size: int) -> bytes:
        with (directory / name).open("rb") as file:
            return file.read(size)

    def segment(name: str, header: SegmentHeader, size: int) -> None:
        inspection.segments.append(
            SegmentReport(
                name,
                size,
                header.journal_id.hex(),
                header.anew,
                header.first_sequence,
                header.settled_sequence,
            )
        )

    def frame(found: FrameFound) -> None:
        records = tuple(describe(record) for record in found.records)
        inspection.segments[-1].frames.append(
            FrameReport(found.head.sequence, found.offset, found.head.frame_bytes, records)
        )

    try:
        recovered = recover(names, read, segment, frame)
    except JournalDamaged as error:
        inspection.verdict, inspection.message = "damaged", str(error)
        return inspection
    _conclude(inspection, recovered)
    return inspection


def describe(record: Record) -> RecordReport:
    match record:
        case Entry(index, term, payload):
            return RecordReport("entry", (("index", index), ("term", term), ("bytes", len(payload))))
        case Compact(index, term, payload):
            return RecordReport("compact", (("index", index), ("term", term), ("bytes", len(payload))))
        case Reset(index, term, payload):
            return RecordReport("reset", (("index", index), ("term", term), ("bytes", len(payload))))
        case HardState(term, voted_for):
            return RecordReport("hard_state", (("term", term), ("voted_for", voted_for)))
        case Truncate(index):
            return RecordReport("truncate", (("index", index),))
        case CommitHint(index):
            return RecordReport("commit", (("index", index),))
        case Carry(term, voted_for, commit_index, next_index, base):
            payload, base_index, base_term = base or (b"", 0, 0)
            return RecordReport(
                "carry",
                (
                    ("term", term),
                    ("voted_for", voted_for),
                    ("commit_index", commit_index),
                    ("next_index", next_index),
                    ("base_index", base_index),
                    ("base_term", base_term),
                    ("bytes", len(payload)),
                ),
            )


def _conclude(inspection: Inspection, recovered: Recovered) -> None:
    inspection.term, inspection.voted_for = recovered.term, recovered.voted_for
    inspection.commit_index = recovered.commit_index
    if recovered.entries:
        inspection.first_index, inspection.last_index = recovered.entries[0][1], recovered.entries[-1][1]
        inspection.log_bytes = sum(len(payload) for payload, _, _ in recovered.entries)
    counted = {segment.name for segment in inspection.segments}
    inspection.to_be_removed = [name for name in recovered.ours if name not in counted]
    if recovered.journal_id is None:
        inspection.message = "There is no journal here: a start would begin an empty one."
    elif (torn := recovered.torn) is not None:
        inspection.verdict = "torn"
        inspection.message = (
            f"A start would leave out the frame that a crash interrupted: {torn.segment} at byte "
            f"{torn.offset}, {torn.bytes} bytes: {torn.reason}. Nobody was told that it was durable. All "
            "before it is whole."
        )
    else:
        inspection.verdict = "whole"
        inspection.message = "Everything is whole: a start would keep all of it."
