"""`raftkv restore`: the data directories of a new cluster, from a store."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.local import LocalCluster
from cluster.restoring import CLUSTER_ID, local_members, refusals, restore_from, source_options
from cluster.up import NODES_MAX, claimed, shape_of
from raftkv.config import SETTING_BY_NAME
from raftkv.model import Member
from raftkv.raft.restore import Target


@click.command(
    epilog="""\b
Examples, for `raftkv up`, for three machines at once, and on each of them:
  raftkv restore --from rados://raftkv/prod --data-dir raftkv-data
  raftkv restore --from rados://raftkv/prod --data-dir restored \\
    --member n1=10.0.0.1:8401,http://10.0.0.1:8400 --member n2=… --member n3=…
  raftkv restore --from rados://raftkv/prod --id ID --data-dir /var/lib/raftkv \\
    --member n1=… --member n2=… --member n3=… --only n2 --new-cluster-id "$(cat id)"
"""
)
@source_options
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Gets a directory for each member, by name; with --only, is that member's.",
)
@click.option(
    "--member",
    "member",
    multiple=True,
    metavar="NAME=RAFT,URL",
    help="As for `raftkv serve`: all members of the new cluster. Without it, those of `raftkv up`.",
)
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), help="For `raftkv up`: how many. [default: 3]")
@click.option(
    "--base-port",
    type=click.IntRange(1024, 65000),
    help="For `raftkv up`: API port of the first node. [default: 8400]",
)
@click.option("--only", metavar="NAME", help="Only this member's directory; needs --new-cluster-id.")
@click.option(
    "--new-cluster-id",
    default="",
    metavar="HEX",
    help="32 hex digits, the same for each member that is restored by itself; never used before. "
    "[default: drawn]",
)
def restore(
    url: str,
    snapshot: str,
    cluster: str,
    to_revision: int | None,
    to_time: int | None,
    data_dir: Path,
    member: tuple[str, ...],
    nodes: int | None,
    base_port: int | None,
    only: str | None,
    new_cluster_id: str,
) -> None:
    """Make the data directories of a new cluster from a store.

    Everything is verified before anything is written, and only empty directories are written to. The new
    cluster has an id of its own: members of the old one are refused by it.
    """
    target = Target(snapshot, cluster, to_revision, to_time)
    if new_cluster_id and not CLUSTER_ID.fullmatch(new_cluster_id):
        raise click.UsageError("--new-cluster-id is 32 hex digits, as `openssl rand -hex 16` makes them")
    if only is not None and not (member and new_cluster_id):
        raise click.UsageError("--only needs --member for all members, and --new-cluster-id")
    if member and (nodes or base_port):
        raise click.UsageError("--member names the members; --nodes and --base-port are for `raftkv up`")
    with refusals():
        if member:
            _restore_members(url, target, data_dir, members_of(member), only, new_cluster_id)
        else:
            _restore_local(url, target, data_dir, nodes, base_port, new_cluster_id)


def members_of(texts: tuple[str, ...]) -> tuple[Member, ...]:
    setting = SETTING_BY_NAME["member"]
    try:
        members: tuple[Member, ...] = setting.parse(list(texts))
    except ValueError as error:
        raise click.UsageError(f"--member: {error}; example: --member {setting.example}") from None
    return members


def _restore_members(
    url: str, target: Target, data_dir: Path, members: tuple[Member, ...], only: str | None, new_cluster: str
) -> None:
    directories = {member.name: data_dir / member.name for member in members}
    if only is not None:
        if only not in directories:
            raise click.UsageError(f"--only {only} is none of {', '.join(directories)}")
        directories = {only: data_dir}
    restore_from(url, target, directories, members, new_cluster=new_cluster, say=click.echo)
    for name, directory in directories.items():
        click.echo(f"  {name}: raftkv serve --name {name} --data-dir {directory} …")
    click.echo("Start the members with the same --member list and a secret file as before.")


def _restore_local(
    url: str, target: Target, data_dir: Path, nodes: int | None, base_port: int | None, new_cluster: str
) -> None:
    with claimed(data_dir):
        shape = shape_of(data_dir, nodes, base_port)
        with LocalCluster(data_dir, nodes=shape.nodes, base_port=shape.base_port, tls=shape.tls) as local:
            directories = {name: local.node_dir(name) for name in local.names}
            members = local_members(local)
        restore_from(url, target, directories, members, new_cluster=new_cluster, say=click.echo)
    click.echo(f"Start it with: raftkv up --data-dir {data_dir}")
