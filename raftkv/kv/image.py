"""The state machine as it was at one moment, read page by page while it goes on changing. PURE.

Snapshots and `/v1/export` are the same thing: views of the machine's tables (`table.TableView`), and the
numbers that go with them. Where a page ends depends on the state alone, not on how it came about, so two
replicas at the same index make the same pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from raftkv.kv import record
from raftkv.kv.table import TableView
from raftkv.model import Item

PAGE_RECORDS = 1_000  # about 0.3 ms of the loop's time
PAGE_BYTES_MAX = 1 << 20


class Section(IntEnum):
    """Which table a page's records belong to; the numbers are part of the snapshot format."""

    ITEMS = 1
    PLAIN = 2
    CLIENTS = 3
    OUTCOMES = 4
    QUEUE = 5
    TOKENS = 6


@dataclass(frozen=True, slots=True)
class Page:
    """Records of one section in order of key; false at the image's end."""

    section: Section
    keys: Sequence[bytes]
    records: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.keys)

    def items(self) -> Iterator[Item]:
        """Of a page of `ITEMS`."""
        return map(record.item, self.keys, self.records)


@dataclass(frozen=True, slots=True)
class MachineState:
    """The machine's numbers: with every section's pages, all that it is. `hash` is `kv.history`'s, empty
    where it is not known."""

    index: int
    revision: int
    log_time_ms: int
    sequence: int
    hash: bytes = b""


class Image:
    """Close it, or read it to its end: until then it keeps alive what is overwritten behind its back.

    For the thread that applies. A page's lists may go to another thread.
    """

    __slots__ = ("_views", "records_total", "state")

    def __init__(
        self, state: MachineState, views: Sequence[tuple[Section, TableView]], records_total: int
    ) -> None:
        self.state = state
        self.records_total = records_total  # for progress; an upper bound where the image is of a range
        self._views = list(views)

    def next_page(self, count: int = PAGE_RECORDS, bytes_max: int = PAGE_BYTES_MAX) -> Page:
        """The next records of one section, at most `count`; ends with the record that reaches `bytes_max`."""
        while self._views:
            section, view = self._views[0]
            keys, records = view.read(count, bytes_max)
            if keys:
                return Page(section, keys, records)
            self._views.pop(0)
        return Page(Section.ITEMS, (), ())

    @property
    def kept(self) -> int:
        """How many overwritten records the image keeps alive: what holding it open costs."""
        return sum(view.kept for _, view in self._views)

    def close(self) -> None:
        """Idempotent."""
        for _, view in self._views:
            view.close()
        self._views.clear()
