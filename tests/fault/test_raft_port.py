"""Strangers at the raft port: whatever they send, nothing changes, and members go on talking."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import pytest

from raftkv.model import Member
from raftkv.raft import messages
from raftkv.raft.messages import Echo
from raftkv.raft.transport import Limits
from tests.unit.raft_port import LOOPS, BarePeer, Node, connected, introduce, run, until

pytestmark = pytest.mark.parametrize("loop", list(LOOPS))

ECHO = b"\x01" + messages.encode(Echo(1, 1))


async def still_serving(n1: Node, n2: Node) -> None:
    """The link that stood still stands, and a new member is let in."""
    assert n1.links == ["+n2"]
    assert n2.links == ["+n1"]
    before = len(n1.messages)
    assert n2.transport.send("n1", Echo(9, 9))
    await until(lambda: len(n1.messages) > before)
    assert n1.messages[before:] == [("n2", Echo(9, 9))]
    newcomer = await (await BarePeer.call(n1)).shake_hands("n3", n1)
    newcomer.writer.write(newcomer.frame(ECHO))
    await until(lambda: n1.messages[-1] == ("n3", Echo(1, 1)))
    newcomer.close()


async def members(n1: Node, n2: Node) -> None:
    """n1 and n2 talk; n3 is known but away."""
    async with Node("n3") as n3:
        introduce(n1, n2, n3, dial=False)
        two = (n1.member, n2.member)
    n1.transport.set_members(two)
    n2.transport.set_members(two)
    await connected(n1, n2)


def garbage(seed: int) -> bytes:
    """Random bytes, often behind a beginning that looks right."""
    rng = random.Random(seed)
    greeting = b"RAFTKV\x01D" + rng.randbytes(32)
    start = rng.choice((b"", greeting[:6], greeting[:8], greeting, b"GET / HTTP/1.1\r\n"))
    return start + rng.randbytes(rng.choice((0, 1, 7, 100, 5000, 200_000)))


def test_random_bytes_change_nothing(loop: str) -> None:
    async def main() -> None:
        async with Node("n1") as n1, Node("n2") as n2:
            await members(n1, n2)
            for seed in range(60):
                stranger = await BarePeer.call(n1)
                stranger.writer.write(garbage(seed))
                if seed % 2:
                    stranger.writer.write_eof()
                    await stranger.closed_by_the_port()
                else:
                    stranger.close()
            await until(lambda: not n1.transport._strangers)
            assert n1.messages == []
            assert n1.controls == []
            await still_serving(n1, n2)

    run(loop, main())


def _after_handshake() -> dict[str, Callable[[BarePeer], bytes]]:
    oversized = (2**31).to_bytes(4, "little")
    return {
        "random bytes": lambda peer: os.urandom(100),
        "no mac": lambda peer: len(ECHO).to_bytes(4, "little") + bytes(16) + ECHO,
        "a flipped bit": lambda peer: peer.frame(ECHO)[:-1] + b"\xff",
        "a repeated frame": lambda peer: peer.frame(ECHO) * 2,
        "a dropped frame": lambda peer: (peer.frame(ECHO), peer.frame(ECHO))[1],
        "an oversized frame": lambda peer: oversized + peer.frame(ECHO),
        "an empty frame": lambda peer: bytes(20),
        "another kind": lambda peer: peer.frame(b"\x02" + ECHO[1:]),
        "no message": lambda peer: peer.frame(b"\x01\xc1"),
        "a pickle": lambda peer: peer.frame(b"\x01\x80\x04cos\nsystem\n(S'false'\ntR."),
        "an unknown message": lambda peer: peer.frame(b"\x01\x92\xa2zz\x01"),
        "wrong types": lambda peer: peer.frame(b"\x01\x93\xa2ec\xa11\xa12"),
        "text that is not UTF-8": lambda peer: peer.frame(b"\x01\x92\xa2\xff\xfe\x01"),
        "nesting without end": lambda peer: peer.frame(b"\x01\x94\xa2ec\x01\x01" + b"\x91" * 5000),
        "no control": lambda peer: peer.frame(b"\x00" + ECHO[1:]),
    }


@pytest.mark.parametrize("fault", list(_after_handshake()))
def test_a_bad_frame_ends_its_connection_and_nothing_else(
    loop: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Even from one that holds the secret. What was good before it still counts; what follows does not."""

    async def main() -> None:
        async with Node("n1") as n1, Node("n2") as n2:
            await members(n1, n2)
            peer = await (await BarePeer.call(n1)).shake_hands("n3", n1)
            peer.writer.write(peer.frame(ECHO))
            await until(lambda: len(n1.messages) == 1)
            peer.writer.write(_after_handshake()[fault](peer))
            peer.writer.write(peer.frame(ECHO))
            await peer.closed_by_the_port()
            assert len(n1.messages) == (2 if fault == "a repeated frame" else 1)
            assert n1.controls == []
            n1.messages.clear()
            await still_serving(n1, n2)

    run(loop, main())
    assert "connection_rejected" in caplog.text
    assert "peer=n3" in caplog.text


def test_an_oversized_frame_is_refused_before_its_bytes_are_kept(loop: str) -> None:
    """Only the four bytes of its length have to arrive."""

    async def main() -> None:
        async with Node("n1", limits=Limits(frame_bytes_max=1000)) as n1:
            introduce(n1, dial=False)
            async with Node("n3") as n3:
                introduce(n1, n3, dial=False)
            peer = await (await BarePeer.call(n1)).shake_hands("n3", n1)
            peer.writer.write((1001).to_bytes(4, "little"))
            await peer.closed_by_the_port()

    run(loop, main())


def test_a_slow_handshake_ends_at_its_deadline(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    """A byte now and then does not extend it, nor does silence."""

    async def main() -> None:
        async with Node("n1", limits=Limits(handshake_seconds_max=0.2)) as n1:
            started = asyncio.get_running_loop().time()
            silent, slow = await BarePeer.call(n1), await BarePeer.call(n1)
            ended = asyncio.ensure_future(slow.closed_by_the_port())
            for byte in b"RAFTKV\x01D" + bytes(1000):
                if ended.done():
                    break
                slow.writer.write(bytes([byte]))
                await asyncio.sleep(0.01)
            await ended
            await silent.closed_by_the_port()
            assert not n1.transport._strangers
            assert asyncio.get_running_loop().time() - started < 3.0

    run(loop, main())
    assert "no handshake within its deadline" in caplog.text


def test_a_slow_answer_to_a_call_ends_at_its_deadline(loop: str) -> None:
    async def main() -> None:
        arrived = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # until the dialer gives up
            arrived.set()
            writer.transport.abort()

        async with Node("n1", limits=Limits(handshake_seconds_max=0.1)) as n1:
            server = await asyncio.start_server(silent, "127.0.0.1", 0)
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            n2 = Member("n2", address, "http://n2")
            n1.transport.set_members([n1.member, n2])
            await arrived.wait()
            await until(lambda: "in time" in n1.transport.problem("n2"))
            n1.transport.set_members([n1.member])
            server.close()

    run(loop, main())


def test_the_oldest_of_too_many_strangers_goes_and_members_still_get_in(loop: str) -> None:
    async def main() -> None:
        async with Node("n1", limits=Limits(unauthenticated_connections_max=5)) as n1, Node("n2") as n2:
            strangers = []
            for count in range(1, 9):
                strangers.append(await BarePeer.call(n1))
                await until(lambda count=count: len(n1.transport._strangers) == min(count, 5))  # type: ignore[misc]
            for oldest in strangers[:3]:
                await oldest.closed_by_the_port()
            await members(n1, n2)
            for stranger in strangers:
                stranger.close()
            await still_serving(n1, n2)

    run(loop, main())


def test_a_flood_of_strangers_does_not_flood_the_log(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Node("n1") as n1:
            for _ in range(200):
                stranger = await BarePeer.call(n1)
                stranger.writer.write(b"GET / HTTP/1.1\r\n\r\n")
                await stranger.closed_by_the_port()

    run(loop, main())
    assert 1 <= sum("connection_rejected" in record.message for record in caplog.records) <= 20
