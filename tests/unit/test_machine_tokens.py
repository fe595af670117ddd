"""Tokens in the state machine: what is refused, what is kept, and what an image of it holds."""

from __future__ import annotations

import msgspec
import pytest

from raftkv.kv.command import Command, CreateToken, RevokeToken
from raftkv.kv.image import MachineState, Page, Section
from raftkv.kv.machine import Machine
from raftkv.kv.tokens import TOKENS_MAX, Grant, Role, Token
from raftkv.model import Result, TokenCreated, TokenRefused, TokenRevoked
from raftkv.snapshot.codec import decode_pages, encode_page
from tests.unit.snapshot_samples import dump


def a_token(name: str, role: Role = "admin", prefix: bytes = b"", expires_ms: int = 0) -> Token:
    return Token(name, f"for {name}", (Grant(role, prefix),), b"salt", b"hash", (2, 1, 1), 1, expires_ms)


def run(machine: Machine, command: Command) -> Result:
    return machine.apply(machine.applied_index + 1, 0, command).result


def test_creating_and_revoking_each_take_a_revision() -> None:
    machine = Machine()
    assert run(machine, CreateToken(a_token("a"))) == TokenCreated(1)
    assert run(machine, CreateToken(a_token("b", "read", b"app/"))) == TokenCreated(2)
    assert run(machine, RevokeToken("b")) == TokenRevoked(3)
    assert [each.id for each in machine.tokens] == ["a"]
    assert machine.revision == 3
    assert machine.keys == 0


def test_the_first_token_of_a_cluster_is_made_once() -> None:
    machine = Machine()
    assert run(machine, CreateToken(a_token("a"), only_first=True)) == TokenCreated(1)
    assert run(machine, CreateToken(a_token("b"), only_first=True)) == TokenRefused("not_first")
    assert run(machine, CreateToken(a_token("a"))) == TokenRefused("exists")
    assert machine.revision == 1


def test_somebody_is_left_who_can_let_others_in() -> None:
    machine = Machine()
    run(machine, CreateToken(a_token("a")))
    run(machine, CreateToken(a_token("below", "admin", b"app/")))
    run(machine, CreateToken(a_token("expires", expires_ms=9)))
    run(machine, CreateToken(a_token("reads", "read")))
    assert run(machine, RevokeToken("a")) == TokenRefused("last_admin")
    assert run(machine, RevokeToken("nobody")) == TokenRefused("missing")
    run(machine, CreateToken(a_token("b")))
    for name in ("a", "below", "expires", "reads"):
        assert isinstance(run(machine, RevokeToken(name)), TokenRevoked)
    assert run(machine, RevokeToken("b")) == TokenRefused("last_admin")


def test_without_an_administrator_for_ever_others_can_still_be_revoked() -> None:
    machine = Machine()
    run(machine, CreateToken(a_token("expires", expires_ms=9)))
    run(machine, CreateToken(a_token("reads", "read")))
    assert isinstance(run(machine, RevokeToken("reads")), TokenRevoked)
    assert isinstance(run(machine, RevokeToken("expires")), TokenRevoked)


def test_there_are_at_most_so_many() -> None:
    machine = Machine()
    for n in range(TOKENS_MAX):
        run(machine, CreateToken(a_token(f"{n:04d}")))
    assert run(machine, CreateToken(a_token("more"))) == TokenRefused("too_many")
    assert len(list(machine.tokens)) == machine.tokens.count == TOKENS_MAX
    run(machine, RevokeToken("0007"))
    assert isinstance(run(machine, CreateToken(a_token("more"))), TokenCreated)


def test_the_version_tells_of_every_change() -> None:
    machine = Machine()
    seen = {machine.tokens.version}
    for command in (CreateToken(a_token("a")), CreateToken(a_token("b")), RevokeToken("a")):
        run(machine, command)
        assert machine.tokens.version not in seen
        seen.add(machine.tokens.version)
    run(machine, CreateToken(a_token("b")))
    assert machine.tokens.version in seen


def test_tokens_are_part_of_the_state_hash_and_of_an_image() -> None:
    machine, other = Machine(), Machine()
    run(machine, CreateToken(a_token("a")))
    run(other, CreateToken(a_token("b")))
    assert machine.state_hash != other.state_hash
    again = Machine.load(machine.state(), decode_pages(dump(machine)))
    assert list(again.tokens) == [a_token("a")]
    assert again.state() == machine.state()


def page(name: bytes, record: bytes) -> Page:
    return Page(Section.TOKENS, [name], [record])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (page(b"a", b"\xc1"), "can't be read"),
        (page(b"a", msgspec.msgpack.encode(["a", "name"])), "can't be read"),
        (page(b"a", msgspec.msgpack.encode(a_token("b"))), "is that of 'b'"),
    ],
)
def test_what_is_no_token_is_refused_at_loading(bad: Page, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Machine.load(MachineState(1, 1, 1, 1), [bad])


def test_a_record_of_a_later_release_with_more_fields_is_read() -> None:
    more = [*msgspec.msgpack.decode(msgspec.msgpack.encode(a_token("a"))), "something new"]
    machine = Machine.load(MachineState(1, 1, 1, 1), [page(b"a", msgspec.msgpack.encode(more))])
    assert list(machine.tokens) == [a_token("a")]


def test_a_section_of_a_later_release_is_named() -> None:
    raw = bytearray(encode_page(page(b"a", b"x")))
    raw[0] = 99
    with pytest.raises(ValueError, match="section 99, which this release does not know: a newer release"):
        list(decode_pages(bytes(raw)))
