"""A network of its own for each node, in which links can be cut one way or both. Linux and root only.

Each node lives in a network namespace with one address; its link leads to a bridge in a namespace of the
network's own, the hub, where an nftables set holds the directed pairs of addresses whose packets are dropped:

    [raftkv-PID-K-n1: 10.77.0.1] ─┐
    [raftkv-PID-K-n2: 10.77.0.2] ─┼─ bridge in [raftkv-PID-K-hub: 10.77.0.254]     clients enter the hub
    [raftkv-PID-K-n3: 10.77.0.3] ─┘

Nothing is added to the machine's own namespace, so its firewall has no say (Docker sets FORWARD to DROP),
nothing can collide with its addresses, and any number of networks can stand side by side. Dropped packets
look to TCP as a broken cable does: silence, no reset. Clients in the hub reach every node at all times.

What a run that was killed left behind is deleted by the next one, by the process id in its name.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

NAMESPACES = Path("/run/netns")
SUBNET = "10.77.0"
HUB_ADDRESS = f"{SUBNET}.254"
COMMAND_TIMEOUT_SECONDS = 20.0  # ip and nft answer in milliseconds; a machine that swaps may take seconds
_CLONE_NEWNET = 0x40000000
_NAME = re.compile(r"raftkv-(\d+)-\d+-\w+")
_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)

_RULES = """
table bridge raftkv {
  set cut {
    type ipv4_addr . ipv4_addr
  }
  set lossy {
    type ipv4_addr . ipv4_addr
  }
  chain forward {
    type filter hook forward priority 0
    ip saddr . ip daddr @cut drop
    arp saddr ip . arp daddr ip @cut drop
    ip saddr . ip daddr @lossy numgen random mod 100 < LOSS_PERCENT drop
  }
}
"""

LOSS_PERCENT = 20  # of the packets on a lossy link; TCP gets through, late

Link = tuple[str, str]  # from, to: a direction in which packets are dropped


class NetworkFailed(Exception):
    """ip or nft refused; the message holds the command and what it said."""


def unavailable() -> str | None:
    """Why there can be no such network here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [command for command in ("ip", "nft", "nsenter") if shutil.which(command) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt install iproute2 nftables util-linux)"
    try:
        Network([]).close()
    except NetworkFailed as error:
        return str(error)
    return None


class Network:
    """The links between `names`, none of them cut. Use as a context manager, or `close` it."""

    def __init__(self, names: Sequence[str]) -> None:
        delete_stale()
        self.names = tuple(names)
        self._prefix = f"raftkv-{os.getpid()}-{next(_numbers)}"
        self.addresses = {name: f"{SUBNET}.{number}" for number, name in enumerate(names, start=1)}
        self.cut_links: frozenset[Link] = frozenset()
        atexit.register(self.close)
        try:
            self._build()
        except NetworkFailed:
            self.close()
            raise

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def hub(self) -> str:
        return f"{self._prefix}-hub"

    def namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def command_prefix(self, name: str) -> list[str]:
        """Words before a command line that put it into the node's namespace; the process stays the same."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace(name)}"]

    def cut(self, links: Collection[Link], *, lossy: Collection[Link] = ()) -> None:
        """From now on exactly the links of `links` drop every packet, and those of `lossy` one in five: one
        atomic change."""
        self._nft(self._set_to("cut", links) + self._set_to("lossy", lossy))
        self.cut_links = frozenset(links)

    def _set_to(self, name: str, links: Collection[Link]) -> str:
        pairs = [f"{self.addresses[source]} . {self.addresses[to]}" for source, to in sorted(links)]
        script = f"flush set bridge raftkv {name}\n"
        if pairs:
            script += f"add element bridge raftkv {name} {{ {', '.join(pairs)} }}\n"
        return script

    def heal(self) -> None:
        self.cut(())

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread, and threads that it starts meanwhile, are in the hub: sockets made here reach
        the nodes. Sockets made before and after belong to where the thread was."""
        with open("/proc/thread-self/ns/net", "rb") as home:
            with (NAMESPACES / self.hub).open("rb") as hub:
                _enter(hub.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def close(self) -> None:
        """Deletes the namespaces. A process that still runs in one keeps it, nameless, until it ends."""
        atexit.unregister(self.close)
        for name in (*self.names, "hub"):
            _delete(self.namespace(name))

    def _build(self) -> None:
        hub = self.hub
        _run(["ip", "netns", "add", hub])
        lines = ["link set lo up", "link add bridge type bridge", f"addr add {HUB_ADDRESS}/24 dev bridge"]
        lines.append("link set bridge up")
        for name in self.names:
            namespace = self.namespace(name)
            _run(["ip", "netns", "add", namespace])
            lines.append(f"link add {name} type veth peer name eth0 netns {namespace}")
            lines.append(f"link set {name} master bridge up")
        _run(["ip", "-n", hub, "-batch", "-"], "\n".join(lines))
        for name in self.names:
            lines = ["link set lo up", f"addr add {self.addresses[name]}/24 dev eth0", "link set eth0 up"]
            _run(["ip", "-n", self.namespace(name), "-batch", "-"], "\n".join(lines))
        self._nft(_RULES.replace("LOSS_PERCENT", str(LOSS_PERCENT)))

    def _nft(self, script: str) -> None:
        _run(["nsenter", f"--net={NAMESPACES / self.hub}", "nft", "-f", "-"], script)


def both_ways(left: Collection[str], right: Collection[str]) -> frozenset[Link]:
    """The links whose loss keeps two groups from each other."""
    return frozenset(pair for one in left for other in right for pair in ((one, other), (other, one)))


def delete_stale() -> None:
    """Namespaces of runs whose process is gone."""
    if not NAMESPACES.is_dir():
        return
    for path in NAMESPACES.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and not Path("/proc", match[1]).exists():
            _delete(path.name)


def _delete(namespace: str) -> None:
    """Two runs may sweep at once: the other one's deletion is as good as ours."""
    if (NAMESPACES / namespace).exists():
        with contextlib.suppress(NetworkFailed):
            _run(["ip", "netns", "delete", namespace])


def _enter(handle: int) -> None:
    if _libc.setns(handle, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise NetworkFailed(f"setns: {os.strerror(number)}")


def _run(command: list[str], text: str = "") -> None:
    done = subprocess.run(
        command,
        input=text,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=COMMAND_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise NetworkFailed(f"{' '.join(command)}: {done.stdout.strip()}\n{text}".strip())
