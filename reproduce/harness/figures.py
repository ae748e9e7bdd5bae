"""Draw the sheets of a table's figures, in the one style."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fsalign_lib.plotting import PALETTE, STYLE, learning_curve, new_figure
from reproduce.harness.sheets import Line, Sheet


def with_bars(ax: Axes, line: Line) -> None:
    """Draw the mean over seeds as a line, each point with its interval."""
    means, (low, high) = np.mean(line.values, 0), np.transpose(line.bars)
    ends = np.clip([means - low, high - means], 0, None)
    color = PALETTE.get(line.color, line.color)
    with matplotlib.rc_context(STYLE):
        ax.errorbar(line.x, means, yerr=ends, color=color, marker="o", markersize=3.5, capsize=2)


def draw(sheet: Sheet) -> Figure:
    """Draw a sheet. Lines are named once, to the right of the last of the panels side by side that share them."""
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
