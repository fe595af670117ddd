"""Imports point one way, and each heavy library lives in one place. Read from the source, never imported.

`api -> service -> raft -> {journal, snapshot} -> kv -> {model, errors}`; `server` sees all; `cluster` starts
processes and may import `raftkv`, never the other way.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What each part of the house may import from the rest of it. A part is a folder or file of raftkv/.
WORDS = {"errors", "model"}
STORAGE = {"journal", "snapshot"}
PARTS = {
    "errors": set[str](),
    "model": {"errors"},
    "addresses": set[str](),
    "config": WORDS | {"access.secret", "addresses", "api.limits"},  # which are values alone
    "metrics": WORDS,
    "complaints": set[str](),
    "tls": WORDS | {"complaints"},
    "kv": WORDS,
    "journal": WORDS | {"kv"},
    "snapshot": WORDS | {"kv", "journal.disk"},  # the one seam to a file system
    "raft": WORDS | {"kv", "metrics", "complaints", "tls"} | STORAGE,
    "room": WORDS | {"kv"},
    "resources": {"room"},
    "service": WORDS | {"kv", "metrics", "raft", "room"} | STORAGE,
    "access": WORDS | {"kv"},
    "api": WORDS | {"access", "addresses", "kv", "metrics", "raft", "room", "service", "tls"} | STORAGE,
    "client": WORDS | {"tls"},
    "__main__": set(),
}
COMPOSITION_ROOTS = {"server"}

# Where a library may be imported. Everything that starts with one of the prefixes is such a place.
LIBRARIES = {
    "pysyncobj": ("raftkv.raft",),
    "aiohttp": ("raftkv.api", "raftkv.client", "cluster"),
    "rados": ("raftkv.snapshot.rados",),
    "opentelemetry": ("raftkv.api.spans",),
    "cryptography": ("raftkv.tls", "cluster.certs"),
    "click": ("cluster",),
    "rich": ("cluster",),
    "pickle": (),
    "cPickle": (),
    "marshal": (),
    "shelve": (),
    "dill": (),
}
NOT_A_PLACE = {"util", "utils", "helper", "helpers", "common", "misc"}


def imports(module: str, tree: ast.AST, *, package: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, also those inside functions and of a literal name.

    `from raftkv import kv` gives `raftkv.kv`: each imported name could be a module.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module=source, names=names, level=level):
                parents = module.split(".")[: -(level - 1 if package else level) or None] if level else []
                base = ".".join([*parents, *([source] if source else [])])
                for alias in names:
                    yield node.lineno, f"{base}.{alias.name}"
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="__import__" | "import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def inside(name: str, place: str) -> bool:
    return name == place or name.startswith(place + ".")


def violations(module: str, source: str, *, package: bool = False) -> list[str]:
    """What is wrong with one module, named `raftkv.kv.machine`: a sentence for each import out of line."""
    found = []
    if not NOT_A_PLACE.isdisjoint(module.split(".")):
        found.append(f"{module}: a thing lives where it belongs, not in a module of this name")
    part = module.split(".")[1] if "." in module else ""
    for line, name in imports(module, ast.parse(source), package=package):
        where = f"{module}:{line} imports {name}"
        library = name.split(".")[0]
        if library in LIBRARIES and not any(inside(module, place) for place in LIBRARIES[library]):
            found.append(f"{where}: allowed only in {LIBRARIES[library] or 'no module'}")
        if not inside(module, "raftkv"):
            continue
        if library == "cluster":
            found.append(f"{where}: raftkv never imports cluster")
        if library == "raftkv" and part not in COMPOSITION_ROOTS:
            target = name.split(".")[1] if "." in name else ""
            allowed = PARTS.get(part, set()) | {part}
            if is_part(target) and not any(inside(name, f"raftkv.{place}") for place in allowed):
                found.append(f"{where}: {part or 'raftkv'} may import only {sorted(allowed)}")
    return found


def is_part(name: str) -> bool:
    """Whether `raftkv.<name>` is a module, rather than a name that raftkv/__init__.py defines."""
    return name in PARTS or name in COMPOSITION_ROOTS


def modules() -> Iterator[tuple[str, Path]]:
    for top in ("raftkv", "cluster"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def test_imports_point_one_way() -> None:
    found = [
        sentence
        for name, path in modules()
        for sentence in violations(name, path.read_text(), package=path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_every_part_of_the_house_has_its_row() -> None:
    """A new folder or file of raftkv/ is a decision: it gets a row above, or the test above can't see it."""
    parts = {name.split(".")[1] for name, _ in modules() if name.startswith("raftkv.")}
    assert parts <= PARTS.keys() | COMPOSITION_ROOTS


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("raftkv.kv.machine", "import raftkv.raft.core"),
        ("raftkv.kv.machine", "from raftkv import raft"),
        ("raftkv.kv.machine", "from ..raft import core"),
        ("raftkv.kv.machine", "from .. import service"),
        ("raftkv.kv.machine", "def late():\n    from raftkv.journal.wal import Wal"),
        ("raftkv.journal.wal", "from raftkv.snapshot.store import Store"),
        ("raftkv.raft.node", "from raftkv.service import KVService"),
        ("raftkv.service", "from raftkv.api.wire import Parser"),
        ("raftkv.api.app", "from raftkv.server import run"),
        ("raftkv.raft.node", "from raftkv.config import Config"),
        ("raftkv.config", "from raftkv.api import app"),
        ("raftkv.__main__", "from cluster.cli import main"),
        ("raftkv", "from raftkv.kv.machine import Machine"),
        ("raftkv.server", "import cluster.local"),
        ("raftkv.journal.wal", "import pysyncobj"),
        ("raftkv.api.app", "from pysyncobj import SyncObj"),
        ("cluster.local", "import pysyncobj.syncobj"),
        ("raftkv.raft.transport", "import aiohttp"),
        ("raftkv.service", "from aiohttp import web"),
        ("raftkv.snapshot.store", "import rados"),
        ("raftkv.raft.messages", "import pickle"),
        ("raftkv.raft.messages", "from pickle import loads"),
        ("raftkv.raft.messages", "import importlib\nimportlib.import_module('pickle')"),
        ("raftkv.raft.messages", "__import__('pickle')"),
        ("raftkv.api.utils", ""),
        ("raftkv.common.text", ""),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("raftkv.kv.machine", "from raftkv.model import Item\nfrom . import command\nimport struct"),
        ("raftkv.raft.core", "import pysyncobj\nfrom ..journal.wal import Wal"),
        ("raftkv.api.app", "import aiohttp\nfrom raftkv import errors\nfrom raftkv.service import KVService"),
        ("raftkv.server", "from raftkv.config import Config\nfrom raftkv.api import app"),
        ("raftkv.snapshot.rados", "import rados"),
        ("cluster.cli", "from raftkv.client import Client\nimport click"),
        ("raftkv.client", "import aiohttp\nimport raftkv"),
        ("raftkv.config", "from raftkv.api import limits\nfrom raftkv.api.limits import Limits"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_relative_imports_of_a_package_start_at_the_package() -> None:
    assert violations("raftkv.kv", "from ..raft import core", package=True)
    assert violations("raftkv.kv", "from . import command", package=True) == []
