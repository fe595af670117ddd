"""Tokens without a server: what they permit, how they are verified and remembered, and what is told of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.access import guard as guards
from raftkv.access.audit import DENIALS_A_SECOND, Audit
from raftkv.access.bootstrap import make_first_token
from raftkv.access.caller import ANYONE, Bucket, Caller
from raftkv.access.guard import Guard, Hasher, Unverified
from raftkv.access.redaction import REDACTED, Redacting, redacted
from raftkv.access.secret import COST, hashed, is_secret_of, new_token, split
from raftkv.errors import Forbidden, NoLeader, Overloaded, RateLimited, Unauthenticated
from raftkv.kv.command import Command, CreateToken, Get, RevokeToken, Transaction
from raftkv.kv.machine import Machine
from raftkv.kv.tokens import Role, Token
from tests.contract.tokens import CHEAP, Made, make
from tests.unit.test_machine_model import Commands

# --- text and hashes -------------------------------------------------------------------------------------


def test_a_new_token_is_one_and_says_its_id() -> None:
    name, text = new_token()
    parts = split(text)
    assert parts is not None
    assert parts[0] == name
    assert len(parts[1]) == 64
    assert new_token()[1] != text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "rkv_",
        "rkv_short_" + "x" * 40,
        "rkv_0123456789abcdef_short",
        "rkv_0123456789ABCDEF_" + "x" * 40,
        "rkv_0123456789abcdef_" + "x" * 257,
        "rkv_0123456789abcdef_" + "x" * 40 + "\n",
        "rkv_0123456789abcdef_" + "é" * 40,
    ],
)
def test_what_is_no_token(text: str) -> None:
    assert split(text) is None


def test_the_hash_is_scrypt_at_its_full_cost() -> None:
    secret, salt = b"secret" * 8, b"salt" * 4
    token = Token("id", "n", (), salt, hashed(secret, salt), COST, 0)
    assert is_secret_of(secret, token)
    assert not is_secret_of(secret + b"x", token)


@pytest.mark.parametrize(
    "cost", [(0, 0, 0), (3, 8, 1), (1 << 30, 8, 1), (-1, 1, 1), (2, 1, 1 << 40), (1 << 70, 1, 1)]
)
def test_a_cost_that_is_none_lets_nobody_in(cost: tuple[int, int, int]) -> None:
    assert not is_secret_of(b"secret", Token("id", "n", (), b"salt", b"", cost, 0))


# --- what a token permits --------------------------------------------------------------------------------


def caller(*grants: tuple[Role, bytes], rate: int = 0) -> Caller:
    return Caller(make(*grants, rate=rate).record)


Prefixes = st.sampled_from([b"", b"k", b"k0", b"k1", b"\xff"])
Grants = st.lists(st.tuples(st.sampled_from(["read", "write", "admin"]), Prefixes), max_size=4)


@given(Commands, Grants)
def test_a_transaction_needs_what_its_parts_need(command: Command, grants: list[tuple[Role, bytes]]) -> None:
    """Whatever branch they stand in, and the compared keys to be read."""
    if not isinstance(command, Transaction):
        return
    asked = caller(*grants)
    parts: list[Command | Get] = [*command.success, *command.failure]
    parts += [Get(each.key) for each in command.compare]
    assert permitted(asked, command) == all(permitted(asked, part) for part in parts)


@given(Commands, Grants)
def test_more_grants_never_permit_less(command: Command, grants: list[tuple[Role, bytes]]) -> None:
    whole = permitted(caller(*grants), command)
    for at in range(len(grants)):
        if permitted(caller(*grants[:at], *grants[at + 1 :]), command):
            assert whole


@given(Commands)
def test_nothing_is_permitted_without_a_grant_and_all_to_an_administrator(command: Command) -> None:
    empty = Transaction((), (), ())
    without = command == empty or (isinstance(command, Transaction) and not _asks(command))
    assert permitted(caller(), command) == without
    assert permitted(caller(("admin", b"")), command)
    assert permitted(ANYONE, command)


def _asks(transaction: Transaction) -> bool:
    return bool(transaction.compare or transaction.success or transaction.failure)


def permitted(asked: Caller, command: Command | Get) -> bool:
    try:
        asked.check_command(command)
    except Forbidden:
        return False
    return True


def test_a_refusal_says_what_is_permitted() -> None:
    with pytest.raises(
        Forbidden, match=r"has no write for the key or prefix 'other'; it has write for .* 'a/' and 'b/'"
    ):
        caller(("write", b"a/"), ("write", b"b/"), ("read", b"")).check_key("write", b"other")
    with pytest.raises(Forbidden, match="the prefixes nothing"):
        caller(("write", b"a/")).check_key("read", b"a/b")


def test_a_bucket_holds_a_second_and_fills_with_time() -> None:
    bucket = Bucket(10)
    for _ in range(10):
        bucket.take(100.0)
    with pytest.raises(RateLimited) as refused:
        bucket.take(100.0)
    assert refused.value.retry_after_s == 1
    bucket.take(100.15)
    with pytest.raises(RateLimited):
        bucket.take(100.15)
    for _ in range(10):
        bucket.take(999.0)
    with pytest.raises(RateLimited):
        bucket.take(998.0)  # a clock that goes back gives nothing


# --- the guard -------------------------------------------------------------------------------------------


class World:
    """A state, and the clock of a guard on it. `refresh` is what asking the leader does."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.now = 1000.0
        self.verified = 0
        self.refreshed = 0
        self.on_refresh: Callable[[], None] = lambda: None
        self.hasher = Hasher()
        self.guard = Guard(lambda: self.machine.tokens, self.hasher, self.refresh, clock=lambda: self.now)

    async def refresh(self) -> None:
        self.refreshed += 1
        self.on_refresh()

    def run(self, command: Command) -> None:
        self.machine.apply(self.machine.applied_index + 1, 0, command)

    def has(self, *grants: tuple[Role, bytes], **more: int) -> Made:
        made = make(*grants, **more)
        self.run(CreateToken(made.record))
        return made


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    real = guards.is_secret_of

    def counted(secret: bytes, token: Token) -> bool:
        made.verified += 1
        return real(secret, token)

    monkeypatch.setattr(guards, "is_secret_of", counted)
    return made


def bearer(made: Made) -> str:
    return made.headers["Authorization"]


async def test_a_token_is_verified_once_for_all_who_come_meanwhile(world: World) -> None:
    made = world.has(("read", b""))
    with pytest.raises(Unverified):
        world.guard.caller(bearer(made))
    found = await asyncio.gather(*(world.guard.identify(bearer(made)) for _ in range(20)))
    assert {each.id for each in found} == {made.record.id}
    assert world.guard.caller(bearer(made)) is found[0]
    assert world.guard.caller(bearer(made).replace("Bearer", "bearer")) is found[0]
    assert (world.verified, world.refreshed) == (1, 0)


async def test_a_change_of_other_tokens_costs_no_verification_and_resets_no_rate(world: World) -> None:
    made = world.has(("read", b""), rate=3)
    caller = await world.guard.identify(bearer(made))
    for _ in range(3):
        world.guard.check_rate(caller)
    epoch = world.guard.epoch
    other = world.has(("admin", b""))
    world.run(RevokeToken(other.record.id))
    assert world.guard.caller(bearer(made)) is caller
    assert world.guard.epoch is not epoch
    with pytest.raises(RateLimited):
        world.guard.check_rate(caller)
    assert world.verified == 1


async def test_what_was_remembered_goes_with_the_token(world: World) -> None:
    world.has(("admin", b""))
    made = world.has(("read", b""))
    caller = await world.guard.identify(bearer(made))
    world.guard.check_still(caller)
    world.run(RevokeToken(made.record.id))
    with pytest.raises(Unauthenticated):
        world.guard.check_still(caller)
    with pytest.raises(Unauthenticated):
        await world.guard.identify(bearer(made))


async def test_a_token_under_the_same_id_with_another_secret_is_another(world: World) -> None:
    world.has(("admin", b""))
    made = world.has(("read", b""))
    await world.guard.identify(bearer(made))
    world.run(RevokeToken(made.record.id))
    salt = b"another"
    text = f"rkv_{made.record.id}_{'y' * 40}"
    world.run(
        CreateToken(
            Token(made.record.id, "n", made.record.grants, salt, hashed(b"y" * 40, salt, CHEAP), CHEAP, 0)
        )
    )
    with pytest.raises(Unauthenticated):
        await world.guard.identify(bearer(made))
    assert (await world.guard.identify(f"Bearer {text}")).name == "n"


async def test_another_state_machine_takes_the_old_ones_place(world: World) -> None:
    """As after a snapshot was installed."""
    made = world.has(("read", b""))
    await world.guard.identify(bearer(made))
    world.machine = Machine()
    with pytest.raises(Unauthenticated):
        await world.guard.identify(bearer(made))


async def test_an_unknown_token_is_asked_for_once_and_never_hashed(world: World) -> None:
    made = make(("read", b""))
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await world.guard.identify(bearer(made))
    assert (world.refreshed, world.verified) == (1, 0)


async def test_a_node_that_is_behind_learns_of_a_new_token_by_asking(world: World) -> None:
    made = make(("read", b""))
    world.on_refresh = lambda: world.run(CreateToken(made.record))
    assert (await world.guard.identify(bearer(made))).id == made.record.id


async def test_a_node_that_can_not_ask_goes_by_what_it_knows(world: World) -> None:
    def fails() -> None:
        raise NoLeader("none")

    world.on_refresh = fails
    known = world.has(("read", b""))
    assert await world.guard.identify(bearer(known))
    with pytest.raises(Unauthenticated):
        await world.guard.identify(bearer(make(("read", b""))))


async def test_a_token_that_was_refused_counts_once_it_is_made(world: World) -> None:
    made = make(("read", b""))
    with pytest.raises(Unauthenticated):
        await world.guard.identify(bearer(made))
    world.run(CreateToken(made.record))
    assert await world.guard.identify(bearer(made))


async def test_expiry_is_by_the_wall_clock(world: World) -> None:
    made = world.has(("read", b""), expires_ms=1_001_000)
    caller = await world.guard.identify(bearer(made))
    world.now = 1000.999
    assert world.guard.caller(bearer(made)) is caller
    world.now = 1001.0
    for check in (lambda: world.guard.caller(bearer(made)), lambda: world.guard.check_still(caller)):
        with pytest.raises(Unauthenticated, match="expired"):
            check()


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic eA==", "rkv_x", "Bearer x", "Bearer  x y"]
)
async def test_what_is_no_bearer_token_is_refused_at_once(world: World, header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        await world.guard.identify(header)
    assert (world.refreshed, world.verified) == (0, 0)


async def test_what_waits_and_what_is_remembered_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "REMEMBERED_MAX", 10)
    made = world.has(("read", b""))
    await world.guard.identify(bearer(made))
    for n in range(30):
        with pytest.raises(Unauthenticated):
            await world.guard.identify(f"Bearer rkv_{made.record.id}_{n:040d}")
    assert len(world.guard._wrong) == 10
    assert world.guard.caller(bearer(made))

    monkeypatch.setattr(guards, "WAITING_MAX", 5)
    outcomes = await asyncio.gather(
        *(world.guard.identify(f"Bearer rkv_{made.record.id}_{n:041d}") for n in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(each, Overloaded) for each in outcomes) == 15
    assert sum(isinstance(each, Unauthenticated) for each in outcomes) == 5


async def test_nothing_that_is_kept_holds_the_token(world: World) -> None:
    made = world.has(("read", b""))
    await world.guard.identify(bearer(made))
    secret = made.text.rpartition("_")[2]
    assert secret not in repr(vars(world.guard))
    assert secret not in repr(list(world.machine.tokens))


# --- the first token -------------------------------------------------------------------------------------


async def test_the_first_token_is_made_once_whoever_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, text = Machine(), new_token()[1]
    proposals: list[CreateToken] = []
    failures = [NoLeader("lost"), None]

    async def propose(command: CreateToken) -> None:
        proposals.append(command)
        failure = failures.pop(0)
        if failure is not None:
            raise failure
        machine.apply(machine.applied_index + 1, 0, command)

    monkeypatch.setattr("raftkv.access.bootstrap.LOOK_S", 0.001)
    leads = iter([False, False, True])

    async def make_it(
        leading: Callable[[], bool], proposing: Callable[[CreateToken], Awaitable[None]]
    ) -> None:
        hasher = Hasher()
        async with asyncio.timeout(20):
            await make_first_token(
                text, hasher=hasher, machine=lambda: machine, leads=leading, propose=proposing
            )
        hasher.close()

    await make_it(lambda: next(leads, True), propose)
    assert len(proposals) == 2
    assert all(each.only_first for each in proposals)
    (token,) = machine.tokens
    assert token.rules_everything
    parts = split(text)
    assert parts is not None
    assert is_secret_of(parts[1], token)
    await make_it(lambda: True, propose)  # there is one: nothing is proposed
    assert len(proposals) == 2


# --- the audit, and redaction ----------------------------------------------------------------------------


def test_denials_are_counted_all_and_written_at_a_bounded_rate(caplog: pytest.LogCaptureFixture) -> None:
    now = 5.0
    audit = Audit(lambda: now)
    for _ in range(100):
        audit.denied("-", "GET /v1/kv/{key}", Forbidden("x"), "r")
    assert len(caplog.records) == DENIALS_A_SECOND
    now = 6.0
    audit.denied("id:n", "GET /v1/kv/{key}", Unauthenticated("x", presented=True), "r-1")
    assert caplog.records[-1].getMessage() == (
        'denied who=id:n what="GET /v1/kv/{key}" code=unauthenticated request_id=r-1 '
        f"suppressed={100 - DENIALS_A_SECOND}"
    )
    assert audit.denials == {"forbidden": 100, "unauthenticated": 1}


def test_actions_are_always_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raftkv.audit")
    audit = Audit(lambda: 5.0)
    for _ in range(50):
        audit.done("id:n", "POST /v1/tokens", status=201, revision=7, request_id="r", target="t")
    assert len(caplog.records) == 50
    assert caplog.records[0].getMessage() == (
        'admin_action who=id:n what="POST /v1/tokens" status=201 revision=7 request_id=r target=t'
    )


SECRET = b"0123456789abcdef0123456789abcdef"
TOKEN = new_token()[1]
KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        f"header {TOKEN}",
        f"{{'Authorization': 'Bearer {TOKEN}'}}",
        "Authorization: bearer 0123456789abcdef0123456789abcdef",
        f"secret={SECRET.decode()} end",
        f"{SECRET!r}",
        f"in hex {SECRET.hex()}",
        f"key {KEY} end",
    ],
)
def test_a_line_with_a_secret_loses_it(text: str) -> None:
    formatter = Redacting(logging.Formatter("%(message)s"), [SECRET])
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (text,), None)
    line = formatter.format(record)
    assert REDACTED in line
    for secret in (TOKEN.rpartition("_")[2], SECRET.decode(), SECRET.hex(), "MIGHAgEA"):
        assert secret not in line


def test_a_traceback_loses_it_too() -> None:
    formatter = Redacting(logging.Formatter("%(message)s"), [])
    try:
        raise ValueError(f"bad header: {TOKEN}")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    line = formatter.format(logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), info))
    assert TOKEN.rpartition("_")[2] not in line
    assert f"rkv_{TOKEN.split('_')[1]}_{REDACTED}" in line
    assert "Traceback" in line


def test_other_lines_are_left_as_they_are() -> None:
    text = 'role_changed node=n1 term=7 role=leader what="PUT /v1/kv/{key}" rkv_x bearer'
    assert redacted(text, [SECRET.decode()]) == text
