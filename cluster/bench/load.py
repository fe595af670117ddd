"""The load generators: wrk for whatever speaks HTTP, and two Go programs, built on first use, for the rest.

Each runs for a given time, in bounded time, on one core at most as far as it can be told so, and says how
many requests succeeded, how long they took, and what CPU time it used itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.bench.processes import die_with_parent
from cluster.bench.requests import Case, pack

HERE = Path(__file__).resolve().parent
GO_SYSTEM_PATHS = Path("/usr/share/gocode")
OVERRUN_SECONDS = 30  # after which a load generator is killed
GRPC_CONNECTIONS = 16
BUILD_SECONDS_MAX = 600


class LoadFailed(Exception):
    """The load generator itself failed; nothing is known of the server."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a load generator saw. `errors` counts everything that is not a success as far as it can tell."""

    requests: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    client_cpu_seconds: float
    bytes_an_answer: float | None = None  # head and body; None where it does not say


def parse(document: Mapping[str, float], client_cpu_seconds: float) -> Load:
    """From the line of JSON that wrk.lua and the Go programs end with."""
    failures = ("errors", "connect", "read", "write", "status", "timeout")
    requests = int(document["requests"])
    return Load(
        requests=requests,
        errors=int(sum(document.get(name, 0) for name in failures)),
        seconds=document["duration_us"] / 1e6,
        p50_ms=document["p50_us"] / 1e3,
        p99_ms=document["p99_us"] / 1e3,
        max_ms=document["max_us"] / 1e3,
        client_cpu_seconds=client_cpu_seconds,
        bytes_an_answer=document["bytes"] / requests if "bytes" in document and requests else None,
    )


def wrk(base_url: str, requests: Sequence[bytes], case: Case, seconds: int) -> Load:
    """One thread: it makes over 100,000 requests a second, and the other core is the servers'."""
    with tempfile.NamedTemporaryFile(prefix="raftkv-wrk-") as file:
        file.write(pack(requests))
        file.flush()
        command = [
            *("wrk", "-t1", f"-c{case.connections}", f"-d{seconds}s", "--timeout", "10s"),
            *("-s", str(HERE / "wrk.lua"), base_url, "--", file.name),
        ]
        return measured(command, seconds)


def etcd_client(endpoint: str, case: Case, tag: str, seconds: int, programs: Path) -> Load:
    return measured(
        [*go_command(programs / "etcd", endpoint, case, tag, seconds), "-conns", str(GRPC_CONNECTIONS)],
        seconds,
    )


def redis_client(endpoint: str, case: Case, tag: str, seconds: int, programs: Path) -> Load:
    return measured(go_command(programs / "redis", endpoint, case, tag, seconds), seconds)


def go_command(program: Path, endpoint: str, case: Case, tag: str, seconds: int) -> list[str]:
    return [
        *(str(program), "-endpoint", endpoint, "-clients", str(case.connections)),
        *("-seconds", str(seconds), "-operation", case.operation),
        *("-value-bytes", str(case.value_bytes), "-tag", tag),
    ]


def measured(command: Sequence[str], seconds: int) -> Load:
    """Runs it to its end and reads the JSON of its last line."""
    before = os.times()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=die_with_parent(os.getpid())
    )
    try:
        output, _ = process.communicate(timeout=seconds + OVERRUN_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{command[0]} did not end {OVERRUN_SECONDS} s after its time") from error
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    lines = output.decode(errors="replace").strip().splitlines()
    if process.returncode != 0 or not lines or not lines[-1].startswith("{"):
        raise LoadFailed(f"{command[0]} ended with {process.returncode}:\n" + "\n".join(lines[-10:]))
    return parse(json.loads(lines[-1]), cpu)


# --- the Go programs -------------------------------------------------------------------------------------


def go_tool() -> str | None:
    return shutil.which("go") or next(
        (str(path) for path in sorted(Path("/usr/lib").glob("go-*/bin/go"), reverse=True)), None
    )


def build(name: str, programs: Path) -> None:
    """Builds go/<name> from Debian's packages alone, without a network, into `programs`; quick if it is there
    and newer than its source. Raises LoadFailed with the compiler's words."""
    source, target = HERE / "go" / name / "main.go", programs / name
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return
    go = go_tool()
    if go is None:
        raise LoadFailed("no Go compiler: apt-get install golang-go")
    with tempfile.TemporaryDirectory(prefix="raftkv-go-") as scratch:
        package = Path(scratch) / "src" / name
        package.mkdir(parents=True)
        shutil.copy(source, package)
        programs.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "GO111MODULE": "off",
            "GOPATH": f"{scratch}:{GO_SYSTEM_PATHS}",
            "GOCACHE": str(programs / "cache"),
            "GOFLAGS": "",
        }
        began = time.monotonic()
        done = subprocess.run(
            [go, "build", "-o", str(target.absolute()), "."],
            cwd=package,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS_MAX,
            check=False,
        )
        if done.returncode != 0:
            raise LoadFailed(
                f"building {source} failed after {time.monotonic() - began:.0f} s:\n{done.stderr}"
            )
