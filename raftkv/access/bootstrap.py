"""The first token of a cluster, which an operator brings: somebody has to let the others in.

Any node may have it; whichever leads proposes it, once it sees that there are no tokens. The state machine
takes it only where that is still so when it is applied, so two leaders in a row make one of it. What is
replicated is its hash.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from raftkv.access.guard import Hasher
from raftkv.access.secret import COST, split
from raftkv.errors import RaftkvError
from raftkv.kv.command import CreateToken
from raftkv.kv.machine import Machine
from raftkv.kv.tokens import Grant, Token

log = logging.getLogger("raftkv.audit")

NAME = "bootstrap"
LOOK_S = 0.25  # between two looks whether there is something to do; they end with the first token


async def make_first_token(
    text: str,
    *,
    hasher: Hasher,
    machine: Callable[[], Machine],
    leads: Callable[[], bool],
    propose: Callable[[CreateToken], Awaitable[object]],
) -> None:
    """Returns when the cluster has a token, this one or another. `text` is a token's, checked before."""
    parts = split(text)
    assert parts is not None
    name, secret = parts
    token: Token | None = None
    while not machine().tokens.count:
        if leads():
            token = token or await first_token(name, secret, hasher)
            try:
                await propose(CreateToken(token, only_first=True))
            except RaftkvError as error:
                log.debug("bootstrap_put_off reason=%s", error)
            else:
                log.info('admin_action who=bootstrap what="first token" token=%s:%s', name, NAME)
                continue
        await asyncio.sleep(LOOK_S)


async def first_token(name: str, secret: bytes, hasher: Hasher) -> Token:
    salt = secrets.token_bytes(16)
    hashed = await hasher.hash(secret, salt)
    return Token(name, NAME, (Grant("admin", b""),), salt, hashed, COST, int(time.time() * 1000))
