"""`raftkv debug …`: for when something is wrong and somebody else shall look."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import tomllib
from pathlib import Path

import click

from cluster import bundle as contents
from cluster.connection import EXIT_UNAVAILABLE, client_settings, connection_options
from raftkv.client import Client


@click.group(
    epilog="""\b
Example:
  raftkv debug bundle --log /var/log/raftkv.log"""
)
def debug() -> None:
    """Gather what somebody else needs to find out what is wrong."""


@debug.command(
    epilog="""\b
Examples:
  raftkv debug bundle
  raftkv debug bundle --endpoints http://10.0.0.1:8400 --log /var/log/raftkv.log --config /etc/raftkv.toml
  raftkv debug bundle -f - | ssh elsewhere 'cat > bundle.tar.gz'

Keys, values, tokens, secrets and private keys are left out: of configuration only settings that are known go
in, and logs are struck where something looks like one. Look before you send it: tar xzf, and read.
Exit code 5 where no node answered; the bundle is made all the same."""
)
@click.option(
    "-f",
    "--file",
    "place",
    metavar="FILE",
    help="Where to write it, - for stdout. [default: raftkv-bundle-TIME.tar.gz here]",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A node's log, of which the end is taken. Give it once for each.",
)
@click.option(
    "--config",
    "configs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A node's TOML file. Give it once for each.",
)
@connection_options
def bundle(
    place: str | None,
    logs: tuple[Path, ...],
    configs: tuple[Path, ...],
    endpoints: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Write status, metrics, limits and logs of all nodes into one .tar.gz, without secrets."""
    now = time.time()
    root = time.strftime("raftkv-bundle-%Y%m%dT%H%M%SZ", time.gmtime(now))
    try:
        files = asyncio.run(_gather(endpoints, timeout_s, logs, configs))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise click.ClickException(str(error)) from None
    data = contents.packed(files, root, now)
    if place == "-":
        sys.stdout.buffer.write(data)
    else:
        path = Path(place or f"{root}.tar.gz")
        _write(path, data)
        click.echo(f"{path}: {len(files)} files, {len(data)} bytes")
    if not any(name.endswith("/status.json") for name in files):
        click.echo("raftkv: no node answered; the bundle says why", err=True)
        sys.exit(EXIT_UNAVAILABLE)


async def _gather(
    endpoints: tuple[str, ...], timeout_s: float, logs: tuple[Path, ...], configs: tuple[Path, ...]
) -> dict[str, bytes]:
    async with Client(endpoints, timeout_s=timeout_s, patient=False, **client_settings()) as client:
        return await contents.gather(client, logs, configs)


def _write(path: Path, data: bytes) -> None:
    """For its owner's eyes, and never over what is there."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(data)
