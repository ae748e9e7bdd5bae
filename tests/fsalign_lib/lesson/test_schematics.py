"""Schematics: each is drawn, within its frame, and no text covers another."""

from itertools import combinations

import matplotlib.text
import pytest

from fsalign_lib.lesson import schematics

FIGURES = {
    "pso 5": lambda: schematics.pso_chains("5"),
    "pso 6": lambda: schematics.pso_chains("6"),
    "pso 7": lambda: schematics.pso_chains("7"),
    "sdpo": schematics.sdpo_pair,
    "kl": lambda: schematics.distillation("kl"),
    "score": lambda: schematics.distillation("score"),
    "kernels": schematics.kernels,
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES.keys())
def test_texts_lie_apart_and_inside(draw):
    figure = draw()
    figure.draw_without_rendering()
    texts = [text for ax in figure.axes for text in ax.findobj(matplotlib.text.Text) if text.get_text().strip()]
    boxes = {text.get_text() + str(text.get_position()): text.get_window_extent() for text in texts}
    assert len(boxes) > 5
    for box in boxes.values():
        assert box.x0 >= 0 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 + 1
    assert [(a, b) for a, b in combinations(boxes, 2) if boxes[a].padded(-1.5).overlaps(boxes[b].padded(-1.5))] == []
