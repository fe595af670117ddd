"""The documentation says what the code says: settings, refusals, status fields, named tests, links."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from raftkv import errors
from raftkv.api.alarms import ALARMS
from raftkv.config import SETTINGS
from raftkv.raft import status

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text()
READING = (ROOT / "docs" / "reading-a-node.md").read_text()


def settings_table() -> str:
    rows = ["| flag | default | allowed | what |", "|---|---|---|---|"]
    for setting in SETTINGS:
        default = "**required**" if setting.required else setting.default_text
        cells = [f"`{setting.flag}`", default, setting.allowed, setting.help]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def test_operations_lists_every_setting_as_the_code_has_it() -> None:
    table = settings_table()
    assert table in OPERATIONS, f"docs/operations.md needs this table, word for word:\n{table}"


def handshake_refusals() -> set[str]:
    """The codes that one member may give another for not talking to it, read from the source."""
    tree = ast.parse((ROOT / "raftkv" / "raft" / "handshake.py").read_text())
    return {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Refusal"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }


def test_operations_explains_every_refusal_between_members() -> None:
    codes = handshake_refusals()
    assert "empty_disk" in codes
    assert {code for code in codes if f"`{code}`" not in OPERATIONS} == set()


def fatal_codes() -> set[str]:
    found = set[str]()
    kinds = [errors.Fatal]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found.add(kind.code)
    return found - {errors.Fatal.code}


def test_operations_explains_everything_that_stops_a_node() -> None:
    assert {code for code in fatal_codes() if f"`{code}`" not in OPERATIONS} == set()


@pytest.mark.parametrize(
    "shape",
    [status.NodeStatus, status.JournalStatus, status.SnapshotStatus, status.PeerStatus, status.ArchiveStatus],
)
def test_reading_a_node_explains_every_field(shape: Any) -> None:
    missing = [field.name for field in dataclasses.fields(shape) if f"`{field.name}`" not in READING]
    assert not missing, f"docs/reading-a-node.md says nothing of {shape.__name__}: {missing}"


def test_reading_a_node_explains_every_alarm() -> None:
    assert {name for name in ALARMS if f"`{name}`" not in READING} == set()


def log_events() -> set[str]:
    """The first word of every message that the node logs at info or above."""
    levels = {"info", "warning", "error", "exception", "critical"}
    found = set[str]()
    for path in (ROOT / "raftkv").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr=level),
                    args=[ast.Constant(value=str(message)), *_],
                ) if level in levels:
                    found.add(message.split()[0])
    return found


def test_reading_a_node_explains_every_event_in_the_log() -> None:
    events = log_events()
    assert "role_changed" in events
    assert {event for event in events if f"`{event}`" not in READING} == set()


def test_every_test_that_guarantees_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", GUARANTEES)
    assert len(named) > 10
    for file, function in named:
        assert (ROOT / file).is_file(), f"{file} is named in docs/guarantees.md and not there"
        if function:
            defined = re.search(rf"^(async )?def {function}\(", (ROOT / file).read_text(), re.MULTILINE)
            assert defined, f"{file} has no {function}, which docs/guarantees.md names"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
