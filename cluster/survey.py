"""One look at all nodes of a cluster: from the nodes that were named to all that they know of, at once.

What `raftkv cluster health`, `raftkv top`, `raftkv doctor` and `raftkv debug bundle` begin with. Nothing here
fails because a node does: what it did not say is in `error`.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from raftkv.client import Client, ClientError

NODE_SECONDS = 2.0  # a node that is there answers at once, whatever state the cluster is in

Labels = frozenset[tuple[str, str]]


class Readings:
    """A node's `/metrics` at one moment, `at` on the monotonic clock."""

    def __init__(self, text: str, at: float) -> None:
        self.at = at
        self._samples: dict[str, list[tuple[Labels, float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples.setdefault(sample.name, []).append(
                    (frozenset(sample.labels.items()), float(sample.value))
                )

    def sum(self, name: str, **labels: str) -> float | None:
        """Of all samples of that name which have these labels; None where there is none."""
        wanted = frozenset(labels.items())
        found = [value for has, value in self._samples.get(name, ()) if wanted <= has]
        return sum(found) if found else None

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The same, for each value of one label."""
        wanted = frozenset(labels.items())
        found: dict[str, float] = {}
        for has, value in self._samples.get(name, ()):
            if wanted <= has:
                key = dict(has).get(label, "")
                found[key] = found.get(key, 0.0) + value
        return found

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """How many values of a histogram lie at or below each bound."""
        told = self.by(name + "_bucket", "le", **labels)
        return {float(bound): count for bound, count in sorted(told.items(), key=lambda pair: float(pair[0]))}


@dataclass(frozen=True, slots=True)
class Between:
    """What happened between two readings of one node."""

    before: Readings
    after: Readings

    @property
    def seconds(self) -> float:
        return self.after.at - self.before.at

    def rate(self, name: str, **labels: str) -> float:
        """A second. A node that was restarted meanwhile counts from 0."""
        grown = self.grown(name, **labels)
        return grown / self.seconds if self.seconds > 0 else 0.0

    def grown(self, name: str, **labels: str) -> float:
        after = self.after.sum(name, **labels) or 0.0
        before = self.before.sum(name, **labels) or 0.0
        return after - before if after >= before else after

    def mean(self, name: str, **labels: str) -> float | None:
        """Of a histogram's values; None where there was none."""
        count = self.grown(name + "_count", **labels)
        return self.grown(name + "_sum", **labels) / count if count else None

    def quantile(self, share: float, name: str, **labels: str) -> float | None:
        """Of a histogram's values, evenly spread within their bucket as Prometheus has it; None without."""
        before, after = self.before.buckets(name, **labels), self.after.buckets(name, **labels)
        restarted = any(after[bound] < before.get(bound, 0.0) for bound in after)
        bounds = list(after)
        counts = [after[bound] - (0.0 if restarted else before.get(bound, 0.0)) for bound in bounds]
        return quantile(share, bounds, counts)


def quantile(share: float, bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """`counts` are cumulated, `bounds` rise and end with infinity."""
    if not counts or not counts[-1]:
        return None
    wanted = share * counts[-1]
    at = bisect_left(counts, wanted)
    lower, below = (bounds[at - 1], counts[at - 1]) if at else (0.0, 0.0)
    if bounds[at] == float("inf"):
        return lower
    inside = counts[at] - below
    return lower + (bounds[at] - lower) * ((wanted - below) / inside if inside else 1.0)


@dataclass(slots=True)
class Node:
    """What a node said, or why it did not. `url` is where it was asked; `name` "" where nobody knows it.

    `offset_s` is how far its clock is ahead of this machine's, give or take half of `answered_s`.
    `ready_error` is None where a linearizable read succeeded there, and where nobody asked. `turned_away`: it
    answered, and wanted a token that is good for this.
    """

    url: str
    name: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    answered_s: float = 0.0
    offset_s: float = 0.0
    ready_error: str | None = None
    turned_away: bool = False
    readings: Readings | None = None

    @property
    def answers(self) -> bool:
        return not self.error


async def survey(
    client: Client, *, timeout_s: float = NODE_SECONDS, ready: bool = False, metrics: bool = False
) -> list[Node]:
    """All nodes that the client's endpoints name or know of, in order of name."""

    async def ask(url: str, name: str = "") -> Node:
        return await look_at(client, Node(url, name), timeout_s=timeout_s, ready=ready, metrics=metrics)

    nodes = list(await asyncio.gather(*(ask(url) for url in client.endpoints)))
    missing = unasked(nodes)
    nodes += await asyncio.gather(*(ask(url, name) for name, url in missing.items()))
    return in_order(nodes)


def unasked(nodes: Iterable[Node]) -> dict[str, str]:
    """Members that a node told of and that were not among those asked: name to URL."""
    nodes = list(nodes)
    asked = {node.name for node in nodes if node.answers}
    urls = {node.url for node in nodes}
    found: dict[str, str] = {}
    for node in nodes:
        for peer in node.status.get("peers", ()):
            if peer["name"] not in asked and peer["client_url"] not in urls:
                found[peer["name"]] = peer["client_url"]
    return found


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """By name, each once; who did not answer gets the name that another one has for its URL."""
    names = {peer["client_url"]: peer["name"] for node in nodes for peer in node.status.get("peers", ())}
    found: dict[str, Node] = {}
    for node in nodes:
        node.name = node.name or names.get(node.url, "")
        key = node.name or node.url
        if key not in found or (node.answers and not found[key].answers):
            found[key] = node
    return sorted(found.values(), key=lambda node: (node.name == "", node.name, node.url))


async def look_at(client: Client, node: Node, *, timeout_s: float, ready: bool, metrics: bool) -> Node:
    """Asks one node, and writes into `node` what it said."""
    began, began_wall = time.monotonic(), time.time()
    try:
        node.status = await client.status(node.url, timeout_s=timeout_s)
        node.name = str(node.status["name"])
        node.answered_s = time.monotonic() - began
        if "time" in node.status:
            node.offset_s = node.status["time"] - (began_wall + node.answered_s / 2)
        if metrics:
            text = await client.metrics(node.url, timeout_s=timeout_s)
            node.readings = Readings(text, time.monotonic())
    except ClientError as error:
        node.error = str(error)
        node.turned_away = error.problem.code in ("unauthenticated", "forbidden")
        return node
    if ready:
        try:
            await client.check_ready(node.url, timeout_s=timeout_s)
        except ClientError as error:
            node.ready_error = str(error)
    return node
