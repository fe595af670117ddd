"""A listening socket that speaks TLS: accepts, shakes hands, and hands over what came through.

asyncio's own server can do this but for two things that matter here: it keeps the context it began with, so
that a reload would need a new socket, and it says nothing of handshakes that fail.

Invariants:
- A protocol's `connection_made` is called once its peer has passed the handshake, and never before.
- Connections in the handshake are bounded by number and by a deadline from their acceptance on; beyond the
  number the oldest goes, since those that mean it take milliseconds.
- Whoever fails is closed, counted, and complained of with the reason.
- At most `connections_max` sockets are open, those counted that are being closed: the other end may take its
  time with what is on its way to it, and must not have the process's files for that.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import socket
import ssl
import struct
import termios
from collections.abc import Callable
from functools import partial

from raftkv.complaints import Complaints
from raftkv.tls.credentials import Credentials

log = logging.getLogger("raftkv.tls")

ACCEPTS_MAX = 128  # at one turn of the loop, so that a flood leaves it time for others
OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
OUT_OF_FILES_PAUSE_S = 1.0
LOOK_SECONDS_A_SOCKET = 2e-5  # between two looks at which are open: a look takes 1/200 of it …
SOCKETS_FEW = 1000  # … beyond so many
# A member that is asked for its farewell and does not give it.
SHUTDOWN_S = 2.0

# What OpenSSL calls it -> what it is, and what to do.
_REASONS = {
    "HTTP_REQUEST": "plain HTTP on a port that speaks TLS: use https://",
    "WRONG_VERSION_NUMBER": "plain text on a port that speaks TLS",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate, and this port wants one",
    "UNSUPPORTED_PROTOCOL": "a version of TLS below 1.2",
    "VERSION_TOO_LOW": "a version of TLS below 1.2",
    "TLSV1_ALERT_UNKNOWN_CA": "the other end does not trust the CA of this node's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the other end finds this node's certificate expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the other end refuses this node's certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the other end refuses this node's certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the other end refuses this node's certificate for this use",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other end wants a certificate, and this node has shown none",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other end does not speak this version of TLS",
}


def reason_of(error: BaseException) -> str:
    """Why a handshake failed, or a connection ended, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate was refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        said = error.reason or str(error)
        return _REASONS.get(said, f"TLS: {said.lower().replace('_', ' ')}")
    if isinstance(
        error, ConnectionAbortedError | TimeoutError
    ):  # uvloop's and asyncio's word for the deadline
        return "no TLS handshake within its deadline"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, ConnectionError):
        return "the other end hung up in the TLS handshake"
    return str(error) or type(error).__name__


def secured(transport: asyncio.BaseTransport | None) -> bool:
    """Whether the connection speaks TLS."""
    return transport is not None and transport.get_extra_info("ssl_object") is not None


def bytes_taken(transport: asyncio.BaseTransport | None) -> int | None:
    """How much the other end has taken so far, where something is still on its way to it, else None. Without
    TLS None as well: the transport's write buffer tells. With TLS that is mostly empty: what waits does so
    beneath, out of sight."""
    if transport is None or not secured(transport):
        return None
    connection = transport.get_extra_info("socket")
    (waiting,) = _INT.unpack(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))
    if not waiting:
        return None
    known = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_BYTES_ACKED.size)
    return int(_TCP_BYTES_ACKED.unpack(known)[0])


def unsent_mark(transport: asyncio.WriteTransport) -> object:
    """Another one whenever the other end has taken something of what waits for it."""
    return transport.get_write_buffer_size(), bytes_taken(transport)


_INT = struct.Struct("i")
_TCP_BYTES_ACKED = struct.Struct("=120xQ")  # struct tcp_info in linux/tcp.h: tcpi_bytes_acked


class SecurePort:
    """Made by `open_port`. Each connection is `make`'s protocol; that is called at acceptance.

    `shaking_max`: in the handshake at once; `connections_max`: open in all.
    """

    def __init__(
        self,
        listening: socket.socket,
        credentials: Credentials,
        make: Callable[[], asyncio.Protocol],
        *,
        handshake_seconds_max: float,
        shutdown_seconds_max: float,
        shaking_max: int,
        connections_max: int,
    ) -> None:
        self._listening = listening
        self._credentials = credentials
        self._make = make
        self._handshake_seconds_max = handshake_seconds_max
        self._shutdown_seconds_max = shutdown_seconds_max
        self._shaking_max = shaking_max
        self._connections_max = connections_max
        self._open: set[socket.socket] = set()  # and some that have closed since it was last looked
        self._looked_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._shaking: dict[asyncio.Task[None], str] = {}  # oldest first, with the address
        self._complaints = Complaints(log)
        self._resume: asyncio.TimerHandle | None = None
        self._loop.add_reader(listening, self._accept)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listening.getsockname()[:2]
        return host, port

    @property
    def shaking(self) -> int:
        """Connections whose handshake is not over."""
        return len(self._shaking)

    def close(self) -> None:
        """Listens no more; handshakes end. Connections that came through are their protocols' own."""
        if self._listening.fileno() < 0:
            return
        self._loop.remove_reader(self._listening)
        if self._resume is not None:
            self._resume.cancel()
        self._listening.close()
        for task in list(self._shaking):
            task.cancel()

    async def wait_closed(self) -> None:
        if self._shaking:
            await asyncio.wait(list(self._shaking))

    def _accept(self) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                connection, peer = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in OUT_OF_FILES:
                    raise
                log.error("accept_failed use=%s reason=%r", self._credentials.use, error.strerror)
                self._loop.remove_reader(self._listening)
                self._resume = self._loop.call_later(
                    OUT_OF_FILES_PAUSE_S, self._loop.add_reader, self._listening, self._accept
                )
                return
            self._begin(connection, f"{peer[0]}:{peer[1]}")

    def _begin(self, connection: socket.socket, address: str) -> None:
        connection.setblocking(False)
        full = self._is_full()
        if full or len(self._shaking) >= self._shaking_max:
            oldest = next(iter(self._shaking), None)
            if oldest is None:
                self._refused(address, "too many connections are open")
                connection.close()
                return
            self._refused(self._shaking.pop(oldest), "too many TLS handshakes at once; this is the oldest")
            oldest.cancel()
        self._open.add(connection)
        task = self._loop.create_task(self._shake(connection, address))
        self._shaking[task] = address
        task.add_done_callback(partial(self._ended, connection))

    def _is_full(self) -> bool:
        """Whether as many are open as may be; what has closed is found out now and then."""
        now = self._loop.time()
        waited = now - self._looked_s >= LOOK_SECONDS_A_SOCKET * (self._connections_max - SOCKETS_FEW)
        if len(self._open) >= self._connections_max and waited:
            self._looked_s = now
            self._open = {each for each in self._open if each.fileno() >= 0}
        return len(self._open) >= self._connections_max

    def _ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._shaking.pop(task, None)
        if task.cancelled():  # perhaps before it began
            connection.close()

    async def _shake(self, connection: socket.socket, address: str) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make,
                connection,
                ssl=self._credentials.server,
                ssl_handshake_timeout=self._handshake_seconds_max,
                ssl_shutdown_timeout=self._shutdown_seconds_max,
            )
        except OSError as error:  # ssl.SSLError is one, and so is the deadline
            self._refused(address, reason_of(error))
            connection.close()

    def _refused(self, address: str, reason: str) -> None:
        self._credentials.refused += 1
        self._complaints.note(
            address.rpartition(":")[0],
            'tls_refused use=%s address=%s reason="%s"',
            self._credentials.use,
            address,
            reason,
        )


def open_port(
    host: str,
    port: int,
    credentials: Credentials,
    make: Callable[[], asyncio.Protocol],
    *,
    backlog: int,
    handshake_seconds_max: float,
    shutdown_seconds_max: float = SHUTDOWN_S,
    shaking_max: int,
    connections_max: int,
) -> SecurePort:
    """Listens at once, on the first address that the host name has. `shutdown_seconds_max`: from when a
    connection is closed, for its other end to take what is on its way and say farewell. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(backlog)
        listening.setblocking(False)
        return SecurePort(
            listening,
            credentials,
            make,
            handshake_seconds_max=handshake_seconds_max,
            shutdown_seconds_max=shutdown_seconds_max,
            shaking_max=shaking_max,
            connections_max=connections_max,
        )
    except BaseException:
        listening.close()
        raise
