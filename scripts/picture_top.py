#!/usr/bin/env python3
"""Draws docs/images/top.svg: `raftkv top` over three nodes of its own, under load from wrk.

.venv/bin/python scripts/picture_top.py [FILE]
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from cluster.bench.load import wrk
from cluster.bench.requests import Case, requests
from cluster.local import LocalCluster, find_base_port
from cluster.top_cli import Watch, drawn
from raftkv.client import Client

PLACE = Path(__file__).resolve().parents[1] / "docs" / "images" / "top.svg"
COLUMNS = 104
LOOKS = 20
SECONDS = LOOKS + 4
WRITES = Case("put", 128, 64)
READS = Case("get", 128, 16)


async def drawing(cluster: LocalCluster) -> str:
    """As SVG."""
    leader = cluster.wait_leader()
    cases = [(name, WRITES if name == leader else READS) for name in cluster.names]
    load = [
        asyncio.to_thread(wrk, cluster.api_url(name), requests("raftkv", case, "picture"), case, SECONDS)
        for name, case in cases
    ]
    loads = asyncio.gather(*load)
    async with Client(cluster.api_urls()) as client:
        watch = Watch(client, 2.0)
        await watch.look()
        for _ in range(LOOKS):
            await asyncio.sleep(1)
            now = await watch.look()
    await loads
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(drawn(now, watch.history))
    return self_contained(console.export_svg(title="raftkv top", unique_id="raftkv-top"))


def self_contained(svg: str) -> str:
    """Without the fonts that rich would have a viewer fetch; any monospaced one will do."""
    svg = re.sub(r"@font-face\s*{.*?}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, 'DejaVu Sans Mono', monospace")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main() -> None:
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE
    with (
        tempfile.TemporaryDirectory() as directory,
        LocalCluster(Path(directory), base_port=find_base_port()) as cluster,
    ):
        cluster.start_all()
        cluster.wait_ready()
        svg = asyncio.run(drawing(cluster))
        cluster.stop_all()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(svg)
    print(f"drawn: {place}")


if __name__ == "__main__":
    main()
