"""Clients that record what they did, and the load that they make: the input of the judgements in `history`.

A write without an idempotency key is sent again only after an answer that says it was not applied. One with
a key is sent again, to this node or that, until it is answered or its time is up.

Every value that is written is unique, so a compare-and-set by revision (`If-Match`) is one by value too.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal
from urllib.parse import quote, urlsplit

import msgspec

from cluster.history import TOKEN_END, Kind, Outcome, Record, Recorder
from cluster.plain_http import Address, Answer, Connection, NoAnswer, NotSent

TXN = "/v1/txn"
SIDES = ("/left", "/right")
Keying = Literal["none", "sequence", "free"]  # no idempotency key; <client>/<n>; any other
REDIRECTS_MAX = 5  # a leader is one redirect away; more, only while leadership moves
PAUSE_SECONDS = (0.02, 0.1)  # between attempts: an election takes several times as long


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client last read of a key: the condition of its next compare-and-set. No etag: absent."""

    value: str | None
    etag: str


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """How one attempt ended. `final`: it says all there is to know, another attempt would add nothing."""

    outcome: Outcome
    final: bool = False
    answer: Answer | None = None
    redirect: str = ""
    detail: str = ""


class Client:
    """One operation at a time, each recorded.

    `endpoints` are where a node is reached, which may be through a proxy; `advertised` names the node behind
    the address in a redirect. Requests go to any of `entries` first (default: every node).
    """

    def __init__(
        self,
        name: str,
        endpoints: Mapping[str, Address],
        recorder: Recorder,
        random: Random,
        *,
        advertised: Mapping[Address, str] | None = None,
        entries: Sequence[str] | None = None,
        attempt_timeout_s: float = 2.0,
        give_up_s: float = 15.0,
    ) -> None:
        self.name = name
        self.seen: dict[str, Seen] = {}
        self._recorder = recorder
        self._random = random
        self._entries = list(endpoints if entries is None else entries)
        self._advertised = dict(advertised or {address: node for node, address in endpoints.items()})
        self._connections = {node: Connection(address) for node, address in endpoints.items()}
        self._attempt_timeout_s = attempt_timeout_s
        self._give_up_s = give_up_s
        self._numbers = itertools.count(1)
        self._tokens = itertools.count(1)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def token(self) -> str:
        """A value that nobody else writes."""
        return f"{self.name}.{next(self._tokens)}{TOKEN_END}"

    # --- operations ---------------------------------------------------------------------------------

    async def get(self, key: str, *, node: str | None = None) -> Record:
        """A linearizable read, tried again until the time is up: by `node` alone, or by any."""
        return await self._read(
            key, _target(key), node, lambda answer: answer.body.decode() if answer.status == 200 else None
        )

    async def read(self, key: str, *, node: str | None = None) -> Record:
        """As the key's model has it."""
        return await (self.get_pair if key.startswith("pair/") else self.get)(key, node=node)

    async def put(self, key: str, value: str, *, keying: Keying = "sequence", route: str = "") -> Record:
        return await self._write("put", key, "PUT", "", keying, route, value=value)

    async def delete(self, key: str, *, keying: Keying = "sequence", route: str = "") -> Record:
        return await self._write("delete", key, "DELETE", "", keying, route)

    async def append(self, key: str, value: str, *, keying: Keying = "sequence", route: str = "") -> Record:
        return await self._write("append", key, "POST", "?op=append", keying, route, value=value)

    async def increment(self, key: str, by: int, *, keying: Keying = "sequence", route: str = "") -> Record:
        return await self._write("incr", key, "POST", f"?op=incr&by={by}", keying, route, by=by)

    async def compare_and_set(
        self, key: str, value: str, *, keying: Keying = "sequence", route: str = ""
    ) -> Record:
        """Against what this client last read of the key."""
        seen = self.seen[key]
        condition = {"If-Match": seen.etag} if seen.value is not None else {"If-None-Match": "*"}
        return await self._write(
            "cas", key, "PUT", "", keying, route, value=value, expected=seen.value, headers=condition
        )

    async def put_pair(self, key: str, value: str, *, keying: Keying = "sequence", route: str = "") -> Record:
        """The value under two keys, in one transaction."""
        puts = [{"put": {"key": key + side, "value": value}} for side in SIDES]
        body = msgspec.json.encode({"compare": [], "success": puts, "failure": []})
        return await self._write("put", key, "POST", "", keying, route, value=value, target=TXN, body=body)

    async def get_pair(self, key: str, *, node: str | None = None) -> Record:
        """Both keys in one list. Where they differ the result is one that nobody wrote: a violation."""
        return await self._read(key, f"/v1/kv?prefix={quote(key, safe='')}/", node, _pair)

    # --- how ----------------------------------------------------------------------------------------

    async def _read(
        self, key: str, target: str, node: str | None, value_of: Callable[[Answer], str | None]
    ) -> Record:
        number = self._recorder.begin(self.name, key, "get")
        nodes: list[str] = []
        reply = await self._ask(Request("GET", target), nodes, node, repeatable=True)
        if reply.outcome != "ok" or reply.answer is None:
            return self._recorder.end(number, "not_applied", nodes=nodes, detail=reply.detail)
        value = value_of(reply.answer)
        self.seen[key] = Seen(value, reply.answer.headers.get("etag", ""))
        revision = reply.answer.headers.get("raftkv-revision")
        return self._recorder.end(
            number, "ok", result=value, store_revision=int(revision) if revision else None, nodes=nodes
        )

    async def _write(
        self,
        kind: Kind,
        key: str,
        method: str,
        query: str,
        keying: Keying,
        route: str,
        *,
        value: str | None = None,
        expected: str | None = None,
        by: int = 0,
        headers: Mapping[str, str] | None = None,
        target: str = "",
        body: bytes | None = None,
    ) -> Record:
        idempotency_key = self._idempotency_key(keying)
        sent = dict(headers or {})
        if idempotency_key is not None:
            sent["Idempotency-Key"] = idempotency_key
        if route:
            sent["Raftkv-Route"] = route
        number = self._recorder.begin(
            self.name, key, kind, value=value, expected=expected, by=by, idempotency_key=idempotency_key
        )
        nodes: list[str] = []
        body = (value or "").encode() if body is None else body
        request = Request(method, target or _target(key) + query, body, sent)
        reply = await self._ask(request, nodes, None, repeatable=idempotency_key is not None)
        if reply.outcome != "ok" or reply.answer is None:
            return self._recorder.end(number, reply.outcome, nodes=nodes, detail=reply.detail)
        result, revision = _result(kind, reply.answer)
        if target:  # a transaction's answer does not say whether its puts created
            result = None
        return self._recorder.end(number, "ok", result=result, revision=revision, nodes=nodes)

    def _idempotency_key(self, keying: Keying) -> str | None:
        if keying == "none":
            return None
        number = next(self._numbers)
        return f"{self.name}/{number}" if keying == "sequence" else f"{self.name} no. {number}"

    async def _ask(self, request: Request, nodes: list[str], node: str | None, *, repeatable: bool) -> Reply:
        """Attempts until one is final or the time is up. `nodes` receives who was asked."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._give_up_s
        may_have_happened = False
        target = node or self._random.choice(self._entries)
        redirects = 0
        while True:
            nodes.append(target)
            reply = await self._attempt(target, request)
            may_have_happened = may_have_happened or reply.outcome == "unknown"
            if reply.final:
                return reply
            if reply.redirect and redirects < REDIRECTS_MAX and node is None:
                redirects += 1
                target = reply.redirect
                continue
            if clock() >= deadline or (may_have_happened and not repeatable):
                return Reply("unknown" if may_have_happened else "not_applied", detail=reply.detail)
            await asyncio.sleep(self._random.uniform(*PAUSE_SECONDS))
            target = node or self._random.choice(self._entries)
            redirects = 0

    async def _attempt(self, node: str, request: Request) -> Reply:
        try:
            answer = await self._connections[node].request(
                request.method,
                request.target,
                request.headers,
                request.body,
                timeout_s=self._attempt_timeout_s,
            )
        except NotSent as error:
            return Reply("not_applied", detail=str(error))
        except NoAnswer as error:
            return Reply("unknown", detail=str(error))
        return self._reply(answer)

    def _reply(self, answer: Answer) -> Reply:
        if answer.status in (200, 201, 304, 404, 412) and _is_ours(answer):
            return Reply("ok", final=True, answer=answer)
        if answer.status == 307:
            parts = urlsplit(answer.headers["location"])
            return Reply("not_applied", redirect=self._advertised[parts.hostname or "", parts.port or 80])
        problem = _document(answer)
        outcome: Outcome = "not_applied" if problem.get("outcome") == "not_applied" else "unknown"
        detail = f"{answer.status} {problem.get('code')}: {problem.get('detail')}"
        return Reply(outcome, final=False, answer=answer, detail=detail)


def _is_ours(answer: Answer) -> bool:
    """Of the refusals, those that say something about the key: it is missing, or it has another revision."""
    if answer.status in (404, 412):
        return _document(answer).get("code") in ("key_not_found", "precondition_failed")
    return True


def _document(answer: Answer) -> dict[str, object]:
    try:
        document = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _result(kind: Kind, answer: Answer) -> tuple[int | bool | None, int | None]:
    """What the model answers for the operation, and the revision of the write if it made one."""
    if answer.status == 412:
        return False, None
    body = _document(answer)
    revision = body.get("revision")
    assert isinstance(revision, int), f"a write's answer without a revision: {answer}"
    match kind:
        case "put":
            return answer.status == 201, revision
        case "cas":
            return True, revision
        case "delete":
            deleted = body["deleted"] == 1
            return deleted, revision if deleted else None
        case "append":
            return _integer(body["length"]), revision
        case "incr":
            return _integer(body["value"]), revision
    raise ValueError(f"{kind} is not a write")


def _pair(answer: Answer) -> str | None:
    items = _document(answer)["items"]
    assert isinstance(items, list)
    values = {item["value"] for item in items}
    if len(items) == 0:
        return None
    return str(items[0]["value"]) if len(items) == 2 and len(values) == 1 else f"torn: {items}"


def _integer(value: object) -> int:
    assert isinstance(value, int)
    return value


def _target(key: str) -> str:
    return "/v1/kv/" + quote(key)


# --- load ----------------------------------------------------------------------------------------------

SLOTS = 4  # keys of each model in use at a time: few, so that clients meet on them
OPERATIONS_A_KEY = 400  # then the slot takes a new key: unknown outcomes haunt a key for the rest of its life
THINK_SECONDS = 0.02  # at most, between a client's operations: the load shares the machine with the nodes
MODELS = ("register", "append", "counter", "pair")


class Keys:
    """Which keys are in use, shared by the clients of a load."""

    def __init__(
        self, random: Random, *, slots: int = SLOTS, operations_a_key: int = OPERATIONS_A_KEY
    ) -> None:
        self._random = random
        self._slots = slots
        self._operations_a_key = operations_a_key
        self._uses: dict[str, int] = {}
        self._generation = {(model, slot): 0 for model in MODELS for slot in range(slots)}

    def pick(self) -> tuple[str, str]:
        """(model, key)"""
        model = self._random.choice(MODELS)
        slot = self._random.randrange(self._slots)
        key = self._key(model, slot)
        if self._uses.get(key, 0) >= self._operations_a_key:
            self._generation[model, slot] += 1
            key = self._key(model, slot)
        self._uses[key] = self._uses.get(key, 0) + 1
        return model, key

    def used(self) -> list[str]:
        return sorted(self._uses)

    def _key(self, model: str, slot: int) -> str:
        return f"{model}/{slot}-{self._generation[model, slot]}"


class Load:
    """`clients` work side by side until `stop` is set; a write is keyed in one of the ways of `keyings`."""

    def __init__(
        self,
        clients: Sequence[Client],
        random: Random,
        keys: Keys | None = None,
        *,
        keyings: Sequence[Keying] = ("none", "none", "sequence", "free"),
    ) -> None:
        self.clients = tuple(clients)
        self.keys = keys or Keys(random)
        self._keyings = tuple(keyings)
        self._random = random

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            for client in self.clients:
                group.create_task(self._work(client, stop))

    async def _work(self, client: Client, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._operate(client)
            await asyncio.sleep(self._random.uniform(0, THINK_SECONDS))

    async def _operate(self, client: Client) -> None:
        model, key = self.keys.pick()
        keying = self._random.choice(self._keyings)
        route = self._random.choice(("", "", "forward"))
        dice = self._random.random()
        if model == "pair":
            if dice < 0.5:
                await client.get_pair(key)
            else:
                await client.put_pair(key, client.token(), keying=keying, route=route)
        elif dice < 0.4:
            await client.get(key)
        elif model == "append":
            await client.append(key, client.token(), keying=keying, route=route)
        elif model == "counter":
            await client.increment(key, self._random.choice((1, 2, 5)), keying=keying, route=route)
        elif dice < 0.65:
            await client.put(key, client.token(), keying=keying, route=route)
        elif dice < 0.95:
            if key not in client.seen or self._random.random() < 0.5:
                await client.get(key)
            if key in client.seen:
                await client.compare_and_set(key, client.token(), keying=keying, route=route)
        else:
            await client.delete(key, keying=keying, route=route)
