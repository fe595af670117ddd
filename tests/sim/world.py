"""One run: a cluster, its clients and its faults, all from one seed, in virtual time.

A run has two parts. First faults and clients for `duration_s`; then everything heals, who is down starts,
and within `SETTLE_S` the cluster must lead, answer what is still open, and agree. The invariants look at
the process that acted after every event; the history is checked at the end.

A `Host` is what survives its processes (a disk, a clock); a `Process` is one life on it. The same worlds
run raftkv's nodes (`node.py`) and stock PySyncObj (`stock.py`).
"""

from __future__ import annotations

import collections
import hashlib
import random
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.linearizability import Operation
from raftkv.raft.quorum import majority
from tests.sim.client import Answer, Client, Request, check_history
from tests.sim.faults import Fault, schedule
from tests.sim.invariants import Entry, Invariants, Violation
from tests.sim.network import Doors, Network
from tests.sim.scheduler import Owner, Scheduler

# Messages at which a trap springs, and what they are of; the second names are stock PySyncObj's.
APPENDS = ("AppendEntries", "append_entries")  # those with entries
TRAPS = {
    "AppendEntries": "append",
    "append_entries": "append",
    "RequestVote": "ask",
    "request_vote": "ask",
    "VoteReply": "vote",
    "response_vote": "vote",
    "SnapshotOffer": "offer",
    "SnapshotFetch": "fetch",
    "SnapshotPart": "part",
    "SnapshotInstalled": "install",
    "TimeoutNow": "hand over",
    "timeout_now": "hand over",
}

SETTLE_S = 40.0  # a bound, far above the few elections that it may take


class Process(Protocol):
    """One life of a node: what the network, the clients, the faults and the invariants need of it."""

    owner: Owner
    name: str
    term: int
    is_leader: bool
    commit_index: int
    last_applied: int
    log_version: int
    formed: bool  # it is part of a cluster: before that there is nothing to look at

    @property
    def voters(self) -> tuple[str, ...]: ...
    def log(self) -> list[Entry]: ...
    def matches(self) -> Sequence[tuple[str, int]]: ...
    def fingerprint(self) -> object: ...
    def last_index(self) -> int: ...
    def receive(self, peer: str, message: Any) -> None: ...
    def peer_connected(self, peer: str) -> None: ...
    def peer_disconnected(self, peer: str) -> None: ...
    def submit(self, request: Request, answer: Answer) -> None: ...
    def transfer_leadership(self, to: str | None) -> None: ...
    def take_snapshot(self) -> None: ...
    def campaign(self) -> None: ...
    def crash_at_job(self, lane: str, skip: int, phase: str, stop: Callable[[], None]) -> None: ...


class Host(Protocol):
    """What survives: a node's disk."""

    def start(self, owner: Owner) -> Any: ...
    def end(self, process: Process, *, power_cut: bool) -> None:
        """The process is gone; with the power, all that was not synced goes too."""

    def fail_next_sync(self) -> None: ...
    def state(self, process: Process) -> Hashable:
        """All of a live node's state, to be compared at the end."""


class Clock:
    """A node's monotonic clock: it may run at another rate than the world, and jump forward."""

    def __init__(self, scheduler: Scheduler, rng: random.Random) -> None:
        self._scheduler = scheduler
        self._rate = rng.choice((1.0, rng.uniform(0.95, 1.05), rng.uniform(0.5, 2.0)))
        self._ahead_s = rng.uniform(1.0, 1000.0)

    def __call__(self) -> float:
        return self._scheduler.now * self._rate + self._ahead_s

    def jump(self, seconds: float) -> None:
        self._ahead_s += seconds


@dataclass(frozen=True, slots=True)
class Result:
    seed: int
    violation: str | None
    message: str
    trace: str  # a hash over every event
    events: int
    operations: int
    committed: int
    undecided: int
    counts: dict[str, int]  # how often what happened, by name


class World:
    def __init__(
        self,
        seed: int,
        nodes: int,
        host_of: Callable[[World, str], Host],
        *,
        reference: Callable[[int, bytes], object],
        idempotency: bool = True,
        duration_s: float = 6.0,
        transcript: Callable[[str], None] | None = None,
        spares: int = 0,
    ) -> None:
        """`nodes` found the cluster; `spares` more may be added to it."""
        self.seed = seed
        self.names = tuple(f"n{number}" for number in range(1, nodes + spares + 1))
        self.founders = self.names[:nodes]
        self.scheduler = Scheduler(self._after_event)
        self.invariants = Invariants(self.names, reference)
        self.settling = False
        self.counts: collections.Counter[str] = collections.Counter()
        self.disk_delay_factor = dict.fromkeys(self.names, 1.0)
        self._traps: dict[
            str, tuple[Callable[[str, str], None], float]
        ] = {}  # kind -> (what to do, how soon)
        self._transcript = transcript
        self._hash = hashlib.blake2b(digest_size=16)
        self._duration_s = duration_s
        self.clocks = {name: Clock(self.scheduler, self.rng("clock " + name)) for name in self.names}
        self.processes: dict[str, Process | None] = dict.fromkeys(self.names)
        self.down: dict[str, float] = {}  # name -> when it may start again
        self.history: dict[bytes, list[Operation]] = {}
        self.hosts = {name: host_of(self, name) for name in self.names}
        self.network = Network(
            self.names, self.scheduler, self.rng("network"), self.processes.get, self.log, self.doors()
        )
        client_rng = self.rng("clients")
        self.clients = [
            Client(
                f"c{number}",
                random.Random(client_rng.getrandbits(64)),
                self.scheduler,
                self.names,
                self.processes.get,
                self.history,
                self.log,
                idempotency=idempotency,
            )
            for number in range(1, client_rng.randint(3, 6))
        ]

    def doors(self) -> Doors | None:
        """None: everybody talks with everybody."""
        return None

    def rng(self, purpose: str) -> random.Random:
        """A stream of its own for each purpose, so that one more draw here shifts nothing there."""
        return random.Random(f"{self.seed} {purpose}")

    def log(self, *words: object) -> None:
        line = f"{self.scheduler.now:.6f} {' '.join(map(str, words))}"
        self._hash.update(line.encode())
        if self._transcript is not None:
            self._transcript(line)

    def log_message(self, source: str, target: str, message: Any, encoded: bytes) -> None:
        """As `log`, but without the cost of its text where nobody reads it."""
        self._hash.update(f"{self.scheduler.now:.6f} {source} {target}".encode())
        self._hash.update(encoded)
        if self._transcript is not None:
            self._transcript(f"{self.scheduler.now:.6f} {source} -> {target} {message}")
        if self._traps:
            self._spring(source, target, message)

    def _spring(self, source: str, target: str, message: Any) -> None:
        kind = message["type"] if isinstance(message, dict) else type(message).__name__
        if kind in APPENDS and not (message.get("entries") if isinstance(message, dict) else message.entries):
            return
        trap = self._traps.pop(TRAPS.get(kind, ""), None)
        if trap is not None:
            act, delay_s = trap
            self.log("trap", kind, source, target)
            self.scheduler.after(delay_s, None, self._snap, act, source, target)

    def _snap(self, act: Callable[[str, str], None], source: str, target: str) -> None:
        if not self.settling:
            act(source, target)

    # --- the run --------------------------------------------------------------------------------------

    def run(self) -> Result:
        violation, message = None, ""
        undecided = 0
        try:
            self._run()
            undecided = check_history(self.history)
        except Violation as found:
            violation, message = found.kind, str(found)
        except Exception as error:  # noqa: BLE001 whatever escapes a node is a finding too
            if self._transcript is not None:
                traceback.print_exc()
            violation, message = "exception", f"{type(error).__name__}: {error}"
        finally:
            for name in self.names:
                process = self.processes[name]
                if process is not None:
                    self._end(process, power_cut=False)
        self.counts["elections"] += len(self.invariants.leaders)
        return Result(
            self.seed,
            violation,
            message,
            self._hash.hexdigest(),
            self.scheduler.events,
            sum(map(len, self.history.values())),
            self.invariants.last_committed,
            undecided,
            dict(self.counts),
        )

    def _run(self) -> None:
        start_rng = self.rng("start")
        for name in self.names:
            self.scheduler.after(start_rng.uniform(0.0, 0.5), None, self.start, name)
        for fault in schedule(self.rng("faults"), self._duration_s):
            self.scheduler.after(fault.at, None, self._inflict, fault)
        self.scheduler.run(self._duration_s)
        self._heal()
        until = self._duration_s + SETTLE_S
        while not self._settled():
            if self.scheduler.now >= until:
                raise Violation("no progress", f"{SETTLE_S} s after everything healed: {self._describe()}")
            self.scheduler.run(self.scheduler.now + 0.25)
        for client in self.clients:
            client.give_up()
        self._check_agreement()

    def _heal(self) -> None:
        self.log("heal")
        self.settling = True
        self._traps.clear()
        self.network.heal()
        for name in self.names:
            self.disk_delay_factor[name] = 1.0
            process = self.processes[name]
            if process is None:
                self.start(name)
            elif process.owner.paused:
                self.scheduler.resume(process.owner)
        for client in self.clients:
            client.stop()

    def _settled(self) -> bool:
        processes = self.expected()
        if processes is None:
            return False
        leaders = [process for process in processes if process.is_leader]
        if len(leaders) != 1 or not all(client.idle for client in self.clients):
            return False
        last = leaders[0].last_index()
        return all(p.last_applied == p.commit_index == last == p.last_index() for p in processes)

    def expected(self) -> list[Process] | None:
        """Who must lead, follow and agree in the end; None while one of them is down."""
        processes = [process for process in self.processes.values() if process is not None]
        return processes if len(processes) == len(self.names) else None

    def _check_agreement(self) -> None:
        processes = self.expected()
        assert processes is not None
        states = {process.name: self.hosts[process.name].state(process) for process in processes}
        one, first = next(iter(states.items()))
        for name, state in states.items():
            if state != first:
                raise Violation("convergence", f"{name} and {one} differ at the end: {state!r} {first!r}")

    def _describe(self) -> str:
        parts = []
        for name, process in self.processes.items():
            if process is None:
                parts.append(f"{name} down")
            elif not process.formed:
                parts.append(f"{name} has not formed")
            else:
                parts.append(
                    f"{name} {'leads' if process.is_leader else 'follows'} term {process.term}"
                    f" commit {process.commit_index} applied {process.last_applied}"
                    f" last {process.last_index()}"
                )
        parts.extend(f"{client.name} waits" for client in self.clients if not client.idle)
        return ", ".join(parts)

    def _after_event(self, owner: Owner) -> None:
        process = self.processes[owner.name]
        if process is not None and process.owner is owner and process.formed:
            self.invariants.observe(process)

    # --- lives ----------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        if self.processes[name] is not None:
            return
        owner = Owner(name)
        self.log("start", name)
        process = self.hosts[name].start(owner)
        self.processes[name] = process
        if process.formed:
            self.invariants.process_started(process)
        self.network.process_started(process)

    def stop(self, name: str, *, power_cut: bool, down_s: float, why: str) -> None:
        process = self.processes[name]
        if process is None:
            return
        self.log(why, name)
        self.counts[why] += 1
        self._end(process, power_cut=power_cut)
        self.network.process_ended(process, power_cut=power_cut)
        self.scheduler.after(down_s, None, self.start, name)

    def _end(self, process: Process, *, power_cut: bool) -> None:
        process.owner.alive = False
        self.processes[process.name] = None
        self.hosts[process.name].end(process, power_cut=power_cut)

    # --- faults ---------------------------------------------------------------------------------------

    def _inflict(self, fault: Fault) -> None:
        self.counts["faults"] += 1
        self.log("fault", fault.kind, f"{fault.lasts_s:.3f}")
        getattr(self, "_fault_" + fault.kind)(random.Random(fault.seed), fault.lasts_s)

    def _leader(self) -> str | None:
        leaders = [p for p in self.processes.values() if p is not None and p.is_leader]
        return max(leaders, key=lambda p: p.term).name if leaders else None

    def _victim(self, rng: random.Random) -> str:
        """Any node, the leader more often than its share."""
        choice = rng.choice(self.names)
        return (self._leader() or choice) if rng.random() < 0.3 else choice

    def _fault_kill(self, rng: random.Random, lasts_s: float) -> None:
        self.stop(self._victim(rng), power_cut=False, down_s=lasts_s, why="kill")

    def _fault_power_cut(self, rng: random.Random, lasts_s: float) -> None:
        self.stop(self._victim(rng), power_cut=True, down_s=lasts_s, why="power cut")

    def _fault_power_cut_all(self, rng: random.Random, lasts_s: float) -> None:
        for name in self.names:
            self.stop(name, power_cut=True, down_s=rng.uniform(0.0, lasts_s), why="power cut")

    def _cut(self, pairs: list[tuple[str, str]], lasts_s: float) -> None:
        for pair in pairs:
            self.network.block(*pair)
            self.scheduler.after(lasts_s, None, self._mend, pair)

    def _mend(self, pair: tuple[str, str]) -> None:
        self.log("heal", *pair)
        self.network.unblock(*pair)

    def _apart(self, one: list[str], lasts_s: float) -> None:
        other = [name for name in self.names if name not in one]
        self.log("cut", ",".join(one), "from", ",".join(other))
        self._cut([pair for a in one for b in other for pair in ((a, b), (b, a))], lasts_s)

    def _fault_isolate(self, rng: random.Random, lasts_s: float) -> None:
        self._apart([rng.choice(self.names)], lasts_s)

    def _fault_isolate_leader(self, rng: random.Random, lasts_s: float) -> None:
        self._apart([self._leader() or rng.choice(self.names)], lasts_s)

    def _fault_split(self, rng: random.Random, lasts_s: float) -> None:
        if len(self.names) > 1:
            self._apart(rng.sample(self.names, rng.randint(1, majority(len(self.names)))), lasts_s)

    def _fault_one_way(self, rng: random.Random, lasts_s: float) -> None:
        name = self._victim(rng)
        inward = rng.random() < 0.5
        others = [other for other in self.names if other != name]
        others = rng.sample(others, rng.randint(min(1, len(others)), len(others)))
        self.log("cut one way", name, "in" if inward else "out", *others)
        self._cut([(other, name) if inward else (name, other) for other in others], lasts_s)

    def _fault_reset(self, rng: random.Random, lasts_s: float) -> None:
        for source, target in self.network.links:
            if rng.random() < 0.3:
                self.network.reset(source, target)

    def _fault_pause(self, rng: random.Random, lasts_s: float) -> None:
        process = self.processes[self._victim(rng)]
        if process is None or process.owner.paused:
            return
        self.log("pause", process.name)
        process.owner.paused = True
        self.scheduler.after(lasts_s, None, self._resume, process)

    def _resume(self, process: Process) -> None:
        if process.owner.alive and process.owner.paused:
            self.log("resume", process.name)
            self.scheduler.resume(process.owner)

    def _fault_clock_jump(self, rng: random.Random, lasts_s: float) -> None:
        self.clocks[rng.choice(self.names)].jump(lasts_s)

    def _fault_slow_disk(self, rng: random.Random, lasts_s: float) -> None:
        name = self._victim(rng)
        self.disk_delay_factor[name] = rng.choice((10.0, 100.0, 300.0))
        self.scheduler.after(lasts_s, None, self._restore_disk, name)

    def _restore_disk(self, name: str) -> None:
        self.disk_delay_factor[name] = 1.0

    def _fault_slow_link(self, rng: random.Random, lasts_s: float) -> None:
        links = [link for link in self.network.links.values() if rng.random() < 0.4]
        for link in links:
            link.delay_factor = rng.choice((10.0, 100.0, 1000.0))
        self.scheduler.after(lasts_s, None, self._restore_links, links)

    def _restore_links(self, links: list[Any]) -> None:
        for link in links:
            link.delay_factor, link.delay_s = 1.0, 0.0

    def _fault_sync_fails(self, rng: random.Random, lasts_s: float) -> None:
        name = self._victim(rng)
        if self.processes[name] is not None:
            self.hosts[name].fail_next_sync()

    def _fault_transfer(self, rng: random.Random, lasts_s: float) -> None:
        leader = self._leader()
        if leader is not None:
            process = self.processes[leader]
            assert process is not None
            to = rng.choice([None, *(name for name in self.names if name != leader)])
            self.scheduler.after(0.0, process.owner, process.transfer_leadership, to)

    def _fault_contest(self, rng: random.Random, lasts_s: float) -> None:
        """Some stand for election at once, without asking first: Raft allows that at any time."""
        for name in rng.sample(self.names, rng.randint(1, len(self.names))):
            process = self.processes[name]
            if process is not None:
                self.scheduler.after(rng.uniform(0.0, 0.005), process.owner, process.campaign)
        if rng.random() < 0.5:
            self._set_trap(rng, lasts_s, rng.choice(("ask", "vote", "vote")))

    def _fault_crash_at_job(self, rng: random.Random, lasts_s: float) -> None:
        """A process ends in or around something that it does on a disk."""
        lane = rng.choice(("journal", "snapshot"))
        self._crash_at_job(rng, lasts_s, self._victim(rng), lane)

    def _crash_at_job(self, rng: random.Random, lasts_s: float, name: str, lane: str) -> None:
        process = self.processes[name]
        if process is None:
            return
        power_cut = rng.random() < 0.5
        phase = rng.choice(("during", "after", "soon"))
        delay_s = rng.uniform(0.0, 0.003) if phase == "soon" else 0.0
        down_s = rng.uniform(0.0, lasts_s)

        def crash() -> None:
            if not self.settling:
                self.stop(name, power_cut=power_cut, down_s=down_s, why="crash at a job")

        def stop() -> None:
            if delay_s:
                self.scheduler.after(delay_s, process.owner, crash)
            else:
                crash()

        process.crash_at_job(lane, rng.randint(0, 6), phase, stop)

    def _fault_depose(self, rng: random.Random, lasts_s: float) -> None:
        """A leader and a follower are cut off from the rest, which elects another; then they come back and
        the old leader stands again, while what the follower told it before is still on its way."""
        leader = self._leader()
        if leader is None or len(self.names) < 3:
            return
        follower = rng.choice([name for name in self.names if name != leader])
        link = self.network.links[follower, leader]
        link.delay_s = rng.uniform(1.0, 4.0)
        self.scheduler.after(rng.uniform(0.1, 1.5), None, self._restore_links, [link])
        apart_s = rng.uniform(1.0, 2.5)
        self._apart([leader, follower], apart_s)
        for _ in range(3):
            self.scheduler.after(apart_s + rng.uniform(0.05, 1.5), None, self._stand, leader)

    def _stand(self, name: str) -> None:
        process = self.processes[name]
        if process is not None and not self.settling:
            self.scheduler.after(0.0, process.owner, process.campaign)

    def _fault_trap(self, rng: random.Random, lasts_s: float) -> None:
        kind = rng.choice(("append", "fetch", "offer", *sorted(set(TRAPS.values()))))
        self._set_trap(rng, lasts_s, kind)

    def _set_trap(self, rng: random.Random, lasts_s: float, kind: str) -> None:
        """Something happens to whoever sends or gets the next message of a kind, just then."""
        down_s = rng.uniform(0.0, rng.choice((0.1, lasts_s)))
        whom = rng.choice(((0,), (1,), (0, 1)))

        def kill(*ends: str) -> None:
            for end in whom:
                self.stop(ends[end], power_cut=False, down_s=down_s, why="kill")

        def power_cut(*ends: str) -> None:
            for end in whom:
                self.stop(ends[end], power_cut=True, down_s=down_s, why="power cut")

        def reset(source: str, target: str) -> None:
            self.network.reset(source, target)
            self.network.reset(target, source)

        def isolate_target(source: str, target: str) -> None:
            self._apart([target], lasts_s)

        def crash_install(source: str, target: str) -> None:
            self._crash_at_job(rng, lasts_s, source if kind == "fetch" else target, "snapshot")

        act = rng.choice((kill, power_cut, reset, isolate_target))
        if kind in ("offer", "fetch", "part") and rng.random() < 0.5:
            act = crash_install
        delay_s = rng.choice((0.0, rng.uniform(0.0, 0.003), rng.uniform(0.0, 0.1)))
        self._traps[kind] = (act, delay_s)

    def _fault_snapshot(self, rng: random.Random, lasts_s: float) -> None:
        process = self.processes[self._victim(rng)]
        if process is not None:
            self.scheduler.after(0.0, process.owner, process.take_snapshot)
