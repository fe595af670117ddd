"""The chart as Helm's own engine renders it, and the objects in it."""

from __future__ import annotations

import base64
import copy
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[2] / "helm" / "raftkv"
RELEASE, NAMESPACE = "kv", "prod"
NAME = "kv-raftkv"  # of the objects of that release
LOOKUP = "(lookup .version .kind .root.Release.Namespace .name)"

Object = dict[str, Any]


@cache
def _chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


@cache
def _chart_that_looks() -> helm_python.Chart:
    """The engine can't look at a cluster: to this copy of the chart, what is there comes with the values."""
    with tempfile.TemporaryDirectory() as directory:
        copied = shutil.copytree(CHART, Path(directory) / CHART.name)
        helpers = copied / "templates" / "_helpers.tpl"
        text = helpers.read_text()
        assert text.count(LOOKUP) == 1
        assert sum(path.read_text().count("(lookup ") for path in copied.rglob("templates/*.*")) == 1
        helpers.write_text(
            text.replace(
                LOOKUP, '(index .root.Values.global.there (printf "%s/%s" .kind .name) | default dict)'
            )
        )
        return helm_python.Chart.load(copied)


def render(
    values: Mapping[str, Any] | None = None, *, there: Iterable[Object] | None = None, **options: Any
) -> dict[str, str]:
    """Template: text. `there`: the objects that Kubernetes has already, for `lookup`; None: it can't look.

    Raises helm_python.HelmError where the schema or a template refuses the values.
    """
    options = {"name": RELEASE, "namespace": NAMESPACE, **options}
    values = dict(values or {})
    if there is None:
        return _chart().render(values, **options)
    known = {f"{each['kind']}/{each['metadata']['name']}": each for each in there}
    return _chart_that_looks().render({**values, "global": {"there": known}}, **options)


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
