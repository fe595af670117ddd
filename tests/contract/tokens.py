"""Tokens for nodes under test, with a hash that costs nothing, put into the state as the log would."""

from __future__ import annotations

import time
from dataclasses import dataclass

from raftkv.access.secret import hashed, new_token, split
from raftkv.kv.command import CreateToken, RevokeToken
from raftkv.kv.tokens import Grant, Role, Token
from raftkv.model import TokenCreated, TokenRevoked
from tests.contract.conftest import Node

CHEAP = (2, 1, 1)

Grants = tuple[tuple[Role, bytes], ...]


@dataclass(frozen=True)
class Made:
    """A token, and what is kept of it."""

    text: str
    record: Token

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.text}"}


def make(*grants: tuple[Role, bytes], rate: int = 0, expires_ms: int = 0, name: str = "t") -> Made:
    token_id, text = new_token()
    parts = split(text)
    assert parts is not None
    salt = token_id.encode()
    record = Token(
        token_id,
        name,
        tuple(Grant(role, prefix) for role, prefix in grants),
        salt,
        hashed(parts[1], salt, CHEAP),
        CHEAP,
        int(time.time() * 1000),
        expires_ms,
        rate,
    )
    return Made(text, record)


def admit(token: Made, *nodes: Node) -> Made:
    for node in nodes:
        machine = node.consensus.machine
        result = machine.apply(machine.applied_index + 1, 0, CreateToken(token.record)).result
        assert isinstance(result, TokenCreated)
    return token


def revoke(token: Made, *nodes: Node) -> None:
    for node in nodes:
        machine = node.consensus.machine
        result = machine.apply(machine.applied_index + 1, 0, RevokeToken(token.record.id)).result
        assert isinstance(result, TokenRevoked)
