"""Members that come, go, are replaced and restarted under load, and the verdict on what their clients saw.

One change at a time, drawn from a seed, among five nodes of which three found the cluster; beside it, one
partition at a time. A change that a partition delays is tried until it is done: the promise is that it gets
done soon after, that no client's history breaks, and that outside partitions writes never stop for long.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from cluster.local import LocalCluster
from cluster.nemesis import (
    CALM_SECONDS,
    READY_SECONDS_MAX,
    STOP_SECONDS_MAX,
    Campaign,
    Fault,
    Kind,
    Report,
    campaign,
)
from cluster.network import Network
from raftkv.client import ClientError, SyncClient

FOUNDERS, SPARES = 3, 2
VOTERS_MIN = 3  # below, one partition or one replacement is too much
CHANGES = {"add": 3, "promote": 3, "remove": 3, "replace": 2, "transfer": 3, "rolling": 1}
PARTITIONS: tuple[Kind, ...] = ("isolate", "deaf", "mute", "split", "link")
BETWEEN_CHANGES_SECONDS = (0.5, 3.0)
BETWEEN_PARTITIONS_SECONDS = (5.0, 15.0)
PARTITION_SECONDS = (1.0, 6.0)
DONE_SECONDS_MAX = 60.0  # for a change, partitions included
REMOVED_SECONDS_MAX = 30.0  # for a removed node to learn of it, and end
ASK_SECONDS = 5.0
WRITE_GAP_SECONDS_MAX = 5.0  # outside partitions


class Churn(Campaign):
    """Used once, inside one event loop."""

    def __init__(
        self, cluster: LocalCluster, links: Network | None, *, seed: int, say: Callable[[str], None] = print
    ) -> None:
        super().__init__(cluster, links, seed=seed, say=say)
        self._dice = Random(f"changes {seed}")
        self._partition_dice = Random(f"partitions {seed}")
        self._learners: set[str] = set()
        self._client = SyncClient(cluster.api_urls(), timeout_s=ASK_SECONDS)
        self.report.standing = "outside partitions"

    async def run(self, duration_s: float) -> Report:
        await asyncio.to_thread(self._cluster.wait_ready, None, READY_SECONDS_MAX)
        try:
            async with self._under_load():
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._changes(duration_s))
                    if self._links is not None:
                        group.create_task(self._partitions(duration_s))
                await self._heal_all()
                await asyncio.sleep(CALM_SECONDS)
            report = await self._verdict()
        finally:
            self._client.close()
        seconds, since = report.write_gap_with_majority
        if seconds > WRITE_GAP_SECONDS_MAX:
            self._violate(
                "progress", f"no write for {seconds:.2f} s outside partitions, from {since:.2f} s on"
            )
        return report

    def _stands(self, working: Collection[str]) -> bool:
        """The promise on gaps holds whatever changes: only partitions are let off."""
        return not self._cuts

    # --- partitions ---------------------------------------------------------------------------------

    async def _partitions(self, duration_s: float) -> None:
        dice = self._partition_dice
        while True:
            pause_s, lasting_s = dice.uniform(*BETWEEN_PARTITIONS_SECONDS), dice.uniform(*PARTITION_SECONDS)
            if time.monotonic() - self._began + pause_s + lasting_s > duration_s:
                return
            await asyncio.sleep(pause_s)
            fault = Fault(dice.choice(PARTITIONS), 0.0, lasting_s, "any", dice.random())
            hit = dice.choice(self._members)
            await self._cut_and_heal(hit, fault)

    # --- changes ------------------------------------------------------------------------------------

    async def _changes(self, duration_s: float) -> None:
        while time.monotonic() - self._began < duration_s:
            await asyncio.sleep(self._dice.uniform(*BETWEEN_CHANGES_SECONDS))
            possible = [kind for kind in CHANGES if self._candidates(kind)]
            (kind,) = self._dice.choices(possible, [CHANGES[each] for each in possible])
            name = self._dice.choice(self._candidates(kind))
            self._leader = await asyncio.to_thread(self._cluster.leader)
            self._count(kind, name)
            await getattr(self, f"_{kind}")(name)

    def _candidates(self, kind: str) -> list[str]:
        """Whom the change can be made to."""
        voters = [name for name in self._members if name not in self._learners]
        match kind:
            case "add":
                return [name for name in self._cluster.names if name not in self._members]
            case "promote":
                return sorted(self._learners)
            case "remove":
                return [*(voters if len(voters) > VOTERS_MIN else []), *sorted(self._learners)]
            case "transfer":
                return voters
        return list(self._members)

    async def _add(self, name: str) -> None:
        promote = self._dice.random() < 0.5
        self._start_empty(name)
        await self._until_done(f"add {name}", partial(self._ask_add, name, promote), lambda: self._role(name))
        self._learners.add(name)
        self._members.append(name)
        if promote:
            await self._until_voter(name)

    async def _promote(self, name: str) -> None:
        ask = partial(self._client.promote_member, name)
        await self._until_done(f"promote {name}", ask, lambda: self._role(name) not in ("", "learner"))
        self._learners.discard(name)

    async def _remove(self, name: str) -> None:
        self._set(name, "leaving")
        await self._ask_to_remove(name)
        self._members.remove(name)
        self._learners.discard(name)
        await self._ended(name)
        del self._state[name]

    async def _replace(self, name: str) -> None:
        self._set(name, "down")
        self._cluster.kill(name)
        await self._ask_to_remove(name)
        self._learners.add(name)
        add = partial(self._ask_add, name, True)
        await self._until_done(f"add {name}", add, lambda: self._role(name))
        self._start_empty(name)
        await self._until_voter(name)

    async def _transfer(self, name: str) -> None:
        """May be refused: who is to take over may be away, or too far behind."""
        try:
            await asyncio.to_thread(self._client.transfer_leadership, name)
        except ClientError as error:
            self._tell(f"transfer to {name}: {error}")

    async def _rolling(self, _: str) -> None:
        for name in list(self._members):
            await self._stop_and_restart(name, Fault("stop", 0.0, 0.0, "any", 0.0))
            try:
                await asyncio.to_thread(self._cluster.wait_ready, [name], READY_SECONDS_MAX)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is a finding
                self._violate("ready", str(error))

    # --- how ----------------------------------------------------------------------------------------

    def _start_empty(self, name: str) -> None:
        shutil.rmtree(self._cluster.node_dir(name), ignore_errors=True)
        self._cluster.joining.add(name)
        self._cluster.start(name)
        self._set(name, "running")
        self._tell(f"start {name}, empty")

    async def _ask_to_remove(self, name: str) -> None:
        ask = partial(self._client.remove_member, name)
        await self._until_done(f"remove {name}", ask, lambda: not self._role(name))

    async def _until_voter(self, name: str) -> None:
        await self._until_done(f"promotion of {name}", None, lambda: self._role(name) not in ("", "learner"))
        self._learners.discard(name)
        self._tell(f"{name} is a voter")

    def _ask_add(self, name: str, promote: bool) -> Any:
        return self._client.add_member(
            name,
            peer=self._cluster.raft_address(name),
            client_url=self._cluster.api_url(name),
            auto_promote=promote,
        )

    def _role(self, name: str) -> str:
        """As the leader has it, "" for no member. Raises ClientError, LookupError without a leader to ask."""
        leader = self._cluster.leader()
        if leader is None:
            raise LookupError("no leader")
        document = self._client.cluster(self._cluster.api_url(leader), timeout_s=ASK_SECONDS)
        if document["leader"] != leader:
            raise LookupError("the leader has changed")
        return next((str(each["role"]) for each in document["members"] if each["name"] == name), "")

    async def _until_done(self, what: str, ask: Callable[[], Any] | None, done: Callable[[], object]) -> None:
        """Asks again where it was refused or its outcome is unknown, until the leader says that it is so."""
        deadline = time.monotonic() + DONE_SECONDS_MAX
        said = ""
        while True:
            try:
                if await asyncio.to_thread(done):
                    return
                if ask is not None:
                    await asyncio.to_thread(ask)
                    continue
            except (ClientError, LookupError) as error:
                if str(error)[:40] != said[:40]:
                    self._tell(f"{what}: {error}")
                said = str(error)
            if time.monotonic() > deadline:
                self._violate("membership", f"{what} is not done after {DONE_SECONDS_MAX} s: {said}")
                raise TimeoutError(what)
            await asyncio.sleep(0.1)

    async def _ended(self, name: str) -> None:
        """A removed node ends by itself, once it hears of it; one that never joined goes on waiting."""
        deadline = time.monotonic() + REMOVED_SECONDS_MAX
        while self._cluster.alive(name):
            status = await asyncio.to_thread(self._cluster.status, name)
            if status is not None and not status["cluster_id"]:
                await asyncio.to_thread(self._cluster.stop, name, STOP_SECONDS_MAX)
                return
            if time.monotonic() > deadline:
                kept = self._cluster.data_dir / f"{name}-{time.monotonic() - self._began:.0f}.log"
                shutil.copy(self._cluster.log_path(name), kept)  # its directory goes when it is added again
                self._violate(
                    "removed", f"{name} still runs {REMOVED_SECONDS_MAX} s after its removal; log in {kept}"
                )
                await asyncio.to_thread(self._cluster.stop, name, STOP_SECONDS_MAX)
                return
            await asyncio.sleep(0.1)


def run(data_dir: Path, *, seed: int, minutes: float, say: Callable[[str], None] = print) -> Report:
    with campaign(data_dir, nodes=FOUNDERS, spares=SPARES, seed=seed, kind=Churn, say=say) as running:
        return asyncio.run(running.run(60 * minutes))
