"""Links between real processes in namespaces: cut means silence, one way or both, and healed means healed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import network
from cluster.network import NAMESPACES, Network, both_ways

_why_not = network.unavailable()
pytestmark = pytest.mark.skipif(_why_not is not None, reason=str(_why_not))

PORT = 7000
_LISTEN = f"""
import socket, sys
inbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
inbox.bind(("0.0.0.0", {PORT}))
print("ready", flush=True)
while True:
    text, sender = inbox.recvfrom(100)
    print(text.decode(), flush=True)
"""
_SEND = """
import socket, sys
outbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for line in sys.stdin:
    address, text = line.split()
    outbox.sendto(text.encode(), (address, 7000))
    print("sent", flush=True)
"""


class Node:
    """Datagrams in a namespace: UDP shows a drop at once, where TCP would try again for minutes."""

    def __init__(self, links: Network, name: str) -> None:
        self.address = links.addresses[name]
        prefix = [*links.command_prefix(name), sys.executable, "-c"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._inbox = subprocess.Popen([*prefix, _LISTEN], **pipes)  # type: ignore[call-overload]
        self._outbox = subprocess.Popen([*prefix, _SEND], **pipes)  # type: ignore[call-overload]
        assert self._inbox.stdout.readline() == "ready\n"

    def send(self, to: Node, text: str) -> None:
        self._outbox.stdin.write(f"{to.address} {text}\n")
        self._outbox.stdin.flush()
        assert self._outbox.stdout.readline() == "sent\n"

    def receive(self) -> str:
        return str(self._inbox.stdout.readline().strip())

    def close(self) -> None:
        for process in (self._inbox, self._outbox):
            process.kill()
            process.communicate()


@pytest.fixture
def links() -> Iterator[Network]:
    with Network(["n1", "n2", "n3"]) as made:
        yield made


@pytest.fixture
def nodes(links: Network) -> Iterator[dict[str, Node]]:
    made = {name: Node(links, name) for name in links.names}
    yield made
    for node in made.values():
        node.close()


def arrives(links: Network, nodes: dict[str, Node], source: str, to: str) -> bool:
    """A datagram on the link, then one that surely arrives, from the third node: what was not there before
    it was dropped, for the bridge keeps the order in which we send."""
    witness = next(name for name in links.names if name not in (source, to))
    nodes[source].send(nodes[to], "probe")
    nodes[witness].send(nodes[to], "witness")
    first = nodes[to].receive()
    if first == "probe":
        assert nodes[to].receive() == "witness"
    return first == "probe"


def test_links_are_cut_one_way_and_both_and_healed(links: Network, nodes: dict[str, Node]) -> None:
    for source in links.names:  # also teaches every node the others' hardware addresses
        for to in links.names:
            assert source == to or arrives(links, nodes, source, to)
    links.cut({("n1", "n2")})
    assert not arrives(links, nodes, "n1", "n2")
    assert arrives(links, nodes, "n2", "n1")
    assert arrives(links, nodes, "n1", "n3")
    links.cut(both_ways(["n1"], ["n2"]))
    assert not arrives(links, nodes, "n1", "n2")
    assert not arrives(links, nodes, "n2", "n1")
    links.heal()
    assert arrives(links, nodes, "n1", "n2")
    assert arrives(links, nodes, "n2", "n1")


def test_clients_enter_the_hub_and_come_back(links: Network) -> None:
    home = os.readlink("/proc/thread-self/ns/net")
    with links.entered(), socket.create_server((network.HUB_ADDRESS, 0)) as server:
        assert os.readlink("/proc/thread-self/ns/net") != home
        probe = f"import socket; socket.create_connection({server.getsockname()!r}, 5)"
        subprocess.run([*links.command_prefix("n1"), sys.executable, "-c", probe], check=True, timeout=10)
    assert os.readlink("/proc/thread-self/ns/net") == home


def test_namespaces_go_with_the_network_and_a_killed_run_is_swept() -> None:
    with Network(["n1"]) as kept:
        assert (NAMESPACES / kept.hub).exists()
        script = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from cluster.network import Network\n"
            "print(Network(['n1']).hub, flush=True); input()"
        )
        root = str(Path(network.__file__).parents[1])
        with subprocess.Popen(
            [sys.executable, "-c", script, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            left_behind = other.stdout.readline().strip()
            network.delete_stale()
            assert (NAMESPACES / left_behind).exists(), "a live run's namespace was swept"
            other.kill()
        network.delete_stale()
        assert not (NAMESPACES / left_behind).exists()
        assert (NAMESPACES / kept.hub).exists()
    assert not (NAMESPACES / kept.hub).exists()
