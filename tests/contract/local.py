"""A node's consensus without a cluster: commands are applied at once to a real state machine.

Stands in for `raft/node.py` where a test is about HTTP. What a cluster does to a node (another leader, no
leader, a write that never commits) is set by hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from raftkv.errors import (
    CommitTimeout,
    NoLeader,
    NotCaughtUp,
    NotLeader,
    NotReady,
    RaftkvError,
    SnapshotMissing,
    TransferFailed,
)
from raftkv.kv.command import Command, decode_entry, encode, encode_entry
from raftkv.kv.machine import Machine
from raftkv.model import Applied, Member, Membership
from raftkv.raft.membership import Change, Promote, changed, check_quorum
from raftkv.raft.status import (
    ArchiveStatus,
    JournalStatus,
    Leadership,
    NodeStatus,
    PeerStatus,
    SnapshotStatus,
)
from raftkv.snapshot.codec import Chunk, Manifest
from raftkv.snapshot.loader import stored_chunk
from raftkv.snapshot.store import Reader

NAMES = ("n1", "n2", "n3")


class LocalConsensus:
    """Leads from the start. `hold` keeps proposals waiting until `release`; `read_error` fails reads."""

    def __init__(self, name: str = "n1", url: str = "http://127.0.0.1:8400") -> None:
        self.machine = Machine()
        self.leadership = Leadership("leader", 1, name, url)
        self.name = name
        self.ready = True
        self.formed = True
        self.started = True
        self.drained = False
        self.staleness = 0.0
        self.read_error: Exception | None = None
        self.propose_error: Exception | None = None
        self.log_time_ms = 0
        self.proposed: list[Command] = []
        members = tuple(Member(each, f"10.0.0.{each[1:]}:1", f"http://10.0.0.{each[1:]}") for each in NAMES)
        self.membership = Membership("c" * 32, members, tuple((each, each * 16) for each in NAMES))
        self._go_on = asyncio.Event()
        self._go_on.set()
        self._applied = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._snapshots: list[Manifest] = []
        self.reader: Reader | None = None  # of snapshots that have bytes
        self.publishes = False
        self.archive: ArchiveStatus | None = None

    # --- set by hand -------------------------------------------------------------------------------

    def follow(self, leader: str | None, url: str | None) -> None:
        role = "candidate" if leader is None else "follower"
        self.leadership = Leadership(role, self.leadership.term + 1, leader, url)  # type: ignore[arg-type]

    def hold(self) -> None:
        self._go_on.clear()

    def release(self) -> None:
        self._go_on.set()

    # --- what the service asks ---------------------------------------------------------------------

    def check_formed(self) -> None:
        if not self.formed:
            raise NotReady("the cluster has not formed yet")

    def propose_soon(
        self, command: Command, done: Callable[[Applied | RaftkvError], None], *, timeout_s: float
    ) -> None:
        leadership = self.leadership
        if self.propose_error is not None:
            raise self.propose_error
        if leadership.role != "leader":
            if leadership.leader is None or leadership.leader_url is None:
                raise NoLeader("no leader is known")
            raise NotLeader("follows", leader=leadership.leader, leader_url=leadership.leader_url)
        self.proposed.append(command)
        self._start(self._commit(command, timeout_s), done)

    def propose_all_soon(
        self,
        commands: Sequence[Command],
        done: Callable[[Sequence[Applied] | RaftkvError], None],
        *,
        timeout_s: float,
    ) -> None:
        """In one entry, as far as anyone can tell: all are applied in one step."""
        results: list[Applied] = []

        def one_done(outcome: Applied | RaftkvError) -> None:
            if isinstance(outcome, RaftkvError):
                waiting.clear()
                done(outcome)
                return
            results.append(outcome)
            waiting.pop()
            if not waiting:
                done(results)

        waiting = list(commands)
        for command in commands:
            self.propose_soon(command, one_done, timeout_s=timeout_s)

    async def _commit(self, command: Command, timeout_s: float) -> Applied:
        try:
            async with asyncio.timeout(timeout_s):
                await self._go_on.wait()
        except TimeoutError:
            raise CommitTimeout(
                f"the write was not committed within {timeout_s:g} s; it may yet be"
            ) from None
        _, (decoded,) = decode_entry(encode_entry(self.log_time_ms, [encode(command)]))
        applied = self.machine.apply(self.machine.applied_index + 1, self.log_time_ms, decoded)
        async with self._applied:
            self._applied.notify_all()
        return applied

    def read_soon(self, done: Callable[[RaftkvError | None], None], *, timeout_s: float) -> None:
        if isinstance(self.read_error, TimeoutError):
            self._start(self._unconfirmed(timeout_s), done)
            return
        if self.read_error is not None:
            raise self.read_error
        if self.leadership.leader is None:
            raise NoLeader("no leader is known")
        self._start(self._round(), done)

    async def _round(self) -> None:
        for _ in range(20):  # a round to a majority takes a while, and others go on meanwhile
            await asyncio.sleep(0)

    async def _unconfirmed(self, timeout_s: float) -> None:
        raise NotReady(f"no majority within {timeout_s:g} s; consistency=stale answers from this node alone")

    def _start(self, work: Coroutine[Any, Any, Any], done: Callable[[Any], None]) -> None:
        async def run() -> None:
            try:
                outcome = await work
            except RaftkvError as error:
                outcome = error
            done(outcome)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_revision(self, revision: int, *, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s), self._applied:
            await self._applied.wait_for(lambda: self.machine.revision >= revision)

    def status(self) -> NodeStatus:
        leadership, index = self.leadership, self.machine.applied_index
        me = PeerStatus(self.name, "127.0.0.1:1", "http://127.0.0.1:1", leadership.role, index, 0, True, 0)
        others = [replace(me, name=name, role="follower", reachable=name == "n2") for name in ("n2", "n3")]
        return NodeStatus(
            name=self.name,
            cluster_id="c" * 32,
            role=leadership.role,
            term=leadership.term,
            leader=leadership.leader,
            leader_url=leadership.leader_url,
            commit_index=index,
            applied_index=index,
            journal=JournalStatus(1, index, 1, index, 0, 1),
            snapshot=SnapshotStatus(None, 0, 0, 0),
            peers=(me, *others),
            ready=self.ready,
            ready_reason="" if self.ready else "it waits for n2 and n3",
            started=self.started,
            archive=self.archive,
        )

    def staleness_ms(self) -> float:
        return self.staleness

    def drain(self) -> None:
        self.drained = True

    async def create_snapshot(self) -> Manifest:
        await self._go_on.wait()
        if self.read_error is not None:
            raise NotReady("the store is away")
        index = self.machine.applied_index
        made = Manifest(
            id=f"s{index}",
            cluster="c" * 32,
            index=index,
            term=1,
            revision=self.machine.revision,
            time_ms=1_767_225_600_000,
            log_time_ms=0,
            sequence=0,
            membership=Membership("c" * 32, (), ()),
            keys=self.machine.keys,
            data_bytes=self.machine.bytes,
            idempotency_records=0,
            bytes=0,
            raw_bytes=0,
            sha256="0" * 64,
            chunks=(),
        )
        self._snapshots.append(made)
        return made

    async def snapshots(self) -> Sequence[Manifest]:
        return self._snapshots

    async def snapshot(self, name: str) -> Manifest:
        if self.reader is not None:
            return self.reader.manifest(name)
        for each in self._snapshots:
            if each.id == name:
                return each
        raise SnapshotMissing(f"there is no snapshot {name!r}")

    async def snapshot_chunk(self, name: str, number: int) -> tuple[Chunk, bytes]:
        if self.reader is None:
            raise SnapshotMissing(f"there is no snapshot {name!r}")
        return stored_chunk(self.reader, name, number)

    async def verify_snapshot(self, name: str) -> Manifest:
        return await self.snapshot(name)

    async def delete_snapshot(self, name: str) -> None:
        self._snapshots.remove(await self.snapshot(name))

    def plan_membership(self, change: Change) -> tuple[Membership, Membership, frozenset[str]]:
        reachable = frozenset({"n1", "n2"})
        if isinstance(change, Promote) and change.name in self.membership.learners:
            raise NotCaughtUp(f"{change.name} has the log up to 0 of 9")
        after = changed(self.membership, change, term=1, index=self.membership.index + 1)
        check_quorum(self.membership, after, reachable)
        return self.membership, after, reachable

    async def change_membership(self, change: Change, *, timeout_s: float) -> Membership:
        _, self.membership, _ = self.plan_membership(change)
        return self.membership

    async def transfer_leadership(self, to: str | None) -> None:
        raise TransferFailed("there is nobody to hand over to")
