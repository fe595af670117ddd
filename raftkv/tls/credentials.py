"""TLS, for clients and between peers: contexts from files, made anew when the files change.

- TLS 1.2 at least, everywhere. Between peers both ends show a certificate and verify the other's.
- Files are never read into a context that is in use: a reload makes fresh contexts, which new connections
  get, and only where everything about the files is right. Until then the old ones serve.
- A context that verifies clients gives out no session tickets, since a resumed session is not verified again.

Files are read on the thread of `Watcher`, which comes back to the loop through one door.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from raftkv.errors import ConfigError

log = logging.getLogger("raftkv.tls")

LOOK_SECONDS = 1.0  # between two looks at the files
EXPIRES_SOON_SECONDS = 14 * 86_400.0  # from then on the log says so, at start and once a day
REMIND_SECONDS = 86_400.0
X509_V_ERR_CERT_HAS_EXPIRED = 10  # OpenSSL's x509_vfy.h
PEER_SUFFIX = (
    ".raftkv"  # of the name that stands for a member in its certificate, where it isn't the bare one
)

Use = Literal["api", "peer"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What can be told of a file: of a chain its first certificate, of CAs the one that ends first."""

    use: str
    file: str
    names: tuple[str, ...]
    not_after: datetime

    def seconds_left(self, now: datetime | None = None) -> float:
        """Below 0 once it has expired."""
        return (self.not_after - (now or datetime.now(UTC))).total_seconds()


@dataclass(frozen=True, slots=True)
class Loaded:
    """One reading of the files. `client` is for connections that this node makes."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    certificates: tuple[Certificate, ...]


# --- contexts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApiFiles:
    """The files of the API's port. `client_ca`: clients must have a certificate from there. `ca`: for this
    node's own calls to other nodes; the system's store where there is none."""

    cert: Path
    key: Path
    client_ca: Path | None = None
    ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.cert, self.key, self.client_ca, self.ca) if path is not None)

    def load(self) -> Loaded:
        """Raises ConfigError."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _harden(server)
        server.set_alpn_protocols(["http/1.1"])
        _load_pair(server, "--tls-cert", self.cert, "--tls-key", self.key)
        certificates = [_certificates("api", "--tls-cert", self.cert)[0]]
        client = client_context(self.ca)
        if self.ca is not None:
            self._check_chain(self.ca)
        if self.client_ca is not None:
            _require_certificates(server)
            _load_ca(server, "--tls-client-ca", self.client_ca)
            certificates.append(_first_to_end(_certificates("client_ca", "--tls-client-ca", self.client_ca)))
            _load_pair(client, "--tls-cert", self.cert, "--tls-key", self.key)
        return Loaded(server, client, tuple(certificates))

    def _check_chain(self, ca: Path) -> None:
        """The other nodes have the same CA, most likely, and would refuse this one."""
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        server.load_cert_chain(self.cert, self.key)
        client.load_verify_locations(ca)
        _check_together(server, client, f"--tls-cert {self.cert}", f"a node with --tls-ca {ca}")


@dataclass(frozen=True, slots=True)
class PeerFiles:
    """The files of the raft port: this member's certificate, and the CA of all members' certificates."""

    name: str
    cert: Path
    key: Path
    ca: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.cert, self.key, self.ca)

    def load(self) -> Loaded:
        """Raises ConfigError."""
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False  # it is the member's name that has to match, whatever its address
        for context in (server, client):
            _harden(context)
            _load_pair(context, "--peer-tls-cert", self.cert, "--peer-tls-key", self.key)
            _load_ca(context, "--peer-tls-ca", self.ca)
        _require_certificates(server)
        own = _certificates("peer", "--peer-tls-cert", self.cert)[0]
        if not names_member(own.names, self.name):
            raise ConfigError(
                f"--peer-tls-cert {self.cert}: the certificate names {', '.join(own.names) or 'nobody'}; the "
                f"certificate of {self.name} has {self.name}{PEER_SUFFIX} or {self.name} as a DNS name"
            )
        _check_together(
            server, client, f"--peer-tls-cert {self.cert}", f"a peer with --peer-tls-ca {self.ca}"
        )
        ca = _first_to_end(_certificates("peer_ca", "--peer-tls-ca", self.ca))
        return Loaded(server, client, (own, ca))


def client_context(
    ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """For calls to a node's API: verifies its certificate and host name, against the CA in the file or those
    that the system trusts; with a certificate of its own to show where one is given. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_ca(context, "CA file", ca_file)
    if cert_file is not None:
        _load_pair(context, "certificate file", cert_file, "key file", key_file or cert_file)
    return context


def names_member(names: Iterable[str], member: str) -> bool:
    """Whether a certificate with these DNS names is the member's. Exactly: no wildcards, no other case."""
    return any(name in (member, member + PEER_SUFFIX) for name in names)


def peer_names(connection: ssl.SSLObject) -> tuple[str, ...]:
    """The DNS names in the certificate that the other end has shown and that was verified."""
    certificate: Any = connection.getpeercert() or {}
    return tuple(name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS")


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _require_certificates(server: ssl.SSLContext) -> None:
    server.verify_mode = ssl.CERT_REQUIRED
    server.options |= ssl.OP_NO_TICKET
    server.num_tickets = 0


def _load_pair(context: ssl.SSLContext, cert_flag: str, cert: Path, key_flag: str, key: Path) -> None:
    def encrypted() -> str:
        raise ConfigError(
            f"{key_flag} {key}: the key is encrypted, and nobody is there to be asked for a password"
        )

    for flag, path in ((cert_flag, cert), (key_flag, key)):
        _readable(flag, path)
    try:
        context.load_cert_chain(cert, key, password=encrypted)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"{key_flag} {key} is not the key of the certificate in {cert_flag} {cert}"
            ) from error
        raise ConfigError(
            f"{cert_flag} {cert} and {key_flag} {key}: not a certificate and its key in PEM: {_said(error)}"
        ) from error


def _load_ca(context: ssl.SSLContext, flag: str, path: Path) -> None:
    _readable(flag, path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError(f"{flag} {path}: no certificates in PEM: {_said(error)}") from error


def _readable(flag: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read: {error.strerror}") from error


def _said(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def _certificates(use: str, flag: str, path: Path) -> list[Certificate]:
    # Half a second and 20 MB that a node without TLS does not need.
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag} {path}: no certificate in PEM: {error}") from error
    certificates = []
    for each in found:
        try:
            alternatives = each.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            names = [str(name) for name in alternatives.get_values_for_type(x509.DNSName)]
            names += [str(name) for name in alternatives.get_values_for_type(x509.IPAddress)]
        except x509.ExtensionNotFound:
            names = []
        certificates.append(Certificate(use, str(path), tuple(names), each.not_valid_after_utc))
    return certificates


def _first_to_end(certificates: Sequence[Certificate]) -> Certificate:
    return min(certificates, key=lambda each: each.not_after)


def _check_together(server: ssl.SSLContext, client: ssl.SSLContext, what: str, who: str) -> None:
    """Would the two accept each other's certificate? An expired one passes here: it is said elsewhere, and a
    clock that is wrong must not keep a node from starting."""
    ends = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2)]
    called = server.wrap_bio(*ends[0], server_side=True)
    calling = client.wrap_bio(*ends[1])
    try:
        for _ in range(4):  # flights; TLS 1.3 has three
            for end in (calling, called):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                ends[0][0].write(ends[1][1].read())
                ends[1][0].write(ends[0][1].read())
    except ssl.SSLCertVerificationError as error:
        if error.verify_code != X509_V_ERR_CERT_HAS_EXPIRED:
            raise ConfigError(f"{what} would be refused by {who}: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise ConfigError(f"{what}: nobody could use it: {_said(error)}") from error


# --- reload ------------------------------------------------------------------------------------------------


class Credentials:
    """The contexts of one port as its files have them, or had them when they were last right."""

    def __init__(self, use: Use, files: ApiFiles | PeerFiles) -> None:
        """Reads the files. Raises ConfigError."""
        self.use = use
        self.problem = ""  # of the files as they are now; the contexts are from before
        self.reloads = 0
        self.failures = 0
        self.refused = 0  # handshakes on this port that failed
        self.files = files
        self._loaded_stamps = self._seen = self._stamps()
        self._loaded = files.load()
        self._reminded = float("-inf")

    @property
    def server(self) -> ssl.SSLContext:
        return self._loaded.server

    @property
    def client(self) -> ssl.SSLContext:
        return self._loaded.client

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        return self._loaded.certificates

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in self.files.paths)

    def look(self, *, at_once: bool = False) -> Loaded | ConfigError | None:
        """Reads the files if they have changed, else None. Blocks; changes nothing that others read. A change
        waits for a second look that sees the same, unless `at_once`: a pair is rarely written in one go."""
        stamps = self._stamps()
        if stamps == self._loaded_stamps and not at_once:
            self._seen = stamps
            return None
        if stamps != self._seen and not at_once:
            self._seen = stamps
            return None
        self._loaded_stamps = self._seen = stamps
        try:
            loaded = self.files.load()
        except ConfigError as error:
            return error
        now = datetime.now(UTC)
        ended = [each for each in loaded.certificates if each.seconds_left(now) <= 0]
        if ended and not any(each.seconds_left(now) <= 0 for each in self.certificates):
            return ConfigError(
                f"{ended[0].file}: the certificate expired at {_time_text(ended[0].not_after)}"
            )
        return loaded

    def take(self, outcome: Loaded | ConfigError) -> None:
        """On the loop: what `look` returned."""
        if isinstance(outcome, ConfigError):
            self.failures += 1
            self.problem = str(outcome)
            log.error('tls_reload_failed use=%s reason="%s" kept=the_old_ones', self.use, outcome)
            return
        self.reloads += 1
        self.problem = ""
        self._loaded = outcome
        self._reminded = float("-inf")
        log.info("tls_reloaded use=%s not_after=%s", self.use, _time_text(outcome.certificates[0].not_after))

    def remind(self, now_s: float) -> None:
        """Says once a day what has expired or will soon."""
        if now_s - self._reminded < REMIND_SECONDS:
            return
        self._reminded = now_s
        for each in self.certificates:
            left_s = each.seconds_left()
            if left_s <= 0:
                log.error(
                    "certificate_expired use=%s file=%s not_after=%s",
                    each.use,
                    each.file,
                    _time_text(each.not_after),
                )
            elif left_s <= EXPIRES_SOON_SECONDS:
                log.warning(
                    "certificate_expires use=%s file=%s not_after=%s days_left=%.1f",
                    each.use,
                    each.file,
                    _time_text(each.not_after),
                    left_s / 86_400,
                )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _time_text(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


class Watcher:
    """Looks at the files once a second, and at once when `look_now` is called (on SIGHUP)."""

    def __init__(self, watched: Sequence[Credentials], *, look_seconds: float = LOOK_SECONDS) -> None:
        self._watched = tuple(watched)
        self._look_seconds = look_seconds
        self._loop: asyncio.AbstractEventLoop
        self._wake = threading.Event()
        self._at_once = self._stopping = False
        # A daemon: a file system that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="raftkv-tls", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._remind()
        self._thread.start()

    def look_now(self) -> None:
        self._at_once = True
        self._wake.set()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._look_seconds)
            self._wake.clear()
            at_once, self._at_once = self._at_once, False
            outcomes = [(each, each.look(at_once=at_once)) for each in self._watched]
            if not self._stopping:
                try:
                    self._loop.call_soon_threadsafe(self._take, outcomes)
                except RuntimeError:  # the loop has closed
                    return

    def _take(self, outcomes: list[tuple[Credentials, Loaded | ConfigError | None]]) -> None:
        for credentials, outcome in outcomes:
            if outcome is not None:
                credentials.take(outcome)
        self._remind()

    def _remind(self) -> None:
        for each in self._watched:
            each.remind(self._loop.time())


# --- what the node says of it ------------------------------------------------------------------------------


@dataclass(slots=True)
class Security:
    """What is on, for the log, `/v1/status` and the metrics."""

    api: Credentials | None = None
    peer: Credentials | None = None
    auth: str = "off"

    @property
    def off(self) -> list[str]:
        """What is not on, by the names that `/v1/status` has."""
        states = {"tls": self.api is not None, "peer_tls": self.peer is not None, "auth": self.auth != "off"}
        return [name for name, on in states.items() if not on]

    @property
    def ports(self) -> list[Credentials]:
        return [each for each in (self.api, self.peer) if each is not None]

    def status(self) -> dict[str, Any]:
        """The `security` of `/v1/status`."""
        return {
            "tls": self.api is not None,
            "peer_tls": self.peer is not None,
            "auth": self.auth,
            "certificates": [
                {
                    "use": each.use,
                    "names": list(each.names),
                    "not_after": _time_text(each.not_after),
                    "seconds_left": int(each.seconds_left()),
                }
                for port in self.ports
                for each in port.certificates
            ],
            "reload_problems": [port.problem for port in self.ports if port.problem],
        }
