"""`raftkv member reconcile`: makes the members of a cluster those of a list, whatever they are now.

For whatever decides from outside which nodes there should be, and may be cut short and run again: it looks at
what the leader says, takes one step, and looks again. Steps are taken in this order, each only when the ones
before it are done, so that it can stop anywhere:

    1. who is missing is added, as a learner that becomes a voter once its node is there and has caught up
    2. nobody is removed before all who stay are voters; a list that only grows waits for nobody
    3. leadership goes to one who stays
    4. who is too many is removed: first those who don't answer, then from the end of the list of names
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, assert_never

import click

from cluster.connection import client_settings, connection_options, describe, fail
from raftkv.client import ClientError, NotFound, OutcomeUnknown, SyncClient, Unavailable
from raftkv.client.answers import Problem
from raftkv.config import SETTING_BY_NAME
from raftkv.model import Member

LOOK_SECONDS = 0.5  # between looks while others catch up, or no leader is known


@dataclass(frozen=True, slots=True)
class Adding:
    member: Member


@dataclass(frozen=True, slots=True)
class Waiting:
    """For who stays and is no voter yet."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HandingOver:
    to: str


@dataclass(frozen=True, slots=True)
class Removing:
    name: str


Step = Adding | Waiting | HandingOver | Removing


def next_step(members: Sequence[dict[str, Any]], wanted: Sequence[Member]) -> Step | None:
    """`members` as the leader shows them (name, role, reachable). None: they are the wanted ones."""
    there = {each["name"]: each for each in members}
    staying = [there[member.name] for member in wanted if member.name in there]
    names = {member.name for member in wanted}
    surplus = sorted((each for name, each in there.items() if name not in names), key=_usefulness)
    for member in wanted:
        if member.name not in there:
            return Adding(member)
    if not surplus:
        return None
    learners = tuple(each["name"] for each in staying if each["role"] == "learner")
    if learners:
        return Waiting(learners)
    if any(each["role"] == "leader" for each in surplus):
        ready = [each["name"] for each in staying if each["reachable"]]
        return HandingOver(ready[0]) if ready else Waiting(tuple(each["name"] for each in staying))
    return Removing(surplus[0]["name"])


def _usefulness(member: dict[str, Any]) -> tuple[bool, bool, tuple[int, ...]]:
    """Least first; of equals the last by name."""
    return member["reachable"], member["role"] != "learner", tuple(-ord(letter) for letter in member["name"])


def _members(ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> tuple[Member, ...]:
    setting = SETTING_BY_NAME["member"]
    try:
        members: tuple[Member, ...] = setting.parse(list(texts))
    except ValueError as error:
        raise click.BadParameter(f"{error}; allowed: {setting.allowed}") from None
    return members


@click.command(
    epilog="""\b
Examples:
  raftkv member reconcile --member n1=10.0.0.1:8401,http://10.0.0.1:8400 \\
    --member n2=10.0.0.2:8401,http://10.0.0.2:8400 --member n3=10.0.0.3:8401,http://10.0.0.3:8400

Run it before the nodes of new members are started, and before those of old ones are stopped. New nodes are
started with the same --member list and an empty data directory. May be run again at any time."""
)
@click.option(
    "--member",
    "wanted",
    multiple=True,
    required=True,
    callback=_members,
    metavar="NAME=RAFT,URL",
    help="As for `raftkv serve`, once for each member that there shall be.",
)
@click.option(
    "--within",
    "within_s",
    type=click.FloatRange(0, 3600, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up where it is not done by then; --timeout is for each request.",
)
@click.option("--best-effort", is_flag=True, help="Where it can't be done, say why and succeed all the same.")
@connection_options
def reconcile(
    wanted: tuple[Member, ...],
    within_s: float,
    best_effort: bool,
    endpoints: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Make the cluster's members those of a list: add who is missing, remove who is too many."""
    with SyncClient(endpoints, timeout_s=min(timeout_s, within_s), **client_settings()) as client:
        try:
            _Reconciliation(client, wanted, until=time.monotonic() + within_s).run()
        except ClientError as error:
            if not best_effort:
                fail(error)
            click.echo(f"raftkv: {describe(error)}: left as it is", err=True)


class _Reconciliation:
    def __init__(self, client: SyncClient, wanted: tuple[Member, ...], *, until: float) -> None:
        self._client = client
        self._wanted = wanted
        self._until = until
        self._said = ""

    def run(self) -> None:
        """Raises ClientError: what was refused, or what kept it from being done in time."""
        while True:
            try:
                members = self._members()
                step = next_step(members, self._wanted)
                if step is None:
                    click.echo(f"the members are {', '.join(each['name'] for each in members)}")
                    return
                self._take(step)
            except (Unavailable, OutcomeUnknown) as error:
                if time.monotonic() > self._until:
                    raise
                self._say(f"{describe(error)}: trying again")
                time.sleep(LOOK_SECONDS)

    def _members(self) -> list[dict[str, Any]]:
        """As the leader sees them: another node's view may be an old one. Raises ClientError."""
        known = self._client.cluster()
        for each in known["members"]:
            if each["name"] == known["leader"]:
                members: list[dict[str, Any]] = self._client.cluster(each["client_url"])["members"]
                if any(one["name"] == each["name"] and one["role"] == "leader" for one in members):
                    return members
        raise not_yet("no leader is known")

    def _take(self, step: Step) -> None:
        """Raises ClientError."""
        client = self._client
        match step:
            case Adding(member):
                self._say(f"adding {member.name} at {member.peer}, {member.client_url}")
                client.add_member(
                    member.name, peer=member.peer, client_url=member.client_url, auto_promote=True
                )
            case Waiting(names):
                raise not_yet(f"{', '.join(names)} should stay and can't vote yet")
            case HandingOver(to):
                self._say(f"handing leadership over to {to}")
                try:
                    client.transfer_leadership(to)
                except ClientError as error:
                    if error.problem.code != "transfer_failed":
                        raise
                    raise not_yet(str(error)) from error
            case Removing(name):
                self._say(f"removing {name}")
                with suppress(NotFound):  # by the attempt before this one
                    client.remove_member(name)
            case _:
                assert_never(step)

    def _say(self, text: str) -> None:
        """Once, however often it is tried."""
        if text != self._said:
            click.echo(text)
        self._said = text


def not_yet(detail: str) -> Unavailable:
    return Unavailable(Problem(0, "not_yet", detail, "not_applied", retryable=True))
