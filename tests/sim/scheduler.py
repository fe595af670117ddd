"""Virtual time: events in order of (time, number), and who they belong to.

An event belongs to an `Owner`, one life of one process, or to nobody. A dead owner's events vanish; a paused
owner's wait, in their order, and all fire when it resumes, as a stopped process finds its sockets and timers.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Action = Callable[..., None]

EVENTS_MAX = 1_000_000  # a run has some 5,000 to 50,000: more is a storm that would never end


class Owner:
    """One life of one process, from its start to its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.waiting: list[tuple[Action, tuple[Any, ...]]] = []


class Scheduler:
    def __init__(self, after_event: Callable[[Owner], None]) -> None:
        self.now = 0.0
        self.events = 0
        self._after_event = after_event
        self._heap: list[tuple[float, int, Owner | None, Action, tuple[Any, ...]]] = []
        self._number = 0

    def after(self, delay_s: float, owner: Owner | None, action: Action, *arguments: Any) -> None:
        self._number += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._number, owner, action, arguments))

    def resume(self, owner: Owner) -> None:
        owner.paused = False
        waiting, owner.waiting = owner.waiting, []
        for action, arguments in waiting:
            if owner.alive and not owner.paused:
                self._fire(owner, action, arguments)

    def run(self, until: float) -> None:
        """Fires every event up to `until`."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            if self.events > EVENTS_MAX:
                raise RuntimeError(
                    f"{EVENTS_MAX} events by {self.now:.3f} s: something goes round in circles"
                )
            self.now, _, owner, action, arguments = heapq.heappop(heap)
            if owner is None:
                self.events += 1
                action(*arguments)
            elif owner.alive:
                if owner.paused:
                    owner.waiting.append((action, arguments))
                else:
                    self._fire(owner, action, arguments)
        self.now = until

    def _fire(self, owner: Owner, action: Action, arguments: tuple[Any, ...]) -> None:
        self.events += 1
        action(*arguments)
        if owner.alive:
            self._after_event(owner)
