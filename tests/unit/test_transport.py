"""The transport on real sockets: who is connected, what arrives, and what happens when it breaks."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from raftkv.errors import ConfigError
from raftkv.model import Identity, Member, Membership
from raftkv.raft import messages
from raftkv.raft.handshake import Standing
from raftkv.raft.messages import AppendEntries, Echo, Entry, SnapshotPart
from raftkv.raft.transport import Limits, split_address
from tests.unit.raft_port import (
    LOOPS,
    BarePeer,
    FormingNode,
    Node,
    connected,
    instance_of,
    introduce,
    run,
    until,
)

pytestmark = pytest.mark.parametrize("loop", list(LOOPS))

QUICK = Limits(reconnect_seconds_min=0.005, reconnect_seconds_max=0.02)


def test_messages_arrive_in_order_both_ways(loop: str) -> None:
    async def main() -> None:
        async with Node("n1") as n1, Node("n2") as n2:
            introduce(n1, n2)
            await connected(n1, n2)
            for number in range(3000):
                assert n1.transport.send("n2", Echo(1, number))
                assert n2.transport.send("n1", Echo(2, number))
            await until(lambda: len(n1.messages) == len(n2.messages) == 3000)
            assert n1.messages == [("n2", Echo(2, number)) for number in range(3000)]
            assert n2.messages == [("n1", Echo(1, number)) for number in range(3000)]

    run(loop, main())


def test_a_message_of_many_reads_arrives_whole(loop: str) -> None:
    async def main() -> None:
        async with Node("n1") as n1, Node("n2") as n2:
            introduce(n1, n2)
            await connected(n1, n2)
            large = AppendEntries(1, 1, 0, 0, 0, tuple(Entry(1, bytes([i]) * 500_000) for i in range(10)))
            for message in (Echo(1, 1), large, Echo(1, 2)):
                n1.transport.send("n2", message)
            await until(lambda: len(n2.messages) == 3)
            assert [message for _, message in n2.messages] == [Echo(1, 1), large, Echo(1, 2)]

    run(loop, main())


def test_one_message_to_several_peers_and_then_another(loop: str) -> None:
    """The encoding of the last message is kept: it must be that message's."""

    async def main() -> None:
        async with Node("n1") as n1, Node("n2") as n2, Node("n3") as n3:
            introduce(n1, n2, n3)
            await connected(n1, n2, n3)
            for message in (Echo(1, 7), Echo(1, 8)):
                for peer in ("n2", "n3"):
                    n1.transport.send(peer, message)
            await until(lambda: len(n2.messages) == len(n3.messages) == 2)
            assert n2.messages == n3.messages == [("n1", Echo(1, 7)), ("n1", Echo(1, 8))]

    run(loop, main())


def test_what_can_not_be_sent_is_said(loop: str) -> None:
    async def main() -> None:
        async with Node("n1") as n1:
            assert not n1.transport.send("n2", Echo(1, 1))
            n1.transport.set_members([n1.member, Member("n2", "127.0.0.1:1", "http://n2")])
            assert not n1.transport.send("n2", Echo(1, 1))
            await until(lambda: "can't connect to 127.0.0.1:1" in n1.transport.problem("n2"))
            assert n1.transport.backlog_bytes("n2") == 0

    run(loop, main())


def test_a_peer_that_restarts_is_reached_again(loop: str) -> None:
    async def main() -> None:
        async with Node("n1") as n1:
            async with Node("n2") as n2:
                introduce(n1, n2)
                await connected(n1, n2)
                port = n2.transport.address[1]
            await until(lambda: n1.links == ["+n2", "-n2"])
            async with Node("n2", port=port) as n2:
                introduce(n1, n2)
                await connected(n1, n2)
                n1.transport.send("n2", Echo(1, 1))
                await until(lambda: bool(n2.messages))
                assert n1.links == ["+n2", "-n2", "+n2"]

    run(loop, main())


def test_a_peer_that_calls_wakes_this_nodes_dialer(loop: str) -> None:
    """Its own next attempt would come only after the deadline of the test."""
    patient = Limits(reconnect_seconds_min=1000.0, reconnect_seconds_max=1000.0)

    async def main() -> None:
        with socket.socket() as placeholder:
            placeholder.bind(("127.0.0.1", 0))
            port = placeholder.getsockname()[1]
            async with Node("n1", limits=patient) as n1:
                n1.transport.set_members([n1.member, Member("n2", f"127.0.0.1:{port}", "http://n2")])
                await until(lambda: "can't connect" in n1.transport.problem("n2"))
                placeholder.close()
                async with Node("n2", port=port, limits=QUICK) as n2:
                    introduce(n1, n2)
                    await connected(n1, n2)

    run(loop, main())


def test_another_secret_gets_nowhere_and_both_say_so(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Node("n1", limits=QUICK) as n1, Node("n2", secret=b"x" * 32, limits=QUICK) as n2:
            introduce(n1, n2)
            await until(
                lambda: "secret" in n1.transport.problem("n2") and "secret" in n2.transport.problem("n1")
            )
            assert n1.links == n2.links == []

    run(loop, main())
    assert "does not hold this cluster's secret" in caplog.text
    assert "connection_rejected" in caplog.text


def test_a_refused_node_hears_the_reason_once_and_goes_on_trying(loop: str) -> None:
    async def main() -> None:
        async with Node("n1", limits=QUICK) as n1, Node("n2", limits=QUICK) as n2:
            members = introduce(n1, n2, dial=False)
            formed = Membership("c" * 32, members, (("n1", instance_of("n1")), ("n2", "e" * 32)))
            n1.standing = Standing(Identity("n1", instance_of("n1"), formed.cluster), formed, members)
            n2.transport.set_members(members)
            await until(lambda: bool(n2.refusals))
            ((peer, refusal),) = n2.refusals
            assert (peer, refusal.code) == ("n1", "empty_disk")
            assert refusal.reason in n2.transport.problem("n1")
            before = n2.transport._callers["n1"]._failures
            await until(lambda: n2.transport._callers["n1"]._failures >= before + 3)
            assert len(n2.refusals) == 1  # said when it changes, not at each attempt

            n1.standing = Standing(Identity("n1", instance_of("n1"), ""), None, members)
            await until(lambda: n2.transport.connected("n1"))
            assert n2.transport.problem("n1") == ""

    run(loop, main())


def test_an_address_that_leads_to_another_member_is_named(loop: str) -> None:
    async def main() -> None:
        async with Node("n1", limits=QUICK) as n1, Node("n3", limits=QUICK) as n3:
            members = (n1.member, Member("n2", n3.member.peer, "http://n2"), n3.member)
            for node in (n1, n3):
                node.standing = Standing(Identity(node.name, instance_of(node.name), ""), None, members)
            n1.transport.set_members(members[:2])
            await until(lambda: bool(n1.refusals))
            assert n1.refusals[0][1].code == "wrong_target"
            assert "called n2 but reached n3" in n1.refusals[0][1].reason

    run(loop, main())


def test_a_newer_connection_of_a_peer_replaces_the_older(loop: str) -> None:
    async def main() -> None:
        async with Node("n1") as n1, Node("n2") as n2:
            introduce(n1, n2, dial=False)
            older = await (await BarePeer.call(n1)).shake_hands("n2", n1)
            older.writer.write(older.frame(b"\x01" + _echo(1)))
            await until(lambda: len(n1.messages) == 1)
            newer = await (await BarePeer.call(n1)).shake_hands("n2", n1)
            older.writer.write(older.frame(b"\x01" + _echo(2)))
            await older.closed_by_the_port()
            newer.writer.write(newer.frame(b"\x01" + _echo(3)))
            await until(lambda: len(n1.messages) == 2)
            assert n1.messages == [("n2", Echo(1, 1)), ("n2", Echo(1, 3))]
            newer.close()

    run(loop, main())


def test_a_connection_closed_by_a_callback_delivers_nothing_more(loop: str) -> None:
    """One read holds many messages; the first makes the node drop the peer."""

    async def main() -> None:
        async with Node("n1") as n1, Node("n2") as n2:
            introduce(n1, n2, dial=False)
            n1.on_message = lambda peer, message: n1.transport._accepted[peer].abort()
            peer = await (await BarePeer.call(n1)).shake_hands("n2", n1)
            peer.writer.write(b"".join(peer.frame(b"\x01" + _echo(i)) for i in range(5)))
            await peer.closed_by_the_port()
            assert n1.messages == [("n2", Echo(1, 0))]

    run(loop, main())


def test_a_member_that_is_removed_is_hung_up_on(loop: str) -> None:
    async def main() -> None:
        async with Node("n1", limits=QUICK) as n1, Node("n2", limits=QUICK) as n2:
            members = introduce(n1, n2)
            await connected(n1, n2)
            alone = Membership("c" * 32, members[:1], (("n1", instance_of("n1")),))
            n1.standing = Standing(Identity("n1", instance_of("n1"), alone.cluster), alone, members)
            n1.transport.set_members(alone.members)
            await until(lambda: n1.links == ["+n2", "-n2"] and bool(n2.refusals))
            assert n2.refusals[0][1].code == "unknown_name"
            assert n1.transport.problem("n2") == "not a member"

    run(loop, main())


def test_a_peer_that_does_not_read_is_cut_at_its_backlog(loop: str) -> None:
    """A peer that shakes hands and then takes nothing: bytes pile up, are counted, and end the link."""
    limits = Limits(backlog_bytes_max=3_000_000)

    async def main() -> None:
        async with Node("n1", limits=limits) as n1, Node("n2") as n2:
            introduce(n1, n2)
            await connected(n1, n2)
            part = SnapshotPart("s", 1, 0, b"x" * 500_000)
            accepted = n2.transport._accepted["n1"]._transport
            assert accepted is not None
            accepted.pause_reading()
            backlog = 0
            while n1.transport.send("n2", part):
                assert n1.transport.backlog_bytes("n2") < 4_000_000
                backlog = max(backlog, n1.transport.backlog_bytes("n2"))
                await asyncio.sleep(0)
            assert backlog > 2_000_000
            await until(lambda: n1.links[:2] == ["+n2", "-n2"])

    run(loop, main())


def test_bytes_on_the_way_back_end_a_connection(loop: str) -> None:
    async def main() -> None:
        async with Node("n1", limits=QUICK) as n1, Node("n2", limits=QUICK) as n2:
            introduce(n1, n2)
            await connected(n1, n2)
            accepted = n2.transport._accepted["n1"]._transport
            assert accepted is not None
            accepted.write(b"x")
            await until(lambda: n1.links[:2] == ["+n2", "-n2"])
            await connected(n1, n2)

    run(loop, main())


def test_a_silent_death_is_left_to_the_kernel_with_a_bound(loop: str) -> None:
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("only Linux bounds unacknowledged data")

    async def main() -> None:
        async with Node("n1", limits=Limits(peer_timeout_ms=1700)) as n1, Node("n2") as n2:
            introduce(n1, n2)
            await connected(n1, n2)
            link = n1.transport._callers["n2"].link
            assert link is not None
            assert link.transport is not None
            connection = link.transport.get_extra_info("socket")
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1700
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1

    run(loop, main())


def test_a_taken_port_and_a_short_secret_are_configuration_errors(loop: str) -> None:
    async def main() -> None:
        async with Node("n1") as n1:
            with pytest.raises(ConfigError, match="can't listen"):
                async with Node("n2", port=n1.transport.address[1]):
                    raise AssertionError("unreachable")

    run(loop, main())
    with pytest.raises(ConfigError, match="at least 16"):
        Node("n1", secret=b"short")


def test_an_error_of_the_body_leaves_as_it_is(loop: str) -> None:
    async def main() -> None:
        async with Node("n1") as n1:
            n1.transport.set_members([n1.member, Member("n2", "127.0.0.1:1", "http://n2")])
            raise LookupError

    with pytest.raises(LookupError):
        run(loop, main())


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [("h:1", ("h", 1)), ("[::1]:8401", ("::1", 8401)), ("10.0.0.1:65535", ("10.0.0.1", 65535))],
)
def test_addresses(loop: str, address: str, endpoint: tuple[str, int]) -> None:
    assert split_address(address) == endpoint
    for broken in ("h", ":1", "h:", "h:x", "h:65536", "h:-1", ""):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            split_address(broken)


def test_three_ports_form_one_cluster(loop: str) -> None:
    async def main() -> None:
        async with (
            FormingNode("n1", limits=QUICK) as n1,
            FormingNode("n2", limits=QUICK) as n2,
            FormingNode("n3", limits=QUICK) as n3,
        ):
            nodes = (n1, n2, n3)
            members = tuple(node.member for node in nodes)
            n1.form(members)
            n2.form(members)
            await until(lambda: n1.transport.connected("n2") and n2.transport.connected("n1"))
            assert any(wait.startswith("n3: ") for wait in n1.forming.waiting_for(n1.transport.problem))
            n3.form(members)
            await until(lambda: all(node.formed for node in nodes))
            assert n1.formed == n2.formed == n3.formed
            assert n1.formed is not None
            assert dict(n1.formed.instances) == {name: instance_of(name) for name in ("n1", "n2", "n3")}

    run(loop, main())


def test_a_node_with_an_empty_disk_is_told_to_be_readmitted_over_the_wire(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with FormingNode("n1", limits=QUICK) as n1, FormingNode("n2", limits=QUICK) as n2:
            async with FormingNode("n3", limits=QUICK) as n3:
                members = introduce(n1, n2, n3, dial=False)
                for node in (n1, n2, n3):
                    node.form(members)
                await until(lambda: all(node.formed for node in (n1, n2, n3)))
                port = n3.transport.address[1]
            empty = Standing(Identity("n3", "f" * 32, ""), None, members)
            async with FormingNode("n3", limits=QUICK, port=port, standing=empty) as wiped:
                wiped.form(members)
                await until(lambda: {peer for peer, _ in wiped.refusals} == {"n1", "n2"})
                assert {refusal.code for _, refusal in wiped.refusals} == {"empty_disk"}
                assert wiped.formed is None
                assert any(
                    "refuses this node" in wait for wait in wiped.forming.waiting_for(wiped.transport.problem)
                )

    with caplog.at_level(logging.WARNING):
        run(loop, main())
    assert "the disk of n3 is empty" in caplog.text


def _echo(sequence: int) -> bytes:
    return messages.encode(Echo(1, sequence))
