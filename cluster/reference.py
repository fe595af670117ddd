"""The pages of the documentation that are made from the code: the command line and the HTTP interface.

They are kept in docs/, so that they can be read without building anything; a test compares them with what
this makes, and `scripts/docs write` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cluster.cli import cli
from raftkv.api.openapi import STATUS_BY_CODE, document
from raftkv.api.routes import EVERYWHERE
from raftkv.api.wire import JSON, NDJSON

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 100
NOTE = "<!-- Made from the code by `scripts/docs write`: change it there. -->"


def pages() -> dict[str, str]:
    """Every page that is made, by its file's name."""
    return {"api.md": api_page(), "cli.md": cli_page()}


def write() -> None:
    for name, text in pages().items():
        (DOCS / name).write_text(text)


# --- the command line ------------------------------------------------------------------------------------


def commands(command: click.Command = cli, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words, groups before what is in them."""
    yield ("raftkv", *path), command
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            assert found is not None
            yield from commands(found, *path, name)


def cli_page() -> str:
    parts = [
        "# The command line",
        NOTE,
        "What each command says with `--help`. `scripts/venv` puts `raftkv` into `.venv/bin`. "
        "`raftkv completion SHELL` prints what makes bash, zsh or fish complete it on Tab.",
    ]
    for words, command in commands():
        ctx = _context(words, command)
        parts += [
            f"{'#' * min(4, len(words) + 1)} {' '.join(words)}",
            f"```text\n{ctx.get_help().strip()}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def _context(words: tuple[str, ...], command: click.Command) -> click.Context:
    """As click makes it, but for the width, which it would take from the terminal."""
    return click.Context(
        command,
        info_name=" ".join(words),
        help_option_names=["-h", "--help"],
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        color=False,
    )


# --- the HTTP interface ----------------------------------------------------------------------------------


def api_page() -> str:
    described = document("")
    parts = [
        "# HTTP reference",
        NOTE,
        "Every operation, from the tables that the server runs on; each node serves it at `/openapi.json`, "
        "and at `/docs` as a page to try it. [HTTP in practice](http.md) explains it by examples.",
        "Every answer, errors too, has "
        + ", ".join(f"`{name}`" for name in _common(described))
        + ". Every GET "
        "is a HEAD as well. Besides its own problems, any operation may answer "
        + ", ".join(f"`{code}`" for code in EVERYWHERE)
        + ".",
    ]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            if method != "head":
                parts += _operation(path, method.upper(), operation, described)
    parts += _problems_table(described)
    return "\n\n".join(parts) + "\n"


def _common(described: Mapping[str, Any]) -> list[str]:
    livez = described["paths"]["/livez"]["get"]["responses"]["200"]["headers"]
    return [name for name in livez if name != "Cache-Control"]


def _operation(
    path: str, method: str, operation: Mapping[str, Any], described: Mapping[str, Any]
) -> list[str]:
    parts = [f"## {method} {path}", operation["summary"] + "."]
    if operation["parameters"]:
        parts.append(
            _table(("parameter", "in", "what"), (_parameter(each) for each in operation["parameters"]))
        )
    if "requestBody" in operation:
        for kind, content in operation["requestBody"]["content"].items():
            parts.append(f"Body, `{kind}`:")
            parts.append(_block(kind, content.get("example", "")))
    common = set(_common(described))
    rows = []
    for status, answer in operation["responses"].items():
        codes = answer.get("x-codes", ())
        own = [code for code in codes if code not in EVERYWHERE]
        if codes and not own:
            continue
        what = ", ".join(f"[`{code}`](#problems)" for code in own) or answer["description"]
        headers = ", ".join(f"`{name}`" for name in answer["headers"] if name not in common)
        rows.append((status, what, headers))
    parts.append(_table(("status", "what", "headers of its own"), rows))
    for status, answer in operation["responses"].items():
        if int(status) < 300:
            parts += _answer_examples(status, answer)
    return parts


def _parameter(each: Mapping[str, Any]) -> tuple[str, str, str]:
    schema, notes = each["schema"], []
    if "enum" in schema:
        notes.append("one of " + ", ".join(f"`{value}`" for value in schema["enum"]))
    if "default" in schema and schema["type"] != "boolean":
        notes.append(f"default `{schema['default']}`")
    if each["required"]:
        notes.append("required")
    text = each["description"] + (f" ({'; '.join(notes)})" if notes else "")
    return f"`{each['name']}`", each["in"], text


def _answer_examples(status: str, answer: Mapping[str, Any]) -> Iterator[str]:
    for kind, content in answer.get("content", {}).items():
        found = content.get("examples") or (
            {"": {"value": content["example"]}} if "example" in content else {}
        )
        for example in found.values():
            yield f"{status}, `{kind}`:"
            yield _block(kind, example["value"])


def _block(kind: str, example: Any) -> str:
    if kind == JSON:
        return f"```json\n{json.dumps(example, indent=2, ensure_ascii=False)}\n```"
    text = example if isinstance(example, str) else json.dumps(example)
    return f"```{'json' if kind == NDJSON else 'text'}\n{text.rstrip()}\n```"


def _problems_table(described: Mapping[str, Any]) -> list[str]:
    examples = described["components"]["examples"]
    rows = []
    for code, row in sorted(STATUS_BY_CODE.items(), key=lambda pair: (pair[1].status, pair[0])):
        detail = examples[code]["value"]["detail"]
        said = "" if detail == row.title else detail
        rows.append((f"`{code}`", str(row.status), row.title, said))
    return [
        "## Problems",
        "Every error is `application/problem+json` (RFC 9457). `code` is for programs, `detail` for people; "
        "`outcome` is `not_applied` or `unknown`, `retryable` says whether the same request may help later. "
        "[Operations](operations.md#to-a-client) says what to do about each.",
        _table(("code", "status", "what", "as in"), rows),
    ]


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append(
            "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    write()
