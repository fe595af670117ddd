"""What a client can ask of a node, without a word of HTTP: deadlines, consistency, admission, idempotency.

- A read says how fresh it must be (`Freshness`); `reach` returns when this node's state is, or raises.
- A write is admitted or refused at once, within bounds on number and bytes. There is no await between the
  call of `write` and the hand-over to consensus, so writes of one caller are proposed in the order of its
  calls.
- What every request needs comes with a callback (`write_soon`, `reach_soon`), since a future and a task would
  cost more than the request; `write` and `reach` are the same with an await.
- At most one request under an idempotency key is on its way here; the second is told that its outcome is
  not known yet. Whatever was committed under a key is the state machine's to remember.

What it answers from is the state machine of this node, read on the loop's thread only.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from raftkv.errors import (
    BadRequest,
    Draining,
    InFlight,
    NoLeader,
    NoSuchMember,
    NotLeader,
    NotReady,
    Overloaded,
    RaftkvError,
    TooStale,
)
from raftkv.kv import record
from raftkv.kv.command import Append, Command, Idempotency, Put, encode
from raftkv.kv.image import Image
from raftkv.kv.machine import Machine, prefix_end
from raftkv.model import Applied, IdempotencyMismatch, Item, Membership
from raftkv.raft.membership import Change, Quorum, quorum_of
from raftkv.raft.status import Leadership, NodeStatus
from raftkv.room import Room
from raftkv.snapshot.codec import Chunk, Manifest

Consistency = Literal["linearizable", "stale"]
C = TypeVar("C", bound=Command)


class Consensus(Protocol):
    """The node as the service sees it; `raft/node.py` implements it."""

    @property
    def machine(self) -> Machine: ...

    @property
    def leadership(self) -> Leadership:
        """At hand, replaced when something in it changes: it is read for every answer."""
        ...

    def check_formed(self) -> None:
        """Raises NotReady before the node is part of a cluster: its empty state is no answer."""
        ...

    def propose_soon(
        self, command: Command, done: Callable[[Applied | RaftkvError], None], *, timeout_s: float
    ) -> object:
        """Raises, or calls `done` once, which must not raise."""
        ...

    def propose_all_soon(
        self,
        commands: Sequence[Command],
        done: Callable[[Sequence[Applied] | RaftkvError], None],
        *,
        timeout_s: float,
    ) -> object:
        """As `propose_soon`, for several with one fate."""
        ...

    def read_soon(self, done: Callable[[RaftkvError | None], None], *, timeout_s: float) -> None:
        """Raises, or calls `done` once, which must not raise."""
        ...

    async def wait_revision(self, revision: int, *, timeout_s: float) -> None: ...
    def status(self) -> NodeStatus: ...
    def staleness_ms(self) -> float: ...
    def drain(self) -> None: ...

    @property
    def publishes(self) -> bool:
        """Snapshots go to a store that the cluster shares: making one is the leader's."""
        ...

    async def create_snapshot(self) -> Manifest: ...
    async def snapshots(self) -> Sequence[Manifest]: ...
    async def snapshot(self, name: str) -> Manifest: ...
    async def snapshot_chunk(self, name: str, number: int) -> tuple[Chunk, bytes]: ...
    async def verify_snapshot(self, name: str) -> Manifest: ...
    async def delete_snapshot(self, name: str) -> None: ...
    async def transfer_leadership(self, to: str | None) -> None:
        """Returns when another member leads. Raises NotReady, TransferFailed: then this node leads on."""
        ...

    def plan_membership(self, change: Change) -> tuple[Membership, Membership, frozenset[str]]: ...
    async def change_membership(self, change: Change, *, timeout_s: float) -> Membership: ...


@dataclass(frozen=True, slots=True)
class Freshness:
    """How fresh a read must be. `min_revision` and `max_staleness_ms`: None is no demand."""

    consistency: Consistency = "linearizable"
    min_revision: int | None = None
    max_staleness_ms: int | None = None


LINEARIZABLE = Freshness()


@dataclass(frozen=True, slots=True)
class Range:
    """Keys with `prefix`, from `start` on and below `end` (None: no end)."""

    prefix: bytes = b""
    start: bytes = b""
    end: bytes | None = None
    delimiter: bytes = b""


@dataclass(frozen=True, slots=True)
class Folded:
    """Every key that shares this prefix, up to and with the delimiter, stands as one."""

    prefix: bytes


@dataclass(frozen=True, slots=True)
class RangePage:
    """`rows` in key order, as they were at `revision`. `cursor` is None at the end of the range."""

    revision: int
    rows: Sequence[Item | Folded]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Changed:
    """A change of membership: what must answer before and after it, and what does."""

    before: Quorum
    after: Quorum


class KVService:
    """Bounds are plain numbers; `name` is the node's own."""

    def __init__(
        self,
        consensus: Consensus,
        *,
        name: str,
        writes_in_flight_max: int = 10_000,
        write_bytes_in_flight_max: int = 64 << 20,
        reads_in_flight_max: int = 20_000,
        idempotency_bytes_max: int = 256 << 20,
        idempotency_records_max: int = 2_000_000,
        list_bytes_max: int = 8 << 20,
        exports_max: int = 4,
        room: Room | None = None,
        brings_token: bool = False,
    ) -> None:
        """`brings_token`: the node was given the first token, and is not ready before the cluster has one."""
        self.name = name
        self.consensus = consensus
        self.retiring = False
        self.draining = False
        self.writes_in_flight = 0
        self.write_bytes_in_flight = 0
        self.reads_in_flight = 0
        self.exports = 0
        self._writes_in_flight_max = writes_in_flight_max
        self._write_bytes_in_flight_max = write_bytes_in_flight_max
        self._reads_in_flight_max = reads_in_flight_max
        self._idempotency_bytes_max = idempotency_bytes_max
        self._idempotency_records_max = idempotency_records_max
        self._list_bytes_max = list_bytes_max
        self._exports_max = exports_max
        self.room = room or Room()
        self._brings_token = brings_token
        self._keys_in_flight: dict[bytes, bytes] = {}  # idempotency key to fingerprint

    # --- who leads ---------------------------------------------------------------------------------

    @property
    def machine(self) -> Machine:
        return self.consensus.machine

    @property
    def leadership(self) -> Leadership:
        return self.consensus.leadership

    @property
    def leads(self) -> bool:
        return self.consensus.leadership.role == "leader"

    def check_leads(self) -> None:
        """Raises NotLeader or NoLeader, with where to go; what a write learns before its body is read."""
        leadership = self.consensus.leadership
        if leadership.role == "leader":
            if self.draining:
                raise Draining("this node is shutting down and takes no more writes; try another node")
            return
        if leadership.leader is None or leadership.leader_url is None or leadership.leader == self.name:
            raise NoLeader("no leader is known to this node; nothing was written, try again shortly")
        raise NotLeader(
            f"{leadership.leader} leads; writes go to {leadership.leader_url}",
            leader=leadership.leader,
            leader_url=leadership.leader_url,
        )

    # --- writing -----------------------------------------------------------------------------------

    async def write(self, command: Command, *, timeout_s: float, size_bytes: int = 0) -> Applied:
        """As `write_soon`, and raises what that calls `done` with. One that is cancelled may still happen."""
        future: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        write = self.write_soon(command, _settle(future), timeout_s=timeout_s, size_bytes=size_bytes)
        try:
            return await future
        finally:
            if write is not None:
                write.leave()

    def write_soon(
        self,
        command: Command,
        done: Callable[[Applied | RaftkvError], None],
        *,
        timeout_s: float,
        size_bytes: int = 0,
    ) -> _Write | None:
        """Proposes the command. `done`, which must not raise, is called once: with its result, or with
        CommitTimeout, LeaderChanged (unknown), NotLeader, NoLeader, Overloaded (not applied).

        Raises what it is refused with at once: NotLeader, NoLeader, NotReady, Overloaded, Draining (not
        applied), InFlight (unknown), NoRoom (not applied).
        """
        self.check_leads()
        keyed = command.idempotency
        if keyed is not None:
            self._check_room_for_outcomes()
            first = self._keys_in_flight.get(keyed.key)
            if first is not None and first != keyed.fingerprint:
                done(Applied(0, IdempotencyMismatch()))
                return None
            if first is not None:
                raise InFlight(
                    "the first request under this idempotency key is still on its way; "
                    "ask again for its outcome"
                )
        self._check_room_for_write(size_bytes)
        room = self.room
        if room.bounded and not room.fits((command,), self.machine, self.write_bytes_in_flight, size_bytes):
            raise room.refusal(self.machine)
        write = _Write(self, keyed, size_bytes, done)
        try:
            self.consensus.propose_soon(command, write.ended, timeout_s=timeout_s)
        except BaseException:
            write.leave()
            raise
        return write

    def write_all_soon(
        self,
        commands: Sequence[Command],
        done: Callable[[Sequence[Applied] | RaftkvError], None],
        *,
        timeout_s: float,
        size_bytes: int,
    ) -> int:
        """As `write_soon`, for as many of these commands as can go on together, from the first on: how many
        that is. 0: the first is for `write_soon`, since its idempotency key is on its way already. `done`
        gets their results in their order, or what befell all of them. `size_bytes` is of all of them.

        Raises what the first is refused with at once, as `write_soon` does, but for InFlight.
        """
        self.check_leads()
        self._check_room_for_write(size_bytes)
        count = self._with_keys_of_their_own(commands, self._writes_in_flight_max - self.writes_in_flight)
        if not count:
            return 0
        if self.room.bounded:
            count = self.room.fits(commands[:count], self.machine, self.write_bytes_in_flight, size_bytes)
            if not count:
                raise self.room.refusal(self.machine)
        taken = commands
        if count < len(commands):
            taken = commands[:count]
            size_bytes = sum(map(_size_of, taken))
        keys = [command.idempotency for command in taken if command.idempotency is not None]
        if keys:
            self._check_room_for_outcomes()

        def leave() -> None:
            self.writes_in_flight -= count
            self.write_bytes_in_flight -= size_bytes
            for each in keys:
                del self._keys_in_flight[each.key]

        def ended(outcome: Sequence[Applied] | RaftkvError) -> None:
            leave()
            done(outcome)

        self.writes_in_flight += count
        self.write_bytes_in_flight += size_bytes
        for each in keys:
            self._keys_in_flight[each.key] = each.fingerprint
        try:
            self.consensus.propose_all_soon(taken, ended, timeout_s=timeout_s)
        except BaseException:
            leave()
            raise
        return count

    def _with_keys_of_their_own(self, commands: Sequence[Command], most: int) -> int:
        """How many of the first commands have no idempotency key, or one that is not on its way."""
        known = self._keys_in_flight
        seen: set[bytes] = set()
        for number, command in enumerate(commands):
            if number == most:
                return number
            if command.idempotency is not None:
                key = command.idempotency.key
                if key in known or key in seen:
                    return number
                seen.add(key)
        return len(commands)

    def _check_room_for_write(self, size_bytes: int) -> None:
        if self.writes_in_flight >= self._writes_in_flight_max:
            raise Overloaded(
                f"{self.writes_in_flight} writes wait for their commit already "
                f"(--writes-in-flight-max {self._writes_in_flight_max}); try again shortly"
            )
        if (
            self.write_bytes_in_flight + size_bytes > self._write_bytes_in_flight_max
            and self.writes_in_flight
        ):
            raise Overloaded(
                f"writes of {self.write_bytes_in_flight} bytes wait for their commit already "
                f"(--write-bytes-in-flight-max {self._write_bytes_in_flight_max}); try again shortly"
            )

    def _check_room_for_outcomes(self) -> None:
        machine = self.machine
        if (
            machine.idempotency_bytes > self._idempotency_bytes_max
            or machine.idempotency_records > self._idempotency_records_max
        ):
            raise Overloaded(
                f"outcomes of {machine.idempotency_records} keyed writes take "
                f"{machine.idempotency_bytes} bytes (--idempotency-bytes-max {self._idempotency_bytes_max}); "
                "one more would shorten the promise to keep each for 2 minutes. Try again shortly, or use "
                "keys of the form <client>/<n>"
            )

    # --- reading -----------------------------------------------------------------------------------

    async def reach(self, freshness: Freshness, *, timeout_s: float) -> None:
        """Returns when this node's state is as fresh as asked.

        Raises NoLeader, NotReady, TooStale, Overloaded.
        """
        self.consensus.check_formed()
        if freshness.min_revision is not None and self.machine.revision < freshness.min_revision:
            self._check_room_for_read()
            self.reads_in_flight += 1
            try:
                await self._wait_revision(freshness.min_revision, timeout_s)
            finally:
                self.reads_in_flight -= 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self.reach_soon(freshness, _settle(future), timeout_s=timeout_s):
            await future

    def reach_soon(
        self, freshness: Freshness, done: Callable[[RaftkvError | None], None], *, timeout_s: float
    ) -> bool:
        """True: this node's state is as fresh as asked. False: it will be when `done(None)` is called, or
        `done` gets NoLeader, NotReady or TooStale. Does not wait for `min_revision`.

        Raises NoLeader, NotReady, TooStale, Overloaded.
        """
        consensus = self.consensus
        consensus.check_formed()
        if freshness.consistency == "stale":
            self._check_staleness(freshness)
            return True
        self._check_room_for_read()
        self.reads_in_flight += 1

        def ended(error: RaftkvError | None) -> None:
            self.reads_in_flight -= 1
            done(error)

        try:
            consensus.read_soon(ended, timeout_s=timeout_s)
        except BaseException:
            self.reads_in_flight -= 1
            raise
        return False

    def _check_room_for_read(self) -> None:
        if self.reads_in_flight >= self._reads_in_flight_max:
            raise Overloaded(
                f"{self.reads_in_flight} reads wait already "
                f"(--reads-in-flight-max {self._reads_in_flight_max}); try again shortly"
            )

    async def _wait_revision(self, revision: int, timeout_s: float) -> None:
        try:
            await self.consensus.wait_revision(revision, timeout_s=timeout_s)
        except TimeoutError as error:
            raise NotReady(
                f"this node had applied revision {self.machine.revision} after {timeout_s:g} s; "
                f"min_revision={revision} was asked for"
            ) from error

    def _check_staleness(self, freshness: Freshness) -> None:
        if freshness.max_staleness_ms is None:
            return
        staleness_ms = self.consensus.staleness_ms()
        if staleness_ms > freshness.max_staleness_ms:
            raise TooStale(
                f"this node last heard from a leader {staleness_ms:.0f} ms ago; "
                f"max_staleness_ms={freshness.max_staleness_ms} was asked for"
            )

    def page(self, wanted: Range, *, limit: int, cursor: str | None) -> RangePage:
        """One page of the range as it is now: at most `limit` rows, and ended early by their bytes.

        The cursor is good for the same range only; pages that follow show what the store holds then.
        Raises BadRequest for a cursor that is none of ours.
        """
        lower, upper = _bounds(wanted)
        if cursor is not None:
            lower = max(lower, _position(cursor, wanted))
        rows, following = (
            self._fold(lower, upper, limit, wanted) if wanted.delimiter else self._rows(lower, upper, limit)
        )
        return RangePage(
            self.machine.revision, rows, None if following is None else _cursor(following, wanted)
        )

    def _rows(
        self, lower: bytes, upper: bytes | None, limit: int
    ) -> tuple[list[Item | Folded], bytes | None]:
        page = self.machine.scan_page(lower, upper, limit, self._list_bytes_max)
        rows: list[Item | Folded] = list(page.items())
        return rows, self._following(page.keys[-1] + b"\0", upper) if rows else None

    def _following(self, lower: bytes, upper: bytes | None) -> bytes | None:
        """`lower` if any key stands from there on."""
        return lower if len(self.machine.scan_page(lower, upper, 1)) else None

    def _fold(
        self, lower: bytes, upper: bytes | None, limit: int, wanted: Range
    ) -> tuple[list[Item | Folded], bytes | None]:
        """As `_rows`; a key with the delimiter behind the prefix stands for all that share it up to there.

        One seek a folded prefix, so the cost does not grow with what is folded away.
        """
        rows: list[Item | Folded] = []
        size = 0
        at = len(wanted.prefix)
        while len(rows) < limit and size < self._list_bytes_max:
            page = self.machine.scan_page(lower, upper, 1)
            if not page:
                return rows, None
            key = page.keys[0]
            cut = key.find(wanted.delimiter, at)
            if cut < 0:
                rows.append(record.item(key, page.records[0]))
                size += len(key) + len(page.records[0])
                lower = key + b"\0"
                continue
            folded = key[: cut + len(wanted.delimiter)]
            rows.append(Folded(folded))
            size += len(folded)
            following = prefix_end(folded)
            if following is None:
                return rows, None
            lower = following
        return rows, self._following(lower, upper)

    def check_room_for_export(self) -> None:
        """Raises Overloaded at the bound on images that clients hold open."""
        if self.exports >= self._exports_max:
            raise Overloaded(
                f"{self.exports} exports are under way already (--exports-max {self._exports_max}); "
                "try again when one has ended"
            )

    @contextmanager
    def export(self, prefix: bytes) -> Iterator[Image]:
        """The image of this moment. Raises Overloaded."""
        self.check_room_for_export()
        self.exports += 1
        image = self.machine.image_of_items(prefix)
        try:
            yield image
        finally:
            image.close()
            self.exports -= 1

    # --- the node ----------------------------------------------------------------------------------

    @property
    def lacks_token(self) -> bool:
        """Nobody is let in yet, and this node was given the token that is to change that."""
        return self._brings_token and not self.machine.tokens.count

    async def check_ready(self, *, timeout_s: float) -> None:
        """Returns when a linearizable read succeeds here, and the node takes requests and lets somebody in;
        raises why not."""
        if self.retiring:
            raise Draining("the node is shutting down")
        status = self.consensus.status()
        if not status.ready:
            raise NotReady(status.ready_reason or "the node is not ready yet")
        await self.reach(LINEARIZABLE, timeout_s=timeout_s)
        if self.lacks_token:
            raise NotReady(
                "the cluster has no token yet, so nobody is let in: its leader makes the first one, "
                "where it was started with --bootstrap-token-file as well"
            )

    async def change_membership(self, change: Change, *, dry_run: bool, timeout_s: float) -> Changed:
        """What the change makes of the members; with `dry_run` nothing is changed, and what would be refused
        is refused all the same.

        Raises NotLeader, NoLeader, NotReady, Draining, ChangeInFlight, QuorumAtRisk, NotCaughtUp,
        TransferFailed, NoSuchMember, MemberExists, BadRequest (not applied); CommitTimeout, LeaderChanged
        (unknown).
        """
        self.check_leads()
        before, after, reachable = self.consensus.plan_membership(change)
        if not dry_run:
            after = await self.consensus.change_membership(change, timeout_s=timeout_s)
        return Changed(quorum_of(before, reachable), quorum_of(after, reachable))

    async def transfer_leadership(self, to: str | None) -> Leadership:
        """Who leads once it is done; None: whoever holds most of the log takes over.

        Raises NotLeader, NoLeader, NotReady, Draining, NoSuchMember, TransferFailed.
        """
        self.check_leads()
        names = [peer.name for peer in self.consensus.status().peers]
        if to is not None and to not in names:
            raise NoSuchMember(f"the cluster has no member {to}; it has {', '.join(names)}")
        if to != self.name:
            await self.consensus.transfer_leadership(to)
        return self.leadership

    def retire(self) -> None:
        """Is not ready from now on, and still answers everything."""
        self.retiring = True

    def drain(self) -> None:
        """Takes no more writes; what is on its way is still answered. Idempotent."""
        self.retire()
        if not self.draining:
            self.draining = True
            self.consensus.drain()


class _Write:
    """The place of a write among those in flight: counted from here on, until it ends or is left."""

    __slots__ = ("_done", "_idempotency", "_service", "_size_bytes")

    def __init__(
        self,
        service: KVService,
        idempotency: Idempotency | None,
        size_bytes: int,
        done: Callable[[Applied | RaftkvError], None],
    ) -> None:
        self._service: KVService | None = service
        self._idempotency = idempotency
        self._size_bytes = size_bytes
        self._done = done
        service.writes_in_flight += 1
        service.write_bytes_in_flight += size_bytes
        if idempotency is not None:
            service._keys_in_flight[idempotency.key] = idempotency.fingerprint

    def ended(self, outcome: Applied | RaftkvError) -> None:
        self.leave()
        self._done(outcome)

    def leave(self) -> None:
        """Idempotent."""
        service, self._service = self._service, None
        if service is None:
            return
        service.writes_in_flight -= 1
        service.write_bytes_in_flight -= self._size_bytes
        if self._idempotency is not None:
            del service._keys_in_flight[self._idempotency.key]


def _size_of(command: Command) -> int:
    """Of one operation: what counts as in flight."""
    match command:
        case Put(key=key, value=value) | Append(key=key, value=value):
            return len(key) + len(value)
        case _:
            return 0


def _settle(future: asyncio.Future[Any]) -> Callable[[Any], None]:
    """A callback that ends the future, unless whoever waited has gone."""

    def done(result: Any) -> None:
        if future.done():
            return
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    return done


# --- idempotency -----------------------------------------------------------------------------------------


def keyed(command: C, key: bytes, extra: bytes = b"") -> C:
    """The command under an idempotency key, with the fingerprint of its meaning.

    The meaning is the command without what a node's configuration put into it, and `extra`: what the
    client asked for and the command does not show.
    """
    meaning: Command = command
    if isinstance(meaning, Append):
        meaning = msgspec.structs.replace(meaning, value_bytes_max=0)
    fingerprint = hashlib.blake2b(encode(meaning) + extra, digest_size=16).digest()
    return msgspec.structs.replace(command, idempotency=Idempotency(key, fingerprint))


# --- ranges and their cursors ----------------------------------------------------------------------------

_CURSOR_VERSION = 1


def _bounds(wanted: Range) -> tuple[bytes, bytes | None]:
    """The range as `lower <= key < upper`; an upper of None has no end."""
    upper = prefix_end(wanted.prefix)
    if wanted.end is not None:
        upper = wanted.end if upper is None else min(upper, wanted.end)
    return max(wanted.prefix, wanted.start), upper


def _cursor(position: bytes, wanted: Range) -> str:
    """Opaque to clients: the position to go on from, and a mark of the range that it belongs to."""
    raw = msgspec.msgpack.encode((_CURSOR_VERSION, position, _mark(wanted)))
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _position(cursor: str, wanted: Range) -> bytes:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        version, position, mark = msgspec.msgpack.decode(raw, type=tuple[int, bytes, bytes])
    except (ValueError, binascii.Error) as error:
        raise BadRequest(
            f"query parameter cursor: {cursor[:80]!r} is not a cursor; "
            "allowed is the next_cursor of the page before"
        ) from error
    if version != _CURSOR_VERSION or mark != _mark(wanted):
        raise BadRequest(
            "query parameter cursor: it belongs to another range; allowed is the next_cursor of a page with "
            "the same prefix, start, end and delimiter"
        )
    return position


def _mark(wanted: Range) -> bytes:
    parts = (wanted.prefix, wanted.start, wanted.end, wanted.delimiter)
    return hashlib.blake2b(msgspec.msgpack.encode(parts), digest_size=8).digest()
