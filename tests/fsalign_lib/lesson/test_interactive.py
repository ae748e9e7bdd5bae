"""Controls: without a reader the figure alone, with one the control that swaps it, and nothing is drawn twice."""

import io
from unittest import mock

import pytest
from IPython.display import Image, Markdown
from ipywidgets import Dropdown, HBox
from PIL import Image as Picture

from fsalign_lib.lesson import interactive
from fsalign_lib.plotting import new_figure

DRAWN = []


def draw(level=2, kind="dots"):
    DRAWN.append((level, kind))
    figure, ax = new_figure()
    ax.plot([0, level], [0, 1], "o" if kind == "dots" else "-")
    ax.set(xlim=(0, 5))
    return figure


def shown(reader: bool, **values):
    """What is displayed, and the handle of the picture."""
    DRAWN.clear()
    with (
        mock.patch.object(interactive, "_has_reader", lambda: reader),
        mock.patch("IPython.display.display") as display,
    ):
        interactive.move(draw, **values)
    return [one for call in display.call_args_list for one in call.args], display.return_value


def test_without_a_reader_there_is_the_figure_of_the_defaults_and_no_widget():
    (words, picture), handle = shown(False, level=[1, 2, 4], kind=["dots", "line"])
    assert isinstance(words, Markdown) and "**level**, **kind**" in words.data
    assert isinstance(picture, Image) and len(picture.data) < 20_000
    assert DRAWN == [(2, "dots")] and not handle.update.called


def test_a_moved_control_swaps_the_picture_and_draws_each_once():
    (row, menu, first), handle = shown(True, level=[1, 2, 4], kind=["dots", "line"])
    assert isinstance(row, HBox) and isinstance(menu, Dropdown)
    slider, play = row.children
    assert slider.index == play.value == 1 and play.max == 2
    slider.index = 2
    menu.value = "line"
    slider.index = 1
    menu.value = "dots"
    assert DRAWN == [(2, "dots"), (4, "dots"), (4, "line"), (2, "line")]
    swapped = [call.args[0].data for call in handle.update.call_args_list]
    assert len({first.data, *swapped}) == 4 and swapped[-1] == first.data
    with Picture.open(io.BytesIO(first.data)) as png:
        assert png.mode == "P" and png.width > 200


def test_faults_are_told():
    with pytest.raises(ValueError, match="level has no values"):
        shown(False, level=[])
    with pytest.raises(ValueError, match=r"level begins at 2: expected one of \[1, 3\]"):
        shown(False, level=[1, 3])


def test_a_plain_process_has_no_reader():
    assert not interactive._has_reader()


@pytest.mark.parametrize("allowed", [True, False])
def test_a_request_that_allows_input_has_a_reader(allowed):
    class Shell:
        def get_parent(self):
            return {"content": {"allow_stdin": allowed}}

    with mock.patch("IPython.get_ipython", Shell):
        assert interactive._has_reader() == allowed
