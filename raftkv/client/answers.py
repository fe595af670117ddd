"""What the client gives back: typed results, and typed errors that carry the problem document. PURE.

Every error says what became of a write: `outcome` is `not_applied` where it certainly did not and will
not happen, `unknown` where it may have happened or may yet.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from raftkv.errors import Outcome

Json = dict[str, Any]


# --- results -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Value:
    """A key's bytes. `revision` is its mod_revision: what `if_revision` compares with. `age_ms`: where the
    client's cache answered without asking, how long ago at most this was surely the key's value; else 0."""

    value: bytes
    content_type: str
    revision: int
    age_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Item:
    """A key with all that is remembered of it. `value` is None where only keys were asked for."""

    key: str
    value: bytes | None
    content_type: str
    create_revision: int
    mod_revision: int
    version: int


@dataclass(frozen=True, slots=True)
class Written:
    """`replayed`: the stored outcome of an earlier attempt under the same idempotency key."""

    revision: int
    created: bool
    previous: Item | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Deleted:
    """`more`: a prefix delete reached its limit, and keys are left."""

    revision: int
    deleted: int
    more: bool = False
    previous: Item | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Appended:
    revision: int
    length: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Incremented:
    revision: int
    value: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """`responses` as the node sent them: one object an operation of the branch that ran."""

    succeeded: bool
    revision: int
    responses: tuple[Json, ...]
    replayed: bool = False


# --- errors --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """An `application/problem+json` answer, or what stands for one where no node answered (`status` 0)."""

    status: int
    code: str
    detail: str
    outcome: Outcome
    retryable: bool
    request_id: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


class ClientError(Exception):
    """Base of all that the client raises about a request."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.code}: {problem.detail}" if problem.detail else problem.code)
        self.problem = problem

    @property
    def outcome(self) -> Outcome:
        return self.problem.outcome


class NotFound(ClientError):
    """No such key, or no such snapshot."""


class PreconditionFailed(ClientError):
    """The write's condition did not hold. `current` is the key's revision then: 0 where it is absent,
    None where the answer did not say."""

    def __init__(self, problem: Problem, current: int | None) -> None:
        super().__init__(problem)
        self.current = current


class BadRequest(ClientError):
    """The request was refused and will be again: malformed, too large, forbidden, not a number …"""


class Unavailable(ClientError):
    """No node took the request before the deadline. A write was certainly not applied."""


class OutcomeUnknown(ClientError):
    """The write may have happened, or may yet. Read before writing again."""


class StreamCut(ClientError):
    """An export or a batch ended before its end, or what came does not match its checksum."""


class NotARaftkv(ClientError):
    """What answered does not speak raftkv's HTTP."""


# --- answers of a node ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer. `headers` by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Json:
        try:
            document = msgspec.json.decode(self.body)
        except msgspec.MsgspecError as error:
            raise not_a_raftkv(f"status {self.status} with a body that is no JSON: {error}") from None
        if not isinstance(document, dict):
            raise not_a_raftkv(f"status {self.status} with a JSON {type(document).__name__}, not an object")
        return document

    @property
    def replayed(self) -> bool:
        return self.headers.get("raftkv-replayed") == "true"


def problem_of(answer: Answer, *, write: bool) -> Problem:
    """The problem that an answer of 4xx or 5xx stands for. What is not problem+json came from something
    between us and the node: below 500 it refused, from 500 on a write may have gone through behind it."""
    document: Json = {}
    if answer.headers.get("content-type", "").startswith("application/problem+json"):
        try:
            document = answer.json()
        except NotARaftkv:
            document = {}
    if not document and answer.body and answer.status < 500:
        document = {"detail": answer.body[:200].decode(errors="replace")}
    vague = answer.status >= 500
    outcome = document.get("outcome")
    default: Outcome = "unknown" if vague and write else "not_applied"
    return Problem(
        status=answer.status,
        code=str(document.get("code", f"http_{answer.status}")),
        detail=str(document.get("detail", "")),
        outcome=outcome if outcome in ("not_applied", "unknown") else default,
        retryable=bool(document.get("retryable", vague)),
        request_id=str(document.get("request_id", answer.headers.get("request-id", ""))),
        fields=document,
    )


def error_of(problem: Problem, headers: Mapping[str, str]) -> ClientError:
    """The exception for a problem that is not tried again."""
    if problem.outcome == "unknown":
        return OutcomeUnknown(problem)
    if problem.code in ("key_not_found", "token_not_found", "snapshot_missing", "no_such_member"):
        return NotFound(problem)
    if problem.code == "precondition_failed":
        return PreconditionFailed(problem, problem.fields.get("current", revision_of(headers)))
    if problem.retryable or problem.status >= 500 or problem.status == 429:
        return Unavailable(problem)
    return BadRequest(problem)


def revision_of(headers: Mapping[str, str]) -> int | None:
    """The number in an ETag, if there is one."""
    tag = headers.get("etag", "").strip('"')
    return int(tag) if tag.isascii() and tag.isdigit() else None


def not_a_raftkv(detail: str) -> NotARaftkv:
    return NotARaftkv(Problem(0, "not_raftkv", detail, "unknown", retryable=False))


def item_of(document: Mapping[str, Any]) -> Item:
    """An item from its JSON envelope."""
    try:
        return Item(
            key=document["key"],
            value=value_of(document),
            content_type=document.get("content_type", ""),
            create_revision=document["create_revision"],
            mod_revision=document["mod_revision"],
            version=document["version"],
        )
    except KeyError as error:
        raise not_a_raftkv(f"an item without {error}") from None


def value_of(document: Mapping[str, Any]) -> bytes | None:
    """`value` is UTF-8 text, `base64` any bytes; None where there is neither."""
    if "value" in document:
        return str(document["value"]).encode()
    if "base64" in document:
        try:
            return base64.b64decode(document["base64"], validate=True)
        except (binascii.Error, TypeError) as error:
            raise not_a_raftkv(f"an item with unreadable base64: {error}") from None
    return None


def fields_of_value(value: bytes) -> Json:
    """The other way: `{"value": …}` where the bytes are UTF-8, else `{"base64": …}`."""
    try:
        return {"value": value.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
