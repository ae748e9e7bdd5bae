"""PSO Tables 1 and 3 and the ablations: claims as printed, teachers trained and composed once, differences, tuning."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from fsalign_lib.models.load import load
from reproduce import pso_ablations, pso_table1, pso_table3, recipes, train_offline
from reproduce.common.files import last_checkpoint
from reproduce.harness import claims, rows
from reproduce.harness import page as table_text
from reproduce.harness.command import at_scale
from reproduce.papers import pso
from reproduce.recipes import make_config, values
from tests.tiny_tables import make, on_tiny, prepare, small


@pytest.fixture(scope="module")
def world(prompts_file):
    return small(prompts_file, {"diffusion-dpo": {"lr": 1e-2}})


@pytest.fixture(scope="module")
def tables(folder):
    return {1: on_tiny(pso_table1.TABLE, folder, seeds=(0,)), 3: on_tiny(pso_table3.TABLE, folder, seeds=(0,))}


@pytest.fixture(scope="module")
def results(tables, world, tmp_path_factory):
    """Table 3 first, which trains the DPO'd teacher in Table 1's folder; then Table 1, which takes it from there."""
    folder = tmp_path_factory.mktemp("smoke")
    third = make(tables[3], world, folder)
    weights = folder / "runs" / "pso_table1" / "dpo-0" / "result.json"
    before = weights.read_text()
    first = make(tables[1], world, folder)
    assert weights.read_text() == before, "it was not trained again"
    return folder, first, third


def test_a_teacher_is_trained_once_for_both_tables(results):
    folder, first, third = results
    assert {path.name for path in (folder / "runs").iterdir()} == {"pso_table1", "pso_table3", "pairs"}
    assert sorted(path.name for path in (folder / "runs" / "pso_table3").iterdir() if path.is_dir()) == [
        "offline-0",
        "online-0",
    ], "neither pairs nor the DPO'd teacher are made again"
    assert first["pairs"] == third["pairs"] and first["pairs"]["pairs"] > 0
    starts = [run["settings"]["start"] for table in (first, third) for run in table["runs"] if run["row"] == "dpo-lora"]
    trained = next(run for run in first["runs"] if run["row"] == "dpo")["settings"]["training"]
    assert starts == [trained, trained]


def test_a_composed_row_has_the_trained_weights_and_a_trained_teacher_its_own_sampler(results, tables, world):
    folder, first, _ = results
    _, work = prepare(tables[1], world, folder)
    composed = rows.composed_model(work, "dpo-lora", 0)
    trained, start = (load(tables[1].teachers["pocket"]) for _ in range(2))
    trained.load_adapter(last_checkpoint(folder / "runs" / "pso_table1" / "dpo-0"))
    same = [torch.equal(a, b) for a, b in zip(composed.unet.parameters(), trained.unet.parameters(), strict=True)]
    moved = [not torch.equal(a, b) for a, b in zip(composed.unet.parameters(), start.unet.parameters(), strict=True)]
    assert all(same) and any(moved) and composed.training is None
    cells = {run["row"]: run["cells"] for run in first["runs"]}
    for row in ("teacher", "dpo", "sft"):
        assert set(cells[row]) == {"pickapic-10", "parti-10"} and cells[row]["parti-10"]["kernel"] == "ddim"
    assert set(cells["dpo-lora"]) == set(cells["online"]) == {"pickapic-4", "parti-4"}


def test_other_settings_of_the_shared_run_are_refused(results, tables, prompts_file, tmp_path):
    folder, _, _ = results
    shutil.copytree(folder / "runs" / "pso_table1" / "dpo-0", tmp_path / "runs" / "pso_table1" / "dpo-0")
    with pytest.raises(ValueError, match=r"pso_table1/dpo-0/settings.json has other settings or weights"):
        prepare(tables[3], small(prompts_file, {"diffusion-dpo": {"lr": 3e-2}}), tmp_path)


def test_preference_losses_train_a_teacher_without_guidance(results, tables, tmp_path, world):
    """What is evaluated with guidance is trained without: the loss is of the network, not of the guided sampler."""
    folder, _, _ = results
    teacher = tables[1].teachers["pocket"]
    model = load(teacher)
    model.guidance_scale = 4.0
    config = make_config(
        train_offline.OfflineConfig,
        "diffusion-dpo",
        model=teacher,
        pairs=folder / "runs" / "pairs",
        out=tmp_path / "run",
        updates=1,
        batch=2,
    )
    assert train_offline.prepare(config, model).model.guidance_scale == 1.0
    _, work = prepare(tables[1], world, folder)
    assert rows.untrained_model(work, "teacher").guidance_scale == pytest.approx(2.5)
    assert rows.trained_model(work, "dpo", 0).guidance_scale == pytest.approx(2.5)


def test_rows_that_the_paper_cites_keep_its_numbers_and_are_not_run(results, tables):
    _, first, _ = results
    assert not {"rpo", "spo", "mapo"} & {run["row"] for run in first["runs"]}
    page = table_text.page(tables[1], claims.correct(first, []))
    assert "| PickScore | teacher, RPO | 22.65 | not part of this project |" in page
    assert "| PickScore | teacher | 22.30 | " in page and "| PickScore | teacher | 22.30 | not run" not in page
    assert "not run" not in page.split("how-a-claim-is-decided")[1]


def test_tuning_stands_in_the_result_and_on_the_page(results, tables):
    _, first, third = results
    assert set(first["tuning"]) == {"dpo", "sft", "offline", "online"} and set(third["tuning"]) == {"offline", "online"}
    assert first["tuning"]["dpo"] == pso.TUNING and pso.TUNING in table_text.page(tables[1], claims.correct(first, []))


def test_full_scale_has_the_papers_settings():
    full = at_scale(pso_table3.TABLE, "full").rows
    assert full["offline"].settings["rank"][0] == full["online"].settings["rank"][0] == 32
    teacher = at_scale(pso_table1.TABLE, "full").rows["dpo"]
    assert (teacher.sampled.steps, teacher.sampled.models["full"], teacher.method) == (50, "sdxl", "diffusion-dpo")
    assert at_scale(pso_table1.TABLE, "pocket").rows["dpo"].sampled.steps == 10


def test_each_row_of_the_ablations_changes_what_it_says():
    table = at_scale(pso_ablations.TABLE, "pocket")
    rows = {name: values(row.settings) for name, row in table.rows.items() if row.method}
    changed = {
        name: {key for key in own if own[key] != rows["code"][key]} for name, own in rows.items() if name != "code"
    }
    assert changed == {
        "paper": {"reduction", "sum_steps", "beta", "clamp"},
        "inside": {"sum_steps"},
        "summed": {"reduction"},
        "beta-5": {"beta"},
        "beta-500": {"beta"},
        "shared": {"shared_start"},
        "steps-8": {"steps"},
        "no-clamp": {"clamp"},
        "fast": {"lr"},
        "fast-no-clamp": {"lr", "clamp"},
    }
    code = {key: rows["code"][key] for key in ("reduction", "sum_steps", "clamp")}
    assert code == {key: recipes.recipe("pso-online", "full")[key][0] for key in code}


def test_differences_are_those_of_the_pictures_scores(folder, prompts_file, tmp_path, monkeypatch):
    few = {name: pso_ablations.TABLE.rows[name] for name in ("base", "code", "beta-5")}
    table = on_tiny(replace(pso_ablations.TABLE, rows=few), folder, seeds=(0, 1), name="pso_some")
    monkeypatch.setitem(claims.PAPERS, "pso_some", claims.TableClaims("", "", ()))
    result = make(table, small(prompts_file), tmp_path)
    page = (tmp_path / "pso_some.md").read_text()
    assert {(d["row"], d["metric"]) for d in result["differences"]} == {
        (row, metric) for row in ("base", "beta-5") for metric in table.metrics
    }
    scores = {
        (run["row"], run["seed"]): np.array(run["cells"]["parti-4"]["scores"]["pickscore"]) for run in result["runs"]
    }
    found = next(d for d in result["differences"] if (d["row"], d["metric"]) == ("beta-5", "pickscore"))
    expected = np.mean([scores["beta-5", seed] - scores["code", seed] for seed in (0, 1)])
    assert found["estimate"] == pytest.approx(expected, abs=1e-9) and found["low"] <= found["estimate"] <= found["high"]
    ends = [run["training"]["end"] for run in result["runs"] if run["training"]]
    assert all(set(end) == set(pso_ablations.WATCHED) for end in ends)
    assert "## Difference from published code" in page and "| beta 5 |" in page.split("## Difference")[1]
