"""Exactly once: what is remembered, for how long, and at what cost."""

from __future__ import annotations

import pytest

from raftkv.kv.command import (
    Append,
    Command,
    Condition,
    Delete,
    DeletePrefix,
    Get,
    Idempotency,
    Increment,
    Put,
    Transaction,
)
from raftkv.kv.idempotency import KEEP_MS, STEPS_PER_COMMAND, WINDOW
from raftkv.kv.machine import Machine
from raftkv.model import (
    Applied,
    IdempotencyExpired,
    IdempotencyMismatch,
    Incremented,
    Item,
    NotANumber,
    PreconditionFailed,
    Written,
)

MIB = 1 << 20
NOTHING = Delete(b"nothing")


def key(text: str, fingerprint: bytes = b"f" * 16) -> Idempotency:
    return Idempotency(text.encode(), fingerprint)


class Log:
    def __init__(self) -> None:
        self.machine = Machine()
        self.at_ms = 0

    def __call__(self, command: Command) -> Applied:
        return self.machine.apply(self.machine.applied_index + 1, self.at_ms, command)

    def increment(self, idempotency_key: str, fingerprint: bytes = b"f" * 16) -> Applied:
        return self(Increment(b"n", 1, idempotency=key(idempotency_key, fingerprint)))

    def other_commands(self, count: int) -> None:
        for _ in range(count):
            self(NOTHING)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.mark.parametrize("name", ["0b2c", "client/1", "any thing/01", "c/0", "/1", "a/b/1"])
def test_a_repeated_key_gets_the_first_answer_and_does_nothing(log: Log, name: str) -> None:
    first = log.increment(name)
    assert first == Applied(1, Incremented(1, 1), replayed=False)
    log(Put(b"n", b"70"))
    assert log.increment(name) == Applied(3, Incremented(1, 1), replayed=True)
    assert (log.machine.revision, log.machine.get(b"n")) == (
        2,
        Item(b"n", b"70", "application/octet-stream", 1, 2, 2),
    )


@pytest.mark.parametrize("name", ["0b2c", "client/1"])
@pytest.mark.parametrize(
    "make",
    [
        lambda i: Put(b"a", b"new", return_previous=True, idempotency=i),
        lambda i: Put(b"a", b"new", condition=Condition(exists=False), idempotency=i),
        lambda i: Delete(b"a", return_previous=True, idempotency=i),
        lambda i: Delete(b"absent", idempotency=i),
        lambda i: DeletePrefix(b"", 1, idempotency=i),
        lambda i: Append(b"a", b"+", MIB, idempotency=i),
        lambda i: Append(b"a", b"+", 1, idempotency=i),
        lambda i: Increment(b"i", 4, idempotency=i),
        lambda i: Increment(b"a", 4, idempotency=i),
        lambda i: Transaction((), (Get(b"a"), Get(b"q"), Put(b"a", b"", return_previous=True)), (), i),
        lambda i: Transaction((), (Append(b"a", b"", MIB), Increment(b"i", 4), Delete(b"b")), (), i),
        lambda i: Transaction((), (Increment(b"a", 4),), (), i),
    ],
)
def test_every_kind_of_outcome_is_replayed_whole(log: Log, name: str, make: object) -> None:
    assert callable(make)
    log(Put(b"a", b"old", "text/plain"))
    log(Put(b"b", b"x"))
    command = make(key(name))
    first = log(command)
    before = log.machine.scan(b"", None, 10), log.machine.revision
    again = log(command)
    assert again == Applied(4, first.result, replayed=True)
    assert (log.machine.scan(b"", None, 10), log.machine.revision) == before


def test_failures_are_outcomes_too(log: Log) -> None:
    log(Put(b"a", b"x"))
    keyed = Increment(b"a", 1, idempotency=key("k"))
    assert isinstance(log(keyed).result, NotANumber)
    guarded = Put(b"a", b"y", condition=Condition(revision=7), idempotency=key("c/1"))
    assert log(guarded).result == PreconditionFailed(1)
    log(Put(b"a", b"1"))
    assert isinstance(log(keyed).result, NotANumber)
    assert log(guarded) == Applied(6, PreconditionFailed(1), replayed=True)


@pytest.mark.parametrize("name", ["0b2c", "client/1"])
def test_a_key_with_another_request_is_a_mismatch(log: Log, name: str) -> None:
    log.increment(name)
    assert log.increment(name, b"other fingerprin") == Applied(2, IdempotencyMismatch())
    assert log.machine.get(b"n").value == b"1"  # type: ignore[union-attr]
    assert log.increment(name).replayed


def test_plain_keys_hold_for_two_minutes_of_log_time(log: Log) -> None:
    log.increment("k")
    log.at_ms = KEEP_MS - 1
    log.other_commands(100)
    assert log.increment("k").replayed
    log.at_ms = KEEP_MS
    log.other_commands(1)
    assert log.machine.idempotency_records == 0
    assert log.increment("k") == Applied(104, Incremented(2, 2))


def test_a_window_holds_the_last_outcomes_of_its_client(log: Log) -> None:
    for n in range(1, WINDOW + 1):
        log.increment(f"c/{n}")
    assert log.increment("c/1") == Applied(WINDOW + 1, Incremented(1, 1), replayed=True)
    log.increment(f"c/{WINDOW + 1}")
    assert log.machine.idempotency_records == WINDOW
    assert log.increment("c/1").result == IdempotencyExpired(2)
    assert log.increment("c/2").replayed
    assert log.increment("other/1").result == Incremented(WINDOW + 2, WINDOW + 2)


def test_numbers_may_come_out_of_order_within_the_window(log: Log) -> None:
    assert not log.increment("c/5000").replayed
    lowest = 5000 - WINDOW + 1
    assert not log.increment(f"c/{lowest}").replayed
    assert log.increment(f"c/{lowest}").replayed
    assert log.increment(f"c/{lowest - 1}").result == IdempotencyExpired(lowest)
    assert not log.increment("c/4999").replayed
    assert log.machine.revision == 3
    log.increment("c/9000000000000000000")
    assert log.machine.idempotency_records == 1
    assert isinstance(log.increment("c/5000").result, IdempotencyExpired)


def test_an_idle_client_is_forgotten_and_a_busy_one_is_not(log: Log) -> None:
    log.increment("idle/1")
    log.increment("busy/1")
    for turn in range(1, 13):
        log.at_ms = turn * KEEP_MS // 4
        assert log.increment("busy/1").replayed  # a client that only asks again is not idle
        log.other_commands(WINDOW // STEPS_PER_COMMAND)
        if log.at_ms < KEEP_MS:
            assert log.machine.idempotency_records == 2
    assert log.machine.idempotency_records == 1
    assert not log.increment("idle/1").replayed


def test_a_forgotten_client_begins_a_new_session(log: Log) -> None:
    for n in range(1, 501):
        log.increment(f"c/{n}")
    log.at_ms = KEEP_MS
    log.other_commands(1)
    # Its outcomes are still being dropped; none of them may answer for the new session.
    assert log.machine.idempotency_records > 400
    assert log.increment("c/450").result == Incremented(501, 501)
    log.other_commands(500 // STEPS_PER_COMMAND + 1)
    assert log.machine.idempotency_records == 1
    assert log.increment("c/450").replayed


def test_no_command_pays_for_more_than_a_few_expiries(log: Log) -> None:
    for client in range(3):
        for n in range(1, WINDOW + 1):
            log.increment(f"c{client}/{n}")
    for n in range(3_000):
        log.increment(f"plain {n}")
    log.at_ms = 10 * KEEP_MS
    before = log.machine.idempotency_records
    for _ in range(before // STEPS_PER_COMMAND + 10):
        log.other_commands(1)
        now = log.machine.idempotency_records
        assert before - now <= STEPS_PER_COMMAND
        before = now
    assert before == 0
    assert log.machine._idempotency.queue.count == 0
    assert log.machine._idempotency.clients.count == 0
    assert log.machine.idempotency_bytes == 0


def test_counters_grow_with_what_is_kept(log: Log) -> None:
    log(Put(b"a", b"x" * 5000))
    assert (log.machine.idempotency_records, log.machine.idempotency_bytes) == (0, 0)
    log(Put(b"a", b"", return_previous=True, idempotency=key("k")))
    assert log.machine.idempotency_records == 1
    assert 5_000 < log.machine.idempotency_bytes < 5_600


def test_any_fingerprint_and_any_key_will_do(log: Log) -> None:
    for n, keyed in enumerate(
        (Idempotency(b"x", b""), Idempotency(b"\xff" * 9, b"x"), Idempotency(b"/", b""))
    ):
        command = Put(b"a", b"", idempotency=keyed)
        assert log(command).result == Written(n + 1, n == 0)
        assert log(command).replayed


def test_an_empty_key_is_none(log: Log) -> None:
    command = Increment(b"n", 1, idempotency=Idempotency(b"", b""))
    assert log(command).result == Incremented(1, 1)
    assert log(command).result == Incremented(2, 2)
