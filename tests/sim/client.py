"""Clients of the simulated cluster, and the history of what they were told.

A client does one thing at a time. A refusal that says "not applied" is tried again, elsewhere; silence is
an unknown outcome: under an idempotency key the same request is sent again until somebody answers,
without one the operation stays unknown in the history and the client goes on under another name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from cluster.linearizability import (
    Append,
    AppendString,
    CompareAndSet,
    Counter,
    Delete,
    Get,
    Increment,
    Operation,
    Put,
    Register,
    check,
)
from tests.sim.invariants import Violation
from tests.sim.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Request:
    """One call on one key; `idempotency_key` is None where the client has none."""

    key: bytes
    call: Hashable
    idempotency_key: bytes | None = None


class Refused(Exception):
    """The request was not applied and never will be. `leader` is who to ask instead, where known."""

    def __init__(self, leader: str | None = None) -> None:
        super().__init__(leader)
        self.leader = leader


class Unknown(Exception):
    """The request may have been applied, or may yet be."""


Answer = Callable[[object], None]  # with the result, a Refused or an Unknown


class Client:
    """Draws operations on a few keys until `stop`, each recorded in `history` by key."""

    def __init__(
        self,
        name: str,
        rng: random.Random,
        scheduler: Scheduler,
        names: tuple[str, ...],
        server_of: Callable[[str], Any],
        history: dict[bytes, list[Operation]],
        log: Callable[..., None],
        *,
        idempotency: bool,
    ) -> None:
        self.name = name
        self.idle = False
        self._rng = rng
        self._scheduler = scheduler
        self._names = names
        self._server_of = server_of
        self._history = history
        self._log = log
        self._think_s = rng.choice((0.01, 0.05, 0.15))
        self._timeout_s = rng.choice((0.15, 0.5, 2.0))
        self._keyed = rng.choice((0.0, 0.5, 1.0)) if idempotency else 0.0
        self._reads = rng.choice((0.1, 0.3, 0.6))
        self._number = 0
        self._stopping = False
        self._target = rng.choice(names)
        self._last_read: dict[bytes, bytes | None] = {}
        self._current: tuple[Request, float] | None = None
        self._attempt = 0
        self._silences = 0
        self._uncertain = False
        scheduler.after(rng.uniform(0.0, 1.0), None, self._begin)

    def stop(self) -> None:
        """No new operations; the one on its way is followed to its end."""
        self._stopping = True
        if self._current is None:
            self.idle = True

    def give_up(self) -> None:
        """The run is over: what has no answer stays unknown."""
        if self._current is not None:
            self._record(None, None)

    # --- one operation --------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._stopping:
            self.idle = True
            return
        request = self._draw()
        self._current = (request, self._scheduler.now)
        self._uncertain = False
        self._silences = 0
        self._log("invoke", self.name, request)
        self._send()

    def _draw(self) -> Request:
        rng = self._rng
        self._number += 1
        key = rng.choice((b"register", b"string", b"counter", b"register-2"))
        unique = f"{self.name}.{self._number} ".encode()
        if rng.random() < self._reads:
            return Request(key, Get())
        call: Hashable
        if key == b"counter":
            call = Increment(rng.randint(1, 9))
        elif key == b"string":
            call = Append(unique)
        else:
            call = rng.choice(
                (Put(unique), Put(unique), CompareAndSet(self._last_read.get(key), unique), Delete())
            )
        keyed = rng.random() < self._keyed
        return Request(key, call, f"{self.name}/{self._number}".encode() if keyed else None)

    def _send(self) -> None:
        assert self._current is not None
        request = self._current[0]
        if isinstance(request.call, Get):
            self._current = (
                request,
                self._scheduler.now,
            )  # an earlier attempt had no effect, whatever it saw
        self._attempt += 1
        attempt = self._attempt
        server = self._server_of(self._target)
        if server is None:
            self._target = self._rng.choice(self._names)
            self._scheduler.after(self._rng.uniform(0.01, 0.1), None, self._retry, attempt)
            return

        def answer(result: object) -> None:
            self._scheduler.after(self._rng.uniform(0.0, 0.002), None, self._on_answer, attempt, result)

        delay_s = self._rng.uniform(0.0, 0.002)
        self._scheduler.after(delay_s, server.owner, server.submit, request, answer)
        # Twice as patient after each silence: many who ask again at once are a load that never ends.
        timeout_s = self._timeout_s * 2 ** min(self._silences, 5)
        self._scheduler.after(timeout_s, None, self._on_answer, attempt, Unknown())

    def _retry(self, attempt: int) -> None:
        if attempt == self._attempt and self._current is not None:
            self._send()

    def _on_answer(self, attempt: int, result: object) -> None:
        if self._current is None or attempt != self._attempt:
            return
        request = self._current[0]
        reading = isinstance(request.call, Get)
        if isinstance(result, Refused) or (reading and isinstance(result, Unknown)):
            named = result.leader if isinstance(result, Refused) else None
            self._target = named or self._rng.choice(self._names)
            if self._stopping and not self._uncertain:
                self._finish()  # certain not to have happened: no part of the history
                return
            self._attempt += 1
            self._scheduler.after(self._rng.uniform(0.005, 0.1), None, self._retry, self._attempt)
        elif isinstance(result, Unknown):
            self._uncertain = True
            self._silences += 1
            self._target = self._rng.choice(self._names)
            if request.idempotency_key is None:
                self._record(None, None)
                self._finish()
            else:
                self._send()
        else:
            if reading:
                self._last_read[request.key] = result if isinstance(result, bytes) else None
            self._record(result, self._scheduler.now)
            self._finish()

    def _record(self, result: object, completed: float | None) -> None:
        assert self._current is not None
        request, invoked = self._current
        self._log("return", self.name, request, result if completed is not None else "unknown")
        self._history.setdefault(request.key, []).append(
            Operation(request.call, result, invoked, completed, self.name)
        )

    def _finish(self) -> None:
        self._current = None
        self._attempt += 1
        if self._stopping:
            self.idle = True
        else:
            self._scheduler.after(self._rng.expovariate(1 / self._think_s), None, self._begin)


def check_history(history: dict[bytes, list[Operation]], steps_max: int = 200_000) -> int:
    """Raises Violation where a key's history is not linearizable; answers how many keys were too hard."""
    undecided = 0
    for key, operations in sorted(history.items()):
        if key == b"counter":
            verdict = check(Counter(), operations, steps_max=steps_max)
        elif key == b"string":
            verdict = check(AppendString.of(operations), operations, steps_max=steps_max)
        else:
            verdict = check(Register(), operations, steps_max=steps_max)
        if verdict.linearizable is None:
            undecided += 1
        elif not verdict.linearizable:
            stuck = "; ".join(
                f"{o.client} {o.call} -> {o.result} [{o.invoked:.3f}, {o.completed:.3f}]"
                for o in verdict.stuck[:3]
            )
            raise Violation(
                "linearizability",
                f"key {key.decode()}: after {len(verdict.longest)} operations none fits: {stuck}",
            )
    return undecided
