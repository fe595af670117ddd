#!/usr/bin/env python3
"""What publishing snapshots to a real Ceph costs the clients.

    .venv/bin/python scripts/measure_publishing.py [--keys 1000000] [--rounds 3]

Three nodes and a Ceph of one OSD, all on this machine. In turn, each round: nothing but writes; writes while
a snapshot is made and published; writes while one is made and the OSD is paused. Prints the medians over the
rounds, and what publishing took.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.local import LocalCluster, find_base_port
from raftkv.client import Client, ClientError

CEPH = Path(__file__).parent / "ceph-dev.sh"
BATCH = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=128)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round's each part")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raftkv-", dir="/tmp") as directory:
        ceph_dir = Path(directory) / "c"
        ceph(ceph_dir, "start")
        try:
            url = f"rados://raftkv/measure?conf={ceph_dir}/ceph.conf&keyring={ceph_dir}/client.keyring"
            arguments = ["--snapshots", url, "--snapshot-interval-seconds", "0"]
            arguments += ["--snapshot-entries-max", "100000000", "--snapshot-log-bytes-max", "64GiB"]
            with LocalCluster(
                Path(directory) / "n", base_port=find_base_port(), extra_args=arguments
            ) as nodes:
                nodes.start_all()
                nodes.wait_ready()
                measure(nodes, ceph_dir, options)
        finally:
            ceph(ceph_dir, "reset")


def ceph(directory: Path, command: str) -> None:
    environment = os.environ | {"CEPH_DIR": str(directory)}
    subprocess.run([CEPH, command], env=environment, check=True, stdout=subprocess.DEVNULL)


def measure(nodes: LocalCluster, ceph_dir: Path, options: argparse.Namespace) -> None:
    url = nodes.api_url(nodes.wait_leader())
    began = time.monotonic()
    load(url, options.keys, options.value_bytes)
    print(f"{options.keys} keys loaded in {time.monotonic() - began:.0f} s", flush=True)
    parts: dict[str, list[tuple[float, float, int]]] = {"alone": [], "publishing": [], "store away": []}
    for _ in range(options.rounds):
        parts["alone"].append(writes(url, options, lambda: None))
        parts["publishing"].append(writes(url, options, lambda: ask(url, "POST", "/v1/snapshots")))
        tell_archive(url, settled(url))
        ceph(ceph_dir, "pause-osd")
        parts["store away"].append(writes(url, options, lambda: ask(url, "POST", "/v1/snapshots")))
        ceph(ceph_dir, "resume-osd")
        tell_archive(url, settled(url))
    for name, figures in parts.items():
        p50, p99, rate = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:<12} {rate:8.0f} writes/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms (medians)")


def load(url: str, keys: int, value_bytes: int) -> None:
    for first in range(0, keys, BATCH):
        lines = (
            json.dumps(
                {
                    "op": "put",
                    "key": f"key/{number:08}",
                    "value": base64.b64encode(os.urandom(value_bytes))[:value_bytes].decode(),
                }
            )
            for number in range(first, min(first + BATCH, keys))
        )
        ask(url, "POST", "/v1/batch", "\n".join(lines).encode(), "application/x-ndjson")


def ask(url: str, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    request = urllib.request.Request(url + path, body or None, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return bytes(answer.read())


def writes(url: str, options: argparse.Namespace, beside: Callable[[], Any]) -> tuple[float, float, int]:
    """p50 and p99 in ms, and writes a second; `beside` is called a second after the start."""
    return asyncio.run(_writes(url, options, beside))


async def _writes(
    url: str, options: argparse.Namespace, beside: Callable[[], Any]
) -> tuple[float, float, int]:
    times_ms: list[float] = []
    over = time.monotonic() + options.seconds

    async def write(client: Client, writer: int) -> None:
        number = 0
        while (began := time.monotonic()) < over:
            number += 1
            try:
                await client.put(f"hot/{writer}/{number % 100}", b"x" * options.value_bytes)
            except ClientError as error:
                print(f"a write failed: {error}")
                continue
            times_ms.append((time.monotonic() - began) * 1000)

    async with Client(url) as client, asyncio.TaskGroup() as group:
        for writer in range(options.writers):
            group.create_task(write(client, writer))
        await asyncio.sleep(1)
        await asyncio.to_thread(beside)
    times_ms.sort()
    rate = int(len(times_ms) / options.seconds)
    return times_ms[len(times_ms) // 2], times_ms[int(len(times_ms) * 0.99)], rate


def settled(url: str) -> dict[str, Any]:
    """The archive's status once what was asked for is in the store."""
    while True:
        archive: dict[str, Any] = json.loads(ask(url, "GET", "/v1/status"))["archive"]
        snapshot = json.loads(ask(url, "GET", "/v1/status"))["snapshot"]
        if archive["state"] == "idle" and archive["index"] == snapshot["index"] > 0:
            return archive
        time.sleep(0.1)


def tell_archive(url: str, archive: dict[str, Any]) -> None:
    (newest, *_) = json.loads(ask(url, "GET", "/v1/snapshots"))["snapshots"]
    seconds = archive["seconds_last"]
    print(
        f"published {newest['keys']} keys, {newest['bytes'] / 1e6:.0f} MB in {seconds:.2f} s: "
        f"{newest['bytes'] / 1e6 / seconds:.0f} MB/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
