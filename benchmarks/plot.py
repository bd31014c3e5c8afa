"""Draw the comparison: `python benchmarks/plot.py FIGURES.json PLOT.svg`. Runs in the peers' environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "penstock"  # the same picture for the same figures

from matplotlib import pyplot  # noqa: E402 - once the backend is chosen

OURS, PEER = "#0b7285", "#adb5bd"
#: part, column, title
PANELS = (
    ("drain", "drained, jobs/s", "Drain, jobs/s"),
    ("drain", "enqueued in bulk, jobs/s", "Enqueue in bulk, jobs/s"),
    ("enqueue", "jobs/s", "Enqueue one by one, jobs/s"),
    ("latency, idle", "p50, ms", "Latency when idle, median, ms"),
    ("latency, half load", "p99, ms", "Latency at half load, p99, ms"),
    ("payloads", "drained, jobs/s", "Drain with 10 KB payloads, jobs/s"),
)


def main(source: Path, target: Path) -> None:
    figures: dict[str, dict[str, dict[str, float]]] = json.loads(source.read_text(encoding="utf-8"))
    panels = [panel for panel in PANELS if panel[0] in figures]
    if not panels:
        return
    rows = (len(panels) + 1) // 2
    figure, axes = pyplot.subplots(rows, min(2, len(panels)), figsize=(9, 2.6 * rows), squeeze=False)
    places = list(axes.flat)
    for place, (part, column, title) in zip(places, panels, strict=False):
        _bars(place, {name: row[column] for name, row in figures[part].items() if column in row})
        place.set_title(title, fontsize=10, loc="left")
    for place in places[len(panels) :]:
        place.set_visible(False)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def _bars(place: Any, values: dict[str, float]) -> None:
    names = list(reversed(values))
    colours = [OURS if name.casefold().startswith("penstock") else PEER for name in names]
    bars = place.barh(names, [values[name] for name in names], color=colours)
    labels = [f"{values[name]:,.0f}" if values[name] >= 100 else f"{values[name]:.3g}" for name in names]
    place.bar_label(bars, labels, padding=3, fontsize=8)
    place.margins(x=0.18)
    place.tick_params(labelsize=8)
    # The figures stand beside the bars.
    place.xaxis.set_visible(False)
    place.spines[["top", "right", "bottom"]].set_visible(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
