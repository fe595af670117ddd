"""Threads for what may hang: a snapshot store that is away. Daemons, unlike an executor's, so that a process
which is told to stop need not wait for an answer that takes 15 s or never comes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Lane:
    """Jobs one after the other, on a thread of their own that starts with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """`job` must not raise."""
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()

    def close(self, wait_s: float) -> bool:
        """Takes no more; False where a job still runs after `wait_s`: then only the end of the process
        ends it. Blocks."""
        if self._thread is None:
            return True
        self._jobs.put(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
