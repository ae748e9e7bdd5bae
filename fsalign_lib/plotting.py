"""Draw figures in one style: fixed colours, fonts and size, PNG at 100 dpi at most, no pyplot state.

Axes are drawn on by `learning_curve` and `density2d`; `new_figure` makes them, `save` writes them, `show` puts them
into a notebook. A figure composed by hand looks the same after `use_style()`.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fsalign_lib.metrics.densities import Grid

DPI = 100

# Okabe and Ito's colours: they stay apart for colour-blind readers and in grey.
PALETTE = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "grey": "#7F7F7F",
    "black": "#222222",
}

STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": matplotlib.cycler(color=list(PALETTE.values())),
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "image.cmap": "Greys",
    "image.interpolation": "nearest",
}


def use_style() -> None:
    """Make STYLE the default of the process, for figures that are composed by hand."""
    matplotlib.rcParams.update(STYLE)


def new_figure(rows: int = 1, columns: int = 1, width: float = 3.2, height: float = 2.6, **kwargs):
    """Return a figure in the style, with axes rows x columns of `width` x `height` inches each.

    Returns:
        (Figure, Axes), or an array of Axes (rows, columns) for more than one; `kwargs` go to `Figure.subplots`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    return figure, axes[0, 0] if rows * columns == 1 else axes


def contact_sheet(
    images: Tensor,
    captions: Sequence[str] | None = None,
    columns: int = 8,
    size: float = 0.9,
    rows: Sequence[str] = (),
    heads: Sequence[str] = (),
) -> Figure:
    """Lay out pictures in rows, left to right, each with its caption above it.

    Args:
        images: in [0, 1]; values outside are clipped  # (B, 3, H, W)
        captions: one for each picture
        columns: pictures in a row, at most
        size: inches for each picture
        rows, heads: labels left of the first rows, and above the first columns

    Raises:
        ValueError: another shape, no picture, a value that is not finite, or captions that do not match in number.
    """
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}: expected (B, 3, H, W) with B >= 1")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images: give one for each")
    if not bool(images.isfinite().all()):
        raise ValueError("images have a value that is not finite: check the decoder's output")
    pictures = (images.detach().cpu().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    columns = min(columns, len(pictures))
    height = size * images.shape[2] / images.shape[3] + (0.22 if captions is not None else 0.04)
    figure, axes = new_figure(-(-len(pictures) // columns), columns, size, height)
    cells = np.ravel(axes)
    for cell in cells:
        cell.set_axis_off()
    for index, (cell, picture) in enumerate(zip(cells[: len(pictures)], pictures, strict=True)):
        cell.imshow(picture, interpolation="nearest")
        if captions is not None:
            cell.set_title(captions[index], fontsize=6.5, pad=2)
    for cell, label in zip(cells[::columns], rows, strict=False):
        cell.text(-0.06, 0.5, label, fontsize=6.5, ha="right", va="center", transform=cell.transAxes)
    for cell, label in zip(cells[:columns], heads, strict=False):
        cell.set_title(label, fontsize=6.5, pad=2)
    return figure


def learning_curve(ax: Axes, steps: Sequence[float], values, label: str | None = None, color: str = "blue") -> Axes:
    """Draw a line over steps; for several runs their mean, with a band of one standard deviation.

    Args:
        steps: # (n,)
        values: one run (n,), or a row for each run  # (R, n)
        color: a name in PALETTE, or any colour of matplotlib.
    """
    y = np.atleast_2d(np.asarray(values, dtype=float))
    if y.ndim != 2 or y.shape[1] != len(steps):
        raise ValueError(f"values have shape {np.shape(values)} for {len(steps)} steps: expected (n,) or (R, n)")
    color = PALETTE.get(color, color)
    with matplotlib.rc_context(STYLE):
        ax.plot(steps, y.mean(0), color=color, label=label)
        if len(y) > 1:
            spread = y.std(0, ddof=1)
            ax.fill_between(steps, y.mean(0) - spread, y.mean(0) + spread, color=color, alpha=0.2, linewidth=0)
        if label is not None:
            ax.legend()
    return ax


def density2d(
    ax: Axes,
    log_density: Callable[[Tensor], Tensor] | None = None,
    samples: Tensor | None = None,
    grid: Grid | None = None,
    color: str = "blue",
    title: str | None = None,
) -> Axes:
    """Draw an exact density as grey shades and samples over it as dots, in the grid's limits, with equal axes.

    Args:
        log_density: points (n, 2) -> (n,); a constant does not matter
        samples: # (m, 2); the first 1500 are drawn
        grid: limits and resolution; by default [-3, 3] with 150 x 150 points.
    """
    grid = grid or Grid(bins=150)
    with matplotlib.rc_context(STYLE):
        if log_density is not None:
            with torch.no_grad():
                values = log_density(grid.centers()).double()
            picture = (values - values.max()).exp().reshape(grid.bins, grid.bins).T.numpy()  # rows are y
            # The square root, so that the mass between modes can be seen.
            extent = (grid.low, grid.high, grid.low, grid.high)
            ax.imshow(np.sqrt(picture), origin="lower", extent=extent, vmin=0, vmax=1.2, interpolation="bilinear")
        if samples is not None:
            x, y = samples[:1500].detach().cpu().double().numpy().T
            ax.scatter(x, y, s=2.5, color=PALETTE.get(color, color), alpha=0.4, linewidths=0)
        ax.set(xlim=(grid.low, grid.high), ylim=(grid.low, grid.high), aspect="equal")
        ax.grid(False)
        if title is not None:
            ax.set_title(title)
    return ax


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG at 100 dpi without date or version in it: the same figure gives the same bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png", metadata={"Software": None})
    return path


def save_pictures(figure: Figure, path: str | Path) -> None:
    """Write a contact sheet as a PNG of 255 colours, which takes a fraction of the bytes."""
    figure.savefig(path, dpi=110)
    with Image.open(path) as png:
        png.convert("RGB").quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)


def png(figure: Figure, colors: int | None = None) -> bytes:
    """Return the figure as a PNG; `colors` limits its palette, which takes a fraction of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png", metadata={"Software": None})
    if colors is not None:
        with Image.open(buffer) as full:
            few = full.convert("RGB").quantize(colors, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        few.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def show(figure: Figure, colors: int | None = None) -> None:
    """Display the figure as a PNG in a notebook, with `colors` as in `png`."""
    from IPython.display import Image as Shown  # only notebooks have IPython
    from IPython.display import display

    display(Shown(png(figure, colors)))
