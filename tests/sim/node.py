"""The process under test: raftkv's own engine, journal, state machine and snapshots, on simulated disks.

Nothing of raftkv is replaced here, only what it calls: `Ports` by the scheduler, the directories of the
journal and of the snapshots by `MemoryDisk`. A job runs as a whole at the end of its time, on its lane;
when the process dies within that time, the job dies with it, after any number of its calls to the disk.

`ObservedWal` tells the invariants what each sync carries, so that they know what the disk would give
back.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any
from unittest import mock

import msgspec

from cluster.linearizability import Append, CompareAndSet, Delete, Get, Increment, Put
from raftkv.errors import Fatal, JournalFailed, NotLeader, RaftkvError
from raftkv.journal.disk import Disk
from raftkv.journal.wal import Batch, Wal
from raftkv.kv import command
from raftkv.kv.machine import Machine
from raftkv.model import (
    Appended,
    Applied,
    Deleted,
    Incremented,
    Member,
    Membership,
    PreconditionFailed,
    TransactionDone,
    Written,
)
from raftkv.raft import catchup, compaction, core, messages, proposals
from raftkv.raft.compaction import CompactionLimits
from raftkv.raft.core import Timing
from raftkv.raft.engine import Engine
from raftkv.raft.messages import AppendReply, Message, RequestVote, SnapshotInstalled, VoteReply
from raftkv.raft.opening import configurations_of, found, open_state
from raftkv.snapshot import store as snapshot_store
from raftkv.snapshot.codec import CHUNK_RAW_BYTES
from raftkv.snapshot.directory import DirectoryStore
from tests.sim.client import Answer, Refused, Request, Unknown
from tests.sim.disk import Crash, MemoryDisk
from tests.sim.invariants import Durable, Entry, Invariants, Violation
from tests.sim.scheduler import Owner
from tests.sim.world import Result, World

MEMBERSHIP_ENTRY = b"\x02"
VALUE_BYTES_MAX = 1 << 20

# lane -> (least, most) milliseconds of a job on a disk in good health
JOB_MS = {"journal": (0.2, 3.0), "snapshot": (0.5, 30.0), "snapshot-read": (0.1, 5.0)}
JOB_S_MAX = 3.0  # slower still, and what began before the end of the faults would outlast the settling
CALLS_BEFORE_CRASH_MAX = 12


class ObservedWal(Wal):
    """The real journal, and word to the invariants of what each sync carries."""

    observer: Invariants
    node: str

    def cut(self) -> Batch | None:
        batch = super().cut()
        if batch is not None:
            self.observer.sync_started(self.node, self.state())
        return batch

    def write(self, batch: Batch) -> None:
        super().write(batch)
        self.observer.sync_finished(self.node)

    def state(self) -> Durable:
        return Durable(self.getCurrentTerm(), self.getVotedForNodeId(), self[:])


class NodeHost:
    """Two directories that survive their processes, the journal's and the snapshots'."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.rng = world.rng("host " + name)
        self.instance = instance_of(world, name)
        self.journal_disk = MemoryDisk(self.rng)
        self.snapshot_disk = MemoryDisk(self.rng)
        self.sync_failure_armed = False
        self._world = world
        shape = world.rng("shape")  # of the run, not of one node
        self.segment_bytes_max = shape.choice((1024, 4096, 1 << 16))
        thresholds = (4, 8, 20, 60, 100_000)
        entries = shape.choice(thresholds)
        if shape.random() < 0.5:  # nodes that compact at different times offer each other more snapshots
            entries = self.rng.choice(thresholds)
        self.limits = CompactionLimits(log_entries_max=entries)
        self.job_factor = shape.choice((1.0, 1.0, 10.0))
        self.tick_s = shape.choice((0.02, 0.03))
        self._form()

    def _form(self) -> None:
        wal = self.open_wal(self.journal_disk)
        found(wal, membership(self._world.founders))
        wal.close()

    def open_wal(self, disk: Disk) -> Wal:
        wal = ObservedWal.open(
            disk,
            self.segment_bytes_max,
            clock=lambda: self._world.scheduler.now,
            draw_id=self.rng.randbytes,
        )
        assert isinstance(wal, ObservedWal)
        if wal.recovery.torn is not None:
            self._world.counts["torn tails cut"] += 1
        wal.observer = self._world.invariants
        wal.node = self.name
        self._world.invariants.recovered(self.name, wal.state())
        return wal

    def start(self, owner: Owner) -> NodeProcess:
        try:
            return NodeProcess(self._world, owner, self)
        except RaftkvError as error:
            raise Violation(
                "start", f"{self.name} refuses to start: {type(error).__name__}: {error}"
            ) from error

    def end(self, process: Any, *, power_cut: bool) -> None:
        disks = (self.journal_disk, self.snapshot_disk)
        process.crash_jobs(disks)
        for disk in disks:
            if power_cut:
                disk.power_cut()
            else:
                disk.kill()

    def fail_next_sync(self) -> None:
        self.sync_failure_armed = True
        self.journal_disk.fail_next_sync()

    def state(self, process: Any) -> Hashable:
        """A hash over every record of the machine, the idempotency table included."""
        image = process.engine.machine.image()
        digest = hashlib.blake2b(repr(image.state).encode(), digest_size=16)
        while page := image.next_page():
            digest.update(repr((page.section, list(page.keys), list(page.records))).encode())
        image.close()
        return digest.hexdigest()


class NodeProcess:
    """One life. It is the engine's `Ports`, and what the world knows of it."""

    formed = True

    def __init__(self, world: World, owner: Owner, host: NodeHost) -> None:
        self.owner = owner
        self.name = owner.name
        self._world = world
        self._host = host
        self._lanes: dict[str, deque[tuple[Callable[[], Any], Callable[[Any], None]]]] = {}
        self._crash: tuple[str, int, str, Callable[[], None]] | None = None
        self._rng = random.Random(host.rng.getrandbits(64))
        self._writes = 0
        self._store = DirectoryStore(host.snapshot_disk, clock=lambda: world.scheduler.now)
        self._opened = open_state(host.journal_disk, self._store, host.open_wal)
        self._wal = self._opened.wal
        self._begin()
        world.scheduler.after(self._rng.uniform(0.0, host.tick_s), owner, self._tick)

    def _begin(self) -> None:
        self._start_engine()

    def _start_engine(self) -> None:
        world, host, opened = self._world, self._host, self._opened
        configurations = opened.configurations or configurations_of(opened.wal, opened.snapshot, self.name)
        assert configurations
        self.engine = Engine(
            name=self.name,
            instance=host.instance,
            configurations=configurations,
            wal=opened.wal,
            machine=opened.machine,
            snapshot=opened.snapshot,
            store=self._store,
            ports=self,
            clock=world.clocks[self.name],
            rng=random.Random(host.rng.getrandbits(64)),
            timing=Timing(),
            compaction=host.limits,
        )
        self._core = self.engine.core

    # --- view -----------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return self._core.term

    @property
    def is_leader(self) -> bool:
        return self._core.is_leader

    @property
    def commit_index(self) -> int:
        return self._core.commit_index

    @property
    def last_applied(self) -> int:
        return self._core.last_applied

    @property
    def log_version(self) -> int:
        return self._wal.position

    @property
    def voters(self) -> tuple[str, ...]:
        return self.engine.membership.voters

    def log(self) -> list[Entry]:
        return self._wal[:]

    def last_index(self) -> int:
        return self._core.last_index

    def matches(self) -> list[tuple[str, int]]:
        return [(peer, progress.match_index) for peer, progress in self._core.progress.items()]

    def fingerprint(self) -> Hashable:
        return fingerprint(self.engine.machine)

    # --- Ports ----------------------------------------------------------------------------------------

    def send(self, peer: str, message: Message) -> None:
        self._check_promise(peer, message)
        encoded = messages.encode(message)
        self._world.log_message(self.name, peer, message, encoded)
        self._world.network.send(self.name, peer, encoded)

    def _check_promise(self, peer: str, message: Message) -> None:
        invariants = self._world.invariants
        match message:
            case RequestVote(term):
                invariants.spoke_of_term(self.name, term, self.name)
            case VoteReply(term, True):
                invariants.spoke_of_term(self.name, term, peer)
            case AppendReply(term, _, True, index) | SnapshotInstalled(term, index):
                if isinstance(message, SnapshotInstalled):
                    self._world.counts["snapshots installed"] += 1
                invariants.spoke_of_term(self.name, term, None)
                invariants.spoke_of_log(self.name, peer, term, index)

    def run(self, lane: str, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        queue = self._lanes.setdefault(lane, deque())
        queue.append((job, done))
        if len(queue) == 1:
            self._begin_job(lane)

    def _begin_job(self, lane: str) -> None:
        factor = self._host.job_factor * self._world.disk_delay_factor[self.name]
        delay_s = min(self._rng.uniform(*JOB_MS[lane]) * factor / 1000, JOB_S_MAX)
        self._world.scheduler.after(delay_s, self.owner, self._end_job, lane)

    def crash_at_job(self, lane: str, skip: int, phase: str, stop: Callable[[], None]) -> None:
        """Calls `stop` in the next job but `skip` of the lane: during it, after it and before its result is
        known here, or soon after that."""
        self._crash = (lane, skip, phase, stop)

    def _ends(self, lane: str, phase: str) -> bool:
        if self._crash is not None and (self._crash[0], self._crash[2]) == (lane, phase):
            _, skip, _, stop = self._crash
            self._crash = (lane, skip - 1, phase, stop) if skip else None
            if skip == 0:
                stop()
        return not self.owner.alive

    def _end_job(self, lane: str) -> None:
        if self._ends(lane, "during"):
            return
        queue = self._lanes[lane]
        job, done = queue[0]
        result: Any
        try:
            result = job()
        except Exception as error:  # noqa: BLE001 that is how a job's failure comes back
            result = error
        queue.popleft()
        if self._ends(lane, "after") or self._ends(lane, "soon"):
            return
        if queue:
            self._begin_job(lane)
        self._world.scheduler.after(self._rng.uniform(0.0, 0.0005), self.owner, done, result)

    def crash_jobs(self, disks: Sequence[MemoryDisk]) -> None:
        """What is on its way gets anywhere from nowhere to its end before the process is gone."""
        for queue in self._lanes.values():
            if queue:
                job, _ = queue.popleft()
                calls = self._rng.randint(0, self._rng.choice((2, CALLS_BEFORE_CRASH_MAX)))
                if calls == 0:
                    continue
                for disk in disks:
                    disk.crash_at = disk.operations + calls
                with contextlib.suppress(Crash, RaftkvError, OSError):
                    job()

    def soon(self, callback: Callable[[], None]) -> None:
        self._world.scheduler.after(0.0, self.owner, callback)

    def fatal(self, error: Fatal) -> None:
        if not (isinstance(error, JournalFailed) and self._host.sync_failure_armed):
            raise Violation("fatal", f"{self.name} stops: {error}") from error
        self._host.sync_failure_armed = False
        self._world.stop(self.name, power_cut=False, down_s=self._rng.uniform(0.0, 1.0), why="disk failed")

    # --- inputs ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.engine.tick()
        self._world.scheduler.after(self._host.tick_s, self.owner, self._tick)

    def receive(self, peer: str, encoded: bytes) -> None:
        self.engine.receive(peer, messages.decode(encoded))

    def peer_connected(self, peer: str) -> None:
        self.engine.peer_connected(peer)

    def peer_disconnected(self, peer: str) -> None:
        self.engine.peer_disconnected(peer)

    def transfer_leadership(self, to: str | None) -> None:
        self.engine.transfer_leadership(to)

    def campaign(self) -> None:
        if not self._core.is_leader:
            self.engine._input(self._core.campaign)

    def take_snapshot(self) -> None:
        self.engine.compaction.request(lambda _: None)

    def submit(self, request: Request, answer: Answer) -> None:
        try:
            if isinstance(request.call, Get):
                self._read(request.key, answer)
            else:
                self._write(request, answer)
        except RaftkvError as error:
            answer(Refused(error.leader if isinstance(error, NotLeader) else None))

    def _read(self, key: bytes, answer: Answer) -> None:
        def done(error: RaftkvError | None) -> None:
            if error is not None:
                answer(Refused())
                return
            item = self.engine.machine.get(key)
            answer(None if item is None else item.value)

        self.engine.read_index(done)

    def _write(self, request: Request, answer: Answer) -> None:
        def done(outcome: Applied | RaftkvError) -> None:
            if isinstance(outcome, Applied):
                answer(result_of(outcome.result))
            elif outcome.outcome == "not_applied":
                answer(Refused())
            else:
                answer(Unknown())

        def all_done(outcomes: Sequence[Applied] | RaftkvError) -> None:
            done(outcomes if isinstance(outcomes, RaftkvError) else outcomes[0])

        encoded = command.encode(command_of(request))
        self._writes += 1
        if self._writes % 3:
            ticket = self.engine.propose(encoded, done)
        else:  # as a batch hands its lines over
            ticket = self.engine.propose_all([encoded], all_done)

        def expire() -> None:
            answer(Refused() if self.engine.withdraw(ticket) else Unknown())

        if self._rng.random() < 0.2:
            self._world.scheduler.after(self._rng.uniform(0.0, 0.5), self.owner, expire)


# --- the clients' calls as commands ---------------------------------------------------------------------


def command_of(request: Request) -> command.Command:
    key, name = request.key, request.idempotency_key
    idempotency = None
    if name is not None:
        idempotency = command.Idempotency(
            name, hashlib.blake2b(repr(request).encode(), digest_size=16).digest()
        )
    match request.call:
        case Put(value):
            return command.Put(key, value, idempotency=idempotency)
        case Delete():
            return command.Delete(key, idempotency=idempotency)
        case Append(value):
            return command.Append(key, value, VALUE_BYTES_MAX, idempotency=idempotency)
        case Increment(by):
            return command.Increment(key, by, idempotency=idempotency)
        case CompareAndSet(None, value):
            return command.Put(key, value, condition=command.Condition(exists=False), idempotency=idempotency)
        case CompareAndSet(expected, value):
            assert expected is not None
            compare = command.Compare(key, "value", "==", expected)
            return command.Transaction((compare,), (command.Put(key, value),), (), idempotency=idempotency)
    raise TypeError(f"no command for {request.call!r}")


def result_of(result: object) -> object:
    """A command's result as `cluster.linearizability` has it. A conditional put answers True or False, a
    plain one whether it created: both are `created` here, since the condition that is used is absence."""
    match result:
        case Written():
            return result.created
        case PreconditionFailed():
            return False
        case TransactionDone():
            return result.succeeded
        case Deleted():
            return result.deleted == 1
        case Appended():
            return result.length
        case Incremented():
            return result.value
    raise Violation("result", f"a command answered {result!r}")


# --- the reference ----------------------------------------------------------------------------------------


class Reference:
    """One state machine that applies what was committed, in order, and never crashes."""

    def __init__(self) -> None:
        self.machine = Machine()

    def apply(self, index: int, payload: bytes) -> Hashable:
        if payload[:1] == b"\x00":
            log_time_ms, commands = command.decode_entry(payload[1:])
            for each in commands:
                self.machine.apply(index, log_time_ms, each)
        else:
            self.machine.advance(index)
        return fingerprint(self.machine)


def fingerprint(machine: Machine) -> Hashable:
    return (
        machine.revision,
        machine.keys,
        machine.bytes,
        machine.log_time_ms,
        machine.idempotency_records,
        machine.state_hash,
    )


def membership(names: tuple[str, ...]) -> Membership:
    members = tuple(Member(name, f"{name}:1", f"http://{name}:2") for name in names)
    return Membership("5" * 32, members, tuple((name, f"{number:032x}") for number, name in enumerate(names)))


def instance_of(world: World, name: str, life: int = 0) -> str:
    """Of the disk that a node has in its `life`, counted in wiped disks."""
    return f"{life:016x}{world.names.index(name):016x}"


@contextlib.contextmanager
def small_bounds(rng: random.Random) -> Iterator[None]:
    """Bounds made for megabytes, made for a few bytes: so that messages, batches, pages and chunks are
    many."""
    bounds: tuple[tuple[Any, str, tuple[int, ...]], ...] = (
        (core, "APPEND_BYTES_MAX", (1, 1, 100, core.APPEND_BYTES_MAX)),
        (core, "IN_FLIGHT_MESSAGES_MAX", (1, 2, 8, core.IN_FLIGHT_MESSAGES_MAX)),
        (proposals, "BATCH_COMMANDS_MAX", (1, 3, proposals.BATCH_COMMANDS_MAX)),
        (compaction, "PAGE_RECORDS", (1, 3, compaction.PAGE_RECORDS)),
        (catchup, "PART_BYTES_MAX", (100, 1000, catchup.PART_BYTES_MAX)),
        (snapshot_store, "CHUNK_RAW_BYTES", (200, 2000, CHUNK_RAW_BYTES)),
    )
    with contextlib.ExitStack() as stack:
        for module, name, choices in bounds:
            stack.enter_context(mock.patch.object(module, name, rng.choice(choices)))
        yield


def run_node(seed: int, nodes: int, transcript: Callable[[str], None] | None = None) -> Result:
    with small_bounds(random.Random(f"{seed} bounds")):
        world = World(seed, nodes, NodeHost, reference=Reference().apply, transcript=transcript)
        world.invariants.formed(MEMBERSHIP_ENTRY + msgspec.json.encode(membership(world.founders)))
        return world.run()
