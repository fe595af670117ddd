"""`raftkv up`: a whole cluster in the foreground, as a person would run it, with curl."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from click.testing import CliRunner

from cluster.cli import cli
from cluster.local import LocalCluster, NodeFailed, find_base_port, get, port_is_free, port_owner, ports_of
from cluster.up import cause_of

NAMES = ("n1", "n2", "n3")


class Up:
    """`raftkv up` as a child, with what it printed so far."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self._printed = data_dir.parent / f"{data_dir.name}.out"
        with self._printed.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raftkv", "up", "--data-dir", str(data_dir), *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def printed(self) -> str:
        return self._printed.read_text()

    def wait_printed(self, pattern: str, *, after: int = 0, timeout_s: float = 40) -> re.Match[str]:
        """The first match behind character `after` of the output."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            match = re.compile(pattern).search(self.printed, after)
            if match:
                found.append(match)
            assert match or self.process.poll() is None, f"up ended:\n{self.printed}"
            return match is not None

        wait_until(there, timeout_s, lambda: f"{pattern!r} was not printed:\n{self.printed}")
        return found[0]

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(40)


def wait_until(condition: Callable[[], bool], timeout_s: float, explain: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)


def curl(*arguments: str) -> str:
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "10", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def pid_of(port: int) -> int:
    owner = port_owner(port)
    assert owner is not None
    return owner[0]


@contextmanager
def taken_port(port: int = 0) -> Iterator[int]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        yield server.getsockname()[1]


def test_a_cluster_from_one_command_serves_survives_a_kill_and_keeps_its_data(tmp_path: Path) -> None:
    base = find_base_port()
    urls = [f"http://127.0.0.1:{base + 10 * n}" for n in range(3)]
    data_dir = tmp_path / "data"
    with Up(data_dir, "--base-port", str(base)) as up:
        up.wait_printed("ready: 3 of 3 nodes")
        assert f"curl -L -X PUT --data-binary world {urls[1]}/v1/kv/hello" in up.printed
        curl("-L", "-X", "PUT", "--data-binary", "world", f"{urls[1]}/v1/kv/hello")
        for url in urls:
            assert curl(f"{url}/v1/kv/hello") == "world"

        victim = pid_of(base)
        before = len(up.printed)
        os.kill(victim, signal.SIGKILL)
        wait_until(
            lambda: '"revision"' in curl_or_nothing("-L", "-X", "PUT", "-d", "again", f"{urls[2]}/v1/kv/k"),
            20,
        )
        up.wait_printed(r"n1 DIED \(killed by SIGKILL\)", after=before)
        up.wait_printed("n1 started again", after=before)
        up.wait_printed("ready: 3 of 3 nodes", after=before)
        assert pid_of(base) != victim
        assert curl(f"{urls[0]}/v1/kv/k") == "again"

        before = len(up.printed)
        assert up.interrupt() == 0
        stopped = re.findall(r"(n\d) stopped\n", up.printed[before:])
        assert sorted(stopped) == list(NAMES), up.printed[before:]
    assert all(port_is_free("127.0.0.1", port) for port in ports_of(base, 3))

    with Up(data_dir) as up:  # it remembers where its nodes listen
        up.wait_printed("ready: 3 of 3 nodes")
        assert [curl(f"{url}/v1/kv/hello") for url in urls] == ["world"] * 3
        assert [curl(f"{url}/v1/kv/k") for url in urls] == ["again"] * 3

        other = subprocess.run(
            [sys.executable, "-m", "raftkv", "up", "--data-dir", str(data_dir)],
            capture_output=True,
            text=True,
        )
        assert other.returncode == 1
        assert f"another `raftkv up` (pid {up.process.pid})" in other.stderr

        children = [pid_of(base + 10 * n) for n in range(3)]
        up.process.kill()
        up.process.wait()
        wait_until(lambda: not any(map(alive, children)), 10, lambda: "a node outlived its parent")


def curl_or_nothing(*arguments: str) -> str:
    with contextlib.suppress(subprocess.CalledProcessError):
        return curl(*arguments)
    return ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_node_that_refuses_to_go_on_is_not_started_again(tmp_path: Path) -> None:
    """Its last words are shown; here it does not know the flag that every node got."""
    base = find_base_port(1)
    with Up(tmp_path / "data", "--nodes", "1", "--base-port", str(base), "--", "--no-such-flag") as up:
        assert up.process.wait(30) == 1
    assert "n1 REFUSED TO GO ON (exit code 2)" in up.printed
    assert "No such option" in up.printed
    assert "every node is down for good" in up.printed


# --- what is refused before anything starts ---------------------------------------------------------------


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["up", *arguments])
    assert result.exit_code != 0
    return result.output


def test_a_port_in_use_is_named_with_its_owner(tmp_path: Path) -> None:
    base = find_base_port()
    with taken_port(base + 10):
        said = refused("--data-dir", str(tmp_path), "--base-port", str(base))
    assert f"port {base + 10} on 127.0.0.1 is in use by pid {os.getpid()}" in said
    assert "--base-port" in said


def test_a_second_up_on_the_same_data_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with (tmp_path / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        assert "another `raftkv up` (pid 4711)" in refused("--data-dir", str(tmp_path))


def test_another_shape_for_the_same_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"nodes": 3, "base_port": 9400}))
    assert "was formed with --nodes 3" in refused("--data-dir", str(tmp_path), "--nodes", "5")
    assert "was formed with --base-port 9400" in refused("--data-dir", str(tmp_path), "--base-port", "9500")
    (tmp_path / "up.json").write_text("{}")
    assert "up.json is unreadable" in refused("--data-dir", str(tmp_path))


def test_a_store_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "file:///ABSOLUTE/PATH" in refused("--data-dir", str(tmp_path), "--snapshots", "s3://bucket")
    assert not (tmp_path / "up.json").exists()


# --- LocalCluster's own parts -----------------------------------------------------------------------------


def test_the_owner_of_a_port_is_found() -> None:
    with taken_port() as port:
        assert not port_is_free("127.0.0.1", port)
        owner = port_owner(port)
    assert owner is not None
    assert owner[0] == os.getpid()
    assert port_is_free("127.0.0.1", port)
    assert port_owner(port) is None


def test_exit_codes_in_words() -> None:
    assert cause_of(-9) == "killed by SIGKILL"
    assert cause_of(2) == "exit code 2"
    assert cause_of(-99) == "exit code -99"


def test_names_ports_and_command_of_the_nodes(tmp_path: Path) -> None:
    with LocalCluster(
        tmp_path,
        nodes=5,
        base_port=9400,
        hosts={"n2": "10.0.0.2"},
        command_prefix={"n2": ["ip", "netns", "exec", "two"]},
        extra_args=["--heartbeat-ms", "50"],
    ) as cluster:
        assert cluster.names == ("n1", "n2", "n3", "n4", "n5")
        assert cluster.api_url("n3") == "http://127.0.0.1:9420"
        assert cluster.raft_address("n2") == "10.0.0.2:9411"
        command = cluster.command("n2")
        assert command[:4] == ["ip", "netns", "exec", "two"]
        assert command[4:8] == [sys.executable, "-m", "raftkv", "serve"]
        assert command.count("--member") == 5
        assert "n2=10.0.0.2:9411,http://10.0.0.2:9410" in command
        assert command[-2:] == ["--heartbeat-ms", "50"]
        assert cluster.pid("n1") is None
        assert cluster.leader() is None


def test_a_node_that_dies_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    with LocalCluster(
        tmp_path, nodes=1, base_port=find_base_port(1), extra_args=["--no-such-flag"]
    ) as cluster:
        cluster.start_all()
        with pytest.raises(NodeFailed, match="No such option"):
            cluster.wait_ready(timeout_s=20)
        assert cluster.exit_code("n1") == 2
        assert cluster.secret_path.stat().st_mode & 0o777 == 0o600


def test_a_get_of_nothing_is_status_0() -> None:
    with taken_port() as port:
        assert get(f"http://127.0.0.1:{port}/x", timeout_s=0.1) == (0, b"")


def test_a_cluster_over_tls_stays_one(tmp_path: Path) -> None:
    base = find_base_port()
    data_dir = tmp_path / "data"
    ca = str(data_dir / "tls" / "ca.pem")
    with Up(data_dir, "--base-port", str(base), "--tls") as up:
        up.wait_printed("ready: 3 of 3 nodes")
        (command,) = re.findall(r"    (curl --cacert .* -X PUT .*)", up.printed)
        assert subprocess.run(command.split(), capture_output=True, check=True).stdout == b'{"revision":1}'
        assert up.interrupt() == 0
    with Up(data_dir, "--no-tls") as up:
        assert up.process.wait(20) == 2
        assert "was formed with --tls True" in up.printed
    with Up(data_dir) as up:
        up.wait_printed("ready: 3 of 3 nodes")
        assert curl("--cacert", ca, f"https://127.0.0.1:{base + 20}/v1/kv/hello") == "world"
        assert up.interrupt() == 0
