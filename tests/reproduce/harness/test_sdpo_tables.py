"""SDPO's tables and figures: each script's whole way on a tiny model, numbers of curves, claims, pages, figures."""

import json
import os
import shutil
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from fsalign_lib.models import load as models
from fsalign_lib.rollout import rollout
from reproduce import (
    plan,
    sdpo_ablations,
    sdpo_curves,
    sdpo_instability,
    sdpo_lcm,
    sdpo_table1,
    sdpo_table3,
    train_online,
)
from reproduce.common.files import plain
from reproduce.common.provenance import Clock, core_seconds
from reproduce.evaluation.scores import picture_noise
from reproduce.harness import claims, curves, dry_run, planned, readmes, snapshots
from reproduce.harness import figures as curve_figures
from reproduce.harness import page as table_text
from reproduce.harness.command import RESULTS, at_scale, command
from reproduce.papers.claim import printed
from reproduce.papers.sdpo import REWARDS
from reproduce.recipes import make_config, values
from reproduce.train_online import OnlineConfig
from tests import tiny
from tests.tiny_tables import make, on_tiny, prepare, small

FIGURES = (sdpo_curves, sdpo_ablations, sdpo_instability, sdpo_lcm)
SCRIPTS = (sdpo_table1, sdpo_table3, *FIGURES)
ROWS, STEPS = ("base", "ddpo-hps", "sdpo-hps"), (1, 4)


@pytest.fixture(scope="module")
def a_part(folder):
    """Give a table on the tiny pipeline, with few of its rows and numbers of steps, one training seed, and no figures
    unless they are given, so that it is quick."""

    def make(script, names, steps=None, figures=lambda result: {}):
        rows = {name: script.TABLE.rows[name] for name in names}
        own = replace(script.TABLE.own, figures=figures)
        table = replace(script.TABLE, rows=rows, own=own, steps=steps or script.TABLE.steps)
        return on_tiny(table, folder, seeds=(0,))

    return make


@pytest.fixture(scope="module")
def world(prompts_file):
    """Give the smoke world with more settings for every method, in trajectories of four steps unless they are given."""

    def make(**settings):
        own = {"rank": 1, "steps": 4} | settings
        return small(prompts_file, dict.fromkeys(("d3po", "ddpo", "rebel", "sdpo"), own))

    return make


def make_table(table, world, out, **config):
    """Make a table, with claims about the rows and steps that are there."""
    read = claims.read_claims
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            claims,
            "read_claims",
            lambda name: [c for c in read(name) if {c.above, c.below} <= set(table.rows) and c.steps in table.steps],
        )
        return make(table, world, out, **config)


@pytest.fixture(scope="module")
def made(a_part, world, tmp_path_factory):
    """sdpo_table1 with the rows of one reward, then its curves, in one folder."""
    out = tmp_path_factory.mktemp("smoke")
    for script in (sdpo_table1, sdpo_curves):
        make_table(a_part(script, ROWS, STEPS), world(), out)
    return out


@pytest.fixture(scope="module")
def table1(made):
    return json.loads((made / "sdpo_table1.json").read_text())


@pytest.fixture(scope="module")
def curved(made):
    return json.loads((made / "sdpo_curves.json").read_text())


def test_a_finished_training_is_not_entered_again(made, a_part, world, tmp_path, monkeypatch):
    """Stopped between training and evaluation: the training's own account of itself stays."""
    runs = shutil.copytree(made / "runs" / "sdpo_table1", tmp_path / "runs" / "sdpo_table1")
    (runs / "sdpo-hps-0.json").unlink()
    training = (runs / "sdpo-hps-0" / "result.json").read_text()
    monkeypatch.setattr(train_online, "run", None)  # calling it fails
    again = make_table(a_part(sdpo_table1, ROWS, STEPS), world(), tmp_path)
    assert (runs / "sdpo-hps-0" / "result.json").read_text() == training
    before = json.loads((made / "sdpo_table1.json").read_text())
    assert [run["cells"] for run in again["runs"]] == [run["cells"] for run in before["runs"]]


def test_table_1_runs_at_one_budget_and_is_decided(table1):
    assert [run["row"] for run in table1["runs"]] == list(ROWS)
    assert {2 * run["training"]["config"]["pairs"] * 2 for run in table1["runs"][1:]} == {8}
    assert {run["training"]["queries"] for run in table1["runs"] if run["row"] == "sdpo-hps"} == {20}, "5 a pair"
    assert {run["training"]["queries"] for run in table1["runs"] if run["row"] == "ddpo-hps"} == {8}
    status = [c["status"] for c in table1["claims"]]
    assert status == ["one seed"] * 4, "two rows below SDPO at two numbers of steps, one training seed"
    assert [about["status"] for about in table1["primary"]] == ["one seed"] * 2


def test_curves_train_nothing_and_hold_all_that_is_watched(made, curved):
    assert [run["row"] for run in curved["runs"]] == list(ROWS)
    cells = [f"animals-{steps}" for steps in STEPS]
    for run in curved["runs"]:
        assert [point["round"] for point in run["curve"]] == ([0] if run["row"] == "base" else [0, 1, 2])
        for point in run["curve"]:
            assert list(point["means"]) == cells
            watched = {"imagereward", "aesthetic", "hps", "pickscore", "accuracy", "diversity"}
            assert all(set(means) == watched for means in point["means"].values())
    sdpo, base = curved["runs"][-1], curved["runs"][0]
    assert sdpo["curve"][0]["means"] == base["curve"][0]["means"], "all curves start at the model as it was"
    assert [point["samples"] for point in sdpo["curve"]] == [0, 4, 8]
    assert [point["queries"] for point in sdpo["curve"]] == [0, 10, 20]
    assert [point["kl"] > 0 for point in sdpo["curve"]] == [False, True, True] and sdpo["curve"][1]["kl_steps"] == 4
    took = [point["hours"] for point in sdpo["curve"]]
    trained = sdpo["training"]
    assert took == pytest.approx([share * curves.hours(trained) for share in (0, 0.5, 1)])
    assert set(sdpo["cells"]["animals-4"]["scores"]) >= {"hps", "hps-rise", "aesthetic"}
    assert len(curved["claims"]) == 2 and "not run" not in {c["status"] for c in curved["claims"]}


def test_a_point_is_its_snapshot(made, curved, folder):
    """Measured again by hand."""
    model = models.load(folder)
    model.load_adapter(made / "runs" / "sdpo_table1" / "sdpo-hps-0" / "snapshots" / "000001")
    prompts, kernel = curved["prompts"]["animals"], model.sampler(4, "ddim")
    noise = picture_noise(prompts, range(2), model.latent_shape, 5).flatten(0, 1)
    cond = model.encode_prompts(prompts).repeat_interleave(2, 0)
    found = tiny.brightness(model.decode(rollout(model, kernel, cond, noise).final), []).mean().item()
    (run,) = [run for run in curved["runs"] if run["row"] == "sdpo-hps"]
    assert run["curve"][1]["means"]["animals-4"]["hps"] == pytest.approx(found, abs=1e-5)


def test_kl_is_that_of_the_policy_s_own_steps(made, folder):
    model = models.load(folder)
    model.load_adapter(made / "runs" / "sdpo_table1" / "sdpo-hps-0" / "snapshots" / "000002")
    prompts, kernel = tiny.PROMPTS[:2], model.sampler(3, "ddim")
    noise, cond = picture_noise(prompts, range(1), model.latent_shape, 4)[:, 0], model.encode_prompts(prompts)
    path, expected = rollout(model, kernel, cond, noise), 0.0
    for n in range(3):
        with torch.no_grad(), model.reference():
            other = model.predict_x0(path.states[:, n], int(kernel.timesteps[n]), cond)
        apart = kernel.mean(path.states[:, n], path.x0_hat[:, n], n) - kernel.mean(path.states[:, n], other, n)
        expected = expected + apart.flatten(1).square().sum(1) / (2 * kernel.std(n) ** 2) / 3
    found = snapshots.policy_kl(model, kernel, prompts)
    assert found.shape == (2,) and (found > 0).all()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_finished_points_are_not_measured_again(made, a_part, world, monkeypatch, capsys):
    run_file = made / "runs" / "sdpo_curves" / "sdpo-hps-0.json"
    before = run_file.read_text()
    run_file.unlink()
    monkeypatch.setattr(snapshots, "policy_kl", lambda *_: pytest.fail("a point was measured again"))
    make_table(a_part(sdpo_curves, ROWS, STEPS), world(), made)
    assert json.loads(run_file.read_text())["curve"] == json.loads(before)["curve"]
    assert capsys.readouterr().out.count("is done") == len(ROWS) - 1


def test_the_start_is_the_model_as_it_was_whatever_was_evaluated_before(made, a_part, world):
    work = made / "runs" / "sdpo_curves"
    before = {name: json.loads((work / name).read_text())["cells"] for name in ("base.json", "sdpo-hps-0.json")}
    for name in before:
        (work / name).unlink()
    (work / "sdpo-hps-0" / "points" / "000002.json").unlink()
    make_table(a_part(sdpo_curves, ROWS, STEPS), world(), made, only=("sdpo-hps", "base"))
    for name, cells in before.items():
        assert json.loads((work / name).read_text())["cells"] == cells


def test_runs_that_are_missing_or_others_are_told(made, a_part, world, tmp_path, capsys):
    make(a_part(sdpo_curves, ROWS, STEPS), world(), tmp_path)
    told = capsys.readouterr().out
    assert "sdpo-hps-0 is not trained yet: python reproduce/sdpo_table1.py --only sdpo-hps --seeds 0" in told
    (made / "runs" / "sdpo_curves" / "sdpo-hps-0.json").rename(tmp_path / "kept.json")
    try:
        with pytest.raises(ValueError, match=r"sdpo_table1/sdpo-hps-0/settings.json has other settings or weights"):
            prepare(a_part(sdpo_curves, ("base", "sdpo-hps"), STEPS), world(lr=1e-5), made)
    finally:
        (tmp_path / "kept.json").rename(made / "runs" / "sdpo_curves" / "sdpo-hps-0.json")


def test_snapshots_must_end_with_the_training(a_part, world, tmp_path):
    with pytest.raises(ValueError, match="snapshot_every = 2 for 3 rounds: expected a divisor"):
        prepare(a_part(sdpo_curves, ("base", "sdpo-hps"), STEPS), world(rounds=3, snapshot_every=2), tmp_path)


def test_the_page_of_curves(made):
    page = (made / "sdpo_curves.md").read_text()
    assert "| metric | row | ours | above DDPO |" in page and "The paper draws this" in page
    assert "| SDPO, HPSv2 | 8 | 20 |" in page


def test_a_sheet_for_each_number_of_steps(curved, tmp_path):
    """A row for each reward: itself, three others, accuracy, diversity, KL."""
    for run in curved["runs"]:
        run["cells"] |= {f"animals-{steps}": run["cells"]["animals-4"] for steps in sdpo_curves.TABLE.steps}
        for point in run["curve"]:
            point["means"] |= {f"animals-{steps}": point["means"]["animals-4"] for steps in sdpo_curves.TABLE.steps}
    sheets = sdpo_curves.figures(curved)
    assert list(sheets) == ["1step", "2step", "4step", "8step", "16step", "50step"]
    for sheet in sheets.values():
        assert [row[0].y for row in sheet.panels] == [f"trained on {column.title}" for column in REWARDS.values()]
        assert all(len(row) == 7 and len({panel.title for panel in row}) == 7 for row in sheet.panels)
    (line,) = [line for line in sheets["50step"].panels[2][0].lines if line.label == "SDPO"]
    sdpo = curved["runs"][-1]
    assert line.x == [0, 4, 8] and line.values == [[p["means"]["animals-4"]["hps"] for p in sdpo["curve"]]]
    (line,) = [line for line in sheets["50step"].panels[2][-1].lines if line.label == "SDPO"]
    assert line.values == [[p["kl"] for p in sdpo["curve"]]]


def test_what_stands_beside_the_trained_reward_has_its_panels():
    """A row for each group, a panel for each held-out metric and the KL, the lines named once a row."""
    result = json.loads((RESULTS / "sdpo_instability.json").read_text())
    sheet = sdpo_instability.figures(result)["watched"]
    labels = ["ImageReward", "HPSv2", "PickScore", "animal accuracy", "diversity", "KL of a step, nats"]
    assert [[panel.y for panel in row] for row in sheet.panels] == [labels] * 6
    mixed = next(run["curve"] for run in result["runs"] if run["row"] == "ddpo-mixed")
    assert sheet.panels[2][1].lines[0].values == [[point["means"]["animals-16"]["hps"] for point in mixed]]
    axes = np.array(curve_figures.draw(sheet).axes).reshape(6, 6)
    named = [
        [ax.get_legend() and [text.get_text() for text in ax.get_legend().get_texts()] for ax in row] for row in axes
    ]
    assert named[0] == [None] * 5 + [["D3PO", "DDPO", "REBEL"]] and named[2] == [None] * 5 + [["DDPO"]]


CHOSEN = {
    sdpo_ablations: ("base", "random", "accumulated", "without-last", "sdpo"),
    sdpo_instability: ("base", "ddpo-long", "rebel-1", "ddpo-mixed"),
    sdpo_lcm: ("base", "ddpo", "rebel", "sdpo"),
}


def sheets(script, result):
    """One of the figures, of the steps that are there."""
    for run in result["runs"]:
        for point in run["curve"]:
            point["means"] |= {f"animals-{steps}": point["means"]["animals-1"] for steps in (2, 4)}
    return dict(list(script.figures(result).items())[:1])


@pytest.mark.slow
@pytest.mark.parametrize("script", CHOSEN, ids=lambda script: script.__name__)
def test_tables_of_curves_run_the_whole_way(script, a_part, prompts_file, tmp_path):
    names, steps = CHOSEN[script], script.TABLE.steps if script is sdpo_lcm else (1, 16)
    table = a_part(script, names, steps, figures=lambda result: sheets(script, result))
    settings = {method: {"rank": 1} for method in ("ddpo", "rebel", "sdpo")}
    found = make_table(table, small(prompts_file, settings), tmp_path)
    assert [run["row"] for run in found["runs"]] == list(names)
    for run in found["runs"][1:]:
        assert [point["round"] for point in run["curve"]] == [0, 1, 2]
        assert set(script.TABLE.metrics) <= set(run["cells"]["animals-1"]["means"])
    assert {c["status"] for c in found["claims"]} == {"one seed"} and all("low" in c for c in found["claims"])
    page = (tmp_path / f"{script.TABLE.name}.md").read_text()
    for name in sheets(script, found):
        picture = Image.open(tmp_path / f"{script.TABLE.name}-{name}.png")
        assert picture.width > 700 and np.asarray(picture.convert("L")).std() > 5 and f"-{name}.png)" in page


def test_table_3_smoke(folder, world, tmp_path):
    found = make_table(on_tiny(sdpo_table3.TABLE, folder), world(), tmp_path)
    assert len(found["runs"]) == 24 and len(found["claims"]) == 52
    assert "not run" not in {c["status"] for c in found["claims"]}
    cosine = {run["row"]: run["cells"]["animals-50"]["means"]["cosine"] for run in found["runs"]}
    assert cosine["copy-hps"] == 0 and all(-1 <= value <= 1 for value in cosine.values())
    for run in found["runs"]:  # L2 and cosine of standardised rewards are one number
        scores = {name: np.array(values) for name, values in run["cells"]["animals-50"]["scores"].items()}
        if not run["row"].startswith("copy"):
            expected = (2 * sdpo_table3.VALUES * (1 - scores["cosine"])) ** 0.5
            np.testing.assert_allclose(scores["l2"], expected, rtol=1e-2, atol=0.2)


def test_table_3_is_in_the_papers_units():
    """Its L2 and its cosine fit together at 12,800 values, and for no copy: there it is not that of zero either."""
    for (_, row, _), line in printed(sdpo_table3.TABLE.name).items():
        by_cosine = (2 * sdpo_table3.VALUES * (1 - float(line["cosine"]))) ** 0.5
        fits = abs(by_cosine - float(line["l2"])) <= 0.55
        assert fits != row.startswith("copy"), (row, by_cosine, line["l2"])
        assert not row.startswith("copy") or float(line["l2"]) > sdpo_table3.VALUES**0.5 + 10


@pytest.mark.slow
def test_full_scale_on_twins(tmp_path, monkeypatch, capsys):
    """The published formats, by the command line; the table waits for the other rows."""
    monkeypatch.setenv("FSALIGN_HUB", "")  # it is set by the run; so it is put back
    argv = ["--scale", "full", "--models", "tiny", "--out", str(tmp_path), "--seeds", "0", "--only"]
    command(sdpo_table1.TABLE, None, [*argv, "base", "sdpo-hps", "rebel-imagereward"])
    assert os.environ["FSALIGN_HUB"] == str(tmp_path / "runs" / "sdpo_table1-full" / "twins")
    assert "to do before there is a table: d3po-imagereward seed 0" in capsys.readouterr().out
    for row in ("base", "sdpo-hps-0", "rebel-imagereward-0"):
        cells = json.loads((tmp_path / "runs" / "sdpo_table1-full" / f"{row}.json").read_text())["cells"]
        assert list(cells) == [f"unseen-{steps}" for steps in (1, 4, 16, 50)]
    assert (tmp_path / "runs" / "sdpo_table1-full" / "sdpo-hps-0" / "snapshots" / "000001").is_dir()


def test_what_each_row_took_stands_beside_it():
    made = {"config": {"pairs": 16, "rounds": 32}, "queries": 2560.0, "device": "CPU (x86_64)", "threads": 1}
    made |= {"wall_seconds": 999.0}
    runs = [
        {"row": "sdpo-hps", "seed": seed, "training": made | {"cpu_seconds": s}} for seed, s in ((0, 360), (1, 720))
    ]
    told = table_text.costs(at_scale(sdpo_table1.TABLE, "pocket"), {"runs": runs})
    assert "| SDPO, HPSv2 | 1024 | 2560 | 0.150 |" in told
    older = {"row": "sdpo-hps", "seed": 2, "training": made}  # without CPU time: it says nothing of the others'
    assert table_text.costs(at_scale(sdpo_table1.TABLE, "pocket"), {"runs": [*runs, older]}) == told
    alone = table_text.costs(at_scale(sdpo_table1.TABLE, "pocket"), {"runs": [older]})
    assert "| SDPO, HPSv2 | 1024 | 2560 | 0.278 (wall) |" in alone
    assert "| DDPO, HPSv2 | not run | not run | not run |" in told and "KL" not in told


def curve(*means):
    """(K + 1, 2 prompts, 2 pictures) around the means."""
    return np.array(means)[:, None, None] + np.array([[0.1, -0.1], [0.2, -0.2]])


def test_numbers_of_a_curve():
    x = [0, 1, 3]
    up = curve(0.0, 1.0, 1.0)
    assert curves.gain(up, x).mean() == 1 and curves.rise(up, x).mean() == pytest.approx((0.5 * 1 + 1 * 2) / 3)
    assert curves.drop(up, x).mean() == 0
    late = curve(0.0, 0.0, 1.0)
    assert curves.rise(late, x).mean() < curves.rise(up, x).mean(), "one start and one end, the other less steep"
    fallen = curve(0.0, 2.0, 1.5, 0.5, 3.0, 2.8)
    assert curves.drop(fallen, range(6)).mean() == pytest.approx(1.5), "from the best so far to the worst after it"
    picture = fallen.copy()
    picture[3, 0, 0] -= 4
    found = curves.drop(picture, range(6))
    assert found[0, 0] == pytest.approx(5.5) and found[0, 1] == pytest.approx(1.5), "picture by picture, at one place"
    picture[5, 1] -= 9
    found = curves.drop(picture, range(6))
    assert found[1] == pytest.approx([1.5, 1.5]), "at the place of the other prompt's fall, not of its own"
    assert found[0] == pytest.approx([0.2, 0.2])
    noise = np.random.default_rng(0).normal(size=(200, 9, 20, 2))  # of models that stand still
    assert abs(np.mean([curves.drop(each, range(9)).mean() for each in noise])) < 0.03, "no drop by choosing it"
    for where, value in ((0.0, 0.0), (0.5, 0.5), (2.0, 1.0), (9.0, 1.0)):
        assert curves.at(up, x, where).mean() == pytest.approx(value)
    assert curves.at(curve(0.3), [0], 1.0).mean() == pytest.approx(0.3)
    alone = curve(0.3)
    assert all(kind(alone, [0]).mean() == 0 for kind in curves.OVER_ROUNDS.values())


def test_a_busy_machine_makes_no_run_longer():
    """Hours are CPU time on a CPU; a result of before there was any counts wall time by threads."""
    made = {"device": "CPU (x86_64)", "threads": 2, "wall_seconds": 7200.0, "cpu_seconds": 1800.0}
    assert core_seconds(made) == 1800 and curves.hours(made) == 0.5
    assert curves.hours(made | {"device": "NVIDIA H100"}) == 2
    old = {key: value for key, value in made.items() if key != "cpu_seconds"}
    assert curves.hours(old) == 4
    runs = [{"row": "base", "training": None, "evaluation": made}, {"row": "sdpo", "training": old, "evaluation": made}]
    result = {"runs": runs, "pairs": None}
    assert readmes.hours(sdpo_ablations.TABLE, result) == 0.5 + 4 + 0.5
    assert readmes.hours(sdpo_curves.TABLE, result) == 1, "trained, and counted, by the table that it reads"


def test_a_clock_counts_the_cpu_time_of_this_process_alone():
    clock = Clock()
    time.sleep(0.3)
    spent = clock.spent()
    assert spent["wall_seconds"] >= 0.3 > 0.2 > spent["cpu_seconds"]
    before = {"wall_seconds": 60.0, "cpu_seconds": 50.0}
    found = clock.after(before, before, {"wall_seconds": 9.0}).spent()
    assert 129 <= found["wall_seconds"] < 140 and 109 <= found["cpu_seconds"] < 120


def test_time_is_compared_at_the_end_of_the_quickest_run(a_part):
    """A row that takes twice as long is taken half way; the machine was busy meanwhile."""
    table = a_part(sdpo_ablations, ("base", "all", "sdpo"), (1,))

    def run(row, seconds, *values):
        points = [
            {
                "round": n,
                "kl": 0.1,
                "kl_steps": 4,
                "cells": {"animals-1": {"scores": {"aesthetic": [[v]]}, "means": {}}},
            }
            for n, v in enumerate(values, 1)
        ]
        training = {"threads": 1, "device": "CPU", "wall_seconds": 500.0 - seconds, "cpu_seconds": seconds}
        training["config"] = {"rounds": len(values), "pairs": 2}
        training["history"] = [{"queries": 4.0}] * len(values)
        return {"row": row, "seed": 0, "training": training, "cells": points[-1]["cells"], "curve": points}

    base = {
        "row": "base",
        "seed": None,
        "training": None,
        "cells": {"animals-1": {"scores": {"aesthetic": [[0.0]]}, "means": {}}},
    }
    runs = [base, run("all", 200, 1.0, 2.0, 3.0, 4.0), run("sdpo", 100, 1.0, 2.0, 3.0, 4.0)]
    curves.summarise(table, runs)
    timed = {r["row"]: r["cells"]["animals-1"]["means"]["aesthetic-timed"] for r in runs}
    assert timed == {"base": 0.0, "all": 2.0, "sdpo": 4.0}
    assert [point["queries"] for point in runs[1]["curve"]] == [0, 4, 8, 12, 16]
    nothing = [run("sdpo", 100, 1.0)]
    curves.summarise(table, nothing)
    assert nothing == [], "without a start there are no curves"


def test_the_consistency_model_is_trained_with_its_own_kernel_at_its_own_times():
    table = sdpo_lcm.TABLE
    model = models.load(table.models["pocket"])
    for name in sdpo_lcm.METHODS:
        make = partial(make_config, OnlineConfig, name)
        pocket, full = (
            make(scale, **values(at_scale(table, scale).rows[name].settings)) for scale in ("pocket", "full")
        )
        kernel = model.sampler(pocket.steps, pocket.kernel)
        assert type(kernel).__name__ == "Renoise" and kernel.timesteps.tolist()[:2] == [999, 879]
        assert pocket.trained_steps(kernel).tolist() == list(range(7)), "the last step has no density"
        assert (full.kernel, full.steps, full.shared_start) == (pocket.kernel, pocket.steps, pocket.shared_start)
        assert (full.lr, full.rank, full.reward) == (1e-4, 8, "aesthetic")


def test_a_row_differs_from_sdpo_in_one_thing():
    for name, (_, _, own) in sdpo_ablations.VARIANTS.items():
        rows = at_scale(sdpo_ablations.TABLE, "pocket").rows
        configs = [make_config(OnlineConfig, "sdpo", **values(rows[row].settings)) for row in (name, "sdpo")]
        other = {k for k, v in plain(configs[0]).items() if v != plain(configs[1])[k]}
        assert other == set(own) and len(own) == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_dry_run_tells_rows_and_claims(script, capsys):
    command(script.TABLE, None, ["--dry-run"])  # with what full scale takes: tests/reproduce/test_plan.py
    told = capsys.readouterr().out
    assert all(f"row {name}: " in told for name in script.TABLE.rows)
    assert all(c.id in told for c in claims.read_claims(script.TABLE.name))


def test_what_reads_another_table_takes_no_training():
    table = at_scale(sdpo_curves.TABLE, "full")
    assert "sdpo-animals for 45 animals" in dry_run.description(table, "full")
    rows = planned.planned(table, "full").values()
    assert all(row.training is None and row.pictures for row in rows), "it draws from what another trained"
    assert {"sdpo_ablations", "sdpo_instability"} < set(plan.TABLES)
