"""The machine's whole Debian package index through the store and back, while nodes die.

Each package record of `apt-cache dumpavail` is a value, its key made of name, version and architecture. In
it goes through `raftkv kv import` while the leader is killed with -9 twice; out it comes through
`raftkv kv export` from each node, and is put together in the source's order: the same bytes, to the last.
Then all nodes are killed at once, started again, and asked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from cluster.local import LocalCluster, find_base_port

KILLS = 2
END_OF_RECORD = b"\n\n"
COMMAND_SECONDS_MAX = 600.0  # for the whole index; it takes well under a minute
RESTART_AFTER_SECONDS = 2.0  # what was killed stays dead long enough for the others to elect without it


class PackagesDiffer(Exception):
    """What came out is not what went in. Says where."""


@dataclass(frozen=True, slots=True)
class Package:
    key: str
    record: bytes


# --- pure ------------------------------------------------------------------------------------------------


def packages_of(index: bytes) -> list[Package]:
    """The index's records in its order. Raises ValueError for a record without a name, or a key twice."""
    packages = [Package(key_of(record), record) for record in index.split(END_OF_RECORD) if record]
    if len({package.key for package in packages}) != len(packages):
        raise ValueError("two packages have the same name, version and architecture")
    return packages


def key_of(record: bytes) -> str:
    fields: dict[bytes, str] = {}
    for line in record.split(b"\n"):
        name, colon, value = line.partition(b": ")
        if colon and not line.startswith(b" "):
            fields.setdefault(name, value.strip().decode())
    try:
        return f"debian/{fields[b'Package']}/{fields[b'Version']}/{fields[b'Architecture']}"
    except KeyError as error:
        raise ValueError(f"a record without {error}: {record[:80]!r}") from None


def index_of(packages: Sequence[Package], values: dict[str, bytes]) -> bytes:
    """The index again, from what was read under the packages' keys. Raises PackagesDiffer."""
    if missing := [package.key for package in packages if package.key not in values]:
        raise PackagesDiffer(
            f"{len(missing)} of {len(packages)} keys are missing, the first is {missing[0]!r}"
        )
    if len(values) > len(packages):
        extra = sorted(set(values) - {package.key for package in packages})
        raise PackagesDiffer(f"{len(extra)} keys that were never written, the first is {extra[0]!r}")
    return b"".join(values[package.key] + END_OF_RECORD for package in packages)


def lines_of(packages: Sequence[Package]) -> bytes:
    """For `raftkv kv import`. Old records are not always UTF-8."""
    lines = []
    for package in packages:
        line: dict[str, str | bytes] = {"key": package.key}
        try:
            line["value"] = package.record.decode()
        except UnicodeDecodeError:
            line["base64"] = package.record  # msgspec writes bytes as base64
        lines.append(msgspec.json.encode(line) + b"\n")
    return b"".join(lines)


class _Item(msgspec.Struct):
    key: str
    value: str | None = None
    base64: bytes | None = None


def values_of(lines: bytes) -> dict[str, bytes]:
    """From `raftkv kv export`. Raises PackagesDiffer for a key that comes twice."""
    decoder = msgspec.json.Decoder(_Item)
    values: dict[str, bytes] = {}
    for line in lines.splitlines():
        item = decoder.decode(line)
        if item.key in values:
            raise PackagesDiffer(f"{item.key!r} comes twice")
        values[item.key] = item.base64 if item.base64 is not None else (item.value or "").encode()
    return values


# --- the run ---------------------------------------------------------------------------------------------


def read_index(records_max: int | None = None) -> bytes:
    """What apt knows, or its first `records_max` records. Raises ValueError where it knows none."""
    index = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True).stdout
    if not index:
        raise ValueError("apt-cache dumpavail says nothing: run apt-get update first")
    if records_max is not None:
        index = b"".join(
            record + END_OF_RECORD for record in index.split(END_OF_RECORD)[:records_max] if record
        )
    return index


def run(index: bytes, data_dir: Path, *, kills: int = KILLS, say: Callable[[str], None] = print) -> None:
    """Raises PackagesDiffer, or CalledProcessError of a command that failed."""
    packages = packages_of(index)
    digest = hashlib.sha256(index).hexdigest()
    say(f"source: {len(packages)} packages, {len(index)} bytes, sha256 {digest}")
    with LocalCluster(data_dir / "nodes", base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        started = time.monotonic()
        _import(cluster, lines_of(packages), len(packages), kills, say)
        say(f"import: {time.monotonic() - started:.1f} s, with {kills} kills -9 of the leader")
        cluster.wait_ready()
        _compare(cluster, packages, digest, data_dir, say)
        cluster.kill_all()
        started = time.monotonic()
        cluster.start_all()
        cluster.wait_ready()
        say(f"all killed with -9 at once and started again: ready in {time.monotonic() - started:.1f} s")
        _compare(cluster, packages, digest, data_dir, say)
        cluster.stop_all()


def _import(cluster: LocalCluster, source: bytes, count: int, kills: int, say: Callable[[str], None]) -> None:
    """Feeds the import in `kills + 1` parts without a pause, and kills the leader in the midst of each but
    the last. The next part is held back until then, so that no import is over before its last kill."""
    command = _raftkv("kv", "import", "-", "--endpoints", ",".join(cluster.api_urls()), "--timeout", "30")
    part = count // (kills + 1)
    gates = [threading.Event() for _ in range(kills)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as importing:
        feeder = threading.Thread(target=_feed, args=(importing, source, part, gates))
        feeder.start()
        try:
            for number, gate in enumerate(gates):
                _wait_for_keys(cluster, importing, number * part + part // 2)
                leader = cluster.wait_leader()
                cluster.kill(leader)
                status = next(filter(None, cluster.statuses().values()))
                say(f"killed the leader {leader} with {status['keys']} packages in")
                gate.set()
                time.sleep(RESTART_AFTER_SECONDS)
                cluster.start(leader)
                cluster.wait_ready()
            code = importing.wait(COMMAND_SECONDS_MAX)
        finally:
            importing.kill()
            for gate in gates:
                gate.set()
            feeder.join()
    if code != 0:
        raise PackagesDiffer(f"raftkv kv import ended with code {code}")


def _feed(
    importing: subprocess.Popen[bytes], source: bytes, part: int, gates: Sequence[threading.Event]
) -> None:
    lines = source.splitlines(keepends=True)
    assert importing.stdin is not None
    # An import that ended early is told by its exit code.
    with contextlib.suppress(BrokenPipeError), importing.stdin as sink:
        for number, gate in enumerate(gates):
            sink.write(b"".join(lines[number * part : (number + 1) * part]))
            sink.flush()
            gate.wait(COMMAND_SECONDS_MAX)
        sink.write(b"".join(lines[len(gates) * part :]))


def _wait_for_keys(cluster: LocalCluster, importing: subprocess.Popen[bytes], mark: int) -> None:
    deadline = time.monotonic() + COMMAND_SECONDS_MAX
    while importing.poll() is None and time.monotonic() < deadline:
        if any(status["keys"] >= mark for status in cluster.statuses().values() if status is not None):
            return
        time.sleep(0.01)
    raise PackagesDiffer(f"the import ended, code {importing.returncode}, before {mark} packages were in")


def _compare(
    cluster: LocalCluster,
    packages: Sequence[Package],
    digest: str,
    data_dir: Path,
    say: Callable[[str], None],
) -> None:
    for name in cluster.names:
        started = time.monotonic()
        file = data_dir / f"export-{name}.ndjson"
        endpoint = cluster.api_url(name)
        subprocess.run(
            _raftkv("kv", "export", "--file", str(file), "--endpoints", endpoint),
            check=True,
            timeout=COMMAND_SECONDS_MAX,
        )
        seconds = time.monotonic() - started
        values = values_of(file.read_bytes())
        found = hashlib.sha256(index_of(packages, values)).hexdigest()
        say(f"export from {name}: {len(values)} packages, {seconds:.1f} s, sha256 {found}")
        if found != digest:
            raise PackagesDiffer(
                f"{name}: sha256 {found}, the source's is {digest}: {_difference(packages, values)}"
            )


def _difference(packages: Sequence[Package], values: dict[str, bytes]) -> str:
    wrong = [package for package in packages if values[package.key] != package.record]
    first = wrong[0]
    return f"{len(wrong)} records differ, the first under {first.key!r}: {values[first.key][:200]!r}"


def _raftkv(*words: str) -> list[str]:
    return [sys.executable, "-m", "raftkv", *words]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--records", type=click.IntRange(min=10), help="Only the first so many.  [default: all]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Must be empty. Kept if you name it.")
def main(records: int | None, data_dir: Path | None) -> None:
    """Puts the machine's Debian package index in while leaders die, and takes it out again, equal."""
    directory = data_dir or Path(tempfile.mkdtemp(prefix="raftkv-packages-"))
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise click.UsageError(f"{directory} is not empty")
    try:
        run(read_index(records), directory, say=click.echo)
    except (PackagesDiffer, subprocess.SubprocessError) as error:
        click.echo(f"FAILED: {error}; data and logs are in {directory}", err=True)
        sys.exit(1)
    click.echo("equal, byte for byte")
    if data_dir is None:
        shutil.rmtree(directory)
