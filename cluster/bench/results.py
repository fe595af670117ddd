"""Samples, their medians, the ratios between systems, and all of it as text. PURE.

A sample is one case on one system in one round. Ratios are of medians over the rounds; beside each stands
the range of the ratios within the single rounds, which says how much a median is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from cluster.bench.requests import OPERATION_NAMES, Case


@dataclass(frozen=True, slots=True)
class Sample:
    """`problem` is empty for a sample that counts: one with errors, or whose keys are wrong, does not.

    `neighbours_cpu_share` is the part of the machine's CPU time that neither the system nor the load
    generator used, of all cores together: above some percent, absolute figures are worth little.
    """

    system: str
    round: int
    case: Case
    operations: int
    operations_per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    server_cpu_seconds: float
    client_cpu_seconds: float
    errors: int
    neighbours_cpu_share: float
    problem: str = ""

    def document(self) -> dict[str, Any]:
        return asdict(self)


def from_document(document: dict[str, Any]) -> Sample:
    return Sample(**{**document, "case": Case(**document["case"])})


def joined(documents: Sequence[Mapping[str, Any]]) -> tuple[list[Sample], dict[str, Any]]:
    """Several runs, as they were saved, as the rounds of one; what is said about it is the first one's."""
    samples: list[Sample] = []
    about = {**documents[0]["about"], "sync_ms": []}
    for document in documents:
        before = max((each.round for each in samples), default=0)
        own = [from_document(each) for each in document["samples"]]
        samples += [replace(each, round=before + each.round) for each in own]
        about["sync_ms"] += [
            {**each, "round": before + each["round"]} for each in document["about"]["sync_ms"]
        ]
    if len(documents) > 1:
        about["command"] += f", {len(documents)} times"
    return samples, about


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the rounds that count. CPU is the servers' and the load generator's, in seconds."""

    system: str
    case: Case
    rounds: int
    operations_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_per_1000: float
    client_cpu_per_1000: float
    failed_rounds: int


def summaries(samples: Iterable[Sample]) -> dict[tuple[str, Case], Summary]:
    groups: dict[tuple[str, Case], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.system, sample.case), []).append(sample)
    return {
        where: summarise(*where, group)
        for where, group in groups.items()
        if any(not s.problem for s in group)
    }


def summarise(system: str, case: Case, samples: Sequence[Sample]) -> Summary:
    good = [sample for sample in samples if not sample.problem]

    def middle(of: Callable[[Sample], float]) -> float:
        return median(of(sample) for sample in good)

    return Summary(
        system=system,
        case=case,
        rounds=len(good),
        operations_per_second=middle(lambda s: s.operations_per_second),
        p50_ms=middle(lambda s: s.p50_ms),
        p99_ms=middle(lambda s: s.p99_ms),
        server_cpu_per_1000=middle(lambda s: s.server_cpu_seconds * 1000 / s.operations),
        client_cpu_per_1000=middle(lambda s: s.client_cpu_seconds * 1000 / s.operations),
        failed_rounds=len(samples) - len(good),
    )


# --- the bars --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bar:
    """What a ratio of operations per second must be at least; None: it is told beside the others."""

    title: str
    over: tuple[str, Case]
    under: tuple[str, Case]
    at_least: float | None


def put(connections: int) -> Case:
    return Case("put", 128, connections)


def get(connections: int) -> Case:
    return Case("get", 128, connections)


BATCH_CONNECTIONS = 4  # each with a body of 1,000 puts under way
BATCH = Case("batch", 128, BATCH_CONNECTIONS)
STALE = Case("stale", 128, 64)

_SECURED = "raftkv-secured"

_PLAIN_BARS: tuple[Bar, ...] = (
    Bar("durable PUT, etcd's JSON gateway, 64", ("raftkv", put(64)), ("etcd-json", put(64)), 3),
    Bar("durable PUT, etcd's JSON gateway, 256", ("raftkv", put(256)), ("etcd-json", put(256)), 4),
    Bar("durable PUT, etcd's gRPC client, 64", ("raftkv", put(64)), ("etcd-grpc", put(64)), 2),
    Bar("durable PUT, etcd's gRPC client, 256", ("raftkv", put(256)), ("etcd-grpc", put(256)), 2),
    Bar("linearizable GET, etcd's JSON gateway, 64", ("raftkv", get(64)), ("etcd-json", get(64)), 5),
    Bar("linearizable GET, etcd's gRPC client, 64", ("raftkv", get(64)), ("etcd-grpc", get(64)), 3),
    Bar("PUT, our own ceiling, 256", ("raftkv", put(256)), ("ceiling", put(256)), 0.3),
    Bar("stale GET, our own ceiling, 64", ("raftkv", STALE), ("ceiling", STALE), 0.7),
    Bar("PUT, a bare parser, 256", ("raftkv", put(256)), ("parser-ceiling", put(256)), None),
    Bar("stale GET, a bare parser, 64", ("raftkv", STALE), ("parser-ceiling", STALE), None),
    Bar("PUT with fsync, the same on tmpfs, 256", ("raftkv", put(256)), ("raftkv-tmpfs", put(256)), 0.6),
    Bar("batch load, single PUTs at 256", ("raftkv", BATCH), ("raftkv", put(256)), 2),
)


def secured(side: tuple[str, Case]) -> tuple[str, Case]:
    return (_SECURED, side[1]) if side[0] == "raftkv" else side


# Beside each bar the same with TLS and tokens, and what these cost; the other systems stay in plain text.
BARS: tuple[Bar, ...] = (
    *_PLAIN_BARS,
    *(
        Bar(f"{bar.title}, secured", secured(bar.over), secured(bar.under), None)
        for bar in _PLAIN_BARS
        if bar.at_least is not None and bar.under[0] != "raftkv-tmpfs"
    ),
    *(
        Bar(f"{case}, secured against plain", (_SECURED, case), ("raftkv", case), None)
        for case in (put(64), put(256), get(64), STALE, BATCH)
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    bar: Bar
    ratio: float | None  # None where one side was not measured
    lowest: float | None  # within one round
    highest: float | None
    cpu_ratio: float | None = None  # CPU time of the servers a request, of the other over ours

    @property
    def met(self) -> bool | None:
        if self.ratio is None or self.bar.at_least is None:
            return None
        return self.ratio >= self.bar.at_least


def verdicts(samples: Sequence[Sample], bars: Iterable[Bar] = BARS) -> list[Verdict]:
    middle = summaries(samples)
    return [verdict(bar, samples, middle) for bar in bars]


def verdict(bar: Bar, samples: Sequence[Sample], middle: dict[tuple[str, Case], Summary]) -> Verdict:
    over, under = middle.get(bar.over), middle.get(bar.under)
    if over is None or under is None:
        return Verdict(bar, None, None, None)
    rates = {
        (sample.system, sample.case, sample.round): sample.operations_per_second
        for sample in samples
        if not sample.problem
    }
    within = [
        rate / rates[*bar.under, number]
        for (system, case, number), rate in rates.items()
        if (system, case) == bar.over and (*bar.under, number) in rates
    ]
    return Verdict(
        bar,
        over.operations_per_second / under.operations_per_second,
        min(within, default=None),
        max(within, default=None),
        under.server_cpu_per_1000 / over.server_cpu_per_1000 if over.server_cpu_per_1000 else None,
    )


# --- as text ---------------------------------------------------------------------------------------------

HEADINGS = ("case", "system", "ops/s", "p50 ms", "p99 ms", "server CPU s", "load CPU s", "rounds")


def table(samples: Sequence[Sample]) -> str:
    """Markdown. CPU is per 1,000 operations."""
    middle = summaries(samples)
    order = list(OPERATION_NAMES)
    rows = [
        (
            str(each.case),
            each.system,
            f"{each.operations_per_second:,.0f}",
            f"{each.p50_ms:.2f}",
            f"{each.p99_ms:.2f}",
            f"{each.server_cpu_per_1000:.3f}",
            f"{each.client_cpu_per_1000:.3f}",
            f"{each.rounds}" + (f" ({each.failed_rounds} failed)" if each.failed_rounds else ""),
        )
        for each in sorted(
            middle.values(),
            key=lambda s: (order.index(s.case.operation), s.case.value_bytes, s.case.connections),
        )
    ]
    return markdown(HEADINGS, rows)


def bars_table(samples: Sequence[Sample]) -> str:
    rows = []
    for each in verdicts(samples):
        at_least = "" if each.bar.at_least is None else f"{each.bar.at_least:g}"
        if each.ratio is None or each.lowest is None or each.highest is None:
            rows.append((each.bar.title, "not measured", "", "", at_least, ""))
            continue
        rows.append(
            (
                each.bar.title,
                f"{each.ratio:.2f}",
                f"{each.lowest:.2f} to {each.highest:.2f}",
                "" if each.cpu_ratio is None else f"{each.cpu_ratio:.2f}",
                at_least,
                {True: "yes", False: "NO", None: ""}[each.met],
            )
        )
    return markdown(("raftkv against", "ratio", "in single rounds", "CPU ratio", "at least", "met"), rows)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(headings), line(["-" * width for width in widths]), *map(line, rows)])


def problems(samples: Iterable[Sample]) -> list[str]:
    return [
        f"{sample.system}, {sample.case}, round {sample.round}: {sample.problem}"
        for sample in samples
        if sample.problem
    ]
