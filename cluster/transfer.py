"""Import and export: NDJSON in and out of a cluster, with bounded memory, progress on stderr, and a result
that can be believed."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import click
import msgspec

from cluster.connection import EXIT_USAGE, client_settings, describe, exit_code_of, exit_on_error
from raftkv.client import BadRequest, Client, ClientError, LineResult, PreconditionFailed, SyncClient

READ_BYTES = 256 << 10  # of the source, in one hop to a thread
REFUSALS_TOLD_MAX = 20
PLAIN_PROGRESS_SECONDS = 5.0
END_PREFIX = b'{"_end"'


class Progress:
    """A count on stderr: drawn and live on a terminal, a line every few seconds elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._shown_at = time.monotonic()
        self._drawn: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Drawn
            from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

            self._drawn = Drawn(
                SpinnerColumn(),
                TextColumn("{task.description} {task.completed} lines, {task.fields[rate]}/s"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._drawn.add_task(self._what, total=None, rate=0)
            self._drawn.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn is not None:
            self._drawn.stop()

    def show(self, count: int) -> None:
        now = time.monotonic()
        if now - self._shown_at < (0.2 if self._drawn is not None else PLAIN_PROGRESS_SECONDS):
            return
        self._shown_at = now
        rate = round(count / (now - self._began))
        if self._drawn is not None:
            self._drawn.update(self._task, completed=count, rate=rate)
        else:
            self.tell(f"{self._what}: {count} lines, {rate}/s")

    def tell(self, text: str) -> None:
        if self._drawn is not None:
            self._drawn.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text, err=True)


# --- import --------------------------------------------------------------------------------------------


class _BadLine(Exception):
    """A line of the source that is no operation. Says which, and why."""


class _ClusterGone(Exception):
    """The batch gave up a line: there is no point in reading on."""


@dataclass
class _Import:
    written: int = 0
    refused: int = 0
    worst: ClientError | None = None
    progress: Progress = field(default_factory=lambda: Progress("import"))

    def on_result(self, result: LineResult) -> None:
        if result.error is None:
            self.written += 1
            self.progress.show(self.written + self.refused)
            return
        if isinstance(result.error, BadRequest | PreconditionFailed):
            self.refused += 1
            if self.refused <= REFUSALS_TOLD_MAX:
                self.progress.tell(f"line {result.number}: {describe(result.error)}")
            return
        self.worst = result.error
        raise _ClusterGone(f"line {result.number}: {describe(result.error)}")


def load(file: BinaryIO, endpoints: tuple[str, ...], *, timeout_s: float, as_json: bool) -> int:
    """Imports the lines of `file`; the exit code."""
    began = time.monotonic()
    state = _Import()
    code = 0
    with state.progress:
        try:
            asyncio.run(_load(file, endpoints, timeout_s, state.on_result))
        except _BadLine as error:
            state.progress.tell(str(error))
            code = EXIT_USAGE
        except _ClusterGone as error:
            state.progress.tell(str(error))
            assert state.worst is not None
            code = exit_code_of(state.worst)
        except ClientError as error:
            state.progress.tell(describe(error))
            code = exit_code_of(error)
    seconds = time.monotonic() - began
    if state.refused:
        code = code or EXIT_USAGE
    _report_import(state, seconds, as_json=as_json)
    return code


def _report_import(state: _Import, seconds: float, *, as_json: bool) -> None:
    rate = state.written / seconds if seconds else 0.0
    if as_json:
        document = {"written": state.written, "refused": state.refused, "seconds": round(seconds, 3)}
        click.echo(msgspec.json.encode(document).decode())
    else:
        refused = f", {state.refused} refused" if state.refused else ""
        click.echo(f"{state.written} written{refused} in {seconds:.1f} s ({rate:.0f}/s)")


async def _load(
    file: BinaryIO, endpoints: tuple[str, ...], timeout_s: float, on_result: Callable[[LineResult], None]
) -> None:
    async with Client(endpoints, timeout_s=timeout_s, **client_settings()) as client:
        await client.batch(_operations(file), on_result)


async def _operations(file: BinaryIO) -> AsyncIterator[Mapping[str, Any]]:
    """The operations of the lines. Blank lines and an export's last line are passed over."""
    number = 0
    async for line in _lines(file):
        number += 1
        if line.strip() and not line.startswith(END_PREFIX):
            yield _operation(line, number)


async def _lines(file: BinaryIO) -> AsyncIterator[bytes]:
    """Each line as soon as it is there: the source may be a pipe that is written to slowly."""
    parts: list[bytes] = []  # of a line whose end is still to come
    while chunk := await _read(file):
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            for line in others[:-1]:
                yield line
            parts = [others[-1]]
    if any(parts):
        yield b"".join(parts)


async def _read(file: BinaryIO) -> bytes:
    """What can be read now, or b"" at the end. On a daemon thread and not the loop's executor, which would
    keep an import that has failed from ending while its source is silent."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def tell(chunk: bytes, error: OSError | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(chunk)

    def read() -> None:
        chunk, failed = b"", None
        try:
            chunk = _read_some(file)
        except OSError as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(tell, chunk, failed)

    threading.Thread(target=read, name="raftkv-import", daemon=True).start()
    return await done


def _read_some(file: BinaryIO) -> bytes:
    """Past the file object's buffer, whose lock a thread that waits for ever would take into the exit."""
    try:
        descriptor = file.fileno()
    except io.UnsupportedOperation:
        return file.read(READ_BYTES)
    return os.read(descriptor, READ_BYTES)


def _operation(line: bytes, number: int) -> Mapping[str, Any]:
    try:
        operation = msgspec.json.decode(line)
    except msgspec.MsgspecError as error:
        raise _BadLine(f"line {number} is no JSON ({error}); what came before it was written") from None
    if not isinstance(operation, dict) or not isinstance(operation.get("key"), str):
        raise _BadLine(f'line {number} is no object with a "key"; what came before it was written')
    return operation


# --- export --------------------------------------------------------------------------------------------


def save(
    prefix: str, path: Path | None, endpoints: tuple[str, ...], *, timeout_s: float, with_end: bool
) -> int:
    """Exports to `path` (whole or not at all) or to stdout; the exit code."""
    count = 0
    with ExitStack() as stack:
        stack.enter_context(exit_on_error())
        client = stack.enter_context(SyncClient(endpoints, timeout_s=timeout_s, **client_settings()))
        progress = stack.enter_context(Progress("export"))
        target = stack.enter_context(_Target(path))
        for line in client.export_lines(prefix):
            if line.startswith(END_PREFIX):
                if with_end:
                    target.write(line)
                break
            target.write(line)
            count += 1
            progress.show(count)
        target.commit()
    click.echo(f"{count} exported", err=True)
    return 0


class _Target:
    """Where an export goes: stdout, or a file that takes its name only when it is whole."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial") if path else None
        self._file: BinaryIO = sys.stdout.buffer

    def __enter__(self) -> Self:
        if self._partial is not None:
            try:
                self._file = self._partial.open("wb")
            except OSError as error:
                raise click.ClickException(f"--file {self._path}: {error.strerror}") from error
        return self

    def write(self, line: bytes) -> None:
        self._file.write(line)

    def commit(self) -> None:
        self._file.flush()
        if self._path is not None and self._partial is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(self._path)

    def __exit__(self, *_: object) -> None:
        if self._partial is not None:
            self._file.close()
            with contextlib.suppress(FileNotFoundError):
                self._partial.unlink()
