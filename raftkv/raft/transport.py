"""Messages between members over TCP. The thin shell around `handshake.py` and `frames.py`.

Every member dials every other, and **a dialed connection carries its dialer's messages only**: links are
one-way and first in, first out. Within the life of one connection nothing is lost or reordered; when it
breaks, what was on its way may or may not have arrived. `on_connected(peer)` says that this node's own
connection to the peer stands, `on_disconnected(peer)` that it no longer does, always in turns; what was
sent between two such pairs is all that can have arrived.

Invariants:
- Nothing from a connection reaches the node before the handshake is over, and nothing but frames that
  its peer made, in their order. What breaks this rule closes the connection with a WARNING and changes
  nothing.
- At most one connection from each peer is heard: a newer one replaces it, and what the older one still
  held is dropped.
- Everything is bounded: unauthenticated connections by number and by a deadline, frames by
  `frame_bytes_max`, what waits for a slow peer by `backlog_bytes_max`. Beyond the last, the connection is
  cut rather than single messages dropped, so that the line above stays true.

A peer that vanishes without a FIN is noticed by TCP_USER_TIMEOUT (`peer_timeout_ms`): bytes that stay
unacknowledged, or a window that stays shut, for that long end the connection. A peer that comes back is
reached at once in most cases, since its own call here wakes this node's dialer.

All callbacks run on the loop's thread.

With `credentials` both ends speak TLS, show a certificate and verify the other's; the handshake goes on
inside. Then a peer is who it says only if its certificate says so too: the name in its hello (or, called,
the name that was dialed) has to be in there, as `tls.credentials.names_member` has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from types import TracebackType
from typing import cast

from raftkv.complaints import Complaints
from raftkv.errors import ConfigError
from raftkv.model import Member
from raftkv.raft import messages
from raftkv.raft.forming import Control, decode_control, encode_control
from raftkv.raft.frames import KIND_CONTROL, KIND_RAFT, FrameError, Opener, Sealer
from raftkv.raft.handshake import (
    NONCE_BYTES,
    SECRET_BYTES_MIN,
    Acceptor,
    Dialer,
    Established,
    HandshakeFailed,
    Hello,
    Refusal,
    Refused,
    Send,
    Standing,
    judge,
)
from raftkv.raft.messages import Message
from raftkv.tls.credentials import PEER_SUFFIX, Credentials, names_member, peer_names
from raftkv.tls.port import SHUTDOWN_S, SecurePort, open_port, reason_of

logger = logging.getLogger(__name__)

RELEASE = metadata.version("raftkv")

# Above this a frame's header and payload go to the socket as two buffers: a copy costs more than that.
_JOIN_BYTES_MAX = 64 * 1024

# struct tcp_info in linux/tcp.h: tcpi_min_rtt, the least of the last five minutes, in microseconds.
# The smoothed one would not do: links are one-way, so the receiver's delayed acknowledgements are in it.
_TCP_MIN_ROUND_TRIP = struct.Struct("=148xI")
# The first bytes of a TLS handshake, and of an alert in answer to one.
_TLS_STARTS = (b"\x16\x03", b"\x15\x03")
_SPEAKS_TLS = (
    "the other end speaks TLS and this node's raft port does not: give --peer-tls-cert, --peer-tls-key and "
    "--peer-tls-ca to both, or to neither"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and delays of the raft port. The defaults suit members within one region."""

    frame_bytes_max: int = 64 * 1024 * 1024  # the largest batch of entries or part of a snapshot, with slack
    backlog_bytes_max: int = 256 * 1024 * 1024  # a few of the largest frames; the engine stops far below
    handshake_seconds_max: float = 5.0
    connect_seconds_max: float = 1.0  # then a new SYN: the kernel's own retries come ever later
    unauthenticated_connections_max: int = 128  # beyond it the oldest goes; members need one each
    reconnect_seconds_min: float = 0.05
    reconnect_seconds_max: float = 1.0
    peer_timeout_ms: int = 2000  # a few election timeouts


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the transport tells the node. Each runs on the loop and must not block."""

    on_message: Callable[[str, Message], None]
    on_control: Callable[[Hello, Control], None]  # the sender as it presented itself on that connection
    on_connected: Callable[[Hello], None]
    on_disconnected: Callable[[str], None]
    on_refused: Callable[[Hello, Refusal], None]  # a peer refused this node; on each change of the reason
    on_called: Callable[[Hello], None] = lambda _: None  # a peer's own connection to this node stands


class Transport:
    """`async with Transport(...) as transport:` listens, and dials whom `set_members` names."""

    def __init__(
        self,
        *,
        listen: tuple[str, int],
        secret: bytes,
        standing: Callable[[], Standing],
        callbacks: Callbacks,
        limits: Limits | None = None,
        credentials: Credentials | None = None,
        randomness: random.Random | None = None,
    ) -> None:
        """`standing` is asked at each handshake, so that a node that forms or changes needs no restart."""
        if len(secret) < SECRET_BYTES_MIN:
            raise ConfigError(
                f"the cluster secret has {len(secret)} bytes, at least {SECRET_BYTES_MIN} are needed: "
                "put 32 random bytes (or their hex) in the secret file of every node"
            )
        self._listen = listen
        self._secret = secret
        self._standing = standing
        self._callbacks = callbacks
        self._limits = limits or Limits()
        self._credentials = credentials
        self._random = randomness or random.Random()
        self._callers: dict[str, _Caller] = {}
        self._accepted: dict[str, _Accepted] = {}
        self._strangers: dict[_Accepted, None] = {}  # unauthenticated, oldest first
        self._leaving: set[_Accepted] = set()  # rejected, with a refusal or TLS's farewell on its way
        self._complaints = Complaints(logger)
        self._encoded_message: Message | None = None
        self._encoded = b""
        self._tasks = asyncio.TaskGroup()
        self._server: asyncio.Server | SecurePort | None = None

    # --- life ---

    async def __aenter__(self) -> Transport:
        """Raises ConfigError if the address can't be listened on."""
        host, port = self._listen
        try:
            self._server = await self._open(host, port)
        except OSError as error:
            raise ConfigError(f"can't listen for raft peers on {host}:{port}: {error}") from error
        await self._tasks.__aenter__()
        return self

    async def _open(self, host: str, port: int) -> asyncio.Server | SecurePort:
        backlog = 1024
        if self._credentials is None:
            loop = asyncio.get_running_loop()
            return await loop.create_server(lambda: _Accepted(self), host, port, backlog=backlog)
        return open_port(
            host,
            port,
            self._credentials,
            lambda: _Accepted(self),
            backlog=backlog,
            handshake_seconds_max=self._limits.handshake_seconds_max,
            shaking_max=self._limits.unauthenticated_connections_max,
            connections_max=4 * self._limits.unauthenticated_connections_max,
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for caller in self._callers.values():
            caller.stop()
        for connection in [*self._accepted.values(), *self._strangers, *self._leaving]:
            connection.abort()
        try:
            if isinstance(error, asyncio.CancelledError):  # perhaps the group's own, for a task that failed
                await self._tasks.__aexit__(kind, error, trace)
            else:  # the body's error goes on as it is, not wrapped in a group
                await self._tasks.__aexit__(None, None, None)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._server.wait_closed()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, the port resolved if it was 0."""
        assert self._server is not None
        if isinstance(self._server, SecurePort):
            return self._server.address
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    def set_members(self, members: Iterable[Member]) -> None:
        """Dial these (but never this node itself), and nobody else, from now on. Connections that no
        longer pass `admit` are closed; call it after each change of `standing`."""
        me = self._standing().identity.name
        wanted = {member.name: member.peer for member in members if member.name != me}
        for name, caller in list(self._callers.items()):
            if wanted.get(name) != caller.address:
                del self._callers[name]
                caller.stop()
        for name, address in wanted.items():
            if name not in self._callers:
                caller = _Caller(self, name, address)
                self._callers[name] = caller
                caller.task = self._tasks.create_task(caller.run(), name=f"raft dialer of {name}")
        for accepted in list(self._accepted.values()):
            if accepted.peer is not None and self._judge(accepted.peer) is not None:
                accepted.abort()
        for caller in self._callers.values():
            caller.judge_again()

    # --- sending ---

    def send(self, peer: str, message: Message) -> bool:
        """False: not connected, or cut for its backlog; the message is gone. True promises nothing."""
        if message is not self._encoded_message:  # the engine sends one object to several peers in a row
            self._encoded_message, self._encoded = message, b"\x01" + messages.encode(message)
        return self._send(peer, self._encoded)

    def send_control(self, peer: str, control: Control) -> bool:
        return self._send(peer, b"\x00" + encode_control(control))

    def _send(self, peer: str, payload: bytes) -> bool:
        assert len(payload) <= self._limits.frame_bytes_max
        caller = self._callers.get(peer)
        return caller is not None and caller.send(payload)

    def connected(self, peer: str) -> bool:
        caller = self._callers.get(peer)
        return caller is not None and caller.link is not None

    def backlog_bytes(self, peer: str) -> int:
        """Bytes accepted by `send` that the kernel has not taken yet."""
        caller = self._callers.get(peer)
        return caller.backlog_bytes() if caller is not None else 0

    def links(self) -> Iterator[tuple[str, float | None, int]]:
        """Of each peer that this node is connected to: the network's round trip in seconds, where the kernel
        says, and `backlog_bytes`."""
        for name, caller in self._callers.items():
            if caller.link is not None and caller.link.transport is not None:
                connection = caller.link.transport.get_extra_info("socket")
                yield name, round_trip_seconds(connection), caller.backlog_bytes()

    def problem(self, peer: str) -> str:
        """Why this node's connection to the peer does not stand, for a person; "" when it does."""
        caller = self._callers.get(peer)
        return caller.problem if caller is not None else "not a member"

    # --- what the connections need ---

    def _judge(self, hello: Hello) -> Refusal | None:
        return judge(hello, self._standing())

    def _judge_certificate(self, transport: asyncio.Transport | None, name: str) -> Refusal | None:
        """Whether who is at the other end may call itself so."""
        if self._credentials is None:
            return None
        names = peer_names(transport.get_extra_info("ssl_object")) if transport is not None else ()
        if names_member(names, name):
            return None
        return Refusal(
            "wrong_certificate",
            f"the certificate shown is not that of {name}: it names {', '.join(names) or 'nobody'}, allowed "
            f"are {name} and {name}{PEER_SUFFIX}; give {name} a certificate of its own as --peer-tls-cert",
        )

    def _introduce(self, peer: str) -> Hello:
        return self._standing().hello(target=peer, release=RELEASE)

    def _stranger_came(self, connection: _Accepted) -> None:
        self._strangers[connection] = None
        if len(self._strangers) > self._limits.unauthenticated_connections_max:
            oldest = next(iter(self._strangers))
            oldest.reject("too many connections wait for their handshake; this is the oldest")

    def _peer_called(self, connection: _Accepted, hello: Hello) -> None:
        self._strangers.pop(connection, None)
        older = self._accepted.get(hello.name)
        self._accepted[hello.name] = connection
        if older is not None:
            older.abort()
        caller = self._callers.get(hello.name)
        if caller is not None:
            caller.wake()
        self._callbacks.on_called(hello)

    def _accepted_gone(self, connection: _Accepted) -> None:
        self._strangers.pop(connection, None)
        if connection.peer is not None and self._accepted.get(connection.peer.name) is connection:
            del self._accepted[connection.peer.name]


class _Accepted(asyncio.Protocol):
    """A connection that someone made to this node: strangers first, then a peer whose frames are heard."""

    def __init__(self, owner: Transport) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._address = "?"
        self._closed = False
        self._opener: Opener | None = None
        self._since = asyncio.get_running_loop().time()  # TLS, where it is spoken, is still to come
        self.peer: Hello | None = None
        self._handshake = Acceptor(
            secret=owner._secret,
            nonce=os.urandom(NONCE_BYTES),
            introduce=owner._introduce,
            judge=self._judge,
        )

    def _judge(self, hello: Hello) -> Refusal | None:
        owner = self._owner
        return owner._judge_certificate(self._transport, hello.name) or owner._judge(hello)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._address = _address_text(transport.get_extra_info("peername"))
        _tune(self._transport, self._owner._limits)
        self._deadline = asyncio.get_running_loop().call_at(
            self._since + self._owner._limits.handshake_seconds_max,
            self.reject,
            "no handshake within its deadline",
        )
        self._owner._stranger_came(self)

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        if self._opener is None:
            self._shake_hands(data)
            return
        try:
            self._hear(self._opener, data)
        except FrameError as error:
            self.reject(str(error))

    def _shake_hands(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            events = self._handshake.feed(data)
        except HandshakeFailed as error:
            self._transport.write(error.reply)
            self.reject(_SPEAKS_TLS if data.startswith(_TLS_STARTS) else str(error))
            return
        for event in events:
            match event:
                case Send():
                    self._transport.write(event.data)
                case Established():
                    self._established(event)
                case Refused():
                    self.reject(event.refusal.reason, name=event.peer.name)

    def _established(self, event: Established) -> None:
        self.peer = event.peer
        self._opener = Opener(event.frame_key, frame_bytes_max=self._owner._limits.frame_bytes_max)
        if self._deadline is not None:
            self._deadline.cancel()
        self._owner._peer_called(self, event.peer)

    def _hear(self, opener: Opener, data: bytes) -> None:
        """Hands each message over. A callback may close this very connection: the rest is then dropped."""
        assert self.peer is not None
        name = self.peer.name
        callbacks = self._owner._callbacks
        for payload in opener.feed(data):
            if self._closed:
                return
            kind = payload[0]
            try:
                if kind == KIND_RAFT:
                    message = messages.decode(payload[1:])
                elif kind == KIND_CONTROL:
                    control = decode_control(payload[1:])
                else:
                    raise ValueError(f"a frame of unknown kind {kind}")
            except ValueError as error:
                raise FrameError(str(error)) from error
            if kind == KIND_RAFT:
                callbacks.on_message(name, message)
            else:
                callbacks.on_control(self.peer, control)

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._owner._accepted_gone(self)
        self._owner._leaving.discard(self)

    def reject(self, reason: str, *, name: str = "") -> None:
        """Close, for a reason that someone should see. What was written (a refusal) still goes out.
        `name` is of a peer that has proven the secret."""
        if self._closed:
            return
        if self.peer is not None:
            name = self.peer.name
        self._owner._complaints.note(
            name or self._address.rpartition(":")[0],
            'connection_rejected address=%s peer=%s reason="%s"',
            self._address,
            name or "?",
            reason,
        )
        self._closed = True
        self._owner._accepted_gone(self)
        self._owner._leaving.add(self)
        assert self._transport is not None
        self._transport.close()

    def abort(self) -> None:
        self._closed = True
        self._owner._accepted_gone(self)
        assert self._transport is not None
        self._transport.abort()


class _Link(asyncio.Protocol):
    """A connection that this node made to a peer. `ready` ends with the handshake, `lost` with it all."""

    def __init__(self, owner: Transport, name: str) -> None:
        self._owner = owner
        self.transport: asyncio.Transport | None = None
        self.beneath: asyncio.Transport | None = None  # what carries the TLS, where there is any
        self.sealer: Sealer | None = None
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[Established | Refused] = loop.create_future()
        self.lost: asyncio.Future[str] = loop.create_future()
        self._handshake = Dialer(
            secret=owner._secret,
            nonce=os.urandom(NONCE_BYTES),
            hello=owner._introduce(name),
            judge=owner._judge,
        )
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.lost.done():  # given up meanwhile
            self.transport.abort()
            return
        _tune(self.transport, self._owner._limits)
        refusal = self._owner._judge_certificate(self.transport, self._name)
        if refusal is not None:  # before it learns anything
            self.end(f"this node refuses {self._name}: {refusal.reason}")
            return
        self.transport.set_write_buffer_limits(high=self._owner._limits.backlog_bytes_max)
        self.transport.write(self._handshake.greeting)

    def backlog_bytes(self) -> int:
        """Accepted and not taken by the kernel yet."""
        sizes = [each.get_write_buffer_size() for each in (self.transport, self.beneath) if each is not None]
        return sum(sizes)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        if self.lost.done():
            return
        if self.ready.done():
            self.end("the peer sent bytes on a connection that is not its own to speak on")
            return
        try:
            events = self._handshake.feed(data)
        except HandshakeFailed as error:
            self.end(_SPEAKS_TLS if data.startswith(_TLS_STARTS) else str(error))
            return
        for event in events:
            match event:
                case Send():
                    self.transport.write(event.data)
                case Established():
                    self.sealer = Sealer(event.frame_key)
                    self.ready.set_result(event)
                case Refused():
                    self.ready.set_result(event)

    def connection_lost(self, error: Exception | None) -> None:
        if self.ready.done():
            self.end(f"connection lost ({error or 'closed by the peer'})")
        elif isinstance(error, ssl.SSLError):
            self.end(reason_of(error))
        else:
            self.end(
                "the peer closed the connection during the handshake: is its secret this node's, is it a "
                "raftkv raft port, and do both speak TLS or neither? Its log says more"
            )

    def end(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
        if self.transport is not None:
            self.transport.abort()


class _Caller:
    """Keeps one connection to one peer: dials, waits for its end, dials again."""

    def __init__(self, owner: Transport, name: str, address: str) -> None:
        self._owner = owner
        self._name = name
        self.address = address
        self._endpoint = split_address(address)
        self.task: asyncio.Task[None] | None = None
        self.link: _Link | None = None  # only while authenticated
        self._peer: Hello | None = None
        self.problem = "not connected yet"
        self._woken = asyncio.Event()
        self._failures = 0

    async def run(self) -> None:
        while True:
            reason = await self._connection()
            self._note(reason)
            await self._pause()

    async def _connection(self) -> str:
        """One connection from dialing to its end; returns how it ended."""
        loop = asyncio.get_running_loop()
        link = _Link(self._owner, self._name)
        try:
            outcome = await self._dial(link)
            if isinstance(outcome, Refused):
                return self._refused(outcome)
            if isinstance(outcome, str):
                return outcome
            since = loop.time()
            self._connected(link, outcome.peer)
            reason = await link.lost
            if loop.time() - since > self._owner._limits.reconnect_seconds_max:
                self._failures = 0  # not for one that ends at once: two nodes of one name would race for ever
            return reason
        finally:
            link.end("closed")
            self._disconnected()

    async def _dial(self, link: _Link) -> Established | Refused | str:
        limits = self._owner._limits
        host, port = self._endpoint
        credentials = self._owner._credentials
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limits.connect_seconds_max):
                transport, _ = await loop.create_connection(
                    lambda: link if credentials is None else asyncio.Protocol(), host, port
                )
            async with asyncio.timeout(limits.handshake_seconds_max):
                if credentials is not None:
                    await self._secure(transport, link, credentials)
                await asyncio.wait((link.ready, link.lost), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            return f"no answer from {self.address} in time"
        except ConnectionRefusedError:
            return f"can't connect to {self.address}: connection refused"
        except (ssl.SSLError, ConnectionError) as error:
            return f"can't connect to {self.address}: {reason_of(error)}"
        except OSError as error:  # ssl.SSLError is one
            return f"can't connect to {self.address}: {error.strerror or error}"
        return link.ready.result() if link.ready.done() else link.lost.result()

    async def _secure(self, transport: asyncio.Transport, link: _Link, credentials: Credentials) -> None:
        """TLS on a connection that stands; its other end says nothing before it is spoken to."""
        secured = await asyncio.get_running_loop().start_tls(
            transport,
            link,
            credentials.client,
            server_hostname=self._name,
            ssl_handshake_timeout=self._owner._limits.handshake_seconds_max,
            ssl_shutdown_timeout=SHUTDOWN_S,
        )
        assert secured is not None
        link.beneath = transport
        link.connection_made(secured)

    def _connected(self, link: _Link, peer: Hello) -> None:
        if link.lost.done():
            return
        self.link, self._peer = link, peer
        self.problem = ""
        logger.info("peer_connected peer=%s address=%s release=%s", self._name, self.address, peer.release)
        self._owner._callbacks.on_connected(peer)

    def _disconnected(self) -> None:
        if self.link is not None:
            self.link = self._peer = None
            self._owner._callbacks.on_disconnected(self._name)

    def _refused(self, outcome: Refused) -> str:
        reason = outcome.refusal.reason
        if outcome.by_peer:
            text = f"{self._name} refuses this node: {reason}"
            if text != self.problem:
                self._owner._callbacks.on_refused(outcome.peer, outcome.refusal)
            return text
        return f"this node refuses {self._name}: {reason}"

    def _note(self, problem: str) -> None:
        """Logged when it changes, not on each of many attempts."""
        if problem != self.problem:
            self.problem = problem
            logger.warning(
                'peer_unreachable peer=%s address=%s reason="%s"', self._name, self.address, problem
            )

    async def _pause(self) -> None:
        """Longer after each failure, and never quite as long as another node's; cut short by `wake`."""
        limits = self._owner._limits
        longest = min(limits.reconnect_seconds_max, limits.reconnect_seconds_min * 2.0**self._failures)
        self._failures = min(self._failures + 1, 16)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest * self._owner._random.uniform(0.5, 1.0)):
                await self._woken.wait()
        self._woken.clear()

    def send(self, payload: bytes) -> bool:
        link = self.link
        if link is None or link.sealer is None or link.transport is None:
            return False
        if link.lost.done():
            return False
        if link.backlog_bytes() > self._owner._limits.backlog_bytes_max:
            link.end("the peer takes its messages too slowly: cut for its backlog")
            return False
        header = link.sealer.seal(payload)
        if len(payload) <= _JOIN_BYTES_MAX:
            link.transport.write(header + payload)
        else:
            link.transport.writelines((header, payload))
        return True

    def backlog_bytes(self) -> int:
        return self.link.backlog_bytes() if self.link is not None else 0

    def judge_again(self) -> None:
        if self.link is not None and self._peer is not None:
            refusal = self._owner._judge(self._peer)
            if refusal is not None:
                self.link.end(f"this node refuses {self._name}: {refusal.reason}")

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT. Raises ConfigError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ConfigError(f"{address!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _address_text(peername: object) -> str:
    return f"{peername[0]}:{peername[1]}" if isinstance(peername, tuple) else str(peername)


def _tune(transport: asyncio.Transport, limits: Limits) -> None:
    """Small messages at once, and a dead peer noticed in `peer_timeout_ms`, idle or not."""
    connection = transport.get_extra_info("socket")
    seconds = max(1, limits.peer_timeout_ms // 1000)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_USER_TIMEOUT", limits.peer_timeout_ms),
        ("TCP_KEEPIDLE", seconds),
        ("TCP_KEEPINTVL", 1),
        ("TCP_KEEPCNT", seconds),
    ):
        if hasattr(socket, name):  # Linux has all; elsewhere the handshake of a newer connection helps
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def round_trip_seconds(connection: socket.socket) -> float | None:
    """Of a connected TCP socket, as the kernel has measured it; None where it does not say."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_MIN_ROUND_TRIP.size)
        (microseconds,) = _TCP_MIN_ROUND_TRIP.unpack(told)
    except (OSError, struct.error):
        return None
    return None if microseconds in (0, 0xFFFFFFFF) else float(microseconds) / 1e6
