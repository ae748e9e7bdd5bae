"""Figures of curves, from a result alone: what a table declares as sheets, drawn in the one style."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from fsalign_lib.plotting import learning_curve, new_figure
from tables import Line, Panel, Sheet

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


def draw(sheet: Sheet) -> Figure:
    """The lines are named in the first panel of a row, and where they are others than in the panel before."""
    columns = max(map(len, sheet.panels))
    figure, axes = new_figure(len(sheet.panels), columns, *((3.6, 2.9) if columns < 5 else (2.4, 2.0)))
    axes = np.array([[axes]]) if not isinstance(axes, np.ndarray) else axes
    for row, panels in zip(axes, sheet.panels, strict=True):
        named = None
        for place, ax in enumerate(row):
            if place >= len(panels):
                ax.set_axis_off()
                continue
            about = panels[place]
            labels = [line.label for line in about.lines]
            for line in about.lines:
                learning_curve(ax, line.x, line.values, line.label if labels != named else None, line.color)
            named = labels
            ax.set_title(about.title)
            ax.set_xlabel(about.x)
            ax.set_ylabel(about.y)
    return figure
