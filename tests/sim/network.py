"""Links that behave as TCP does.

Each pair of members has two links, one a direction, since a dialed connection carries only its dialer's
messages. A link has at most one connection. On a live connection messages arrive complete and in order,
however late; what a connection had not delivered when it broke is lost, all of it from some message on.

A cut stops packets, not connections: messages sent meanwhile wait in the sender's buffer and arrive late
if the path heals before the connection gives up (`patience_s`). A connection needs both directions of its
path to be made or to live on, and only its own direction to deliver: a one-way cut lets the other way
speak for a while.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.sim.scheduler import Owner, Scheduler


class Endpoint(Protocol):
    """What the network needs of one life of a process."""

    owner: Owner

    def receive(self, peer: str, message: Any) -> None: ...
    def peer_connected(self, peer: str) -> None: ...
    def peer_disconnected(self, peer: str) -> None: ...


# May these two connect, and how do they present themselves to each other (the dialer first)? None: no.
Doors = Callable[[Any, Any], tuple[Any, Any] | None]


@dataclass(slots=True, eq=False)
class Connection:
    sender: Endpoint
    receiver: Endpoint
    patience_s: float
    hellos: tuple[Any, Any] | None = None
    open: bool = True
    stalled: bool = False
    last_arrival: float = 0.0
    in_flight: deque[Any] = field(default_factory=deque)
    deliverable: int | None = None  # after the sender died: how many of `in_flight` still arrive


@dataclass(slots=True, eq=False)
class Link:
    source: str
    target: str
    blocked: bool = False
    delay_factor: float = 1.0
    delay_s: float = 0.0
    connection: Connection | None = None
    orphan: Connection | None = None  # of a dead sender: what its kernel had taken may still arrive


class Network:
    def __init__(
        self,
        names: Sequence[str],
        scheduler: Scheduler,
        rng: random.Random,
        endpoint_of: Callable[[str], Endpoint | None],
        log: Callable[..., None],
        doors: Doors | None = None,
    ) -> None:
        self._doors = doors
        self.links = {(a, b): Link(a, b) for a in names for b in names if a != b}
        self.delay_ms = (0.1, rng.choice((1.0, 2.0, 20.0)))
        self.hiccup_probability = rng.choice((0.0, 0.0, 0.01, 0.05))
        self.patience_s = rng.choice(((0.3, 1.0), (1.0, 3.0), (5.0, 10.0)))
        self._scheduler = scheduler
        self._rng = rng
        self._endpoint_of = endpoint_of
        self._log = log

    # --- what members do ------------------------------------------------------------------------------

    def process_started(self, endpoint: Endpoint) -> None:
        name = endpoint.owner.name
        for link in self.links.values():
            if name in (link.source, link.target):
                self._try_later(link, first=True)

    def process_ended(self, endpoint: Endpoint, *, power_cut: bool) -> None:
        """A killed process's kernel sends what it had taken, or a part of it, and resets the rest; a machine
        without power just falls silent."""
        name = endpoint.owner.name
        for link in self.links.values():
            connection = link.connection
            if connection is None:
                continue
            if link.source == name:
                connection.deliverable = self._rng.randint(0, len(connection.in_flight))
                connection.open = connection.deliverable > 0
                link.connection, link.orphan = None, connection
            elif link.target == name:
                notice_s = self._rng.uniform(*self.patience_s) if power_cut else self._rng.uniform(0.0, 0.01)
                connection.in_flight.clear()
                self._scheduler.after(notice_s, None, self._break, link, connection)

    def send(self, source: str, target: str, message: Any) -> None:
        connection = self.links[source, target].connection
        if connection is None or not connection.open:
            return
        link = self.links[source, target]
        delay_s = self._rng.uniform(*self.delay_ms) * link.delay_factor / 1000 + link.delay_s
        if self.hiccup_probability and self._rng.random() < self.hiccup_probability:
            delay_s += self._rng.uniform(0.0, 0.3)
        arrival = max(connection.last_arrival, self._scheduler.now + delay_s)
        connection.last_arrival = arrival
        connection.in_flight.append(message)
        self._scheduler.after(arrival - self._scheduler.now, None, self._arrive, link, connection)

    def judge_again(self, name: str, stays: Callable[[bool, str, Any], bool]) -> None:
        """Closes what the member `name` no longer wants: `stays(dialed, peer, hello of the peer)`."""
        for link in self.links.values():
            if name not in (link.source, link.target):
                continue
            dialed = link.source == name
            peer = link.target if dialed else link.source
            for connection in (link.connection, link.orphan):
                if connection is None or not connection.open or connection.hellos is None:
                    continue
                if not stays(dialed, peer, connection.hellos[1 if dialed else 0]):
                    self._break(link, connection)

    # --- what faults do -------------------------------------------------------------------------------

    def block(self, source: str, target: str) -> None:
        self.links[source, target].blocked = True
        for link in (self.links[source, target], self.links[target, source]):
            connection = link.connection
            if connection is not None and connection.open and not connection.stalled:
                connection.stalled = True
                self._scheduler.after(connection.patience_s, None, self._give_up, link, connection)

    def unblock(self, source: str, target: str) -> None:
        link, back = self.links[source, target], self.links[target, source]
        link.blocked = False
        for each in (link, back):
            connection = each.connection
            if connection is not None and connection.open:
                if not each.blocked:
                    self._retransmit(each, connection)
                if not link.blocked and not back.blocked:
                    connection.stalled = False

    def reset(self, source: str, target: str) -> None:
        """Breaks the connection at once: a part of what was in flight still arrives first, the rest is
        lost."""
        link = self.links[source, target]
        connection = link.connection
        if connection is not None and connection.open:
            for _ in range(self._rng.randint(0, len(connection.in_flight))):
                self._arrive(link, connection)
            self._break(link, connection)

    def heal(self) -> None:
        for source, target in self.links:
            self.links[source, target].delay_factor = 1.0
            self.links[source, target].delay_s = 0.0
            if self.links[source, target].blocked:
                self.unblock(source, target)

    # --- inside ---------------------------------------------------------------------------------------

    def _arrive(self, link: Link, connection: Connection) -> None:
        if not connection.open or not connection.in_flight or link.blocked:
            return  # blocked: stays in flight, and is sent again when the path heals
        self._deliver(link, connection)

    def _deliver(self, link: Link, connection: Connection) -> None:
        message = connection.in_flight.popleft()
        if connection.deliverable is not None:
            connection.deliverable -= 1
            if connection.deliverable == 0:
                connection.open = False
        if connection.receiver.owner.alive:
            # The bytes are in the receiver's socket now: a paused process reads them when it goes on.
            self._scheduler.after(
                0.0, connection.receiver.owner, connection.receiver.receive, link.source, message
            )

    def _retransmit(self, link: Link, connection: Connection) -> None:
        """The messages that a cut held back arrive now, after their retransmission, in order."""
        delay_s = self._rng.uniform(0.0, 0.2)
        now = self._scheduler.now
        connection.last_arrival = max(connection.last_arrival, now + delay_s)
        for _ in range(len(connection.in_flight)):
            self._scheduler.after(delay_s, None, self._arrive, link, connection)

    def _give_up(self, link: Link, connection: Connection) -> None:
        if connection.stalled:
            self._break(link, connection)

    def _break(self, link: Link, connection: Connection) -> None:
        if not connection.open:
            return
        connection.open = False
        if link.connection is connection:
            link.connection = None
            self._log("disconnected", link.source, link.target)
            sender = connection.sender
            if sender.owner.alive:
                self._scheduler.after(0.0, sender.owner, sender.peer_disconnected, link.target)
            self._try_later(link)

    def _try_later(self, link: Link, *, first: bool = False) -> None:
        delay_s = self._rng.expovariate(1 / (0.01 if first else 0.05))
        self._scheduler.after(delay_s, None, self._connect, link, self._endpoint_of(link.source))

    def _connect(self, link: Link, dialer: Endpoint | None) -> None:
        sender, receiver = self._endpoint_of(link.source), self._endpoint_of(link.target)
        if sender is None or sender is not dialer or link.connection is not None:
            return  # the next start dials again
        path_open = not link.blocked and not self.links[link.target, link.source].blocked
        if receiver is None or not path_open or sender.owner.paused or receiver.owner.paused:
            self._try_later(link)
            return
        hellos = None
        if self._doors is not None:
            hellos = self._doors(sender, receiver)
            if hellos is None:
                self._try_later(link)
                return
        if link.orphan is not None:  # a newer connection from a peer replaces its older one
            link.orphan.open = False
            link.orphan = None
        link.connection = Connection(sender, receiver, self._rng.uniform(*self.patience_s), hellos)
        self._log("connected", link.source, link.target)
        self._scheduler.after(0.0, sender.owner, sender.peer_connected, link.target)
