"""PSO Fig. 4 and Table 4: what rows learn from, curves of updates, pictures beside the page, claims as printed."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from reproduce import pso_style, pso_table4, recipes
from reproduce.harness import curves
from reproduce.harness.command import at_scale
from reproduce.harness.rows import training_config
from tests.tiny_tables import make, on_tiny, prepare, small


def world(script, **changes):
    methods = {row.method for row in at_scale(script.TABLE, "pocket").rows.values() if row.method}
    return replace(small(None, {method: {"resize": True} for method in methods}), **changes)


def call(script, folder, out, **changes):
    table = on_tiny(script.TABLE, folder, seeds=(0,))
    _, work = prepare(table, world(script, **changes), out)
    return work, make(table, world(script, **changes), out)


@pytest.fixture(scope="module")
def style(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("style")
    return out, *call(pso_style, folder, out)


@pytest.fixture(scope="module")
def concept(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("concept")
    return out, *call(pso_table4, folder, out)


def test_a_curve_of_updates_begins_at_the_base_and_ends_with_the_training(style):
    _, _, result = style
    for run in result["runs"]:
        if run["training"] is None:
            continue
        assert [point["round"] for point in run["curve"]] == [0, 1, 2]
        assert [point["samples"] for point in run["curve"]] == [0, 4, 8], "two pictures a pair, two pairs an update"
        assert {"style-distance", "style-distance-rise"} <= run["cells"]["prompts-4"]["means"].keys()
    assert all(claim["status"] != "not run" for claim in result["claims"])


def test_the_halves_stay_in_the_result_over_all_of_training(style):
    _, _, result = style
    series = {run["row"]: run["training"]["series"] for run in result["runs"] if run["training"]}
    assert len(series["pso"]["gradient_target"]) == len(series["pso"]["gradient_reference"]) == 1
    assert len(series["pso"]["loss"]) == 2 and series["sft"]["gradient_target"] == []
    assert all(len(run["training"]["history"]) == 1 for run in result["runs"] if run["training"])


def test_the_pictures_stand_beside_the_page(style, concept):
    for (out, *_), script, rows in ((style, pso_style, 3), (concept, pso_table4, 6)):
        for name, drawing in script.TABLE.own.drawings.items():
            with Image.open(out / f"{script.TABLE.name}-{name}.png") as png:
                assert min(png.size) > 10 * rows
            page = (out / f"{script.TABLE.name}.md").read_text()
            assert f"![{drawing.caption}]({script.TABLE.name}-{name}.png)" in page
        assert "A smoke run" in page and "## Tuning" in page


def test_each_row_learns_from_what_it_should(concept):
    _, work, _ = concept
    configs = {row: training_config(work, row, 0) for row in pso_table4.TABLE.rows if row != "base"}
    assert {configs[row].pairs.name for row in ("teacher", "dreambooth")} == {"targets"}
    assert {configs[row].pairs.name for row in ("pso-eq6", "pso-prior", "pso")} == {"pairs"}
    assert [row for row, config in configs.items() if config.prior is None] == ["pso-eq6"]
    rows = [json.loads(line) for line in (work.folder / "pairs" / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and {row["prompt"] for row in rows} == {"a v bear"}
    assert [row["winner"] for row in rows] == ["target-0.png", "target-1.png"]
    prior = configs["pso"].prior
    texts = {json.loads(line)["text"] for line in (prior / "metadata.jsonl").read_text().splitlines()}
    assert texts == {"a bear"}
    assert "gradient_target" not in json.loads((work.folder / "teacher-0" / "result.json").read_text())["history"][0]


def test_a_finished_table_is_not_made_again_and_other_targets_are_refused(style, folder):
    out, work, _ = style
    files = {path: path.stat().st_mtime_ns for path in work.folder.glob("*.json")}
    call(pso_style, folder, out)
    assert {path: path.stat().st_mtime_ns for path in work.folder.glob("*.json")} == files
    settings = world(pso_style).settings | {"targets": {"count": 3}}
    with pytest.raises(ValueError, match="other settings or weights"):
        call(pso_style, folder, out, settings=settings)


def test_rows_of_a_table_train_on_as_many_pictures_with_settings_of_their_scale():
    for script in (pso_style, pso_table4):
        for scale in recipes.SCALES:
            sizes = set()
            for row in at_scale(script.TABLE, scale).rows.values():
                if row.method:
                    made = {name: value for name, (value, _) in recipes.recipe(row.method, scale).items()}
                    made |= recipes.values(row.settings)
                    sizes.add((made["updates"], made["batch"], made["lr"] if scale == "full" else None))
                    assert row.tuning, "what was tried stands in the result"
            assert len(sizes) == 1, (script.TABLE.name, scale, sizes)


def test_the_cost_of_updates_is_counted_without_reward_queries():
    training = {"config": {"updates": 4, "batch": 8, "pairs": "folder"}, "history": [{}] * 4, "wall_seconds": 36.0}
    training |= {"threads": 1, "device": "CPU (x)"}
    assert curves.cost(training, 2) == {"samples": 32, "queries": 0, "hours": pytest.approx(0.005)}
