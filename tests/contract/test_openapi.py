"""The OpenAPI document against the tables that the server runs on, and the server against the document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raftkv.api.errors import TABLE
from raftkv.api.openapi import STATUS_BY_CODE, codes_of, document
from raftkv.api.routes import BY_QUERY, ROUTES, Route, match
from tests.contract.conftest import Node
from tests.contract.plain import Http
from tests.contract.test_bad_requests import ALL, Bad

DOCUMENT = document("1.0")
OPERATIONS = [
    (path, method, described)
    for path, methods in DOCUMENT["paths"].items()
    for method, described in methods.items()
]


def names(described: dict[str, Any], place: str) -> set[str]:
    return {each["name"] for each in described["parameters"] if each["in"] == place}


async def test_the_node_serves_the_document(http: Http) -> None:
    served = (await http("GET", "/openapi.json")).json
    assert served["openapi"] == "3.1.0"
    assert served["paths"] == json.loads(json.dumps(DOCUMENT["paths"]))


@pytest.mark.parametrize(
    "route", [*ROUTES, *BY_QUERY.values()], ids=lambda route: f"{route.name} {route.template}"
)
def test_every_route_is_described_with_all_it_takes_and_answers(route: Route) -> None:
    described = DOCUMENT["paths"][route.template][route.method.lower()]
    assert {each.name for each in route.parameters} <= names(described, "query")
    assert set(route.headers) <= names(described, "header")
    assert ("requestBody" in described) == (route.body is not None)
    statuses = {str(status) for status in route.answers} | {
        str(STATUS_BY_CODE[code].status) for code in codes_of(route)
    }
    assert statuses <= described["responses"].keys()


@pytest.mark.parametrize(("path", "method", "described"), OPERATIONS, ids=lambda each: str(each)[:40])
def test_every_operation_described_is_dispatched(path: str, method: str, described: dict[str, Any]) -> None:
    """Nothing is described that the server would not take: path, method, query parameters."""
    query = names(described, "query")
    for key_given in {True, False} if path == "/v1/kv" else {False}:
        if path == "/v1/kv" and not key_given and method in ("put", "post"):
            continue
        found = match(method.upper(), path.replace("{", "").replace("}", "").encode(), [b"key"] * key_given)
        assert found.route.template == path
        query -= {each.name for each in found.route.parameters}
    assert not query


def test_operation_ids_are_unique() -> None:
    ids = [described["operationId"] for _, _, described in OPERATIONS]
    assert len(set(ids)) == len(ids)


def test_every_error_of_the_table_is_described_and_nothing_else() -> None:
    described = {
        code
        for _, _, operation in OPERATIONS
        for answer in operation["responses"].values()
        for code in answer.get("x-codes", ())
    }
    # Of operations, which tell it in their result.
    beside = {"store_fenced"}
    assert described == {kind.code for kind in TABLE} - beside


def test_one_code_has_one_status() -> None:
    statuses: dict[str, set[int]] = {}
    for kind, row in TABLE.items():
        statuses.setdefault(kind.code, set()).add(row.status)
    assert all(len(found) == 1 for found in statuses.values()), statuses


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.what)
def test_every_refusal_that_the_tests_provoke_is_described(case: Bad) -> None:
    """The table of broken requests against the document: status and code, where the route is known."""
    if case.raw.count(b" ") < 2:
        return
    raw_method, target = case.raw.split(b" ")[:2]
    method, path = raw_method.decode("latin-1"), target.partition(b"?")[0]
    try:
        route = match(method, path, [b"key"] if b"key=" in target else []).route
    except Exception:  # noqa: BLE001  # it has no route, which is what the case is about
        return
    described = DOCUMENT["paths"][route.template][method.lower()]["responses"]
    assert case.code in described[str(case.status)]["x-codes"]


def resolve(reference: str) -> Any:
    place: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        place = place[part]
    return place


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if "$ref" in part else []
        return own + [found for each in part.values() for found in references(each)]
    if isinstance(part, list | tuple):
        return [found for each in part for found in references(each)]
    return []


def test_every_reference_leads_somewhere() -> None:
    found = references(DOCUMENT)
    assert found
    for reference in set(found):
        assert resolve(reference)


async def test_a_problem_has_the_members_that_the_schema_has(node: Node) -> None:
    problem = (await node.http("PUT", "/v1/kv/" + "k" * 5000, b"v")).json
    schema = DOCUMENT["components"]["schemas"]["Problem"]
    assert set(schema["required"]) <= problem.keys() <= schema["properties"].keys()
    assert problem["code"] in schema["properties"]["code"]["enum"]
