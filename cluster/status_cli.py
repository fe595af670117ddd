"""`raftkv status`: what each node says of itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from cluster.connection import EXIT_UNAVAILABLE, client_settings, connection_options, output_option
from cluster.output import print_json, print_table
from raftkv.client import ClientError, SyncClient

NODE_SECONDS = 2.0  # a node that is there answers at once, whatever state the cluster is in


@click.command(
    epilog="""\b
Examples:
  raftkv status
  raftkv status --endpoints http://10.0.0.1:8400,http://10.0.0.2:8400 -o json

Exit code 5 where no node answers, or none of those that do knows a leader."""
)
@output_option
@connection_options
def status(output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Show every node: its role, term, revision, and how far it is. Alarms go to stderr."""
    settings = client_settings()
    with (
        SyncClient(endpoints, timeout_s=timeout_s, **settings) as client,
        ThreadPoolExecutor(len(endpoints)) as pool,
    ):
        answers = list(pool.map(lambda url: _ask(client, url, min(timeout_s, NODE_SECONDS)), endpoints))
    if output == "json":
        print_json(
            {"nodes": [{"endpoint": url, **answer} for url, answer in zip(endpoints, answers, strict=True)]}
        )
    else:
        columns = [
            "endpoint",
            "name",
            "role",
            "leader",
            "term",
            "commit",
            "applied",
            "revision",
            "keys",
            "bytes",
        ]
        print_table(columns, (_row(url, answer) for url, answer in zip(endpoints, answers, strict=True)))
    for url, answer in zip(endpoints, answers, strict=True):
        if "error" in answer:
            click.echo(f"raftkv: no status from {url}: {answer['error']}", err=True)
        for alarm in answer.get("alarms", ()):
            click.echo(f"raftkv: {answer['name']} raises {alarm['name']}: {alarm['detail']}", err=True)
    if not any(answer.get("leader") for answer in answers):
        click.echo("raftkv: no node that answered knows a leader", err=True)
        sys.exit(EXIT_UNAVAILABLE)


def _ask(client: SyncClient, url: str, timeout_s: float) -> dict[str, Any]:
    try:
        return client.status(url, timeout_s=timeout_s)
    except ClientError as error:
        return {"error": str(error)}


def _row(url: str, answer: Mapping[str, Any]) -> list[object]:
    if "error" in answer:
        return [url, "-", "unreachable", *["-"] * 7]
    names = ("name", "role", "leader", "term", "commit_index", "applied_index", "revision", "keys", "bytes")
    return [url, *(answer.get(name) if answer.get(name) is not None else "-" for name in names)]
