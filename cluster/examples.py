"""The examples in the documentation, read out of it and run as they stand.

Every ```sh block is run, command by command, in one bash; every ```python block as a program of its own. What
an example prints stands behind it, as a comment that the shell passes over, so it can be copied as it is:

    raftkv kv get hello                       # world
    raftkv kv list                            # or below, where it is more than a line
    # key    revision  …

`…` stands for anything within a line, and alone in a line for any number of lines. A comment that does not
directly follow a command is only a comment. Of a program, each comment behind a `print` is a line of its
output.
Reading is pure; `Shell` runs.
"""

from __future__ import annotations

import os
import re
import secrets
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BEHIND = re.compile(r"^(.*?\S)(?: {2,}|\t+)# ?(.*)$")
_PRINTED = re.compile(r"^\s*print\(.*?\)  # (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Example:
    """One command, or one program. `printed` is None where nothing is said of its output."""

    line: int
    text: str
    printed: str | None
    program: bool = False


def examples(markdown: str) -> Iterator[Example]:
    """In the order of the page."""
    for block in _BLOCK.finditer(markdown):
        line = markdown[: block.start(2)].count("\n") + 1
        if block[1] == "sh":
            yield from _commands(block[2], line)
        elif block[1] == "python":
            lines = _PRINTED.findall(block[2])
            yield Example(line, block[2], "\n".join(lines) if lines else None, program=True)


def _commands(block: str, first_line: int) -> Iterator[Example]:
    """A command goes on while a quote is open or a backslash ends a line; its output, while comments do."""
    lines = block.splitlines()
    at = 0
    while at < len(lines):
        if not lines[at].strip() or lines[at].startswith("#"):
            at += 1
            continue
        start, text, behind = at, "", None
        while True:
            found = _BEHIND.match(lines[at])
            if found is not None and _complete(text + found[1]):
                text, behind = text + found[1], found[2]
            else:
                text += lines[at]
            at += 1
            if _complete(text) or at == len(lines):
                break
            text += "\n"
        printed = [] if behind is None else [behind]
        while at < len(lines) and lines[at].startswith("#"):
            printed.append(lines[at].removeprefix("#").removeprefix(" "))
            at += 1
        yield Example(first_line + start, text, "\n".join(printed) if printed else None)


def _complete(text: str) -> bool:
    if text.endswith("\\"):
        return False
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def agrees(printed: str, shown: str) -> bool:
    """Whether what was shown is what the page says is printed, however wide its blanks are."""
    pattern = ""
    for line in printed.strip().splitlines():
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += "[^\n]*".join(_literally(part) for part in line.rstrip().split("…")) + "\n"
    lines = [line.rstrip() for line in shown.strip().splitlines()]
    return re.fullmatch(pattern, "".join(line + "\n" for line in lines)) is not None


def _literally(text: str) -> str:
    """A table has tabs where no terminal reads it, and a page shows it as people see it."""
    return r"[ \t]+".join(re.escape(word) for word in re.split(r"[ \t]+", text))


class Failed(Exception):
    """An example did not do what the page says. The message is for a person."""


class Shell:
    """One bash, in a directory, that keeps its variables from one command to the next."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._mark = secrets.token_hex(8)
        self._errors = directory / f".{self._mark}"
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.unlink(missing_ok=True)

    def run(self, command: str, timeout_s: float = 60) -> tuple[int, str, str]:
        """(exit code, stdout, stderr). Raises Failed where it does not end in time."""
        assert self._process.stdin is not None
        self._process.stdin.write(
            f"eval {shlex.quote(command)} </dev/null 2>{shlex.quote(str(self._errors))}\n"
            f"printf '\\n{self._mark} %d\\n' $?\n".encode()
        )
        self._process.stdin.flush()
        shown = self._read_to_mark(command, time.monotonic() + timeout_s)
        output, _, code = shown.rpartition(f"\n{self._mark} ")
        return int(code), output, self._errors.read_text(errors="replace")

    def check(self, example: Example, timeout_s: float = 60) -> str:
        """Runs it, and returns what it printed. Raises Failed where it fails or prints something else."""
        code, shown, errors = self.run(example.text, timeout_s)
        what = f"line {example.line}: {example.text}"
        if code != 0:
            raise Failed(f"{what}\nexit code {code}\n{shown}\n{errors}")
        if example.printed is not None and not agrees(example.printed, shown):
            raise Failed(f"{what}\nshould print\n{example.printed}\nand printed\n{shown}\n{errors}")
        return shown

    def _read_to_mark(self, command: str, deadline: float) -> str:
        assert self._process.stdout is not None
        shown = b""
        end = re.compile(rf"\n{self._mark} \d+\n$".encode())
        while not end.search(shown):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))
            piece = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not piece:
                why = "the shell ended" if ready else "it did not end in time"
                raise Failed(f"{command}\n{why}\n{shown.decode(errors='replace')}")
            shown += piece
        return shown.decode(errors="replace")
