"""A page of the documentation, walked through from top to bottom: each example is run as it stands there, and
must print what the page says.

`up` commands, which stay in the foreground, are put into the background until the next one comes, as with a
second terminal; what stands behind them is not compared. If the ports of the page are taken on this machine,
others stand in for them, in the text and in what is printed. A command that can't be run in a walk is left
out for a reason, which is told.

`scripts/newcomer_walk.py` walks through README in a fresh clone.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.examples import Example, Failed, Shell, examples
from cluster.local import find_base_port, port_is_free, ports_of

ROOT = Path(__file__).parents[1]
BASE_PORT = 8400  # of the pages
NODES = 5  # as many as a page may have: `up`'s three, and those that are added
UP = re.compile(r"^((?:\S*/)?(?:scripts/up|raftkv up)\b)(.*)$", re.DOTALL)
EXAMPLE_SECONDS = 300  # the first `scripts/up` installs from a package index
STOP_SECONDS = 30

# What is left out of README's walk: a pattern, and why.
LEFT_OUT = {
    r"^scripts/test\b": "it takes half an hour, and this walk is one of its tests",
    r"^docker\b": "it needs a docker engine; the tests of the image start one",
    r"^helm\b|^kubectl\b": "it needs a Kubernetes; the chart's tests render and validate it",
}


# Without Debian's packages ceph-mon and ceph-osd.
WITHOUT_CEPH = {
    r"ceph-dev|\$STORE|\bSTORE=|restore --from": "it needs ceph-mon and ceph-osd, which are not installed"
}


class Walk:
    """A shell in `directory`, and the cluster that the page's commands started there last."""

    def __init__(
        self,
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        base_port: int | None = None,
        left_out: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.base_port = base_port or free_base_port()
        self.left_out: list[tuple[str, str]] = []
        self._directory = directory
        self._reasons = left_out or {}
        self._say = say
        endpoints = ",".join(f"127.0.0.1:{self.base_port + 10 * number}" for number in range(3))
        moved = {} if self.base_port == BASE_PORT else {"RAFTKV_ENDPOINTS": endpoints}
        self._endpoints = endpoints
        self._shell = Shell(directory, {**moved, **(environment or {})})
        self._log = Path(tempfile.mkstemp(prefix="raftkv-walk-")[1])
        self._up: int | None = None

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._stop()
        except Failed:
            if kind is None:  # else what came first says more
                raise
        finally:
            self._shell.__exit__()
            self._log.unlink(missing_ok=True)

    def through(self, page: str) -> int:
        """Runs every example, and returns how many. Raises Failed at the first that is otherwise."""
        count = 0
        for example in examples(self.with_ports(page)):
            self.run(example)
            count += 1
        return count

    def run(self, example: Example) -> None:
        reason = next((why for what, why in self._reasons.items() if re.search(what, example.text)), None)
        if reason is not None:
            self.left_out.append((example.text, reason))
            self._say(f"left out: {example.text}\n    {reason}")
            return
        self._say(f"$ {example.text}")
        if example.program:
            self._program(example)
        elif (up := UP.match(example.text)) is not None:
            self._start(example, f"{up[1]} --base-port {self.base_port}{up[2]}")
        else:
            self._shell.check(example, EXAMPLE_SECONDS)

    def with_ports(self, text: str) -> str:
        """8400 and 8401 are the first node's, 8410 and 8411 the second's, and so on."""

        def moved(port: re.Match[str]) -> str:
            return f"127.0.0.1:{self.base_port + int(port[1])}"

        return re.sub(r"127\.0\.0\.1:84([0-4][01])\b", moved, text)

    # --- the parts ----------------------------------------------------------------------------------

    def _program(self, example: Example) -> None:
        text = example.text
        if self.base_port != BASE_PORT:  # without endpoints a client asks those of the page
            text = re.sub(r"SyncClient\((?!\"|\))", f'SyncClient("{self._endpoints}", ', text)
            text = text.replace("SyncClient()", f'SyncClient("{self._endpoints}")')
        python = self._directory / ".venv" / "bin" / "python"
        words = [str(python if python.exists() else sys.executable), "-c", text]
        self._shell.check(Example(example.line, shlex.join(words), example.printed), EXAMPLE_SECONDS)

    def _start(self, example: Example, command: str) -> None:
        """In the background, until it says that it is ready."""
        self._stop()
        self._log.write_bytes(b"")  # the shell's child does it too, but after `echo`
        code, shown, errors = self._shell.run(f"{command} >>{self._log} 2>&1 & echo $!")
        if code != 0:
            raise Failed(f"{command}\n{shown}\n{errors}")
        self._up = int(shown)
        deadline = time.monotonic() + EXAMPLE_SECONDS
        while "ready: 3 of 3" not in self._log.read_text():
            gone = not Path(f"/proc/{self._up}").exists()
            if gone or time.monotonic() > deadline:
                self._up = None if gone else self._up
                raise Failed(f"line {example.line}: {command} did not get ready\n{self._log.read_text()}")
            time.sleep(0.1)

    def _stop(self) -> None:
        if self._up is None:
            return
        pid, self._up = self._up, None
        # The shell is its parent, so its `wait` alone can tell that it is gone.
        code, _, _ = self._shell.run(f"kill -TERM {pid}; wait {pid}", STOP_SECONDS)
        if code not in (0, 128 + signal.SIGTERM):
            raise Failed(f"the cluster ended with code {code}\n{self._log.read_text()}")


def free_base_port() -> int:
    """The pages' own, or another where one of those is taken."""
    if all(port_is_free("127.0.0.1", port) for port in ports_of(BASE_PORT, NODES)):
        return BASE_PORT
    return find_base_port(NODES)


# --- README in a fresh clone -----------------------------------------------------------------------------


def newcomer(directory: Path, say: Callable[[str], None]) -> Walk:
    """Clones this repository into `directory` and walks through its README. Raises Failed."""
    clone = directory / "raftkv"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    # As a newcomer's shell: without the venv that this one may run in.
    path = os.pathsep.join(
        each for each in os.environ["PATH"].split(os.pathsep) if Path(each) != Path(sys.executable).parent
    )
    environment = {"PATH": path, "CEPH_DIR": str(directory / "ceph")}
    left_out = LEFT_OUT | ({} if shutil.which("ceph-mon") else WITHOUT_CEPH)
    with Walk(clone, environment=environment, left_out=left_out, say=say) as walk:
        if walk.base_port != BASE_PORT:
            say(f"port {BASE_PORT} or one of its neighbours is taken: {walk.base_port} stands for it")
        try:
            count = walk.through((clone / "README.md").read_text())
        finally:
            stop = ["scripts/ceph-dev.sh", "reset"]
            subprocess.run(
                stop, cwd=clone, env={**os.environ, **environment}, capture_output=True, check=False
            )
        say(f"{count - len(walk.left_out)} examples did what README says, {len(walk.left_out)} were left out")
    return walk


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/newcomer_walk.py",
        description="Clones this repository, and runs every command of README in the clone, top to bottom.",
    )
    parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raftkv-newcomer-") as directory:
        try:
            newcomer(Path(directory), lambda text: print(text, flush=True))
        except Failed as failure:
            print(f"README is wrong: {failure}", file=sys.stderr)
            return 1
    return 0
