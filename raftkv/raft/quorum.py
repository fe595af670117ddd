"""Majorities, as pure arithmetic. Source: Raft §5.3–5.4, etcd's quorum/majority.go."""

from __future__ import annotations

from collections.abc import Collection


def majority(voters: int) -> int:
    """How many of `voters` are a majority: 1 of 1, 2 of 2 or 3, 3 of 4 or 5."""
    return voters // 2 + 1


def quorum_index(matches: Collection[int]) -> int:
    """The highest log index that a majority of `matches` (one a voter) has reached; 0 without voters."""
    if not matches:
        return 0
    return sorted(matches, reverse=True)[majority(len(matches)) - 1]
