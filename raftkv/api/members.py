"""Handlers that change who leads and who belongs to the cluster. Knows no aiohttp."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from raftkv.addresses import parse_client_url, parse_name, parse_peer
from raftkv.api.calls import Call
from raftkv.api.handlers import no_body, refuse_media_type
from raftkv.api.wire import JSON, Answer, body_too_large, decoded, json_answer, shown
from raftkv.errors import BadRequest, RaftkvError
from raftkv.model import Member
from raftkv.raft.membership import Add, Change, Promote, Remove

_Body = TypeVar("_Body")


class TransferBody(msgspec.Struct, forbid_unknown_fields=True):
    to: str | None = None


async def transfer_leadership(call: Call) -> Answer:
    body = await read_body(call, TransferBody, '{"to": NAME}, or nothing for the member that is furthest')
    leadership = await call.service.transfer_leadership(body.to)
    return json_answer(200, {"leader": leadership.leader, "term": leadership.term})


class MemberBody(msgspec.Struct, forbid_unknown_fields=True):
    """`peer`: where its raft port is dialled, HOST:PORT. `client_url`: where clients are sent to it."""

    name: str
    peer: str
    client_url: str
    auto_promote: bool = False


async def add_member(call: Call) -> Answer:
    body = await read_body(
        call,
        MemberBody,
        '{"name": NAME, "peer": HOST:PORT, "client_url": URL, "auto_promote": true or false}',
    )
    member = Member(
        _parsed("name", parse_name, body.name, "1 to 63 of A-Z a-z 0-9 _ . -, a letter or digit first"),
        _parsed("peer", parse_peer, body.peer, "HOST:PORT or [IPv6]:PORT"),
        _parsed("client_url", parse_client_url, body.client_url, "http(s)://HOST[:PORT]"),
    )
    call.target_id = member.name
    return await _change(call, Add(member, body.auto_promote))


async def remove_member(call: Call) -> Answer:
    await no_body(call)
    return await _change(call, Remove(_name(call)))


async def promote_member(call: Call) -> Answer:
    await no_body(call)
    return await _change(call, Promote(_name(call)))


async def _change(call: Call, change: Change) -> Answer:
    dry_run: bool = call.query.get("dry_run", False)
    made = await call.service.change_membership(change, dry_run=dry_run, timeout_s=call.timeout_s)
    return json_answer(200, {"dry_run": dry_run, **msgspec.to_builtins(made)})


def _parsed(field: str, parse: Callable[[str], str], text: str, allowed: str) -> str:
    try:
        return parse(text)
    except ValueError as error:
        raise BadRequest(f"body.{field}: {shown(text)}: {error}; allowed is {allowed}") from None


def _name(call: Call) -> str:
    assert call.rest is not None
    return decoded(call.rest, "path: name").decode()


async def read_body(call: Call, shape: type[_Body], allowed: str) -> _Body:
    """The JSON body; an empty one is `{}`. Raises BadRequest, BodyTooLarge, UnsupportedMediaType."""
    refuse_media_type(call, JSON)
    limits = call.limits

    def too_large(size: int | None) -> RaftkvError:
        return body_too_large(size, limits)

    data = await call.body.read(limits.body_bytes_max, too_large)
    try:
        return msgspec.json.decode(data or b"{}", type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"body: {error}; allowed is {allowed}") from error
