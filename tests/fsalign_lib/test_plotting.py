"""Figures: what is drawn where, and files that are small and the same every time."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from fsalign_lib.metrics.densities import Grid
from fsalign_lib.plotting import (
    DPI,
    PALETTE,
    STYLE,
    contact_sheet,
    density2d,
    learning_curve,
    new_figure,
    save,
    show,
    use_style,
)


def pictures(count: int = 5) -> torch.Tensor:
    """Picture i is of the grey (i + 1) / 10, with one red pixel at its top right."""
    x = torch.arange(1, count + 1)[:, None, None, None] / 10 * torch.ones(count, 3, 6, 8)
    x[:, :, 0, -1] = torch.tensor([1.0, 0.0, 0.0])
    return x


def test_contact_sheet_keeps_order_orientation_and_captions():
    figure = contact_sheet(pictures(), [f"caption {i}" for i in range(5)], columns=3)
    assert isinstance(figure, Figure) and len(figure.axes) == 6
    for i, ax in enumerate(figure.axes[:5]):
        assert ax.get_title() == f"caption {i}"
        drawn = ax.images[0].get_array()
        assert drawn.shape == (6, 8, 3) and drawn[3, 3].tolist() == [round(255 * (i + 1) / 10)] * 3
        assert drawn[0, -1].tolist() == [255, 0, 0]
    assert not figure.axes[5].images and not figure.axes[5].axison
    rows = [ax.get_subplotspec().rowspan.start for ax in figure.axes]
    assert rows == [0, 0, 0, 1, 1, 1]


def test_contact_sheet_clips_and_takes_one_picture():
    drawn = contact_sheet(torch.full((1, 3, 4, 4), 1.7, requires_grad=True)).axes[0].images[0].get_array()
    assert (drawn == 255).all()
    assert (contact_sheet(torch.full((1, 3, 4, 4), -0.2)).axes[0].images[0].get_array() == 0).all()


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (torch.zeros(2, 1, 4, 4), None, r"\(2, 1, 4, 4\): expected \(B, 3, H, W\)"),
        (torch.zeros(0, 3, 4, 4), None, "B >= 1"),
        (torch.zeros(2, 3, 4, 4), ["one"], "1 captions for 2 images"),
        (torch.full((1, 3, 4, 4), torch.nan), None, "not finite"),
    ],
)
def test_contact_sheet_names_bad_input(images, captions, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(images, captions)


def test_learning_curve_draws_mean_and_band():
    _, ax = new_figure()
    runs = np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 6.0]])
    learning_curve(ax, [0, 10, 20], runs, "online PSO", "green")
    (line,), (band,) = ax.lines, ax.collections
    assert line.get_color() == PALETTE["green"] and line.get_ydata().tolist() == [1, 2, 4]
    top = band.get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(4 + runs[:, 2].std(ddof=1))
    assert ax.get_legend().get_texts()[0].get_text() == "online PSO"
    learning_curve(ax, [0, 10, 20], [1.0, 2.0, 3.0], color="#123456")
    assert len(ax.lines) == 2 and len(ax.collections) == 1
    with pytest.raises(ValueError, match="for 4 steps"):
        learning_curve(ax, range(4), [1.0, 2.0])


def test_density2d_puts_the_peak_where_it_is():
    peak = torch.tensor([1.5, -0.6])
    _, ax = new_figure()
    samples = peak + 0.1 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    density2d(ax, lambda x: -10 * (x - peak).square().sum(1), samples, Grid(-3, 3, 60), title="square")
    (image,), (dots,) = ax.images, ax.collections
    row, column = np.unravel_index(image.get_array().argmax(), (60, 60))
    left, right, bottom, top = image.get_extent()
    x, y = left + (column + 0.5) / 60 * (right - left), bottom + (row + 0.5) / 60 * (top - bottom)
    assert image.origin == "lower" and (x, y) == pytest.approx((1.5, -0.6), abs=0.06)
    assert len(dots.get_offsets()) == 1500 and np.abs(dots.get_offsets() - peak.numpy()).max() < 0.6
    assert ax.get_xlim() == ax.get_ylim() == (-3, 3) and ax.get_title() == "square"
    _, empty = new_figure()
    assert density2d(empty, samples=samples[:3]) is empty and not empty.images


def test_style_is_one_and_leaves_no_trace():
    before = dict(matplotlib.rcParams)
    figure, axes = new_figure(2, 3)
    assert axes.shape == (2, 3) and figure.dpi == DPI <= 100 and not axes[0, 0].spines["top"].get_visible()
    contact_sheet(pictures())
    assert dict(matplotlib.rcParams) == before and not plt.get_fignums(), "no global state, no figure left in pyplot"
    with matplotlib.rc_context():
        use_style()
        assert all(matplotlib.rcParams[key] == STYLE[key] for key in ("font.size", "axes.grid", "savefig.dpi"))


def test_saved_files_are_small_and_repeat(tmp_path):
    paths = [save(contact_sheet(pictures()), tmp_path / "new" / f"{i}.png") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes() and b"Software" not in paths[0].read_bytes()
    figure, _ = new_figure(width=3, height=2)
    with Image.open(save(figure, tmp_path / "size.png")) as picture:
        assert picture.size == (300, 200)


def test_show_displays_a_png(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    show(new_figure()[0])
    show(new_figure()[0], colors=16)
    assert all(picture.data.startswith(b"\x89PNG") for picture in shown)
    assert len(shown[1].data) < len(shown[0].data)
