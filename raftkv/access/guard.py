"""From a presented token to a caller: verified once, then remembered.

    Authorization -> keyed BLAKE2b of the token -> verified before, against the record that is there now?
                         no: is there a token of this id (asking the leader, where this node may be behind)?
                             scrypt, on a worker thread -> remembered, or remembered as wrong

- The loop never runs scrypt: `caller` answers from what is known, and raises `Unverified` where it must be
  found out. `settle` finds it out.
- What is remembered is a hash under a key of this process, and bounded. Everything that was derived from a
  token's record goes when the record changes: a revoked token is refused as soon as this node has applied
  that, and a linearizable read asks again once it has its read index (`check_still`).
- Ids are no secret: an unknown one is refused without scrypt. Known ids with wrong secrets wait in line for
  one thread, in a line that is bounded.
- Expiry is by this node's wall clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from raftkv.access.caller import NEVER, Caller
from raftkv.access.secret import hashed, is_secret_of, split
from raftkv.errors import Overloaded, RaftkvError, Unauthenticated
from raftkv.kv.tokens import Token, TokenTable

T = TypeVar("T")

REMEMBERED_MAX = 4_096  # presented tokens, right or wrong; more than there can be right ones
WAITING_MAX = 64  # for the thread: some 3 s of it


class Unverified(Exception):
    """It can't be told without blocking: ask `Guard.settle`, then `Guard.caller` again."""


class Hasher:
    """The one thread for scrypt. Close it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="raftkv-token")
        self.waiting = 0

    async def hash(self, secret: bytes, salt: bytes) -> bytes:
        """Raises Overloaded."""
        return await self._run(lambda: hashed(secret, salt))

    async def verify(self, secret: bytes, token: Token) -> bool:
        """Raises Overloaded."""
        return await self._run(lambda: is_secret_of(secret, token))

    async def _run(self, job: Callable[[], T]) -> T:
        if self.waiting >= WAITING_MAX:
            raise Overloaded(f"{self.waiting} tokens wait to be verified already; try again shortly")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, job)
        finally:
            self.waiting -= 1

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


class Guard:
    """`tokens` gives the table of this node's applied state, `refresh` returns when that holds all that was
    acknowledged anywhere before, or raises RaftkvError."""

    def __init__(
        self,
        tokens: Callable[[], TokenTable],
        hasher: Hasher,
        refresh: Callable[[], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens
        self._hasher = hasher
        self._refresh = refresh
        self._clock = clock
        self._monotonic = monotonic
        self._key = secrets.token_bytes(32)
        self._table: TokenTable | None = None
        self._version = -1
        self._callers: dict[str, Caller] = {}
        self._right: dict[bytes, Caller] = {}
        self._wrong: dict[bytes, Token | None] = {}  # None: no token had its id
        self._settling: dict[bytes, asyncio.Task[None]] = {}
        self.epoch: object = object()  # another one after each change of the tokens

    # --- asking ------------------------------------------------------------------------------------

    def current(self) -> object:
        """The epoch, after a look whether the tokens have changed."""
        table = self._tokens()
        if table is not self._table or table.version != self._version:
            self._reload(table)
        return self.epoch

    def caller(self, authorization: str | None) -> Caller:
        """Who presents this `Authorization`. Raises Unauthenticated, Unverified."""
        text = bearer(authorization)
        self.current()
        mark = self._mark(text)
        caller = self._right.get(mark)
        if caller is None:
            if mark in self._wrong or split(text) is None:
                raise unknown_token()
            raise Unverified
        self.check_time(caller)
        return caller

    async def identify(self, authorization: str | None) -> Caller:
        """As `caller`, and settles what has to be. Raises Unauthenticated, Overloaded."""
        try:
            return self.caller(authorization)
        except Unverified:
            await self.settle(authorization)
        try:
            return self.caller(authorization)
        except Unverified:  # the tokens changed meanwhile, or what is remembered was too much
            raise Overloaded("the token could not be verified just now; try again") from None

    def check_time(self, caller: Caller) -> None:
        """Raises Unauthenticated where it has expired."""
        if caller.expires_s is not NEVER and self._clock() >= caller.expires_s:
            raise Unauthenticated(f"token {caller.who} has expired", presented=True)

    def check_rate(self, caller: Caller) -> None:
        """Takes one operation of what the token may do. Raises RateLimited."""
        if caller.bucket is not None:
            caller.bucket.take(self._monotonic())

    def check_still(self, caller: Caller) -> None:
        """After a wait: is it still who it was? Raises Unauthenticated."""
        if caller.epoch is not self.current():
            raise unknown_token()
        self.check_time(caller)

    async def close(self) -> None:
        """Ends what is being found out; its askers are gone by then."""
        tasks = list(self._settling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- finding out -------------------------------------------------------------------------------

    async def settle(self, authorization: str | None) -> None:
        """Finds out who presents this, once for all who ask meanwhile. Raises Unauthenticated for what is no
        token, and Overloaded."""
        text = bearer(authorization)
        parts = split(text)
        if parts is None:
            raise unknown_token()
        mark = self._mark(text)
        task = self._settling.get(mark)
        if task is None:
            if len(self._settling) >= WAITING_MAX:
                raise Overloaded(
                    f"{len(self._settling)} tokens wait to be verified already; try again shortly"
                )
            task = asyncio.get_running_loop().create_task(self._settle(mark, *parts))
            self._settling[mark] = task
            task.add_done_callback(lambda task: self._settled(mark, task))
        await asyncio.shield(task)

    def _settled(self, mark: bytes, task: asyncio.Task[None]) -> None:
        self._settling.pop(mark, None)
        if not task.cancelled():
            task.exception()  # whoever asked has it, or is gone

    async def _settle(self, mark: bytes, name: str, secret: bytes) -> None:
        self.current()
        if name not in self._callers:
            with suppress(RaftkvError):  # then what is known here decides
                await self._refresh()
            self.current()
        caller = self._callers.get(name)
        if caller is None:
            self._remember(self._wrong, mark, None)
            return
        right = await self._hasher.verify(secret, caller.token)
        self.current()
        if self._callers.get(name) is not caller:
            return
        if right:
            self._remember(self._right, mark, caller)
        else:
            self._remember(self._wrong, mark, caller.token)

    def _remember(self, where: dict[bytes, T], mark: bytes, what: T) -> None:
        if len(where) >= REMEMBERED_MAX:
            del where[next(iter(where))]
        where[mark] = what

    def _mark(self, text: str) -> bytes:
        """Under a key of this process, so that the time that a look-up takes tells nothing of the token."""
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=16).digest()

    def _reload(self, table: TokenTable) -> None:
        """What did not change keeps its caller, and so the rate that it has used up."""
        self._table, self._version = table, table.version
        before = self._callers
        self._callers = {}
        self.epoch = object()
        for token in table:
            old = before.get(token.id)
            caller = old if old is not None and old.token == token else Caller(token)
            caller.epoch = self.epoch
            self._callers[token.id] = caller
        self._right = {
            mark: caller for mark, caller in self._right.items() if self._callers.get(caller.id) is caller
        }
        self._wrong = {
            mark: token
            for mark, token in self._wrong.items()
            if token is not None and (now := self._callers.get(token.id)) is not None and now.token == token
        }


def bearer(authorization: str | None) -> str:
    """The token in an `Authorization` header (RFC 6750 §2.1). Raises Unauthenticated."""
    if authorization is None:
        raise Unauthenticated(
            "this cluster wants a token: send `Authorization: Bearer TOKEN`", presented=False
        )
    scheme, _, text = authorization.partition(" ")
    if scheme.lower() != "bearer" or not text:
        raise Unauthenticated(
            "header Authorization: it is not of the form that is allowed, `Bearer TOKEN`", presented=False
        )
    return text.strip(" ")


def unknown_token() -> Unauthenticated:
    """One answer for all: what exactly was wrong is nobody's business who has no token."""
    return Unauthenticated(
        "the token is not one of this cluster: it was never made, or was revoked, or is not exactly what was "
        "given out",
        presented=True,
    )
