"""PySyncObj 0.3.17 as released, in the same worlds: what raftkv would be without its subclass.

Its disk is better than any real one: a journal entry is durable the moment it is added, and term and vote
survive always. What the checks find here is thus the protocol's doing, not the disk's. Reads go through
the log, so that no violation is a stale local read. Messages cross the network pickled, as stock sends
them.
"""

from __future__ import annotations

import logging
import pickle
import random
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pysyncobj.syncobj
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.journal import Journal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from cluster.linearizability import Append, CompareAndSet, Delete, Get, Increment, Put
from tests.sim.client import Answer, Refused, Request, Unknown
from tests.sim.invariants import Durable, Entry
from tests.sim.scheduler import Owner
from tests.sim.world import Result, World

TICK_S = 0.02
READ_S = 0.002  # what passes from one look at the clock to the next within one call


class _Store:
    """The state machine of the stock runs: a dict, and the number of commands applied."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.applied = 0

    def execute(self, key: bytes, call: Any) -> object:
        self.applied += 1
        value = self.values.get(key)
        match call:
            case Get():
                return value
            case Put(new):
                self.values[key] = new
                return value is None
            case CompareAndSet(expected, new):
                if value == expected:
                    self.values[key] = new
                return value == expected
            case Delete():
                self.values.pop(key, None)
                return value is not None
            case Append(more):
                self.values[key] = (value or b"") + more
                return len(self.values[key])
            case Increment(by):
                self.values[key] = b"%d" % (int(value or b"0") + by)
                return int(self.values[key])
        raise TypeError(call)

    def fingerprint(self) -> Hashable:
        return self.applied, tuple(sorted(self.values.items()))


def _run_command(store: _Store, payload: bytes) -> object:
    if payload[:1] != b"\x00":
        return None
    _, (key, call) = pickle.loads(payload[1:])
    return store.execute(key, call)


class _Journal(Journal):  # type: ignore[misc]
    """Durable at once, all but the commit index, which stock writes once a second."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.version = 0
        self.term = 0
        self.voted_for: str | None = None
        self.commit_index = 1
        self.commit_index_saved = 1

    def add(self, command: bytes, idx: int, term: int) -> None:
        self.entries.append((command, idx, term))
        self.version += 1

    def clear(self) -> None:
        self.entries = []
        self.version += 1

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        del self.entries[entryFrom:]
        self.version += 1

    def deleteEntriesTo(self, entryTo: int) -> None:
        self.entries = self.entries[entryTo:]
        self.version += 1

    def __getitem__(self, item: Any) -> Any:
        return self.entries[item]

    def __len__(self) -> int:
        return len(self.entries)

    def _destroy(self) -> None:
        self.commit_index = self.commit_index_saved

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        self.commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        return self.commit_index_saved

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        self.term, self.voted_for = term, votedForNodeId

    def getCurrentTerm(self) -> int:
        return self.term

    def getVotedForNodeId(self) -> str | None:
        return self.voted_for

    def onOneSecondTimer(self) -> None:
        self.commit_index_saved = self.commit_index


class _Transport(Transport):  # type: ignore[misc]
    def __init__(self, send: Callable[[str, bytes], None]) -> None:
        super().__init__(None, None, ())
        self._send = send

    @property
    def ready(self) -> bool:
        return True

    def send(self, node: Node, message: Any) -> bool:
        self._send(node.id, pickle.dumps(message))
        return True


class _Replica(SyncObj):  # type: ignore[misc]
    """Stock, but that it keeps its store where the snapshot finds it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.store = _Store()

    def _SyncObj__doApplyCommand(self, command: bytes) -> object:
        return _run_command(self.store, command)


class StockProcess:
    def __init__(self, world: World, owner: Owner, host: StockHost) -> None:
        self.owner = owner
        self.name = owner.name
        self._world = world
        self._host = host
        self._journal = host.journal
        self._transport = _Transport(self._send)
        self._nodes = {name: Node(name) for name in world.names}
        configuration = SyncObjConf(
            autoTick=False,
            pollerType="select",
            raftMinTimeout=0.5,
            raftMaxTimeout=1.0,
            commandsWaitLeader=False,
            useFork=False,
            fullDumpFile=str(host.directory / "dump"),
            logCompactionMinEntries=host.compact_at,
        )
        others = [node for name, node in self._nodes.items() if name != self.name]
        with self._inside():
            self.core = _Replica(self._nodes[self.name], others, configuration, transport=self._transport)
        world.scheduler.after(world.rng(f"tick {self.name}").uniform(0.0, TICK_S), owner, self._tick)

    def _inside(self) -> _Inside:
        return _Inside(self._world, self.name, self._journal)

    # --- view -----------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return int(self.core.raftCurrentTerm)

    @property
    def is_leader(self) -> bool:
        return bool(self.core._isLeader())

    @property
    def commit_index(self) -> int:
        # After a restart from a dump, stock knows that its state is committed only in this way.
        return max(int(self.core.raftCommitIndex), self.last_applied)

    @property
    def last_applied(self) -> int:
        return int(self.core.raftLastApplied)

    @property
    def log_version(self) -> int:
        return self._journal.version

    def log(self) -> list[Entry]:
        entries = list(self._journal.entries)
        self._world.invariants.durable[self.name] = Durable(0, None, entries)
        return entries

    def last_index(self) -> int:
        return self._journal.entries[-1][1]

    formed = True

    @property
    def voters(self) -> tuple[str, ...]:
        return self._world.names

    def matches(self) -> tuple[()]:
        """Not looked at: what stock believes is wrong so often that it would hide what comes of it."""
        return ()

    def fingerprint(self) -> Hashable:
        return self.core.store.fingerprint()

    # --- inputs ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._do_tick()
        self._world.scheduler.after(TICK_S, self.owner, self._tick)

    def _do_tick(self) -> None:
        with self._inside():
            self.core.doTick(0)

    def _send(self, peer: str, message: bytes) -> None:
        self._world.log_message(self.name, peer, pickle.loads(message), message)
        self._world.network.send(self.name, peer, message)

    def receive(self, peer: str, message: bytes) -> None:
        with self._inside():
            self._transport._onMessageReceived(self._nodes[peer], pickle.loads(message))

    def peer_connected(self, peer: str) -> None:
        self._transport._onNodeConnected(self._nodes[peer])

    def peer_disconnected(self, peer: str) -> None:
        self._transport._onNodeDisconnected(self._nodes[peer])

    def submit(self, request: Request, answer: Answer) -> None:
        leader = self.core._getLeader()
        if not self.is_leader:
            answer(Refused(None if leader is None else leader.id))
            return

        def done(result: object, error: int) -> None:
            if error == FAIL_REASON.SUCCESS:
                answer(result)
            elif error in (FAIL_REASON.DISCARDED, FAIL_REASON.LEADER_CHANGED, FAIL_REASON.UNKNOWN_OUTCOME):
                answer(Unknown())
            else:
                answer(Refused(None))

        with self._inside():
            self.core._applyCommand(pickle.dumps((0, (request.key, request.call))), done, 0)
            self.core.doTick(0)

    def transfer_leadership(self, to: str | None) -> None:
        with self._inside():
            self.core.transferLeadership(None if to is None else self._nodes[to])

    def campaign(self) -> None:
        self.core._SyncObj__raftElectionDeadline = 0
        self._do_tick()

    def crash_at_job(self, lane: str, skip: int, phase: str, stop: Callable[[], None]) -> None:
        """Stock has no jobs."""

    def take_snapshot(self) -> None:
        self.core.forceLogCompaction()

    def destroy(self) -> None:
        self.core.destroy()


class _Inside:
    """PySyncObj's module globals, for as long as one node runs: its clock, its chances, its journal."""

    def __init__(self, world: World, name: str, journal: _Journal) -> None:
        clock, self._now = world.clocks[name], 0.0

        def monotonic() -> float:
            # Stock sends keep-alives to a peer that waits for a dump until the time is up: time must pass.
            self._now = max(self._now + READ_S, clock())
            return self._now

        self._values = (monotonic, world.stock_random, lambda _: journal)  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        module = pysyncobj.syncobj
        module.monotonicTime, module.random, module.createJournal = self._values

    def __exit__(self, *_: object) -> None:
        module = pysyncobj.syncobj
        module.monotonicTime, module.random, module.createJournal = _ORIGINALS


_ORIGINALS = (pysyncobj.syncobj.monotonicTime, pysyncobj.syncobj.random, pysyncobj.syncobj.createJournal)


class StockHost:
    def __init__(self, world: World, name: str, directory: Path) -> None:
        self.journal = _Journal()
        self.directory = directory / name
        self.directory.mkdir()
        self.compact_at = world.rng("compaction").choice((10, 30, 100_000))
        self._world = world

    def start(self, owner: Owner) -> StockProcess:
        process = StockProcess(self._world, owner, self)
        process._do_tick()  # loads the dump: until then the journal alone is no state
        return process

    def end(self, process: Any, *, power_cut: bool) -> None:
        process.destroy()

    def fail_next_sync(self) -> None:
        """Stock never syncs."""

    def state(self, process: Any) -> Hashable:
        fingerprint: Hashable = process.fingerprint()
        return fingerprint


def run_stock(seed: int, nodes: int, transcript: Callable[[str], None] | None = None) -> Result:
    logging.getLogger("pysyncobj").setLevel(logging.CRITICAL + 1)
    reference = _Store()

    def apply_reference(index: int, payload: bytes) -> Hashable:
        _run_command(reference, payload)
        return reference.fingerprint()

    with tempfile.TemporaryDirectory(prefix="raftkv-stock-") as directory:
        world = World(
            seed,
            nodes,
            lambda world, name: StockHost(world, name, Path(directory)),
            reference=apply_reference,
            idempotency=False,
            transcript=transcript,
        )
        world.stock_random = random.Random(f"{seed} elections")  # type: ignore[attr-defined]
        world.invariants.formed(b"\x01")
        return world.run()
