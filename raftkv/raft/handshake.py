"""Who is calling? Mutual challenge–response before anything else is parsed. PURE (sans-IO).

Both ends hold the cluster secret. Each proves it by an HMAC-SHA256 over nonces of both, so that neither
a recorded handshake nor a reflected one passes; the secret itself never crosses the wire.

    dialer                                                        acceptor
      greeting  = "RAFTKV" | version u8 | role u8 'D' | nonce 32      ─────►       40 bytes
                                                                      ◄─────       greeting, role 'A'
      statement = length u16 | mac 32 | payload (length bytes)        ─────►       payload: `Hello`
                                                                      ◄─────       statement: `Answer`
      frames (`frames.py`)                                            ─────►       never the other way

    keys: base      = HMAC(secret, "raftkv raft port 1" | dialer's greeting | acceptor's greeting)
          hello     = HMAC(base, "dialer hello")          mac of the dialer's statement, over length | payload
          answer    = HMAC(base, "acceptor answer")       mac of the acceptor's statement, over the dialer's
                                                          whole statement | length | payload
          frames    = HMAC(base, "dialer frames")         of this connection and this direction only

All integers are little endian. Payloads are msgpack, checked against their schema, and only after their
MAC. Before that the parts of the peer that are looked at have fixed places: magic, version, role, nonce,
and a length of at most `STATEMENT_BYTES_MAX`. A connection carries frames from its dialer to its acceptor
only, hence one frame key.

Reflection is refused three times over: the role is part of the greeting, the two statements have
different keys, and nobody accepts its own name or its own nonce. A relay in between can't redirect a
dialer either: the hello names whom it is for.

The magic and the version stay where they are in every future version, so that an older node can say
clearly that the other is newer. The version is under the MACs with the rest of the greeting.

`admit` is the decision about a peer that has proven the secret: is it the one it should be? A refusal
goes to the peer under the same MAC, and names what to do about it.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from raftkv.model import Identity, Member, Membership
from raftkv.raft import protocol

VERSION = 1
NONCE_BYTES = 32
STATEMENT_BYTES_MAX = 16 * 1024  # a hello of 50 members with long addresses takes 8 KiB
SECRET_BYTES_MIN = 16

_MAGIC = b"RAFTKV"
_DIALER = ord("D")
_ACCEPTOR = ord("A")
_GREETING = struct.Struct(f"<{len(_MAGIC)}sBB{NONCE_BYTES}s")
_LENGTH = struct.Struct("<H")
_MAC_BYTES = 32
_STATEMENT_HEADER_BYTES = _LENGTH.size + _MAC_BYTES


class HandshakeFailed(Exception):
    """The peer could not be authenticated, or does not speak this protocol. The connection must close,
    after `reply` has been written: what tells a peer of another version which one this node speaks."""

    def __init__(self, reason: str, *, reply: bytes = b"") -> None:
        super().__init__(reason)
        self.reply = reply


# --- what the two say about themselves ------------------------------------------------------------------

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Instance = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
_Cluster = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{32})?\Z")]


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """One end of a connection, as it presents itself.

    `cluster` is empty before the cluster has formed. `target` is whom the sender believes to talk to.
    `members` are the initial members from its configuration, in order of name; empty once it has formed.
    From then on `membership` is the newest that it knows to be committed, and `me` the addresses that it was
    started with. `joining`: it waits to be added to a cluster, and founds none. It speaks every protocol from
    `protocol_min` to `protocol`.
    """

    protocol: int
    release: Annotated[str, msgspec.Meta(max_length=64)]
    cluster: _Cluster
    name: _Name
    instance: _Instance
    target: _Name
    members: tuple[Member, ...] = ()
    membership: Membership | None = None
    me: Member | None = None
    joining: bool = False
    protocol_min: int = 1


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """Why one node won't talk with another. `code` is stable, `reason` tells a person what to do."""

    code: Annotated[str, msgspec.Meta(max_length=64)]
    reason: Annotated[str, msgspec.Meta(max_length=4096)]


class Answer(msgspec.Struct, frozen=True, array_like=True):
    hello: Hello
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What a node goes by when it judges a peer: itself, the newest membership that it knows to be committed
    once there is one (it wins over the command line), the one in effect in its log where that is newer, and
    the members that it was started with."""

    identity: Identity
    membership: Membership | None
    initial_members: tuple[Member, ...]
    effective: Membership | None = None
    joining: bool = False

    def hello(self, *, target: str, release: str) -> Hello:
        me = self.identity
        formed = bool(me.cluster)
        members = () if formed else tuple(sorted(self.initial_members, key=lambda m: m.name))
        own = next((member for member in self.initial_members if member.name == me.name), None)
        return Hello(
            protocol.PROTOCOL,
            release,
            me.cluster,
            me.name,
            me.instance,
            target,
            members,
            self.membership if formed else None,
            own,
            self.joining and not formed,
            protocol.PROTOCOL_MIN,
        )


def judge(hello: Hello, standing: Standing) -> Refusal | None:
    """`admit` by any membership that may be the present one: what this node knows, and what the peer knows to
    be committed, where that is newer. A node that was away learns in this way of members that it has never
    heard of. The refusal is that of the newest."""
    own, membership = standing.identity, standing.membership
    if membership is None:
        return admit(hello, own, None, standing.initial_members, joining=standing.joining)
    known = (membership, standing.effective, hello.membership)
    views = {view.version: view for view in known if view and view.version >= membership.version}
    refusals = [admit(hello, own, views[version], ()) for version in sorted(views, reverse=True)]
    return None if None in refusals else refusals[0]


def admit(
    hello: Hello,
    own: Identity,
    membership: Membership | None,
    initial: tuple[Member, ...],
    *,
    joining: bool = False,
) -> Refusal | None:
    """None: the peer is who it should be. The first rule that it breaks is the one it is told.

    A node that has not formed yet (`membership` None) talks to every initial member, formed or not, and to
    every member of a cluster that counts it in: it is how it learns of its cluster. What it knows of
    instances, it learns in forming (`forming.py`).
    """
    me, peer = own.name, hello.name
    if peer == me:
        return Refusal(
            "own_name",
            f"a node called {peer} is calling the node {me}: give each node a name of its own, "
            "and check that no member's address leads back to the node itself",
        )
    if hello.target != me:
        return Refusal(
            "wrong_target",
            f"{peer} called {hello.target} but reached {me}: correct the raft address of {hello.target} "
            f"in the members that {peer} was given",
        )
    if own.cluster and hello.cluster and own.cluster != hello.cluster:
        return Refusal(
            "other_cluster",
            f"{peer} belongs to cluster {hello.cluster}, {me} to cluster {own.cluster}: correct the "
            "members or the data directory of the one that is in the wrong place",
        )
    refusal = _admit_protocol(hello, me, membership)
    if refusal is not None:
        return refusal
    if membership is None:
        return _admit_unformed(hello, own, initial, joining)
    return _admit_formed(hello, me, membership)


def _admit_protocol(hello: Hello, me: str, membership: Membership | None) -> Refusal | None:
    peer, least, most = hello.name, hello.protocol_min, hello.protocol
    if membership is not None and most < membership.level:
        return Refusal(
            "old_release",
            f"cluster {membership.cluster} has reached level {membership.level} of the protocol, and {peer} "
            f"speaks {most} at most (release {hello.release}): upgrade {peer}",
        )
    if most >= protocol.PROTOCOL_MIN and least <= protocol.PROTOCOL:
        return None
    behind = peer if most < protocol.PROTOCOL_MIN else me
    return Refusal(
        "other_protocol",
        f"{peer} speaks the protocols {least} to {most} (release {hello.release}), {me} "
        f"{protocol.PROTOCOL_MIN} to {protocol.PROTOCOL}: upgrade {behind}, one release after the other",
    )


def _admit_unformed(
    hello: Hello, own: Identity, initial: tuple[Member, ...], joining: bool
) -> Refusal | None:
    me = own.name
    if hello.membership is not None and hello.membership.instance(me) in ("", own.instance):
        return None
    if not hello.cluster and (joining or hello.joining):
        waits = me if joining else hello.name
        return Refusal(
            "joining",
            f"{waits} was started with --join: it waits for a cluster that stands, and founds none with "
            f"{hello.name if joining else me}, which has not formed",
        )
    if joining:
        return Refusal(
            "not_added",
            f"{me} waits to be added to the cluster of {hello.name}: raftkv member add {me} …",
        )
    if hello.name not in {member.name for member in initial}:
        return Refusal(
            "unknown_name",
            f"{me} was started without a member {hello.name} (it knows {_listed(initial)}): "
            "start every node with the same members",
        )
    if not hello.cluster and tuple(hello.members) != tuple(sorted(initial, key=lambda m: m.name)):
        return Refusal(
            "other_members",
            f"{hello.name} was started with the members {_listed(hello.members)}, {me} with "
            f"{_listed(initial)}: give every node the same names, raft addresses and client URLs",
        )
    return None


def _admit_formed(hello: Hello, me: str, membership: Membership) -> Refusal | None:
    peer = hello.name
    if peer not in {member.name for member in membership.members}:
        return Refusal(
            "unknown_name",
            f"cluster {membership.cluster} has no member {peer} (it has {_listed(membership.members)}): "
            f"add {peer} to the cluster first (raftkv member add {peer} …), or correct its name",
        )
    known = membership.instance(peer)
    if known == hello.instance:
        return None
    if known == "":
        if not hello.cluster:
            return None  # the leader will take this disk for the one that was added
        return Refusal(
            "not_empty",
            f"{peer} was added to cluster {membership.cluster} and must start with an empty data directory, "
            "but its disk has been in a cluster before: give it a new one",
        )
    if not hello.cluster:
        return Refusal(
            "empty_disk",
            f"the disk of {peer} is empty, but cluster {membership.cluster} knows {peer} with another disk "
            f"(instance {known}): restore the old data directory, or re-admit {peer} to the cluster "
            f"(raftkv member replace {peer}). It may not go on under its old name by itself, for it has "
            "forgotten its votes and entries",
        )
    return Refusal(
        "other_instance",
        f"{peer} runs on the disk of instance {hello.instance}, but cluster {membership.cluster} knows it as "
        f"instance {known}: start {peer} with its own data directory, not with a copy or an older one",
    )


def _listed(members: tuple[Member, ...]) -> str:
    return (
        ", ".join(f"{m.name}={m.peer},{m.client_url}" for m in sorted(members, key=lambda m: m.name))
        or "none"
    )


# --- the protocol: bytes in, events out -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes to the peer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Established:
    """The peer has proven the secret and both are content: frames under `frame_key` follow."""

    peer: Hello
    frame_key: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer has proven the secret, and one of the two won't go on. `by_peer` tells which."""

    peer: Hello
    refusal: Refusal
    by_peer: bool


Event = Send | Established | Refused
Judge = Callable[[Hello], Refusal | None]


class Dialer:
    """The calling end. Send `greeting` first, then feed what arrives until Established, Refused or an error.

    `hello` is what this node says of itself, to `hello.target`. `judge` decides about the acceptor.
    """

    def __init__(self, *, secret: bytes, nonce: bytes, hello: Hello, judge: Judge) -> None:
        self.greeting = _GREETING.pack(_MAGIC, VERSION, _DIALER, _checked_nonce(nonce))
        self._nonce = nonce
        self._secret = secret
        self._hello = hello
        self._judge = judge
        self._received = _Received()
        self._keys: _Keys | None = None
        self._statement = b""

    def feed(self, data: bytes) -> tuple[Event, ...]:
        """Raises HandshakeFailed: the connection is then over."""
        self._received.add(data)
        events: list[Event] = []
        if self._keys is None:
            greeting = self._received.take_greeting(_ACCEPTOR, own_nonce=self._nonce)
            if greeting is None:
                return ()
            self._keys = _Keys(self._secret, dialer=self.greeting, acceptor=greeting)
            self._statement = _statement(self._keys.hello, b"", msgspec.msgpack.encode(self._hello))
            events.append(Send(self._statement))
        payload = self._received.take_statement(self._keys.answer, self._statement)
        if payload is not None:
            events.append(self._conclude(_decode(payload, _answers), self._keys))
        return tuple(events)

    def _conclude(self, answer: Answer, keys: _Keys) -> Event:
        self._received.expect_nothing_more()
        if answer.refusal is not None:
            return Refused(answer.hello, answer.refusal, by_peer=True)
        if answer.hello.name != self._hello.target:
            refusal: Refusal | None = Refusal(
                "wrong_target",
                f"{self._hello.name} called {self._hello.target}, but {answer.hello.name} answered: correct "
                f"the raft address of {self._hello.target} in the members of {self._hello.name}",
            )
        else:
            refusal = self._judge(answer.hello)
        if refusal is not None:
            return Refused(answer.hello, refusal, by_peer=False)
        return Established(answer.hello, keys.frames)


class Acceptor:
    """The called end: feed what arrives until Established, Refused or an error.

    `introduce(name)` is what this node says of itself to that peer, asked once the peer is authenticated.
    """

    def __init__(
        self, *, secret: bytes, nonce: bytes, introduce: Callable[[str], Hello], judge: Judge
    ) -> None:
        self._greeting = _GREETING.pack(_MAGIC, VERSION, _ACCEPTOR, _checked_nonce(nonce))
        self._nonce = nonce
        self._secret = secret
        self._introduce = introduce
        self._judge = judge
        self._received = _Received()
        self._keys: _Keys | None = None

    def feed(self, data: bytes) -> tuple[Event, ...]:
        """Raises HandshakeFailed: the connection is then over."""
        self._received.add(data)
        events: list[Event] = []
        if self._keys is None:
            try:
                greeting = self._received.take_greeting(_DIALER, own_nonce=self._nonce)
            except _OtherVersion as error:
                raise HandshakeFailed(str(error), reply=self._greeting) from None
            if greeting is None:
                return ()
            self._keys = _Keys(self._secret, dialer=greeting, acceptor=self._greeting)
            events.append(Send(self._greeting))
        payload = self._received.take_statement(self._keys.hello, b"")
        if payload is not None:
            events.extend(self._conclude(_decode(payload, _hellos), self._keys))
        return tuple(events)

    def _conclude(self, hello: Hello, keys: _Keys) -> tuple[Event, Event]:
        self._received.expect_nothing_more()
        refusal = self._judge(hello)
        answer = msgspec.msgpack.encode(Answer(self._introduce(hello.name), refusal))
        send = Send(_statement(keys.answer, self._received.last_statement, answer))
        if refusal is not None:
            return send, Refused(hello, refusal, by_peer=False)
        return send, Established(hello, keys.frames)


class _OtherVersion(HandshakeFailed):
    pass


class _Keys:
    def __init__(self, secret: bytes, *, dialer: bytes, acceptor: bytes) -> None:
        base = _hmac(secret, b"raftkv raft port 1" + dialer + acceptor)
        self.hello = _hmac(base, b"dialer hello")
        self.answer = _hmac(base, b"acceptor answer")
        self.frames = _hmac(base, b"dialer frames")


class _Received:
    """What has arrived and not been taken: never more than one greeting and one statement."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.last_statement = b""

    def add(self, data: bytes) -> None:
        self._buffer += data

    def take_greeting(self, role: int, *, own_nonce: bytes) -> bytes | None:
        """The peer's greeting, whole; None while bytes are missing."""
        start = bytes(self._buffer[: len(_MAGIC)])
        if start != _MAGIC[: len(start)]:
            raise HandshakeFailed(
                "not a raftkv raft port or peer: the connection does not start with its magic"
            )
        if len(self._buffer) > len(_MAGIC) and self._buffer[len(_MAGIC)] != VERSION:
            raise _OtherVersion(_version_error(self._buffer[len(_MAGIC)]))
        if len(self._buffer) < _GREETING.size:
            return None
        greeting = bytes(self._buffer[: _GREETING.size])
        del self._buffer[: _GREETING.size]
        _, _, peer_role, nonce = _GREETING.unpack(greeting)
        if peer_role != role or hmac.compare_digest(nonce, own_nonce):
            raise HandshakeFailed(
                "the peer sent a greeting of the wrong role, or this node's own greeting back"
            )
        return greeting

    def take_statement(self, key: bytes, before: bytes) -> bytes | None:
        """The payload of the peer's statement, its MAC verified; None while bytes are missing."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if not 0 < length <= STATEMENT_BYTES_MAX:
            raise HandshakeFailed(
                f"a handshake statement of {length} bytes; 1 to {STATEMENT_BYTES_MAX} are allowed"
            )
        end = _STATEMENT_HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        statement = bytes(self._buffer[:end])
        del self._buffer[:end]
        payload = statement[_STATEMENT_HEADER_BYTES:]
        if not hmac.compare_digest(statement, _statement(key, before, payload)):
            raise HandshakeFailed(
                "the peer does not hold this cluster's secret: give every node the same secret file"
            )
        self.last_statement = statement
        return payload

    def expect_nothing_more(self) -> None:
        if self._buffer:
            raise HandshakeFailed("the peer sent bytes before it was its turn")


def _statement(key: bytes, before: bytes, payload: bytes) -> bytes:
    assert len(payload) <= STATEMENT_BYTES_MAX
    length = _LENGTH.pack(len(payload))
    return length + _hmac(key, before + length + payload) + payload


_Payload = TypeVar("_Payload")
_hellos: msgspec.msgpack.Decoder[Hello] = msgspec.msgpack.Decoder(Hello)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def _decode(payload: bytes, decoder: msgspec.msgpack.Decoder[_Payload]) -> _Payload:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HandshakeFailed(
            f"the peer holds the secret but its statement has another form: {error}"
        ) from error


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, hashlib.sha256)


def _checked_nonce(nonce: bytes) -> bytes:
    assert len(nonce) == NONCE_BYTES
    return nonce


def _version_error(version: int) -> str:
    behind = "this node" if version > VERSION else "the peer"
    return f"the peer speaks version {version} of the raft protocol, this node {VERSION}: upgrade {behind}"
