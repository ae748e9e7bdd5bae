"""DI*'s tables: runs shared between them, costs of sampling, categories, diversity at equal reward, claims, pages."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fsalign_lib.models import load as models
from fsalign_lib.pocket.captions import parse
from reproduce import distar_pareto, distar_table1, distar_table2, distar_table3
from reproduce.common.files import plain
from reproduce.evaluation import cost as memory
from reproduce.evaluation import scores as measure
from reproduce.evaluation.cost import PICTURES_TIMED, sampling_cost
from reproduce.harness import claims, rows
from reproduce.harness.command import at_scale, command
from reproduce.harness.declare import World
from reproduce.harness.figures import draw
from reproduce.papers import distar
from reproduce.recipes import make_config, values
from reproduce.train_distill import DistillConfig
from tests import tiny
from tests.tiny_tables import make as make_table
from tests.tiny_tables import on_tiny, small

SCRIPTS = (distar_table1, distar_table2, distar_table3, distar_pareto)
ROWS = ("base", "diff-instruct", "sim", "dipp", "distar")


@pytest.fixture
def make(folder, prompts_file, monkeypatch):
    """Make a table with few of its rows and one training seed, and the claims about them."""
    read = claims.read_claims

    def make(script, out, names=ROWS, **settings):
        rows_ = {name: script.TABLE.rows[name] for name in names if name in script.TABLE.rows}
        own = replace(script.TABLE.own, figures=None)
        table = on_tiny(replace(script.TABLE, rows=rows_, own=own), folder, seeds=(0,))
        table = replace(table, beside={name: column for name, column in table.beside.items() if name != "fid"})
        table = replace(table, metrics={name: column for name, column in table.metrics.items() if name != "fid"})
        about = [c for c in read(table.name) if {c.above, c.below} <= set(table.rows)]
        monkeypatch.setattr(claims, "read_claims", lambda name: about)
        distill = {method: {"time": 399, "rank": 1, "micro_batch": None} for method in ("dipp", "sim", "distar")}
        distill = {method: own | settings.get(method, {}) for method, own in distill.items()}
        return make_table(table, small(prompts_file, distill, prompts=6), out)

    return make


@pytest.mark.slow
def test_tables_share_runs_and_tell_what_sampling_costs(make, tmp_path, monkeypatch):
    first = make(distar_table2, tmp_path)
    assert [run["row"] for run in first["runs"]] == list(ROWS)
    assert "not run" not in {c["status"] for c in first["claims"]}
    assert (tmp_path / "runs" / "distar" / "distar-0" / "result.json").exists()
    training = (tmp_path / "runs" / "distar" / "distar-0" / "result.json").read_text()
    monkeypatch.setattr(rows, "train", lambda *_: pytest.fail("a run was trained again"))
    second = make(distar_table1, tmp_path)
    by_row = [{run["row"]: run["cells"]["parti-1"]["scores"] for run in found["runs"]} for found in (first, second)]
    for row in ROWS:
        for metric in distar.METRICS:
            assert by_row[0][row][metric] == by_row[1][row][metric], "the same weights, the same noise"
    assert by_row[0]["distar"] != by_row[0]["base"]
    for run in second["runs"]:
        for cell in run["cells"].values():
            assert cell["means"]["seconds"] > 0 and cell["means"]["memory"] > 0
            assert not {"seconds", "memory"} & set(cell["scores"])
    page = (tmp_path / "distar_table1.md").read_text()
    assert "| s per 10 pictures | DMD2 (initial model) | 2.22 |" in page
    third = make(distar_table3, tmp_path)
    assert {run["row"] for run in third["runs"]} == set(ROWS)
    pareto = make(distar_pareto, tmp_path)
    assert {run["row"] for run in pareto["runs"]} == set(ROWS)
    assert (tmp_path / "runs" / "distar" / "distar-0" / "result.json").read_text() == training


def test_a_shared_run_with_other_settings_is_told(make, tmp_path):
    make(distar_table2, tmp_path, ("base", "sim"))
    with pytest.raises(ValueError, match="sim-0/settings.json has other settings or weights"):
        make(distar_table1, tmp_path, ("base", "sim"), sim={"lr": 1e-3})


def test_categories_are_the_prompts_own(make, tmp_path):
    found = make(distar_table3, tmp_path, ("base", "sim"))
    prompts = found["prompts"]["benchmark"]
    kinds = [parse(prompt).kind.removesuffix("+place") for prompt in prompts]
    assert set(kinds) <= set(distar_table3.POCKET) and len(set(kinds)) > 1
    for run in found["runs"]:
        cell = run["cells"]["benchmark-1"]
        hps = np.array(cell["scores"]["hps"])
        assert cell["means"]["average"] == pytest.approx(hps.mean())
        for kind in set(kinds):
            own = hps[[k == kind for k in kinds]]
            assert cell["means"][kind] == pytest.approx(own.mean())
        weights = sum(cell["means"][kind] * kinds.count(kind) for kind in set(kinds)) / len(kinds)
        assert weights == pytest.approx(cell["means"]["average"])
    known = {"a photo of a cat": "photo"}
    assert distar_table3.category("a photo of a cat", known) == "photo"
    assert distar_table3.category("four wolves in the park", known) == "count"


def cell(reward, **scores):
    """Scores (P, E) around means, 4 prompts of 2 pictures."""
    spread = np.arange(8).reshape(4, 2) / 100 - 0.035
    tables = {name: value + spread for name, value in scores.items()}
    return {"scores": {k: v.tolist() for k, v in tables.items()}, "means": {"pickscore": reward} | scores}


def a_result():
    """KL loses 1 of diversity for each point of reward; the score rows lose half of that."""
    kl = {
        name: cell(at, vendi=5 - at, recall=0.9 - at / 10) for name, at in zip(distar_pareto.KL, range(4), strict=True)
    }
    score = {
        name: cell(at, vendi=5 - at / 2, recall=0.9 - at / 10)
        for name, at in zip(distar_pareto.SCORE, (0.5, 1.25, 2.0, 3.5), strict=True)
    }
    runs = [{"row": "base", "seed": None, "cells": {"plain-1": cell(0, vendi=5.0, recall=0.9)}}]
    runs += [{"row": row, "seed": 0, "cells": {"plain-1": found}} for row, found in (kl | score).items()]
    return {"runs": runs, "scale": "pocket"}


def test_diversity_is_compared_at_equal_reward():
    result = a_result()
    distar_pareto.ahead(distar_pareto.TABLE, result["runs"], {})
    found = {run["row"]: run["cells"]["plain-1"] for run in result["runs"]}
    for row, at in zip(distar_pareto.SCORE[:3], (0.5, 1.25, 2.0), strict=True):
        assert found[row]["means"]["vendi-ahead"] == pytest.approx(at / 2), "the KL has 5 - at there, this one 5 - at/2"
        assert found[row]["means"]["recall-ahead"] == pytest.approx(0, abs=1e-4)
        assert np.ptp(found[row]["scores"]["vendi-ahead"]) < 1e-4, "picture by picture: the spread is shared"
    assert found["distar"]["means"]["vendi-ahead"] == pytest.approx((5 - 3.5 / 2) - 2), "the curve ends at 3"
    assert found["base"]["means"]["vendi-ahead"] == 0 and "vendi-ahead" not in found["dipp"]["means"]
    assert "modes-ahead" not in found["sim"]["scores"], "a metric that this scale does not have"
    at_equal_scale = found["distar-10"]["means"]["vendi"] - found["dipp-10"]["means"]["vendi"]
    assert at_equal_scale != pytest.approx(found["distar-10"]["means"]["vendi-ahead"], abs=0.1), "rewards count"


def test_prompts_of_which_a_metric_says_nothing_are_left_out_of_the_comparison():
    result = a_result()
    for run in result["runs"]:
        run["cells"]["plain-1"]["scores"]["vendi"][1] = [None, None]
    distar_pareto.ahead(distar_pareto.TABLE, result["runs"], {})
    found = {run["row"]: run["cells"]["plain-1"] for run in result["runs"]}
    about = dict.fromkeys(("prompts", "seeds", "steps"), ())
    against = measure.compare(found["distar-10"] | about, found["base"] | about, "vendi-ahead")
    assert against.estimate == pytest.approx(1.25 / 2)
    assert found["base"]["scores"]["vendi-ahead"] == [[0, 0], [None, None], [0, 0], [0, 0]]


def test_a_curve_is_followed_in_the_order_of_its_rewards():
    points = [(2.0, np.full((1, 1), 20.0)), (0.0, np.full((1, 1), 0.0)), (1.0, np.full((1, 1), 5.0))]
    for at, value in ((-1, 0), (0, 0), (0.5, 2.5), (1, 5), (1.5, 12.5), (2, 20), (9, 20)):
        assert distar_pareto.along(points, at).item() == pytest.approx(value)
    nothing = np.array([[np.nan], [1.0]])
    assert np.isnan(distar_pareto.along([(0.0, nothing), (1.0, nothing)], 0.5)[0, 0])


def test_the_figure_shows_means_and_intervals():
    result = a_result()
    sheet = distar_pareto.figures(result)["pareto"]
    vendi, recall, modes = sheet.panels[0]
    assert [line.label for line in vendi.lines] == ["KL (DI++)", "score (DI*)"] and not modes.lines
    kl = vendi.lines[0]
    assert kl.x == pytest.approx([0, 1, 2, 3]) and kl.values[0] == pytest.approx([5, 4, 3, 2])
    assert all(low < mean < high for (low, high), mean in zip(kl.bars, kl.values[0], strict=True))
    figure = draw(sheet)
    assert len(figure.axes[0].containers) == 2, "error bars of both lines"


def test_rows_of_kl_and_score_differ_in_the_divergence_alone():
    own = {"method", "out", "weighting", "distance", "c"}
    for kl, score in zip(distar_pareto.KL, distar_pareto.SCORE, strict=True):
        for scale in ("pocket", "full"):
            sides = [at_scale(distar_pareto.TABLE, scale).rows[name] for name in (kl, score)]
            configs = [
                plain(make_config(DistillConfig, row.method, scale, model="m", teacher="t", **values(row.settings)))
                for row in sides
            ]
            assert {k for k in configs[0] if configs[0][k] != configs[1][k]} - {"start"} <= own, (kl, score, scale)


def test_reward_scales_are_the_papers_at_full_scale():
    full, pocket = (at_scale(distar_table2.TABLE, scale).rows for scale in ("full", "pocket"))
    for name, alpha in (("sim", 0), ("distar-1", 1), ("distar-10", 10), ("distar", 100), ("distar-long", 100)):
        assert full[name].settings["reward_scale"][0] == alpha
        assert pocket[name].settings["reward_scale"][0] == pytest.approx(distar.SCALES.get(alpha, 0))
    for there in (full, pocket):
        longer, short = (there[name].settings["updates"][0] for name in ("distar-long", "distar"))
        assert longer == distar.LONGER * short


def test_sampling_costs_are_of_one_picture_at_a_time(folder, monkeypatch):
    model = models.load(folder)
    asked = []
    monkeypatch.setattr(memory, "sample", lambda m, k, s, prompts, seeds, eta: asked.append((s, prompts, list(seeds))))
    monkeypatch.setattr(memory, "peak_over", lambda call, device: call() or 3 * 2**20)
    found = sampling_cost(model, None, 4, tiny.PROMPTS[:2])
    assert len(asked) == 1 + PICTURES_TIMED
    assert all(steps == 4 and len(prompts) == 1 and seeds == [0] for steps, prompts, seeds in asked)
    parts = (model.unet, model.vae, *model.text.modules)
    weights = sum(t.numel() * t.element_size() for part in parts for t in (*part.parameters(), *part.buffers()))
    assert found["memory"] == pytest.approx(weights / 2**20 + 3) and found["seconds"] >= 0


def test_the_peak_over_what_was_there():
    there = torch.zeros(1000)
    assert memory.peak_over(lambda: there + torch.ones(1000), torch.device("cpu")) == pytest.approx(8000, abs=256)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_dry_run_tells_rows_and_claims(script, capsys):
    command(script.TABLE, None, ["--dry-run"])
    told = capsys.readouterr().out
    assert all(f"row {name}: " in told for name in script.TABLE.rows)
    assert all(c.id in told for c in claims.read_claims(script.TABLE.name))


def test_fid_at_full_scale_needs_the_statistics_of_the_captions(monkeypatch, tmp_path):
    """Before any compute; and a set without them has no fid."""
    fid = measure.Frechet("network", None, 2, 8, None)
    monkeypatch.setattr(rows, "load_metrics", lambda *_, **__: {"fid": fid, "aesthetic": None})
    monkeypatch.delenv("FSALIGN_DATA", raising=False)
    how = distar_table1.TABLE, World(scale="full"), tmp_path
    with pytest.raises(
        ValueError, match="fid needs coco-2014-30k.safetensors: make it with reproduce/fid_reference.py"
    ):
        rows.load_table_metrics(*how, ("fid",), None)
    monkeypatch.setenv("FSALIGN_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="coco-2014-30k.safetensors"):
        rows.load_table_metrics(*how, ("fid",), None)
    there = object()
    monkeypatch.setattr(rows, "read_statistics", lambda path, *_: there)
    metrics = rows.load_table_metrics(*how, ("fid", "aesthetic"), None)
    work = rows.Work(*how, None, None, metrics, {}, {})
    assert set(rows.metrics_of(work, "parti")) == {"aesthetic"}
    assert rows.metrics_of(work, "coco")["fid"].reference(("a cat",)) is there


@pytest.mark.slow
def test_full_scale_on_twins(tmp_path, monkeypatch):
    """The published formats, by the command line: DMD2's student, SDXL its teacher, FID left out."""
    monkeypatch.setenv("FSALIGN_HUB", str(tmp_path))  # which the script sets: so that it is undone
    argv = ["--scale", "full", "--models", "tiny", "--out", str(tmp_path), "--seeds", "0", "--only"]
    command(distar_table1.TABLE, None, [*argv, "teacher", "base", "dipp", "distar"])
    for row, steps in (("teacher", 50), ("base", 1), ("dipp-0", 1), ("distar-0", 1)):
        found = json.loads((tmp_path / "runs" / "distar_table1-full" / f"{row}.json").read_text())
        assert list(found["cells"]) == [f"parti-{steps}", f"coco-{steps}"]
        means = found["cells"][f"coco-{steps}"]["means"]
        assert {"seconds", "memory", "vendi", *distar.METRICS} <= set(means) and "fid" not in means
        if found["training"]:
            config = found["training"]["config"]
            assert (config["model"], config["teacher"]) == ("sdxl-dmd2-1step", "sdxl")
            assert (config["guidance"], config["reward"], config["reward_scale"]) == (7.5, "pickscore", 100.0)
