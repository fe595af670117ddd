"""`raftkv certs …`: certificates for development."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cluster.certs import DAYS, LOCAL_HOSTS, make_all
from raftkv.addresses import parse_name


@click.group(epilog="Example: raftkv certs dev --out certs --member n1 --member n2 --member n3")
def certs() -> None:
    """Make certificates for a trial; for production use your own authority."""


def _members(
    ctx: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    members: dict[str, tuple[str, ...]] = {}
    for value in values:
        name, *hosts = (word.strip() for word in value.split(","))
        try:
            parse_name(name)
        except ValueError as error:
            raise click.BadParameter(f"{name!r}: {error}; allowed: NAME[,HOST…]") from None
        if name in members or name in ("ca", "client") or not all(each and each.isascii() for each in hosts):
            raise click.BadParameter(
                f"{value!r}: allowed is each member once, none called ca or client, with hosts in ASCII"
            )
        members[name] = tuple(hosts)
    return tuple(members.items())


@certs.command(
    epilog="""\b
Examples:
  raftkv certs dev --out certs --member n1 --member n2 --member n3
  raftkv certs dev --out certs --member n1,10.0.0.1,n1.example.org --member n2,10.0.0.2,n2.example.org
  raftkv serve … --tls-cert certs/n1.pem --tls-key certs/n1.key --tls-ca certs/ca.pem \\
    --peer-tls-cert certs/n1.pem --peer-tls-key certs/n1.key --peer-tls-ca certs/ca.pem
  raftkv status --ca-file certs/ca.pem --endpoints https://10.0.0.1:8400"""
)
@click.option(
    "--out",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Directory for the files; made where it is not there. A CA that is there already is used again.",
)
@click.option(
    "--member",
    "members",
    multiple=True,
    required=True,
    callback=_members,
    metavar="NAME[,HOST…]",
    help=f"A node, and the hosts that clients reach it at. [default: {', '.join(LOCAL_HOSTS)}]",
)
@click.option(
    "--days",
    type=click.FloatRange(0, 3650, min_open=True),
    default=DAYS,
    show_default=True,
    help="How long the nodes' and the client's certificates are good.",
)
def dev(directory: Path, members: tuple[tuple[str, tuple[str, ...]], ...], days: float) -> None:
    """Make a CA, a certificate for each node, and one for a client.

    ca.pem is what everybody verifies with; ca.key signs, and belongs to nobody but you. NAME.pem and NAME.key
    are good for a node's both ports. No file is overwritten.
    """
    try:
        written = make_all(directory, members, days=days)
    except FileExistsError as error:
        click.echo(
            f"raftkv: {error.args[0] if len(error.args) == 1 else error.filename} is there already, and no "
            "file is overwritten: move it away, or choose another --out. Nothing was written",
            err=True,
        )
        sys.exit(2)
    except (OSError, ValueError) as error:
        click.echo(f"raftkv: {directory}: {error}", err=True)
        sys.exit(1)
    for path in written:
        click.echo(str(path))
