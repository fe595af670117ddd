"""The audit log: what administrators did, and who was turned away. Logger `raftkv.audit`.

    admin_action   who=ID:NAME what="METHOD TEMPLATE" status=201 revision=57 request_id=… [target=…]
    denied         who=ID:NAME or "-"  what="METHOD TEMPLATE" code=forbidden request_id=… suppressed=0

`what` is the route's template, so that neither an event nor a count of them ever holds a key, a value or a
token; `target` is a token's id, a member's name or a snapshot's id. Whoever needs to know which key was asked
for finds it in the answer to the request, which the client has.

Actions are never left out. Denials are: anyone can cause them, and a stranger must not fill the disk with
them. A second's worth beyond `DENIALS_A_SECOND` is counted, and told with the next that is written.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from raftkv.errors import RaftkvError

log = logging.getLogger("raftkv.audit")

DENIALS_A_SECOND = 10
NOBODY = "-"


class Audit:
    """`denials` counts all of them, by code."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._written = 0
        self._suppressed = 0
        self.denials: Counter[str] = Counter()
        self.actions = 0

    def done(
        self, who: str, what: str, *, status: int, revision: int, request_id: str | None, target: str = ""
    ) -> None:
        """An administrator's request was answered, whatever came of it."""
        self.actions += 1
        log.info(
            'admin_action who=%s what="%s" status=%d revision=%d request_id=%s%s',
            who,
            what,
            status,
            revision,
            request_id,
            f" target={target}" if target else "",
        )

    def denied(self, who: str, what: str, error: RaftkvError, request_id: str | None) -> None:
        self.denials[error.code] += 1
        second = int(self._clock())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= DENIALS_A_SECOND:
            self._suppressed += 1
            return
        self._written += 1
        suppressed, self._suppressed = self._suppressed, 0
        log.warning(
            'denied who=%s what="%s" code=%s request_id=%s suppressed=%d',
            who,
            what,
            error.code,
            request_id,
            suppressed,
        )
