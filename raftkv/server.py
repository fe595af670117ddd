"""The composition root: from a `Config` to a running node, and back down in order.

Up: disk -> raft port -> API. The API listens last but before the cluster has formed, so that a person and
a probe can ask what the node waits for.

Down, on SIGTERM or SIGINT: readiness turns false, and answers end their connections; after `--drain-seconds`
new writes are refused; what was taken is answered and leadership handed over; then the API, the engine and
the disk close. At most 10 s after `--drain-seconds`, exit code 0.
A node that can't be sure of its data does not come down in order: it says why and exits 1 at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import queue
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import uvloop

from raftkv import resources
from raftkv.access.bootstrap import make_first_token
from raftkv.access.redaction import Redacting
from raftkv.api.app import ApiServer, start_api
from raftkv.api.node import VERSION
from raftkv.api.request_log import RequestLog
from raftkv.config import Config
from raftkv.errors import ConfigError, DiskReplaced, Fatal
from raftkv.kv import collector
from raftkv.metrics import Metrics
from raftkv.raft.compaction import CompactionLimits
from raftkv.raft.core import Timing
from raftkv.raft.identity import set_aside
from raftkv.raft.node import NodeSettings, RaftNode
from raftkv.raft.transport import Limits as TransportLimits
from raftkv.room import Room
from raftkv.service import KVService
from raftkv.snapshot.archiver import ArchivePolicy
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.remote import RemoteStore, Retention, open_remote
from raftkv.tls.credentials import ApiFiles, Credentials, PeerFiles, Security, Watcher

if TYPE_CHECKING:
    from raftkv.api.spans import OtlpSpans

log = logging.getLogger("raftkv.server")

# SIGTERM to exit: 10 s at most. Answering and handing over may take this much of it.
LEAVE_S = 6.0
# Open connections get this long to take the answers that are on their way to them.
API_CLOSE_S = 2.0

# How long the loop may keep the interpreter from the journal's thread, which wants it for a moment, to say
# that a commit is on disk. Python's own 5 ms are several times what the disk takes.
SWITCH_S = 0.0005

ROOM_LOOK_S = 1.0  # what can be written in that time has to fit below --disk-free-bytes-min
FIRST_TOKEN_LOOK_S = 0.05
AUDIT_EVENTS_MAX = 10_000  # that wait for the disk; then they are told on stderr as lost

EXIT_OK, EXIT_FATAL, EXIT_USAGE = 0, 1, 2


def run(config: Config) -> int:
    """Runs one node until a signal or a fatal error; the exit code. One process, one loop."""
    sys.setswitchinterval(SWITCH_S)
    configure_log(config.log_format, config.log_level, config.name, sys.stderr, secrets_of(config))
    for warning in config.warnings:
        log.warning("config_warning %s", warning)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Node(config).run())
    except ConfigError as error:
        return _report(error, EXIT_USAGE)
    except Fatal as error:
        return _report(error, EXIT_FATAL)


def _report(error: Fatal, code: int) -> int:
    log.error("node_stopped code=%s %s", error.code, error)
    print(f"raftkv serve: {error}", file=sys.stderr, flush=True)
    return code


class _Node:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._ended: asyncio.Future[None]

    async def run(self) -> int:
        config = self._config
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        security = security_of(config)
        if security.off:
            log.warning("security_off what=%s see=docs/security.md", ",".join(security.off))
        node = RaftNode(
            node_settings(config),
            open_store=lambda data_dir: DirectoryStore.open(data_dir / "snapshots"),
            on_fatal=self._on_fatal,
            remote=open_store(config),
            credentials=security.peer,
        )
        async with AsyncExitStack() as stack:
            self._watch(security, stack)
            stack.push_async_callback(node.stop)
            await node.start()
            service = make_service(config, node)
            spans = spans_of(config, lambda: (service.leadership.role, service.machine.applied_index))
            if spans is not None:
                stack.callback(spans.close)
            slow_s = config.slow_request_ms / 1000 if config.slow_request_ms else math.inf
            requests = RequestLog(slow_s=slow_s, spans=spans)
            metrics = Metrics()
            metrics.source(node.samples)
            host, port = config.api
            api = await start_api(
                service,
                host=host,
                port=port,
                limits=config.limits,
                route=config.route,
                ops=config.ops_listen,
                metrics=metrics,
                security=security,
                requests=requests,
            )
            stack.push_async_callback(api.close)
            stack.callback(asyncio.create_task(watch_room(service, config.data_dir)).cancel)
            if config.audit_file is not None:
                stack.callback(audit_to_file(config.audit_file, config.log_format, config.name).stop)
            if config.bootstrap_token is not None:
                stack.callback(asyncio.create_task(first_token(config.bootstrap_token, service, api)).cancel)
            collector.settle()
            announcement = asyncio.create_task(self._announce(node, service, api))
            stack.callback(announcement.cancel)
            await self._ended
            await self._leave(node, service, api)
        if node.threads_left:
            # A snapshot store has not answered yet. Nothing here depends on its answer, and to end around
            # a library in the middle of its work can crash: this process ends at once instead.
            sys.stdout.flush()
            logging.shutdown()
            os._exit(EXIT_OK)
        return EXIT_OK

    def _watch(self, security: Security, stack: AsyncExitStack) -> None:
        """Certificates and keys are read again when they change, and at once on SIGHUP."""
        loop = asyncio.get_running_loop()
        if security.ports:
            watcher = Watcher(security.ports)
            watcher.start()
            stack.callback(watcher.stop)
            loop.add_signal_handler(signal.SIGHUP, watcher.look_now)

    async def _announce(self, node: RaftNode, service: KVService, api: ApiServer) -> None:
        """One line on stdout, once: this node is ready."""
        host = self._config.api[0]
        log.info(
            "node_listens api=%s:%d raft=%s:%d data=%s",
            host,
            api.port,
            *self._config.raft,
            self._config.data_dir,
        )
        await node.wait_ready()
        while service.lacks_token:  # noqa: ASYNC110  # the state machine tells nobody of its tokens
            await asyncio.sleep(FIRST_TOKEN_LOOK_S)
        print(
            f"raftkv: {self._config.name} is ready at {self._config.client_url} "
            f"(cluster {node.status().cluster_id}, leader {node.leadership.leader})",
            flush=True,
        )

    def _on_signal(self, number: int) -> None:
        log.info("signal_received signal=%s", signal.Signals(number).name)
        if not self._ended.done():
            self._ended.set_result(None)

    def _on_fatal(self, error: Fatal) -> None:
        """Nothing that this process does counts any more: be gone before another answer leaves."""
        if not self._ended.done():
            self._ended.set_exception(error)
        if isinstance(error, DiskReplaced) and self._config.rejoin:
            error = self._set_aside(error)
        sys.stdout.flush()
        os._exit(_report(error, EXIT_FATAL))

    def _set_aside(self, error: Fatal) -> Fatal:
        """For the next start, which finds no data and joins. What to end with."""
        try:
            aside = set_aside(self._config.data_dir)
        except Fatal as failed:
            return failed
        log.warning("disk_set_aside to=%s", aside)
        return error

    async def _leave(self, node: RaftNode, service: KVService, api: ApiServer) -> None:
        api.retire()
        await asyncio.sleep(self._config.drain_seconds)
        service.drain()
        await node.leave(timeout_s=LEAVE_S)
        try:
            async with asyncio.timeout(API_CLOSE_S):
                await api.drain()
        except TimeoutError:
            log.warning("connections_cut after_s=%s", API_CLOSE_S)


# --- from Config to plain values ---------------------------------------------------------------------


def node_settings(config: Config) -> NodeSettings:
    return NodeSettings(
        name=config.name,
        data_dir=config.data_dir,
        members=config.members,
        joining=config.join,
        secret=config.secret,
        listen=config.raft,
        timing=Timing(
            election_timeout_s_min=config.election_timeout_ms_min / 1000,
            election_timeout_s_max=config.election_timeout_ms_max / 1000,
            heartbeat_s=config.heartbeat_ms / 1000,
        ),
        compaction=CompactionLimits(
            log_entries_max=config.snapshot_entries_max,
            log_bytes_max=config.snapshot_log_bytes_max,
        ),
        transport=TransportLimits(
            handshake_seconds_max=config.limits.raft_handshake_seconds_max,
            # Several election timeouts: a peer that says nothing for so long is not coming back on this link.
            peer_timeout_ms=2 * config.election_timeout_ms_max,
        ),
        archive_interval_s=config.archive_interval,
        archive=ArchivePolicy(
            interval_s=config.snapshot_interval_seconds,
            spacing_s=config.snapshot_spacing_seconds,
            retention=Retention(config.snapshots_kept, config.snapshots_age_seconds_max or None),
        ),
    )


def security_of(config: Config) -> Security:
    """Reads certificates and keys. Raises ConfigError."""
    security = Security(auth=config.auth)
    if config.tls_cert is not None and config.tls_key is not None:
        files = ApiFiles(config.tls_cert, config.tls_key, config.tls_client_ca, config.tls_ca)
        security.api = Credentials("api", files)
    if config.peer_tls_cert and config.peer_tls_key and config.peer_tls_ca:
        peer = PeerFiles(config.name, config.peer_tls_cert, config.peer_tls_key, config.peer_tls_ca)
        security.peer = Credentials("peer", peer)
    return security


def open_store(config: Config) -> RemoteStore | None:
    """The store that the cluster's snapshots are published to, None without one. What the journal is
    compacted behind is local in any case: a store that is away must not stop that. Raises ConfigError."""
    if config.snapshots is None:
        return None
    settings = {"CONF": config.ceph_conf, "KEYRING": config.ceph_keyring, "USER": config.ceph_user}
    environment = {f"RAFTKV_CEPH_{name}": str(value) for name, value in settings.items() if value is not None}
    return open_remote(config.snapshots, environment)


def spans_of(config: Config, situation: Callable[[], tuple[str, int]]) -> OtlpSpans | None:
    """Where a collector is told of requests; `situation`: this node's role and the index that it has applied.

    The libraries are loaded only where they are used, since they cost memory on every node. Raises
    ConfigError where they are not installed.
    """
    if config.otlp_endpoint is None:
        return None
    try:
        from raftkv.api.spans import OtlpSpans as Sender
    except ImportError as error:
        raise ConfigError(
            f"--otlp-endpoint {config.otlp_endpoint}: {error.name} is not installed; "
            "run: pip install 'raftkv[otel]'"
        ) from error
    return Sender(config.otlp_endpoint, node=config.name, version=VERSION, situation=situation)


def make_service(config: Config, node: RaftNode) -> KVService:
    limits = config.limits
    return KVService(
        node,
        name=config.name,
        writes_in_flight_max=limits.writes_in_flight_max,
        write_bytes_in_flight_max=limits.write_bytes_in_flight_max,
        reads_in_flight_max=limits.reads_in_flight_max,
        idempotency_bytes_max=limits.idempotency_bytes_max,
        list_bytes_max=limits.list_bytes_max,
        exports_max=limits.exports_max,
        brings_token=config.auth == "tokens" and config.bootstrap_token is not None,
        room=Room(
            quota_bytes=limits.quota_bytes,
            disk_free_bytes_min=limits.disk_free_bytes_min,
            memory_available_bytes_min=limits.memory_available_bytes_min,
        ),
    )


async def watch_room(service: KVService, data_dir: Path) -> None:
    """Keeps the service told of what is left of disk and memory. A disk that hangs holds a thread here and
    nothing else."""
    while True:
        service.room.read(await asyncio.to_thread(resources.read, data_dir))
        service.room.look_at_quota(service.machine.bytes)
        await asyncio.sleep(ROOM_LOOK_S)


async def first_token(text: str, service: KVService, api: ApiServer) -> None:
    """Makes it where the cluster has none."""
    timeout_s = float(api.limits.timeout_seconds)
    await make_first_token(
        text,
        hasher=api.hasher,
        machine=lambda: service.machine,
        leads=lambda: service.leads,
        propose=lambda command: service.write(command, timeout_s=timeout_s),
    )


def configure_log(form: str, level: str, node: str, stream: TextIO, secrets: Iterable[bytes] = ()) -> None:
    """Events on `stream`, one a line: `time LEVEL logger event key=value …`, or as JSON with the values as
    members of their own. What is in `secrets`, and every token, is taken out of it."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Redacting(_lines(form, node), secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    logging.getLogger("raftkv.audit").setLevel(logging.INFO)  # whatever else is left out


def audit_to_file(path: Path, form: str, node: str) -> QueueListener:
    """Audit events into a file as well, written on a thread: a slow disk holds no request. The file may be
    moved away, as logrotate does; a new one is made then. Raises ConfigError."""
    try:
        handler = _PrivateFile(os.fspath(path), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--audit-file {path}: cannot be written: {error.strerror}") from error
    handler.setFormatter(Redacting(_lines(form, node)))
    events: queue.Queue[Any] = queue.Queue(AUDIT_EVENTS_MAX)
    logging.getLogger("raftkv.audit").addHandler(QueueHandler(events))
    listener = QueueListener(events, handler)
    listener.start()
    return listener


class _PrivateFile(WatchedFileHandler):
    """Who may read it, only its owner can say."""

    def _open(self) -> Any:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(descriptor, "a", encoding=self.encoding)


def _lines(form: str, node: str) -> logging.Formatter:
    return _JsonLines(node) if form == "json" else _TextLines()


def secrets_of(config: Config) -> list[bytes]:
    """What must not be in a log line, whoever writes it."""
    return [config.secret, *([config.bootstrap_token.encode()] if config.bootstrap_token else [])]


class _TextLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")

    converter = staticmethod(time.gmtime)


# Of a message's template: a value, and the name before it.
_VALUE = re.compile(r"""(?:(\w+)=)?["']?%[-#0 +]*\d*(?:\.\d+)?[sdrxfg]""")


class _JsonLines(logging.Formatter):
    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        ours = record.name.partition(".")[0] == "raftkv"
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "node": self._node,
            "event": message.partition(" ")[0] if ours else record.name,
            "message": message,
        }
        if ours:
            line = values_of(record) | line
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def values_of(record: logging.LogRecord) -> dict[str, Any]:
    """The named values of an event, by name: `term=%d` is a number, what JSON does not know is its text."""
    if not isinstance(record.args, tuple):
        return {}
    names = (found[1] for found in _VALUE.finditer(str(record.msg)))
    return {
        name: value if isinstance(value, str | int | float | None) else str(value)
        for name, value in zip(names, record.args, strict=False)
        if name is not None
    }
