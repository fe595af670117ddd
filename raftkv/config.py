"""A node's configuration: one frozen `Config`, and the one table that flags, environment and TOML share.

A setting called `data_dir` is `--data-dir` on the command line, `RAFTKV_DATA_DIR` in the environment and
`data_dir` in the TOML file that `--config` names; the first of these that has it wins, then the default.
Every value goes through the same parser whichever way it came, so an error reads the same: which
setting, where it was set, which value, what is allowed, an example.

Secrets never come from a flag or from TOML, since both are read by others (`ps`, a repository): they are in
the files that `secret_file` and `bootstrap_token_file` name, or in the environment as `RAFTKV_SECRET` and
`RAFTKV_BOOTSTRAP_TOKEN`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from raftkv.access.secret import FORM, split
from raftkv.addresses import Address, parse_address, parse_client_url, parse_name, parse_peer
from raftkv.api.limits import LIMITS, Limit, Limits
from raftkv.errors import ConfigError
from raftkv.model import Member

ENVIRONMENT_PREFIX = "RAFTKV_"
SECRET_BYTES_MIN = 16
SECRET_BYTES_MAX = 4096
MEMBERS_MAX = 9  # quorums above five voters only cost latency; nine leaves room for learners

Route = Literal["redirect", "forward"]
LogFormat = Literal["text", "json"]
Auth = Literal["tokens", "off"]


@dataclass(frozen=True, slots=True)
class Config:
    """What `raftkv.server.run` builds a node from. Every field was checked; see `SETTINGS` for units."""

    name: str
    data_dir: Path
    members: tuple[Member, ...]  # in order of name
    secret: bytes = field(repr=False)
    secret_file: Path | None = None
    auth: Auth = "off"
    bootstrap_token: str | None = field(default=None, repr=False)
    bootstrap_token_file: Path | None = None
    audit_file: Path | None = None
    api: Address = ("127.0.0.1", 8400)
    raft: Address = ("127.0.0.1", 8401)
    ops_listen: Address | None = None
    snapshots: str | None = None  # URL of the store that they are published to; None: to none
    join: bool = False
    rejoin: bool = False
    route: Route = "redirect"
    drain_seconds: float = 0.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tls_ca: Path | None = None
    peer_tls_cert: Path | None = None
    peer_tls_key: Path | None = None
    peer_tls_ca: Path | None = None
    election_timeout_ms_min: int = 500
    election_timeout_ms_max: int = 1000
    heartbeat_ms: int = 100
    snapshot_entries_max: int = 100_000
    snapshot_log_bytes_max: int = 64 << 20
    snapshot_interval_seconds: int = 600
    snapshot_spacing_seconds: int = 60
    archive_interval: float = 1.0  # seconds
    snapshots_kept: int = 10
    snapshots_age_seconds_max: int = 0
    ceph_conf: Path | None = None
    ceph_keyring: Path | None = None
    ceph_user: str = "raftkv"
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    log_format: LogFormat = "text"
    log_level: str = "info"
    slow_request_ms: int = 1000
    otlp_endpoint: str | None = None
    warnings: tuple[str, ...] = ()  # what is allowed and still unwise; the process logs them once

    @property
    def member(self) -> Member:
        """This node's own entry."""
        return next(member for member in self.members if member.name == self.name)

    @property
    def client_url(self) -> str:
        """The URL that this node advertises to clients: the one in its own member entry."""
        return self.member.client_url


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `parse` takes text (or a list of texts, where `repeated`) and raises ValueError
    with what is allowed; `default` is already parsed. No default and `required`: it must be given."""

    name: str
    parse: Callable[[Any], Any]
    allowed: str
    example: str
    help: str
    default: Any = None
    required: bool = False
    repeated: bool = False
    switch: bool = False  # on the command line it stands alone

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def environment(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default as one would write it."""
        if self.default is None:
            return "none"
        if isinstance(self.default, tuple):
            host, port = self.default
            return f"{host}:{port}"
        return str(self.default)


# --- parsers: text to value, or ValueError -----------------------------------------------------------

_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB)?")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(ms|s|m)?", re.ASCII)
_DURATION_UNITS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0}
_SIZE_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_member(text: str) -> Member:
    """NAME=RAFT_HOST:PORT,URL"""
    name, equals, rest = text.partition("=")
    peer, comma, url = rest.partition(",")
    if not equals or not comma:
        raise ValueError("not of the form NAME=RAFT_HOST:PORT,http://API_HOST:PORT")
    parse_name(name.strip())
    return Member(name=name.strip(), peer=parse_peer(peer.strip()), client_url=parse_client_url(url.strip()))


def parse_members(texts: Sequence[str]) -> tuple[Member, ...]:
    members = sorted((parse_member(text) for text in texts), key=lambda member: member.name)
    for what in ("name", "peer", "client_url"):
        seen: set[str] = set()
        for member in members:
            value = getattr(member, what)
            if value in seen:
                raise ValueError(f"{value} stands there twice")
            seen.add(value)
    if len(members) > MEMBERS_MAX:
        raise ValueError(f"{len(members)} members")
    return tuple(members)


def parse_store(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError("a file:// URL needs an absolute path after three slashes")
        return text
    if parts.scheme == "rados":
        if not parts.netloc:
            raise ValueError("a rados:// URL names a pool")
        return text
    raise ValueError("not a store's URL")


def parse_switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("neither true nor false")
    return text == "true"


def parse_collector(text: str) -> str:
    """http(s)://HOST[:PORT][/PATH]"""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{text!r} is no http:// or https:// URL with a host")
    return text


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError("not one of " + ", ".join(words))
        return text

    return parse


def integer(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text) or not least <= int(text) <= most:
            raise ValueError(f"not a whole number from {least} to {most}")
        return int(text)

    return parse


def size_bytes(least: int, most: int) -> Callable[[str], int]:
    """Bytes, plain or with a unit: 1048576, 1024KiB, 1MiB."""

    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text)
        size = int(match[1]) * _SIZE_UNITS[match[2]] if match and len(match[1]) <= 18 else -1
        if not least <= size <= most:
            raise ValueError(f"not a size from {least} to {most} bytes")
        return size

    return parse


def duration(least_s: float, most_s: float) -> Callable[[str], float]:
    """Seconds, from text with or without a unit: 1, 1s, 500ms, 2m. 0 for never."""

    def parse(text: str) -> float:
        match = _DURATION.fullmatch(text)
        seconds = float(match[1]) * _DURATION_UNITS[match[2]] if match else -1.0
        if seconds != 0 and not least_s <= seconds <= most_s:
            raise ValueError(f"neither 0 nor a time from {least_s:g} s to {most_s:g} s")
        return seconds

    return parse


def _setting_of_integer(name: str, default: int, least: int, most: int, help: str) -> Setting:
    return Setting(
        name, integer(least, most), f"a whole number from {least} to {most}", str(default), help, default
    )


def _setting_of_file(name: str, example: str, help: str) -> Setting:
    return Setting(name, Path, "a file in PEM", example, help)


def _setting_of_size(name: str, default: int, least: int, most: int, help: str) -> Setting:
    allowed = f"{_size_text(least)} to {_size_text(most)}, in bytes or with KiB, MiB, GiB"
    return Setting(name, size_bytes(least, most), allowed, _size_text(default), help, default)


def _size_text(size: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if size >= _SIZE_UNITS[unit] and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return str(size)


def _setting_of_limit(limit: Limit) -> Setting:
    setting = _setting_of_size if limit.unit == "bytes" else _setting_of_integer
    return setting(limit.name, limit.default, limit.least, limit.most, f"Limit: {limit.help}")


# --- the table -----------------------------------------------------------------------------------------

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "name",
        parse_name,
        "1 to 63 of A-Z a-z 0-9 _ . -, a letter or digit first",
        "n1",
        "This node's name: one of the members.",
        required=True,
    ),
    Setting(
        "data_dir",
        Path,
        "a directory on a local disk, this node's alone",
        "/var/lib/raftkv",
        "Where the journal, the identity and, by default, the snapshots live.",
        required=True,
    ),
    Setting(
        "api",
        parse_address,
        "HOST:PORT, [IPv6]:PORT, or :PORT for every address",
        "0.0.0.0:8400",
        "Address that clients are answered on.",
        ("127.0.0.1", 8400),
    ),
    Setting(
        "raft",
        parse_address,
        "HOST:PORT, [IPv6]:PORT, or :PORT for every address",
        "0.0.0.0:8401",
        "Address that the other members dial.",
        ("127.0.0.1", 8401),
    ),
    Setting(
        "ops_listen",
        parse_address,
        "HOST:PORT, [IPv6]:PORT, or :PORT for every address",
        "0.0.0.0:8402",
        "One more plain HTTP listener for /livez, /readyz, /startupz and /metrics. Off by default.",
    ),
    Setting(
        "member",
        parse_members,
        f"NAME=RAFT_HOST:PORT,http://API_HOST:PORT, 1 to {MEMBERS_MAX} of them, no name or address twice",
        "n1=10.0.0.1:8401,http://10.0.0.1:8400",
        "A member of the cluster as it is first formed, this node too; the same list on every node. "
        "Give it once for each.",
        required=True,
        repeated=True,
    ),
    Setting(
        "join",
        parse_switch,
        "true or false",
        "true",
        "This node joins a cluster that stands already: it founds none, and waits until it is added "
        "(raftkv member add). Its own --member, and those of the cluster, say where everybody is.",
        False,
        switch=True,
    ),
    Setting(
        "rejoin",
        parse_switch,
        "true or false",
        "true",
        "Where this node was removed and one of its name added anew, and the old disk comes back: set its "
        "data directory aside, as DATA_DIR.removed, and end, to start over with an empty one. By default "
        "it says so and ends.",
        False,
        switch=True,
    ),
    Setting(
        "secret_file",
        Path,
        f"a file of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes that only this user can read",
        "/etc/raftkv/secret",
        "File with the cluster's secret, the same on every member. Or set RAFTKV_SECRET.",
    ),
    Setting(
        "auth",
        one_of("tokens", "off"),
        "tokens or off",
        "tokens",
        "Whom clients have to be: holders of a token that permits what they ask for, or anyone. The same on "
        "every node.",
        "off",
    ),
    Setting(
        "bootstrap_token_file",
        Path,
        "a file with a token that only this user can read",
        "/etc/raftkv/bootstrap-token",
        "File with the first token of a cluster that has none, an administrator of every key; `raftkv token "
        "generate` makes one. Or set RAFTKV_BOOTSTRAP_TOKEN.",
    ),
    Setting(
        "audit_file",
        Path,
        "a file",
        "/var/log/raftkv/audit.log",
        "Append what administrators did, and who was turned away, to this file as well as to the log.",
    ),
    Setting(
        "snapshots",
        parse_store,
        "file:///ABSOLUTE/PATH or rados://POOL/NAMESPACE",
        "rados://raftkv/prod",
        "Store that the leader publishes snapshots to, the same on every member. By default none: each node "
        "keeps its own, in snapshots/ in its data directory, in any case.",
    ),
    Setting(
        "route",
        one_of("redirect", "forward"),
        "redirect or forward",
        "forward",
        "What a follower does with a write: send the client to the leader, or pass the request on.",
        "redirect",
    ),
    Setting(
        "drain_seconds",
        duration(0.1, 60.0),
        "0, or 100ms to 60s, with ms, s or m; a bare number is seconds",
        "5s",
        "After SIGTERM, answer everything for this long while /readyz says 503, so that a load balancer has "
        "stopped sending requests here before the node hands over and goes. 0: go at once.",
        0.0,
    ),
    _setting_of_file(
        "tls_cert",
        "/etc/raftkv/node.pem",
        "Certificate of the API's port, in PEM, with its chain: the API then speaks TLS and nothing else. "
        "Read again when it changes.",
    ),
    _setting_of_file("tls_key", "/etc/raftkv/node.key", "Key of that certificate, not encrypted."),
    _setting_of_file(
        "tls_client_ca",
        "/etc/raftkv/client-ca.pem",
        "Clients must show a certificate of a CA in this file. By default none is asked for.",
    ),
    _setting_of_file(
        "tls_ca",
        "/etc/raftkv/ca.pem",
        "CA of the other nodes' API certificates, for requests that this node passes on. By default those "
        "that the system trusts.",
    ),
    _setting_of_file(
        "peer_tls_cert",
        "/etc/raftkv/node.pem",
        "Certificate of this member on the raft port, with NAME.raftkv or NAME among its DNS names: members "
        "then speak TLS with each other, and each verifies the other. On all members or on none.",
    ),
    _setting_of_file("peer_tls_key", "/etc/raftkv/node.key", "Key of that certificate, not encrypted."),
    _setting_of_file(
        "peer_tls_ca", "/etc/raftkv/ca.pem", "CA of all members' certificates on the raft port."
    ),
    _setting_of_integer(
        "election_timeout_ms_min",
        500,
        30,
        600_000,
        "A follower that hears nothing from a leader campaigns after a time drawn from this …",
    ),
    _setting_of_integer("election_timeout_ms_max", 1000, 31, 600_000, "… to this, in milliseconds."),
    _setting_of_integer(
        "heartbeat_ms",
        100,
        10,
        60_000,
        "The leader tells its followers that it lives this often, in milliseconds.",
    ),
    _setting_of_integer(
        "snapshot_entries_max",
        100_000,
        10,
        1_000_000_000,
        "Take a snapshot and compact the journal after this many log entries …",
    ),
    _setting_of_size(
        "snapshot_log_bytes_max",
        64 << 20,
        64 << 10,
        1 << 40,
        "… or this many bytes of them, whichever is first.",
    ),
    _setting_of_integer(
        "snapshot_interval_seconds",
        600,
        0,
        31_536_000,
        "With a store: publish a snapshot this long after the last one, if anything was written. 0: only "
        "those that compaction makes.",
    ),
    _setting_of_integer(
        "snapshot_spacing_seconds",
        60,
        0,
        86_400,
        "With a store: of the snapshots that compaction makes, publish one in this time at most.",
    ),
    Setting(
        "archive_interval",
        duration(0.1, 3600.0),
        "0, or 100ms to 60m, with ms, s or m; a bare number is seconds",
        "1s",
        "With a store: send it the committed log this often, so that no more than the last writes are lost "
        "with all disks, and any revision can be restored. 0: snapshots only.",
        1.0,
    ),
    _setting_of_integer(
        "snapshots_kept", 10, 1, 10_000, "With a store: this many of the cluster's newest snapshots stay."
    ),
    _setting_of_integer(
        "snapshots_age_seconds_max",
        0,
        0,
        3_153_600_000,
        "With a store: older snapshots go, but for the newest. 0: at no age.",
    ),
    Setting(
        "ceph_conf",
        Path,
        "a file",
        "/etc/ceph/ceph.conf",
        "Ceph's configuration, for a rados:// store without ?conf=. By default /etc/ceph/ceph.conf.",
    ),
    Setting(
        "ceph_keyring",
        Path,
        "a file",
        "/etc/ceph/ceph.client.raftkv.keyring",
        "Keyring with that user's key, for a rados:// store without ?keyring=. By default as Ceph's "
        "configuration says.",
    ),
    Setting(
        "ceph_user",
        parse_name,
        "1 to 63 of A-Z a-z 0-9 _ . -, a letter or digit first",
        "raftkv",
        "Ceph's user, without client., for a rados:// store without ?user=.",
        "raftkv",
    ),
    Setting(
        "log_format", one_of("text", "json"), "text or json", "json", "Form of the log on stderr.", "text"
    ),
    Setting(
        "log_level",
        one_of("debug", "info", "warning", "error"),
        "debug, info, warning or error",
        "debug",
        "Least severe event that is logged.",
        "info",
    ),
    _setting_of_integer(
        "slow_request_ms",
        1000,
        0,
        3_600_000,
        "Log requests that take this long or longer, in milliseconds; streams are left out. 0: none.",
    ),
    Setting(
        "otlp_endpoint",
        parse_collector,
        "http:// or https:// and a host",
        "http://127.0.0.1:4318",
        "Send a span of each request to this OpenTelemetry collector, over OTLP/HTTP. Needs raftkv[otel].",
    ),
)
LIMIT_SETTINGS = tuple(_setting_of_limit(limit) for limit in LIMITS if limit.least < limit.most)
SETTINGS += LIMIT_SETTINGS
SETTING_BY_NAME = {setting.name: setting for setting in SETTINGS}


# --- loading -------------------------------------------------------------------------------------------


def load(
    flags: Mapping[str, object], environment: Mapping[str, str], *, config_file: Path | None = None
) -> Config:
    """The configuration from flags (absent or None: not given), environment and the TOML file, checked.

    The file is `config_file`, else the one that RAFTKV_CONFIG names, else none. Raises ConfigError.
    Environment names that are no setting are left alone: Kubernetes sets RAFTKV_SERVICE_HOST and its like
    for a service called raftkv.
    """
    if config_file is None and environment.get(ENVIRONMENT_PREFIX + "CONFIG"):
        config_file = Path(environment[ENVIRONMENT_PREFIX + "CONFIG"])
    document = _read_toml(config_file) if config_file else {}
    values = {
        setting.name: _value_of(setting, flags, environment, document, config_file) for setting in SETTINGS
    }
    secret, warnings = _read_secret(values["secret_file"], environment)
    token, more = _read_bootstrap_token(values["bootstrap_token_file"], environment)
    warnings += more
    values["members"] = values.pop("member")
    values["limits"] = Limits(**{setting.name: values.pop(setting.name) for setting in LIMIT_SETTINGS})
    config = Config(**values, secret=secret, bootstrap_token=token)
    _check_together(config)
    return replace(config, warnings=(*warnings, *_tls_warnings(config)))


def _value_of(
    setting: Setting,
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    document: Mapping[str, object],
    config_file: Path | None,
) -> Any:
    """The parsed value of one setting from the first source that has it."""
    raw: object
    if flags.get(setting.name) not in (None, ()):
        source, raw = setting.flag, flags[setting.name]
    elif environment.get(setting.environment):
        source, raw = setting.environment, environment[setting.environment]
        if setting.repeated:  # members hold commas and no spaces
            raw = str(raw).split()
    elif setting.name in document:
        source, raw = f"{setting.name} in {config_file}", document[setting.name]
    elif setting.required:
        raise ConfigError(
            f"{setting.flag} is not set ({setting.help}) "
            f"Give {setting.flag}, {setting.environment}, or {setting.name} in the TOML file; "
            f"allowed: {setting.allowed}; example: {setting.flag} {setting.example}"
        )
    else:
        return setting.default
    try:
        return setting.parse(_texts(raw) if setting.repeated else _text(raw))
    except ValueError as error:
        raise ConfigError(
            f"{source}: {raw!r}: {error}; allowed: {setting.allowed}; "
            f"example: {setting.flag} {setting.example}"
        ) from None


def _text(raw: object) -> str:
    if isinstance(raw, bool):
        raw = "true" if raw else "false"
    if not isinstance(raw, str | int | Path):
        raise ValueError("neither text nor a whole number")
    if raw == "":
        raise ValueError("empty")
    return str(raw)


def _texts(raw: object) -> list[str]:
    if not isinstance(raw, list | tuple) or not raw:
        raise ValueError("not a list of texts")
    return [_text(each) for each in raw]


def _read_toml(path: Path) -> Mapping[str, object]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not a TOML file: {error}") from error
    _refuse_unknown(document, path)
    return document


def _refuse_unknown(names: Iterable[str], path: Path) -> None:
    for name in names:
        if name in SETTING_BY_NAME:
            continue
        if name in ("secret", "RAFTKV_SECRET", "bootstrap_token", "RAFTKV_BOOTSTRAP_TOKEN"):
            setting = "secret_file" if "secret" in name.lower() else "bootstrap_token_file"
            raise ConfigError(
                f"{path}: the secret does not belong in a configuration file; put it in a file of its own "
                f"(mode 0600) and name that in {setting}"
            )
        near = difflib.get_close_matches(name, SETTING_BY_NAME, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(SETTING_BY_NAME))}"
        raise ConfigError(f"{path}: {name} is no setting{hint}")


def _read_bootstrap_token(path: Path | None, environment: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """As `_read_secret`; None where there is none."""
    warnings: list[str] = []
    if path is not None:
        source = str(path)
        raw, warnings = _read_private("--bootstrap-token-file", "bootstrap token", path)
    elif environment.get("RAFTKV_BOOTSTRAP_TOKEN"):
        source, raw = "RAFTKV_BOOTSTRAP_TOKEN", environment["RAFTKV_BOOTSTRAP_TOKEN"].encode()
    else:
        return None, warnings
    text = raw.strip().decode(errors="replace")
    if split(text) is None:
        raise ConfigError(
            f"{source}: what is there ({len(text)} characters) is not a token; allowed: {FORM}; "
            "example: the output of `raftkv token generate`"
        )
    return text, warnings


def _read_private(flag: str, what: str, path: Path) -> tuple[bytes, list[str]]:
    """The file's bytes, and what is unwise about it."""
    try:
        mode = path.stat().st_mode & 0o777
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be read: {error.strerror}") from error
    if not mode & 0o007:  # not the group's: Kubernetes gives a pod its secrets by way of one
        return raw, []
    return raw, [f"{what} file {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}"]


def _read_secret(path: Path | None, environment: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The secret's bytes without white space around them, and what is unwise about where they are."""
    warnings: list[str] = []
    if path is not None:
        source = str(path)
        raw, warnings = _read_private("--secret-file", "secret", path)
    elif environment.get("RAFTKV_SECRET"):
        source, raw = "RAFTKV_SECRET", environment["RAFTKV_SECRET"].encode()
    else:
        raise ConfigError(
            "--secret-file is not set: members prove to each other that they know the cluster's secret. Make "
            "one with `(umask 077; openssl rand -hex 32 > secret)`, the same file on every member, and give "
            "--secret-file secret, RAFTKV_SECRET_FILE, or the secret itself in RAFTKV_SECRET"
        )
    secret = raw.strip()
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise ConfigError(
            f"{source}: the secret has {len(secret)} bytes; "
            f"allowed: {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}; "
            "example: the output of `openssl rand -hex 32`"
        )
    return secret, warnings


def _check_together(config: Config) -> None:
    """What no setting can tell alone."""
    names = [member.name for member in config.members]
    if config.name not in names:
        raise ConfigError(
            f"--name {config.name} is not among the members ({', '.join(names)}); give --member "
            f"{config.name}=… as well, or correct the name"
        )
    if config.election_timeout_ms_min <= 2 * config.heartbeat_ms:
        raise ConfigError(
            f"--election-timeout-ms-min {config.election_timeout_ms_min} is not more than twice "
            f"--heartbeat-ms {config.heartbeat_ms}: one late heartbeat would depose a healthy leader; "
            f"allowed: above {2 * config.heartbeat_ms}; "
            f"example: --election-timeout-ms-min {5 * config.heartbeat_ms}"
        )
    if config.election_timeout_ms_max <= config.election_timeout_ms_min:
        raise ConfigError(
            f"--election-timeout-ms-max {config.election_timeout_ms_max} is not above "
            f"--election-timeout-ms-min {config.election_timeout_ms_min}: without a range to draw from, "
            f"elections split for ever; "
            f"example: --election-timeout-ms-max {2 * config.election_timeout_ms_min}"
        )
    _check_limits_together(config.limits)
    _check_tls_together(config)
    listeners = [("--api", config.api), ("--raft", config.raft), ("--ops-listen", config.ops_listen)]
    for at, (flag, address) in enumerate(listeners):
        for other_flag, other in listeners[at + 1 :]:
            if address is not None and address == other:
                raise ConfigError(
                    f"{flag} and {other_flag} are both {address[0]}:{address[1]}; give each its own port"
                )


def _check_tls_together(config: Config) -> None:
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key go together; give both, or neither for plain HTTP")
    if config.tls_client_ca is not None and config.tls_cert is None:
        raise ConfigError(
            "--tls-client-ca needs --tls-cert and --tls-key: without TLS no client shows anything"
        )
    peer = (config.peer_tls_cert, config.peer_tls_key, config.peer_tls_ca)
    if None in peer and peer != (None, None, None):
        raise ConfigError(
            "--peer-tls-cert, --peer-tls-key and --peer-tls-ca go together; give all three, or none for "
            "plain text between the members"
        )


def _tls_warnings(config: Config) -> list[str]:
    warnings = []
    for key in dict.fromkeys((config.tls_key, config.peer_tls_key)):
        try:
            mode = key.stat().st_mode & 0o777 if key is not None else 0
        except OSError:
            continue  # who reads it says so
        if mode & 0o007:
            warnings.append(f"key file {key} can be read by others (mode {mode:04o}); run: chmod 600 {key}")
    if config.tls_cert is not None and config.client_url.startswith("http://"):
        warnings.append(
            f"the API speaks TLS and the members' list sends clients to {config.client_url}; write https:// "
            "there, unless something in between speaks plain HTTP for them"
        )
    return warnings


def _check_limits_together(limits: Limits) -> None:
    if limits.timeout_seconds > limits.timeout_seconds_max:
        raise ConfigError(
            f"--timeout-seconds {limits.timeout_seconds} is above --timeout-seconds-max "
            f"{limits.timeout_seconds_max}"
        )
    line_bytes = limits.value_bytes_max * 4 // 3 + 6 * limits.key_bytes_max + 1024
    if limits.batch_line_bytes_max < line_bytes:
        raise ConfigError(
            f"--batch-line-bytes-max {limits.batch_line_bytes_max} can't hold a value of --value-bytes-max "
            f"{limits.value_bytes_max} in base64 and its key; allowed: {line_bytes} and more"
        )
