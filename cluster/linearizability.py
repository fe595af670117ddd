"""Is a recorded history linearizable? The Wing–Gong–Lowe search, one key at a time. PURE.

A history is linearizable when its operations can be put in one order that a single-threaded store could
have produced, and that respects real time: what completed before another was invoked stands before it.
Linearizability is local (Herlihy and Wing 1990, theorem 1), so a history of many keys is checked key by key.

An operation whose outcome is unknown may take effect at any moment after its invocation, or never; what it
would have answered is unknown as well. An operation that definitely was not applied is no part of a history.

The search (Wing and Gong 1993, Lowe 2017) tries to linearize, next, each operation that no other one must
precede, and remembers the configurations that it has seen: (operations linearized, state). Three reductions
keep it fast where outcomes are unknown. Each keeps every answer, because it maps a completion of the search
that it cuts to one, no longer, that it leaves:

1. A completed operation that only *observed* (by its model's word, whatever the state: a get, a failed
   compare-and-set) is linearized as soon as it fits, with no other branch. In any completion it can be moved
   to the front: it fits there, and changes nothing for the others. A put that happens to write the value
   which is there already is *not* such an operation: it may be needed later.
2. Of two configurations with equal state and equal completed operations, the one that used up a superset of
   the unknown operations is cut: unknown operations are optional, so the other can follow any of its steps.
3. Unknown operations with equal calls are used in order of invocation: whenever a later one may take effect,
   so may the earlier.
4. An unknown operation is used only where an operation that can come right after it (a completed one, or
   another unknown one) would not fit or would leave another state without it. A completion in which it
   makes no such difference is also one, and shorter, without it.

Together: take the shortest completion from any configuration that was visited. Its first step was visited,
or one that is no farther from the end, by each of these arguments; so the search can't end before it.

Sources: Wing and Gong, "Testing and verifying concurrent objects" (1993); Lowe, "Testing for
linearizability" (2017).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Generic, Protocol, TypeVar

STEPS_MAX = (
    20_000_000  # configurations a key; about a minute and a few GB: beyond it the answer is "undecided"
)


class _Any:
    def __repr__(self) -> str:
        return "ANY"


ANY: Final = _Any()  # the result of an operation that took effect, but whose answer says nothing more


@dataclass(frozen=True, slots=True)
class Operation:
    """One call by one client. Times are of one clock; two operations with touching ends are concurrent.

    `completed` is None where the outcome is unknown; `result` then means nothing.
    """

    call: Hashable
    result: object
    invoked: float
    completed: float | None
    client: str = ""


State = TypeVar("State", bound=Hashable)


class Model(Protocol[State]):
    """A deterministic, total, single-threaded object."""

    initial: State

    def apply(self, state: State, call: Hashable) -> tuple[State, object]:
        """The state after the call, and its answer."""

    def observes(self, call: Hashable, result: object) -> bool:
        """True only if the call, wherever it answers `result`, leaves every state as it was."""

    def overwrites(self, call: Hashable) -> bool:
        """True only if the state after the call is the same whatever it was before."""

    def possible(self, state: State) -> bool:
        """False only if the history rules out that the object was ever in this state. True is sound."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`linearizable` is None where the search was given up after its bound.

    `longest` is the longest order found, of the completed operations and the unknown ones it used; `stuck`
    are the operations of which one had to come next in it, and none fitted. Empty where it is linearizable.
    """

    linearizable: bool | None
    steps: int
    longest: tuple[Operation, ...] = ()
    stuck: tuple[Operation, ...] = ()


def check(model: Model[State], operations: Iterable[Operation], *, steps_max: int = STEPS_MAX) -> Verdict:
    """Whether the operations, all on one key, are linearizable under the model."""
    return _Search(model, operations).run(steps_max)


# --- models --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Get:
    """Answers the value, None where it is absent."""


@dataclass(frozen=True, slots=True)
class Put:
    """Answers True where it created the key, False where it replaced a value."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Answers whether there was anything to delete."""


@dataclass(frozen=True, slots=True)
class CompareAndSet:
    """Answers whether the value was the expected one (None: absent), and so was replaced."""

    expected: bytes | None
    value: bytes


@dataclass(frozen=True, slots=True)
class Append:
    """Answers the length after it."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Increment:
    """Answers the sum; an absent value counts as 0."""

    by: int


class Register:
    """get, put, delete and compare-and-set."""

    initial: bytes | None = None

    def apply(self, state: bytes | None, call: Hashable) -> tuple[bytes | None, object]:
        match call:
            case Get():
                return state, state
            case Put(value):
                return value, state is None
            case CompareAndSet(expected, value):
                return (value, True) if state == expected else (state, False)
            case Delete():
                return None, state is not None
        raise TypeError(f"a register has no {call!r}")

    def observes(self, call: Hashable, result: object) -> bool:
        match call:
            case Get():
                return True
            case CompareAndSet() | Delete():
                return result is False
        return False

    def overwrites(self, call: Hashable) -> bool:
        return isinstance(call, Put | Delete)

    def possible(self, state: bytes | None) -> bool:
        return True


class AppendString:
    """get, put, delete and append."""

    initial: bytes | None = None

    def __init__(self, longest: bytes | None = None) -> None:
        """`longest`: in a history of nothing but appends and gets, the longest value that was read. A string
        that only grows was, at every moment, a beginning of it or a continuation."""
        self._longest = longest

    @classmethod
    def of(cls, operations: Iterable[Operation]) -> AppendString:
        """The model with what these operations say about the states that can have been."""
        longest = b""
        for operation in operations:
            match operation.call:
                case Get():
                    value = operation.result
                    if operation.completed is not None and isinstance(value, bytes):
                        longest = max(longest, value, key=len)
                case Append():
                    pass
                case _:
                    return cls()
        return cls(longest)

    def apply(self, state: bytes | None, call: Hashable) -> tuple[bytes | None, object]:
        match call:
            case Get():
                return state, state
            case Append(value):
                after = (state or b"") + value
                return after, len(after)
            case Put(value):
                return value, state is None
            case Delete():
                return None, state is not None
        raise TypeError(f"an append string has no {call!r}")

    def observes(self, call: Hashable, result: object) -> bool:
        match call:
            case Get():
                return True
            case Delete():
                return result is False
        return False

    def overwrites(self, call: Hashable) -> bool:
        return isinstance(call, Put | Delete)

    def possible(self, state: bytes | None) -> bool:
        if self._longest is None or state is None:
            return True
        return self._longest.startswith(state) or state.startswith(self._longest)


class Counter:
    """get and increment. The state is the number; get answers its decimal digits, None while it is absent."""

    initial: int | None = None

    def apply(self, state: int | None, call: Hashable) -> tuple[int | None, object]:
        match call:
            case Get():
                return state, None if state is None else b"%d" % state
            case Increment(by):
                after = (state or 0) + by
                return after, after
        raise TypeError(f"a counter has no {call!r}")

    def observes(self, call: Hashable, result: object) -> bool:
        return isinstance(call, Get)

    def overwrites(self, call: Hashable) -> bool:
        return False

    def possible(self, state: int | None) -> bool:
        return True


# --- the search ----------------------------------------------------------------------------------------


_NOTHING: Final = object()  # equal to no state


class _Class:
    """Unknown operations with equal calls, in order of invocation. Which of them are used is a run of ones
    from bit `shift` of a configuration's `used`."""

    __slots__ = ("_invoked", "_mask", "call", "overwrites", "shift")

    def __init__(self, call: Hashable, invoked: Sequence[float], shift: int, overwrites: bool) -> None:
        self.call = call
        self.shift = shift
        self.overwrites = overwrites
        self._invoked = invoked
        self._mask = (1 << len(invoked)) - 1

    def next_bit(self, used: int, deadline: float) -> int:
        """The bit of the first operation that is not used yet; 0 if there is none that may come next."""
        count = (used >> self.shift & self._mask).bit_length()
        if count == len(self._invoked) or self._invoked[count] > deadline:
            return 0
        return 1 << (self.shift + count)


# A configuration: completed operations below `base` are all linearized, and base + i where bit i of `mask`
# is set; `used` are the unknown operations linearized. A plain tuple, for this is the inner loop.
_Configuration = tuple[int, int, State, int]


class _Search(Generic[State]):
    def __init__(self, model: Model[State], operations: Iterable[Operation]) -> None:
        self._model: Model[State] = model
        everything = sorted(operations, key=lambda operation: operation.invoked)
        self._known = [operation for operation in everything if operation.completed is not None]
        self._invoked = [operation.invoked for operation in self._known]
        self._completed = [_completed(operation) for operation in self._known]
        self._observes = [model.observes(operation.call, operation.result) for operation in self._known]
        unknown: dict[Hashable, list[Operation]] = {}
        for operation in everything:
            if operation.completed is None and not model.observes(operation.call, ANY):
                unknown.setdefault(operation.call, []).append(operation)
        self._unknown = unknown
        self._classes: list[_Class] = []
        shift = 0
        for call, members in unknown.items():  # in order of each class's first invocation
            self._classes.append(
                _Class(call, [member.invoked for member in members], shift, model.overwrites(call))
            )
            shift += len(members)

    def run(self, steps_max: int) -> Verdict:
        start: _Configuration[State] = (0, 0, self._model.initial, 0)
        seen: dict[tuple[int, int, State], list[int]] = {(0, 0, self._model.initial): [0]}
        path: list[_Configuration[State]] = [start]
        branches = [self._next(start)]
        longest = [start]
        steps = 0
        while branches:
            if path[-1][0] == len(self._known):
                return Verdict(True, steps)
            configuration = next(branches[-1], None)
            if configuration is None:
                if _progress(path[-1]) > _progress(longest[-1]):
                    longest = path.copy()
                branches.pop()
                path.pop()
                continue
            base, mask, state, used = configuration
            antichain = seen.setdefault((base, mask, state), [])
            if any(before & ~used == 0 for before in antichain):
                continue
            antichain[:] = [before for before in antichain if used & ~before != 0]
            antichain.append(used)
            steps += 1
            if steps > steps_max:
                longest = max(longest, path, key=lambda found: _progress(found[-1]))
                return Verdict(None, steps, self._order(longest), self._candidates(longest[-1]))
            path.append(configuration)
            branches.append(self._next(configuration))
        return Verdict(False, steps, self._order(longest), self._candidates(longest[-1]))

    def _open(self, base: int, mask: int) -> tuple[list[int], float]:
        """The completed operations that may come next, and the moment by which one of them must have: the
        earliest completion among those that are not linearized."""
        deadline = math.inf
        candidates = []
        invoked, completed = self._invoked, self._completed
        for at in range(base, len(invoked)):
            if invoked[at] > deadline:
                break
            if not mask >> (at - base) & 1:
                candidates.append(at)
                deadline = min(deadline, completed[at])
        return candidates, deadline

    def _next(self, configuration: _Configuration[State]) -> Iterator[_Configuration[State]]:
        base, mask, state, used = configuration
        candidates, deadline = self._open(base, mask)
        apply, known = self._model.apply, self._known
        for at in candidates:
            if self._observes[at] and _answers(apply(state, known[at].call)[1], known[at].result):
                yield (*_linearize(base, mask, at), state, used)
                return
        candidates.sort(key=self._completed.__getitem__)
        without: list[tuple[int, object]] = []  # what each candidate leaves without an unknown before it
        for at in candidates:
            after, result = apply(state, known[at].call)
            fits = _answers(result, known[at].result) and self._model.possible(after)
            without.append((at, after if fits else _NOTHING))
            if fits:
                yield (*_linearize(base, mask, at), after, used)
        usable = [(kind, bit) for kind in self._classes if (bit := kind.next_bit(used, deadline))]
        for kind, bit in usable:
            after, _ = apply(state, kind.call)
            if after == state or not self._model.possible(after):
                continue
            if self._helps(after, without) or self._leads_on(state, after, usable):
                yield base, mask, after, used | bit

    def _helps(self, after: State, without: Sequence[tuple[int, object]]) -> bool:
        """Does some completed operation fit after the unknown one that did not, or leave another state?"""
        for at, left in without:
            then, result = self._model.apply(after, self._known[at].call)
            if _answers(result, self._known[at].result) and then != left:
                return True
        return False

    def _leads_on(self, state: State, after: State, usable: Sequence[tuple[_Class, int]]) -> bool:
        """Does some unknown operation leave another state after the unknown one than it does without it?"""
        apply = self._model.apply
        return any(
            apply(after, kind.call)[0] != apply(state, kind.call)[0]
            for kind, _ in usable
            if not kind.overwrites
        )

    def _candidates(self, configuration: _Configuration[State]) -> tuple[Operation, ...]:
        candidates, _ = self._open(configuration[0], configuration[1])
        return tuple(self._known[at] for at in candidates)

    def _order(self, path: Sequence[_Configuration[State]]) -> tuple[Operation, ...]:
        """The operations that lead along a path, each the difference of two configurations."""
        order = []
        for before, after in pairwise(path):
            if before[3] != after[3]:
                order.append(self._unknown_at((before[3] ^ after[3]).bit_length() - 1))
                continue
            order.append(self._known[(_linearized(before) ^ _linearized(after)).bit_length() - 1])
        return tuple(order)

    def _unknown_at(self, bit: int) -> Operation:
        kind = max((kind for kind in self._classes if kind.shift <= bit), key=lambda kind: kind.shift)
        return self._unknown[kind.call][bit - kind.shift]


def _completed(operation: Operation) -> float:
    assert operation.completed is not None
    return operation.completed


def _answers(computed: object, recorded: object) -> bool:
    return recorded is ANY or computed == recorded


def _progress(configuration: _Configuration[State]) -> int:
    return configuration[0] + configuration[1].bit_count()


def _linearized(configuration: _Configuration[State]) -> int:
    base, mask = configuration[:2]
    return mask << base | (1 << base) - 1


def _linearize(base: int, mask: int, at: int) -> tuple[int, int]:
    mask |= 1 << (at - base)
    while mask & 1:
        mask >>= 1
        base += 1
    return base, mask
