"""Two adjacent releases run together: today's build, and one that announces the next protocol."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from cluster.local import LocalCluster, find_base_port
from cluster.rolling import Report, Rolling
from raftkv.client import SyncClient

NEXT_RELEASE = Path(__file__).parent / "next_release.py"
LEVEL_SECONDS_MAX = 20.0


class Mixed(LocalCluster):
    """`upgraded` names who runs the next release from its next start on."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.upgraded: set[str] = set()

    def command(self, name: str) -> list[str]:
        words = super().command(name)
        if name in self.upgraded:
            at = words.index("-m")
            words[at : at + 2] = [str(NEXT_RELEASE)]
        return words

    def levels(self) -> set[int | None]:
        return {status and status["protocol_level"] for status in self.statuses().values()}


async def until_level(cluster: Mixed, level: int) -> None:
    deadline = time.monotonic() + LEVEL_SECONDS_MAX
    while (levels := await asyncio.to_thread(cluster.levels)) != {level}:
        assert time.monotonic() < deadline, f"levels {levels}, not {level}"
        await asyncio.sleep(0.05)


async def upgrade_and_back(cluster: Mixed, rolling: Rolling) -> Report:
    async def restart(name: str, *, upgraded: bool) -> None:
        (cluster.upgraded.add if upgraded else cluster.upgraded.discard)(name)
        await rolling.restart_each([name])

    await asyncio.to_thread(cluster.wait_ready)
    async with rolling.under_load():
        await restart("n1", upgraded=True)
        await restart("n2", upgraded=True)
        assert await asyncio.to_thread(cluster.levels) == {1}, "a member can't read the next level yet"
        await restart("n2", upgraded=False)
        await restart("n2", upgraded=True)
        await restart("n3", upgraded=True)
        await until_level(cluster, 2)
    return await rolling.verdict()


def test_a_mixed_cluster_is_upgraded_under_load_and_back_while_the_level_is_old(
    tmp_path: Path,
) -> None:
    with Mixed(tmp_path, base_port=find_base_port()) as cluster:
        cluster.start_all()
        report = asyncio.run(upgrade_and_back(cluster, Rolling(cluster, seed=1)))
        print("\n".join(report.lines()))
        assert report.failed == []
        assert report.violations == []
        assert report.write_gap[0] <= 1.0

        with SyncClient(cluster.api_urls()) as client:
            client.put("written", b"by the next release")
        back = "n2" if cluster.wait_leader() != "n2" else "n3"
        cluster.stop(back)
        cluster.upgraded.discard(back)
        cluster.start(back)
        assert cluster.wait_stopped(back) == 1, "there is no way back from the level"
        said = "\n".join(cluster.last_log_lines(back))
        assert "release_too_old" in said
        assert "has reached level 2 of the protocol" in said
        assert "this release speaks 1 at most: start the release that ran here before" in said

        cluster.upgraded.add(back)
        cluster.start(back)
        cluster.wait_ready()
        with SyncClient([cluster.api_url(back)]) as client:
            assert client.get("written").value == b"by the next release"
