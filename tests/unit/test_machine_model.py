"""The state machine against a plain dict, with images taken, and snapshots loaded, at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.kv import command as commands
from raftkv.kv import table as table_module
from raftkv.kv.command import (
    Append,
    Command,
    Compare,
    Condition,
    CreateToken,
    Delete,
    DeletePrefix,
    Get,
    Idempotency,
    Increment,
    Operation,
    Put,
    RevokeToken,
    Transaction,
)
from raftkv.kv.image import Image, Page, Section
from raftkv.kv.machine import Machine, prefix_end
from raftkv.kv.tokens import Grant, Token
from raftkv.model import (
    DEFAULT_CONTENT_TYPE,
    Appended,
    Applied,
    Deleted,
    Got,
    IdempotencyMismatch,
    Incremented,
    Item,
    NotANumber,
    PreconditionFailed,
    Result,
    ResultTooLarge,
    TokenCreated,
    TokenRefused,
    TokenRevoked,
    TransactionDone,
    Written,
)
from raftkv.snapshot.codec import decode_pages, encode_page


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "BLOCK_KEYS_MAX", 6)
        patch.setattr(table_module, "_BLOCK_KEYS_HALF", 3)
        patch.setattr(table_module, "_BLOCK_KEYS_LOW", 2)
        patch.setattr(table_module, "_BLOCK_KEYS_LOADED", 4)
        yield


# --- the model: as plain as can be, copying the whole dict for a transaction ---------------------------


@dataclass
class Model:
    items: dict[bytes, Item] = field(default_factory=dict)
    revision: int = 0
    outcomes: dict[bytes, tuple[bytes, Result]] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)

    def apply(self, index: int, command: Command) -> Applied:
        keyed = command.idempotency
        if keyed is not None and keyed.key in self.outcomes:
            fingerprint, known = self.outcomes[keyed.key]
            if fingerprint != keyed.fingerprint:
                return Applied(index, IdempotencyMismatch())
            return Applied(index, known, replayed=True)
        result = self.run(command)
        if keyed is not None:
            self.outcomes[keyed.key] = keyed.fingerprint, result
        return Applied(index, result)

    def run(self, command: Command) -> Result:
        match command:
            case Transaction():
                return self.transaction(command)
            case DeletePrefix():
                keys = sorted(key for key in self.items if key.startswith(command.prefix))
                for key in keys[: max(command.limit, 0)]:
                    del self.items[key]
                self.revision += bool(keys[: max(command.limit, 0)])
                return Deleted(self.revision, len(keys[: max(command.limit, 0)]), len(keys) > command.limit)
            case CreateToken(token=token):
                if command.only_first and self.tokens:
                    return TokenRefused("not_first")
                if token.id in self.tokens:
                    return TokenRefused("exists")
                self.tokens[token.id] = token
                self.revision += 1
                return TokenCreated(self.revision)
            case RevokeToken():
                return self.revoke(command.id)
            case _:
                result = self.operation(command, self.revision + 1)
                assert not isinstance(result, Got)
                return result

    def revoke(self, name: str) -> Result:
        if name not in self.tokens:
            return TokenRefused("missing")
        left = {each for each, token in self.tokens.items() if rules(token)}
        if left == {name}:
            return TokenRefused("last_admin")
        del self.tokens[name]
        self.revision += 1
        return TokenRevoked(self.revision)

    def transaction(self, transaction: Transaction) -> Result:
        saved = dict(self.items), self.revision
        succeeded = all(self.compare(compare) for compare in transaction.compare)
        responses = []
        for operation in transaction.success if succeeded else transaction.failure:
            response = self.operation(operation, saved[1] + 1)
            if isinstance(response, PreconditionFailed | NotANumber | ResultTooLarge):
                self.items, self.revision = saved
                return response
            responses.append(response)
        return TransactionDone(succeeded, self.revision, tuple(responses))

    def compare(self, compare: Compare) -> bool:
        item = self.items.get(compare.key)
        actual: object
        if compare.target == "exists":
            actual = item is not None
        elif compare.target == "value":
            actual = None if item is None else item.value
        else:
            actual = 0 if item is None else getattr(item, compare.target)
        same = type(actual) is type(compare.value)
        return {
            "==": lambda: same and actual == compare.value,
            "!=": lambda: not same or actual != compare.value,
            "<": lambda: same and actual < compare.value,  # type: ignore[operator]
            ">": lambda: same and actual > compare.value,  # type: ignore[operator]
        }[compare.operator]()

    def operation(self, operation: Operation, revision: int) -> OperationOutcome:
        old = self.items.get(operation.key)
        if isinstance(operation, Get):
            return Got(old)
        condition = operation.condition or Condition()
        current = old.mod_revision if old else 0
        if condition.revision not in (None, current) or condition.exists not in (None, old is not None):
            return PreconditionFailed(current)
        base = old or Item(operation.key, b"", DEFAULT_CONTENT_TYPE, revision, 0, 0)
        new = replace(base, mod_revision=revision, version=base.version + 1)
        match operation:
            case Put():
                new = replace(
                    new, value=operation.value, content_type=operation.content_type or DEFAULT_CONTENT_TYPE
                )
                result: OperationOutcome = Written(
                    revision, old is None, old if operation.return_previous else None
                )
            case Delete():
                if old is None:
                    return Deleted(self.revision, 0)
                del self.items[operation.key]
                self.revision = revision
                return Deleted(revision, 1, previous=old if operation.return_previous else None)
            case Append():
                value = base.value + operation.value
                if len(value) > operation.value_bytes_max:
                    return ResultTooLarge(len(value), operation.value_bytes_max)
                kind = old.content_type if old else operation.content_type or DEFAULT_CONTENT_TYPE
                new = replace(new, value=value, content_type=kind)
                result = Appended(revision, len(value))
            case Increment():
                digits = base.value[1:] if base.value[:1] == b"-" else base.value
                if old and not (digits.isdigit() and -(2**63) <= int(base.value) < 2**63):
                    return NotANumber("")
                total = int(base.value or b"0") + operation.by
                if not -(2**63) <= total < 2**63:
                    return NotANumber("")
                new = replace(new, value=b"%d" % total)
                result = Incremented(revision, total)
        self.items[operation.key] = new
        self.revision = revision
        return result


def rules(token: Token) -> bool:
    """As `Token.rules_everything`, said otherwise."""
    return token.expires_ms == 0 and Grant("admin", b"") in token.grants


OperationOutcome = (
    Written | Deleted | Appended | Incremented | Got | PreconditionFailed | NotANumber | ResultTooLarge
)

# --- commands: few keys, so that they meet ------------------------------------------------------------

Keys = st.integers(0, 30).map(lambda n: b"k%02d" % n) | st.sampled_from([b"k", b"k1", b"\xff", b"k\xff"])
Prefixes = st.sampled_from([b"", b"k", b"k0", b"k1", b"k2", b"\xff", b"none"])
Values = st.binary(max_size=3) | st.integers(-2, 2).map(lambda n: b"%d" % (n + n * 2**62 * 2))
Types = st.sampled_from([DEFAULT_CONTENT_TYPE, "text/plain", "", "ü/x"])
Conditions = st.none() | st.builds(Condition, st.none() | st.integers(0, 20), st.none() | st.booleans())
Keyed = st.none() | st.builds(
    Idempotency,
    st.sampled_from([b"a", b"b", b"c/1", b"c/2", b"c/3", b"d/1"]),
    st.sampled_from([b"1" * 16, b"2" * 16]),
)
Integers = st.sampled_from([1, -1, 5, 2**62, -(2**62), 2**63])


def operations(keyed: st.SearchStrategy[Idempotency | None]) -> st.SearchStrategy[Operation]:
    return st.one_of(
        st.builds(Put, Keys, Values, Types, Conditions, st.booleans(), keyed),
        st.builds(Delete, Keys, Conditions, st.booleans(), keyed),
        st.builds(Append, Keys, Values, st.integers(0, 9), Types, Conditions, keyed),
        st.builds(Increment, Keys, Integers, Conditions, keyed),
    )


Compares = st.builds(
    Compare,
    Keys,
    st.sampled_from(["value", "mod_revision", "create_revision", "version", "exists"]),
    st.sampled_from(["==", "!=", "<", ">"]),
    Values | st.integers(0, 5) | st.booleans(),
)
Tokens = st.builds(
    Token,
    st.sampled_from(["a", "b", "c", "d"]),
    st.sampled_from(["ci", "ü"]),
    st.lists(
        st.builds(Grant, st.sampled_from(["read", "write", "admin"]), st.sampled_from([b"", b"k"])),
        max_size=3,
    ).map(tuple),
    st.just(b"salt"),
    st.binary(max_size=2),
    st.just((2, 1, 1)),
    st.just(1),
    st.sampled_from([0, 0, 7]),
    st.integers(0, 2),
)
Branches = st.lists(operations(st.none()) | st.builds(Get, Keys), max_size=5).map(tuple)
Commands: st.SearchStrategy[Command] = st.one_of(
    operations(Keyed),
    st.builds(DeletePrefix, Prefixes, st.integers(-1, 6), Keyed),
    st.builds(Transaction, st.lists(Compares, max_size=2).map(tuple), Branches, Branches, Keyed),
    st.builds(CreateToken, Tokens, st.booleans(), Keyed),
    st.builds(RevokeToken, st.sampled_from(["a", "b", "c", "d"]), Keyed),
)


def without_detail(applied: Applied) -> Applied:
    """NotANumber's words are for people; the model has none."""
    if isinstance(applied.result, NotANumber):
        return Applied(applied.index, NotANumber(""), applied.replayed)
    return applied


def pages(image: Image, count: int = 3) -> list[Page]:
    found = []
    while page := image.next_page(count):
        found.append(page)
    return found


def dump(machine: Machine) -> bytes:
    return b"".join(map(encode_page, pages(machine.image())))


def reloaded(machine: Machine) -> Machine:
    return Machine.load(machine.state(), decode_pages(dump(machine)))


Steps = st.lists(
    st.tuples(st.just("apply"), Commands)
    | st.tuples(st.just("image"), st.none() | Prefixes)
    | st.tuples(st.just("page"), st.integers(0, 3), st.integers(1, 7))
    | st.tuples(st.just("close"), st.integers(0, 3))
    | st.tuples(st.just("reload")),
    max_size=60,
)


@settings(max_examples=300)
@given(st.lists(operations(st.none()), max_size=40), Steps)
def test_machine_agrees_with_the_model(first: list[Operation], steps: list[tuple[object, ...]]) -> None:
    machine, twin, model = Machine(), Machine(), Model()
    images: list[tuple[Image, list[Item]]] = []
    index = 0
    for step in [*(("apply", command) for command in first), *steps]:
        match step:
            case ("apply", command):
                index += 1
                assert isinstance(command, Command)
                applied = machine.apply(index, index, command)
                assert without_detail(applied) == without_detail(model.apply(index, command))
                assert twin.apply(index, index, command) == applied
            case ("image", prefix):
                assert prefix is None or isinstance(prefix, bytes)
                image = machine.image() if prefix is None else machine.image_of_items(prefix)
                keys = sorted(key for key in model.items if key.startswith(prefix or b""))
                images.append((image, [model.items[key] for key in keys]))
            case ("page", int(which), int(count)) if which < len(images):
                read_on(*images[which], count)
            case ("close", int(which)) if which < len(images):
                images.pop(which)[0].close()
            case ("reload",):
                twin = reloaded(twin)
    check(machine, model)
    assert dump(machine) == dump(twin)
    assert machine.state() == twin.state()
    for image, left in images:
        while left:
            read_on(image, left, 4)
        pages(image)
        assert image.kept == 0


def read_on(image: Image, left: list[Item], count: int) -> None:
    page = image.next_page(count)
    if page.section is Section.ITEMS:
        items = list(page.items())
        assert items == left[: len(items)]
        assert len(items) == min(count, len(left))
        del left[: len(items)]
    else:
        assert not left


def check(machine: Machine, model: Model) -> None:
    items = [model.items[key] for key in sorted(model.items)]
    assert machine.scan(b"", None, 1000) == items
    assert (machine.revision, machine.keys) == (model.revision, len(items))
    assert list(machine.tokens) == [model.tokens[name] for name in sorted(model.tokens)]
    types = [item.content_type for item in items if item.content_type != DEFAULT_CONTENT_TYPE]
    assert machine.bytes == sum(len(i.key) + len(i.value) for i in items) + sum(
        len(t.encode()) for t in types
    )
    for prefix in (b"k1", b"\xff", b""):
        expected = [item for item in items if item.key.startswith(prefix)]
        assert machine.scan(prefix, prefix_end(prefix), 1000) == expected
        assert machine.scan(prefix, prefix_end(prefix), 2) == expected[:2]
    assert all(machine.get(key) == model.items.get(key) for key in [b"k01", b"k30", b"k", b"nothing"])


# --- totality: what decodes, applies -------------------------------------------------------------------

Anything = st.binary(max_size=40)
AnyInteger = st.integers(-(2**63), 2**64 - 1)
AnyCondition = st.none() | st.builds(Condition, st.none() | AnyInteger, st.none() | st.booleans())
AnyKeyed = st.none() | st.builds(Idempotency, Anything | st.from_regex(rb"[a-c]/[0-9]{1,20}"), Anything)
AnyText = st.text(max_size=20)
AnyOperation = st.one_of(
    st.builds(Put, Anything, Anything, AnyText, AnyCondition, st.booleans(), AnyKeyed),
    st.builds(Delete, Anything, AnyCondition, st.booleans(), AnyKeyed),
    st.builds(Append, Anything, Anything, AnyInteger, AnyText, AnyCondition, AnyKeyed),
    st.builds(Increment, Anything, AnyInteger, AnyCondition, AnyKeyed),
)
AnyCompare = st.builds(
    Compare,
    Anything,
    st.sampled_from(["value", "mod_revision", "create_revision", "version", "exists"]),
    st.sampled_from(["==", "!=", "<", ">"]),
    Anything | st.booleans() | AnyInteger,
)
AnyToken = st.builds(
    Token,
    AnyText,
    AnyText,
    st.lists(st.builds(Grant, st.sampled_from(["read", "write", "admin"]), Anything), max_size=3).map(tuple),
    Anything,
    Anything,
    st.tuples(AnyInteger, AnyInteger, AnyInteger),
    AnyInteger,
    AnyInteger,
    AnyInteger,
    AnyText,
)
AnyBranch = st.lists(AnyOperation | st.builds(Get, Anything), max_size=4).map(tuple)
AnyCommand = st.one_of(
    AnyOperation,
    st.builds(DeletePrefix, Anything, AnyInteger, AnyKeyed),
    st.builds(Transaction, st.lists(AnyCompare, max_size=3).map(tuple), AnyBranch, AnyBranch, AnyKeyed),
    st.builds(CreateToken, AnyToken, st.booleans(), AnyKeyed),
    st.builds(RevokeToken, AnyText, AnyKeyed),
)


@given(st.lists(st.tuples(st.integers(0, 2**63), AnyCommand), max_size=30))
def test_whatever_decodes_applies_and_survives_a_snapshot(entries: list[tuple[int, Command]]) -> None:
    machine = Machine()
    for index, (at_ms, command) in enumerate(entries, 1):
        log_time_ms, decoded = commands.decode_entry(commands.encode_entry(at_ms, [commands.encode(command)]))
        (one,) = decoded
        assert one == command
        machine.apply(index, log_time_ms, one)
    again = reloaded(machine)
    assert dump(again) == dump(machine)
    assert (again.state(), again.keys, again.bytes) == (machine.state(), machine.keys, machine.bytes)
    assert again.idempotency_bytes == machine.idempotency_bytes


def test_discarding_a_replaced_machine_spares_open_images() -> None:
    for opened in (True, False):
        machine = Machine()
        for n in range(50):
            machine.apply(n, 0, Put(b"%02d" % n, b"v", idempotency=Idempotency(b"c/%d" % (n + 1), b"")))
        image = machine.image_of_items() if opened else None
        machine.discard()
        assert machine.idempotency_records == 0
        assert machine.keys == (50 if opened else 0)
        if image is not None:
            assert sum(map(len, pages(image))) == 50


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 8)), max_size=200), st.integers(0, 200))
def test_expiry_goes_on_after_a_reload_as_it_would_have(keyed: list[tuple[int, int]], reload_at: int) -> None:
    machine, twin = Machine(), Machine()
    now_ms = 0
    for index, (wait_ms, who) in enumerate(keyed):
        now_ms += wait_ms
        name = b"c%d/%d" % (who, index + 1) if who % 2 else b"plain %d" % index
        command = Put(b"k%d" % who, b"", idempotency=Idempotency(name, b""))
        if index == reload_at:
            twin = reloaded(twin)
        machine.apply(index, now_ms, command)
        twin.apply(index, now_ms, command)
        assert machine._idempotency.due_ms == twin._idempotency.due_ms
    assert dump(machine) == dump(twin)
