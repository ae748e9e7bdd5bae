"""The demo on a tiny random model with rewards that need no weights: what it prints, what it leaves, what it claims."""

import json

import matplotlib.image
import pytest
import torch

from fsalign_lib.metrics.statistics import Interval
from fsalign_lib.models import load as models
from fsalign_lib.pocket import captions
from reproduce import demo
from tests import tiny


def contrast(images, prompts):
    return images.flatten(1).std(1)


METRICS = {row.metric: contrast for part in demo.PARTS for row in part.rows}
METRICS["pickscore"] = lambda images, prompts: 100 * tiny.brightness(images, prompts)


@pytest.fixture
def prepare(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "prompts", lambda name: captions.prompts(name)[:16])  # enough for a test

    def run(**settings):
        config = demo.DemoConfig(out=tmp_path / "out", **({"rounds": 2, "pairs": 4} | settings))
        return demo.prepare(config, models.load(folder), tiny.brightness, METRICS)

    return run


def test_it_learns_and_shows_what_it_learned(prepare, tmp_path, capsys):
    demo.run(prepare(rounds=12, pairs=8, lr=1e-3))
    out = capsys.readouterr().out
    left = json.loads((tmp_path / "out" / "demo.json").read_text())
    row = left["table"]["pickscore"]
    assert row["low"] > 0, "brightness rises"
    assert row["estimate"] == pytest.approx(row["after"] - row["before"], abs=1e-4)
    for part in demo.PARTS:
        for row in part.rows:
            assert f"\n{row.label}" in out and row.metric in left["table"]
    assert out.rstrip().splitlines()[-1].startswith("PickScore on held-out prompts rose by")
    assert demo.CREDIT in out
    assert len(left["rewards"]) == 12 and {"command", "versions", "wall_seconds"} <= left.keys()
    assert (tmp_path / "out" / "run" / "result.json").exists()
    picture = matplotlib.image.imread(tmp_path / "out" / "before-after.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 600


def test_before_and_after_share_their_noise(prepare, tmp_path):
    """A learning rate that changes nothing changes no picture; and the demo runs again into the same folder."""
    for _ in range(2):
        ready = prepare(lr=1e-30)
        before = demo.pictures(ready)
        demo.run(ready)
        assert torch.equal(demo.pictures(ready), before)
    left = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert all(row["estimate"] == row["low"] == row["high"] == 0 for row in left["table"].values())


def test_the_verdict_is_what_the_interval_says():
    assert "rose by 0.500, 95% interval [+0.200, +0.800]: zero is outside" in demo.verdict(Interval(0.5, 0.2, 0.8))
    assert "FELL by 0.500" in demo.verdict(Interval(-0.5, -0.8, -0.2))
    told = demo.verdict(Interval(0.5, -0.2, 0.8))
    assert "zero is inside" in told and "no change beyond noise" in told


def test_the_figure_names_prompts_sides_and_credit():
    before, after = torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8)
    names = ["a cat", "a green colored rabbit", "a dog", "a bat"]
    sheet = demo.figure(before, after, names, "title", columns=2)
    assert [cell.images[0].get_array().max() for cell in sheet.axes] == [0, 0, 255, 255] * 2
    assert [cell.get_title().replace("\n", " ") for cell in sheet.axes[:2]] == names[:2]
    sides = [cell.texts[0].get_text() for cell in sheet.axes if cell.texts]
    assert sides == ["before", "after"] * 2
    assert sheet.get_supxlabel() == demo.CREDIT and sheet.get_suptitle() == "title"


def test_what_is_measured_was_not_trained_on():
    trained = set(demo.prompts("train"))
    assert not trained & set(demo.prompts("test-heldout"))
    assert demo.PARTS[0].prompts == "test-heldout"
