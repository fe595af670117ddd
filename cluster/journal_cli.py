"""`raftkv journal`: reads a node's journal offline. Changes nothing, prints sizes and never values."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from raftkv.journal.inspect import FrameReport, Inspection, RecordReport, SegmentReport, inspect

_DIRECTORY = click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
_OUTPUT = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or for programs.",
)


@click.group(
    epilog="""\b
Examples:
  raftkv journal inspect raftkv-data/n1/journal
  raftkv journal verify raftkv-data/n1/journal"""
)
def journal() -> None:
    """Read a node's journal while the node is stopped.

    DIRECTORY is the journal directory inside the node's data directory. Nothing in it is changed.
    """


@journal.command("inspect", epilog="Example: raftkv journal inspect raftkv-data/n1/journal")
@_DIRECTORY
@_OUTPUT
def inspect_command(directory: Path, output: str) -> None:
    """Print segments, frames and records, and what a start would do with them.

    Exits 0 also for a damaged journal, of which it prints what can be read; `verify` judges.
    """
    inspection = _inspect(directory)
    if output == "json":
        click.echo(json.dumps(_as_json(inspection)))
        return
    for line in _lines(inspection):
        click.echo(line)


@journal.command("verify", epilog="Example: raftkv journal verify raftkv-data/n1/journal && echo sound")
@_DIRECTORY
@_OUTPUT
def verify_command(directory: Path, output: str) -> None:
    """Check a journal: exit code 0 if a node can start from it, 1 if it is damaged or not there.

    A frame that a crash interrupted is no damage: a start leaves it out.
    """
    inspection = _inspect(directory)
    if output == "json":
        summary = _as_json(inspection)
        del summary["segments"]
        click.echo(json.dumps(summary))
    else:
        for line in _summary(inspection):
            click.echo(line)
    sys.exit(0 if inspection.verdict in ("whole", "torn") else 1)


def _inspect(directory: Path) -> Inspection:
    try:
        return inspect(directory)
    except OSError as error:
        raise click.ClickException(
            f"{error.filename}: {error.strerror}. A running node changes its journal: stop it, or try again."
        ) from error


# --- for programs ----------------------------------------------------------------------------------------


def _as_json(inspection: Inspection) -> dict[str, object]:
    shown: dict[str, object] = dataclasses.asdict(inspection)
    shown["segments"] = [
        {**dataclasses.asdict(segment), "frames": [_frame_json(frame) for frame in segment.frames]}
        for segment in inspection.segments
    ]
    return shown


def _frame_json(frame: FrameReport) -> dict[str, object]:
    records = [{"kind": record.kind, **dict(record.fields)} for record in frame.records]
    return {"sequence": frame.sequence, "offset": frame.offset, "bytes": frame.bytes, "records": records}


# --- for people ------------------------------------------------------------------------------------------


def _lines(inspection: Inspection) -> Iterator[str]:
    for segment in inspection.segments:
        yield _segment_line(segment)
        for frame in segment.frames:
            yield f"  frame {frame.sequence:<10} at {frame.offset:<10} {frame.bytes:>10} bytes"
            for sentence in _sentences(frame.records):
                yield f"    {sentence}"
        yield ""
    yield from _summary(inspection)


def _summary(inspection: Inspection) -> Iterator[str]:
    frames = sum(len(segment.frames) for segment in inspection.segments)
    yield f"directory     {inspection.directory}"
    yield f"segments      {len(inspection.segments)}, frames {frames}"
    if inspection.verdict in ("whole", "torn"):
        yield f"term          {inspection.term}, voted for {inspection.voted_for or 'nobody'}"
        if inspection.last_index:
            yield (
                f"log           entries {inspection.first_index} to {inspection.last_index}, "
                f"{inspection.log_bytes} bytes, known committed {inspection.commit_index}"
            )
        else:
            yield "log           empty"
    if inspection.to_be_removed:
        yield f"leftovers     {', '.join(inspection.to_be_removed)}: a start would remove them"
    if inspection.not_ours:
        yield f"not ours      {', '.join(inspection.not_ours)}: left alone"
    yield f"verdict       {inspection.verdict}"
    yield inspection.message


def _segment_line(segment: SegmentReport) -> str:
    start = "starts the journal anew" if segment.anew else "goes on"
    return f"{segment.name}  {segment.bytes} bytes, first frame {segment.first_sequence}, {start}"


def _sentences(records: tuple[RecordReport, ...]) -> Iterator[str]:
    """One line a record; a run of entries of one term is one line."""
    run: list[dict[str, int | str | None]] = []
    for record in records:
        fields = dict(record.fields)
        if run and (record.kind != "entry" or fields["term"] != run[0]["term"]):
            yield _run_sentence(run)
            run = []
        if record.kind == "entry":
            run.append(fields)
        else:
            yield " ".join([record.kind, *(f"{name}={value}" for name, value in fields.items())])
    if run:
        yield _run_sentence(run)


def _run_sentence(run: list[dict[str, int | str | None]]) -> str:
    size = sum(int(fields["bytes"] or 0) for fields in run)
    return f"entries {run[0]['index']}..{run[-1]['index']} term={run[0]['term']} bytes={size}"
