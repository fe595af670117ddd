"""`raftkv completion`: what makes a shell complete commands, options and their values on Tab."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

PROGRAM = "raftkv"
VARIABLE = "_RAFTKV_COMPLETE"  # the script calls raftkv with it set, and click answers instead of running
_SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command(
    epilog="""\b
Examples, each for good; the first line of a shell's is where it looks:
  raftkv completion bash > ~/.local/share/bash-completion/completions/raftkv
  raftkv completion zsh > ~/.zfunc/_raftkv
  raftkv completion fish > ~/.config/fish/completions/raftkv.fish

For this shell alone: source <(raftkv completion bash), or zsh. In zsh, ~/.zfunc stands for a directory of
$fpath, and compinit has to have run. `raftkv` must be in PATH under this name."""
)
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion(shell: str) -> None:
    """Print the script that completes raftkv's commands and options in SHELL: bash, zsh or fish."""
    complete = _SHELLS[shell]
    names = {"complete_func": f"_{PROGRAM}_completion", "complete_var": VARIABLE, "prog_name": PROGRAM}
    # Not `source()`: that starts a bash to look at its version, and a script may be made elsewhere.
    click.echo(complete.source_template % names)
