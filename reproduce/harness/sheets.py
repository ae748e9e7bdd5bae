"""Say what a figure of curves shows, from a result alone: sheets of panels of lines, which figures.py draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reproduce.harness.declare import Column


@dataclass(frozen=True)
class Line:
    """Hold a curve, one for each training seed."""

    label: str
    color: str
    x: Sequence[float]
    values: Sequence[Sequence[float]]  # (seeds, len(x))
    bars: Sequence[tuple[float, float]] | None = None  # ends of an interval round each mean, in place of a band


@dataclass(frozen=True)
class Panel:
    """Hold the lines of one pair of axes."""

    title: str
    x: str  # labels of the axes
    y: str
    lines: list[Line]


@dataclass(frozen=True)
class Sheet:
    """Hold a figure: rows of panels."""

    caption: str
    panels: list[list[Panel]]


KL = "KL of a step, nats"
AXES = {"samples": "training samples", "hours": "training time, core hours on a CPU"}


def value(point: dict, cell: str, metric: str) -> float:
    """Return a metric, or the KL, at a point of a result's curve; nan where it says nothing."""
    found = point["kl"] if metric == "kl" else point["means"][cell].get(metric)
    return float("nan") if found is None else found


def panel(
    result: dict,
    rows: Mapping[str, tuple[str, str]],
    cell: str,
    metric: str,
    title: str,
    label: str,
    x: str = "samples",
) -> Panel:
    """Return the panel of a metric of some rows, row -> (label, colour), against samples or hours.

    Rows that were not run are left out.
    """
    lines = []
    for row, (name, color) in rows.items():
        runs = [run["curve"] for run in result["runs"] if run["row"] == row and len(run["curve"]) > 1]
        if runs:
            places = np.mean([[point[x] for point in curve] for curve in runs], 0).tolist()
            values = [[value(point, cell, metric) for point in curve] for curve in runs]
            lines.append(Line(name, color, places, values))
    return Panel(title, AXES[x], label, lines)


def watched(
    result: dict,
    groups: Sequence[tuple[str, str, Mapping[str, tuple[str, str]]]],
    metrics: Mapping[str, Column],
) -> list[list[Panel]]:
    """Return a row of panels for each group: one for each of the metrics that was scored, and one for the KL.

    Args:
        groups: title, cell, rows as in `panel`.
        metrics: name -> how the page prints it.
    """
    scored = {name for run in result["runs"][:1] for found in run["cells"].values() for name in found["means"]}
    labels = {name: column.title for name, column in metrics.items() if name in scored} | {"kl": KL}
    return [
        [
            panel(result, rows, cell, name, "" if place else title, label)
            for place, (name, label) in enumerate(labels.items())
        ]
        for title, cell, rows in groups
    ]
