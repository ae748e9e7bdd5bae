"""Figures of curves, from a result alone: what a table declares as sheets, drawn in the one style."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fsalign_lib.plotting import PALETTE, STYLE, learning_curve, new_figure


@dataclass(frozen=True)
class Line:
    """A curve, one for each training seed."""

    label: str
    color: str
    x: Sequence[float]
    values: Sequence[Sequence[float]]  # (seeds, len(x))
    bars: Sequence[tuple[float, float]] | None = None  # ends of an interval round each mean, in place of a band


@dataclass(frozen=True)
class Panel:
    title: str
    x: str  # labels of the axes
    y: str
    lines: list[Line]


@dataclass(frozen=True)
class Sheet:
    """A figure: rows of panels."""

    caption: str
    panels: list[list[Panel]]


KL = "KL of a step, nats"
AXES = {"samples": "training samples", "hours": "training time, core hours on a CPU"}


def value(point: dict, cell: str, metric: str) -> float:
    """Of a point of a result's curve; nan where the metric says nothing."""
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
    """A metric of some rows, row -> (label, colour), against samples or hours; rows that were not run are left out."""
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
    metrics: Mapping[str, tuple[str, int]],
) -> list[list[Panel]]:
    """A row of panels for each group: each of the metrics that was scored, and the KL.

    Args:
        groups: title, cell, rows as in `panel`.
        metrics: name -> (label, decimals).
    """
    scored = {name for run in result["runs"][:1] for found in run["cells"].values() for name in found["means"]}
    labels = {name: label for name, (label, _) in metrics.items() if name in scored} | {"kl": KL}
    return [
        [
            panel(result, rows, cell, name, "" if place else title, label)
            for place, (name, label) in enumerate(labels.items())
        ]
        for title, cell, rows in groups
    ]


def with_bars(ax: Axes, line: Line) -> None:
    """The mean over seeds as a line, each point with its interval."""
    means, (low, high) = np.mean(line.values, 0), np.transpose(line.bars)
    ends = np.clip([means - low, high - means], 0, None)
    color = PALETTE.get(line.color, line.color)
    with matplotlib.rc_context(STYLE):
        ax.errorbar(line.x, means, yerr=ends, color=color, marker="o", markersize=3.5, capsize=2)


def draw(sheet: Sheet) -> Figure:
    """Lines are named once, to the right of the last of the panels side by side that share them."""
    columns = max(map(len, sheet.panels))
    small = columns >= 5
    figure, axes = new_figure(len(sheet.panels), columns, *((2.4, 2.0) if small else (4.2, 2.9)))
    axes = np.array([[axes]]) if not isinstance(axes, np.ndarray) else axes
    for row, panels in zip(axes, sheet.panels, strict=True):
        names = [[(line.label, line.color) for line in about.lines] for about in panels]
        for ax, about, own, following in zip(row, panels, names, [*names[1:], None], strict=False):
            for line in about.lines:
                if line.bars is None:
                    learning_curve(ax, line.x, line.values, color=line.color)
                else:
                    with_bars(ax, line)
            ax.set_title(about.title, loc="left" if small else "center")
            ax.set_xlabel(about.x)
            ax.set_ylabel(about.y)
            if own and own != following:
                handles = [Line2D([], [], color=PALETTE.get(color, color), label=label) for label, color in own]
                with matplotlib.rc_context(STYLE):
                    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5))
        for ax in row[len(panels) :]:
            ax.set_axis_off()
    return figure
