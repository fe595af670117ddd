"""What a node counts, and how Prometheus reads it.

Counting is on the path of every request, so it is additions to plain numbers; the families with their labels
are made when somebody reads them. Labels are route templates and names of this file, never a key, so their
number is bounded. Every name begins with `raftkv_`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. From an answer out of memory to the 5 s after which a write is given up.
BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)


# Seconds, of what takes far less than a request: a sync, a batch applied, a late timer.
SHORT_BUCKETS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
COUNT_BUCKETS = tuple(float(1 << power) for power in range(12))  # 1 to 2,048 in powers of two


@dataclass(frozen=True, slots=True)
class Sample:
    """One number that the node tells when it is asked. Samples of one name have the same label names."""

    name: str
    help: str
    value: float
    labels: Mapping[str, str]
    counter: bool = False


class Histogram:
    """How many values lay between the bounds, upper ones included, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram that the node tells when it is asked."""

    name: str
    help: str
    histogram: Histogram


Source = Callable[[], Iterable[Sample | Distribution]]


class RequestTimes:
    """Requests of one route and method: how many took how long, and with which status they ended."""

    __slots__ = ("buckets", "seconds", "statuses")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0
        self.statuses: defaultdict[int, int] = defaultdict(int)

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.seconds += seconds
        self.buckets[bisect_left(BUCKETS, seconds)] += 1


class Metrics:
    """`source` adds numbers that somebody else keeps. `process`: this process's own are among them."""

    def __init__(self, *, process: bool = True) -> None:
        self._requests: dict[tuple[str, str], RequestTimes] = {}
        self._sources: list[Source] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        if process:
            ProcessCollector(namespace="raftkv", registry=self._registry)

    def source(self, source: Source) -> None:
        self._sources.append(source)

    def request(self, template: str, method: str, status: int, seconds: float) -> None:
        self.times(template, method).add(status, seconds)

    def times(self, template: str, method: str) -> RequestTimes:
        """For who adds to the same one again and again."""
        times = self._requests.get((template, method))
        if times is None:
            times = self._requests[template, method] = RequestTimes()
        return times

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        yield from self._request_families()
        families: dict[str, Metric] = {}
        for source in self._sources:
            for sample in source():
                name = "raftkv_" + sample.name
                if isinstance(sample, Distribution):
                    families[name] = _histogram_family(name, sample)
                    continue
                family = families.get(name)
                if family is None:
                    kind = CounterMetricFamily if sample.counter else GaugeMetricFamily
                    family = families[name] = kind(name, sample.help, labels=list(sample.labels))
                family.add_metric(list(sample.labels.values()), sample.value)  # type: ignore[attr-defined]
        yield from families.values()

    def _request_families(self) -> Iterable[Metric]:
        counts = CounterMetricFamily(
            "raftkv_http_requests", "Requests answered.", labels=["route", "method", "status"]
        )
        times = HistogramMetricFamily(
            "raftkv_http_request_seconds",
            "From a request's headers to its answer.",
            labels=["route", "method"],
        )
        for (template, method), request in self._requests.items():
            for status, count in request.statuses.items():
                counts.add_metric([template, method, str(status)], count)
            buckets = cumulated(BUCKETS, request.buckets)
            times.add_metric([template, method], buckets, request.seconds)
        yield counts
        yield times


def _histogram_family(name: str, told: Distribution) -> Metric:
    family = HistogramMetricFamily(name, told.help, labels=[])
    histogram = told.histogram
    family.add_metric([], cumulated(histogram.bounds, histogram.counts), histogram.sum)
    return family


def cumulated(bounds: Iterable[float], counts: Iterable[int]) -> list[tuple[str, float]]:
    """As Prometheus has buckets: each with all that is below it."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
