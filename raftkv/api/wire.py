"""Between bytes and meaning: request targets, headers, conditions and JSON in; answers out. PURE, no aiohttp.

Works from the raw bytes of the request target. URL libraries normalise: they fold `//`, resolve `..` and
decode `%2F` at the wrong moment, and each of these would make one key out of two. Sources: RFC 3986 §2.1
(percent-encoding), RFC 9110 §8.8.3 and §13 (entity tags, conditions), the WHATWG form encoding for queries
(`+` is a space there, and only there).

Whatever does not parse raises `BadRequest` with the part, the value and what is allowed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

import msgspec

from raftkv.api.errors import ConditionFailed, reason
from raftkv.api.limits import Limits
from raftkv.errors import BadRequest, BodyTooLarge, KeyTooLarge, ValueTooLarge
from raftkv.kv.command import Condition
from raftkv.model import (
    DEFAULT_CONTENT_TYPE,
    Appended,
    Deleted,
    Got,
    Incremented,
    Item,
    TransactionDone,
    Written,
)

JSON = "application/json"
NDJSON = "application/x-ndjson"
FORM = "application/x-www-form-urlencoded"

INTEGER_MIN = -(1 << 63)
INTEGER_MAX = (1 << 63) - 1
SHOWN_MAX = 80  # characters of a refused value that an error repeats


# --- the request target ----------------------------------------------------------------------------------

_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE_FORM = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


def split_target(target: bytes) -> tuple[bytes, bytes | None]:
    """`(path, query)` as they stand; no question mark, query None. Takes the absolute form too."""
    if not target.startswith(b"/"):
        match = _ABSOLUTE_FORM.match(target)
        if match is None:
            raise BadRequest(
                f"request target: {shown(target)} is not a path; "
                "allowed is a path from the root, such as /v1/kv/KEY"
            )
        target = target[match.end() :] or b"/"
    if b"#" in target:
        raise BadRequest("request target: it holds a # as it stands; allowed is %23")
    path, mark, query = target.partition(b"?")
    return path, query if mark else None


def decoded(raw: bytes, what: str, *, form: bool = False) -> bytes:
    """Percent-decoded, and checked to be UTF-8. `form`: a plus sign is a space."""
    if form and b"+" in raw:
        raw = raw.replace(b"+", b" ")
    if b"%" in raw:
        bad = _BAD_PERCENT.search(raw)
        if bad is not None:
            found = raw[bad.start() : bad.start() + 3]
            raise BadRequest(
                f"{what}: bad percent-encoding {shown(found)} at byte {bad.start()} of it; "
                "allowed is % and two hexadecimal digits (a percent sign itself is %25)"
            )
        raw = unquote_to_bytes(raw)
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(
                f"{what}: {raw[error.start : error.end].hex()} at byte {error.start} of it is not UTF-8; "
                "allowed is any UTF-8 text"
            ) from error
    return raw


def check_key(key: bytes, what: str, limits: Limits) -> bytes:
    """The key itself, if it is one."""
    if not key:
        raise BadRequest(f"{what}: the key is empty; allowed are 1 to {limits.key_bytes_max} bytes of UTF-8")
    if len(key) > limits.key_bytes_max:
        raise KeyTooLarge(
            f"{what}: the key has {len(key)} bytes; at most {limits.key_bytes_max} are allowed "
            f"({limits.flag('key_bytes_max')})",
            limit=limits.key_bytes_max,
            size=len(key),
            flag=limits.flag("key_bytes_max"),
        )
    return key


def check_value(value: bytes, what: str, limits: Limits) -> bytes:
    """The value itself, if it is not too large."""
    if len(value) > limits.value_bytes_max:
        raise value_too_large(len(value), what, limits)
    return value


def value_too_large(size: int | None, what: str, limits: Limits) -> ValueTooLarge:
    """`size` is None where the value was refused before its end was seen."""
    has = f"more than {limits.value_bytes_max}" if size is None else str(size)
    return ValueTooLarge(
        f"{what}: the value has {has} bytes; at most {limits.value_bytes_max} are allowed "
        f"({limits.flag('value_bytes_max')})",
        limit=limits.value_bytes_max,
        size=size,
        flag=limits.flag("value_bytes_max"),
    )


def body_too_large(size: int | None, limits: Limits) -> BodyTooLarge:
    """As `value_too_large`, for a body that is JSON."""
    flag = limits.flag("body_bytes_max")
    return BodyTooLarge(
        f"body: it has {size or f'more than {limits.body_bytes_max}'} bytes; at most "
        f"{limits.body_bytes_max} are allowed ({flag})",
        limit=limits.body_bytes_max,
        size=size,
        flag=flag,
    )


def shown(value: bytes | str) -> str:
    """A refused value as an error repeats it: quoted, printable, short."""
    text = value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
    cut = text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"
    return ascii(cut) if not cut.isprintable() or "'" in cut else f"'{cut}'"


# --- query parameters ------------------------------------------------------------------------------------

Kind = Literal["key", "bytes", "text", "integer", "boolean", "choice", "seconds"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter of a route; the OpenAPI document is made from the same object."""

    name: str
    kind: Kind
    help: str
    least: int = 0
    most: int = INTEGER_MAX
    choices: tuple[str, ...] = ()
    default: str | None = None


_INTEGER = re.compile(r"-?[0-9]{1,19}")
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s)?")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def query_names(query: bytes | None) -> list[bytes]:
    """The names alone, as they stand: enough to tell which operation is meant."""
    return [pair.partition(b"=")[0] for pair in query.split(b"&") if pair] if query else []


def parse_query(query: bytes | None, allowed: Mapping[str, Parameter], limits: Limits) -> dict[str, Any]:
    """Typed values of the parameters that are there. Unknown and repeated ones are refused."""
    values: dict[str, Any] = {}
    if not query:
        return values
    for pair in query.split(b"&"):
        if not pair:
            continue
        raw_name, equals, raw_value = pair.partition(b"=")
        name = decoded(raw_name, "query parameter name", form=True).decode()
        parameter = allowed.get(name)
        if parameter is None:
            names = ", ".join(sorted(allowed)) or "none"
            raise BadRequest(f"query parameter {shown(name)}: unknown here; allowed: {names}")
        if name in values:
            raise BadRequest(f"query parameter {name}: it stands there more than once; allowed is once")
        value = decoded(raw_value, f"query parameter {name}", form=True) if equals else None
        values[name] = _parse_parameter(parameter, value, limits)
    return values


def _parse_parameter(parameter: Parameter, value: bytes | None, limits: Limits) -> Any:
    what = f"query parameter {parameter.name}"
    if parameter.kind == "boolean" and value is None:
        return True
    if value is None:
        raise BadRequest(
            f"{what}: it has no value; allowed is {parameter.name}={_allowed(parameter, limits)}"
        )
    if parameter.kind == "key":
        return check_key(value, what, limits)
    if parameter.kind == "bytes":
        return check_key(value, what, limits) if value else b""
    text = value.decode()
    parsed: Any = None
    match parameter.kind:
        case "integer":
            parsed = int(text) if _INTEGER.fullmatch(text) else None
            if parsed is not None and not parameter.least <= parsed <= parameter.most:
                parsed = None
        case "boolean":
            parsed = _BOOLEANS.get(text)
        case "choice":
            parsed = text if text in parameter.choices else None
        case "seconds":
            parsed = _parse_seconds(text, limits.timeout_seconds_max)
        case _:
            parsed = text
    if parsed is None:
        raise BadRequest(f"{what}: {shown(text)} is not allowed; allowed is {_allowed(parameter, limits)}")
    return parsed


def _parse_seconds(text: str, most: int) -> float | None:
    match = _SECONDS.fullmatch(text)
    if match is None:
        return None
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1)
    return seconds if 0 < seconds <= most else None


def _allowed(parameter: Parameter, limits: Limits) -> str:
    match parameter.kind:
        case "integer":
            return f"a whole number from {parameter.least} to {parameter.most}"
        case "boolean":
            return "true or false"
        case "choice":
            return " or ".join(parameter.choices)
        case "seconds":
            return f"seconds above 0 and up to {limits.timeout_seconds_max}, such as 2.5, 2s or 500ms"
        case "key":
            return f"1 to {limits.key_bytes_max} bytes of UTF-8"
        case _:
            return f"up to {limits.key_bytes_max} bytes of UTF-8"


# --- headers ---------------------------------------------------------------------------------------------

# Those that the service reads, by lower-case name. All but the lists may stand there only once.
HEADERS = {
    name.lower().encode(): name
    for name in (
        "Accept",
        "Authorization",
        "Content-Encoding",
        "Content-Type",
        "Expect",
        "Idempotency-Key",
        "If-Match",
        "If-None-Match",
        "Raftkv-Forwarded-By",
        "Raftkv-Route",
        "Request-Id",
        "Traceparent",
        "Tracestate",
    )
}
# A trace's first header is no list: repeated and joined it is none of the kind, and no request is refused.
LIST_HEADERS = {"Accept", "Traceparent", "Tracestate"}
TRACE_HEADERS = {"Traceparent", "Tracestate"}


def collect_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers that the service reads, under their canonical names."""
    found: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name = HEADERS.get(raw_name.lower())
        if name is None:
            continue
        if not raw_value.isascii():
            if name in TRACE_HEADERS:
                continue
            value = "its value" if name == "Authorization" else shown(raw_value)
            raise BadRequest(f"header {name}: {value} is not ASCII; allowed is printable ASCII")
        value = raw_value.decode("ascii").strip()
        if name not in found:
            found[name] = value
        elif name in LIST_HEADERS:
            found[name] += ", " + value
        else:
            raise BadRequest(f"header {name}: it stands there more than once; allowed is once")
    return found


_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,128}")
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}(?:\s*;[\x20-\x7e]*)?")


def usable_request_id(headers: Mapping[str, str]) -> str | None:
    """The client's own, if it sent one that is allowed."""
    value = headers.get("Request-Id")
    return value if value is not None and _REQUEST_ID.fullmatch(value) else None


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The client's own, if it sent one. Raises BadRequest for one that is not allowed."""
    value = headers.get("Request-Id")
    if value is None or _REQUEST_ID.fullmatch(value):
        return value
    raise BadRequest(
        f"header Request-Id: {shown(value)} is not allowed; allowed are 1 to 128 printable ASCII characters "
        "without spaces"
    )


def idempotency_key_of(headers: Mapping[str, str]) -> bytes | None:
    value = headers.get("Idempotency-Key")
    return None if value is None else check_idempotency_key(value, "header Idempotency-Key")


def check_idempotency_key(value: str, what: str) -> bytes:
    if not _IDEMPOTENCY_KEY.fullmatch(value):
        raise BadRequest(
            f"{what}: {shown(value)} ({len(value)} characters) is not allowed; "
            "allowed are 1 to 128 printable ASCII characters"
        )
    return value.encode()


def stored_content_type(value: str | None, what: str, limits: Limits) -> str:
    """What to store: the type as sent, or the default for none and for curl's form type."""
    if value is None or value.partition(";")[0].strip().lower() == FORM:
        return DEFAULT_CONTENT_TYPE
    if len(value) > limits.content_type_bytes_max or not _CONTENT_TYPE.fullmatch(value):
        raise BadRequest(
            f"{what}: {shown(value)} is not a media type; allowed is type/subtype with parameters, such as "
            f"text/plain; charset=utf-8, in at most {limits.content_type_bytes_max} bytes"
        )
    return value


def media_type(value: str | None) -> str | None:
    """Without parameters, in lower case; None for none and for curl's form type."""
    kind = None if value is None else value.partition(";")[0].strip().lower()
    return None if kind == FORM else kind


def wants_ndjson(headers: Mapping[str, str]) -> bool:
    accept = headers.get("Accept")
    return accept is not None and NDJSON in accept.lower()


def route_of(headers: Mapping[str, str], default: str) -> str:
    """`redirect`, `forward` or `local`."""
    value = headers.get("Raftkv-Route")
    if value is None:
        return default
    if value not in ("redirect", "forward", "local"):
        raise BadRequest(
            f"header Raftkv-Route: {shown(value)} is not allowed; allowed is redirect, forward or local"
        )
    return value


# --- conditions ------------------------------------------------------------------------------------------

_ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_ENTITY_TAGS = re.compile(rf"{_ENTITY_TAG.pattern}(?:[ \t]*,[ \t]*{_ENTITY_TAG.pattern})*")
_REVISION = re.compile(r"0|[1-9][0-9]{0,18}")
ENTITY_TAGS_MAX = 64


@dataclass(frozen=True, slots=True)
class WriteConditions:
    """`condition` goes into the command. `revisions` holds more than one where If-Match names several: the
    key's mod_revision must be one of them."""

    condition: Condition | None
    revisions: tuple[int, ...] = ()


NO_CONDITIONS = WriteConditions(None)


def write_conditions(headers: Mapping[str, str], query: Mapping[str, Any]) -> WriteConditions:
    """If-Match, If-None-Match and `if_revision`; those that are given must all hold."""
    if_match, if_none_match = headers.get("If-Match"), headers.get("If-None-Match")
    revision: int | None = query.get("if_revision")
    if if_match is None and if_none_match is None and revision is None:
        return NO_CONDITIONS
    exists: bool | None = None
    revisions: tuple[int, ...] = ()
    if if_none_match is not None:
        if if_none_match != "*":
            raise BadRequest(
                f"header If-None-Match: {shown(if_none_match)} is not allowed on a write; allowed is * "
                '(only if absent); If-Match: "57" or ?if_revision=57 writes over one revision'
            )
        exists = False
    if if_match is not None:
        if exists is False:
            raise BadRequest(
                "headers If-Match and If-None-Match: together they never hold; allowed is one of them"
            )
        if if_match == "*":
            exists = True
        else:
            revisions = _revisions_of(if_match)
    if revision is not None and revisions:
        if revisions != (revision,):
            raise BadRequest(
                f"query parameter if_revision: {revision} and header If-Match: {shown(if_match or '')} "
                "differ; allowed is one of them"
            )
        revisions = ()
    if len(revisions) == 1:
        revision, revisions = revisions[0], ()
    return WriteConditions(Condition(revision, exists), revisions)


def _revisions_of(if_match: str) -> tuple[int, ...]:
    """The revisions that If-Match names. A weak tag would never match (RFC 9110 §13.1.1), nor would one that
    is no revision: both are mistakes worth telling."""
    revisions: list[int] = []
    for weak, tag in entity_tags("If-Match", if_match):
        if weak or not _REVISION.fullmatch(tag) or int(tag) > INTEGER_MAX:
            raise BadRequest(
                f"header If-Match: {shown(if_match)} is not allowed; "
                'allowed is * or ETags as they came, such as "57" '
                "(a weak one, W/…, was changed by a proxy: ?if_revision=57 says the same)"
            )
        revisions.append(int(tag))
    return tuple(dict.fromkeys(revisions))


def entity_tags(name: str, value: str) -> Sequence[tuple[bool, str]]:
    """`(weak, tag)` of each entity tag in a list."""
    if not _ENTITY_TAGS.fullmatch(value):
        raise BadRequest(
            f"header {name}: {shown(value)} is no list of entity tags; "
            'allowed is * or quoted ones, such as "57"'
        )
    tags = [(bool(weak), tag) for weak, tag in _ENTITY_TAG.findall(value)]
    if len(tags) > ENTITY_TAGS_MAX:
        raise BadRequest(f"header {name}: it names {len(tags)} entity tags; allowed are {ENTITY_TAGS_MAX}")
    return tags


@dataclass(frozen=True, slots=True)
class ReadConditions:
    """None: no such condition, or one that any revision meets. `none_match_any`: If-None-Match is *."""

    match: tuple[int, ...] | None = None
    none_match: tuple[str, ...] = ()
    none_match_any: bool = False

    def is_not_modified(self, mod_revision: int) -> bool:
        """Whether a read of a key at that revision is answered 304 (weak comparison). Raises ConditionFailed
        where If-Match does not hold."""
        if self.match is not None and mod_revision not in self.match:
            raise ConditionFailed(
                f"the key's mod_revision is {mod_revision}, which If-Match does not name",
                current=mod_revision,
            )
        return self.none_match_any or str(mod_revision) in self.none_match


NO_READ_CONDITIONS = ReadConditions()


def read_conditions(headers: Mapping[str, str]) -> ReadConditions:
    """If-Match and If-None-Match of a read. In the latter a tag that is no revision never matches."""
    if_match, if_none_match = headers.get("If-Match"), headers.get("If-None-Match")
    if if_match is None and if_none_match is None:
        return NO_READ_CONDITIONS
    match = None if if_match in (None, "*") else _revisions_of(if_match)
    if if_none_match is None or if_none_match == "*":
        return ReadConditions(match, (), if_none_match is not None)
    return ReadConditions(match, tuple(tag for _, tag in entity_tags("If-None-Match", if_none_match)))


# --- values and results in JSON --------------------------------------------------------------------------

encode_json = msgspec.json.Encoder().encode


def envelope(item: Item, *, keys_only: bool = False) -> dict[str, Any]:
    """An item in JSON: `value` where it is UTF-8, `base64` where it is not, neither with `keys_only`."""
    made: dict[str, Any] = {"key": item.key.decode()}
    if not keys_only:
        try:
            made["value"] = item.value.decode()
        except UnicodeDecodeError:
            made["base64"] = base64.b64encode(item.value).decode()
    made["content_type"] = item.content_type
    made["create_revision"] = item.create_revision
    made["mod_revision"] = item.mod_revision
    made["version"] = item.version
    return made


OperationResult = Written | Deleted | Appended | Incremented | Got


def result_body(result: OperationResult, *, prev: bool = False) -> dict[str, Any] | None:
    """What a single call answers for the result; None for a `get` of an absent key. `prev`: asked for."""
    match result:
        case Written(revision=revision, previous=previous):
            made: dict[str, Any] = {"revision": revision}
            if prev:
                made["prev"] = None if previous is None else envelope(previous)
            return made
        case Deleted(revision=revision, deleted=deleted, previous=previous):
            made = {"revision": revision, "deleted": deleted}
            if prev:
                made["prev"] = None if previous is None else envelope(previous)
            return made
        case Appended(revision=revision, length=length):
            return {"revision": revision, "length": length}
        case Incremented(revision=revision, value=value):
            return {"revision": revision, "value": value}
        case Got(item=item):
            return None if item is None else envelope(item)


def transaction_body(done: TransactionDone, prevs: Sequence[bool]) -> dict[str, Any]:
    """`prevs`: for each operation that ran, whether it asked for the value before."""
    responses = [
        result_body(response, prev=prev) for response, prev in zip(done.responses, prevs, strict=True)
    ]
    return {"succeeded": done.succeeded, "revision": done.revision, "responses": responses}


def decode_base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(
            f"{what}: {shown(text)} is not base64 ({error}); allowed is the standard alphabet with padding"
        ) from error


# --- answers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `headers` come beside those of every answer; `close`: the connection ends with it."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False


def json_answer(status: int, body: object, *headers: tuple[str, str]) -> Answer:
    return Answer(status, encode_json(body), JSON, headers)


STATUS_LINES = {status: f"HTTP/1.1 {status} {reason(status)}\r\n" for status in range(200, 600)}
_ACTIVE_TYPE = re.compile(r"html|xml|svg|script", re.IGNORECASE)


def item_answer(item: Item) -> Answer:
    """A value as its bytes. What a browser would run is sandboxed: it comes from clients, not from us."""
    headers: tuple[tuple[str, str], ...] = (
        ("ETag", f'"{item.mod_revision}"'),
        ("Cache-Control", "no-cache"),
        ("X-Content-Type-Options", "nosniff"),
    )
    if item.content_type != DEFAULT_CONTENT_TYPE and _ACTIVE_TYPE.search(item.content_type):
        headers += (("Content-Security-Policy", "default-src 'none'; sandbox"),)
    return Answer(200, item.value, item.content_type, headers)


def value_fields(length: int, revision: int) -> str:
    """The header lines of `item_answer` for a value of the default type, at a third of the cost."""
    kind = f"Content-Type: {DEFAULT_CONTENT_TYPE}\r\n" if length else ""
    return (
        f'{kind}Content-Length: {length}\r\nETag: "{revision}"\r\n'
        "Cache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\n"
    )


def written_body(revision: int) -> bytes:
    return b'{"revision":%d}' % revision


def written_fields(length: int, revision: int) -> str:
    """The header lines of the answer to a put, for a body of `written_body`."""
    return f'Content-Type: {JSON}\r\nContent-Length: {length}\r\nETag: "{revision}"\r\n'


def answer_fields(answer: Answer, length: int | None) -> str:
    """The header lines that are the answer's own. `length` None: the body's length is not said here."""
    fields = f"Content-Type: {answer.content_type}\r\n" if length is None or length else ""
    if length is not None and answer.status != 304:
        fields += f"Content-Length: {length}\r\n"
    for name, value in answer.headers:
        fields += f"{name}: {value}\r\n"
    return fields


def answer_head(
    answer: Answer, common: str, *, keep_alive: bool, old_version: bool, length: int | None
) -> bytes:
    """Status line and headers, with the empty line. `length` None: the body's length is not said here.

    `common` holds whole header lines. Every value in it and in `answer.headers` was checked where it came
    in, so none can hold a line break.
    """
    parts = [STATUS_LINES[answer.status], common, answer_fields(answer, length)]
    if not keep_alive:
        parts.append("Connection: close\r\n")
    elif old_version:
        parts.append("Connection: keep-alive\r\n")
    parts.append("\r\n")
    return "".join(parts).encode("utf-8", "surrogateescape")
