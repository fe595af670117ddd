"""TLS between members, on real sockets: who gets in, who does not, and what both sides say of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from pathlib import Path

import pytest

from raftkv.model import Member
from raftkv.raft.messages import Echo, SnapshotPart
from raftkv.raft.transport import Limits
from tests.certificates import Certificates, old_tls
from tests.unit.raft_port import LOOPS, BarePeer, Node, connected, introduce, run, until

pytestmark = pytest.mark.parametrize("loop", list(LOOPS))

QUICK = Limits(reconnect_seconds_min=0.005, reconnect_seconds_max=0.02)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def test_members_talk_over_tls(loop: str, certificates: Certificates) -> None:
    async def main() -> None:
        async with (
            Node("n1", credentials=certificates.peer("n1"), limits=QUICK) as n1,
            Node("n2", credentials=certificates.peer("n2"), limits=QUICK) as n2,
        ):
            introduce(n1, n2)
            await connected(n1, n2)
            large = SnapshotPart("s", 1, 0, b"x" * 5_000_000)
            n1.transport.send("n2", large)
            for number in range(500):
                n1.transport.send("n2", Echo(1, number))
            await until(lambda: len(n2.messages) == 501)
            assert n2.messages == [("n1", large), *(("n1", Echo(1, number)) for number in range(500))]

    run(loop, main())


def test_what_waits_for_a_slow_peer_is_counted_over_tls_too(loop: str, certificates: Certificates) -> None:
    async def main() -> None:
        limits = Limits(backlog_bytes_max=4 << 20)
        async with (
            Node("n1", credentials=certificates.peer("n1"), limits=limits) as n1,
            Node("n2", credentials=certificates.peer("n2")) as n2,
        ):
            introduce(n1, n2)
            await connected(n1, n2)
            (heard,) = n2.transport._accepted.values()
            assert heard._transport is not None
            heard._transport.pause_reading()
            part = SnapshotPart("s", 1, 0, b"x" * (1 << 20))
            sent = 0
            while n1.transport.send("n2", part):
                sent += 1
                assert n1.transport.backlog_bytes("n2") <= limits.backlog_bytes_max + 2 * len(part.data)
                await asyncio.sleep(0)
            assert sent < 100  # of 1 MiB each: what the bound and the kernel's buffers hold
            await until(lambda: "-n2" in n1.links)

    run(loop, main())


# --- who calls --------------------------------------------------------------------------------------------


# Each with what the log of the port says of it.
CALLERS = {
    "no certificate": "no certificate, and this port wants one",
    "expired": "certificate has expired",
    "wrong CA": "the certificate was refused",
    "a client's": "it names nobody",
    "a non-member's": "it names n9.raftkv",
    "another member's": "it names n3.raftkv",
    "for servers alone": "certificate purpose",
    "TLS 1.1": "a version of TLS below 1.2",
    "plain text": "plain text on a port that speaks TLS",
}


def context_of(caller: str, certificates: Certificates) -> ssl.SSLContext | None:
    if caller == "plain text":
        return None
    return old_tls() if caller == "TLS 1.1" else certificates.caller(caller, certificates.pairs().get(caller))


async def called(target: Node, context: ssl.SSLContext | None) -> BarePeer:
    """Passed the handshake with the cluster's secret as n2, or raises."""
    reader, writer = await asyncio.open_connection(*target.transport.address, ssl=context)
    try:
        return await BarePeer(reader, writer).shake_hands("n2", target)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize("caller", CALLERS)
def test_a_caller_is_refused_with(
    loop: str, caller: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows the cluster's secret, and calls itself n2, which is a member."""
    context = context_of(caller, certificates)

    async def main() -> None:
        async with (
            Node("n1", credentials=certificates.peer("n1"), limits=QUICK) as n1,
            Node("n2", credentials=certificates.peer("n2"), limits=QUICK) as n2,
        ):
            introduce(n1, n2)
            await connected(n1, n2)
            heard, links = len(n1.messages), list(n1.links)
            with pytest.raises((OSError, AssertionError)):
                await called(n1, context)
            await until(lambda: CALLERS[caller] in caplog.text)
            assert (len(n1.messages), n1.links) == (heard, links)
            assert n2.transport.send("n1", Echo(2, 1))  # the member's own connection stands
            await until(lambda: n1.messages[heard:] == [("n2", Echo(2, 1))])

    with caplog.at_level(logging.WARNING):
        run(loop, main())


def test_the_same_caller_gets_in_with_the_members_certificate(loop: str, certificates: Certificates) -> None:
    context = certificates.caller("n2", certificates.authority.node("n2"))

    async def main() -> None:
        async with Node("n1", credentials=certificates.peer("n1")) as n1, Node("n2") as n2:
            introduce(n1, n2, dial=False)
            await called(n1, context)

    run(loop, main())


# --- who is called ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", ["expired", "wrong CA", "a client's", "a non-member's", "another member's"])
def test_a_node_does_not_speak_with_who_shows(loop: str, shown: str, certificates: Certificates) -> None:
    """Not even its greeting is sent."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificates.write("impostor", certificates.pairs()[shown]))
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await reader.read(100))
        except OSError:
            heard.append(b"")
        writer.transport.abort()

    async def main() -> None:
        impostor = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=server)
        address = f"127.0.0.1:{impostor.sockets[0].getsockname()[1]}"
        async with Node("n1", credentials=certificates.peer("n1"), limits=QUICK) as n1:
            n1.transport.set_members([n1.member, Member("n2", address, "https://n2")])
            await until(lambda: "certificate" in n1.transport.problem("n2"))
            assert not n1.transport.connected("n2")
        impostor.close()

    run(loop, main())
    assert set(heard) <= {b""}


def test_plain_text_and_tls_refuse_each_other_and_both_say_so(
    loop: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with (
            Node("n1", credentials=certificates.peer("n1"), limits=QUICK) as secure,
            Node("n2", limits=QUICK) as plain,
        ):
            introduce(secure, plain)
            await until(lambda: "TLS" in secure.transport.problem("n2"))
            await until(lambda: "TLS" in plain.transport.problem("n1"))
            await until(lambda: "plain text on a port that speaks TLS" in caplog.text)
            await until(lambda: "the other end speaks TLS and this node's raft port does not" in caplog.text)
            assert (secure.links, plain.links) == ([], [])

    with caplog.at_level(logging.WARNING):
        run(loop, main())


def test_a_tls_handshake_has_a_deadline_and_the_oldest_of_too_many_goes(
    loop: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        limits = Limits(handshake_seconds_max=0.5, unauthenticated_connections_max=3)
        async with (
            Node("n1", credentials=certificates.peer("n1"), limits=limits) as n1,
            Node("n2", credentials=certificates.peer("n2"), limits=QUICK) as n2,
        ):
            silent = [await BarePeer.call(n1) for _ in range(5)]
            for each in silent:
                await each.closed_by_the_port()
            introduce(n1, n2)
            await connected(n1, n2)

    with caplog.at_level(logging.WARNING):
        run(loop, main())
    assert "too many TLS handshakes" in caplog.text
