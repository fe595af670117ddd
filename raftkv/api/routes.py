"""The one table of routes: what the server dispatches from and the OpenAPI document is made from. PURE.

A path is matched as its raw bytes. `/v1/kv/` is followed by a key, whatever stands there; every other route
is a literal path, or has names among its parts. `/v1/kv?key=` names the same operations as
`/v1/kv/{key}`, for clients behind proxies that rewrite paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from raftkv.api.errors import MethodNotAllowed, NoSuchRoute, NotImplementedHere
from raftkv.api.wire import JSON, NDJSON, Parameter, shown
from raftkv.errors import BadRequest
from raftkv.model import DEFAULT_CONTENT_TYPE

Effect = Literal["read", "write", "node"]  # of the store, of the store, of this node alone

# Whom a route is for, where tokens are asked for; `access/caller.py` has what each needs.
Access = Literal[
    "open",  # anyone, without a token
    "token",  # whoever has a token of this cluster, whatever it permits
    "read_key",
    "write_key",
    "read_range",
    "write_range",
    "operations",  # whoever has a token; each operation in the body is checked by itself
    "tokens",  # administrators, within their own prefixes
    "cluster",  # administrators of every key
]

KEY_PREFIX = b"/v1/kv/"
KEY_TEMPLATE = "/v1/kv/{key}"
STORE_TEMPLATE = "/v1/kv"

# Everything that some method could be; others are answered 501 rather than 405 (RFC 9110 §9.1).
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT")


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `answers` says what each status that is no problem means; `problems` are codes. There is
    no default for `access`: a route that does not say whom it is for can't be made."""

    name: str
    method: str
    template: str
    summary: str
    effect: Effect
    answers: Mapping[int, str]
    parameters: tuple[Parameter, ...] = ()
    headers: tuple[str, ...] = ()
    body: str | None = None
    produces: tuple[str, ...] = (JSON,)
    problems: tuple[str, ...] = ()
    access: Access = field(kw_only=True)
    by_name: Mapping[str, Parameter] = field(init=False, repr=False, compare=False)

    @property
    def audited(self) -> bool:
        return self.access in ("tokens", "cluster") and self.name not in _NOT_AUDITED

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {each.name: each for each in self.parameters})


# --- parameters ------------------------------------------------------------------------------------------

KEY = Parameter("key", "key", "The key, where the path can't carry it: proxies fold // and decode %2F.")
TIMEOUT = Parameter("timeout", "seconds", "How long to wait at most, such as 2.5 or 500ms.", default="5")
CONSISTENCY = Parameter(
    "consistency",
    "choice",
    "linearizable: reflects every write acknowledged before it began. stale: this node's state, at once.",
    choices=("linearizable", "stale"),
    default="linearizable",
)
MIN_REVISION = Parameter("min_revision", "integer", "Wait until this node has applied that revision.")
MAX_STALENESS = Parameter(
    "max_staleness_ms", "integer", "503 where this node has been without its leader for longer."
)
IF_REVISION = Parameter(
    "if_revision", "integer", "Only if the key's mod_revision is this (0: absent); as If-Match."
)
PREV = Parameter("prev", "boolean", "Also answer with the value before, as an envelope.")
FORMAT = Parameter("format", "choice", "The bytes as they are, or the envelope.", choices=("raw", "json"))
LIMIT = Parameter("limit", "integer", "Items on a page at most.", least=1, default="1000")
DELETE_LIMIT = Parameter("limit", "integer", "Keys to delete at most.", least=1, default="10000")
PREFIX = Parameter("prefix", "bytes", "Only keys that start with this.")
OP = Parameter("op", "choice", "What to do with the key.", choices=("append", "incr"))
BY = Parameter("by", "integer", "What to add.", least=-(1 << 63), default="1")
VERBOSE = Parameter("verbose", "boolean", "Say what was checked.")
DRY_RUN = Parameter("dry_run", "boolean", "Only say what the quorum would be.")

FRESHNESS = (CONSISTENCY, MIN_REVISION, MAX_STALENESS, TIMEOUT)

# --- problems --------------------------------------------------------------------------------------------

EVERYWHERE = (
    "bad_request",
    "no_such_route",
    "method_not_allowed",
    "request_timeout",
    "key_too_large",
    "headers_too_large",
    "overloaded",
    "internal",
    "not_implemented",
    "http_version",
)
READ = ("no_leader", "not_ready", "too_stale")
WRITE = (
    "in_flight",
    "idempotency_mismatch",
    "idempotency_expired",
    "no_leader",
    "not_leader",
    "not_ready",
    "draining",
    "commit_timeout",
    "leader_changed",
)
GROW = ("quota_exceeded", "disk_space_low", "memory_low")
CONDITIONAL = ("precondition_failed",)
STORE = ("not_ready", "store_unavailable")
TO_LEADER = ("no_leader", "not_leader", "not_ready", "draining")
CHANGE = (*TO_LEADER, "change_in_flight", "quorum_at_risk", "commit_timeout", "leader_changed")
BODY = ("value_too_large", "body_too_large", "unsupported_media_type")

WRITE_HEADERS = ("Idempotency-Key", "Raftkv-Route", "Request-Id")
CONDITION_HEADERS = ("If-Match", "If-None-Match")
REDIRECT = {307: "Another node leads: the same request goes to Location."}

# --- the table -------------------------------------------------------------------------------------------

_ON_KEY: tuple[Route, ...] = (
    Route(
        "get_key",
        "GET",
        KEY_TEMPLATE,
        "Read one key",
        "read",
        {200: "The value's bytes under its Content-Type, or the envelope.", 304: "If-None-Match holds."},
        (FORMAT, *FRESHNESS),
        ("If-Match", "If-None-Match", "Request-Id"),
        produces=("*/*", JSON),
        problems=(*READ, "key_not_found", *CONDITIONAL),
        access="read_key",
    ),
    Route(
        "put_key",
        "PUT",
        KEY_TEMPLATE,
        "Write one key",
        "write",
        {200: "Replaced.", 201: "Created.", **REDIRECT},
        (IF_REVISION, PREV, TIMEOUT),
        (*CONDITION_HEADERS, "Content-Type", *WRITE_HEADERS),
        body="*/*",
        problems=(*WRITE, *GROW, *CONDITIONAL, *BODY),
        access="write_key",
    ),
    Route(
        "delete_key",
        "DELETE",
        KEY_TEMPLATE,
        "Delete one key",
        "write",
        {200: "deleted is 1, or 0 where it was absent.", **REDIRECT},
        (IF_REVISION, PREV, TIMEOUT),
        (*CONDITION_HEADERS, *WRITE_HEADERS),
        problems=(*WRITE, *CONDITIONAL),
        access="write_key",
    ),
    Route(
        "change_key",
        "POST",
        KEY_TEMPLATE,
        "Append to one key, or add to it",
        "write",
        {200: "The revision, and the value's length (append) or the sum (incr).", **REDIRECT},
        (OP, BY, IF_REVISION, TIMEOUT),
        (*CONDITION_HEADERS, "Content-Type", *WRITE_HEADERS),
        body="*/*",
        problems=(*WRITE, *GROW, *CONDITIONAL, *BODY, "not_a_number"),
        access="write_key",
    ),
)

ROUTES: tuple[Route, ...] = (
    *_ON_KEY,
    Route(
        "list_keys",
        "GET",
        STORE_TEMPLATE,
        "Read a range of keys, in key order, by pages",
        "read",
        {200: "One page, as it was at its revision."},
        (
            PREFIX,
            Parameter("start", "bytes", "Only keys from this one on."),
            Parameter("end", "bytes", "Only keys below this one."),
            LIMIT,
            Parameter("cursor", "text", "The next_cursor of the page before."),
            Parameter("keys_only", "boolean", "Leave the values out."),
            Parameter(
                "delimiter", "bytes", "Fold keys that share what stands up to this, behind the prefix."
            ),
            *FRESHNESS,
        ),
        ("Accept", "Request-Id"),
        produces=(JSON, NDJSON),
        problems=READ,
        access="read_range",
    ),
    Route(
        "delete_prefix",
        "DELETE",
        STORE_TEMPLATE,
        "Delete keys by prefix, atomically",
        "write",
        {200: "How many were deleted, and whether there are more.", **REDIRECT},
        (
            PREFIX,
            DELETE_LIMIT,
            Parameter("all", "boolean", "Every key: what an empty prefix needs."),
            TIMEOUT,
        ),
        WRITE_HEADERS,
        problems=WRITE,
        access="write_range",
    ),
    Route(
        "transact",
        "POST",
        "/v1/txn",
        "Several operations, all or none, on a condition",
        "write",
        {200: "The branch that ran, and an answer for each of its operations.", **REDIRECT},
        (TIMEOUT,),
        ("Content-Type", *WRITE_HEADERS),
        body=JSON,
        problems=(*WRITE, *GROW, *BODY, "not_a_number"),
        access="operations",
    ),
    Route(
        "batch",
        "POST",
        "/v1/batch",
        "Many single operations, pipelined; not atomic",
        "write",
        {200: "A line for each line, in order, each with its own status.", **REDIRECT},
        (TIMEOUT,),
        ("Content-Type", *WRITE_HEADERS),
        body=NDJSON,
        produces=(NDJSON,),
        problems=("no_leader", "not_leader", "draining", "unsupported_media_type"),
        access="operations",
    ),
    Route(
        "export",
        "GET",
        "/v1/export",
        "Every key of one revision",
        "read",
        {200: "An item a line in key order; the last line has _end, count, revision and sha256."},
        (PREFIX, *FRESHNESS),
        ("Request-Id",),
        produces=(NDJSON,),
        problems=READ,
        access="read_range",
    ),
    Route(
        "status",
        "GET",
        "/v1/status",
        "What this node knows of itself and its cluster",
        "node",
        {200: "Always answered, from what the node knows."},
        access="token",
    ),
    Route(
        "limits",
        "GET",
        "/v1/limits",
        "Every limit, and the flag that sets it",
        "node",
        {200: "The limits in force."},
        access="token",
    ),
    Route(
        "cluster",
        "GET",
        "/v1/cluster",
        "The members",
        "node",
        {200: "Members, as this node sees them."},
        access="token",
    ),
    Route(
        "add_member",
        "POST",
        "/v1/cluster/members",
        "Add a member, as a learner that counts in no quorum",
        "write",
        {200: "The voters and their quorum, before and after.", **REDIRECT},
        (DRY_RUN, TIMEOUT),
        ("Content-Type", "Raftkv-Route", "Request-Id"),
        body=JSON,
        problems=(*CHANGE, "member_exists", "body_too_large", "unsupported_media_type"),
        access="cluster",
    ),
    Route(
        "remove_member",
        "DELETE",
        "/v1/cluster/members/{id}",
        "Remove a member; a leader hands over first",
        "write",
        {200: "The voters and their quorum, before and after.", **REDIRECT},
        (DRY_RUN, TIMEOUT),
        ("Raftkv-Route", "Request-Id"),
        problems=(*CHANGE, "no_such_member", "transfer_failed"),
        access="cluster",
    ),
    Route(
        "promote_member",
        "POST",
        "/v1/cluster/members/{id}/promote",
        "Make a learner a voter, once it has caught up",
        "write",
        {200: "The voters and their quorum, before and after.", **REDIRECT},
        (DRY_RUN, TIMEOUT),
        ("Raftkv-Route", "Request-Id"),
        problems=(*CHANGE, "no_such_member", "not_caught_up"),
        access="cluster",
    ),
    Route(
        "transfer_leadership",
        "POST",
        "/v1/cluster/leader",
        "Hand leadership over, to one member or to the one that is furthest",
        "node",
        {200: "Who leads now.", **REDIRECT},
        (),
        ("Content-Type", "Raftkv-Route", "Request-Id"),
        body=JSON,
        problems=(
            *TO_LEADER,
            "no_such_member",
            "transfer_failed",
            "body_too_large",
            "unsupported_media_type",
        ),
        access="cluster",
    ),
    Route(
        "list_tokens",
        "GET",
        "/v1/tokens",
        "The tokens, without their secrets",
        "read",
        {200: "Those that permit nothing beyond what the caller administers."},
        (TIMEOUT,),
        ("Request-Id",),
        problems=("no_leader", "not_ready"),
        access="tokens",
    ),
    Route(
        "create_token",
        "POST",
        "/v1/tokens",
        "Make a token",
        "write",
        {201: "The only answer that ever has the token itself.", **REDIRECT},
        (TIMEOUT,),
        ("Content-Type", "Raftkv-Route", "Request-Id"),
        body=JSON,
        problems=(
            *TO_LEADER,
            "commit_timeout",
            "leader_changed",
            "too_many_tokens",
            *GROW,
            "body_too_large",
            "unsupported_media_type",
        ),
        access="tokens",
    ),
    Route(
        "revoke_token",
        "DELETE",
        "/v1/tokens/{id}",
        "Revoke a token",
        "write",
        {200: "It lets nobody in any more.", **REDIRECT},
        (TIMEOUT,),
        WRITE_HEADERS,
        problems=(*WRITE, "token_not_found", "last_admin"),
        access="tokens",
    ),
    Route(
        "list_snapshots",
        "GET",
        "/v1/snapshots",
        "The snapshots in the store",
        "node",
        {200: "Newest first; without a store, those of this node."},
        problems=STORE,
        access="cluster",
    ),
    Route(
        "create_snapshot",
        "POST",
        "/v1/snapshots",
        "Take a snapshot and publish it",
        "node",
        {202: "It is on its way: Location names the operation.", **REDIRECT},
        problems=("no_leader", "not_leader", "draining", *STORE),
        access="cluster",
    ),
    Route(
        "get_snapshot",
        "GET",
        "/v1/snapshots/{id}",
        "One snapshot",
        "node",
        {200: "What its manifest says."},
        problems=("snapshot_missing", "snapshot_damaged", *STORE),
        access="cluster",
    ),
    Route(
        "get_snapshot_manifest",
        "GET",
        "/v1/snapshots/{id}/manifest",
        "A snapshot's manifest, as a store keeps it",
        "node",
        {200: "JSON, and in a second line its sha256 in hex."},
        produces=(DEFAULT_CONTENT_TYPE,),
        problems=("snapshot_missing", "snapshot_damaged", *STORE),
        access="cluster",
    ),
    Route(
        "get_snapshot_chunk",
        "GET",
        "/v1/snapshots/{id}/chunks/{number}",
        "A chunk of a snapshot, as it is stored",
        "node",
        {200: "Its bytes, which were verified; ETag is their sha256 in hex."},
        produces=(DEFAULT_CONTENT_TYPE,),
        problems=("snapshot_missing", "snapshot_damaged", *STORE),
        access="cluster",
    ),
    Route(
        "delete_snapshot",
        "DELETE",
        "/v1/snapshots/{id}",
        "Delete a snapshot",
        "node",
        {200: "It is gone."},
        problems=("snapshot_missing", *STORE),
        access="cluster",
    ),
    Route(
        "verify_snapshot",
        "POST",
        "/v1/snapshots/{id}/verify",
        "Read a snapshot back and check every hash",
        "node",
        {202: "It is on its way: Location names the operation."},
        problems=("snapshot_missing", "snapshot_damaged", *STORE),
        access="cluster",
    ),
    Route(
        "get_operation",
        "GET",
        "/v1/operations/{id}",
        "How far something long is",
        "node",
        {200: "Its state, progress and result."},
        problems=("no_such_operation",),
        access="cluster",
    ),
    Route(
        "livez",
        "GET",
        "/livez",
        "Is the process alive? Never depends on a quorum",
        "node",
        {200: "It is."},
        (VERBOSE,),
        access="open",
    ),
    Route(
        "readyz",
        "GET",
        "/readyz",
        "Does a linearizable read succeed here?",
        "node",
        {200: "It does."},
        (VERBOSE, TIMEOUT),
        problems=(*READ, "draining"),
        access="open",
    ),
    Route(
        "startupz",
        "GET",
        "/startupz",
        "Has the node recovered and joined its cluster?",
        "node",
        {200: "It has."},
        (VERBOSE,),
        problems=("not_ready",),
        access="open",
    ),
    Route(
        "metrics",
        "GET",
        "/metrics",
        "Prometheus text",
        "node",
        {200: "Labels by route template, never by key."},
        produces=("text/plain",),
        access="token",
    ),
    Route(
        "openapi",
        "GET",
        "/openapi.json",
        "The OpenAPI 3.1 document",
        "node",
        {200: "This document."},
        access="token",
    ),
    Route(
        "docs",
        "GET",
        "/docs",
        "A page to try it",
        "node",
        {200: "No external resources."},
        produces=("text/html",),
        access="token",
    ),
)

# They change nothing, hold no key, and are asked again and again.
_NOT_AUDITED = frozenset({"list_snapshots", "get_snapshot", "get_operation"})

OPS_ROUTES = frozenset({"livez", "readyz", "startupz", "metrics"})

BY_TEMPLATE: dict[str, dict[str, Route]] = {}
for _route in ROUTES:
    BY_TEMPLATE.setdefault(_route.template, {})[_route.method] = _route

# `/v1/kv?key=` takes one parameter more than `/v1/kv/{key}`.
BY_QUERY: dict[str, Route] = {
    route.method: Route(
        route.name,
        route.method,
        STORE_TEMPLATE,
        route.summary,
        route.effect,
        route.answers,
        (KEY, *route.parameters),
        route.headers,
        route.body,
        route.produces,
        route.problems,
        access=route.access,
    )
    for route in _ON_KEY
}

_LITERAL = {template.encode(): template for template in BY_TEMPLATE if "{" not in template}
_NAME = re.compile(r"\{[a-z]+\}")
_NAMED = [
    (re.compile(b"([^/]+)".join(re.escape(part).encode() for part in _NAME.split(template))), template)
    for template in BY_TEMPLATE
    if template != KEY_TEMPLATE and "{" in template
]


@dataclass(frozen=True, slots=True)
class Match:
    """`rest` is the raw part of the path that the template names: a key or an id, still encoded. Where it
    names two they are joined by a slash, which neither has."""

    route: Route
    rest: bytes | None


def match(method: str, path: bytes, names: list[bytes], *, ops: bool = False) -> Match:
    """The route of a request. `names` are its query's; `ops`: only what the ops listener serves.

    Raises NoSuchRoute, MethodNotAllowed, NotImplementedHere, BadRequest.
    """
    if path.startswith(KEY_PREFIX) and not ops:
        return Match(_choose(method, BY_TEMPLATE[KEY_TEMPLATE], KEY_TEMPLATE), path[len(KEY_PREFIX) :])
    template = _LITERAL.get(path)
    if template is not None:
        if template == STORE_TEMPLATE and not ops:
            return Match(_choose_by_query(method, names), None)
        route = _choose(method, BY_TEMPLATE[template], template)
        if not ops or route.name in OPS_ROUTES:
            return Match(route, None)
    for pattern, template in _NAMED:
        named = None if ops else pattern.fullmatch(path)
        if named is not None:
            return Match(_choose(method, BY_TEMPLATE[template], template), b"/".join(named.groups()))
    raise NoSuchRoute(
        f"there is nothing at {shown(path)}; keys are at /v1/kv/KEY, "
        "and /openapi.json and /docs say what else there is"
    )


def _choose(method: str, routes: Mapping[str, Route], template: str) -> Route:
    route = routes.get("GET" if method == "HEAD" else method)
    if route is not None:
        return route
    if method not in METHODS:
        raise NotImplementedHere(
            f"method {shown(method)} is not implemented; allowed: {', '.join(_allow(routes))}"
        )
    allow = _allow(routes)
    raise MethodNotAllowed(f"{template} does not take {method}; allowed: {', '.join(allow)}", allow=allow)


def _choose_by_query(method: str, names: list[bytes]) -> Route:
    if b"key" in names:
        return _choose(method, BY_QUERY, STORE_TEMPLATE)
    routes = BY_TEMPLATE[STORE_TEMPLATE]
    if method in ("PUT", "POST"):
        raise BadRequest(f"{method} needs a key; allowed is /v1/kv/KEY or /v1/kv?key=KEY")
    return _choose(method, {**BY_QUERY, **routes}, STORE_TEMPLATE)


def _allow(routes: Mapping[str, Route]) -> tuple[str, ...]:
    return tuple(sorted({*routes, *(["HEAD"] if "GET" in routes else [])}))
