"""The OpenAPI 3.1 document, made from the tables that the server runs on: routes, problems, limits. PURE.

Whatever is not in a table can't be in the document, so the two can't drift apart.
"""

from __future__ import annotations

from typing import Any

from raftkv.api.errors import PROBLEM, TABLE, Status
from raftkv.api.routes import BY_QUERY, CONSISTENCY, EVERYWHERE, ROUTES, STORE_TEMPLATE, Access, Route
from raftkv.api.shapes import ANSWERS, BODIES, LINES, PROBLEM_DETAILS, SCHEMAS, TEXT
from raftkv.api.wire import INTEGER_MAX, JSON, NDJSON, Parameter

COMMON_HEADERS = {
    "Raftkv-Revision": "The store's revision on this node as it answered.",
    "Raftkv-Served-By": "The node that answered.",
    "Raftkv-Leader": "The leader's client URL, where known.",
    "Raftkv-Term": "The raft term on this node.",
    "Request-Id": "The request's own, or one that was made.",
}
# Of single answers; `headers_of` says of which.
ANSWER_HEADERS = {
    "Allow": "The methods that the route takes.",
    "Cache-Control": "no-store for health, no-cache for values: ask again each time.",
    "ETag": "The key's mod_revision in quotes; of a part of a snapshot, its sha256.",
    "Location": "Where to send the request, or where to ask how far it is.",
    "Raftkv-Applied-Revision": "Of a stale read: the revision that this node had applied.",
    "Raftkv-Consistency": "linearizable or stale: what the read was.",
    "Raftkv-Next-Cursor": "Of a list by lines: for the next page.",
    "Raftkv-Replayed": "true: the outcome kept under this idempotency key.",
    "Retry-After": "Seconds.",
    "WWW-Authenticate": "Bearer: a token is needed, or another one.",
    "X-Content-Type-Options": "nosniff: what was stored is not to be guessed at.",
}
HEADER_HELP = {
    "Accept": "application/x-ndjson for one item a line.",
    "Content-Type": "Stored with a value, and comes back with it.",
    "Idempotency-Key": "1 to 128 printable bytes; a repeated request gets the first outcome.",
    "If-Match": 'Only if the key\'s revision is this ETag, such as "57", or * for any.',
    "If-None-Match": "On a write: * for only if absent. On a read: 304 where an ETag matches.",
    "Raftkv-Route": "redirect, forward or local: what a node that does not lead does with a write.",
    "Request-Id": "1 to 128 printable characters; comes back, and stands in logs.",
}
NAME_HELP = {
    "key": "1 to 4096 bytes of UTF-8, slashes included.",
    "id": "The id.",
    "number": "Counts from 0.",
}

SECURITY_SCHEMES = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of the cluster, as `raftkv token create` gave it out. Asked for where the "
        "node runs with `--auth tokens`; each operation's x-access says what it needs.",
    }
}

# Statuses by problem code. Two types may share a code, never a status for different meanings.
STATUS_BY_CODE: dict[str, Status] = {}
for _kind, _row in TABLE.items():
    STATUS_BY_CODE.setdefault(_kind.code, _row)


def document(version: str, *, tokens: bool = False) -> dict[str, Any]:
    """The whole document. `tokens`: they are asked for here (`--auth tokens`)."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "raftkv",
            "version": version,
            "summary": "A replicated, linearizable key-value store.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}] if tokens else [{"token": []}, {}],
        "paths": paths(),
        "components": {
            "schemas": schemas(),
            "responses": responses(),
            "headers": headers(),
            "examples": examples(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Where nodes run with --auth tokens.",
                }
            },
        },
    }


def paths() -> dict[str, Any]:
    made: dict[str, Any] = {}
    for route in ROUTES:
        place = made.setdefault(route.template, {})
        place[route.method.lower()] = operation(route, route.name)
        if route.method == "GET":
            place["head"] = without_bodies(operation(route, "head_" + route.name))
    store = made[STORE_TEMPLATE]
    for method, route in BY_QUERY.items():
        _merge(store, method.lower(), operation(route, route.name + "_by_query"))
        if method == "GET":
            head = operation(route, "head_" + route.name + "_by_query")
            _merge(store, "head", without_bodies(head))
    return made


def without_bodies(described: dict[str, Any]) -> dict[str, Any]:
    """Of a HEAD: the same answers, of which the headers are sent."""
    for answer in described["responses"].values():
        answer.pop("content", None)
    return described


def _merge(place: dict[str, Any], method: str, other: dict[str, Any]) -> None:
    """`/v1/kv?key=` is another operation under the same path and method; OpenAPI has room for one."""
    if method not in place:
        place[method] = other
        next(each for each in other["parameters"] if each["name"] == "key")["required"] = True
        return
    one = place[method]
    one["summary"] = f"{one['summary']}; with ?key=: {other['summary'].lower()}"
    known = {(each["in"], each["name"]) for each in one["parameters"]}
    one["parameters"] += [each for each in other["parameters"] if (each["in"], each["name"]) not in known]
    for status, answer in other["responses"].items():
        if status not in one["responses"]:
            one["responses"][status] = answer
        elif status == "200":
            both = one["responses"][status]
            both["description"] = f"{both['description']} With ?key=: {answer['description']}"
            both["headers"] |= answer["headers"]
            if "content" in both:
                both["content"] = _either(answer["content"], both["content"])


def _either(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both are JSON, of two shapes."""
    made = {**one, **other}
    for kind in one.keys() & other.keys():
        made[kind] = {"schema": {"anyOf": [other[kind]["schema"], one[kind]["schema"]]}}
        made[kind]["examples"] = {
            "many": {"value": other[kind]["example"]},
            "one": {"value": one[kind]["example"]},
        }
    return made


def operation(route: Route, operation_id: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation_id,
        "summary": route.summary,
        "parameters": [
            *_path_parameters(route),
            *(_query_parameter(each) for each in route.parameters),
            *(_header_parameter(name) for name in route.headers),
        ],
        "responses": {
            **{str(status): _answer(route, status, text) for status, text in route.answers.items()},
            **_problems(route),
        },
        "x-access": route.access,
    }
    if route.access == "open":
        made["security"] = []
    if route.body is not None:
        content: dict[str, Any] = {"schema": {}}
        shape = BODIES.get(route.name)
        if shape is not None:
            content["example"] = shape.example
            if route.body == JSON:
                content["schema"] = shape.schema
            elif route.body == NDJSON:  # JSON Schema knows no lines; what each is stands beside
                content["schema"] = {**TEXT, "contentMediaType": NDJSON}
                content["x-line"] = shape.schema
        made["requestBody"] = {"required": True, "content": {route.body: content}}
    return made


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
        for name, text in NAME_HELP.items()
        if "{" + name + "}" in route.template
    ]


def _query_parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": "query",
        "required": False,
        "description": parameter.help,
        "schema": _schema(parameter),
    }


def _schema(parameter: Parameter) -> dict[str, Any]:
    match parameter.kind:
        case "integer":
            made: dict[str, Any] = {"type": "integer", "format": "int64", "minimum": parameter.least}
            if parameter.most != INTEGER_MAX:
                made["maximum"] = parameter.most
            if parameter.default is not None:
                made["default"] = int(parameter.default)
            return made
        case "boolean":
            return {"type": "boolean", "default": False}
        case "choice":
            made = {"type": "string", "enum": list(parameter.choices)}
        case "seconds":
            made = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s)?$"}
        case _:
            made = {"type": "string"}
    if parameter.default is not None:
        made["default"] = parameter.default
    return made


def _header_parameter(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": HEADER_HELP[name],
        "schema": {"type": "string"},
    }


def _answer(route: Route, status: int, text: str) -> dict[str, Any]:
    made: dict[str, Any] = {"description": text, "headers": _headers(headers_of(route, status))}
    if status not in (304, 307):
        made["content"] = {kind: _content(route, kind) for kind in route.produces}
    return made


def _content(route: Route, kind: str) -> dict[str, Any]:
    if kind == JSON and route.name in ANSWERS:
        shape = ANSWERS[route.name]
        return {"schema": shape.schema, "example": shape.example}
    if kind == NDJSON and route.name in LINES:
        return {"schema": {**TEXT, "contentMediaType": NDJSON}, "example": LINES[route.name]}
    return {}


def headers_of(route: Route, status: int) -> tuple[str, ...]:
    """Those of one answer that is no problem, beside the ones of every answer."""
    found = []
    if status in (202, 307):
        found.append("Location")
    if route.name in _TAGGED and status != 307:
        found.append("ETag")
    if CONSISTENCY in route.parameters:
        found += ["Raftkv-Consistency", "Raftkv-Applied-Revision"]
    if "Idempotency-Key" in route.headers and status != 307:
        found.append("Raftkv-Replayed")
    if route.name == "list_keys":
        found.append("Raftkv-Next-Cursor")
    if route.name in ("get_key", "livez", "readyz", "startupz"):
        found.append("Cache-Control")
    if route.name == "get_key":
        found.append("X-Content-Type-Options")
    return tuple(found)


_TAGGED = {"get_key", "put_key", "change_key", "get_snapshot_manifest", "get_snapshot_chunk"}


def _headers(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*COMMON_HEADERS, *names)}


def codes_of(route: Route) -> tuple[str, ...]:
    """Every problem that the route may answer."""
    return tuple(dict.fromkeys((*EVERYWHERE, *_DENIALS.get(route.access, _OF_TOKENS), *route.problems)))


_OF_TOKENS = ("unauthenticated", "forbidden", "rate_limited")
_DENIALS: dict[Access, tuple[str, ...]] = {"open": (), "token": ("unauthenticated", "rate_limited")}


def _problems(route: Route) -> dict[str, Any]:
    """One answer a status, which names its codes."""
    by_status: dict[int, list[str]] = {}
    for code in codes_of(route):
        by_status.setdefault(STATUS_BY_CODE[code].status, []).append(code)
    return {
        str(status): {
            "description": " or ".join(f"`{code}`: {STATUS_BY_CODE[code].title}" for code in codes),
            "headers": _headers(_headers_of_problems(codes)),
            "content": {
                PROBLEM: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes},
                }
            },
            "x-codes": codes,
        }
        for status, codes in sorted(by_status.items())
    }


def _headers_of_problems(codes: list[str]) -> tuple[str, ...]:
    rows = [STATUS_BY_CODE[code] for code in codes]
    found = ["Retry-After"] if any(row.retry_after_seconds is not None for row in rows) else []
    found += ["WWW-Authenticate"] if "unauthenticated" in codes else []
    found += ["Allow"] if "method_not_allowed" in codes else []
    found += ["ETag"] if "precondition_failed" in codes else []
    found += ["Raftkv-Consistency", "Raftkv-Applied-Revision"] if "key_not_found" in codes else []
    return tuple(found)


def headers() -> dict[str, Any]:
    return {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in (COMMON_HEADERS | ANSWER_HEADERS).items()
    }


def examples() -> dict[str, Any]:
    """A problem for each code."""
    return {
        code: {
            "value": {
                "type": f"/docs#{code}",
                "title": row.title,
                "status": row.status,
                "detail": PROBLEM_DETAILS.get(code, row.title),
                "code": code,
                "request_id": "8c5bba949a94-28",
            }
        }
        for code, row in sorted(STATUS_BY_CODE.items())
    }


def responses() -> dict[str, Any]:
    return {
        "Problem": {
            "description": "RFC 9457.",
            "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    }


def schemas() -> dict[str, Any]:
    text, whole = {"type": "string"}, {"type": "integer", "format": "int64"}
    return {
        "Problem": {
            "type": "object",
            "required": ["type", "title", "status", "detail", "code", "request_id"],
            "properties": {
                "type": text,
                "title": text,
                "status": {"type": "integer"},
                "detail": {"type": "string", "description": "What is wrong, and what is allowed."},
                "code": {"type": "string", "enum": sorted(STATUS_BY_CODE)},
                "outcome": {
                    "type": "string",
                    "enum": ["not_applied", "unknown"],
                    "description": "unknown: the write may have happened, or may yet.",
                },
                "retryable": {"type": "boolean"},
                "request_id": text,
                "leader": text,
                "limit": whole,
                "size": whole,
                "flag": text,
                "current": {**whole, "description": "The key's mod_revision; 0: absent."},
            },
        },
        **SCHEMAS,
    }
