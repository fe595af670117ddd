"""The results as a picture: operations per second of each system, in groups, as SVG and PNG.

Needs matplotlib, which only the `bench` extra brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.bench.requests import OPERATION_NAMES, Case
from cluster.bench.results import Sample, summaries

GROUPS = (Case("put", 128, 64), Case("put", 128, 256), Case("get", 128, 64), Case("stale", 128, 64))
LABELS = {
    "raftkv": ("raftkv", "#1f6f8b"),
    "etcd-json": ("etcd, JSON gateway", "#e08e45"),
    "etcd-grpc": ("etcd, gRPC", "#c0562f"),
    "redis": ("redis, fsync always + WAIT 1", "#9a9a9a"),
    "pysyncobj": ("stock PySyncObj over HTTP", "#d0d0d0"),
}


def bars(samples: Sequence[Sample]) -> dict[str, list[float | None]]:
    """Of each system that was measured at all: a median for each group, None where there is none."""
    middle = summaries(samples)
    rows: dict[str, list[float | None]] = {}
    for system in LABELS:
        found = [middle.get((system, case)) for case in GROUPS]
        if any(found):
            rows[system] = [None if each is None else each.operations_per_second for each in found]
    return rows


def draw(samples: Sequence[Sample], subtitle: str, svg: Path, png: Path) -> None:
    """Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "raftkv"  # the same results, the same file
    rows = bars(samples)
    figure, axes = pyplot.subplots(figsize=(9, 4.2))
    height = 0.8 / max(1, len(rows))
    for number, (system, rates) in enumerate(rows.items()):
        label, color = LABELS[system]
        places = [group + number * height for group in range(len(GROUPS))]
        drawn: Any = axes.barh(places, [rate or 0 for rate in rates], height * 0.92, label=label, color=color)
        axes.bar_label(drawn, [f" {rate:,.0f}" if rate else "" for rate in rates], fontsize=7)
    axes.set_yticks([group + 0.4 - height / 2 for group in range(len(GROUPS))])
    axes.set_yticklabels(
        [f"{OPERATION_NAMES[case.operation]}\n{case.connections} connections" for case in GROUPS]
    )
    axes.invert_yaxis()
    axes.set_xlabel("operations per second, values of 128 bytes (more is better)")
    axes.set_title(subtitle, fontsize=8, loc="left", color="#555555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="upper right", frameon=False)
    figure.tight_layout()
    figure.savefig(svg, metadata={"Date": None})
    figure.savefig(png, dpi=150)
    pyplot.close(figure)
