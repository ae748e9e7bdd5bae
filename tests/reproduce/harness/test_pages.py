"""Pages: the committed ones are those that the committed results give, and say what their numbers are."""

import importlib
import json
from dataclasses import replace

import pytest

from reproduce import pso_table2, sdpo_ablations, sdpo_instability, sdpo_table1, sdpo_table3
from reproduce.common.provenance import ROOT
from reproduce.harness.claims import PAPERS, decide
from reproduce.harness.page import page, readme_row, replace_block, tally
from reproduce.harness.settings import row_seeds

RESULTS = ROOT / "reproduce" / "results"
NAMES = [table_id.replace("-", "_") for table_id in PAPERS]


def table_of(name):
    return importlib.import_module(f"reproduce.{name}").TABLE.at("pocket")


def result_of(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_page_is_the_generated_one(name):
    assert (RESULTS / f"{name}.md").read_text() == page(table_of(name), result_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_result_is_a_full_run_and_its_claims_are_decided_by_its_scores(name):
    table, result = table_of(name), result_of(name)
    assert not result["smoke"] and result["scale"] == "pocket"
    assert {(run["row"], run["seed"]) for run in result["runs"]} == {
        (name, seed) for name, row in table.rows.items() if not row.elsewhere for seed in row_seeds(table, name)
    }
    assert decide(table, result["runs"], result["prompts"]) == result["claims"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path,text", [("reproduce/README.md", readme_row), ("README.md", tally)])
def test_blocks_of_the_readmes_are_the_generated_ones(name, path, text):
    content = (ROOT / path).read_text(encoding="utf-8")
    made = replace_block(content, name, text(table_of(name), result_of(name)))
    assert made == content or (made is None and path == "README.md")


def test_a_page_says_what_its_intervals_are_over():
    pages = {seeds: page(replace(sdpo_instability.TABLE, seeds=tuple(range(seeds))), None) for seeds in (1, 3)}
    for seeds, text in pages.items():
        assert (
            ("over prompts and pictures, lies above 0" in text) == ("One training seed a row" in text) == (seeds == 1)
        )
        assert ("over training seeds, prompts and pictures" in text) == ("± standard deviation" in text) == (seeds > 1)
    assert sdpo_ablations.TABLE.seeds == sdpo_instability.TABLE.seeds == (0,) and sdpo_table1.TABLE.seeds == (0, 1, 2)
    untrained = page(sdpo_table3.TABLE, None)
    assert "over prompts and pictures, lies above 0" in untrained and "training seed" not in untrained


def test_a_row_that_lacks_a_seed_is_not_run():
    table, result = pso_table2.TABLE, result_of("pso_table2")
    runs = [run for run in result["runs"] if (run["row"], run["seed"]) != ("online", 2)]
    decided = decide(table, runs, result["prompts"])
    assert all((c["status"] == "not run") == ("online" in c["id"]) for c in decided)
    text = page(table, {**result, "runs": runs, "claims": decided})
    assert "| PickScore | online PSO | 22.71 | not run | not run | not run |" in text
