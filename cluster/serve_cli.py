"""`raftkv serve`: one node in this process. Its options are the settings of `raftkv/config.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from raftkv.config import SETTINGS, Setting, load
from raftkv.errors import ConfigError

_Command = TypeVar("_Command", bound=Callable[..., Any])

EXAMPLE = """\b
Example, the first of three nodes:
  raftkv serve --name n1 --data-dir /var/lib/raftkv --secret-file /etc/raftkv/secret \\
    --api 10.0.0.1:8400 --raft 10.0.0.1:8401 \\
    --member n1=10.0.0.1:8401,http://10.0.0.1:8400 \\
    --member n2=10.0.0.2:8401,http://10.0.0.2:8400 \\
    --member n3=10.0.0.3:8401,http://10.0.0.3:8400"""


def setting_options(command: _Command) -> _Command:
    """One option for each setting. Values stay text: the settings' own parsers check them, so that flag,
    environment and TOML are refused in the same words."""
    for setting in reversed(SETTINGS):
        command = click.option(
            setting.flag,
            setting.name,
            help=_help_of(setting),
            **_form_of(setting),
        )(command)
    return command


def _form_of(setting: Setting) -> dict[str, Any]:
    if setting.switch:
        return {"is_flag": True, "flag_value": "true", "default": None}
    if setting.repeated:
        return {"multiple": True, "metavar": setting.allowed.split(",")[0].upper()}
    return {"metavar": "VALUE"}


def _help_of(setting: Setting) -> str:
    default = "required" if setting.required else f"default: {setting.default_text}"
    return f"{setting.help} [{setting.allowed}; {default}; {setting.environment}]"


@click.command(epilog=EXAMPLE)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML file with settings by the same names (data_dir = …). [RAFTKV_CONFIG]",
)
@setting_options
def serve(config_file: Path | None, **flags: object) -> None:
    """Run one node in the foreground.

    Each setting is a flag, an environment variable or a line of the TOML file, in this order of
    precedence. SIGTERM hands leadership over, answers what was taken, and exits 0 within 10 s.
    """
    try:
        config = load(flags, os.environ, config_file=config_file)
    except ConfigError as error:
        click.echo(f"raftkv serve: {error}", err=True)
        sys.exit(2)
    from raftkv.server import run

    sys.exit(run(config))
