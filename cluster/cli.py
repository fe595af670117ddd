"""The `raftkv` command: its groups and commands, each imported when it is asked for.

`raftkv serve` is a node's whole process, so it must not load the client, tables and progress bars of the
others: they cost memory on every node and half a second on every start.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

_COMMANDS = {
    "up": "cluster.up:up",
    "serve": "cluster.serve_cli:serve",
    "status": "cluster.status_cli:status",
    "kv": "cluster.kv_cli:kv",
    "restore": "cluster.restore_cli:restore",
    "top": "cluster.top_cli:top",
    "cluster": "cluster.cluster_cli:cluster",
    "token": "cluster.token_cli:token",
    "member": "cluster.member_cli:member",
    "snapshot": "cluster.snapshot_cli:snapshot",
    "journal": "cluster.journal_cli:journal",
    "doctor": "cluster.doctor_cli:doctor",
    "debug": "cluster.debug_cli:debug",
    "certs": "cluster.certs_cli:certs",
    "completion": "cluster.completion_cli:completion",
    "probe": "cluster.probe_cli:probe",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  raftkv up
  raftkv kv put hello world
  raftkv kv get hello
  raftkv status""",
)
@click.version_option(package_name="raftkv", prog_name="raftkv")
def cli() -> None:
    """A Raft-replicated key-value store: durable, linearizable, spoken to with curl."""


def main(**settings: Any) -> None:
    """The console script's entry point."""
    cli(**settings)
