"""Each judgement finds the fault it is for, and leaves a right history alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster import history
from cluster.history import Kind, Outcome, Record, Recorder


def record(kind: Kind, key: str, invoked: float, completed: float | None = None, **rest: Any) -> Record:
    outcome: Outcome = rest.pop("outcome", "ok")
    end = invoked + 1 if completed is None else completed
    return Record(
        client=rest.pop("client", "c1"),
        key=key,
        kind=kind,
        invoked=invoked,
        completed=end,
        outcome=outcome,
        **rest,
    )


APPENDS = [
    record("append", "append/a", 0, value="c1.1;", result=5, revision=1),
    record("append", "append/a", 2, value="c1.2;", result=10, revision=2),
    record("append", "append/a", 4, value="c1.3;", outcome="unknown"),
]


def rules(records: list[Record]) -> set[str]:
    return {violation.rule for violation in history.judge(records)}


@pytest.mark.parametrize("value", ["c1.1;c1.2;", "c1.1;c1.2;c1.3;"])
def test_acknowledged_tokens_once_and_unknown_ones_at_most_once_is_right(value: str) -> None:
    assert history.judge([*APPENDS, record("get", "append/a", 10, result=value)]) == []


@pytest.mark.parametrize(
    ("value", "evidence"),
    [
        ("c1.1;", "acknowledged 'c1.2;' is lost"),
        ("c1.1;c1.2;c1.1;", "'c1.1;' is there 2 times"),
        ("c1.1;c1.2;c1.3;c1.3;", "'c1.3;' is there 2 times"),
        ("c1.2;c1.1;", "'c1.2;' stands before 'c1.1;'"),
        ("c1.1;c1.2;c9.1;", "'c9.1;' was never sent"),
    ],
)
def test_a_wrong_value_of_appends_is_found_twice_over(value: str, evidence: str) -> None:
    records = [*APPENDS, record("get", "append/a", 10, result=value)]
    assert rules(records) == {"append", "linearizability"}
    assert evidence in [violation.evidence for violation in history.append_violations(records)]


def test_a_write_said_not_to_be_applied_must_not_show() -> None:
    refused = record("append", "append/a", 6, value="c1.4;", outcome="not_applied")
    seen = record("get", "append/a", 10, result="c1.1;c1.2;c1.4;")
    assert rules([*APPENDS, refused, seen]) == {"append", "linearizability"}
    register = [
        record("put", "register/a", 0, value="x", outcome="not_applied"),
        record("get", "register/a", 2, result="x"),
    ]
    assert rules(register) == {"linearizability"}


def test_a_failed_compare_and_set_is_an_observation() -> None:
    records = [
        record("put", "register/a", 0, value="x", result=True, revision=1),
        record("cas", "register/a", 2, expected="x", value="y", result=False),
    ]
    assert rules(records) == {"linearizability"}


def test_a_counter_that_counts_twice_is_found() -> None:
    records = [
        record("incr", "counter/a", 0, by=1, result=1, revision=1),
        record("get", "counter/a", 2, result="2"),
    ]
    assert rules(records) == {"linearizability"}


def test_keys_are_judged_one_by_one() -> None:
    good = record("get", "register/a", 0, result=None)
    bad = record("get", "register/b", 0, result="ghost")
    (violation,) = history.judge([good, bad])
    assert (violation.key, violation.records) == ("register/b", (bad,))


def test_a_search_that_was_given_up_is_no_pass() -> None:
    records = [
        record("put", "register/a", 0, 100, value=str(number), outcome="ok", client=f"c{number}")
        for number in range(20)
    ]
    records.append(record("get", "register/a", 200, result="ghost"))
    (violation,) = history.linearizability_violations(records, steps_max=10)
    assert violation.evidence.startswith("undecided")


def test_two_writes_with_one_revision_are_found() -> None:
    records = [
        record("put", "register/a", 0, value="x", result=True, revision=7),
        record("put", "register/b", 0, value="x", result=True, revision=7),
    ]
    assert rules(records) == {"revision"}


def test_a_revision_that_goes_back_in_real_time_is_found() -> None:
    records = [
        record("put", "register/a", 0, value="x", result=True, revision=8),
        record("put", "register/b", 2, value="x", result=True, revision=7),
    ]
    (violation, *_) = history.revision_violations(records)
    assert "revision 7 after 8 was acknowledged" in violation.evidence
    overlapping = [records[0], record("put", "register/b", 0.5, value="x", result=True, revision=7)]
    assert history.revision_violations(overlapping) == []


def test_a_read_older_than_an_acknowledged_write_to_another_key_is_found() -> None:
    records = [
        record("put", "register/a", 0, value="x", result=True, revision=8),
        record("get", "register/b", 2, result=None, store_revision=7),
    ]
    assert rules(records) == {"revision"}


def test_an_unknown_model_is_an_error_not_a_pass() -> None:
    with pytest.raises(ValueError, match="no model for the key 'other/a'"):
        history.judge([record("get", "other/a", 0, result=None)])


def test_recorder_keeps_what_never_ended_as_unknown(tmp_path: Path) -> None:
    moments = iter(range(10))
    recorder = Recorder(lambda: next(moments))
    first = recorder.begin("c1", "register/a", "put", value="x")
    recorder.begin("c2", "register/a", "get")
    recorder.end(first, "ok", result=True, revision=1, nodes=["n1", "n2"])
    done, pending = recorder.records()
    assert (done.invoked, done.completed, done.outcome, done.nodes) == (0, 2, "ok", ("n1", "n2"))
    assert (pending.invoked, pending.completed, pending.outcome) == (1, None, "unknown")
    path = tmp_path / "history.ndjson"
    history.save(path, recorder.records())
    assert history.load(path) == recorder.records()


def test_write_gap_and_resumption() -> None:
    records = [
        record("put", "register/a", 0, 1, value="a"),
        record("put", "register/a", 3, 6, value="b"),
        record("get", "register/a", 6, 7),
        record("put", "register/a", 5, 8, value="c"),
        record("put", "register/a", 8, 9, value="c", outcome="unknown"),
    ]
    assert history.write_gap(records, 0, 10) == (5, 1)
    assert history.write_gap(records, 0, 14) == (6, 8)
    assert history.write_gap([], 0, 3) == (3, 0)
    assert history.resumed_after_s(records, 4) == 4
    assert history.resumed_after_s(records, 5) is None
    assert history.outcomes(records) == {"get ok": 1, "put ok": 3, "put unknown": 1}
