"""`raftkv member …`: who belongs to the cluster, and who leads it."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import click

from cluster.connection import EXIT_CODES_HELP, EXIT_NOT_FOUND, connected, connection_options, output_option
from cluster.output import print_json, print_table
from cluster.reconcile_cli import reconcile
from raftkv.client import ClientError, SyncClient

NODE_SECONDS = 2.0  # a leader that is there answers at once

_COLUMNS = ("name", "role", "peer", "client_url", "match_index", "lag", "reachable")


@click.group(
    epilog=f"""\b
Examples:
  raftkv member list
  raftkv member transfer-leader --to n2
  raftkv member add n4 --peer 10.0.0.4:8401 --client-url http://10.0.0.4:8400 --auto-promote
  raftkv member replace n2

{EXIT_CODES_HELP}"""
)
def member() -> None:
    """List, add, promote, remove and replace members, and move leadership between them."""


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


_NAME = click.argument("name", metavar="NAME")
_DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Change nothing: say what quorum there would be, or why it is refused."
)


@member.command(
    epilog="""\b
Examples:
  raftkv member add n4 --peer 10.0.0.4:8401 --client-url http://10.0.0.4:8400 --dry-run
  raftkv member add n4 --peer 10.0.0.4:8401 --client-url http://10.0.0.4:8400 --auto-promote

Then start it: raftkv serve --join --name n4, with the same --member and --secret-file as the others."""
)
@_NAME
@click.option("--peer", required=True, metavar="HOST:PORT", help="Where the others dial its raft port.")
@click.option("--client-url", required=True, metavar="URL", help="Where clients are sent to it.")
@click.option("--auto-promote", is_flag=True, help="Make it a voter as soon as it has caught up.")
@_DRY_RUN
@output_option
@connection_options
def add(
    name: str,
    peer: str,
    client_url: str,
    auto_promote: bool,
    dry_run: bool,
    output: str,
    endpoints: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Add a member: a learner at first, which gets the log and counts in no quorum."""
    with connected(endpoints, timeout_s) as client:
        made = client.add_member(
            name, peer=peer, client_url=client_url, auto_promote=auto_promote, dry_run=dry_run
        )
    _show(made, output)


@member.command(
    epilog="""\b
Examples:
  raftkv member promote n4 --dry-run
  raftkv member promote n4 --timeout 60

Tries until the member has caught up, or --timeout is over."""
)
@_NAME
@_DRY_RUN
@output_option
@connection_options
def promote(name: str, dry_run: bool, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Make a learner a voter."""
    with connected(endpoints, timeout_s) as client:
        made = client.promote_member(name, dry_run=dry_run, timeout_s=timeout_s)
    _show(made, output)


@member.command(
    epilog="""\b
Examples:
  raftkv member remove n4 --dry-run
  raftkv member remove n4

Its node then stops by itself; its data directory is of no more use to the cluster."""
)
@_NAME
@_DRY_RUN
@output_option
@connection_options
def remove(name: str, dry_run: bool, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Remove a member. A leader hands over first."""
    with connected(endpoints, timeout_s) as client:
        made = client.remove_member(name, dry_run=dry_run, timeout_s=timeout_s)
    _show(made, output)


@member.command(
    epilog="""\b
Examples:
  raftkv member replace n2 --dry-run
  raftkv member replace n2
  raftkv member replace n2 --by n4 --peer 10.0.0.4:8401 --client-url http://10.0.0.4:8400

The old member is removed and the new one added as a learner, to become a voter as soon as it has caught up.
Then start it on an empty data directory: raftkv serve --join, with the same --member and --secret-file."""
)
@_NAME
@click.option("--by", metavar="NAME", help="The new member's name. [default: the old one's]")
@click.option("--peer", metavar="HOST:PORT", help="Where the others dial it. [default: as the old one]")
@click.option("--client-url", metavar="URL", help="Where clients are sent to it. [default: as the old one]")
@_DRY_RUN
@output_option
@connection_options
def replace(
    name: str,
    by: str | None,
    peer: str | None,
    client_url: str | None,
    dry_run: bool,
    output: str,
    endpoints: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Replace a member whose node or disk is lost by a new one."""
    with connected(endpoints, timeout_s) as client:
        old = _entry(client, name, timeout_s)
        made = client.remove_member(name, dry_run=dry_run, timeout_s=timeout_s)
        peer, client_url, new = peer or old["peer"], client_url or old["client_url"], by or name
        if dry_run:
            made["after"]["learners"] = sorted({*made["after"]["learners"], new})
        else:
            click.echo(f"{name} is removed; adding {new} at {peer}, {client_url}", err=True)
            added = client.add_member(
                new, peer=peer, client_url=client_url, auto_promote=True, timeout_s=timeout_s
            )
            made["after"] = added["after"]
    _show(made, output)


def _entry(client: SyncClient, name: str, timeout_s: float) -> dict[str, Any]:
    members = _seen_by_leader(client, timeout_s)["members"]
    for each in members:
        if each["name"] == name:
            found: dict[str, Any] = each
            return found
    click.echo(f"raftkv: no member {name}; there are {', '.join(each['name'] for each in members)}", err=True)
    sys.exit(EXIT_NOT_FOUND)


def _show(made: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(made)
        return
    rows = []
    for when in ("before", "after"):
        standing = made[when]
        voters, learners = (",".join(standing[each]) or "-" for each in ("voters", "learners"))
        rows.append(
            [when, voters, learners, *(standing[each] for each in ("quorum", "reachable", "tolerance"))]
        )
    print_table(("", "voters", "learners", "quorum", "reachable", "may fail"), rows)
    if made["dry_run"]:
        click.echo("nothing was changed", err=True)


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


member.add_command(reconcile)
