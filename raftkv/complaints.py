"""Warnings about connections that were refused: a stranger must not fill the disk with them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class Complaints:
    """One warning a second about each source; what is left out is counted and told with the next."""

    SOURCES_MAX = 64  # in one second; what comes from more of them is only counted
    PAUSE_SECONDS = 1.0

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._last: dict[str, float] = {}
        self._suppressed = 0

    def note(self, source: str, text: str, *arguments: object) -> None:
        now = self._clock()
        if len(self._last) >= self.SOURCES_MAX:
            self._last = {key: at for key, at in self._last.items() if now - at < self.PAUSE_SECONDS}
        recent = now - self._last.get(source, float("-inf")) < self.PAUSE_SECONDS
        if recent or len(self._last) >= self.SOURCES_MAX:
            self._suppressed += 1
            return
        self._last[source] = now
        self._logger.warning(text + " suppressed=%d", *arguments, self._suppressed)
        self._suppressed = 0
