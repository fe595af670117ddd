"""One thin function a route: typed request in, the service asked, answer out. Knows no aiohttp.

A refusal is raised, never written here; `errors.py` has the statuses. Whatever can be refused before the body
is read is, so that a follower sends a client on, and an oversized upload is stopped, before a byte of it
has crossed the network.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from raftkv.api.bodies import parse_transaction
from raftkv.api.calls import Call, Streamed
from raftkv.api.errors import KeyNotFound, NotImplementedHere, UnsupportedMediaType, refusal
from raftkv.api.wire import (
    JSON,
    NDJSON,
    Answer,
    WriteConditions,
    body_too_large,
    check_key,
    check_value,
    decoded,
    encode_json,
    envelope,
    idempotency_key_of,
    item_answer,
    json_answer,
    media_type,
    read_conditions,
    result_body,
    shown,
    stored_content_type,
    transaction_body,
    value_too_large,
    wants_ndjson,
    write_conditions,
    written_body,
)
from raftkv.errors import BadRequest, LimitExceeded, RaftkvError
from raftkv.kv.command import Append, Command, Condition, Delete, DeletePrefix, Increment, Put, Transaction
from raftkv.kv.image import PAGE_RECORDS
from raftkv.model import (
    Appended,
    Deleted,
    Incremented,
    Item,
    Result,
    TransactionDone,
    Written,
)
from raftkv.service import LINEARIZABLE, Folded, Freshness, Range, RangePage, keyed

# --- one key ---------------------------------------------------------------------------------------------


async def get_key(call: Call) -> Answer:
    key = key_of(call)
    conditions = read_conditions(call.headers)
    await no_body(call)
    await reach(call)
    item = call.service.machine.get(key)
    if item is None:
        raise KeyNotFound(f"no key {shown(key)} at revision {call.service.machine.revision}")
    if conditions.is_not_modified(item.mod_revision):
        return Answer(304, headers=(("ETag", f'"{item.mod_revision}"'), ("Cache-Control", "no-cache")))
    if call.query.get("format") == "json":
        return json_answer(200, envelope(item), ("ETag", f'"{item.mod_revision}"'))
    return item_answer(item)


async def put_key(call: Call) -> Answer:
    key = key_of(call)
    conditions = write_conditions(call.headers, call.query)
    content_type = stored_content_type(call.headers.get("Content-Type"), "header Content-Type", call.limits)
    value = await value_of(call)
    prev = call.query.get("prev", False)
    result = await write(
        call, Put(key, value, content_type, conditions.condition, prev), conditions, len(value)
    )
    assert isinstance(result, Written)
    return result_answer(201 if result.created else 200, result, prev=prev)


async def delete_key(call: Call) -> Answer:
    key = key_of(call)
    conditions = write_conditions(call.headers, call.query)
    await no_body(call)
    prev = call.query.get("prev", False)
    result = await write(call, Delete(key, conditions.condition, prev), conditions)
    assert isinstance(result, Deleted)
    return result_answer(200, result, prev=prev)


async def change_key(call: Call) -> Answer:
    key = key_of(call)
    op = call.query.get("op")
    if op is None:
        raise BadRequest("query parameter op: it is missing; allowed is op=append or op=incr")
    conditions = write_conditions(call.headers, call.query)
    if op == "incr":
        await no_body(call, "the number goes into the query, as in ?op=incr&by=1")
        command: Append | Increment = Increment(key, call.query.get("by", 1), conditions.condition)
        size = 0
    else:
        if "by" in call.query:
            raise BadRequest("query parameter by: op=append does not take it; allowed with op=incr")
        kind = stored_content_type(call.headers.get("Content-Type"), "header Content-Type", call.limits)
        value = await value_of(call)
        size = len(value)
        command = Append(key, value, call.limits.value_bytes_max, kind, conditions.condition)
    result = await write(call, command, conditions, size)
    assert isinstance(result, Appended | Incremented)
    return result_answer(200, result)


def result_answer(
    status: int, result: Written | Deleted | Appended | Incremented, *, prev: bool = False
) -> Answer:
    if isinstance(result, Written) and not prev:
        body = written_body(result.revision)
    else:
        body = encode_json(result_body(result, prev=prev))
    tags = () if isinstance(result, Deleted) else (("ETag", f'"{result.revision}"'),)
    return Answer(status, body, JSON, tags)


def key_of(call: Call) -> bytes:
    """From the path, or from `?key=`, where it was checked already."""
    if call.rest is None:
        key: bytes = call.query["key"]
        return key
    return check_key(decoded(call.rest, "path: key"), "path: key", call.limits)


async def value_of(call: Call) -> bytes:
    """The body as a value, after all that can be refused without it."""
    refuse_encoding(call)
    limits = call.limits

    def too_large(size: int | None) -> LimitExceeded:
        return value_too_large(size, "body", limits)

    call.body.check_length(limits.value_bytes_max, too_large)
    call.service.check_leads()
    return check_value(await call.body.read(limits.value_bytes_max, too_large), "body", limits)


async def no_body(call: Call, instead: str = "allowed is none") -> None:
    """Refuses a body that the route would pass over."""

    def not_allowed(size: int | None) -> RaftkvError:
        return BadRequest(f"body: {call.method} takes no body here; {instead}")

    await call.body.read(0, not_allowed)


def refuse_encoding(call: Call) -> None:
    """A value is stored without its Content-Encoding, so it would come back as something else."""
    encoding = call.headers.get("Content-Encoding")
    if encoding is not None and encoding.lower() != "identity":
        raise UnsupportedMediaType(
            f"header Content-Encoding: {shown(encoding)} is not supported; allowed is identity, or none"
        )


def refuse_media_type(call: Call, *allowed: str) -> None:
    refuse_encoding(call)
    sent = call.headers.get("Content-Type")
    kind = media_type(sent)
    if kind is not None and kind not in allowed:
        raise UnsupportedMediaType(
            f"header Content-Type: {shown(sent or '')} is not supported here; allowed: {', '.join(allowed)}"
        )


# --- writing ---------------------------------------------------------------------------------------------


async def write(
    call: Call, command: Command, conditions: WriteConditions | None = None, size_bytes: int = 0
) -> Result:
    """Sees the command through. Raises what it was refused with, or what its result stands for."""
    call.permit(command)
    key = idempotency_key_of(call.headers)
    alternatives = conditions.revisions if conditions is not None else ()
    if key is not None:
        command = keyed(command, key, repr(alternatives).encode() if alternatives else b"")
    if alternatives:
        command = await choose_revision(call, command, alternatives)
    applied = await call.service.write(command, timeout_s=call.timeout_s, size_bytes=size_bytes)
    if applied.replayed:
        call.extra.append(("Raftkv-Replayed", "true"))
    error = refusal(applied.result)
    if error is not None:
        raise error
    return applied.result


async def choose_revision(call: Call, command: Command, revisions: tuple[int, ...]) -> Command:
    """If-Match named several revisions, and a command takes one: the key's own if it is among them, else one
    that will fail. It is proposed all the same, for it may be a repeated request that was done before."""
    assert isinstance(command, Put | Delete | Append | Increment)
    call.service.check_leads()
    await call.service.reach(LINEARIZABLE, timeout_s=call.timeout_s)
    item = call.service.machine.get(command.key)
    current = 0 if item is None else item.mod_revision
    exists = None if command.condition is None else command.condition.exists
    chosen = Condition(current if current in revisions else revisions[0], exists)
    return msgspec.structs.replace(command, condition=chosen)


# --- many keys -------------------------------------------------------------------------------------------


async def list_keys(call: Call) -> Answer:
    query = call.query
    limit = bounded(call, "limit", "list_items_max")
    wanted = Range(
        query.get("prefix", b""),
        query.get("start", b""),
        query.get("end") or None,
        query.get("delimiter", b""),
    )
    keys_only = query.get("keys_only", False)
    await no_body(call)
    await reach(call)
    page = call.service.page(wanted, limit=limit, cursor=query.get("cursor"))
    if wants_ndjson(call.headers):
        return lines_of(page, keys_only)
    body: dict[str, Any] = {
        "revision": page.revision,
        "items": [envelope(row, keys_only=keys_only) for row in page.rows if isinstance(row, Item)],
    }
    if wanted.delimiter:
        body["prefixes"] = [row.prefix.decode() for row in page.rows if isinstance(row, Folded)]
    body["next_cursor"] = page.cursor
    return json_answer(200, body)


def lines_of(page: RangePage, keys_only: bool) -> Answer:
    """An item or a folded prefix a line, in key order; a line with `next_cursor` if there is more."""
    lines = [
        encode_json(
            {"prefix": row.prefix.decode()} if isinstance(row, Folded) else envelope(row, keys_only=keys_only)
        )
        for row in page.rows
    ]
    headers: tuple[tuple[str, str], ...] = ()
    if page.cursor is not None:
        lines.append(encode_json({"next_cursor": page.cursor}))
        headers = (("Raftkv-Next-Cursor", page.cursor),)
    return Answer(200, b"".join(line + b"\n" for line in lines), NDJSON, headers)


async def delete_prefix(call: Call) -> Answer:
    prefix: bytes = call.query.get("prefix", b"")
    everything = call.query.get("all", False)
    if not prefix and not everything:
        raise BadRequest(
            "query parameter prefix: it is empty, which means every key; allowed is a prefix, or all=true"
        )
    if prefix and everything:
        raise BadRequest("query parameter all: it stands beside a prefix; allowed is one of them")
    limit = bounded(call, "limit", "delete_keys_max")
    await no_body(call)
    result = await write(call, DeletePrefix(prefix, limit))
    assert isinstance(result, Deleted)
    return json_answer(200, {"revision": result.revision, "deleted": result.deleted, "more": result.more})


def bounded(call: Call, name: str, limit_name: str) -> int:
    """A parameter that a limit bounds, and that is the limit where it is not there."""
    most: int = getattr(call.limits, limit_name)
    value: int = call.query.get(name, most)
    if value > most:
        raise BadRequest(
            f"query parameter {name}: {value} is not allowed; allowed is a whole number from 1 to {most} "
            f"({call.limits.flag(limit_name)})"
        )
    return value


async def transact(call: Call) -> Answer:
    refuse_media_type(call, JSON)
    limits = call.limits

    def too_large(size: int | None) -> LimitExceeded:
        return body_too_large(size, limits)

    call.body.check_length(limits.body_bytes_max, too_large)
    if not call.passes_on:  # what is to be passed on is read here in any case, and checked first
        call.service.check_leads()
    body = await call.body.read(limits.body_bytes_max, too_large)
    parsed = parse_transaction(body, limits)
    command: Transaction = parsed.command
    result = await write(call, command, size_bytes=len(body))
    assert isinstance(result, TransactionDone)
    prevs = parsed.success_prevs if result.succeeded else parsed.failure_prevs
    return json_answer(200, transaction_body(result, prevs))


async def export(call: Call) -> Streamed:
    await no_body(call)
    await reach(call)
    call.service.check_room_for_export()
    return Streamed(Answer(200, content_type=NDJSON), export_lines(call, call.query.get("prefix", b"")))


async def export_lines(call: Call, prefix: bytes) -> AsyncIterator[bytes]:
    """The image of the moment when the first line is asked for, page by page."""
    digest = hashlib.sha256()
    count = 0
    with call.service.export(prefix) as image:
        while page := image.next_page(PAGE_RECORDS):
            lines = b"".join(encode_json(envelope(item)) + b"\n" for item in page.items())
            digest.update(lines)
            count += len(page)
            yield lines
            await asyncio.sleep(0)  # others come first: an export may take its time
        end = {"_end": True, "count": count, "revision": image.state.revision, "sha256": digest.hexdigest()}
        yield encode_json(end) + b"\n"


# --- reading ---------------------------------------------------------------------------------------------


async def reach(call: Call) -> None:
    """Returns when this node's state is as fresh as the request asks."""
    freshness: Freshness = call.freshness()
    stale = freshness.consistency == "stale"
    if freshness.max_staleness_ms is not None and not stale:
        raise BadRequest(
            "query parameter max_staleness_ms: a linearizable read is never stale; "
            "allowed with consistency=stale"
        )
    call.extra.append(("Raftkv-Consistency", freshness.consistency))
    await call.service.reach(freshness, timeout_s=call.timeout_s)
    call.admission.still(call.caller)
    if stale:
        call.extra.append(("Raftkv-Applied-Revision", str(call.service.machine.revision)))


async def not_implemented(call: Call) -> Answer:
    raise NotImplementedHere(f"{call.route.method} {call.route.template} is not implemented in this release")
