"""The handshake of the raft port: who gets through it, in which pieces, and what everyone else is told."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.model import Identity, Member, Membership
from raftkv.raft.handshake import (
    STATEMENT_BYTES_MAX,
    VERSION,
    Acceptor,
    Answer,
    Dialer,
    Established,
    Event,
    HandshakeFailed,
    Hello,
    Refusal,
    Refused,
    Send,
    Standing,
    admit,
)

SECRET = b"a secret of the cluster, 32 bytes"
MEMBERS = tuple(Member(f"n{i}", f"10.0.0.{i}:8401", f"http://10.0.0.{i}:8400") for i in (1, 2, 3))
CLUSTER = "c" * 32
MEMBERSHIP = Membership(CLUSTER, MEMBERS, tuple((f"n{i}", str(i) * 32) for i in (1, 2, 3)))


def standing(name: str, *, formed: bool = False, instance: str = "") -> Standing:
    identity = Identity(name, instance or name[-1] * 32, CLUSTER if formed else "")
    return Standing(identity, MEMBERSHIP if formed else None, MEMBERS)


def dialer(me: Standing, *, target: str = "n2", secret: bytes = SECRET, nonce: bytes = b"d" * 32) -> Dialer:
    return Dialer(
        secret=secret,
        nonce=nonce,
        hello=me.hello(target=target, release="0"),
        judge=lambda hello: admit(hello, me.identity, me.membership, me.initial_members),
    )


def acceptor(me: Standing, *, secret: bytes = SECRET, nonce: bytes = b"a" * 32) -> Acceptor:
    return Acceptor(
        secret=secret,
        nonce=nonce,
        introduce=lambda name: me.hello(target=name, release="0"),
        judge=lambda hello: admit(hello, me.identity, me.membership, me.initial_members),
    )


def sent(events: Iterable[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Send))


def outcome(events: Iterable[Event]) -> Established | Refused | None:
    results = [event for event in events if not isinstance(event, Send)]
    assert len(results) <= 1
    return results[0] if results else None


def converse(
    calling: Dialer, called: Acceptor, *, piece_bytes: int = 1 << 20
) -> tuple[Established | Refused | None, Established | Refused | None]:
    """Runs both to the end, each byte string cut into pieces."""
    to_acceptor, to_dialer = calling.greeting, b""
    dialer_events: list[Event] = []
    acceptor_events: list[Event] = []
    while to_acceptor or to_dialer:
        events = feed(called, to_acceptor, piece_bytes)
        acceptor_events += events
        to_dialer, to_acceptor = sent(events), b""
        events = feed(calling, to_dialer, piece_bytes)
        dialer_events += events
        to_acceptor, to_dialer = sent(events), b""
    return outcome(dialer_events), outcome(acceptor_events)


def feed(end: Dialer | Acceptor, data: bytes, piece_bytes: int) -> list[Event]:
    pieces = [data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)]
    return [event for piece in pieces for event in end.feed(piece)]


@settings(max_examples=20, deadline=None)
@given(piece_bytes=st.integers(1, 400))
def test_both_ends_agree_however_the_bytes_are_cut(piece_bytes: int) -> None:
    calling, called = converse(dialer(standing("n1")), acceptor(standing("n2")), piece_bytes=piece_bytes)
    assert isinstance(calling, Established)
    assert isinstance(called, Established)
    assert calling.peer.name == "n2"
    assert called.peer.name == "n1"
    assert calling.frame_key == called.frame_key


def test_the_secret_never_crosses_the_wire_and_keys_differ_by_connection() -> None:
    keys = set()
    for nonce in (b"1" * 32, b"2" * 32):
        calling, called = dialer(standing("n1"), nonce=nonce), acceptor(standing("n2"))
        greeting = sent(called.feed(calling.greeting))
        statement = sent(calling.feed(greeting))
        events = called.feed(statement)
        assert SECRET not in calling.greeting + greeting + statement + sent(events)
        result = outcome(events)
        assert isinstance(result, Established)
        assert result.frame_key not in calling.greeting + greeting + statement + sent(events)
        keys.add(result.frame_key)
    assert len(keys) == 2


def test_a_dialer_with_another_secret_is_not_heard() -> None:
    with pytest.raises(HandshakeFailed, match="secret"):
        converse(dialer(standing("n1"), secret=b"another secret"), acceptor(standing("n2")))


def test_an_acceptor_with_another_secret_is_not_believed() -> None:
    """The acceptor answers anyway (as an attacker would): its answer must not pass at the dialer."""
    calling = dialer(standing("n1"))
    impostor = acceptor(standing("n2"), secret=b"another secret")
    statement = sent(calling.feed(sent(impostor.feed(calling.greeting))))
    forged = _statement_under(b"k" * 32, Answer(standing("n2").hello(target="n1", release="0")))
    assert statement
    with pytest.raises(HandshakeFailed, match="secret"):
        calling.feed(forged)


def test_a_replayed_handshake_fails_at_a_fresh_nonce() -> None:
    calling, called = dialer(standing("n1")), acceptor(standing("n2"))
    statement = sent(calling.feed(sent(called.feed(calling.greeting))))
    assert isinstance(outcome(called.feed(statement)), Established)

    again = acceptor(standing("n2"), nonce=b"b" * 32)
    again.feed(calling.greeting)
    with pytest.raises(HandshakeFailed, match="secret"):
        again.feed(statement)


def test_a_replayed_answer_fails_at_a_fresh_nonce() -> None:
    calling, called = dialer(standing("n1")), acceptor(standing("n2"))
    greeting = sent(called.feed(calling.greeting))
    answer = sent(called.feed(sent(calling.feed(greeting))))

    again = dialer(standing("n1"), nonce=b"e" * 32)
    again.feed(greeting)
    with pytest.raises(HandshakeFailed, match="secret"):
        again.feed(answer)


def test_a_greeting_sent_back_is_refused_by_role() -> None:
    calling = dialer(standing("n1"))
    with pytest.raises(HandshakeFailed, match="role"):
        calling.feed(calling.greeting)


def test_a_greeting_sent_back_under_the_other_role_is_refused_by_nonce() -> None:
    calling = dialer(standing("n1"))
    reflected = calling.greeting.replace(b"RAFTKV\x01D", b"RAFTKV\x01A")
    with pytest.raises(HandshakeFailed, match="own greeting back"):
        calling.feed(reflected)


def test_two_ends_of_the_same_role_do_not_talk() -> None:
    with pytest.raises(HandshakeFailed, match="wrong role"):
        dialer(standing("n1")).feed(dialer(standing("n2"), nonce=b"e" * 32).greeting)
    with pytest.raises(HandshakeFailed, match="wrong role"):
        acceptor(standing("n1")).feed(ACCEPTOR_GREETING)


def test_an_answer_to_another_statement_is_refused() -> None:
    """Even under the same nonces: the answer's MAC covers the statement that it answers."""
    called = acceptor(standing("n2"))
    other = dialer(standing("n3"))
    answer = sent(called.feed(sent(other.feed(sent(called.feed(other.greeting))))))
    assert answer
    calling = dialer(standing("n1"))
    calling.feed(ACCEPTOR_GREETING)
    with pytest.raises(HandshakeFailed, match="secret"):
        calling.feed(answer)


def test_a_statement_sent_back_is_refused() -> None:
    """The dialer's own statement as the acceptor's answer: another key, and another text under the MAC."""
    calling, called = dialer(standing("n1")), acceptor(standing("n2"))
    statement = sent(calling.feed(sent(called.feed(calling.greeting))))
    with pytest.raises(HandshakeFailed, match="secret"):
        calling.feed(statement)


def test_a_node_relayed_to_itself_is_refused() -> None:
    """Someone in between connects n1's call to n1's own port: both ends hold the secret, and yet."""
    calling, called = converse(dialer(standing("n1")), acceptor(standing("n1")))
    assert isinstance(called, Refused)
    assert called.refusal.code == "own_name"
    assert isinstance(calling, Refused)


def test_a_node_relayed_to_another_member_is_refused() -> None:
    calling, called = converse(dialer(standing("n1"), target="n2"), acceptor(standing("n3")))
    assert isinstance(called, Refused)
    assert called.refusal.code == "wrong_target"
    assert isinstance(calling, Refused)
    assert calling.by_peer


def test_a_dialer_believes_no_other_member_in_the_place_of_the_one_it_called() -> None:
    """The acceptor is content (it judges nothing): the dialer must not be."""
    me = standing("n3")
    careless = Acceptor(
        secret=SECRET,
        nonce=b"a" * 32,
        introduce=lambda name: me.hello(target=name, release="0"),
        judge=lambda hello: None,
    )
    calling, _ = converse(dialer(standing("n1"), target="n2"), careless)
    assert isinstance(calling, Refused)
    assert calling.refusal.code == "wrong_target"
    assert not calling.by_peer


def _transcript() -> tuple[bytes, bytes, bytes, bytes]:
    calling, called = dialer(standing("n1")), acceptor(standing("n2"))
    greeting = sent(called.feed(calling.greeting))
    statement = sent(calling.feed(greeting))
    return calling.greeting, greeting, statement, sent(called.feed(statement))


DIALER_GREETING, ACCEPTOR_GREETING, STATEMENT, ANSWER = _transcript()


def _flips(length: int) -> Iterable[int]:
    return range(length * 8)


def test_no_bit_of_the_dialers_half_can_be_changed() -> None:
    whole = DIALER_GREETING + STATEMENT
    for bit in _flips(len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        called = acceptor(standing("n2"))
        try:
            events = called.feed(bytes(changed[: len(DIALER_GREETING)]))
            events += called.feed(bytes(changed[len(DIALER_GREETING) :]))
        except HandshakeFailed:
            continue
        assert outcome(events) is None, f"bit {bit}"  # a longer length: it waits for more, until its deadline


def test_no_bit_of_the_acceptors_half_can_be_changed() -> None:
    whole = ACCEPTOR_GREETING + ANSWER
    for bit in _flips(len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        calling = dialer(standing("n1"))
        try:
            events = calling.feed(bytes(changed[: len(ACCEPTOR_GREETING)]))
            events += calling.feed(bytes(changed[len(ACCEPTOR_GREETING) :]))
        except HandshakeFailed:
            continue
        assert outcome(events) is None, f"bit {bit}"


@pytest.mark.parametrize("length", range(len(DIALER_GREETING + STATEMENT)))
def test_a_truncated_half_decides_nothing(length: int) -> None:
    assert outcome(acceptor(standing("n2")).feed((DIALER_GREETING + STATEMENT)[:length])) is None


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_never_get_through(data: bytes) -> None:
    for prefix in (b"", b"RAFTKV\x01D", DIALER_GREETING):
        try:
            events = acceptor(standing("n2")).feed(prefix + data)
        except HandshakeFailed:
            continue
        assert outcome(events) is None


def test_a_length_out_of_bounds_is_refused_before_its_bytes_arrive() -> None:
    for length in (0, STATEMENT_BYTES_MAX + 1, 0xFFFF):
        called = acceptor(standing("n2"))
        called.feed(DIALER_GREETING)
        with pytest.raises(HandshakeFailed, match="are allowed"):
            called.feed(length.to_bytes(2, "little"))


def test_bytes_out_of_turn_are_refused() -> None:
    calling, called = dialer(standing("n1")), acceptor(standing("n2"))
    statement = sent(calling.feed(sent(called.feed(calling.greeting))))
    with pytest.raises(HandshakeFailed, match="turn"):
        called.feed(statement + b"x")
    with pytest.raises(HandshakeFailed, match="turn"):
        calling.feed(ANSWER + b"x")


def test_a_newer_version_is_named_to_both_ends() -> None:
    newer = DIALER_GREETING[:6] + bytes([VERSION + 1]) + DIALER_GREETING[7:]
    with pytest.raises(HandshakeFailed, match=f"version {VERSION + 1}.*upgrade this node") as failure:
        acceptor(standing("n2")).feed(newer)
    # The reply lets the newer end see which version this one speaks; an older end sees it likewise.
    assert failure.value.reply[:7] == b"RAFTKV" + bytes([VERSION])
    with pytest.raises(HandshakeFailed, match="upgrade the peer"):
        dialer(standing("n1")).feed(ACCEPTOR_GREETING[:6] + bytes([VERSION - 1]) + ACCEPTOR_GREETING[7:])


def test_a_version_rolled_back_on_the_way_is_noticed() -> None:
    """The version is under the MAC: an attacker can't make two newer ends speak an older version."""
    calling, called = dialer(standing("n1")), acceptor(standing("n2"))
    altered = calling.greeting[:-1] + bytes([calling.greeting[-1] ^ 1])
    statement = sent(calling.feed(sent(called.feed(altered))))
    with pytest.raises(HandshakeFailed, match="secret"):
        called.feed(statement)


def test_another_protocol_is_refused_at_its_first_wrong_byte() -> None:
    with pytest.raises(HandshakeFailed, match="magic"):
        acceptor(standing("n2")).feed(b"G")
    with pytest.raises(HandshakeFailed, match="magic"):
        dialer(standing("n1")).feed(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"\x97\x01\xa1\xff",
        b"\x98\x01\xa10\xa0\xa2n1\xd9\x20" + b"1" * 32 + b"\xa2n2\x90" + b"\x91" * 3000,
        msgspec.msgpack.encode([1, "0", "", "n1"]),
        msgspec.msgpack.encode([1, "0", "", "n1", "not hex", "n2", []]),
        msgspec.msgpack.encode([1, "0", "abc", "n1", "1" * 32, "n2", []]),
        msgspec.msgpack.encode([1, "0", "", "", "1" * 32, "n2", []]),
        msgspec.msgpack.encode([1, "0", "", "n1", "1" * 32, "n2", "members"]),
    ],
    ids=range(8),
)
def test_a_hello_of_another_form_is_refused_even_under_the_secret(payload: bytes) -> None:
    called = acceptor(standing("n2"))
    greeting = sent(called.feed(DIALER_GREETING))
    base = _hmac(SECRET, b"raftkv raft port 1" + DIALER_GREETING + greeting)
    with pytest.raises(HandshakeFailed, match="form"):
        called.feed(_statement_under(_hmac(base, b"dialer hello"), payload))


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def _statement_under(key: bytes, payload: bytes | Answer) -> bytes:
    """A statement as the module's docstring draws it, made without the module."""
    encoded = payload if isinstance(payload, bytes) else msgspec.msgpack.encode(payload)
    length = len(encoded).to_bytes(2, "little")
    return length + _hmac(key, length + encoded) + encoded


# --- admit: who may talk to whom ------------------------------------------------------------------------


def hello(name: str = "n2", *, instance: str = "", cluster: str = "", target: str = "n1") -> Hello:
    members = () if cluster else MEMBERS
    return Hello(VERSION, "0", cluster, name, instance or name[-1] * 32, target, members)


def judged(peer: Hello, me: Standing) -> str:
    refusal = admit(peer, me.identity, me.membership, me.initial_members)
    return refusal.code if refusal is not None else "admitted"


@pytest.mark.parametrize(
    ("peer", "unformed", "formed"),
    [
        (hello(), "admitted", "admitted"),
        (hello(cluster=CLUSTER), "admitted", "admitted"),
        (hello(cluster="d" * 32), "admitted", "other_cluster"),
        (hello("n1"), "own_name", "own_name"),
        (hello(target="n3"), "wrong_target", "wrong_target"),
        (hello("n9"), "unknown_name", "unknown_name"),
        (hello("n9", cluster=CLUSTER), "unknown_name", "unknown_name"),
        (hello(instance="f" * 32), "admitted", "empty_disk"),
        (hello(instance="f" * 32, cluster=CLUSTER), "admitted", "other_instance"),
    ],
)
def test_admit(peer: Hello, unformed: str, formed: str) -> None:
    assert judged(peer, standing("n1")) == unformed
    assert judged(peer, standing("n1", formed=True)) == formed


def test_nodes_started_with_different_members_are_told_both_lists() -> None:
    other = msgspec.structs.replace(hello(), members=(*MEMBERS[:2], Member("n3", "10.0.0.9:1", "http://x")))
    refusal = admit(other, standing("n1").identity, None, MEMBERS)
    assert refusal is not None
    assert refusal.code == "other_members"
    assert "10.0.0.9:1" in refusal.reason
    assert "10.0.0.3:8401" in refusal.reason


def test_the_order_of_the_members_on_the_command_line_does_not_matter() -> None:
    shuffled = Standing(standing("n2").identity, None, MEMBERS[::-1])
    calling, called = converse(dialer(standing("n1")), acceptor(shuffled))
    assert isinstance(calling, Established)
    assert isinstance(called, Established)


def test_membership_wins_over_the_command_line() -> None:
    """Formed nodes don't look at initial members any more, neither their own nor the peer's."""
    me = Standing(Identity("n1", "1" * 32, CLUSTER), MEMBERSHIP, ())
    assert judged(hello(cluster=CLUSTER), me) == "admitted"


@pytest.mark.parametrize("target_formed", [True, False])
def test_a_refused_node_learns_why_under_the_mac(target_formed: bool) -> None:
    wiped = standing("n1", instance="e" * 32) if target_formed else standing("n9")
    calling, called = converse(dialer(wiped), acceptor(standing("n2", formed=target_formed)))
    assert isinstance(calling, Refused)
    assert isinstance(called, Refused)
    assert calling.by_peer
    assert calling.refusal == called.refusal
    assert isinstance(calling.refusal, Refusal)
    assert ("re-admit" if target_formed else "same members") in calling.refusal.reason


def test_fifty_members_with_long_addresses_fit_into_a_hello() -> None:
    many = tuple(
        Member(
            f"node-{i:03}",
            f"node-{i:03}.raft.some-namespace.svc.cluster.local:8401",
            f"https://node-{i:03}.example.org:8400",
        )
        for i in range(50)
    )
    me = Standing(Identity("node-000", "0" * 32, ""), None, many)
    peer = Standing(Identity("node-001", "1" * 32, ""), None, many)
    calling, _ = converse(dialer(me, target="node-001"), acceptor(peer))
    assert isinstance(calling, Established)
