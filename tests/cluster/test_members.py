"""The cluster's calls and `raftkv member …` against real nodes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local import PORTS_A_NODE, LocalCluster, find_base_port
from raftkv.client import SyncClient


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("members"), base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        yield cluster


def member(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raftkv", "member", *arguments]
    endpoints = ",".join(cluster.api_urls())
    return subprocess.run([*command, "--endpoints", endpoints], capture_output=True, text=True, timeout=60)


def changed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def test_leadership_goes_to_whom_it_is_given(nodes: LocalCluster) -> None:
    for name in (*nodes.names, *reversed(nodes.names)):
        before = nodes.wait_leader()
        done = member(nodes, "transfer-leader", "--to", name, "-o", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["leader"] == name
        assert nodes.wait_leader() == name, f"{before} led"


def test_leadership_goes_to_someone_else_where_nobody_is_named(nodes: LocalCluster) -> None:
    before = nodes.wait_leader()
    with SyncClient(nodes.api_urls()) as client:
        after = client.transfer_leadership()["leader"]
    assert after != before
    assert nodes.wait_leader() == after


def test_leadership_is_taken_only_from_whom_it_is_to_be_taken(nodes: LocalCluster) -> None:
    leader = nodes.wait_leader()
    other = next(name for name in nodes.names if name != leader)
    nothing = member(nodes, "transfer-leader", "--from", other)
    assert (nothing.returncode, nothing.stdout) == (0, ""), nothing.stderr
    assert f"{other} does not lead ({leader})" in nothing.stderr
    assert nodes.wait_leader() == leader
    assert member(nodes, "transfer-leader", "--from", leader).returncode == 0
    assert nodes.wait_leader() != leader


def test_leadership_is_not_given_to_a_stranger_nor_to_who_is_away(nodes: LocalCluster) -> None:
    leader = nodes.wait_leader()
    assert member(nodes, "transfer-leader", "--to", "n9").returncode == 3
    away = next(name for name in nodes.names if name != leader)
    nodes.pause(away)
    try:
        refused = member(nodes, "transfer-leader", "--to", away)
        assert (refused.returncode, "did not take over" in refused.stderr) == (2, True), refused.stderr
        with SyncClient([nodes.api_url(leader)]) as client:
            client.put("still", b"led")
    finally:
        nodes.resume(away)  # and it may still campaign: the leader's word has been waiting for it
    nodes.wait_ready()


def test_members_are_listed_as_the_leader_sees_them(nodes: LocalCluster) -> None:
    nodes.wait_ready()
    leader = nodes.wait_leader()
    shown = member(nodes, "list")
    assert shown.returncode == 0, shown.stderr
    rows = dict(line.split("\t", 1) for line in shown.stdout.splitlines())
    assert set(rows) == {"name", *nodes.names}
    assert [name for name in nodes.names if rows[name].startswith("leader\t")] == [leader]
    assert nodes.raft_address("n2") in rows["n2"]
    assert "\t-\t-\t" not in rows["n1"], "how far it is, only the leader knows"
    assert "quorum 2: 1 more may fail" in shown.stderr


def test_a_member_comes_is_promoted_and_goes(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, nodes=4, founders=3, base_port=find_base_port(4)) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        with SyncClient(cluster.api_urls()) as client:
            client.put("before", b"it came")
            addresses = ("--peer", cluster.raft_address("n4"), "--client-url", cluster.api_url("n4"))
            planned = changed(member(cluster, "add", "n4", *addresses, "--dry-run", "-o", "json"))
            assert (planned["dry_run"], planned["after"]["learners"]) == (True, ["n4"])
            assert len(client.cluster()["members"]) == 3

            added = changed(member(cluster, "add", "n4", *addresses, "-o", "json"))
            assert added["after"] == planned["after"]
            assert member(cluster, "add", "n4", *addresses).returncode == 2
            cluster.start("n4")
            promoted = changed(member(cluster, "promote", "n4", "--timeout", "30", "-o", "json"))
            assert promoted["after"]["voters"] == ["n1", "n2", "n3", "n4"]
            assert (promoted["after"]["quorum"], promoted["after"]["tolerance"]) == (3, 1)
            cluster.wait_ready(["n4"])
            with SyncClient([cluster.api_url("n4")]) as there:
                assert there.get("before").value == b"it came"

            leader = cluster.wait_leader()
            removed = changed(member(cluster, "remove", leader, "-o", "json"))
            assert leader not in removed["after"]["voters"]
            assert cluster.wait_stopped(leader) == 1
            assert "add it with an empty data directory" in "\n".join(cluster.last_log_lines(leader))
            client.put("after", b"it went")
            assert leader not in [each["name"] for each in client.cluster()["members"]]


def test_a_lost_disk_is_replaced_under_its_old_name(nodes: LocalCluster) -> None:
    nodes.wait_ready()
    lost = next(name for name in nodes.names if name != nodes.wait_leader())
    nodes.kill(lost)
    shutil.rmtree(nodes.node_dir(lost))
    nodes.start(lost)
    assert nodes.wait_stopped(lost) == 1, "an empty disk under a known name neither votes nor counts"
    assert "empty" in "\n".join(nodes.last_log_lines(lost))
    replaced = changed(member(nodes, "replace", lost, "-o", "json"))
    assert replaced["after"]["learners"] == [lost]
    shutil.rmtree(nodes.node_dir(lost))
    nodes.joining.add(lost)
    nodes.start(lost)
    nodes.wait_ready([lost])
    with SyncClient(nodes.api_urls()) as client:
        wait_until(lambda: all(each["role"] != "learner" for each in client.cluster()["members"]))
        assert len(client.cluster()["members"]) == 3


def test_a_member_that_moved_is_found_where_it_is_now(tmp_path: Path) -> None:
    """Its name is its identity: started with other addresses, it calls the others, and they take note."""
    with LocalCluster(tmp_path, base_port=find_base_port(4)) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        moving = next(name for name in cluster.names if name != cluster.wait_leader())
        cluster.stop(moving)
        port = cluster.api_port("n1") + 3 * PORTS_A_NODE
        moved = {
            cluster.raft_address(moving): f"127.0.0.1:{port + 1}",
            cluster.api_url(moving): f"http://127.0.0.1:{port}",
            f"127.0.0.1:{cluster.api_port(moving)}": f"127.0.0.1:{port}",
        }
        command = cluster.command(moving)
        for before, after in moved.items():
            command = [word.replace(before, after) for word in command]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                others = [cluster.api_url(name) for name in cluster.names if name != moving]
                with SyncClient(others) as client:

                    def found() -> bool:
                        seen = {each["name"]: each for each in client.cluster()["members"]}[moving]
                        return seen["peer"].endswith(f":{port + 1}") and seen["reachable"]

                    wait_until(found)
                    client.put("after", b"the move")
                with SyncClient([f"http://127.0.0.1:{port}"]) as there:
                    assert there.get("after").value == b"the move"
            finally:
                process.terminate()


def test_no_leader_without_what_was_acknowledged_after_a_disk_is_lost(tmp_path: Path) -> None:
    """One follower is behind, the other comes back wiped under its name, the leader is gone: the two could
    elect one of them, and lose what the leader and the wiped one had acknowledged together."""
    with LocalCluster(tmp_path, base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        leader = cluster.wait_leader()
        behind, wiped = (name for name in cluster.names if name != leader)
        with SyncClient(cluster.api_urls()) as client:
            client.put("early", b"everybody has it")
            cluster.kill(behind)
            acknowledged = [client.put(f"late/{number}", b"two have it") for number in range(20)]
        cluster.kill(leader)
        cluster.kill(wiped)
        shutil.rmtree(cluster.node_dir(wiped))
        cluster.start(behind)
        cluster.joining.add(wiped)  # it waits, and does not give up: so it is there to be counted by mistake
        cluster.start(wiped)
        wait_until(lambda: (cluster.status(behind) or {}).get("term", 0) > 0)
        refusals = 0
        for _ in range(40):  # several election timeouts
            status = cluster.status(behind)
            assert status is not None
            assert status["role"] != "leader"
            refusals += not cluster.ready(behind)
            time.sleep(0.1)
        assert refusals == 40
        assert (cluster.status(wiped) or {}).get("role") != "leader"

        cluster.start(leader)
        cluster.wait_ready([leader, behind])
        with SyncClient([cluster.api_url(behind)]) as client:
            found = client.get("late/19")
            assert (found.value, found.revision) == (b"two have it", acknowledged[-1].revision)
            assert len(list(client.list("late/"))) == 20
        replaced = changed(member(cluster, "replace", wiped, "-o", "json"))
        assert replaced["after"]["learners"] == [wiped]
        cluster.wait_ready([wiped])
        with SyncClient([cluster.api_url(wiped)]) as client:
            assert client.get("late/0").value == b"two have it"
