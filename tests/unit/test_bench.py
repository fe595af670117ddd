"""The pure parts of the benchmarks: what is asked, and what is made of the answers."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.bench import campaign, chart, results
from cluster.bench.load import Load, parse
from cluster.bench.loadtest import DURATIONS
from cluster.bench.probes import LOADS, PROBES, Bound, Seen, bounds_table, holds, knee_of, under_way
from cluster.bench.probes import table as probes_table
from cluster.bench.requests import (
    KEYS,
    OPERATION_NAMES,
    Case,
    Dialect,
    Operation,
    key,
    operations_a_request,
    pack,
    requests,
    value,
    writes_expected,
    written,
)
from cluster.bench.results import BARS, Bar, Sample, bars_table, from_document, summaries, table, verdicts
from cluster.bench.systems import SYSTEMS, Raftkv

PUT = Case("put", 128, 64)
GET = Case("get", 128, 64)


def parsed(request: bytes) -> tuple[str, str, bytes]:
    """(method, target, body), the body exactly as long as its header says."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    method, target, version = lines[0].split()
    headers = dict(line.split(": ") for line in lines[1:])
    assert version == "HTTP/1.1"
    assert int(headers.get("Content-Length", 0)) == len(body)
    return method, target, body


def stored(dialect: Dialect, request: bytes) -> tuple[str, str] | None:
    """The key and value that a request puts; None for a read."""
    method, target, body = parsed(request)
    if dialect == "etcd":
        document = json.loads(body)
        if target != "/v3/kv/put":
            return None
        return base64.b64decode(document["key"]).decode(), base64.b64decode(document["value"]).decode()
    if method == "GET":
        return None
    return target.removeprefix("/v1/kv/").removeprefix("/"), body.decode()


@pytest.mark.parametrize("size", [128, 4096])
@pytest.mark.parametrize("dialect", ["raftkv", "etcd", "plain"])
def test_every_dialect_puts_the_same_keys_and_values(dialect: Dialect, size: int) -> None:
    puts = [stored(dialect, each) for each in requests(dialect, Case("put", size, 1), "tag")]
    assert puts == [(key(number), value(number, "tag", size)) for number in range(KEYS)]


@pytest.mark.parametrize("dialect", ["raftkv", "etcd", "plain"])
def test_one_in_ten_of_the_mix_is_a_put(dialect: Dialect) -> None:
    puts = [stored(dialect, each) for each in requests(dialect, Case("mix", 128, 1), "tag")]
    assert sum(each is not None for each in puts) == len(puts) / 10


def test_a_stale_read_says_so_and_a_linearizable_one_does_not() -> None:
    for dialect, word in (("raftkv", b"consistency=stale"), ("etcd", b'"serializable": true')):
        assert all(word in each for each in requests(dialect, Case("stale", 128, 1), ""))  # type: ignore[arg-type]
        assert not any(word in each for each in requests(dialect, GET, ""))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "count"), [(128, 1000), (4096, 256)])
def test_a_batch_is_one_body_of_bounded_size(size: int, count: int) -> None:
    case = Case("batch", size, 4)
    (request,) = requests("raftkv", case, "tag")
    lines = [json.loads(line) for line in parsed(request)[2].splitlines()]
    assert len(lines) == operations_a_request(case) == count
    assert writes_expected(case, 3) == 3 * count
    assert lines[7] == {"op": "put", "key": key(7), "value": value(7, "tag", size)}


def test_values_have_their_size_and_differ_by_key_and_tag() -> None:
    values = {value(number, tag, 128) for number in range(KEYS) for tag in ("a", "b")}
    assert len(values) == 2 * KEYS
    assert {len(each) for each in values} == {128}


@pytest.mark.parametrize("operation", ["put", "mix"])
@pytest.mark.parametrize("done", [0, 1, 11, 5000])
def test_only_keys_that_were_surely_written_are_looked_at(operation: Operation, done: int) -> None:
    case = Case(operation, 128, 1)
    asked = requests("raftkv", case, "tag")[:done]
    puts = {found for each in asked if (found := stored("raftkv", each)) is not None}
    assert {(key(number), value(number, "tag", 128)) for number in written(case, done)} <= puts
    assert len(written(case, 5000)) == 5
    assert writes_expected(case, done) <= done * len(puts) / max(1, len(asked)) + 1


def test_packed_requests_can_be_told_apart() -> None:
    items = [b"GET / HTTP/1.1\r\n\r\n", b"12\n34\n", b""]
    packed, found = pack(items), []
    while packed:
        size, _, rest = packed.partition(b"\n")
        found.append(rest[: int(size)])
        packed = rest[int(size) :]
    assert found == items


# --- what is made of the answers -------------------------------------------------------------------------


def sample(system: str, number: int, rate: float, case: Case = PUT, problem: str = "") -> Sample:
    return Sample(system, number, case, 1000, rate, 1.0, 2.0, 3.0, 0.5, 0.1, 0, 0.02, problem)


def test_medians_and_ratios_leave_out_what_failed() -> None:
    samples = [
        *(sample("raftkv", number, rate) for number, rate in enumerate((900.0, 3000.0, 1100.0))),
        sample("raftkv", 3, 9e9, problem="7 requests failed"),
        *(sample("etcd-json", number, rate) for number, rate in enumerate((300.0, 200.0, 310.0))),
    ]
    middle = summaries(samples)["raftkv", PUT]
    assert (middle.operations_per_second, middle.rounds, middle.failed_rounds) == (1100.0, 3, 1)
    assert middle.server_cpu_per_1000 == 0.5
    (verdict,) = verdicts(samples, [Bar("", ("raftkv", PUT), ("etcd-json", PUT), 3.6)])
    assert verdict.ratio == pytest.approx(1100 / 300)
    assert verdict.lowest == pytest.approx(3.0)
    assert verdict.highest == pytest.approx(15.0)
    assert verdict.cpu_ratio == 1.0
    assert verdict.met
    assert "7 requests failed" in results.problems(samples)[0]


def test_a_side_that_was_never_measured_well_gives_no_ratio() -> None:
    samples = [sample("raftkv", 1, 5.0), sample("etcd-json", 1, 0.0, problem="it did not start")]
    (verdict,) = verdicts(samples, [Bar("", ("raftkv", PUT), ("etcd-json", PUT), 3)])
    assert verdict.ratio is None
    assert verdict.met is None
    assert "not measured" in bars_table(samples)


def test_a_missed_bar_is_said() -> None:
    samples = [sample("raftkv", 1, 100.0), sample("etcd-json", 1, 100.0)]
    assert "| NO" in bars_table(samples).splitlines()[2]
    assert "1.00" in bars_table(samples).splitlines()[2]


def test_samples_survive_the_file() -> None:
    before = sample("raftkv", 1, 5.0)
    assert from_document(json.loads(json.dumps(before.document()))) == before
    assert "PUT, 128 B, 64 connections" in table([before])


def test_runs_are_joined_as_the_rounds_of_one() -> None:
    def document(*rates: float) -> dict[str, Any]:
        samples = [sample("raftkv", number, rate).document() for number, rate in enumerate(rates, 1)]
        syncs = [{"round": number, "median": 1.0} for number in range(1, len(rates) + 1)]
        return {"about": {"command": "bench", "sync_ms": syncs}, "samples": samples}

    samples, about = results.joined([document(1.0, 2.0), document(3.0)])
    assert [(each.round, each.operations_per_second) for each in samples] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert ([each["round"] for each in about["sync_ms"]], about["command"]) == ([1, 2, 3], "bench, 2 times")
    assert results.joined([document(1.0)])[1]["command"] == "bench"


def test_every_bar_names_a_case_that_its_systems_run() -> None:
    for system, case in {side for bar in BARS for side in (bar.over, bar.under)}:
        assert case.operation in SYSTEMS[system].operations


def test_the_documentation_names_every_system_case_and_script() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    rows = {*(f"`{name}`" for name in (*SYSTEMS, *DURATIONS, *PROBES)), *OPERATION_NAMES.values()}
    assert {row for row in rows if f"| {row} |" not in page} == set()


def test_chart_rows_are_medians_in_the_order_of_the_groups() -> None:
    rows = chart.bars([sample("raftkv", 1, 10.0), sample("raftkv", 2, 30.0), sample("raftkv", 3, 20.0)])
    assert rows == {"raftkv": [20.0, None, None, None]}


def test_load_counts_every_kind_of_failure() -> None:
    document = {
        "requests": 10, "bytes": 1000, "duration_us": 2_000_000,
        "p50_us": 1500, "p99_us": 2500, "max_us": 9000,
        "connect": 1, "read": 2, "write": 3, "status": 4, "timeout": 5,
    }  # fmt: skip
    load = parse(document, 0.25)
    assert (load.errors, load.seconds, load.p50_ms, load.bytes_an_answer) == (15, 2.0, 1.5, 100.0)


# --- probes ------------------------------------------------------------------------------------------------


def seen(situation: str, *rates: float) -> list[Seen]:
    return [Seen(situation, number, rate, 1.0, 2.0, 10.0, 0, 0.0) for number, rate in enumerate(rates, 1)]


def test_the_knee_is_where_twice_the_load_brings_little_more() -> None:
    rates = dict(zip(LOADS, (100, 190, 350, 600, 650, 660, 600, 500), strict=True))
    found = [each for load, rate in rates.items() for each in seen(under_way(load), rate)]
    assert knee_of(found) == 128
    rising = [each for load in LOADS for each in seen(under_way(load), load)]
    assert knee_of(rising) == LOADS[-2]


def test_a_bound_compares_medians_and_says_what_does_not_hold() -> None:
    found = [*seen("base", 10.0, 100.0, 1000.0), *seen("other", 85.0, 85.0, 1.0)]
    good = Bound("other", "other", "base", "rate", at_least=0.8)
    assert holds(found, good) == (0.85, True)
    assert holds(found, dataclasses.replace(good, at_least=0.9))[1] is False
    assert holds(found, Bound("cpu", "other", "base", "cpu_us", at_most=0.99)) == (1.0, False)
    assert [row.split("|")[4].strip() for row in bounds_table(found, [good]).splitlines()[2:]] == ["yes"]
    assert "| other" in probes_table(found).splitlines()[3]


# --- checks on a system ----------------------------------------------------------------------------------


class Pretender(Raftkv):
    """Says what it is told to; `check` must see through it."""

    def __init__(self, made: int, found: str) -> None:
        super().__init__(Path("/nonexistent"))
        self.made, self.found = made, found

    def writes_made(self) -> int:
        return self.made

    def fetch(self, number: int) -> str:
        return self.found


def a_load(**changes: Any) -> Load:
    return dataclasses.replace(Load(1, 0, 1.0, 1.0, 1.0, 1.0, 0.0, 500.0), **changes)


def wrong() -> Iterator[tuple[str, Case, Load, Pretender]]:
    right = value(0, "tag", 128)
    yield "3 requests failed", PUT, a_load(errors=3), Pretender(11, right)
    yield "no request", PUT, a_load(requests=0), Pretender(11, right)
    yield "1 writes were acknowledged, 0 were made", PUT, a_load(), Pretender(10, right)
    yield "holds 'other", PUT, a_load(), Pretender(11, "other")
    yield "an answer has 90 bytes", GET, a_load(bytes_an_answer=90.0), Pretender(10, right)


@pytest.mark.parametrize(("words", "case", "load", "system"), list(wrong()))
def test_an_answer_that_is_not_right_is_found(words: str, case: Case, load: Load, system: Pretender) -> None:
    assert words in campaign.check(system, case, "tag", load, writes_before=10)


def test_right_answers_pass() -> None:
    system = Pretender(11, value(0, "tag", 128))
    assert campaign.check(system, PUT, "tag", a_load(), writes_before=10) == ""
    assert campaign.check(system, GET, "tag", a_load(), writes_before=10) == ""
