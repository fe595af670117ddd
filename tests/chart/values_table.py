"""values.yaml as a table: a value's comment is what stands above it."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

_KEY = re.compile(r"( *)([A-Za-z]+):.*")
_COMMENT = re.compile(r" *# ?(.*)")


def values_table(text: str) -> str:
    """Raises AssertionError for a value without a comment."""
    values = yaml.safe_load(text)
    rows = ["| value | default | what |", "|---|---|---|"]
    path: list[str] = []
    comment: list[str] = []
    told: list[str] = []  # a value with parts that has one comment for all of them
    for line in text.splitlines():
        if found := _COMMENT.fullmatch(line):
            comment.append(found[1])
            continue
        if found := _KEY.fullmatch(line):
            path = [*path[: len(found[1]) // 2], found[2]]
            within = bool(told) and path[: len(told)] == told
            value = _at(values, path)
            if comment:
                told = path
                rows.append(_row(path, value, comment))
            else:
                assert within or (isinstance(value, dict) and value), f"{'.'.join(path)} has no comment"
        comment = []
    return "\n".join(rows)


def _at(values: Any, path: list[str]) -> Any:
    for name in path:
        values = values[name]
    return values


def _row(path: list[str], value: Any, comment: list[str]) -> str:
    default = json.dumps(value, separators=(", ", ": "))
    return f"| `{'.'.join(path)}` | `{default}` | {' '.join(comment)} |".replace("||", "\\|\\|")
