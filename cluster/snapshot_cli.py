"""`raftkv snapshot …`: the snapshots in a node's store."""

from __future__ import annotations

import click

from cluster.connection import connected, connection_options, output_option
from cluster.output import print_json, print_table

_COLUMNS = ("id", "index", "term", "revision", "time", "bytes")


@click.group(
    epilog="""\b
Examples:
  raftkv snapshot list
  raftkv snapshot create"""
)
def snapshot() -> None:
    """List and take snapshots, on the first of the endpoints that answers."""


@snapshot.command(
    name="list", epilog="Example: raftkv snapshot list --endpoints http://127.0.0.1:8410 -o json"
)
@output_option
@connection_options
def list_(output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """List the snapshots, with -o json one a line."""
    with connected(endpoints, timeout_s) as client:
        snapshots = client.snapshots()
        if output == "json":
            for each in snapshots:
                print_json(each)
        else:
            print_table(_COLUMNS, ([each.get(name, "-") for name in _COLUMNS] for each in snapshots))


@snapshot.command(epilog="Example: raftkv snapshot create --timeout 60")
@output_option
@connection_options
def create(output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Take a snapshot now and wait until it is durable."""
    with connected(endpoints, timeout_s) as client:
        made = client.create_snapshot()
        if output == "json":
            print_json(made)
        else:
            print_table(_COLUMNS, [[made.get(name, "-") for name in _COLUMNS]])
