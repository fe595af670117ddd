"""Which step comes next on the way to the members that there shall be, from every state on the way."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.reconcile_cli import Adding, HandingOver, Removing, Waiting, next_step
from raftkv.model import Member


def wanted(*names: str) -> tuple[Member, ...]:
    return tuple(Member(name, f"{name}:8401", f"http://{name}:8400") for name in names)


def shown(text: str) -> list[dict[str, Any]]:
    """`n1* n2 n3+ n4!`: n1 leads, n3 is a learner, n4 does not answer."""
    return [
        {
            "name": word.rstrip("*+!"),
            "role": "leader" if "*" in word else "learner" if "+" in word else "follower",
            "reachable": "!" not in word,
        }
        for word in text.split()
    ]


@pytest.mark.parametrize(
    ("members", "names", "step"),
    [
        ("n1* n2 n3", "n1 n2 n3", None),
        ("n1* n2 n3!", "n1 n2 n3", None),
        ("n1* n2 n3", "n1 n2 n3 n4 n5", Adding(*wanted("n4"))),
        ("n1* n2 n3 n4+!", "n1 n2 n3 n4 n5", Adding(*wanted("n5"))),
        ("n1* n2 n3 n4+! n5+!", "n1 n2 n3 n4 n5", None),
        ("n1* n2 n3 n4 n5", "n1 n2 n3", Removing("n5")),
        ("n1* n2 n3 n4", "n1 n2 n3", Removing("n4")),
        ("n1* n2 n3 n4! n5", "n1 n2 n3", Removing("n4")),
        ("n1* n2 n3 n4+ n5", "n1 n2 n3", Removing("n4")),
        ("n1 n2 n3 n4* n5", "n1 n2 n3", HandingOver("n1")),
        ("n1! n2 n3 n4* n5", "n1 n2 n3", HandingOver("n2")),
        ("n1! n2! n4*", "n1 n2", Waiting(("n1", "n2"))),
        ("n1* n2+ n3 n4", "n1 n2 n3", Waiting(("n2",))),
        ("n1* n2 n3", "n4 n5 n6", Adding(*wanted("n4"))),
        ("n1* n2 n3 n4+ n5 n6", "n4 n5 n6", Waiting(("n4",))),
        ("n1* n2 n3 n4 n5 n6", "n4 n5 n6", HandingOver("n4")),
        ("n1 n2 n3 n4* n5 n6", "n4 n5 n6", Removing("n3")),
    ],
    ids=str,
)
def test_the_next_step(members: str, names: str, step: object) -> None:
    assert next_step(shown(members), wanted(*names.split())) == step


def test_every_way_ends_with_the_wanted_members_and_a_majority_of_voters_all_along() -> None:
    rng = random.Random(1)
    for _ in range(500):
        names = [f"n{number}" for number in range(1, 8)]
        before, after = (rng.sample(names, rng.randint(1, 5)) for _ in range(2))
        roles = dict.fromkeys(before, "follower") | {rng.choice(before): "leader"}
        for _ in range(60):
            members = [{"name": name, "role": role, "reachable": True} for name, role in roles.items()]
            match next_step(members, wanted(*sorted(after))):
                case None:
                    break
                case Adding(member):
                    roles[member.name] = "learner"
                case Waiting(learners):
                    assert all(roles[name] == "learner" for name in learners)
                    roles |= dict.fromkeys(learners, "follower")
                case HandingOver(to):
                    assert roles[to] == "follower", "only a voter can lead"
                    roles = {name: "follower" if role == "leader" else role for name, role in roles.items()}
                    roles[to] = "leader"
                case Removing(name):
                    assert roles.pop(name) != "leader"
            assert "leader" in roles.values()
        assert sorted(roles) == sorted(after)
