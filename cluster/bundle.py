"""What `raftkv debug bundle` gathers, and what it leaves out. PURE but for `gather`.

A bundle is for somebody who does not have the cluster: what its nodes say of themselves, their numbers,
limits, and, where they are named, the end of their logs and their configuration. It never holds a value, a
key, a token, a secret or a private key. Of configuration only what is known not to be secret goes in; of
logs, whatever looks like one of those is struck out, and keys in URLs are.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import platform
import re
import sys
import tarfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.survey import NODE_SECONDS, Node, survey
from raftkv.client import Client, ClientError
from raftkv.config import ENVIRONMENT_PREFIX, SETTING_BY_NAME

LOG_BYTES_MAX = 4 << 20  # of each log, its end
STRUCK = "<redacted>"
PACKAGES = (
    "raftkv",
    "pysyncobj",
    "aiohttp",
    "uvloop",
    "msgspec",
    "sortedcontainers",
    "zstandard",
    "cryptography",
)


async def gather(client: Client, logs: Sequence[Path], configs: Sequence[Path]) -> dict[str, bytes]:
    """The files of a bundle, by name. The environment is that of this process, which in a node's container is
    the node's. Raises OSError where a named file can't be read."""
    files: dict[str, bytes] = {}
    nodes = await survey(client, timeout_s=NODE_SECONDS, ready=True)
    for name, about in zip(
        file_names(nodes), await asyncio.gather(*(_of_node(client, node) for node in nodes)), strict=True
    ):
        files |= {f"nodes/{name}/{file}": content for file, content in about.items()}
    for number, path in enumerate(logs):
        files[f"logs/{number}-{path.name}"] = struck(tail(path)).encode()
    for number, path in enumerate(configs):
        files[f"config/{number}-{path.name}.json"] = _json(settings_told(tomllib.loads(path.read_text())))
    files["config/environment.json"] = _json(environment_told(os.environ))
    files["manifest.json"] = _json(manifest(nodes, sorted(files)))
    return files


async def _of_node(client: Client, node: Node) -> dict[str, bytes]:
    """What a node did not say is an error's text in its place."""
    ready = "not asked" if not node.answers else node.ready_error or "yes"
    about = {"asked.json": _json({"url": node.url, "name": node.name, "error": node.error, "ready": ready})}
    if not node.answers:
        return about
    about["status.json"] = _json(node.status)
    about["clock.json"] = _json({"offset_s": node.offset_s, "answered_s": node.answered_s})
    for file, call in (("cluster.json", client.cluster), ("limits.json", client.limits)):
        try:
            about[file] = _json(await call(node.url, timeout_s=NODE_SECONDS))
        except ClientError as error:
            about[file] = _json({"error": str(error)})
    try:
        about["metrics.txt"] = (await client.metrics(node.url, timeout_s=NODE_SECONDS)).encode()
    except ClientError as error:
        about["metrics.txt"] = f"# {error}\n".encode()
    return about


def file_names(nodes: Sequence[Node]) -> list[str]:
    """Each once, and fit for a path."""
    return [
        f"{at}-{re.sub(r'[^A-Za-z0-9._-]', '_', node.name or 'unknown')}" for at, node in enumerate(nodes)
    ]


def manifest(nodes: Sequence[Node], files: Sequence[str]) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "made_with": {"python": sys.version.split()[0], "system": platform.platform(), **versions},
        "nodes": [
            {"name": node.name, "url": node.url, "answers": node.answers, "error": node.error}
            for node in nodes
        ],
        "files": list(files),
        "left_out": "keys, values, tokens, secrets and private keys",
    }


def packed(files: Mapping[str, bytes], root: str, now: float) -> bytes:
    """As a .tar.gz that only its owner may read once it is unpacked."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size, entry.mtime, entry.mode = len(files[name]), int(now), 0o600
            archive.addfile(entry, io.BytesIO(files[name]))
    return out.getvalue()


# --- what is left out ------------------------------------------------------------------------------------


def settings_told(document: Mapping[str, Any]) -> dict[str, Any]:
    """Of a node's settings, TOML or environment: those that are none stay out, and of a store's URL what
    stands behind `?`. The secret itself is no setting; files that hold one are named and not read."""
    told: dict[str, Any] = {}
    for name, value in document.items():
        if name not in SETTING_BY_NAME:
            told[name] = STRUCK
        elif name == "snapshots":
            told[name] = str(value).partition("?")[0]
        elif isinstance(value, list):
            told[name] = [_without_user(str(each)) for each in value]
        else:
            told[name] = _without_user(value) if isinstance(value, str) else value
    return told


def environment_told(environment: Mapping[str, str]) -> dict[str, Any]:
    return settings_told(
        {
            name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
            for name, value in environment.items()
            if name.startswith(ENVIRONMENT_PREFIX)
        }
    )


def _without_user(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", f"://{STRUCK}@", text)


_PATTERNS = (
    # Private keys, whole.
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        STRUCK,
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+"), rf"\1 {STRUCK}"),
    # name=value, name: value and "name": "value" of whatever is called a secret.
    (
        re.compile(
            r"(?i)([\"']?\b[\w-]*(?:secret|token|password|passwd|authorization|api[_-]?key|keyring[_-]?key)"
            r"(?![_-]?file)\b[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|\S+)"
        ),
        rf"\1{STRUCK}",
    ),
    (re.compile(r"://[^/@\s\"']*@"), f"://{STRUCK}@"),
    # Keys: in paths and in queries.
    (re.compile(r"(/v1/kv/)[^\s?\"'}{]+"), rf"\1{STRUCK}"),
    (re.compile(r"([?&](?:key|prefix|start|end|cursor)=)[^\s&\"']+"), rf"\1{STRUCK}"),
    (re.compile(r"\brkv_([0-9a-z]+)_[0-9A-Za-z_-]+"), rf"rkv_\1_{STRUCK}"),  # a token's id is no secret
    # Hex or base64 that is long enough to be a secret: a cluster's id has 32 digits.
    (re.compile(r"\b[0-9a-fA-F]{40,}\b"), STRUCK),
    (
        re.compile(r"(?<![\w/+])(?=[\w+/]*\d)(?=[\w+/]*[A-Z])(?=[\w+/]*[a-z])[A-Za-z0-9+/_]{40,}={0,2}"),
        STRUCK,
    ),
)


def struck(text: str) -> str:
    """A log without what looks like a secret or a key. Too much rather than too little."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def tail(path: Path) -> str:
    """The end of a file, from the start of a line."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - LOG_BYTES_MAX))
        data = file.read()
    if size > LOG_BYTES_MAX:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")


def _json(document: Any) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False, default=str).encode() + b"\n"
