"""The OpenAPI document is whole: every body has a shape and an example, every example is of its shape, and
every answer says its headers. What live nodes answer is compared with it in tests/cluster/test_postman.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from raftkv.api.openapi import document
from raftkv.api.routes import ROUTES, Route
from raftkv.api.shapes import ANSWERS, BODIES, LINES
from raftkv.api.wire import JSON, NDJSON

DOCUMENT = document("1.0")
ANSWERED = [route for route in ROUTES if route.answers]


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    """With the document's components, to which references lead."""
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def every_schema() -> Iterator[dict[str, Any]]:
    def below(part: Any) -> Iterator[dict[str, Any]]:
        if isinstance(part, dict):
            if isinstance(part.get("schema"), dict):
                yield part["schema"]
            for each in part.values():
                yield from below(each)
        elif isinstance(part, list | tuple):
            for each in part:
                yield from below(each)

    yield from below(DOCUMENT["paths"])
    yield from DOCUMENT["components"]["schemas"].values()


def test_every_schema_is_one() -> None:
    found = list(every_schema())
    assert len(found) > 50
    for schema in found:
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("route", ANSWERED, ids=lambda route: route.name)
def test_every_answer_and_every_body_has_a_shape(route: Route) -> None:
    if JSON in route.produces and route.answers.keys() - {304, 307}:
        assert route.name in ANSWERS
    if NDJSON in route.produces:
        assert route.name in LINES
    if route.body is not None:
        assert route.name in BODIES


def test_no_shape_is_of_a_route_that_is_gone() -> None:
    assert ANSWERS.keys() | LINES.keys() | BODIES.keys() <= {route.name for route in ANSWERED}


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "openapi"])
def test_every_example_of_an_answer_is_of_its_shape(name: str) -> None:
    validator(ANSWERS[name].schema).validate(ANSWERS[name].example)


@pytest.mark.parametrize("name", [route.name for route in ANSWERED if route.body == JSON])
def test_every_example_of_a_body_is_of_its_shape(name: str) -> None:
    validator(BODIES[name].schema).validate(BODIES[name].example)
    assert not validator(BODIES[name].schema).is_valid({"misspelt": 1})


def test_every_example_of_a_problem_is_of_its_shape() -> None:
    schema = DOCUMENT["components"]["schemas"]["Problem"]
    for code, example in DOCUMENT["components"]["examples"].items():
        validator(schema).validate(example["value"])
        assert example["value"]["code"] == code


def test_every_way_to_be_let_in_is_described() -> None:
    asked = [*DOCUMENT["security"]]
    for methods in DOCUMENT["paths"].values():
        for described in methods.values():
            asked += described.get("security", [])
    assert {name for each in asked for name in each} == DOCUMENT["components"]["securitySchemes"].keys()


def operations() -> Iterator[Any]:
    for path, methods in DOCUMENT["paths"].items():
        for method, described in methods.items():
            for status, answer in described["responses"].items():
                yield pytest.param(method, int(status), answer, id=f"{method} {path} {status}")


@pytest.mark.parametrize(("method", "status", "answer"), list(operations()))
def test_every_answer_says_its_headers(method: str, status: int, answer: dict[str, Any]) -> None:
    headers = answer["headers"].keys()
    assert headers >= {"Raftkv-Revision", "Raftkv-Served-By", "Raftkv-Leader", "Raftkv-Term", "Request-Id"}
    if status in (202, 307):
        assert "Location" in headers
    if status in (429, 503) or "in_flight" in answer.get("x-codes", ()):
        assert "Retry-After" in headers
    if status == 405:
        assert "Allow" in headers
    if status in (304, 412):
        assert "ETag" in headers
    if status >= 400 and method != "head":
        (content,) = answer["content"].values()
        assert content["examples"].keys() == set(answer["x-codes"])
    if method == "head":
        assert "content" not in answer
