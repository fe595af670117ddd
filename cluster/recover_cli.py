"""`raftkv cluster recover --unsafe`: a new cluster from what is left, when a majority is lost for good."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.restore_cli import members_of
from cluster.restoring import refusals
from raftkv.errors import BadRequest
from raftkv.raft.restore import refuse_unless_empty, restore
from raftkv.raft.survivor import Survivor, read_survivor

_WARNING = """\
This gives up what only the lost disks held. Of writes that were acknowledged, the newest may be missing; and
writes whose clients were told that the outcome is unknown may be there. Nodes that can come back with their
disks, even one of them, are the better way: with a majority the cluster goes on by itself, and loses nothing.
So is a snapshot store with the log in it, if there is one: see `raftkv restore`."""


@click.command(
    epilog="""\b
Example, after two of three machines burnt down, on the one that is left, its node stopped:
  raftkv cluster recover --unsafe --from /var/lib/raftkv --data-dir /var/lib/raftkv-new \\
    --member n1=10.0.0.1:8401,http://10.0.0.1:8400
  raftkv serve --name n1 --data-dir /var/lib/raftkv-new …
and two new machines, whose nodes are then started with --join:
  raftkv member add n2 --peer 10.0.0.4:8401 --client-url http://10.0.0.4:8400 --auto-promote"""
)
@click.option("--unsafe", is_flag=True, help="Yes: a majority is lost for good, and newest writes may be.")
@click.option(
    "--from",
    "sources",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    required=True,
    multiple=True,
    metavar="DIR",
    help="Data directory of a stopped node that is left. Give each that there is: the newest log is taken.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="New data directory: of the one member, or, for several, with a directory for each by its name.",
)
@click.option(
    "--member",
    "member",
    multiple=True,
    required=True,
    metavar="NAME=RAFT,URL",
    help="As for `raftkv serve`: the members of the new cluster. One is enough; others can be added to it.",
)
def recover(unsafe: bool, sources: tuple[Path, ...], data_dir: Path, member: tuple[str, ...]) -> None:
    """Make a new cluster from the disks that are left of a lost majority. The old directories are kept.

    The new cluster has an id of its own, so that lost members which turn up after all are refused.
    """
    members = members_of(member)
    directories = {each.name: data_dir / each.name for each in members}
    if len(members) == 1:
        directories = {members[0].name: data_dir}
    if not unsafe:
        raise click.UsageError(f"{_WARNING}\nIf there is no other way, say --unsafe.")
    with refusals():
        for directory in directories.values():
            refuse_unless_empty(directory)
        best = _best([read_survivor(source) for source in sources])
        restored = restore(best.recovered, directories, members)
    click.echo(_WARNING)
    machine = best.recovered.machine
    click.echo(
        f"taken: {best.directory}, index {best.last[1]} of term {best.last[0]}, revision {machine.revision}, "
        f"{machine.keys} keys; known there to be committed: index {best.committed}"
    )
    click.echo(f"made: cluster {restored.membership.cluster} of {', '.join(directories)}")
    for name, directory in directories.items():
        click.echo(f"  {name}: raftkv serve --name {name} --data-dir {directory} …")
    click.echo("Keep the old data directories until you have seen that what you need is there.")


def _best(survivors: list[Survivor]) -> Survivor:
    """The one that an election would prefer. Raises BadRequest where they are not of one cluster."""
    clusters = {each.recovered.cluster for each in survivors if each.recovered.cluster}
    if len(clusters) > 1:
        raise BadRequest(f"these are of different clusters: {', '.join(sorted(clusters))}")
    for each in survivors:
        click.echo(
            f"found: {each.directory}, log up to index {each.last[1]} of term {each.last[0]}, "
            f"committed at least up to {each.committed}"
        )
    return max(survivors, key=lambda each: each.last)
