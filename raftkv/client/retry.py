"""When a request is tried again, and under which idempotency key. PURE: no clock, no sockets.

The rule: what was certainly not applied may be tried again; what may have been applied is tried again only
where that is harmless, for reads and for writes under an idempotency key. Doubt is sticky: once one
attempt of a write may have been applied, a later refusal proves nothing about that one, and only an answer
that the replicated state gave settles it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from urllib.parse import urlsplit

from raftkv.client.answers import (
    Answer,
    ClientError,
    OutcomeUnknown,
    Problem,
    Unavailable,
    error_of,
    problem_of,
)
from raftkv.errors import Outcome

IN_FLIGHT_MAX = 256  # the contract's bound on keyed writes of one client
SPAN_MAX = 1000  # the cluster keeps a client's last 1,024 outcomes: no write may lag further behind than this
REDIRECTS_MAX = 5  # in a row, before waiting: two nodes that each take the other for the leader
BACKOFF_SECONDS_FIRST = 0.02
BACKOFF_SECONDS_MAX = 0.5  # about an election timeout
RETRY_AFTER_SECONDS_MAX = 5.0

# Codes that the state machine itself answers: they settle what became of every attempt under the key.
_SETTLED = frozenset({"precondition_failed", "not_a_number", "key_not_found", "value_too_large"})


@dataclass(frozen=True, slots=True)
class Accept:
    """The answer is the result."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Ask the same of the node with this origin, at once."""

    origin: str


@dataclass(frozen=True, slots=True)
class Again:
    """Ask again after `delay_s`, of another node than the one just asked."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Fail:
    error: ClientError


Step = Accept | Follow | Again | Fail


class Course:
    """One request over its attempts. `keyed`: a write that carries an idempotency key. `patient` False: what
    failed is not tried again."""

    def __init__(self, *, write: bool, keyed: bool, random: Random, patient: bool = True) -> None:
        self._write = write
        self.repeatable = keyed or not write
        self._random = random
        self._patient = patient
        self._doubt: Problem | None = None
        self._last: Problem | None = None
        self._redirects = 0
        self._waits = 0

    def answered(self, answer: Answer) -> Step:
        """What an answer means for the request."""
        if answer.status == 307:
            return self._redirected(answer)
        if answer.status < 400:
            return Accept()
        problem = problem_of(answer, write=self._write)
        if problem.code in _SETTLED:
            return Fail(error_of(problem, answer.headers))
        if problem.retryable:
            return self._retry(problem, _retry_after(answer))
        if self._doubt is not None or (self._write and problem.outcome == "unknown"):
            return Fail(OutcomeUnknown(replace(problem, outcome="unknown")))
        return Fail(error_of(problem, answer.headers))

    def not_sent(self, detail: str) -> Step:
        """The connection could not be made: nothing of the request left."""
        return self._retry(Problem(0, "unreachable", detail, "not_applied", retryable=True), 0)

    def lost(self, detail: str) -> Step:
        """The request left, wholly or in part, and no whole answer came."""
        outcome = Problem(0, "connection_lost", detail, "unknown" if self._write else "not_applied", True)
        return self._retry(outcome, 0)

    @property
    def last_outcome(self) -> Outcome | None:
        """Of the last attempt that is to be repeated."""
        return self._last.outcome if self._last is not None else None

    def out_of_time(self) -> ClientError:
        """The error where the deadline ends the request between attempts."""
        if self._doubt is not None:
            return OutcomeUnknown(self._doubt)
        return Unavailable(
            self._last
            or Problem(0, "deadline", "no answer before the deadline", "not_applied", retryable=True)
        )

    def _redirected(self, answer: Answer) -> Step:
        origin = origin_of(answer.headers.get("location", ""))
        self._redirects += 1
        if origin is None or self._redirects > REDIRECTS_MAX:
            self._redirects = 0
            detail = f"sent from node to node {REDIRECTS_MAX} times" if origin else "a 307 without a Location"
            return self._retry(Problem(307, "not_leader", detail, "not_applied", retryable=True), 0)
        return Follow(origin)

    def _retry(self, problem: Problem, least_s: float) -> Step:
        self._last = problem
        if self._write and problem.outcome == "unknown":
            self._doubt = problem
            if not self.repeatable:
                return Fail(OutcomeUnknown(problem))
        if not self._patient:
            return Fail(OutcomeUnknown(problem) if problem.outcome == "unknown" else Unavailable(problem))
        ceiling = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_FIRST * 2**self._waits)
        self._waits = min(self._waits + 1, 16)
        return Again(max(least_s, ceiling * self._random.uniform(0.5, 1.0)))


def _retry_after(answer: Answer) -> float:
    """Obeyed where a queue is full. Where a leader is missing it is whole seconds too coarse: an election
    takes about one, and asking again costs a node nothing."""
    text = answer.headers.get("retry-after", "")
    if answer.status != 429 or not (text.isascii() and text.isdigit()):
        return 0
    return min(float(text), RETRY_AFTER_SECONDS_MAX)


def origin_of(url: str) -> str | None:
    """`http://host:port` of an absolute URL, None of anything else."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return None
    return f"{parts.scheme}://{parts.netloc}"


class Numbers:
    """The n of the idempotency keys `<client>/<n>`, from 1, and which of them are on their way.

    A number may be taken while fewer than IN_FLIGHT_MAX are, and while the oldest of them is less than
    SPAN_MAX behind: so none can fall out of the window that the cluster keeps.
    """

    def __init__(self) -> None:
        self.settled = 0  # how many are done
        self._next = 1
        self._under_way: dict[int, None] = {}  # in order of number

    def free(self) -> bool:
        if len(self._under_way) >= IN_FLIGHT_MAX:
            return False
        oldest = next(iter(self._under_way), self._next)
        return self._next - oldest < SPAN_MAX

    def take(self) -> int:
        assert self.free()
        number = self._next
        self._next += 1
        self._under_way[number] = None
        return number

    def done(self, number: int) -> None:
        del self._under_way[number]
        self.settled += 1
