"""A `Bucket` in Ceph RADOS: `rados://pool/namespace`. The only file that imports `rados`.

    raftkv.index     an object without data; its omap is the index, key "generation" the guard:
                     one write operation compares the generation, sets the next, puts and drops entries
    <name>           an object a name, written whole

The binding is Debian's `python3-rados`, measured on 16.2 and 18.2. What it does that one would not expect:

- `list_objects` swallows errors and yields nothing: nothing here depends on a listing.
- `aio_flush` raises nothing when writes failed: each completion is asked for its own result.
- `read` gives 8192 bytes unless told a length.
- `rados.OSError` and its like are not the builtins: `rados.Error` is what is caught.
- A handle hangs in a child of `fork`, whatever its timeouts: one is used only in the process that made it.
- `open_ioctx` on a missing pool hangs while the monitor is down, in spite of every timeout: connecting
  happens on a thread of its own, which is left behind when its time is up.
- A write that timed out may be applied later. Names are written whole and belong to one attempt, and the
  index changes only from the generation that was read, so both are harmless.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from raftkv.errors import ConfigError, SnapshotDamaged, SnapshotMissing, StoreUnavailable
from raftkv.snapshot.bucket import Index

log = logging.getLogger("raftkv.snapshot")

PACKAGE: Final = "python3-rados"
INDEX_OBJECT: Final = "raftkv.index"
GENERATION: Final = "generation"
ENTRIES_MAX: Final = (
    100_000  # of the index, read in one operation; osd_max_omap_entries_per_request is 131072
)

# In flight at once: four fill the line to one OSD, and 32 MiB is all the memory that it takes. The library
# itself blocks at 100 MB.
IN_FLIGHT_MAX: Final = 6
IN_FLIGHT_BYTES_MAX: Final = 32 << 20
READ_BYTES: Final = (8 << 20) + 1  # more than any object has

# The defaults of Ceph are 300 s, for ever, for ever. With objecter_timeout at its default of 10 s a handle
# never recovered after an OSD was killed and came back; with these it took 1.1 to 1.5 s.
OPTIONS: Final = {
    "client_mount_timeout": "5",
    "rados_mon_op_timeout": "5",
    "rados_osd_op_timeout": "15",
    "objecter_timeout": "1",
    "objecter_tick_interval": "0.5",
    # What is wrong comes back as an error; the library's own lines would go between the node's.
    "log_to_stderr": "false",
    "err_to_stderr": "false",
}
CONNECT_S: Final = 12.0  # of the two timeouts above that a connect can run into, and a little

# After these the handle is as good as before; after any other it is made anew. After a timeout too: where all
# monitors and OSDs have new addresses, as containers may have after a restart, an old handle asks at the old
# ones for ever.
_HANDLE_IS_WELL = frozenset({errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.EDQUOT, errno.ECANCELED})

Job = tuple[str, int, Callable[..., Any], tuple[Any, ...]]  # object, bytes, how, with what


@dataclass(frozen=True, slots=True)
class Location:
    """Which pool, as whom. `conf` None: /etc/ceph/ceph.conf; `keyring` None: where the conf says."""

    pool: str
    namespace: str = ""
    conf: str | None = None
    keyring: str | None = None
    user: str = "raftkv"

    @classmethod
    def parse(cls, url: str, environment: Mapping[str, str]) -> Location:
        """`rados://POOL[/NAMESPACE][?conf=…&keyring=…&user=…]`; what is not there comes from
        RAFTKV_CEPH_CONF, RAFTKV_CEPH_KEYRING, RAFTKV_CEPH_USER. Raises ConfigError."""
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        namespace = unquote(parts.path.strip("/"))
        if parts.scheme != "rados" or not parts.netloc or "/" in namespace:
            raise ConfigError(f"{url}: not of the form rados://POOL/NAMESPACE?conf=…&keyring=…&user=…")
        if unknown := query.keys() - {"conf", "keyring", "user"}:
            raise ConfigError(f"{url}: {sorted(unknown)[0]!r} is none of conf, keyring, user")
        given = {name: query[name][0] for name in ("conf", "keyring", "user") if name in query}
        for name in ("conf", "keyring", "user"):
            value = given.get(name) or environment.get(f"RAFTKV_CEPH_{name.upper()}")
            if value:
                given[name] = value
        given["user"] = given.get("user", "raftkv").removeprefix("client.")
        return cls(unquote(parts.netloc), namespace, **given)

    @property
    def url(self) -> str:
        return f"rados://{self.pool}/{self.namespace}".rstrip("/")


def load_binding() -> Any:
    """The module `rados`. Raises ConfigError, with the package's name."""
    try:
        import rados
    except ImportError as error:
        raise ConfigError(
            f"a rados:// store needs Debian's binding to Ceph, and this Python can't load it ({error}). On "
            f"Debian: apt-get install {PACKAGE}, then scripts/venv again, which lets it into .venv; it fits "
            "/usr/bin/python3 and no other Python"
        ) from error
    return rados


class RadosBucket:
    """Connects at the first use, and again after an error that leaves the handle in doubt."""

    def __init__(self, location: Location) -> None:
        self._rados = load_binding()
        self._location = location
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._handle: _Handle | None = None
        self._connecting: threading.Thread | None = None

    @property
    def url(self) -> str:
        return self._location.url

    def close(self) -> None:
        with self._lock:
            handle, self._handle = self._handle, None
            idle = handle is not None and handle.users == 0
        if handle is not None and idle:
            handle.close()

    # --- objects -----------------------------------------------------------------------------------

    def write(self, objects: Iterable[tuple[str, bytes]]) -> None:
        with self._io() as io:
            self._pipelined((name, len(data), io.aio_write_full, (name, data)) for name, data in objects)

    def create(self, name: str, data: bytes) -> None:
        with self._io() as io, self._write_op(io) as operation:
            operation.new(self._rados.LIBRADOS_CREATE_EXCLUSIVE)
            operation.write_full(data)
            try:
                io.operate_write_op(operation, name)
            except self._rados.ObjectExists as error:
                raise FileExistsError(f"there is an object {name} in {self.url}") from error

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        with self._io() as io:
            try:
                if size is not None:
                    return bytes(io.read(name, size, offset)) if size else b""
                parts = [bytes(io.read(name, READ_BYTES, offset))]
                while len(parts[-1]) == READ_BYTES:  # ends where the object does
                    offset += READ_BYTES
                    parts.append(bytes(io.read(name, READ_BYTES, offset)))
                return b"".join(parts)
            except self._rados.ObjectNotFound as error:
                raise SnapshotMissing(f"there is no {name!r} in {self.url}") from error

    def remove(self, names: Iterable[str]) -> None:
        with self._io() as io:
            self._pipelined(((name, 0, io.aio_remove, (name,)) for name in names), well=(errno.ENOENT,))

    def _pipelined(self, jobs: Iterable[Job], *, well: tuple[int, ...] = ()) -> None:
        """Submits each job, a few on their way at a time, and checks every one's own result."""
        on_way: deque[tuple[str, int, Any]] = deque()
        in_flight = 0

        def settle() -> None:
            nonlocal in_flight
            name, size, completion = on_way.popleft()
            completion.wait_for_complete()
            in_flight -= size
            code = completion.get_return_value()
            if code < 0 and -code not in well:
                raise _Failed(-code, name)

        try:
            for name, size, submit, arguments in jobs:
                while on_way and (len(on_way) >= IN_FLIGHT_MAX or in_flight + size > IN_FLIGHT_BYTES_MAX):
                    settle()
                on_way.append((name, size, submit(*arguments)))
                in_flight += size
            while on_way:
                settle()
        finally:
            # After a failure too: a handle that is shut down drops what is on its way.
            for _, _, completion in on_way:
                completion.wait_for_complete()

    # --- the index ---------------------------------------------------------------------------------

    def index(self) -> Index:
        with self._io() as io:
            operation = io.create_read_op()
            try:
                pairs, _ = io.get_omap_vals(operation, "", "", ENTRIES_MAX)
                io.operate_read_op(operation, INDEX_OBJECT)
                entries = {key: bytes(value) for key, value in pairs}
            except self._rados.ObjectNotFound:
                return Index()
            finally:
                io.release_read_op(operation)
        generation = entries.pop(GENERATION, b"")
        if not generation.isdigit() or len(entries) >= ENTRIES_MAX - 1:
            raise SnapshotDamaged(
                f"{INDEX_OBJECT} in {self.url} is not an index of snapshots: its generation is "
                f"{generation!r}, it has {len(entries)} entries"
            )
        return Index(int(generation), entries)

    def change(self, generation: int, put: Mapping[str, bytes], drop: Iterable[str]) -> bool:
        put = {**put, GENERATION: str(generation + 1).encode()}
        drop = tuple(drop)
        with self._io() as io, self._write_op(io) as operation:
            if generation:
                operation.omap_cmp(GENERATION, str(generation), self._rados.LIBRADOS_CMPXATTR_OP_EQ)
            else:
                operation.new(self._rados.LIBRADOS_CREATE_EXCLUSIVE)
            io.set_omap(operation, tuple(put), tuple(put.values()))
            if drop:
                io.remove_omap_keys(operation, drop)
            try:
                io.operate_write_op(operation, INDEX_OBJECT)
            except self._rados.Error as error:
                if error.errno in (errno.ECANCELED, errno.EEXIST):
                    return False
                raise
        return True

    # --- the handle --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _io(self) -> Iterator[Any]:
        """The ioctx; errors of the binding come out as StoreUnavailable."""
        assert self._process == os.getpid(), "a rados handle hangs in a child of fork"
        handle = self._take()
        try:
            yield handle.io
        except (self._rados.Error, _Failed) as error:
            if getattr(error, "errno", None) not in _HANDLE_IS_WELL:
                self._drop(handle)
            self._refuse(error, "")
        finally:
            self._give_back(handle)

    @contextlib.contextmanager
    def _write_op(self, io: Any) -> Iterator[Any]:
        operation = io.create_write_op()
        try:
            yield operation
        finally:
            io.release_write_op(operation)

    def _take(self) -> _Handle:
        with self._lock:
            if self._handle is None:
                self._handle = self._connect()
            self._handle.users += 1
            return self._handle

    def _give_back(self, handle: _Handle) -> None:
        """The last one closes what was dropped meanwhile; on a thread, since that may wait for Ceph."""
        with self._lock:
            handle.users -= 1
            over = handle.users == 0 and handle is not self._handle
        if over:
            threading.Thread(target=handle.close, name="raftkv-rados-close", daemon=True).start()

    def _connect(self) -> _Handle:
        if self._connecting is not None and self._connecting.is_alive():
            raise StoreUnavailable(
                f"{self.url}: an earlier connect still hangs: is the Ceph monitor up, and is there a pool "
                f"{self._location.pool}?",
                reason="timed_out",
            )
        result: list[_Handle | BaseException] = []
        given_up = threading.Event()

        def work() -> None:
            try:
                handle = _Handle(self._rados, self._location)
            except BaseException as error:  # noqa: BLE001 raised on the thread that waits
                result.append(error)
                return
            result.append(handle)
            if given_up.is_set():
                handle.close()

        self._connecting = threading.Thread(target=work, name="raftkv-rados-connect", daemon=True)
        self._connecting.start()
        self._connecting.join(CONNECT_S)
        if not result:
            given_up.set()
            raise StoreUnavailable(
                f"{self.url}: no connection within {CONNECT_S:g} s: is the Ceph monitor up?",
                reason="timed_out",
            )
        if isinstance(result[0], self._rados.Error):
            self._refuse(result[0], "connecting: ")
        if isinstance(result[0], BaseException):
            raise result[0]
        return result[0]

    def _drop(self, handle: _Handle) -> None:
        with self._lock:
            if self._handle is handle:
                self._handle = None

    def _refuse(self, error: Exception, doing: str) -> NoReturn:
        reason, advice = explain(error, self._location)
        raise StoreUnavailable(f"{self.url}: {doing}{advice} [{error}]", reason=reason) from error


class _Failed(Exception):
    """A completion's own result."""

    def __init__(self, code: int, name: str) -> None:
        super().__init__(f"errno {code}, object {name}")
        self.errno = code


class _Handle:
    """A connection and its ioctx; `users` operations are on their way on it. Blocks for seconds; raises
    rados.Error, StoreUnavailable."""

    def __init__(self, rados: Any, location: Location) -> None:
        self.users = 0
        options = dict(OPTIONS)
        _check_readable("conf", location.conf)
        if location.keyring is not None:
            # With a missing keyring the library turns authentication off, and is refused for that.
            _check_readable("keyring", location.keyring)
            options["keyring"] = location.keyring
        self._cluster = rados.Rados(
            conffile=location.conf or "/etc/ceph/ceph.conf", rados_id=location.user, conf=options
        )
        try:
            self._cluster.connect()
            self.io = self._cluster.open_ioctx(location.pool)
        except BaseException:
            self._cluster.shutdown()
            raise
        self.io.set_namespace(location.namespace)
        # Without it, writes and deletes on a full pool block until their timeout instead of being refused,
        # and a full pool could not even be made room in.
        self.io.set_osdmap_full_try()

    def close(self) -> None:
        self.io.close()
        self._cluster.shutdown()


def _check_readable(name: str, path: str | None) -> None:
    try:
        if path is not None:
            open(path, "rb").close()
    except OSError as error:
        raise StoreUnavailable(
            f"{name} {path}: {error.strerror}: give the file's path in the URL (?{name}=PATH) or in "
            f"RAFTKV_CEPH_{name.upper()}, readable for this user",
            reason=f"no_{name}",
        ) from error


def explain(error: Exception, location: Location) -> tuple[str, str]:
    """One word for programs, and a sentence that says what is wrong and what to do."""
    code = getattr(error, "errno", None)
    conf = location.conf or "/etc/ceph/ceph.conf"
    keyring = location.keyring or f"as {conf} says"
    text = str(error)
    match code:
        case errno.ETIMEDOUT:
            return "timed_out", "Ceph didn't answer in time: are its monitors and OSDs up? (`ceph -s`)"
        case errno.ENOSPC | errno.EDQUOT:
            return "full", (
                f"pool {location.pool} is full: make room, raise its quota, or keep fewer snapshots "
                "(`raftkv snapshot prune`)"
            )
        case errno.EPERM:
            return "no_caps", (
                f"client.{location.user} may not use pool {location.pool}"
                + (f", namespace {location.namespace}" if location.namespace else "")
                + f": `ceph auth caps client.{location.user} mon 'allow r' osd "
                f"'allow rwx pool={location.pool}'`"
            )
        case errno.EACCES:
            return "wrong_key", (
                f"Ceph doesn't know client.{location.user} by this key: `ceph auth get "
                f"client.{location.user}` says which one is right; keyring: {keyring}"
            )
        case errno.ENOENT if "opening pool" in text:
            return "no_pool", f"there is no pool {location.pool}: `ceph osd pool create {location.pool}`"
        case errno.ENOENT:
            return "no_conf", f"{conf} or its keyring can't be found: give ?conf= and ?keyring= in the URL"
        case errno.EIO:
            return "bad_keyring", f"the keyring can't be read: {keyring}"
        case _:
            return "error", f"Ceph refused with error {code}"
