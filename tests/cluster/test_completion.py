"""`raftkv completion` in real shells: Tab is pressed, and the line that comes of it is read."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "TERM": "dumb",
}
DEADLINE_SECONDS = 60
CASES = [
    ("raftkv sta", "raftkv status"),
    ("raftkv kv pu", "raftkv kv put"),
    ("raftkv kv get --sta", "raftkv kv get --stale"),
    ("raftkv kv get hello -o js", "raftkv kv get hello -o json"),
]


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"needs {shell}")


def typed(shell: list[str], setup: str, keys: str) -> str:
    """All that an interactive shell shows for these keys, up to the word DONE that a command then prints."""
    keyboard, screen = pty.openpty()
    process = subprocess.Popen(
        shell, stdin=screen, stdout=screen, stderr=screen, env=ENVIRONMENT, cwd=ROOT, start_new_session=True
    )
    os.close(screen)
    shown = ""
    try:
        # DO''NE is DONE when it is printed and not when it is echoed.
        os.write(keyboard, f"{setup}\n{keys}\necho DO''NE\n".encode())
        deadline = time.monotonic() + DEADLINE_SECONDS
        while "DONE" not in shown:
            ready, _, _ = select.select([keyboard], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{shell[0]} did not come to an end: {shown}"
            shown += os.read(keyboard, 65536).decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)
    return shown


# After Tab: to the beginning of the line, where echo makes it words to be printed.
SHOW = "\t\x01echo "


@needs("bash")
@pytest.mark.parametrize(("line", "completed"), CASES)
def test_bash_completes(line: str, completed: str) -> None:
    setup = "set +o history; source <(raftkv completion bash)"
    shown = typed(["bash", "--norc", "--noprofile", "-i"], setup, line + SHOW)
    assert completed in [each.strip() for each in shown.splitlines()], shown


@needs("zsh")
@pytest.mark.parametrize(("line", "completed"), CASES)
def test_zsh_completes(line: str, completed: str) -> None:
    setup = "bindkey -e; autoload -Uz compinit; compinit -D -u; source <(raftkv completion zsh)"
    shown = typed(["zsh", "-f", "-i"], setup, line + SHOW)
    assert completed in [each.strip() for each in shown.splitlines()], shown


@needs("fish")
@pytest.mark.parametrize(("line", "completed"), CASES)
def test_fish_completes(line: str, completed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["fish", "--no-config", "-c", f'raftkv completion fish | source; complete -C "{line}"'],
        env={**ENVIRONMENT, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    assert [each.split("\t")[0] for each in done.stdout.splitlines()] == [completed.split()[-1]]
