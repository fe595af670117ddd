"""`raftkv token …`: who is let in to a cluster that asks for tokens."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from cluster.connection import EXIT_CODES_HELP, EXIT_OTHER, connected, connection_options, output_option
from cluster.output import print_json, print_table
from raftkv.access.secret import new_token

_DURATION = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
EVERY_KEY = "(every key)"


@click.group(
    epilog=f"""\b
Examples:
  raftkv token generate > bootstrap-token
  raftkv token create ci --write builds/ --rate 100 --out ci-token
  raftkv token list
  raftkv token revoke 5f0d4c7a91b2e836

{EXIT_CODES_HELP}"""
)
def token() -> None:
    """Make, list and revoke the tokens that let clients in, where nodes run with --auth tokens."""


def _seconds(ctx: click.Context, option: click.Parameter, text: str | None) -> int:
    if text is None:
        return 0
    match = _DURATION.fullmatch(text)
    if match is None:
        raise click.BadParameter(
            f"{text!r} is not a time; allowed is a number with s, m, h or d, such as 30d"
        )
    return int(match[1]) * _SECONDS[match[2]]


@token.command(
    epilog="""\b
Examples:
  raftkv token create ci --write builds/ --read config/ --expires-in 90d
  raftkv token create monitoring --read monitoring/ --rate 50 --out monitoring-token
  raftkv token create alice --admin ''

A prefix is of bytes, not of path segments: end it with a / to mean a folder. Where the outcome is unknown
(exit code 6), `raftkv token list` says whether there is one more."""
)
@click.argument("name")
@click.option("--read", "reads", multiple=True, metavar="PREFIX", help="It may read keys with this prefix.")
@click.option("--write", "writes", multiple=True, metavar="PREFIX", help="It may write and delete them.")
@click.option(
    "--admin",
    "admins",
    multiple=True,
    metavar="PREFIX",
    help="Both, and tokens for them; with '' the cluster as well: members, leadership, snapshots.",
)
@click.option(
    "--rate", type=click.IntRange(0), default=0, help="Operations a second on each node. [default: any]"
)
@click.option(
    "--expires-in",
    "expires_in_s",
    callback=_seconds,
    metavar="TIME",
    help="Such as 12h or 90d. [default: never]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the token to this new file, which only you can read, and not to stdout.",
)
@output_option
@connection_options
def create(
    name: str,
    reads: tuple[str, ...],
    writes: tuple[str, ...],
    admins: tuple[str, ...],
    rate: int,
    expires_in_s: int,
    out: Path | None,
    output: str,
    endpoints: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Make a token called NAME, and print it: it can't be shown again. '' as a prefix is every key."""
    pairs = (("read", reads), ("write", writes), ("admin", admins))
    grants = [(role, prefix) for role, prefixes in pairs for prefix in prefixes]
    if not grants:
        raise click.UsageError("it would permit nothing: give --read, --write or --admin, each with a PREFIX")
    file = _private(out) if out is not None else None
    try:
        with connected(endpoints, timeout_s) as client:
            made = client.create_token(
                name, grants, rate=rate, expires_in_s=expires_in_s, timeout_s=timeout_s
            )
    except BaseException:
        if out is not None:
            out.unlink(missing_ok=True)
        raise
    text = made.pop("token")
    if file is not None:
        with os.fdopen(file, "w") as private:
            private.write(text + "\n")
    if output == "json":
        print_json(made if file is not None else {**made, "token": text})
        return
    click.echo(f"{made['id']}  {made['name']}: {_grants(made)}", err=True)
    if file is None:
        click.echo(text)


def _private(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise click.UsageError(f"--out {path}: {error.strerror}") from None


@token.command(
    epilog="""\b
Examples, for --bootstrap-token-file:
  raftkv token generate > bootstrap-token

`umask 077` before it keeps others from reading the file."""
)
def generate() -> None:
    """Print a new token, without asking any node: for --bootstrap-token-file of a new cluster."""
    if sys.stdout.isatty():
        click.echo("raftkv: this is a secret; write it to a file that only you can read", err=True)
    click.echo(new_token()[1])


@token.command(name="list", epilog="Example: raftkv token list -o json")
@output_option
@connection_options
def list_(output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """List the tokens that yours administers, without their secrets. With -o json one a line."""
    with connected(endpoints, timeout_s) as client:
        found = client.tokens(timeout_s=timeout_s)
    if output == "json":
        for each in found:
            print_json(each)
        return
    columns = ("id", "name", "grants", "rate", "created", "expires")
    print_table(columns, (_row(each) for each in found))


def _row(each: dict[str, Any]) -> list[object]:
    expires = "never" if each["expires"] is None else each["expires"]
    return [
        each["id"],
        each["name"],
        _grants(each),
        each["rate"] or "any",
        each["created"],
        f"{expires} (expired)" if each["expired"] else expires,
    ]


def _grants(each: dict[str, Any]) -> str:
    return ", ".join(f"{grant['role']} {grant['prefix'] or EVERY_KEY}" for grant in each["grants"])


@token.command(epilog="Example: raftkv token revoke 5f0d4c7a91b2e836")
@click.argument("token_id", metavar="ID")
@output_option
@connection_options
def revoke(token_id: str, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Revoke the token with this ID, which `raftkv token list` shows. Exit code 3 where there is none."""
    if token_id.startswith("rkv_"):
        click.echo("raftkv: that is a token; give its id, the part between rkv_ and the next _", err=True)
        sys.exit(EXIT_OTHER)
    with connected(endpoints, timeout_s) as client:
        revision = client.revoke_token(token_id, timeout_s=timeout_s)
    if output == "json":
        print_json({"revoked": token_id, "revision": revision})
    else:
        click.echo(f"revoked {token_id}  revision {revision}")
