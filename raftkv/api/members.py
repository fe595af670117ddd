"""Handlers that change who leads and who belongs to the cluster. Knows no aiohttp."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from raftkv.api.calls import Call
from raftkv.api.handlers import refuse_media_type
from raftkv.api.wire import JSON, Answer, body_too_large, json_answer
from raftkv.errors import BadRequest, RaftkvError

_Body = TypeVar("_Body")


class TransferBody(msgspec.Struct, forbid_unknown_fields=True):
    to: str | None = None


async def transfer_leadership(call: Call) -> Answer:
    body = await read_body(call, TransferBody, '{"to": NAME}, or nothing for the member that is furthest')
    leadership = await call.service.transfer_leadership(body.to)
    return json_answer(200, {"leader": leadership.leader, "term": leadership.term})


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
