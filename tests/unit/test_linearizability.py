"""The checker agrees with recorded verdicts, and with plain search that has no reductions at all."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.linearizability import (
    ANY,
    Append,
    AppendString,
    CompareAndSet,
    Counter,
    Delete,
    Get,
    Increment,
    Model,
    Operation,
    Put,
    Register,
    check,
)

HISTORIES = Path(__file__).parent.parent / "data" / "histories"


def _recorded(path: Path) -> list[Operation]:
    """A Jepsen log as operations, each line's number its time."""
    started: dict[str, tuple[int, Hashable]] = {}
    operations = []
    for at, line in enumerate(path.read_text().splitlines()):
        left, kind, function, value = line.split("\t")
        process = left.split()[-1]
        if kind == ":invoke":
            started[process] = (at, _call(function, value))
            continue
        invoked, call = started.pop(process)
        if kind == ":info":
            operations.append(Operation(call, None, invoked, None, process))
        elif kind == ":ok" or isinstance(call, CompareAndSet):
            operations.append(Operation(call, _result(kind, function, value), invoked, at, process))
    operations += [Operation(call, None, at, None, process) for process, (at, call) in started.items()]
    return operations


def _call(function: str, value: str) -> Hashable:
    if function == ":read":
        return Get()
    if function == ":write":
        return Put(value.encode())
    expected, new = value.strip("[]").split()
    return CompareAndSet(expected.encode(), new.encode())


def _result(kind: str, function: str, value: str) -> object:
    if function == ":read":
        return None if value == "nil" else value.encode()
    return ANY if function == ":write" else kind == ":ok"


VERDICTS = [line.split("\t") for line in (HISTORIES / "verdicts.tsv").read_text().splitlines() if line]


def test_all_recorded_histories_are_there() -> None:
    assert len(VERDICTS) == len(list(HISTORIES.glob("*.log"))) == 60
    assert {verdict for _, verdict in VERDICTS} == {"true", "false"}


@pytest.mark.parametrize(("name", "verdict"), VERDICTS)
def test_agrees_with_the_recorded_verdict(name: str, verdict: str) -> None:
    found = check(Register(), _recorded(HISTORIES / name))
    assert found.linearizable is (verdict == "true")


# --- plain search ---------------------------------------------------------------------------------------


def brute(model: Model[Hashable], operations: Sequence[Operation]) -> bool:
    """The definition: some order of all completed operations and any of the unknown ones."""

    def search(state: Hashable, left: frozenset[int]) -> bool:
        if all(operations[at].completed is None for at in left):
            return True
        for at in left:
            operation = operations[at]
            rest = left - {at}
            if any(_before(operations[other], operation) for other in rest):
                continue
            after, result = model.apply(state, operation.call)
            fits = operation.completed is None or operation.result is ANY or operation.result == result
            if fits and search(after, rest):
                return True
        return False

    return search(model.initial, frozenset(range(len(operations))))


def _before(one: Operation, other: Operation) -> bool:
    return one.completed is not None and one.completed < other.invoked


VALUES = st.sampled_from([b"a", b"b"])
REGISTER_CALLS = st.one_of(
    st.just(Get()),
    st.builds(Put, VALUES),
    st.builds(CompareAndSet, st.sampled_from([None, b"a", b"b"]), VALUES),
    st.just(Delete()),
)
STRING_CALLS = st.one_of(
    st.just(Get()), st.just(Get()), st.builds(Append, VALUES), st.builds(Put, VALUES), st.just(Delete())
)
GROWING_CALLS = st.one_of(st.just(Get()), st.builds(Append, st.sampled_from([b"a", b"b", b"ab"])))
COUNTER_CALLS = st.one_of(st.just(Get()), st.builds(Increment, st.sampled_from([1, 1, 2, -1])))


@st.composite
def histories(draw: st.DrawFn, model: Model[Hashable], calls: st.SearchStrategy[Hashable]) -> list[Operation]:
    """A store that is linearizable by construction ran this; then some answers may have been spoilt.

    Each operation takes effect somewhere inside its interval. An unknown one does so anywhere after its
    invocation, or never.
    """
    count = draw(st.integers(1, 7))
    planned: list[tuple[int, int, float, bool, Hashable]] = []
    for _ in range(count):
        invoked = draw(st.integers(0, 12))
        completed = invoked + draw(st.integers(0, 6))
        unknown = draw(st.integers(0, 3)) == 0
        effect = draw(st.integers(invoked, 24 if unknown else completed))
        planned.append((invoked, completed, effect, unknown, draw(calls)))
    order = sorted(range(count), key=lambda at: planned[at][2])
    state = model.initial
    operations: list[Operation | None] = [None] * count
    for at in order:
        invoked, completed, _, unknown, call = planned[at]
        if unknown and draw(st.booleans()):
            operations[at] = Operation(call, None, invoked, None)
            continue
        state, result = model.apply(state, call)
        operations[at] = Operation(call, result, invoked, None if unknown else completed)
    done = [operation for operation in operations if operation is not None]
    for at in draw(st.lists(st.integers(0, count - 1), max_size=2)):
        victim, other = done[at], done[draw(st.integers(0, count - 1))]
        _, result = model.apply(draw(st.sampled_from(_states(model, done))), victim.call)
        spoilt = draw(st.sampled_from([result, ANY, other.result]))
        done[at] = Operation(victim.call, spoilt, victim.invoked, victim.completed)
    return done


def _states(model: Model[Hashable], operations: Sequence[Operation]) -> list[Hashable]:
    states = [model.initial]
    for operation in operations:
        states.append(model.apply(states[-1], operation.call)[0])
    return states


LOST_UPDATE = [
    Operation(Put(b"a"), ANY, 0, 1),
    Operation(Put(b"b"), ANY, 2, 3),
    Operation(Get(), b"a", 4, 5),
]
# A put of the value that is there must not be linearized eagerly: it is needed after the put of b.
REDUNDANT_PUT_IS_NEEDED_LATER = [
    Operation(Put(b"a"), ANY, 0, 1),
    Operation(Put(b"a"), ANY, 2, 9),
    Operation(Put(b"b"), ANY, 3, 4),
    Operation(Get(), b"a", 10, 11),
]
UNKNOWN_SEEN_LATE = [
    Operation(Put(b"b"), None, 0, None),
    Operation(Put(b"a"), ANY, 1, 2),
    Operation(Get(), b"a", 3, 4),
    Operation(Get(), b"b", 5, 6),
]
UNKNOWN_SEEN_AND_UNSEEN = [*UNKNOWN_SEEN_LATE, Operation(Get(), b"a", 7, 8)]
UNKNOWN_SEEN_BEFORE_INVOKED = [Operation(Get(), b"b", 0, 1), Operation(Put(b"b"), None, 2, None)]


@pytest.mark.parametrize(
    ("operations", "linearizable"),
    [
        ([], True),
        (LOST_UPDATE, False),
        (REDUNDANT_PUT_IS_NEEDED_LATER, True),
        (UNKNOWN_SEEN_LATE, True),
        (UNKNOWN_SEEN_AND_UNSEEN, False),
        (UNKNOWN_SEEN_BEFORE_INVOKED, False),
    ],
)
def test_known_cases(operations: list[Operation], linearizable: bool) -> None:
    assert check(Register(), operations).linearizable is linearizable
    assert brute(Register(), operations) is linearizable


@settings(max_examples=1500, deadline=None)
@given(histories(Register(), REGISTER_CALLS))
@example(REDUNDANT_PUT_IS_NEEDED_LATER)
def test_register_agrees_with_plain_search(operations: list[Operation]) -> None:
    assert check(Register(), operations).linearizable is brute(Register(), operations)


@settings(max_examples=1000, deadline=None)
@given(histories(AppendString(), STRING_CALLS))
def test_append_string_agrees_with_plain_search(operations: list[Operation]) -> None:
    assert check(AppendString.of(operations), operations).linearizable is brute(AppendString(), operations)


@settings(max_examples=1000, deadline=None)
@given(histories(AppendString(), GROWING_CALLS))
def test_growing_string_agrees_with_plain_search(operations: list[Operation]) -> None:
    assert check(AppendString.of(operations), operations).linearizable is brute(AppendString(), operations)


@settings(max_examples=1000, deadline=None)
@given(histories(Counter(), COUNTER_CALLS))
def test_counter_agrees_with_plain_search(operations: list[Operation]) -> None:
    assert check(Counter(), operations).linearizable is brute(Counter(), operations)


# --- what it says, and how long it takes ------------------------------------------------------------------


def test_a_violation_names_where_the_order_got_stuck() -> None:
    verdict = check(Register(), LOST_UPDATE)
    assert [operation.call for operation in verdict.longest] == [Put(b"a"), Put(b"b")]
    assert verdict.stuck == (LOST_UPDATE[2],)


def test_a_search_over_its_bound_is_undecided() -> None:
    many = [Operation(Put(b"%d" % at), ANY, 0, 100) for at in range(30)]
    assert check(Register(), [*many, Operation(Get(), b"x", 200, 201)], steps_max=500).linearizable is None


def _busy_register(count: int, unknown_every: int) -> list[Operation]:
    """Five clients in turn, each operation overlapping its neighbours; every so often an outcome is unknown,
    and half of those took effect."""
    operations, state = [], None
    for at in range(count):
        unknown = at % unknown_every == unknown_every - 1
        if unknown or at % 3 == 0:
            value = b"%d" % at
            result: object = state is None
            if not unknown or at % 2:
                state = value
            operations.append(Operation(Put(value), result, at, None if unknown else at + 4.5))
        else:
            operations.append(Operation(Get(), state, at, at + 4.5))
    return operations


def test_five_thousand_operations_on_a_key_take_seconds() -> None:
    operations = _busy_register(5000, 40)
    started = time.perf_counter()
    assert check(Register(), operations).linearizable is True
    last = max(at for at, operation in enumerate(operations) if operation.call == Get())
    spoilt = [*operations]
    spoilt[last] = Operation(Get(), b"never written", operations[last].invoked, operations[last].completed)
    assert check(Register(), spoilt).linearizable is False
    assert time.perf_counter() - started < 30


def test_many_unknown_appends_stay_tractable() -> None:
    """Unknown appends of which the reads show every third: without what the last read says about the states
    before it, each choice and order of the others would be a state of its own."""
    operations, value = [], b""
    for at in range(600):
        token = b"%d;" % at
        unknown = at % 5 == 0
        if not unknown or at % 3 == 0:
            value += token
        operations.append(Operation(Append(token), len(value), at, None if unknown else at + 0.5))
    operations.append(Operation(Get(), value, 700, 701))
    assert check(AppendString.of(operations), operations).linearizable is True
    wrong = [*operations[:-1], Operation(Get(), value + b"lost;", 700, 701)]
    assert check(AppendString.of(wrong), wrong).linearizable is False


def test_many_equal_unknown_increments_stay_tractable() -> None:
    operations: list[Operation] = [Operation(Increment(1), None, at, None) for at in range(60)]
    operations += [Operation(Increment(1), 31 + at, 100 + at, 100.5 + at) for at in range(20)]
    assert check(Counter(), operations).linearizable is True
    operations.append(Operation(Get(), b"7", 200, 201))
    assert check(Counter(), operations).linearizable is False
