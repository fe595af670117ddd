"""Whether a cluster is well, from what its nodes say. PURE.

healthy: every member answers and serves linearizable reads, every link between members stands, and nobody
raises an alarm. degraded: something of that is missing, and the cluster works. down: nobody serves a
linearizable read: there is no quorum, or none of its nodes can be reached from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.survey import Node

LAG_ENTRIES_MAX = 10_000  # a follower beyond this would take seconds to take over
State = Literal["healthy", "degraded", "down"]
EXIT_CODES: dict[State, int] = {"healthy": 0, "degraded": 1, "down": 2}


@dataclass(frozen=True, slots=True)
class Health:
    """`failures_tolerated`: how many more of the voters that serve now the cluster can do without."""

    state: State
    summary: str
    problems: tuple[str, ...]
    leader: str | None
    term: int
    voters: int
    ready: int
    failures_tolerated: int


def judge(nodes: Sequence[Node]) -> Health:
    """`nodes` were asked whether they are ready."""
    answering = [node for node in nodes if node.answers]
    serving = [node for node in answering if node.ready_error is None]
    newest = max(answering, key=lambda node: int(node.status["term"]), default=None)
    term = 0 if newest is None else int(newest.status["term"])
    leader = next((node.status["leader"] for node in answering if node.status["term"] == term), None)
    voters = _voters(nodes)
    ready = sum(node.name in voters for node in serving)
    tolerated = max(0, ready - (len(voters) // 2 + 1))
    problems = tuple(_problems(nodes))
    if not answering and any(node.turned_away for node in nodes):
        state: State = "down"
        summary = "nothing is known: the nodes want a token that may ask this; give --token-file"
    elif not answering:
        state = "down"
        summary = f"none of {len(nodes)} nodes can be reached"
    elif not serving:
        state = "down"
        summary = f"no quorum: {len(answering)} of {len(nodes)} nodes answer, and none serves a read"
    else:
        state = "degraded" if problems else "healthy"
        led = f"{leader} leads in term {term}" if leader else "no leader"
        more = f"{tolerated} more may fail" if tolerated else "none may fail"
        summary = f"{ready} of {len(voters)} voters ready, {led}, {more}"
    return Health(state, summary, problems, leader, term, len(voters), ready, tolerated)


def _voters(nodes: Sequence[Node]) -> set[str]:
    """As the node with the highest term knows them; before a cluster has formed, all that there are."""
    answering = [node for node in nodes if node.answers]
    if not answering:
        return {node.name or node.url for node in nodes}
    known = max(answering, key=lambda node: (int(node.status["term"]), node.status["role"] == "leader"))
    return {peer["name"] for peer in known.status["peers"] if peer["role"] != "learner"}


def _problems(nodes: Sequence[Node]) -> Iterator[str]:
    clusters = {node.status["cluster_id"] for node in nodes if node.status.get("cluster_id")}
    if len(clusters) > 1:
        yield f"the nodes belong to {len(clusters)} different clusters: {', '.join(sorted(clusters))}"
    down = {node.name for node in nodes if not node.answers}
    for node in nodes:
        yield from _problems_of(node, down)


def _problems_of(node: Node, down: set[str]) -> Iterator[str]:
    who = node.name or node.url
    if not node.answers:
        yield f"{who} can't be reached: {node.error}"
        return
    if node.ready_error is not None:
        yield f"{who} is not ready: {node.ready_error}"
    for peer in node.status["peers"]:
        if not peer["reachable"] and peer["name"] not in down:  # of one that is down, that says it all
            yield f"{who} can't reach {peer['name']} at its raft address {peer['peer']}"
        if (peer["lag"] or 0) > LAG_ENTRIES_MAX:
            yield f"{peer['name']} is {peer['lag']} entries behind its leader"
    for alarm in node.status.get("alarms", ()):
        if alarm["name"] != "no_leader":  # which `ready_error` says better
            yield f"{who} raises {alarm['name']}: {alarm['detail']}"


def document(health: Health, nodes: Sequence[Node]) -> dict[str, Any]:
    """For programs."""
    return {
        "state": health.state,
        "summary": health.summary,
        "problems": list(health.problems),
        "leader": health.leader,
        "term": health.term,
        "voters": health.voters,
        "ready": health.ready,
        "failures_tolerated": health.failures_tolerated,
        "nodes": [
            {
                "name": node.name,
                "url": node.url,
                "answers": node.answers,
                "ready": node.answers and node.ready_error is None,
                "role": node.status.get("role"),
                "error": node.error or node.ready_error or "",
            }
            for node in nodes
        ],
    }
