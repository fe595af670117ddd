"""`raftkv cluster …`: the cluster as a whole."""

from __future__ import annotations

import asyncio
import sys

import click

from cluster import health as judgement
from cluster.connection import client_settings, connection_options, output_option
from cluster.output import print_json, print_table
from cluster.recover_cli import recover
from cluster.survey import Node, survey
from raftkv.client import Client

# What a node may take to answer, and again to serve a read: on a machine that is busy, being slow is not
# being away, and who asks for health wants to know which it is.
NODE_SECONDS = 5.0

_COLUMNS = ("name", "url", "role", "ready", "term", "applied", "alarms")


@click.group(
    epilog="""\b
Examples:
  raftkv cluster health
  raftkv cluster health --json
  raftkv cluster recover --help"""
)
def cluster() -> None:
    """The cluster as a whole: whether it is well, and what to do when most of it is lost."""


cluster.add_command(recover)


@cluster.command(
    epilog="""\b
Examples:
  raftkv cluster health
  raftkv cluster health --endpoints http://10.0.0.1:8400 --json | jq .problems
  raftkv cluster health -q || page-somebody

Exit codes: 0 healthy; 1 degraded: it works, and something is missing; 2 down: no quorum, or nobody can be
reached. Wrong usage is 2 as well, with an error on stderr."""
)
@click.option("--json", "as_json", is_flag=True, help="The same as -o json.")
@click.option("-q", "--quiet", is_flag=True, help="Only the exit code.")
@output_option
@connection_options
def health(as_json: bool, quiet: bool, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Say whether the cluster is well. One node's address is enough: it knows the others.

    Each node is asked for a linearizable read, so a majority has really answered where this says so.
    """
    nodes = asyncio.run(_look(endpoints, min(timeout_s, NODE_SECONDS)))
    found = judgement.judge(nodes)
    if not quiet and (as_json or output == "json"):
        print_json(judgement.document(found, nodes))
    elif not quiet:
        click.echo(f"{found.state}: {found.summary}")
        print_table(_COLUMNS, (_row(node) for node in nodes))
        for problem in found.problems:
            click.echo(f"problem: {problem}")
    sys.exit(judgement.EXIT_CODES[found.state])


async def _look(endpoints: tuple[str, ...], timeout_s: float) -> list[Node]:
    async with Client(endpoints, timeout_s=timeout_s, patient=False, **client_settings()) as client:
        return await survey(client, timeout_s=timeout_s, ready=True)


def _row(node: Node) -> list[object]:
    if not node.answers:
        return [node.name or "-", node.url, "unreachable", "no", "-", "-", "-"]
    status = node.status
    alarms = ", ".join(alarm["name"] for alarm in status.get("alarms", ())) or "-"
    ready = "yes" if node.ready_error is None else "no"
    return [node.name, node.url, status["role"], ready, status["term"], status["applied_index"], alarms]
