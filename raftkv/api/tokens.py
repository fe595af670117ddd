"""Handlers that make, list and revoke tokens. Knows no aiohttp.

A token is answered once, when it is made; what the log and every node get is its hash, made here before it is
proposed. So a request to make one has no idempotency key: no stored outcome could give the token again. Where
its outcome is unknown, the list says whether there is one more, and it can be revoked.
"""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from raftkv.access.guard import Hasher
from raftkv.access.secret import COST, new_token, split
from raftkv.api.calls import Call
from raftkv.api.handlers import no_body, write
from raftkv.api.members import read_body
from raftkv.api.wire import Answer, decoded, json_answer, shown
from raftkv.errors import BadRequest, NoSuchToken
from raftkv.kv.command import CreateToken, RevokeToken
from raftkv.kv.tokens import GRANTS_MAX, Grant, Role, Token
from raftkv.model import TokenCreated, TokenRevoked
from raftkv.service import LINEARIZABLE

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", re.ASCII)
RATE_MAX = 1_000_000
EXPIRES_SECONDS_MAX = 100 * 366 * 86_400
SALT_BYTES = 16
_ALLOWED = (
    '{"name": NAME, "grants": [{"role": "read|write|admin", "prefix": PREFIX}, …], "rate": OPERATIONS A '
    'SECOND, "expires_in_seconds": SECONDS}'
)


class GrantBody(msgspec.Struct, forbid_unknown_fields=True):
    role: Role
    prefix: str  # no default: every key is asked for in so many words


class CreateBody(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    grants: list[GrantBody]
    rate: int = 0
    expires_in_seconds: int = 0


class Creator:
    def __init__(self, hasher: Hasher) -> None:
        self._hasher = hasher

    async def create_token(self, call: Call) -> Answer:
        if "Idempotency-Key" in call.headers:
            raise BadRequest(
                "header Idempotency-Key: a new token is answered once and can't be answered again; leave the "
                "key out, and look at the list where an outcome is unknown"
            )
        body = await read_body(call, CreateBody, _ALLOWED)
        name, text = new_token()
        token = self._token(body, name, call)
        call.target_id = name
        call.permit(CreateToken(token))
        call.service.check_leads()
        parts = split(text)
        assert parts is not None
        token = msgspec.structs.replace(token, hash=await self._hasher.hash(parts[1], token.salt))
        result = await write(call, CreateToken(token))
        assert isinstance(result, TokenCreated)
        return json_answer(201, {**described(token), "token": text, "revision": result.revision})

    def _token(self, body: CreateBody, name: str, call: Call) -> Token:
        if not NAME.fullmatch(body.name):
            raise BadRequest(
                f"body.name: {shown(body.name)} is not allowed; allowed are 1 to 64 of A-Z a-z 0-9 _ . @ -, "
                "a letter or digit first"
            )
        if not 1 <= len(body.grants) <= GRANTS_MAX:
            raise BadRequest(f"body.grants: there are {len(body.grants)}; allowed are 1 to {GRANTS_MAX}")
        for what, value, most in (
            ("rate", body.rate, RATE_MAX),
            ("expires_in_seconds", body.expires_in_seconds, EXPIRES_SECONDS_MAX),
        ):
            if not 0 <= value <= most:
                raise BadRequest(
                    f"body.{what}: {value} is not allowed; allowed is a whole number from 0 to {most}"
                )
        now_ms = int(time.time() * 1000)
        return Token(
            name,
            body.name,
            tuple(_grant(each, number, call) for number, each in enumerate(body.grants)),
            secrets.token_bytes(SALT_BYTES),
            b"",
            COST,
            now_ms,
            now_ms + 1000 * body.expires_in_seconds if body.expires_in_seconds else 0,
            body.rate,
            call.caller.id,
        )


def _grant(body: GrantBody, number: int, call: Call) -> Grant:
    where = f"body.grants[{number}].prefix"
    try:
        prefix = body.prefix.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{where}: it holds half a surrogate pair; allowed is any Unicode text") from error
    if len(prefix) > call.limits.key_bytes_max:
        raise BadRequest(
            f"{where}: it has {len(prefix)} bytes; allowed are {call.limits.key_bytes_max}, as of a key"
        )
    return Grant(body.role, prefix)


async def list_tokens(call: Call) -> Answer:
    await no_body(call)
    await call.service.reach(LINEARIZABLE, timeout_s=call.timeout_s)
    call.admission.still(call.caller)
    machine = call.service.machine
    found = [described(token) for token in machine.tokens if call.caller.rules(token)]
    return json_answer(200, {"revision": machine.revision, "tokens": found})


async def revoke_token(call: Call) -> Answer:
    assert call.rest is not None
    name = decoded(call.rest, "path: id").decode()
    await no_body(call)
    call.service.check_leads()
    await call.service.reach(LINEARIZABLE, timeout_s=call.timeout_s)
    token = call.service.machine.tokens.get(name)
    if token is not None:
        call.target_id = token.id
        if call.admission.guard is not None:
            call.caller.check_token(token)
    elif "Idempotency-Key" not in call.headers:  # else it may be this request's repetition
        raise NoSuchToken(f"there is no token with the id {shown(name)}")
    result = await write(call, RevokeToken(name))
    assert isinstance(result, TokenRevoked)
    return json_answer(200, {"revision": result.revision, "revoked": name})


def described(token: Token) -> dict[str, Any]:
    """What is told of a token: neither its hash nor its salt."""
    return {
        "id": token.id,
        "name": token.name,
        "grants": [{"role": each.role, "prefix": each.prefix.decode()} for each in token.grants],
        "rate": token.rate,
        "created": _time(token.created_ms),
        "created_by": token.created_by or None,
        "expires": _time(token.expires_ms) if token.expires_ms else None,
        "expired": bool(token.expires_ms) and time.time() * 1000 >= token.expires_ms,
    }


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
