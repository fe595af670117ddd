"""JSON bodies: a transaction, and a line of a batch. PURE.

Both are decoded against a schema that forbids what it does not know, so a misspelt member is a 400 and
never an operation without its condition. An export's lines are a batch's lines: `op` is `put` where it is
missing, and the revisions that an export adds are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from raftkv.api.limits import Limits
from raftkv.api.wire import (
    INTEGER_MAX,
    INTEGER_MIN,
    check_idempotency_key,
    check_key,
    check_value,
    decode_base64,
    shown,
    stored_content_type,
)
from raftkv.errors import BadRequest, BodyTooLarge, RaftkvError
from raftkv.kv.command import (
    Append,
    Compare,
    CompareOperator,
    CompareTarget,
    Condition,
    Delete,
    Get,
    Increment,
    Operation,
    Put,
    Transaction,
)
from raftkv.model import DEFAULT_CONTENT_TYPE

Text = str | UnsetType


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    pass


class PutBody(_Body):
    key: str
    value: Text = UNSET
    base64: Text = UNSET
    json: msgspec.Raw | UnsetType = UNSET
    content_type: str | None = None
    prev: bool = False


class DeleteBody(_Body):
    key: str
    prev: bool = False


class GetBody(_Body):
    key: str


class AppendBody(_Body):
    key: str
    value: Text = UNSET
    base64: Text = UNSET
    content_type: str | None = None


class IncrementBody(_Body):
    key: str
    by: int = 1


class CompareBody(_Body):
    key: str
    target: CompareTarget
    op: CompareOperator = "=="
    value: str | int | bool | UnsetType = UNSET
    base64: Text = UNSET


class OperationBody(_Body):
    put: PutBody | UnsetType = UNSET
    delete: DeleteBody | UnsetType = UNSET
    get: GetBody | UnsetType = UNSET
    append: AppendBody | UnsetType = UNSET
    incr: IncrementBody | UnsetType = UNSET


class TransactionBody(_Body):
    compare: list[CompareBody] = []
    success: list[OperationBody] = []
    failure: list[OperationBody] = []


class LineBody(_Body):
    """One line of a batch. What stands behind `prev` is an export's, and passed over."""

    op: Literal["put", "delete", "append", "incr", "get"] = "put"
    key: Text = UNSET
    value: Text = UNSET
    base64: Text = UNSET
    json: msgspec.Raw | UnsetType = UNSET
    content_type: str | None = None
    by: int | UnsetType = UNSET
    if_revision: int | UnsetType = UNSET
    idempotency_key: Text = UNSET
    prev: bool = False
    create_revision: int | UnsetType = UNSET
    mod_revision: int | UnsetType = UNSET
    version: int | UnsetType = UNSET
    end: bool = msgspec.field(name="_end", default=False)
    count: int | UnsetType = UNSET
    revision: int | UnsetType = UNSET
    sha256: Text = UNSET


class PlainPut(_Body, gc=False):
    """What most lines are, so that many can be decoded in one call: all that a put may have but a document,
    in members of which none needs to be checked against `op`."""

    key: str
    value: Text = UNSET
    base64: Text = UNSET
    op: Literal["put"] = "put"
    content_type: str | None = None
    if_revision: int | UnsetType = UNSET
    idempotency_key: Text = UNSET
    prev: bool = False
    create_revision: int | UnsetType = UNSET
    mod_revision: int | UnsetType = UNSET
    version: int | UnsetType = UNSET


_TARGETS = "value, mod_revision, create_revision, version or exists"
_OPERATIONS = "one of put, delete, get, append, incr"
_LINE = "op, key, value, base64, json, content_type, by, if_revision, idempotency_key, prev"
# What is allowed at a place that a schema error names, by the last name of its path.
_ALLOWED = {
    "": "compare, success, failure",
    "compare": "key, target, op, value, base64",
    "success": _OPERATIONS,
    "failure": _OPERATIONS,
    "put": "key, value or base64 or json, content_type, prev",
    "append": "key, value or base64, content_type",
    "delete": "key, prev",
    "get": "key",
    "incr": "key, by",
    "target": _TARGETS,
    "op": "==, !=, < or >",
}
_LINE_ALLOWED = {"": _LINE, "op": "put, delete, append, incr or get"}

_transaction_decoder = msgspec.json.Decoder(TransactionBody)
_line_decoder = msgspec.json.Decoder(LineBody)
_plain_decoder = msgspec.json.Decoder(PlainPut)


# --- a transaction ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParsedTransaction:
    """The command, and for each branch which of its operations asked for the value before."""

    command: Transaction
    success_prevs: tuple[bool, ...]
    failure_prevs: tuple[bool, ...]


def parse_transaction(body: bytes, limits: Limits) -> ParsedTransaction:
    """Raises BadRequest, KeyTooLarge, ValueTooLarge, BodyTooLarge."""
    _check_utf8(body, "body")
    try:
        parsed = _transaction_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest(_explain(error, "body", body, _ALLOWED)) from error
    count = len(parsed.compare) + len(parsed.success) + len(parsed.failure)
    if count > limits.transaction_operations_max:
        flag = limits.flag("transaction_operations_max")
        raise BodyTooLarge(
            f"body: the transaction has {count} compares and operations; at most "
            f"{limits.transaction_operations_max} are allowed ({flag})",
            limit=limits.transaction_operations_max,
            size=count,
            flag=flag,
        )
    if not count:
        raise BadRequest("body: the transaction is empty; allowed are lists compare, success and failure")
    success = [_operation(each, f"success[{n}]", limits) for n, each in enumerate(parsed.success)]
    failure = [_operation(each, f"failure[{n}]", limits) for n, each in enumerate(parsed.failure)]
    compare = tuple(_compare(each, f"compare[{n}]", limits) for n, each in enumerate(parsed.compare))
    return ParsedTransaction(
        Transaction(compare, tuple(success), tuple(failure)),
        tuple(isinstance(each, Put | Delete) and each.return_previous for each in success),
        tuple(isinstance(each, Put | Delete) and each.return_previous for each in failure),
    )


def _operation(body: OperationBody, at: str, limits: Limits) -> Operation:
    given = [
        each
        for each in (body.put, body.delete, body.get, body.append, body.incr)
        if not isinstance(each, UnsetType)
    ]
    if len(given) != 1:
        raise BadRequest(f"{at}: it has {len(given)} operations; allowed is {_OPERATIONS}")
    match given[0]:
        case PutBody() as put:
            value, content_type = _put_value(
                put.value, put.base64, put.json, put.content_type, at + ".put", limits
            )
            return Put(_key(put.key, at + ".put", limits), value, content_type, None, put.prev)
        case DeleteBody() as delete:
            return Delete(_key(delete.key, at + ".delete", limits), None, delete.prev)
        case GetBody() as get:
            return Get(_key(get.key, at + ".get", limits))
        case AppendBody() as append:
            value = _value(append.value, append.base64, at + ".append", limits)
            kind = stored_content_type(append.content_type, f"{at}.append.content_type", limits)
            return Append(_key(append.key, at + ".append", limits), value, limits.value_bytes_max, kind)
        case IncrementBody() as incr:
            return Increment(_key(incr.key, at + ".incr", limits), _by(incr.by, at + ".incr"))


def _compare(body: CompareBody, at: str, limits: Limits) -> Compare:
    key = _key(body.key, at, limits)
    expected: object = body.value
    if not isinstance(body.base64, UnsetType):
        if body.target != "value" or not isinstance(body.value, UnsetType):
            raise BadRequest(f"{at}.base64: it stands in the place of value, and only for target value")
        return Compare(key, "value", body.op, decode_base64(body.base64, at + ".base64"))
    if body.target == "value":
        if not isinstance(expected, str):
            raise BadRequest(f"{at}.value: {_json_type(expected)} is not allowed; allowed is text, or base64")
        return Compare(key, "value", body.op, _text(expected, at + ".value"))
    if body.target == "exists":
        if not isinstance(expected, bool):
            raise BadRequest(f"{at}.value: {_json_type(expected)} is not allowed; allowed is true or false")
        if body.op not in ("==", "!="):
            raise BadRequest(f"{at}.op: {body.op} is not allowed for target exists; allowed is == or !=")
        return Compare(key, "exists", body.op, expected)
    if isinstance(expected, bool) or not isinstance(expected, int) or not 0 <= expected <= INTEGER_MAX:
        raise BadRequest(
            f"{at}.value: {_json_type(expected)} is not allowed for target {body.target}; "
            f"allowed is a whole number from 0 to {INTEGER_MAX}"
        )
    return Compare(key, body.target, body.op, expected)


# --- a line of a batch -----------------------------------------------------------------------------------


class Line(msgspec.Struct, frozen=True, gc=False):
    """`operation` is None for the last line of an export, which says nothing to do."""

    operation: Put | Delete | Append | Increment | Get | None
    idempotency_key: bytes | None = None
    prev: bool = False


def parse_lines(lines: Sequence[bytes], limits: Limits) -> list[Line | RaftkvError]:
    """Each as `parse_line` has it, or what that raises; in a fraction of the time where all are plain puts.
    No line is longer than allowed, or holds a line end."""
    plain = _plain_puts(lines)
    made: list[Line | RaftkvError] = []
    for line in lines if plain is None else plain:
        try:
            made.append(parse_line(line, limits) if isinstance(line, bytes) else _plain_line(line, limits))
        except RaftkvError as error:
            made.append(error)
    return made


def _plain_puts(lines: Sequence[bytes]) -> Sequence[PlainPut] | None:
    """None unless each line is one JSON object that is a plain put.

    The decoder takes values as they follow one another, wherever lines end. Here each line begins with { and
    ends with }; after that } no value that began before it can go on with a {, so each line holds whole
    values only, and as many values as lines are one a line.
    """
    whole = b"\n".join(lines)
    if whole[:1] != b"{" or whole[-1:] != b"}" or whole.count(b"}\n{") != len(lines) - 1:
        return None
    try:
        _check_utf8(whole, "lines")
        found = _plain_decoder.decode_lines(whole)
    except (BadRequest, msgspec.MsgspecError, RecursionError):
        return None
    return found if len(found) == len(lines) else None


def _plain_line(body: PlainPut, limits: Limits) -> Line:
    """As `parse_line`, from where the line is decoded."""
    key = check_key(_text(body.key, "line.key"), "line.key", limits)
    condition = None if body.if_revision is UNSET else _revision_condition(body.if_revision)
    name = None if body.idempotency_key is UNSET else _idempotency_key(body.idempotency_key)
    kind = DEFAULT_CONTENT_TYPE
    if body.content_type is not None:
        kind = stored_content_type(body.content_type, "line.content_type", limits)
    value = _value(body.value, body.base64, "line", limits)
    return Line(Put(key, value, kind, condition, body.prev), name, body.prev)


def parse_line(line: bytes, limits: Limits) -> Line:
    """Raises BadRequest, KeyTooLarge, ValueTooLarge."""
    _check_utf8(line, "line")
    try:
        body = _line_decoder.decode(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest(_explain(error, "line", line, _LINE_ALLOWED)) from error
    if body.end:
        return Line(None)
    _check_members(body)
    if isinstance(body.key, UnsetType):
        raise BadRequest("line: it has no key; allowed are 1 to 4096 bytes of UTF-8")
    key = _key(body.key, "line", limits)
    condition = None if body.if_revision is UNSET else _revision_condition(body.if_revision)
    name = None if body.idempotency_key is UNSET else _idempotency_key(body.idempotency_key)
    return Line(_line_operation(body, key, condition, limits), name, body.prev)


def _revision_condition(revision: int) -> Condition:
    if not 0 <= revision <= INTEGER_MAX:
        raise BadRequest(f"line.if_revision: {revision} is not allowed; allowed is a whole number from 0")
    return Condition(revision)


def _idempotency_key(key: str) -> bytes:
    return check_idempotency_key(key, "line.idempotency_key")


def _line_operation(
    body: LineBody, key: bytes, condition: Condition | None, limits: Limits
) -> Put | Delete | Append | Increment | Get:
    match body.op:
        case "put":
            value, content_type = _put_value(
                body.value, body.base64, body.json, body.content_type, "line", limits
            )
            return Put(key, value, content_type, condition, body.prev)
        case "append":
            value = _value(body.value, body.base64, "line", limits)
            kind = stored_content_type(body.content_type, "line.content_type", limits)
            return Append(key, value, limits.value_bytes_max, kind, condition)
        case "delete":
            return Delete(key, condition, body.prev)
        case "incr":
            return Increment(key, _by(1 if isinstance(body.by, UnsetType) else body.by, "line"), condition)
        case "get":
            return Get(key)


_MEMBERS = {
    "put": {"value", "base64", "json", "content_type", "if_revision", "idempotency_key", "prev"}
    | {"create_revision", "mod_revision", "version"},
    "append": {"value", "base64", "content_type", "if_revision", "idempotency_key"},
    "delete": {"if_revision", "idempotency_key", "prev"},
    "incr": {"by", "if_revision", "idempotency_key"},
    "get": set[str](),
}
# Of each operation, the members that it does not take.
_FOREIGN = {
    op: tuple(name for name in LineBody.__struct_fields__ if name not in {"op", "key", "end"} | allowed)
    for op, allowed in _MEMBERS.items()
}


def _check_members(body: LineBody) -> None:
    """A member that its operation does not take is a mistake, and never silently without effect."""
    for name in _FOREIGN[body.op]:
        given = getattr(body, name)
        if given is not UNSET and given is not None and given is not False:
            names = ", ".join(["key", *sorted(_MEMBERS[body.op])])
            raise BadRequest(f"line.{name}: op {body.op} does not take it; allowed: {names}")


# --- members ---------------------------------------------------------------------------------------------


def _key(key: str, at: str, limits: Limits) -> bytes:
    return check_key(_text(key, f"{at}.key"), f"{at}.key", limits)


def _value(value: Text, encoded: Text, at: str, limits: Limits) -> bytes:
    if (value is UNSET) == (encoded is UNSET):
        raise BadRequest(f"{at}: the value is missing or there twice; allowed is one of value and base64")
    if not isinstance(value, UnsetType):
        return check_value(_text(value, at + ".value"), at + ".value", limits)
    assert not isinstance(encoded, UnsetType)
    return check_value(decode_base64(encoded, f"{at}.base64"), f"{at}.base64", limits)


def _put_value(
    value: Text,
    encoded: Text,
    document: msgspec.Raw | UnsetType,
    content_type: str | None,
    at: str,
    limits: Limits,
) -> tuple[bytes, str]:
    """`(value, content type)`; a document is kept as it was written, and is JSON unless its type is given."""
    if isinstance(document, UnsetType):
        kind = stored_content_type(content_type, f"{at}.content_type", limits)
        return _value(value, encoded, at, limits), kind
    if not isinstance(value, UnsetType) or not isinstance(encoded, UnsetType):
        raise BadRequest(f"{at}: the value is there twice; allowed is one of value, base64 and json")
    kind = stored_content_type(content_type or "application/json", f"{at}.content_type", limits)
    return check_value(bytes(document), f"{at}.json", limits), kind


def _by(by: int, at: str) -> int:
    if not INTEGER_MIN <= by <= INTEGER_MAX:
        raise BadRequest(
            f"{at}.by: {by} is not allowed; allowed is a whole number from {INTEGER_MIN} to {INTEGER_MAX}"
        )
    return by


def _text(text: str, at: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{at}: it holds half a surrogate pair; allowed is any Unicode text") from error


def _json_type(value: object) -> str:
    if isinstance(value, UnsetType):
        return "nothing"
    return f"{'true' if value is True else 'false' if value is False else shown(str(value))}"


def _check_utf8(body: bytes, what: str) -> None:
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"{what}: byte {error.start} of it is not UTF-8; allowed is JSON in UTF-8 (bytes go as base64)"
        ) from error


_PLACE = re.compile(r" - at `\$([^`]*)`$")
_LAST_NAME = re.compile(r"\.([a-z_]+)(?:\[(?:\d+|\.\.\.)\])?$")


def _explain(error: Exception, what: str, body: bytes, allowed_at: dict[str, str]) -> str:
    """The decoder's words, where in the body, and what is allowed there."""
    if isinstance(error, RecursionError):
        return f"{what}: it is nested too deeply; allowed are a few hundred levels"
    if not body.strip():
        return f"{what}: it is empty; allowed is a JSON object with {allowed_at['']}"
    text = str(error)
    place = _PLACE.search(text)
    path = place[1] if place else ""
    if place:
        text = text[: place.start()]
    last = _LAST_NAME.search(path)
    allowed = allowed_at.get(last[1] if last else "", "")
    told = f"; allowed: {allowed}" if allowed else ""
    return f"{what}{path}: {text[:1].lower()}{text[1:]}{told}"
