"""PSO Table 2: claims that agree with the printed numbers, runs that resume, pages made from the result alone."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from fsalign_lib.pocket.weights import WEIGHTS
from reproduce.common.files import write_json
from reproduce.evaluation.scores import evaluate
from reproduce.harness import claims
from reproduce.harness import rows as table_runs
from reproduce.harness.command import TableConfig, check, command, with_more_seeds
from reproduce.pso_table2 import TABLE
from tests.tiny_tables import make, on_tiny, prepare, small

METRICS = (*TABLE.metrics, *TABLE.beside)
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def world(prompts_file):
    return small(prompts_file)


@pytest.fixture(scope="module")
def table(folder):
    return on_tiny(TABLE, folder, seeds=SEEDS)


@pytest.fixture(scope="module")
def smoke(table, world, tmp_path_factory):
    """A whole smoke run, by two calls: first online alone, then the rest."""
    out = tmp_path_factory.mktemp("smoke")
    make(table, world, out, only=("online",), seeds=(1,))
    assert sorted(p.name for p in out.iterdir()) == ["runs"], "no table before all is done"
    make(table, world, out)
    return out


@pytest.fixture(scope="module")
def result(smoke):
    return json.loads((smoke / "pso_table2.json").read_text())


def test_a_smoke_run_leaves_the_files_of_a_full_one(smoke, result):
    assert {"pso_table2.json", "pso_table2.md"} < {p.name for p in smoke.iterdir()}
    assert [(run["row"], run["seed"]) for run in result["runs"]] == [
        ("base", None),
        *(("offline", seed) for seed in SEEDS),
        *(("online", seed) for seed in SEEDS),
    ]
    cells = {f"{prompts}-{steps}" for prompts in TABLE.prompts for steps in TABLE.steps}
    for run in result["runs"]:
        assert set(run["cells"]) == cells
        about = [run["evaluation"], *([run["training"]] if run["training"] else [])]
        for part in about:
            assert {"command", "commit", "versions", "device", "wall_seconds", "peak_memory_mb"} <= part.keys()
    assert np.array(result["runs"][0]["cells"]["parti-1"]["scores"]["pickscore"]).shape == (3, 2)
    assert result["smoke"] and result["pairs"]["pairs"] > 0
    page = (smoke / "pso_table2.md").read_text()
    assert "not run" not in page.split("## Runs")[0].split("how-a-claim-is-decided")[1] and "A smoke run" in page


def test_statuses_are_those_of_the_pictures_scores(result):
    """Decided again from the result file alone."""
    found = claims.decided(TABLE, result["runs"], result["prompts"])
    decided = found["claims"]
    assert decided == result["claims"] and len(decided) == 44 and found["primary"] == result["primary"]
    scores = {(run["row"], run["seed"]): run["cells"]["parti-4"]["scores"]["pickscore"] for run in result["runs"]}
    above = np.mean([np.mean(scores["online", seed]) - np.mean(scores["base", None]) for seed in SEEDS])
    (claim,) = [c for c in decided if c["id"] == "pso-table2-online-above-base-pickscore-4step-parti"]
    assert claim["estimate"] == pytest.approx(above, abs=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(
    not all((WEIGHTS / name).is_dir() for name in table_runs.NETWORKS), reason="the pocket world is not built"
)
def test_the_smoke_command_runs_on_the_shipped_weights(tmp_path, capsys):
    command(TABLE, None, ["--smoke", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "pso_table2.json").read_text())
    assert len(found["runs"]) == 13 and all(c["status"] != "not run" for c in found["claims"])
    assert set(found["runs"][0]["cells"]["parti-4"]["means"]) == set(METRICS)
    assert set(found["runs"][0]["settings"]["weights"]) == {"model", *table_runs.NETWORKS}
    assert "pso_table2.md: " in capsys.readouterr().out


def test_finished_runs_are_skipped_and_other_settings_refused(smoke, table, world, tmp_path, capsys):
    files = {path: path.stat().st_mtime_ns for path in (smoke / "runs" / "pso_table2").glob("*.json")}
    make(table, world, smoke)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert capsys.readouterr().out.count("is done") == 7
    with pytest.raises(
        ValueError, match=r"base.json has other settings or weights: remove .*pso_table2, or choose another"
    ):
        prepare(table, replace(world, pictures=3), smoke)
    shutil.copytree(smoke / "runs" / "pso_table2" / "online-1", tmp_path / "runs" / "pso_table2" / "online-1")
    with pytest.raises(ValueError, match=r"online-1/settings.json has other settings"):
        other = {**world.settings, "pso-online": {**world.settings["pso-online"], "lr": 1e-3}}
        prepare(table, replace(world, settings=other), tmp_path)


def test_pairs_that_the_command_built_are_taken_if_they_are_the_same(smoke, table, world, tmp_path):
    _, work = prepare(table, world, tmp_path)
    pairs = shutil.copytree(smoke / "runs" / "pairs", tmp_path / "runs" / "pairs")
    (pairs / "settings.json").unlink()  # which the table writes, and build_pairs.py does not
    table_runs.make_pairs(work)
    other = world.settings | {"pairs": world.settings["pairs"] | {"count": 8}}
    with pytest.raises(ValueError, match="pairs was built with other settings or weights: remove it"):
        table_runs.make_pairs(replace(work, world=replace(world, settings=other)))


def test_table_only_without_runs_says_not_run(tmp_path, capsys):
    command(TABLE, None, ["--table-only", "--work", str(tmp_path / "none"), "--out", str(tmp_path)])
    page = (tmp_path / "pso_table2.md").read_text()
    assert "| PickScore | base | 22.22 | not run |  |  |" in page and "**Claims: not run.**" in page
    assert not re.search(r"reproduced,|contradicted,|equivalent,|inconclusive,", page.split("**Claims")[1])


@pytest.mark.slow
def test_dry_run_tells_rows_sources_and_claims(capsys):
    for scale in ("pocket", "full"):
        command(TABLE, None, ["--dry-run", "--scale", scale])
        told = capsys.readouterr().out
        assert told.count("above") == 44 and "beta = 50.0  # PSO App. B.1" in told or scale == "pocket"
        assert "row online: online PSO (pso-online)" in told and "clamp = 0.1  # published PSO code" in told


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--models", "tiny"], "error: --models tiny stands in for the published weights: add --scale full"),
        (["--scale", "full", "--models", "tiny"], "error: --models tiny must not write over"),
        (["--only", "online", "best"], "error: unknown row 'best': choose from base, offline, online"),
        (["--smoke"], "error: --smoke must not write over"),
        (["--seeds", "10"], "error: seeds [10]: the table has the training seeds [0, 1, 2, 3, 4, 5], and more up to 9"),
        (["--threads", "0", "--table-only"], "error: threads = 0: expected more than 0"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(TABLE, None, arguments)
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and told.startswith(message) and told.count("\n") == 1


def test_seeds_that_are_added_belong_to_the_table_from_then_on(tmp_path):
    def seeds(*asked):
        config = TableConfig(smoke=True, out=tmp_path, seeds=asked)
        check(TABLE, config)
        return with_more_seeds(TABLE, config).seeds

    assert seeds() == (0, 1, 2, 3, 4, 5) and seeds(0, 7) == (0, 1, 2, 3, 4, 5, 7)
    (tmp_path / "runs" / "pso_table2").mkdir(parents=True)
    (tmp_path / "runs" / "pso_table2" / "online-6.json").write_text("{}")
    assert seeds() == (0, 1, 2, 3, 4, 5, 6), "begun for one row, due for all"


def test_the_margin_is_measured_apart_where_a_prompt_has_one_picture(table, world, tmp_path):
    """On several pictures of the untrained model, which are nobody's scores."""
    _, work = prepare(table, replace(world, pictures=1), tmp_path)
    table_runs.do_run(work, "base", None)
    cell = json.loads((work.folder / "base.json").read_text())["cells"]["parti-4"]
    assert np.array(cell["scores"]["pickscore"]).shape == (3, 1) and set(cell["margins"]) == set(cell["scores"])
    again = evaluate(work.model, None, 4, work.prompts["parti"], range(4), work.metrics)["scores"]["pickscore"]
    assert cell["margins"]["pickscore"] == pytest.approx(np.array(again).var(1, ddof=1).mean() ** 0.5 / 4)
    _, several = prepare(table, world, tmp_path / "several")
    table_runs.do_run(several, "base", None)
    cells = json.loads((several.folder / "base.json").read_text())["cells"]
    assert not any("margins" in cell for cell in cells.values()), "where it follows from the scores"


def test_json_keeps_lists_of_numbers_on_a_line(tmp_path):
    content = {"a": [1, 2.5, None], "b": [[1, 2], [3]], "text": "[1,  2]", "names": ["x", "y"], "none": []}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == content and "[ 1, 2.5, null ]" in text


def test_threads_are_taken(table, world, tmp_path):
    before = torch.get_num_threads()
    try:
        prepare(table, world, tmp_path, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
