"""`raftkv member …`: who belongs to the cluster, and who leads it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from cluster.connection import EXIT_CODES_HELP, connected, connection_options, output_option
from cluster.output import print_json, print_table
from raftkv.client import ClientError, SyncClient

NODE_SECONDS = 2.0  # a leader that is there answers at once

_COLUMNS = ("name", "role", "peer", "client_url", "match_index", "lag", "reachable")


@click.group(
    epilog=f"""\b
Examples:
  raftkv member list
  raftkv member transfer-leader --to n2

{EXIT_CODES_HELP}"""
)
def member() -> None:
    """List the members, and move leadership between them."""


@member.command(
    name="list",
    epilog="""\b
Examples:
  raftkv member list
  raftkv member list --endpoints http://10.0.0.1:8400 -o json""",
)
@output_option
@connection_options
def list_(output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Show every member as the leader sees it: role, addresses, how far behind, reachable or not."""
    with connected(endpoints, timeout_s) as client:
        document = _seen_by_leader(client, timeout_s)
    if output == "json":
        print_json(document)
        return
    rows = ([_cell(each.get(column)) for column in _COLUMNS] for each in document["members"])
    print_table(_COLUMNS, rows)
    click.echo(
        f"{document['reachable']} of {document['voters']} voters reachable, quorum {document['quorum']}: "
        f"{document['failures_tolerated']} more may fail",
        err=True,
    )


def _seen_by_leader(client: SyncClient, timeout_s: float) -> dict[str, Any]:
    """How far behind a member is, only the leader knows; another node's view where it can't be asked."""
    document = client.cluster(timeout_s=timeout_s)
    for each in document["members"]:
        if each["name"] == document["leader"]:
            with suppress(ClientError):
                return client.cluster(each["client_url"], timeout_s=min(timeout_s, NODE_SECONDS))
    return document


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else value


@member.command(
    name="transfer-leader",
    epilog="""\b
Examples:
  raftkv member transfer-leader
  raftkv member transfer-leader --to n2
  raftkv member transfer-leader --from n1

Exit code 3 where there is no such member, 2 where it did not take over: then the old leader leads on.""",
)
@click.option("--to", metavar="NAME", help="Who shall lead. By default whoever has most of the log.")
@click.option(
    "--from",
    "source",
    metavar="NAME",
    help="Only if this one leads, as before it is stopped; else do nothing.",
)
@output_option
@connection_options
def transfer_leader(
    to: str | None, source: str | None, output: str, endpoints: tuple[str, ...], timeout_s: float
) -> None:
    """Hand leadership over; writes pause for a few hundredths of a second."""
    with connected(endpoints, timeout_s) as client:
        if source is not None and (leader := client.cluster(timeout_s=timeout_s)["leader"]) != source:
            click.echo(
                f"{source} does not lead ({leader or 'nobody is known to'}): nothing was done", err=True
            )
            return
        document = client.transfer_leadership(to, timeout_s=timeout_s)
    if output == "json":
        print_json(document)
    else:
        click.echo(f"{document['leader']} leads in term {document['term']}")
