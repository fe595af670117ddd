"""`raftkv`, as a build that speaks the next protocol and, once the whole cluster does, writes in it.

Stands in for a release that is to come: run it in the place of `python -m raftkv`. Its log entries are of
version 2, the same bytes behind another first one; an entry of version 2 stops today's build.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cluster.cli import main
from raftkv.kv import command
from raftkv.kv.command import Command
from raftkv.raft import engine, proposals, protocol
from raftkv.raft.proposals import Proposals

NEXT_ENTRY = b"\x02"
level = 1

protocol.PROTOCOL += 1
flush = Proposals.flush


def flush_at_the_level(self: Proposals) -> bool:
    global level
    core = self._core
    level = core.membership_at(max(core.commit_index, core.configurations[0][0])).level
    return flush(self)


def encode_entry(log_time_ms: int, commands: Iterable[bytes]) -> bytes:
    payload = command.encode_entry(log_time_ms, commands)
    return NEXT_ENTRY + payload[1:] if level >= protocol.PROTOCOL else payload


def decode_entry(payload: bytes) -> tuple[int, Sequence[Command]]:
    return command.decode_entry(b"\x01" + payload[1:] if payload[:1] == NEXT_ENTRY else payload)


Proposals.flush = flush_at_the_level  # type: ignore[method-assign]
proposals.encode_entry = encode_entry  # type: ignore[attr-defined]
engine.decode_entry = decode_entry  # type: ignore[attr-defined]

if __name__ == "__main__":
    main()
