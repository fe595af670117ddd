"""The state machine's rules, one by one."""

from __future__ import annotations

import pytest

from raftkv.kv.command import (
    Append,
    Command,
    Compare,
    Condition,
    Delete,
    DeletePrefix,
    Get,
    Increment,
    Put,
    Transaction,
)
from raftkv.kv.machine import INTEGER_MAX, INTEGER_MIN, Machine, prefix_end
from raftkv.model import (
    Appended,
    Deleted,
    Got,
    Incremented,
    Item,
    NotANumber,
    PreconditionFailed,
    Result,
    ResultTooLarge,
    TransactionDone,
    Written,
)

MIB = 1 << 20


class Log:
    """A machine and the next index, so that a test reads as a list of commands."""

    def __init__(self) -> None:
        self.machine = Machine()

    def __call__(self, command: Command, at_ms: int = 0) -> Result:
        return self.machine.apply(self.machine.applied_index + 1, at_ms, command).result


@pytest.fixture
def log() -> Log:
    return Log()


def test_put_creates_then_replaces_and_counts_versions(log: Log) -> None:
    assert log(Put(b"a", b"1", "text/plain")) == Written(1, True)
    assert log(Put(b"b", b"1")) == Written(2, True)
    assert log(Put(b"a", b"2")) == Written(3, False)
    assert log.machine.get(b"a") == Item(b"a", b"2", "application/octet-stream", 1, 3, 2)
    assert (log.machine.keys, log.machine.bytes, log.machine.revision) == (2, 4, 3)


def test_put_returns_the_previous_item_only_when_asked(log: Log) -> None:
    assert log(Put(b"a", b"1", "text/plain", return_previous=True)) == Written(1, True, None)
    previous = Item(b"a", b"1", "text/plain", 1, 1, 1)
    assert log(Put(b"a", b"2", return_previous=True)) == Written(2, False, previous)
    assert log(Put(b"a", b"3")) == Written(3, False, None)


def test_a_key_deleted_and_put_again_is_created_anew(log: Log) -> None:
    log(Put(b"a", b"1"))
    assert log(Delete(b"a", return_previous=True)) == Deleted(
        2, 1, previous=Item(b"a", b"1", "application/octet-stream", 1, 1, 1)
    )
    assert log.machine.get(b"a") is None
    log(Put(b"a", b"2"))
    assert log.machine.get(b"a") == Item(b"a", b"2", "application/octet-stream", 3, 3, 1)


def test_what_changes_nothing_takes_no_revision(log: Log) -> None:
    log(Put(b"a", b"1"))
    assert log(Delete(b"x")) == Deleted(1, 0)
    assert log(DeletePrefix(b"x", 10)) == Deleted(1, 0)
    assert log(Put(b"a", b"2", condition=Condition(revision=9))) == PreconditionFailed(1)
    assert log(Transaction((), (), ())) == TransactionDone(True, 1, ())
    assert log(Transaction((), (Get(b"a"), Delete(b"x")), ())) == TransactionDone(
        True, 1, (Got(log.machine.get(b"a")), Deleted(1, 0))
    )
    assert log.machine.revision == 1
    assert log(Put(b"a", b"2")) == Written(2, False)


@pytest.mark.parametrize(
    ("condition", "absent", "present"),
    [
        (Condition(), True, True),
        (Condition(exists=True), False, True),
        (Condition(exists=False), True, False),
        (Condition(revision=0), True, False),
        (Condition(revision=1), False, True),
        (Condition(revision=2), False, False),
        (Condition(revision=1, exists=True), False, True),
        (Condition(revision=1, exists=False), False, False),
    ],
)
def test_conditions_guard_every_single_key_write(condition: Condition, absent: bool, present: bool) -> None:
    for exists, holds in ((False, absent), (True, present)):
        for command in (
            Put(b"a", b"7", condition=condition),
            Delete(b"a", condition=condition),
            Append(b"a", b"7", MIB, condition=condition),
            Increment(b"a", 7, condition=condition),
        ):
            log = Log()
            if exists:
                log(Put(b"a", b"1"))
            before = log.machine.get(b"a")
            result = log(command)
            if holds:
                assert not isinstance(result, PreconditionFailed)
            else:
                assert result == PreconditionFailed(1 if exists else 0)
                assert log.machine.get(b"a") == before


def test_append_creates_and_keeps_the_content_type(log: Log) -> None:
    assert log(Append(b"a", b"one", MIB, "text/plain")) == Appended(1, 3)
    assert log(Append(b"a", b" two", MIB, "image/png")) == Appended(2, 7)
    assert log.machine.get(b"a") == Item(b"a", b"one two", "text/plain", 1, 2, 2)


def test_append_beyond_its_limit_changes_nothing(log: Log) -> None:
    log(Append(b"a", b"one", 4))
    assert log(Append(b"a", b"two", 5)) == ResultTooLarge(6, 5)
    assert log(Append(b"b", b"two", 2)) == ResultTooLarge(3, 2)
    assert log.machine.get(b"b") is None
    assert log.machine.revision == 1


def test_increment_counts_from_zero_and_keeps_the_content_type(log: Log) -> None:
    assert log(Increment(b"n", 5)) == Incremented(1, 5)
    assert log(Increment(b"n", -7)) == Incremented(2, -2)
    log(Put(b"n", b"0041", "text/plain"))
    assert log(Increment(b"n", 1)) == Incremented(4, 42)
    assert log.machine.get(b"n") == Item(b"n", b"42", "text/plain", 1, 4, 4)


@pytest.mark.parametrize(
    "text", [b"", b"x", b"1\n", b" 1", b"+1", b"1_0", b"1.0", b"--1", "１".encode(), b"9" * 5000, b"1" * 33]
)
def test_increment_of_what_is_no_integer_is_refused(log: Log, text: bytes) -> None:
    log(Put(b"n", text))
    assert isinstance(log(Increment(b"n", 1)), NotANumber)
    assert log.machine.revision == 1


def test_increment_stays_within_64_bits(log: Log) -> None:
    for text, by, works in (
        (INTEGER_MAX - 1, 1, True),
        (INTEGER_MAX, 1, False),
        (INTEGER_MIN, -1, False),
        (INTEGER_MIN + 1, -1, True),
        (INTEGER_MAX + 1, -1, False),
        (INTEGER_MIN - 1, 1, False),
        (0, INTEGER_MAX + 1, False),
    ):
        log(Put(b"n", b"%d" % text))
        assert isinstance(log(Increment(b"n", by)), Incremented) == works, (text, by)


def test_delete_prefix_takes_the_first_keys_in_order_in_one_revision(log: Log) -> None:
    for key in (b"a", b"p", b"p/2", b"p/1", b"p0", b"q"):
        log(Put(key, b"v"))
    assert log(DeletePrefix(b"p", 2)) == Deleted(7, 2, more=True)
    assert [item.key for item in log.machine.scan(b"", None, 10)] == [b"a", b"p/2", b"p0", b"q"]
    assert log(DeletePrefix(b"p", 2)) == Deleted(8, 2, more=False)
    assert log(DeletePrefix(b"", 1)) == Deleted(9, 1, more=True)
    assert log(DeletePrefix(b"", 0)) == Deleted(9, 0, more=True)
    assert log(DeletePrefix(b"", 5)) == Deleted(10, 1, more=False)


def test_transaction_writes_share_one_revision_and_see_each_other(log: Log) -> None:
    log(Put(b"gone", b"1"))
    done = log(
        Transaction(
            (),
            (
                Put(b"a", b"1"),
                Increment(b"a", 1),
                Append(b"a", b"0", MIB),
                Get(b"a"),
                Delete(b"gone", return_previous=True),
                Get(b"gone"),
                Delete(b"gone"),
                Put(b"gone", b"2"),
            ),
            (),
        )
    )
    assert done == TransactionDone(
        True,
        2,
        (
            Written(2, True),
            Incremented(2, 2),
            Appended(2, 2),
            Got(Item(b"a", b"20", "application/octet-stream", 2, 2, 3)),
            Deleted(2, 1, previous=Item(b"gone", b"1", "application/octet-stream", 1, 1, 1)),
            Got(None),
            Deleted(2, 0),
            Written(2, True),
        ),
    )
    assert log.machine.revision == 2


def test_a_failing_operation_undoes_the_whole_transaction(log: Log) -> None:
    log(Put(b"a", b"1", "text/plain"))
    log(Put(b"b", b"x"))
    before = log.machine.scan(b"", None, 10)
    writes = (Put(b"a", b"2"), Put(b"a", b"3"), Delete(b"b"), Put(b"b", b"y"), Put(b"c", b"z"))
    for failing, failure in (
        (Increment(b"b", 1), NotANumber),
        (Append(b"a", b"22", 2), ResultTooLarge),
        (Put(b"q", b"", condition=Condition(exists=True)), PreconditionFailed),
    ):
        assert isinstance(log(Transaction((), (*writes, failing), ())), failure)
        assert log.machine.scan(b"", None, 10) == before
        assert (log.machine.revision, log.machine.keys, log.machine.bytes) == (2, 2, 14)
    assert log(Put(b"c", b"")) == Written(3, True)


@pytest.mark.parametrize(
    ("target", "operator", "value", "expected"),
    [
        ("value", "==", b"v", True),
        ("value", "!=", b"v", False),
        ("value", "<", b"w", True),
        ("value", ">", b"u", True),
        ("value", "==", 1, False),
        ("value", "<", 1, False),
        ("value", "!=", 1, True),
        ("exists", "==", True, True),
        ("exists", "!=", True, False),
        ("exists", "==", 1, False),
        ("create_revision", "==", 1, True),
        ("mod_revision", "==", 3, True),
        ("mod_revision", ">", 2, True),
        ("mod_revision", "<", 3, False),
        ("version", "==", 2, True),
        ("version", "==", True, False),
    ],
)
def test_compares_choose_the_branch(
    log: Log, target: str, operator: str, value: bytes | bool | int, expected: bool
) -> None:
    log(Put(b"a", b"1"))
    log(Put(b"b", b"1"))
    log(Put(b"a", b"v"))
    compare = Compare(b"a", target, operator, value)  # type: ignore[arg-type]
    done = log(Transaction((compare,), (Put(b"yes", b""),), (Put(b"no", b""),)))
    assert isinstance(done, TransactionDone)
    assert done.succeeded == expected
    assert (log.machine.get(b"yes") is not None) == expected
    assert (log.machine.get(b"no") is None) == expected


@pytest.mark.parametrize(
    ("target", "operator", "value", "expected"),
    [
        ("value", "==", b"", False),
        ("value", "<", b"x", False),
        ("value", "!=", b"x", True),
        ("exists", "==", False, True),
        ("mod_revision", "==", 0, True),
        ("version", "<", 1, True),
        ("create_revision", ">", 0, False),
    ],
)
def test_compares_of_an_absent_key(
    log: Log, target: str, operator: str, value: bytes | bool | int, expected: bool
) -> None:
    compare = Compare(b"a", target, operator, value)  # type: ignore[arg-type]
    done = log(Transaction((compare,), (), ()))
    assert isinstance(done, TransactionDone)
    assert done.succeeded == expected


def test_every_compare_must_hold_and_none_sees_the_transaction(log: Log) -> None:
    log(Put(b"a", b"1"))
    yes, no = Compare(b"a", "exists", "==", True), Compare(b"b", "exists", "==", True)
    for compares, expected in (((yes,), True), ((yes, no), False), ((no, yes), False), ((), True)):
        done = log(Transaction(compares, (Delete(b"x"),), ()))
        assert isinstance(done, TransactionDone)
        assert done.succeeded == expected


def test_log_time_never_goes_back(log: Log) -> None:
    log(Put(b"a", b"1"), at_ms=50)
    log(Put(b"a", b"1"), at_ms=20)
    assert log.machine.log_time_ms == 50


def test_scan_is_in_key_order_and_bounded(log: Log) -> None:
    for key in (b"b", "ä".encode(), b"a", b"a/1", b"a/2", b"a0"):
        log(Put(key, b""))
    assert [item.key for item in log.machine.scan(b"a/", prefix_end(b"a/"), 10)] == [b"a/1", b"a/2"]
    assert [item.key for item in log.machine.scan(b"a", None, 3)] == [b"a", b"a/1", b"a/2"]
    assert log.machine.scan(b"a", None, 0) == []
    assert log.machine.scan(b"b", b"a", 9) == []


def test_prefix_end() -> None:
    assert prefix_end(b"a/") == b"a0"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") is None
    assert prefix_end(b"") is None
