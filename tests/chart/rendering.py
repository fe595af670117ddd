"""The chart as Helm's own engine renders it, and the objects in it."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[2] / "helm" / "raftkv"
RELEASE, NAMESPACE = "kv", "prod"
NAME = "kv-raftkv"  # of the objects of that release

Object = dict[str, Any]


@cache
def _chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(values: Mapping[str, Any] | None = None, **options: Any) -> dict[str, str]:
    """Template: text. Raises helm_python.HelmError where the schema or a template refuses the values."""
    options = {"name": RELEASE, "namespace": NAMESPACE, **options}
    return _chart().render(dict(values or {}), **options)


def objects(values: Mapping[str, Any] | None = None, **options: Any) -> list[Object]:
    return copy.deepcopy(_objects(json.dumps(values or {}), json.dumps(options)))


@cache
def _objects(values: str, options: str) -> list[Object]:
    rendered = render(json.loads(values), **json.loads(options))
    texts = (text for path, text in rendered.items() if path.endswith(".yaml"))
    return [each for text in texts for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]


def one(among: Iterable[Object], kind: str, name: str | None = None) -> Object:
    (found,) = (each for each in among if each["kind"] == kind and name in (None, each["metadata"]["name"]))
    return found


def pod_of(among: Iterable[Object]) -> Object:
    """The node's pod template."""
    template: Object = one(among, "StatefulSet")["spec"]["template"]
    return template


def container(template: Object, name: str = "raftkv") -> Object:
    spec = template["spec"]
    (found,) = (
        each for each in (*spec.get("initContainers", ()), *spec["containers"]) if each["name"] == name
    )
    return dict(found)


def secret_bytes(secret: Object, key: str) -> bytes:
    return base64.b64decode(secret["data"][key])
