"""The Postman collection asks for every route that the OpenAPI document has, and looks at every answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from raftkv.api.openapi import document
from raftkv.api.routes import BY_QUERY, ROUTES, match

FOLDER = Path(__file__).parents[2] / "loadtest" / "postman"
COLLECTION = json.loads((FOLDER / "raftkv.postman_collection.json").read_text())


def requests(folder: dict[str, Any] = COLLECTION) -> Iterator[dict[str, Any]]:
    for each in folder["item"]:
        if "item" in each:
            yield from requests(each)
        else:
            yield each


ALL = list(requests())


def test_every_documented_operation_is_asked_for() -> None:
    asked = set[tuple[str, str]]()
    for each in ALL:
        path, _, query = each["request"]["url"]["raw"].partition("}}")[2].partition("?")
        names = [part.partition("=")[0].encode() for part in query.split("&")]
        try:
            route = match(each["request"]["method"], unquote(path).encode(), names).route
        except Exception:  # noqa: BLE001  # the refusals: no such route, or no such method there
            continue
        asked.add((route.method, "?key=" if route in BY_QUERY.values() else route.template))
    there = {(route.method, route.template) for route in ROUTES if route.answers}
    assert there | {(method, "?key=") for method in BY_QUERY} == asked
    described = {
        (method.upper(), path)
        for path, methods in document("1")["paths"].items()
        for method, operation in methods.items()
        if method != "head" and any(status.startswith(("2", "3")) for status in operation["responses"])
    }
    assert described - asked <= {("PUT", "/v1/kv"), ("POST", "/v1/kv")}  # which are those of ?key=


@pytest.mark.parametrize("each", ALL, ids=lambda each: str(each["name"]))
def test_every_request_looks_at_the_status_of_its_answer(each: dict[str, Any]) -> None:
    script = "\n".join(
        line for event in each["event"] if event["listen"] == "test" for line in event["script"]["exec"]
    )
    assert re.search(r"pm\.test\(.*pm\.response\.to\.have\.status\(\d{3}\)", script)


def test_no_two_requests_have_one_name() -> None:
    names = [each["name"] for each in ALL]
    assert len(set(names)) == len(names)


def test_the_lock_names_no_registry() -> None:
    lock = json.loads((FOLDER / "package-lock.json").read_text())
    assert not any("resolved" in package for package in lock["packages"].values())
    assert all("integrity" in package for name, package in lock["packages"].items() if name)
