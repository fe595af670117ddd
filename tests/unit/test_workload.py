"""What a recording client concludes from answers, and what it sends again."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random

from cluster.history import Record, Recorder
from cluster.plain_http import Address
from cluster.workload import Client

SILENCE = b""  # the connection is closed without an answer


def answer(status: int, body: str = "", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def problem(status: int, code: str, outcome: str) -> bytes:
    return answer(status, f'{{"code": "{code}", "outcome": "{outcome}"}}')


WRITTEN = answer(200, '{"revision": 7}')
NO_LEADER = problem(503, "no_leader", "not_applied")
TIMEOUT = problem(504, "commit_timeout", "unknown")


class Script:
    """A server that gives the answers in order, and keeps the requests."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = iter(answers)
        self.heads: list[str] = []
        self.bodies: list[bytes] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
                self.bodies.append(await reader.readexactly(int(lines.get("Content-Length", "0"))))
                self.heads.append(head)
                reply = next(self._answers)
                if reply == SILENCE:
                    return
                writer.write(reply)
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[int]:
    server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def client_of(
    script: Script, *, give_up_s: float = 5.0, more: Mapping[str, Address] | None = None
) -> AsyncIterator[Client]:
    """A client that goes to the script's server, n1, first."""
    ticks = itertools.count()
    async with serving(script) as port:
        endpoints = {"n1": ("127.0.0.1", port), **(more or {})}
        client = Client(
            "c1",
            endpoints,
            Recorder(lambda: next(ticks)),
            Random(1),
            entries=["n1"],
            give_up_s=give_up_s,
        )
        yield client
        client.close()


def conclusion(record: Record) -> tuple[str, object, int | None]:
    return record.outcome, record.result, record.revision


async def test_results_are_what_the_models_answer() -> None:
    script = Script(
        answer(201, '{"revision": 1}'),
        answer(200, "v;", 'ETag: "1"\r\nRaftkv-Revision: 5\r\n'),
        answer(412, '{"code": "precondition_failed", "outcome": "not_applied"}'),
        answer(200, '{"revision": 2, "length": 4}'),
        answer(200, '{"revision": 3, "value": 9}'),
        answer(200, '{"revision": 3, "deleted": 0}'),
        answer(404, '{"code": "key_not_found"}'),
    )
    async with client_of(script) as client:
        assert conclusion(await client.put("register/a", "v;")) == ("ok", True, 1)
        read = await client.get("register/a")
        assert (conclusion(read), read.store_revision) == (("ok", "v;", None), 5)
        assert conclusion(await client.compare_and_set("register/a", "w;")) == ("ok", False, None)
        assert conclusion(await client.append("append/a", "w;")) == ("ok", 4, 2)
        assert conclusion(await client.increment("counter/a", 9)) == ("ok", 9, 3)
        assert conclusion(await client.delete("register/b")) == ("ok", False, None)
        assert conclusion(await client.get("register/b")) == ("ok", None, None)
    assert 'If-Match: "1"' in script.heads[2]


async def test_an_absent_key_is_compared_by_its_absence() -> None:
    script = Script(answer(404, '{"code": "key_not_found"}'), answer(201, '{"revision": 1}'))
    async with client_of(script) as client:
        await client.get("register/a")
        assert (await client.compare_and_set("register/a", "v;")).result is True
    assert "If-None-Match: *" in script.heads[1]


async def test_a_write_without_a_key_is_never_sent_again_once_it_may_have_happened() -> None:
    for reply in (SILENCE, TIMEOUT, answer(500)):
        script = Script(reply, WRITTEN)
        async with client_of(script) as client:
            record = await client.put("register/a", "v;", keying="none")
        assert record.outcome == "unknown"
        assert len(script.heads) == 1
        assert "Idempotency-Key" not in script.heads[0]


async def test_a_write_that_was_not_applied_is_sent_again() -> None:
    script = Script(NO_LEADER, NO_LEADER, WRITTEN)
    async with client_of(script) as client:
        record = await client.put("register/a", "v;", keying="none")
    assert conclusion(record) == ("ok", False, 7)
    assert record.nodes == ("n1", "n1", "n1")


async def test_a_write_with_a_key_is_sent_again_under_the_same_key() -> None:
    in_flight = problem(409, "in_flight", "unknown")
    script = Script(SILENCE, TIMEOUT, in_flight, NO_LEADER, WRITTEN)
    async with client_of(script, give_up_s=10) as client:
        assert conclusion(await client.put("register/a", "v;")) == ("ok", False, 7)
    sent = "".join(script.heads).split("\r\n")
    assert [line for line in sent if line.startswith("Idempotency-Key")] == ["Idempotency-Key: c1/1"] * 5


async def test_a_refusal_after_an_unknown_attempt_leaves_the_outcome_unknown() -> None:
    script = Script(SILENCE, *[NO_LEADER] * 50)
    async with client_of(script, give_up_s=0.2) as client:
        assert (await client.put("register/a", "v;")).outcome == "unknown"
    script = Script(*[NO_LEADER] * 50)
    async with client_of(script, give_up_s=0.2) as client:
        assert (await client.put("register/a", "v;")).outcome == "not_applied"


async def test_a_redirect_is_followed_with_method_and_body() -> None:
    leader = Script(WRITTEN)
    async with serving(leader) as port:
        follower = Script(answer(307, "", f"Location: http://127.0.0.1:{port}/v1/kv/register/a\r\n"))
        async with client_of(follower, more={"n2": ("127.0.0.1", port)}) as client:
            record = await client.put("register/a", "v;", keying="none")
    assert record.nodes == ("n1", "n2")
    assert leader.heads[0].startswith("PUT /v1/kv/register/a HTTP/1.1")
    assert leader.bodies == [b"v;"]


async def test_a_pair_that_is_torn_is_a_value_that_nobody_wrote() -> None:
    whole = '{"items": [{"key": "pair/a/left", "value": "v;"}, {"key": "pair/a/right", "value": "v;"}]}'
    script = Script(
        WRITTEN, *(answer(200, body) for body in (whole, whole.replace("v;", "u;", 1), '{"items": []}'))
    )
    async with client_of(script) as client:
        assert conclusion(await client.put_pair("pair/a", "v;")) == ("ok", None, 7)
        results = [(await client.get_pair("pair/a")).result for _ in range(3)]
    assert results[0] == "v;"
    assert str(results[1]).startswith("torn")
    assert results[2] is None
