"""The replicated state machine: items in key order, the outcomes of keyed commands, and tokens. PURE.

- Deterministic: no clock, no randomness, no order that hangs on hashing; time comes in with the entries.
- Total: `apply` never raises on a command that `command.decode_entry` gave out. What can go wrong is a
  result (`PreconditionFailed`, `NotANumber`, …).
- Every write that changes something gets the next revision, a transaction's writes one together. Failed
  conditions, deletes of absent keys and transactions without an effect get none.
- The cost of one command does not grow with the number of keys.
- `state_hash` sums up every change there ever was (`kv.history`): replicas compare theirs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import assert_never

import msgspec

from raftkv.kv import record
from raftkv.kv.command import (
    Append,
    Command,
    Compare,
    Condition,
    CreateToken,
    Delete,
    DeletePrefix,
    Get,
    Increment,
    Operation,
    Put,
    RevokeToken,
    TokenCommand,
    Transaction,
)
from raftkv.kv.history import GENESIS, Hash, History
from raftkv.kv.idempotency import IdempotencyTable, Known
from raftkv.kv.image import Image, MachineState, Page, Section
from raftkv.kv.record import Key, Record
from raftkv.kv.table import Block, Table
from raftkv.kv.tokens import TOKENS_MAX, TokenTable
from raftkv.model import (
    DEFAULT_CONTENT_TYPE,
    Appended,
    Applied,
    Deleted,
    Got,
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

OperationResult = Written | Deleted | Appended | Incremented | Got
OperationFailure = PreconditionFailed | NotANumber | ResultTooLarge

INTEGER_MIN = -(1 << 63)
INTEGER_MAX = (1 << 63) - 1
_INTEGER = re.compile(rb"-?[0-9]{1,32}")


class Machine:
    """One thread applies and reads; `load` may run on another one before the machine is handed over."""

    __slots__ = (
        "_history",
        "_idempotency",
        "_items",
        "_undo",
        "applied_index",
        "log_time_ms",
        "revision",
        "tokens",
    )

    def __init__(self, state_hash: Hash = GENESIS) -> None:
        self._history = History(state_hash)
        self._items = Table(self._history.changes)
        self._idempotency = IdempotencyTable(self._history.changes)
        self.tokens = TokenTable(self._history.changes)  # to be read; commands change them
        self._undo: list[tuple[Key, Record | None]] | None = None  # while a transaction runs
        self.revision = 0
        self.log_time_ms = 0
        self.applied_index = 0

    def has_outcome(self, key: Key) -> bool:
        """Whether a command under this idempotency key would be answered and not done."""
        return self._idempotency.has(key)

    # --- what it holds -----------------------------------------------------------------------------

    @property
    def keys(self) -> int:
        return self._items.count

    @property
    def bytes(self) -> int:
        """Of keys, values, and content types other than the default."""
        return self._items.bytes - record.HEAD_BYTES * self._items.count

    @property
    def idempotency_records(self) -> int:
        """Outcomes kept; the leader takes no keyed writes beyond its bound on them."""
        return self._idempotency.records

    @property
    def idempotency_bytes(self) -> int:
        """Memory that they take, estimated."""
        return self._idempotency.memory_bytes

    # --- reading -----------------------------------------------------------------------------------

    def lookup(self, key: Key) -> Record | None:
        """The key's record, for the functions of `kv.record`: the cheapest read there is."""
        return self._items.get(key)

    def get(self, key: Key) -> Item | None:
        found = self._items.get(key)
        return None if found is None else record.item(key, found)

    def scan(self, start: Key, end: Key | None, limit: int) -> list[Item]:
        """The first `limit` items with `start <= key < end` (None: no end), in order of key."""
        return list(self.scan_page(start, end, limit).items())

    def scan_page(self, start: Key, end: Key | None, limit: int, bytes_max: int | None = None) -> Page:
        """As `scan`, without building items; ends early with the record that reaches `bytes_max`.

        To go on, start at the last key followed by a zero byte. An empty page is the end.
        """
        keys, records, _ = self._items.read(start, end, limit, bytes_max)
        return Page(Section.ITEMS, keys, records)

    # --- images and loading ------------------------------------------------------------------------

    def state(self) -> MachineState:
        return MachineState(
            self.applied_index, self.revision, self.log_time_ms, self._idempotency.sequence, self.state_hash
        )

    @property
    def state_hash(self) -> Hash:
        """Of every change up to `applied_index`; ask between entries. Empty where it is not known, which is
        after loading a snapshot that has none."""
        if self._history.changes:
            self._seal()
        return self._history.hash

    def image(self) -> Image:
        """Everything, as it is now. Costs nothing to take; close it."""
        views = [(section, table.view()) for section, table in self._sections()]
        return Image(self.state(), views, sum(table.count for _, table in self._sections()))

    def image_of_items(self, prefix: Key = b"") -> Image:
        """The items with that prefix, as they are now. Costs nothing to take; close it."""
        view = self._items.view(prefix, prefix_end(prefix))
        return Image(self.state(), [(Section.ITEMS, view)], self._items.count)

    @classmethod
    def load(cls, state: MachineState, pages: Iterable[Page]) -> Machine:
        """The machine whose image had that state and those pages, in that order.

        Raises ValueError where the pages can't be an image's.
        """
        machine = cls(state.hash)
        tables = dict(machine._sections())
        for page in pages:
            tables[page.section].extend(page.keys, page.records)
        machine.applied_index = state.index
        machine.revision = state.revision
        machine.log_time_ms = state.log_time_ms
        machine._idempotency.sequence = state.sequence
        try:
            machine._idempotency.look()
        except (struct.error, msgspec.MsgspecError, TypeError, IndexError) as error:
            raise ValueError(f"the queue of outcomes begins with what is none: {error}") from error
        machine.tokens.check()
        return machine

    def discard(self) -> None:
        """Lets go of a machine that another one has replaced, on a worker thread. Without it, whoever drops
        the last reference is held while everything is freed: 0.1 s a million keys. Tables of which an image
        is still open are left to that image."""
        for _, table in self._sections():
            if not table.viewed:
                table.clear()

    def _sections(self) -> list[tuple[Section, Table]]:
        idempotency = self._idempotency
        return [
            (Section.ITEMS, self._items),
            (Section.PLAIN, idempotency.plain),
            (Section.CLIENTS, idempotency.clients),
            (Section.OUTCOMES, idempotency.outcomes),
            (Section.QUEUE, idempotency.queue),
            (Section.TOKENS, self.tokens.table),
        ]

    # --- applying ----------------------------------------------------------------------------------

    def advance(self, index: int) -> None:
        """An entry that carries no command (no-op, membership) was applied."""
        if self._history.changes:
            self._seal()
        self.applied_index = index

    def apply(self, index: int, log_time_ms: int, command: Command) -> Applied:
        """Applies one command of the entry at `index`; commands of one entry share index and time."""
        if index != self.applied_index:
            if self._history.changes:
                self._seal()
            self.applied_index = index
        if log_time_ms > self.log_time_ms:
            self.log_time_ms = log_time_ms
        if self.log_time_ms >= self._idempotency.due_ms:
            self._idempotency.expire(self.log_time_ms)
        keyed = command.idempotency
        if keyed is None or not keyed.key:
            return Applied(index, self._run(command))
        found = self._idempotency.find(keyed.key, keyed.fingerprint, self.log_time_ms)
        if isinstance(found, Known):
            return Applied(index, found.result, found.replayed)
        result = self._run(command)
        self._idempotency.keep(found, keyed.fingerprint, result, self.log_time_ms)
        return Applied(index, result)

    def _seal(self) -> None:
        """The changes of one entry are complete."""
        self._history.seal(self.applied_index, self.revision, self.log_time_ms)

    def _run(self, command: Command) -> Result:
        if isinstance(command, Transaction):
            return self._transaction(command)
        if isinstance(command, DeletePrefix):
            return self._delete_prefix(command)
        if isinstance(command, TokenCommand):
            return self._change_tokens(command)
        return self._write(command, self.revision + 1)

    def _write(
        self, operation: Put | Delete | Append | Increment, revision: int
    ) -> Written | Deleted | Appended | Incremented | OperationFailure:
        """Does one operation; what it changes gets `revision`, which then is the store's."""
        block = self._items.locate(operation.key)
        old = block.get(operation.key)
        condition = operation.condition
        if condition is not None and not _holds(condition, old):
            return PreconditionFailed(0 if old is None else record.mod_revision(old))
        if isinstance(operation, Put):
            return self._put(block, operation, old, revision)
        if isinstance(operation, Delete):
            return self._delete(operation, old, revision)
        if isinstance(operation, Append):
            return self._append(block, operation, old, revision)
        return self._increment(block, operation, old, revision)

    def _put(self, block: Block, put: Put, old: Record | None, revision: int) -> Written:
        key = put.key
        if old is None:
            self._store(block, key, None, record.pack(revision, revision, 1, put.content_type, put.value))
            self.revision = revision
            return Written(revision, True)
        created, _, version = record.revisions(old)
        self._store(block, key, old, record.pack(created, revision, version + 1, put.content_type, put.value))
        self.revision = revision
        return Written(revision, False, record.item(key, old) if put.return_previous else None)

    def _delete(self, delete: Delete, old: Record | None, revision: int) -> Deleted:
        if old is None:
            return Deleted(self.revision, 0)
        self._remove(delete.key)
        self.revision = revision
        previous = record.item(delete.key, old) if delete.return_previous else None
        return Deleted(revision, 1, previous=previous)

    def _append(
        self, block: Block, append: Append, old: Record | None, revision: int
    ) -> Appended | ResultTooLarge:
        size = len(append.value) + (0 if old is None else record.value_length(old))
        if size > append.value_bytes_max:
            return ResultTooLarge(size, append.value_bytes_max)
        if old is None:
            new = record.pack(revision, revision, 1, append.content_type, append.value)
        else:
            new = record.replaced(old, revision, record.value(old) + append.value)
        self._store(block, append.key, old, new)
        self.revision = revision
        return Appended(revision, size)

    def _increment(
        self, block: Block, increment: Increment, old: Record | None, revision: int
    ) -> Incremented | NotANumber:
        current = 0
        if old is not None:
            text = record.value(old)
            if not _INTEGER.fullmatch(text) or not INTEGER_MIN <= int(text) <= INTEGER_MAX:
                return NotANumber(
                    f"the value ({len(text)} bytes) is not a decimal integer of 64 bits:"
                    " an optional minus sign and digits, nothing else"
                )
            current = int(text)
        total = current + increment.by
        if not INTEGER_MIN <= total <= INTEGER_MAX:
            return NotANumber(f"{current} + {increment.by} does not fit into 64 bits")
        text = b"%d" % total
        if old is None:
            new = record.pack(revision, revision, 1, DEFAULT_CONTENT_TYPE, text)
        else:
            new = record.replaced(old, revision, text)
        self._store(block, increment.key, old, new)
        self.revision = revision
        return Incremented(revision, total)

    def _delete_prefix(self, command: DeletePrefix) -> Deleted:
        end = prefix_end(command.prefix)
        deleted = self._items.delete_first(command.prefix, end, command.limit)
        if deleted:
            self.revision += 1
        return Deleted(self.revision, deleted, more=bool(self._items.read(command.prefix, end, 1)[0]))

    def _change_tokens(
        self, command: CreateToken | RevokeToken
    ) -> TokenCreated | TokenRevoked | TokenRefused:
        tokens = self.tokens
        if isinstance(command, CreateToken):
            if command.only_first and tokens.count:
                return TokenRefused("not_first")
            if tokens.get(command.token.id) is not None:
                return TokenRefused("exists")
            if tokens.count >= TOKENS_MAX:
                return TokenRefused("too_many")
            tokens.set(command.token)
            self.revision += 1
            return TokenCreated(self.revision)
        token = tokens.get(command.id)
        if token is None:
            return TokenRefused("missing")
        if token.rules_everything and sum(each.rules_everything for each in tokens) == 1:
            return TokenRefused("last_admin")
        tokens.delete(command.id)
        self.revision += 1
        return TokenRevoked(self.revision)

    def _transaction(self, transaction: Transaction) -> TransactionDone | OperationFailure:
        before = self.revision
        succeeded = all(_compares(compare, self._items.get(compare.key)) for compare in transaction.compare)
        responses: list[OperationResult] = []
        self._undo = []
        for operation in transaction.success if succeeded else transaction.failure:
            response = self._operate(operation, before + 1)
            if isinstance(response, OperationFailure):
                self._roll_back(before)
                return response
            responses.append(response)
        self._undo = None
        return TransactionDone(succeeded, self.revision, tuple(responses))

    def _operate(self, operation: Operation, revision: int) -> OperationResult | OperationFailure:
        if isinstance(operation, Get):
            return Got(self.get(operation.key))
        return self._write(operation, revision)

    def _roll_back(self, revision: int) -> None:
        undo, self._undo = self._undo, None
        for key, old in reversed(undo or []):
            if old is None:
                self._items.delete(key)
            else:
                self._items.set(key, old)
        self.revision = revision

    def _store(self, block: Block, key: Key, old: Record | None, new: Record) -> None:
        if self._undo is not None:
            self._undo.append((key, old))
        self._items.store(block, key, old, new)

    def _remove(self, key: Key) -> None:
        old = self._items.delete(key)
        if self._undo is not None:
            self._undo.append((key, old))


def prefix_end(prefix: bytes) -> bytes | None:
    """The smallest key above every key with the prefix; None where there is none (all bytes 0xff, or empty).

    `scan(prefix, prefix_end(prefix), …)` is the range of the prefix.
    """
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else None


def _holds(condition: Condition, old: Record | None) -> bool:
    if condition.exists is not None and condition.exists != (old is not None):
        return False
    return condition.revision is None or condition.revision == (
        0 if old is None else record.mod_revision(old)
    )


def _compares(compare: Compare, found: Record | None) -> bool:
    actual: bytes | bool | int
    match compare.target:
        case "value":
            if found is None:
                return compare.operator == "!="
            actual = record.value(found)
        case "exists":
            actual = found is not None
        case "create_revision":
            actual = 0 if found is None else record.revisions(found)[0]
        case "mod_revision":
            actual = 0 if found is None else record.revisions(found)[1]
        case "version":
            actual = 0 if found is None else record.revisions(found)[2]
        case _:
            assert_never(compare.target)
    expected = compare.value
    if type(expected) is not type(actual):
        return compare.operator == "!="  # what is of another type is different, and has no order
    match compare.operator:
        case "==":
            return actual == expected
        case "!=":
            return actual != expected
        case "<":
            return actual < expected  # type: ignore[operator]  # of one type, as checked above
        case ">":
            return actual > expected  # type: ignore[operator]
        case _:
            assert_never(compare.operator)
