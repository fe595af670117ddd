"""A member in the asyncio loop: the engine with real time, threads and sockets. The thin shell.

One thread, the loop's, runs the engine. What blocks runs on one worker thread a lane ("journal": group
commits; "snapshot": making, receiving and retaining snapshots; "snapshot-read": serving one to a follower)
and comes back through one door, `call_soon_threadsafe`.

Life: open the disk -> listen for peers -> form the cluster, or find that it has -> run the engine. Until
the engine runs, everything is refused with `NotReady` and says whom it waits for.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from raftkv.errors import (
    BadRequest,
    DiskReplaced,
    Draining,
    Fatal,
    IdentityRefused,
    NotReady,
    Overloaded,
    RaftkvError,
    ReleaseTooOld,
    StoreUnavailable,
    TransferFailed,
)
from raftkv.journal.disk import OsDisk
from raftkv.kv.command import Command, encode
from raftkv.kv.machine import Machine
from raftkv.metrics import Distribution, Sample
from raftkv.model import Applied, Member, Membership
from raftkv.raft import measures, opening, protocol
from raftkv.raft.catchup import STORE_LANE
from raftkv.raft.compaction import CompactionLimits
from raftkv.raft.core import Timing
from raftkv.raft.engine import Engine
from raftkv.raft.forming import Action, Formed, Forming, Persist, Tell
from raftkv.raft.handshake import Hello, Refusal, Standing
from raftkv.raft.identity import begin_join, draw_id, load_or_create, reconcile, settle
from raftkv.raft.lanes import Lane
from raftkv.raft.log_archive import LogArchive
from raftkv.raft.measures import Measures
from raftkv.raft.membership import Change, Remove
from raftkv.raft.messages import Message
from raftkv.raft.proposals import Ticket
from raftkv.raft.quorum import majority
from raftkv.raft.roster import Roster
from raftkv.raft.status import (
    AgreementStatus,
    ArchiveStatus,
    JournalStatus,
    Leadership,
    NodeStatus,
    PeerStatus,
    SnapshotStatus,
)
from raftkv.raft.transport import Callbacks, Limits, Transport
from raftkv.snapshot.archiver import ArchivePolicy, Archiver, Situation
from raftkv.snapshot.codec import Chunk, Manifest
from raftkv.snapshot.loader import check, stored_chunk
from raftkv.snapshot.ranges import Ranges
from raftkv.snapshot.remote import RemoteStore
from raftkv.snapshot.store import Store
from raftkv.tls.credentials import Credentials

log = logging.getLogger("raftkv.node")
T = TypeVar("T")

TICK_S = 0.02
LANES = ("journal", "snapshot", "snapshot-read")
ARCHIVE_TICKS = 10  # the archiver looks five times a second
STORE_CALLS_MAX = 4  # of clients, at once; each has a thread, and may wait 15 s for a store that is away
STORE_CALL_S = 20.0  # longer than any timeout of a store's own
STOP_STORE_S = 1.0  # what a stop waits for a store
# Refusals that no waiting mends: this disk is not the one that the cluster knows by this name.
IDENTITY_REFUSALS = frozenset({"empty_disk", "other_instance", "other_cluster", "unknown_name"})


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Plain values; see raftkv/config.py for where they come from."""

    name: str
    data_dir: Path
    members: tuple[Member, ...]
    secret: bytes
    listen: tuple[str, int]
    timing: Timing = Timing()  # noqa: RUF009 (frozen)
    compaction: CompactionLimits = CompactionLimits()  # noqa: RUF009 (frozen)
    transport: Limits = Limits()  # noqa: RUF009 (frozen)
    archive: ArchivePolicy = ArchivePolicy()  # noqa: RUF009 (frozen)
    archive_interval_s: float = 1.0  # 0: the log is not archived
    joining: bool = False  # waits to be added to a cluster, and founds none


class RaftNode:
    """Implements `raftkv.service.Consensus`. `on_fatal` is called on the loop when the node must stop."""

    def __init__(
        self,
        settings: NodeSettings,
        *,
        open_store: Callable[[Path], Store],
        on_fatal: Callable[[Fatal], None],
        remote: RemoteStore | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """`credentials`: TLS between the members."""
        self._settings = settings
        self._credentials = credentials
        self._remote = remote
        self._archiver: Archiver | None = None
        self._archive_lane = Lane("raftkv-archive")
        self._log_archive: LogArchive | None = None
        self._log_archive_lane = Lane("raftkv-log-archive")
        self._store_lane = Lane("raftkv-" + STORE_LANE)
        self._store_calls = 0
        self._ticks = 0
        self.threads_left = False  # after `stop`: some still wait for a store
        self._open_store = open_store
        self._on_fatal = on_fatal
        self._loop: asyncio.AbstractEventLoop
        self._exit = AsyncExitStack()
        self._lanes = {lane: ThreadPoolExecutor(1, thread_name_prefix=f"raftkv-{lane}") for lane in LANES}
        self._engine: Engine | None = None
        self._opened: opening.Opened
        self._forming: Forming
        self._transport: Transport
        self._tick_handle: asyncio.TimerHandle | None = None
        self._tick_due = 0.0  # monotonic
        self._measures = Measures()
        self._changed = asyncio.Event()  # entries were applied, or role, term or leader changed
        self._draining = False
        self._stopping = False
        self._was_ready = False
        self._last_message: dict[str, float] = {}
        self._refusals: dict[str, Refusal] = {}
        self._waiting_said: tuple[str, ...] = ()
        self._revision_waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waiter_number = itertools.count()
        self._leadership = Leadership("follower", 0, None, None)
        self._no_machine = Machine()

    # --- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the disk and listens; returns before the cluster has formed or a leader is known.

        Raises ConfigError, JournalDamaged, SnapshotDamaged and other Fatal errors, with what to do.
        """
        self._loop = asyncio.get_running_loop()
        settings = self._settings
        self._stored, self._opened, self._store = await self._loop.run_in_executor(
            self._lanes["journal"], self._open_disk
        )
        self._opened.wal.on_sync = self._measures.synced
        self._measures.watch_collector()
        self._roster = Roster(settings.members, self._stored.joined, joining=settings.joining)
        self._roster.learn(self._opened.membership)
        self._forming = Forming(
            self._stored.identity,
            settings.members,
            founding=self._stored.founding,
            draw=draw_id,
            joining=settings.joining,
        )
        self._transport = await self._exit.enter_async_context(
            Transport(
                listen=settings.listen,
                secret=settings.secret,
                standing=self._standing,
                callbacks=Callbacks(
                    on_message=self._on_message,
                    on_control=lambda sender, control: self._act(self._forming.receive(sender, control)),
                    on_connected=self._on_connected,
                    on_disconnected=self._on_disconnected,
                    on_refused=self._on_refused,
                    on_called=self._on_called,
                ),
                limits=settings.transport,
                credentials=self._credentials,
            )
        )
        self._transport.set_members(self._roster.members)
        self._act(self._forming.start())
        self._tick_due = time.monotonic()
        self._tick()

    def _open_disk(self) -> tuple[Any, opening.Opened, Store]:
        directory = self._settings.data_dir
        stored = load_or_create(directory, self._settings.name)
        try:
            store = self._open_store(directory)
            disk = OsDisk(directory / "journal")
        except OSError as error:
            raise Fatal(f"can't use the data directory {directory}: {error}") from error
        opened = opening.open_state(disk, store)
        if opened.wal.recovery.torn is not None:
            log.warning("journal_tail_cut node=%s torn=%s", self._settings.name, opened.wal.recovery.torn)
        return reconcile(directory, stored, opened.membership), opened, store

    async def stop(self) -> None:
        """Stops at once: nothing is handed over, what is on its way stays unanswered. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        self._measures.forget_collector()
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        if self._engine is not None:
            self._engine.stopped = True
        await self._exit.aclose()
        if self._remote is not None:
            await self._leave_store(self._remote)
        for executor in self._lanes.values():
            await asyncio.to_thread(executor.shutdown)
        if hasattr(self, "_opened"):
            self._opened.wal.close()

    async def _leave_store(self, remote: RemoteStore) -> None:
        if self._archiver is not None:
            self._archiver.stop()
        if self._log_archive is not None:
            self._log_archive.stop()
        lanes = (self._archive_lane, self._log_archive_lane, self._store_lane)
        ended = all([await asyncio.to_thread(lane.close, STOP_STORE_S) for lane in lanes])
        self.threads_left = not ended or self._store_calls > 0
        if not self.threads_left:
            await asyncio.to_thread(remote.close)

    async def leave(self, *, timeout_s: float) -> None:
        """Answers what it has taken, then hands leadership over; returns when both are done or time is up."""
        self.drain()
        engine = self._engine
        if engine is None:
            return
        until = self._loop.time() + timeout_s
        await self._until(lambda: not engine.proposals.outstanding, until)
        if engine.core.is_leader and engine.transfer_leadership():
            await self._until(lambda: not engine.core.is_leader, until)

    async def _until(self, condition: Callable[[], bool], until: float) -> None:
        """Returns when the condition holds, which only an applied entry or a change of role can bring, or
        at `until` on the loop's clock."""
        try:
            async with asyncio.timeout_at(until):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    async def wait_ready(self) -> None:
        """Until the cluster has formed and a linearizable read succeeds here."""
        while True:
            try:
                await self.read_barrier(timeout_s=self._settings.timing.election_timeout_s_max)
            except (RaftkvError, TimeoutError):
                await asyncio.sleep(TICK_S)
            else:
                self._was_ready = True
                return

    def drain(self) -> None:
        self._draining = True
        if self._engine is not None:
            self._engine.draining = True

    # --- Ports: what the engine needs of the world -----------------------------------------------------

    def send(self, peer: str, message: Message) -> None:
        self._transport.send(peer, message)

    def run(self, lane: str, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        if self._stopping:
            return
        if lane == STORE_LANE:
            self._store_lane.submit(self._work(job, done))
        else:
            self._lanes[lane].submit(self._work(job, done))

    def _work(self, job: Callable[[], Any], done: Callable[[Any], None]) -> Callable[[], None]:
        def work() -> None:
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 the door: whatever it is comes back to the loop
                result = error
            with suppress(RuntimeError):  # the loop has closed: a store answered after the end
                self._loop.call_soon_threadsafe(done, result)

        return work

    def soon(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    def fatal(self, error: Fatal) -> None:
        self._on_fatal(error)

    # --- forming ---------------------------------------------------------------------------------------

    def _standing(self) -> Standing:
        return self._roster.standing(self._forming.identity)

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Tell():
                    self._transport.send_control(action.peer, action.control)
                case Persist():
                    persist = action
                    self.run("journal", lambda: self._persist(persist), self._persisted)  # noqa: B023
                case Formed():
                    self._start_engine(action)

    def _persist(self, action: Persist) -> None:
        directory, joined = self._settings.data_dir, action.joined
        if joined is not None:
            self._stored = begin_join(directory, self._stored, joined)
        opening.found(self._opened.wal, action.membership)
        self._stored = settle(directory, self._stored, action.membership, joined)

    def _persisted(self, result: Any) -> None:
        if isinstance(result, BaseException):
            fatal = result if isinstance(result, Fatal) else Fatal(f"can't found the cluster: {result}")
            self._on_fatal(fatal)
            return
        self._act(self._forming.persisted())

    def _start_engine(self, formed: Formed) -> None:
        if self._engine is not None:
            return
        opened = self._opened
        self._roster.joined(self._stored.joined)
        self._roster.learn(formed.membership)
        self._engine = engine = Engine(
            name=self._settings.name,
            instance=self._stored.identity.instance,
            configurations=opened.configurations
            or opening.configurations_of(opened.wal, opened.snapshot, str(self._settings.data_dir)),
            wal=opened.wal,
            machine=opened.machine,
            snapshot=opened.snapshot,
            store=self._store,
            ports=self,
            clock=time.monotonic,
            rng=random.Random(),
            timing=self._settings.timing,
            compaction=self._settings.compaction,
            elsewhere=self._remote,
        )
        if self._remote is not None:
            self._archiver = Archiver(
                self._remote,
                self._store,
                node=self._settings.name,
                policy=self._settings.archive,
                run=self._run_archive,
            )
            if self._settings.archive_interval_s:
                self._log_archive = LogArchive(
                    Ranges(self._remote.bucket),
                    node=self._settings.name,
                    cluster=formed.membership.cluster,
                    interval_s=self._settings.archive_interval_s,
                    run=lambda job, done: self._log_archive_lane.submit(self._work(job, done)),
                )
        engine.draining = self._draining
        engine.on_role = self._note_leadership
        engine.on_applied = self._on_applied
        engine.on_membership = self._on_membership
        engine.member_of = self._roster.member  # the leader may be newer than this log knows
        self._on_membership()
        log.info(
            "node_formed node=%s cluster=%s members=%s last_index=%d",
            self._settings.name,
            formed.membership.cluster,
            ",".join(member.name for member in formed.membership.members),
            engine.core.last_index,
        )
        for peer in self._roster.reached:  # whoever its log has yet to name as a member among them
            engine.peer_connected(peer)

    # --- what the transport and the clock tell ---------------------------------------------------------

    def _on_membership(self) -> None:
        """Another membership is in effect here, or known to be committed."""
        engine = self._engine
        if engine is not None:
            try:
                protocol.check_level(engine.membership, self._settings.name)
            except ReleaseTooOld as error:
                self._on_fatal(error)
            self._roster.effective = engine.membership
            self._roster.learn(engine.committed_membership)
        self._note_leadership()
        self._transport.set_members(self._roster.members)
        if self._roster.committed is not None:
            self._act(self._forming.membership_committed(self._roster.committed))
        if self._roster.excludes(self._forming.identity):
            self._on_fatal(self._excluded())

    def _excluded(self) -> IdentityRefused:
        committed, name = self._roster.committed, self._settings.name
        assert committed is not None
        if committed.member(name) is None:
            return IdentityRefused(
                f"{name} was removed from cluster {committed.cluster}, which goes on with "
                f"{', '.join(committed.names)}. To have it back, add it with an empty data directory"
            )
        kind = IdentityRefused if committed.instance(name) else DiskReplaced
        return kind(
            f"{name} was added to cluster {committed.cluster} with another disk: this data directory is no "
            "member any more. Remove it, or keep it away from the node"
        )

    def _tick(self) -> None:
        now = time.monotonic()
        self._measures.late_seconds.add(max(0.0, now - self._tick_due))
        self._tick_due = now + TICK_S
        self._tick_handle = self._loop.call_later(TICK_S, self._tick)
        if self._engine is None:
            self._say_waiting()
            return
        self._engine.tick()
        if self._log_archive is not None and not self._stopping:
            core = self._engine.core
            self._log_archive.pump(
                core.term if self._engine.leading else None, self._engine.wal, core.last_applied
            )
        self._ticks += 1
        if self._ticks % ARCHIVE_TICKS == 0:
            self._engine.steward(self._roster.shown, spoken=self._roster.spoken(self._settings.name))
            self._pump_archiver(self._engine)

    def _pump_archiver(self, engine: Engine) -> None:
        if self._archiver is None or self._stopping:
            return
        core = engine.core
        situation = Situation(
            cluster=engine.membership.cluster,
            term=core.term if core.is_leader else None,
            newest=engine.compaction.manifest,
            revision=engine.machine.revision,
        )
        if self._archiver.pump(situation) and not engine.compaction.running:
            engine.compaction.request(lambda _: None)

    def _run_archive(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self._archive_lane.submit(self._work(job, done))

    def _say_waiting(self) -> None:
        waiting = self._forming.waiting_for(self._transport.problem)
        if waiting != self._waiting_said:
            self._waiting_said = waiting
            log.info("node_waits node=%s for=%s", self._settings.name, "; ".join(waiting))

    def _on_message(self, peer: str, message: Message) -> None:
        self._last_message[peer] = self._loop.time()
        if self._engine is not None:
            self._engine.receive(peer, message)

    def _on_called(self, peer: Hello) -> None:
        if self._roster.called(peer):
            self._on_membership()

    def _on_connected(self, peer: Hello) -> None:
        self._refusals.pop(peer.name, None)
        if self._roster.linked(peer):
            self._on_membership()
        self._act(self._forming.peer_connected(peer))
        if self._engine is not None:
            self._engine.peer_connected(peer.name)

    def _on_disconnected(self, peer: str) -> None:
        self._roster.unlinked(peer)
        self._forming.peer_disconnected(peer)
        if self._engine is not None:
            self._engine.peer_disconnected(peer)

    def _on_refused(self, peer: Hello, refusal: Refusal) -> None:
        """A node with nothing to lose stops at the first such word; a member only when a majority says so,
        since one misled peer must not take it down, or when it is shown the membership that excludes it."""
        waiting = self._settings.joining and self._engine is None  # not added yet: that is what it waits for
        log.log(
            logging.INFO if waiting else logging.ERROR,
            "refused_by_peer node=%s peer=%s code=%s reason=%s",
            self._settings.name,
            peer.name,
            refusal.code,
            refusal.reason,
        )
        self._refusals[peer.name] = refusal
        if self._engine is not None and self._roster.learn(peer.membership):
            self._on_membership()
        if waiting:
            return
        refusing = sum(refusal.code in IDENTITY_REFUSALS for refusal in self._refusals.values())
        needed = 1 if self._forming.membership is None else majority(len(self._roster.members))
        if refusing >= needed and refusal.code in IDENTITY_REFUSALS:
            self._on_fatal(IdentityRefused(f"{peer.name} refuses this node: {refusal.reason}"))

    # --- Consensus: what the service asks --------------------------------------------------------------

    @property
    def machine(self) -> Machine:
        return self._no_machine if self._engine is None else self._engine.machine

    @property
    def leadership(self) -> Leadership:
        return self._leadership

    def check_formed(self) -> None:
        """Raises NotReady before the engine runs: there is no state to answer from."""
        self._running()

    def propose_soon(
        self, command: Command, done: Callable[[Applied | RaftkvError], None], *, timeout_s: float
    ) -> Ticket:
        """`done`, which must not raise, is called once: with the outcome, or CommitTimeout, LeaderChanged
        (unknown), NoLeader, NotLeader, Overloaded (not applied).

        Raises NotLeader, NoLeader, NotReady, Draining, Overloaded: then it was not taken.
        """
        return self._running().propose(encode(command), done, timeout_s)

    def propose_all_soon(
        self,
        commands: Sequence[Command],
        done: Callable[[Sequence[Applied] | RaftkvError], None],
        *,
        timeout_s: float,
    ) -> Ticket:
        """As `propose_soon`, for several with one fate: all in one entry, or none. `done` gets their results
        in their order."""
        return self._running().propose_all(list(map(encode, commands)), done, timeout_s)

    def read_soon(self, done: Callable[[RaftkvError | None], None], *, timeout_s: float) -> None:
        """`done`, which must not raise, is called once: with None when this node's state is linearizable for
        what asked now, or NoLeader, NotReady. Raises NoLeader, NotReady, Draining, Overloaded."""
        self._running().read_index(done, timeout_s)

    async def propose(self, command: Command, *, timeout_s: float) -> Applied:
        """As `propose_soon`; who is cancelled withdraws the command, as far as that is possible."""
        future: asyncio.Future[Applied] = self._loop.create_future()
        ticket = self.propose_soon(command, _settle(future), timeout_s=timeout_s)
        try:
            return await future
        except asyncio.CancelledError:
            self._running().withdraw(ticket)
            raise

    async def read_barrier(self, *, timeout_s: float) -> None:
        """As `read_soon`."""
        future: asyncio.Future[None] = self._loop.create_future()
        self.read_soon(_settle(future), timeout_s=timeout_s)
        await future

    async def wait_revision(self, revision: int, *, timeout_s: float) -> None:
        self._running()
        if self.machine.revision >= revision:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        heapq.heappush(self._revision_waiters, (revision, next(self._waiter_number), future))
        async with asyncio.timeout(timeout_s):
            await future

    def staleness_ms(self) -> float:
        """Since this node last heard from a leader; 0 on a leader, which a majority answers or it steps
        down; infinite before the first word of one."""
        engine = self._engine
        if engine is None:
            return float("inf")
        if engine.core.is_leader:
            return 0.0
        return (time.monotonic() - engine.core.last_leader_contact) * 1000

    # --- snapshots -------------------------------------------------------------------------------------

    @property
    def publishes(self) -> bool:
        """Snapshots go to a store that the cluster shares, and the leader brings them there."""
        return self._remote is not None

    async def create_snapshot(self) -> Manifest:
        """Durable on this disk, and in the store where there is one; then for the leader alone. Raises
        NotReady, StoreUnavailable, StoreFenced."""
        manifest = await self._create_local()
        if self._archiver is None:
            return manifest
        future: asyncio.Future[Manifest] = self._loop.create_future()
        self._archiver.request(manifest, _settle(future))
        self._pump_archiver(self._running())
        return await future

    async def _create_local(self) -> Manifest:
        engine = self._running()
        future: asyncio.Future[Manifest] = self._loop.create_future()

        engine.compaction.request(_settle(future))
        return await future

    async def snapshots(self) -> Sequence[Manifest]:
        """Those in the store, else this node's own; oldest first.

        Raises SnapshotDamaged, StoreUnavailable."""
        reader = self._remote or self._opened_store()
        return await self._on_store(lambda: reader.list())

    async def snapshot(self, name: str) -> Manifest:
        """Raises SnapshotMissing, SnapshotDamaged, StoreUnavailable."""
        reader = self._remote or self._opened_store()
        return await self._on_store(lambda: reader.manifest(name))

    async def snapshot_chunk(self, name: str, number: int) -> tuple[Chunk, bytes]:
        """As it is stored, verified. Raises SnapshotMissing, SnapshotDamaged, StoreUnavailable."""
        reader = self._remote or self._opened_store()
        return await self._on_store(lambda: stored_chunk(reader, name, number))

    async def verify_snapshot(self, name: str) -> Manifest:
        """Reads all of it back. Raises SnapshotMissing, SnapshotDamaged, StoreUnavailable."""
        reader = self._remote or self._opened_store()

        def work() -> Manifest:
            manifest = reader.manifest(name)
            check(reader, manifest)
            return manifest

        return await self._on_store(work, timeout_s=None)

    async def delete_snapshot(self, name: str) -> None:
        """Raises SnapshotMissing, StoreUnavailable; BadRequest for the one that this node's journal needs."""
        remote, store = self._remote, self._opened_store()
        if remote is not None:
            await self._on_store(lambda: remote.delete(name))
            return
        newest = self._running().compaction.manifest
        if newest is not None and newest.id == name:
            raise BadRequest(
                f"{name} is what this node starts from: its journal holds only what came after. Take a newer "
                "snapshot first"
            )
        future: asyncio.Future[None] = self._loop.create_future()
        self.run("snapshot", lambda: store.delete(name), _settle(future))
        await future

    def _opened_store(self) -> Store:
        if not hasattr(self, "_store"):
            raise NotReady(f"{self._settings.name} is still starting")
        return self._store

    async def _on_store(self, job: Callable[[], T], *, timeout_s: float | None = STORE_CALL_S) -> T:
        if self._store_calls >= STORE_CALLS_MAX:
            raise Overloaded(
                f"{self._store_calls} requests wait for the snapshot store already; try again shortly"
            )
        future: asyncio.Future[T] = self._loop.create_future()
        settle = _settle(future)

        def done(result: Any) -> None:
            self._store_calls -= 1
            settle(result)

        self._store_calls += 1
        threading.Thread(target=self._work(job, done), name="raftkv-store", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise StoreUnavailable(
                f"the snapshot store has not answered for {timeout_s:g} s", reason="timed_out"
            ) from None

    def plan_membership(self, change: Change) -> tuple[Membership, Membership, frozenset[str]]:
        """The membership now and after the change, and who answers now. Raises as `change_membership`."""
        engine = self._running()
        return engine.membership, engine.plan(change), engine.reachable

    async def change_membership(self, change: Change, *, timeout_s: float) -> Membership:
        """Returns the new membership once it is committed. A leader that is to be removed hands over first,
        and then raises NotLeader, with who can do it.

        Raises NotLeader, NoLeader, NotReady, Draining, ChangeInFlight, QuorumAtRisk, NotCaughtUp,
        TransferFailed, NoSuchMember, MemberExists, BadRequest (not applied); CommitTimeout, LeaderChanged
        (unknown).
        """
        engine = self._running()
        if isinstance(change, Remove) and change.name == self._settings.name and engine.core.is_leader:
            engine.plan(change)
            await self.transfer_leadership(None)
        future: asyncio.Future[Applied] = self._loop.create_future()
        after = engine.change_membership(change, _settle(future), timeout_s)
        await future
        return after

    async def transfer_leadership(self, to: str | None) -> None:
        """Returns when another member leads. Raises NotReady before there is a cluster; TransferFailed."""
        engine = self._running()
        if not engine.transfer_leadership(to):
            raise TransferFailed(
                f"{to or 'every other voter'} is not connected, or no voter: nothing was handed over"
            )
        core = engine.core
        until = self._loop.time() + self._settings.timing.election_timeout_s_max
        await self._until(lambda: not core.is_leader and core.leader is not None, until)
        if core.is_leader:
            raise TransferFailed(
                f"{to or 'no other member'} did not take over within an election timeout, since it was not "
                f"caught up or did not answer: {self._settings.name} leads on"
            )

    def status(self) -> NodeStatus:
        ready, reason = self._readiness()
        self._was_ready = self._was_ready or ready
        lead = self._leadership
        engine = self._engine
        return NodeStatus(
            name=self._settings.name,
            cluster_id=self._forming.identity.cluster,
            role=lead.role,
            term=lead.term,
            leader=lead.leader,
            leader_url=lead.leader_url,
            commit_index=0 if engine is None else engine.core.commit_index,
            applied_index=0 if engine is None else engine.core.last_applied,
            journal=self._journal_status(),
            snapshot=self._snapshot_status(),
            peers=self._peer_statuses(),
            ready=ready,
            ready_reason=reason,
            archive=self._archive_status(),
            log_archive=None if self._log_archive is None else self._log_archive.status(),
            started=self._was_ready,
            draining=self._draining,
            protocol_level=0 if engine is None else engine.level,
            agreement=self._agreement_status(),
        )

    def samples(self) -> Iterable[Sample | Distribution]:
        """The numbers of this member, for `Metrics.source`; those of the data it holds are the service's."""
        yield from measures.engine_samples(self._engine)
        yield from measures.shell_samples(self._measures)
        yield from measures.membership_samples(self.status())
        yield from measures.machine_samples(self._settings.data_dir)
        for peer, seconds, backlog in self._transport.links():
            labels = {"peer": peer}
            help = "Bytes for a member that the kernel has not taken yet."
            yield Sample("peer_backlog_bytes", help, float(backlog), labels)
            if seconds is not None:
                help = "The network's round trip to a member: the least of the last five minutes."
                yield Sample("peer_round_trip_seconds", help, seconds, labels)

    # --- inside ----------------------------------------------------------------------------------------

    def _running(self) -> Engine:
        if self._draining and self._stopping:
            raise Draining(f"{self._settings.name} is stopping")
        if self._engine is None:
            raise NotReady(self._not_formed())
        return self._engine

    def _not_formed(self) -> str:
        waiting = "; ".join(self._forming.waiting_for(self._transport.problem))
        return f"the cluster has not formed yet: {self._settings.name} waits for {waiting}"

    def _readiness(self) -> tuple[bool, str]:
        if self._draining:
            return False, f"{self._settings.name} is stopping"
        engine = self._engine
        if engine is None:
            return False, self._not_formed()
        if engine.core.leader is None:
            return False, "no leader is known here" + "".join(
                f"; {peer}: {refusal.reason}" for peer, refusal in self._refusals.items()
            )
        if engine.catchup.running:
            return False, "the node is catching up through a snapshot"
        return True, ""

    def _note_leadership(self) -> None:
        self._changed.set()
        engine = self._engine
        if engine is None:
            return
        core = engine.core
        url = None
        for member in self._roster.members:
            if member.name == core.leader:
                url = member.client_url
        role = core.role if core.is_voter or core.role != "follower" else "learner"
        self._leadership = Leadership(role, core.term, core.leader, url)
        self._measures.follows(core.leader, core.term)

    def _on_applied(self) -> None:
        self._changed.set()
        if self._log_archive is not None and self._engine is not None:
            self._log_archive.applied(self._engine.core.last_applied)
        waiters = self._revision_waiters
        while waiters and (waiters[0][0] <= self.machine.revision or waiters[0][2].done()):
            future = heapq.heappop(waiters)[2]
            if not future.done():
                future.set_result(None)

    def _journal_status(self) -> JournalStatus:
        wal = self._opened.wal
        free, total = measures.disk_room(self._settings.data_dir)
        first, last, term = (wal[0][1], wal[-1][1], wal[-1][2]) if len(wal) else (0, 0, 0)
        return JournalStatus(
            first_index=first,
            last_index=last,
            last_term=term,
            durable_index=wal.durable_index,
            bytes=wal.disk_bytes,
            segments=wal.segments,
            sync_ms_last=wal.sync_seconds_last * 1000,
            disk_free_bytes=free,
            disk_bytes=total,
        )

    def _snapshot_status(self) -> SnapshotStatus:
        engine = self._engine
        manifest = None if engine is None else engine.compaction.manifest
        writing = engine is not None and engine.compaction.running
        installing = engine is not None and engine.catchup.running
        return SnapshotStatus(
            id=None if manifest is None else manifest.id,
            index=0 if manifest is None else manifest.index,
            term=0 if manifest is None else manifest.term,
            bytes=0 if manifest is None else manifest.bytes,
            state="installing" if installing else "writing" if writing else "idle",
            store=str(self._settings.data_dir / "snapshots"),
            failures_in_row=0 if engine is None else engine.compaction.failures_in_row,
        )

    def _agreement_status(self) -> AgreementStatus:
        engine = self._engine
        if engine is None:
            return AgreementStatus()
        agreement = engine.agreement
        return AgreementStatus(
            hash=engine.machine.state_hash.hex(),
            checked_index=agreement.checked_index,
            checks=agreement.checks,
            mismatches=agreement.mismatches,
            divergence=agreement.divergence,
        )

    def _archive_status(self) -> ArchiveStatus | None:
        archiver = self._archiver
        if archiver is None:
            return None
        state: Literal["standby", "idle", "publishing", "failing"] = "standby"
        if archiver.leads:
            failing = archiver.failures_in_row > 0
            state = "failing" if failing else "publishing" if archiver.running else "idle"
        published = archiver.published if archiver.leads else None
        return ArchiveStatus(
            store=archiver.url,
            state=state,
            id=None if published is None else published.snapshot,
            index=0 if published is None else published.index,
            age_s=archiver.age_s if archiver.leads else None,
            uploads=archiver.uploads,
            bytes=archiver.uploaded_bytes,
            seconds_last=archiver.upload_seconds_last,
            failures=archiver.failures,
            failures_in_row=archiver.failures_in_row,
            error="" if archiver.error is None else str(archiver.error),
        )

    def _peer_statuses(self) -> tuple[PeerStatus, ...]:
        return tuple(self._peer_status(member) for member in self._roster.members)

    def _role_of(self, name: str) -> Literal["follower", "learner"]:
        membership = self._roster.effective or self._roster.committed
        return "learner" if membership is not None and name in membership.learners else "follower"

    def _peer_status(self, member: Member) -> PeerStatus:
        engine = self._engine
        core = None if engine is None else engine.core
        itself = member.name == self._settings.name
        match: int | None = None
        if core is not None and core.is_leader:
            progress = core.progress.get(member.name)
            match = core.last_index if itself else 0 if progress is None else progress.match_index
        heard = self._loop.time() if itself else self._last_message.get(member.name)
        contact = None if heard is None else int((self._loop.time() - heard) * 1000)
        leads = self._leadership.leader == member.name
        return PeerStatus(
            name=member.name,
            peer=member.peer,
            client_url=member.client_url,
            role=self._leadership.role if itself else "leader" if leads else self._role_of(member.name),
            match_index=match,
            lag=None if match is None or core is None else core.last_index - match,
            reachable=itself or self._transport.connected(member.name),
            last_contact_ms=contact,
        )


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
