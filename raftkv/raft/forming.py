"""How a new cluster comes to be, once. PURE (sans-IO): events in, actions out.

Every initial member must be there and empty; a majority would let a node with a wiped disk and a late one
found a second cluster beside the first. One member coordinates, the one with the smallest name:

    coordinator                                              every other member, while it is empty
      its connection to the peer stands:  Ask(round)   ─►
                                                       ◄─    Ready(round)
      has a Ready of every member for the round of its
      live connection: draws the cluster id, Persist
      persisted(): Formed, Found(membership) to all    ─►    Persist; persisted(): Formed
                                                       ◄─    Confirmed(cluster)

Any member that has formed sends Found to any member that it meets unformed under the instance that the
membership names: so a coordinator that dies half way leaves nobody behind.

Why there is never a second cluster. Let X be persisted by a coordinator, whose disk is then lost. Its new
self, another instance, founds nothing without a Ready of every member, given by each to *it*, on its
newest connection. A member that X has reached is not empty, and gives none. A member that has given one
hears nothing more from the old instance: the transport drops an older connection of a peer for a newer
one, with all that it held. And X spreads only from members on whose disks it is. Ready is bound to the
coordinator's live connection by `round`, so that a member that restarted since must give it anew.
If the members that knew X lose their disks along with the coordinator, X is forgotten; that is not this
module's to prevent.

A node that was added to a cluster that stands hears of it in the same way: whoever is connected to it, and
knows its disk to be the one that was added, sends Found with the founding and the present membership. Its
log begins with the founding entry, as everybody's; the rest comes by Raft. With `joining` a node waits for
that alone, and takes no part in forming.

Crashes: the one durable step of a member is Persist, all or nothing; what it says (`identity`, Found,
Confirmed) it says after. Restarted before it, the member is empty under the same instance, and starts
over; restarted after it, it is formed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from raftkv.errors import ConfigError
from raftkv.model import Identity, Member, Membership
from raftkv.raft.handshake import Hello

# --- what members say to each other about it ------------------------------------------------------------


class _Control(msgspec.Struct, frozen=True, array_like=True, tag_field="t"):
    pass


class Ask(_Control, frozen=True, tag="a"):
    """The coordinator: are you empty, and with me?"""

    round: str


class Ready(_Control, frozen=True, tag="r"):
    """I am empty, and heard `round` from you."""

    round: str


class Found(_Control, frozen=True, tag="f"):
    """The cluster is founded: this is on the sender's disk. `current` is the newest membership that the
    sender knows to be committed, where that is another."""

    membership: Membership
    current: Membership | None = None


class Confirmed(_Control, frozen=True, tag="c"):
    """The sender has this cluster's membership on its disk."""

    cluster: str


Control = Ask | Ready | Found | Confirmed

_controls: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)


def encode_control(control: Control) -> bytes:
    return msgspec.msgpack.encode(control)


def decode_control(payload: bytes | memoryview) -> Control:
    """Raises ValueError for anything but one well-formed control message."""
    try:
        return _controls.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a control message of this protocol version: {error}") from error


# --- what the node is to do -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tell:
    """Send this to the peer, over this node's own connection to it; may be lost if that breaks."""

    peer: str
    control: Control


@dataclass(frozen=True, slots=True)
class Persist:
    """Put this on disk, all or nothing (`identity.settle`), then call `persisted()`. `joined`: the membership
    that let this node in, where it is no founder."""

    membership: Membership
    joined: Membership | None = None


@dataclass(frozen=True, slots=True)
class Formed:
    """The cluster stands, durably, as far as this node is concerned: start the engine."""

    membership: Membership


Action = Tell | Persist | Formed


class Forming:
    """Lives as long as its node: a formed one still tells members that come late.

    `founding` is what an earlier life of this node persisted. `draw` makes an unpredictable 32-digit hex
    string. Each event returns the actions to take, in order.
    """

    def __init__(
        self,
        identity: Identity,
        initial_members: tuple[Member, ...],
        *,
        founding: Membership | None,
        draw: Callable[[], str],
        joining: bool = False,
    ) -> None:
        self._me = identity
        self._joining = joining
        self._initial = tuple(sorted(initial_members, key=lambda member: member.name))
        self._names = tuple(member.name for member in self._initial)
        if founding is None:
            _check_members(identity.name, self._names)
        self._draw = draw
        self._membership = founding  # in memory; `_durable` says if it may be spoken of
        self._current = founding  # the newest membership known to be committed
        self._durable = founding is not None
        self._linked: dict[str, Hello] = {}  # to whom this node's own connection stands
        self._formed_peers: set[str] = set()
        self._rounds: dict[str, str] = {}  # coordinator: the round of its live connection to each
        self._ready: dict[str, str] = {}  # coordinator: the instance under which each gave its Ready
        self._asked: tuple[str, str] | None = None  # others: (instance of the coordinator, round)

    @property
    def identity(self) -> Identity:
        """What this node may say of itself: the cluster only once it is on disk."""
        membership = self.membership
        return (
            self._me if membership is None else Identity(self._me.name, self._me.instance, membership.cluster)
        )

    @property
    def membership(self) -> Membership | None:
        """The founding membership, once it is on disk."""
        return self._membership if self._durable else None

    @property
    def coordinator(self) -> str:
        return self._names[0]

    # --- events ---

    def start(self) -> tuple[Action, ...]:
        if self._durable:
            assert self._membership is not None
            return (Formed(self._membership),)
        return self._form_if_complete()

    def peer_connected(self, peer: Hello) -> tuple[Action, ...]:
        """This node's own connection to the peer stands; `peer` is how it presented itself."""
        self._linked[peer.name] = peer
        self._ready.pop(peer.name, None)
        if peer.cluster:
            self._formed_peers.add(peer.name)
            return ()
        self._formed_peers.discard(peer.name)
        if self._durable:
            return self._tell_founding(peer.name)
        if self._membership is not None:
            return ()
        if self._joining:
            return ()
        if self.coordinator == self._me.name:
            self._rounds[peer.name] = self._draw()
            return (Tell(peer.name, Ask(self._rounds[peer.name])),)
        return self._say_ready() if peer.name == self.coordinator else ()

    def membership_committed(self, membership: Membership) -> tuple[Action, ...]:
        """The newest one that this node knows to be committed: who was added may be connected already."""
        self._current = membership
        if not self._durable:
            return ()
        return tuple(action for name in sorted(self._linked) for action in self._tell_founding(name))

    def peer_disconnected(self, name: str) -> None:
        self._linked.pop(name, None)
        self._rounds.pop(name, None)
        self._ready.pop(name, None)

    def receive(self, sender: Hello, control: Control) -> tuple[Action, ...]:
        """`sender` as it presented itself on the connection that the message came on."""
        match control:
            case Ask():
                return self._receive_ask(sender, control)
            case Ready():
                return self._receive_ready(sender, control)
            case Found():
                return self._receive_found(sender, control)
            case Confirmed():
                self._formed_peers.add(sender.name)
                self._ready.pop(sender.name, None)
                return ()

    def persisted(self) -> tuple[Action, ...]:
        """The membership of the last Persist is on disk."""
        assert self._membership is not None
        assert not self._durable
        self._durable = True
        told = [action for name in sorted(self._linked) for action in self._tell_founding(name)]
        confirmed = [Tell(name, Confirmed(self._membership.cluster)) for name in sorted(self._linked)]
        return (Formed(self._membership), *told, *confirmed)

    # --- the coordinator ---

    def _receive_ready(self, sender: Hello, ready: Ready) -> tuple[Action, ...]:
        linked = self._linked.get(sender.name)
        if (
            linked is None
            or linked.instance != sender.instance
            or self._rounds.get(sender.name) != ready.round
        ):
            return ()
        self._ready[sender.name] = sender.instance
        return self._form_if_complete()

    def _form_if_complete(self) -> tuple[Action, ...]:
        if self._membership is not None or self.coordinator != self._me.name or self._joining:
            return ()
        instances = {self._me.name: self._me.instance, **self._ready}
        if set(instances) != set(self._names) or self._formed_peers:
            return ()
        self._membership = Membership(self._draw(), self._initial, tuple(sorted(instances.items())))
        self._current = self._membership
        return (Persist(self._membership),)

    # --- the others ---

    def _receive_ask(self, sender: Hello, ask: Ask) -> tuple[Action, ...]:
        if sender.name != self.coordinator or self._joining:
            return ()
        self._asked = (sender.instance, ask.round)
        return self._say_ready()

    def _say_ready(self) -> tuple[Action, ...]:
        """Only while empty, and only to the instance that asked, if that is who this node is connected to."""
        linked = self._linked.get(self.coordinator)
        if self._membership is not None or self._asked is None or linked is None:
            return ()
        instance, asked_round = self._asked
        return (Tell(self.coordinator, Ready(asked_round)),) if linked.instance == instance else ()

    def _receive_found(self, sender: Hello, found: Found) -> tuple[Action, ...]:
        membership, current = found.membership, found.current or found.membership
        me = self._me
        if current.instance(me.name) != me.instance or current.instance(sender.name) != sender.instance:
            return ()
        if self._membership is None:
            self._formed_peers.add(sender.name)
            self._membership, self._current = membership, current
            return (Persist(membership, None if current == membership else current),)
        if self._membership.cluster == membership.cluster:
            self._formed_peers.add(sender.name)
            if self._durable and sender.name in self._linked:
                return (Tell(sender.name, Confirmed(membership.cluster)),)
        return ()

    # --- whoever has formed ---

    def _tell_founding(self, name: str) -> tuple[Action, ...]:
        assert self._membership is not None
        assert self._current is not None
        peer = self._linked[name]
        if name in self._formed_peers or self._current.instance(name) != peer.instance:
            return ()
        current = None if self._current == self._membership else self._current
        return (Tell(name, Found(self._membership, current)),)

    # --- for a person ---

    def waiting_for(self, problem: Callable[[str], str]) -> tuple[str, ...]:
        """A sentence for each thing that this node waits for, () once it has formed. `problem(peer)` says
        why the connection to the peer does not stand (`Transport.problem`)."""
        if self._durable:
            return ()
        if self._membership is not None:
            return ("its own disk, to write the membership",)
        if self._joining:
            return (f"a cluster that it is added to (raftkv member add {self._me.name} …)",)
        waits = [sentence for name in self._names if (sentence := self._wait_for(name, problem))]
        return tuple(waits) or (f"{self.coordinator}, which coordinates, to found the cluster",)

    def _wait_for(self, name: str, problem: Callable[[str], str]) -> str:
        if name == self._me.name:
            return ""
        if name not in self._linked:
            return f"{name}: {problem(name) or 'not connected'}"
        if name in self._formed_peers:
            return f"{name}: has formed a cluster already, and should name this node's place in it"
        if self.coordinator == self._me.name and name not in self._ready:
            return f"{name}: has not connected back to this node yet"
        return ""


def _check_members(name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ConfigError(
            f"the members are {', '.join(names) or 'none'}, but this node is called {name}: "
            f"add --member {name}=…, or correct --name"
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"the members {', '.join(names)} name one twice")
