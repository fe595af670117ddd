"""Passing a write on to the leader, for clients that can't follow a redirect.

- A write that is passed on always has an idempotency key: its own, or one made here. So an attempt whose
  outcome got lost can be repeated, against whoever leads by then, and still happens once.
- A request that was passed on says so, and its receiver never passes it on again.
- A batch is streamed through as it comes, and therefore tried once; so is the making of a token, whose answer
  can't be given twice.
- The client's token goes with it: the receiver asks for it again.

Made keys have the form `<client>/<n>`, which costs the store one window a client. A window keeps the last
1,024 outcomes of its client, so a lane (one such client) gives out no number that is 1,000 or more above
its oldest one still on its way; then another lane does.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from yarl import URL

from raftkv.api.calls import Call, Streamed, TooLarge
from raftkv.api.limits import Limits
from raftkv.api.trace import trace_context
from raftkv.api.wire import Answer, body_too_large, split_target, value_too_large
from raftkv.errors import CommitTimeout, NoLeader, NotLeader, Overloaded
from raftkv.tls.credentials import Credentials

WINDOW = 1_000
LANES_MAX = 64
RETRY_PAUSE_S = 0.05  # an election takes ten times as long at least
CONNECTIONS_MAX = 256
HEADERS_PASSED = (
    "Accept",
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
)
# What the leader's answer has that is its own to say; the rest of the headers are made here.
ANSWER_HEADERS = (
    "ETag",
    "Raftkv-Replayed",
    "Raftkv-Consistency",
    "Retry-After",
    "Location",
    "Allow",
    "WWW-Authenticate",
)


class Lane:
    """Numbers of one idempotency client, given out in order and handed back in any."""

    __slots__ = ("_next", "client", "on_their_way")

    def __init__(self, client: str) -> None:
        self.client = client
        self.on_their_way: dict[int, None] = {}  # in order: the first is the oldest
        self._next = 1

    @property
    def has_room(self) -> bool:
        return not self.on_their_way or self._next - next(iter(self.on_their_way)) < WINDOW

    def take(self) -> int:
        number, self._next = self._next, self._next + 1
        self.on_their_way[number] = None
        return number


class Lanes:
    """The idempotency keys that this process makes. The name is drawn anew for each process."""

    def __init__(self, node: str) -> None:
        safe = "".join(each if each.isalnum() and each.isascii() else "-" for each in node)[:32]
        self._name = f"via-{safe}-{secrets.token_hex(8)}"
        self._lanes = [Lane(f"{self._name}-0")]

    def take(self) -> tuple[Lane, int]:
        for lane in self._lanes:
            if lane.has_room:
                return lane, lane.take()
        if len(self._lanes) >= LANES_MAX:
            raise Overloaded("too many writes are being passed on to the leader; try again shortly")
        lane = Lane(f"{self._name}-{len(self._lanes)}")
        self._lanes.append(lane)
        return lane, lane.take()


Handler = Callable[[Call], Awaitable[Answer | Streamed]]


class Forwarder:
    """One HTTP client for all leaders to come. Close it."""

    def __init__(self, name: str, limits: Limits, credentials: Credentials | None = None) -> None:
        """`credentials`: for leaders with https URLs; by default what the system trusts."""
        self._name = name
        self._limits = limits
        self._credentials = credentials
        self._lanes = Lanes(name)
        self._session: aiohttp.ClientSession | None = None
        self.count = 0  # of requests passed on, since the start

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def relay(self, call: Call, leader_url: str, handler: Handler) -> Answer | Streamed:
        """The leader's answer. `handler` serves the call here, should this node lead by the time of a retry.

        Raises NoLeader (not applied), CommitTimeout (unknown), and what reading the body raises.
        """
        self.count += 1
        if call.route.name == "batch":
            return await self._stream(call, leader_url)
        body = await call.body.read(*self._body_bound(call))
        if call.route.name == "create_token":
            return await self._once(call, leader_url, body)
        if "Idempotency-Key" in call.headers:
            return await self._attempts(call, leader_url, body, handler)
        lane, number = self._lanes.take()
        call.headers["Idempotency-Key"] = f"{lane.client}/{number}"
        try:
            return await self._attempts(call, leader_url, body, handler)
        finally:
            del lane.on_their_way[number]

    async def _once(self, call: Call, leader_url: str, body: bytes) -> Answer:
        """What can't be repeated: no stored outcome could give the answer again."""
        try:
            return await self._attempt(call, leader_url, body, call.timeout_s)
        except aiohttp.ClientConnectorError as error:
            raise NoLeader(
                "the leader could not be reached; nothing was written, try again shortly"
            ) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CommitTimeout(
                "the request was passed on to the leader, and no answer came; it may have happened"
            ) from error

    def _body_bound(self, call: Call) -> tuple[int, TooLarge]:
        """As the route's own handler has it."""
        limits = self._limits
        if call.route.name in ("put_key", "change_key"):
            return limits.value_bytes_max, lambda size: value_too_large(size, "body", limits)
        return limits.body_bytes_max, lambda size: body_too_large(size, limits)

    async def _attempts(
        self, call: Call, leader_url: str, body: bytes, handler: Handler
    ) -> Answer | Streamed:
        """Until an answer that settles it, or the deadline. Raises NoLeader only if no attempt can have taken
        effect."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + call.timeout_s
        ambiguous = False
        while True:
            left_s = deadline - loop.time()
            if left_s <= 0:
                break
            try:
                answer = await self._attempt(call, leader_url, body, left_s)
            except aiohttp.ClientConnectorError:
                answer = None  # nothing was sent
            except (aiohttp.ClientError, TimeoutError):
                answer, ambiguous = None, True
            if answer is not None and not _try_again(answer):
                return answer
            if answer is not None and answer.status == 504:
                ambiguous = True
            await asyncio.sleep(min(RETRY_PAUSE_S, left_s))
            try:
                call.service.check_leads()
            except NotLeader as error:
                leader_url = error.leader_url
            except NoLeader:
                if not ambiguous:
                    raise
            else:
                return await handler(call)
        if ambiguous:
            raise CommitTimeout(
                f"the write was passed on to the leader, and no answer came within {call.timeout_s:g} s; "
                "it may have happened. Repeat it under an idempotency key of your own to be sure"
            )
        raise NoLeader("the leader could not be reached; nothing was written, try again shortly")

    async def _attempt(self, call: Call, leader_url: str, body: bytes, left_s: float) -> Answer:
        async with self._client().request(
            call.method,
            _url(leader_url, call.target),
            data=body or None,
            headers=self._headers(call),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=left_s),
            ssl=self._tls(),
        ) as response:
            return _answer(response, await response.read())

    async def _stream(self, call: Call, leader_url: str) -> Streamed:
        """The body goes as it comes, and the answer comes as it goes."""
        request = self._client().request(
            call.method,
            _url(leader_url, call.target),
            data=call.body.pieces(),
            headers=self._headers(call),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=call.timeout_s),
            ssl=self._tls(),
        )
        try:
            response = await request.__aenter__()
        except aiohttp.ClientConnectorError as error:
            raise NoLeader(
                "the leader could not be reached; nothing was written, try again shortly"
            ) from error
        except aiohttp.ClientError as error:
            raise CommitTimeout(f"the connection to the leader failed on the way: {error}") from error

        async def chunks() -> AsyncIterator[bytes]:
            try:
                async with response:
                    async for piece in response.content.iter_any():
                        yield piece
            except aiohttp.ClientError as error:
                raise CommitTimeout(f"the stream to or from the leader was cut: {error}") from error

        return Streamed(_answer(response, b""), chunks())

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
            )
        return self._session

    def _tls(self) -> ssl.SSLContext | bool:
        """Asked for each request: after a reload, connections under the old context are not used again."""
        return self._credentials.client if self._credentials is not None else True

    def _headers(self, call: Call) -> dict[str, str]:
        headers = {name: call.headers[name] for name in HEADERS_PASSED if name in call.headers}
        trace = call.trace or trace_context(call.headers)
        if trace is not None:
            headers["Traceparent"] = trace.traceparent
            if trace.state:
                headers["Tracestate"] = trace.state
        return headers | {"Request-Id": call.request_id, "Raftkv-Forwarded-By": self._name}


def _url(leader_url: str, target: bytes) -> URL:
    """The target goes on byte for byte: what stands there was checked, and must not be normalised."""
    path, query = split_target(target)
    whole = path if query is None else path + b"?" + query
    return URL(leader_url + _quoted(whole), encoded=True)


def _quoted(target: bytes) -> str:
    """aiohttp's client sends ASCII; UTF-8 that a client sent as it stands means the same percent-encoded."""
    return "".join(chr(each) if each < 0x80 else f"%{each:02X}" for each in target)


def _answer(response: aiohttp.ClientResponse, body: bytes) -> Answer:
    headers = tuple((name, response.headers[name]) for name in ANSWER_HEADERS if name in response.headers)
    return Answer(response.status, body, response.headers.get("Content-Type", "application/json"), headers)


def _try_again(answer: Answer) -> bool:
    """The receiver leads no more, or its outcome is not known: under the key, asking again is safe."""
    return answer.status in (503, 504) or (answer.status == 409 and b'"in_flight"' in answer.body)
