"""Pages: the committed ones are those that the committed results give, and say what their numbers are."""

import importlib
import json
from dataclasses import replace

import pytest

from reproduce import pso_table2, sdpo_ablations, sdpo_instability, sdpo_table1, sdpo_table3
from reproduce.common.provenance import ROOT
from reproduce.harness import readmes
from reproduce.harness.claims import PAPERS, decide
from reproduce.harness.command import at_scale
from reproduce.harness.page import page, ranking
from reproduce.harness.rows import row_seeds

RESULTS = ROOT / "reproduce" / "results"
NAMES = list(PAPERS)


def table_of(name):
    return at_scale(importlib.import_module(f"reproduce.{name}").TABLE, "pocket")


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
@pytest.mark.parametrize("path,line", [("README.md", readmes.counts), ("reproduce/README.md", readmes.command)])
def test_lines_of_the_readmes_are_the_generated_ones(name, path, line):
    content = (ROOT / path).read_text(encoding="utf-8")
    assert line(table_of(name), result_of(name)) in content.splitlines()
    assert readmes.with_line(content, line(table_of(name), result_of(name))) == content


def test_readme_says_how_many_training_seeds_the_tables_have():
    seeds = {name: len(table_of(name).seeds) for name in NAMES if any(r.method for r in table_of(name).rows.values())}
    assert {name for name in NAMES if name not in seeds} == {"sdpo_table3"}
    assert {name for name, count in seeds.items() if count == 1} == {"sdpo_ablations", "sdpo_instability"}
    assert set(seeds.values()) == {1, 3}
    assert (
        "SDPO Figs. 5-7 have one training seed a row, SDPO Table 3 trains nothing" in (ROOT / "README.md").read_text()
    )


def test_a_line_takes_the_place_of_the_one_that_begins_alike():
    text = "x\n<!-- tables:begin -->\n| table | a | b | h |\n| - | - | - | - |\n| [t](t.md) | 1 | 2 | 0.5 |\n"
    text += "| **all** | **1** | **2** |  |\n<!-- tables:end -->\ny"
    changed = readmes.with_line(text, "| [t](t.md) | 3 | 0 | 1 |")
    assert changed == text.replace("| 1 | 2 | 0.5 |", "| 3 | 0 | 1 |").replace("**1** | **2**", "**3** | **0**")
    both = readmes.with_line(changed, "| [u](u.md) | 4 | 5 | not run |")
    assert both.endswith("| [u](u.md) | 4 | 5 | not run |\n| **all** | **7** | **5** |  |\n<!-- tables:end -->\ny")
    with pytest.raises(ValueError, match="README without <!-- tables:begin -->"):
        readmes.with_line("no markers", "| [t](t.md) | 3 |")


def test_a_table_without_a_result_has_all_its_claims_not_run():
    table = pso_table2.TABLE
    assert readmes.counts(table, None).endswith("(reproduce/results/pso_table2.md) | 0 | 0 | 0 | 44 | not run |")
    assert readmes.command(table, None).endswith("`python reproduce/pso_table2.py` | 3 | not run | not run | not run |")
    assert "**Claims: not run.**" in page(table, None) and " reproduced, " not in page(table, None)


def test_a_page_has_the_papers_words():
    for name in NAMES:
        text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
        claims = PAPERS[name]
        assert claims.source and f"**The paper's words** ({claims.source}). {claims.words}" in text


def test_a_page_says_who_ranked_the_pairs():
    result = result_of("pso_table2")
    assert "are ranked by the simulated judge" in page(table_of("pso_table2"), result)
    assert "sees each of 542 pairs 3.5 times." in page(table_of("pso_table2"), result)
    assert "**Pairs.**" not in page(table_of("sdpo_table1"), result_of("sdpo_table1"))
    full = at_scale(pso_table2.TABLE, "full")
    built = {"scale": "full", "pairs": {"config": {"reward": "pickscore"}, "pairs": 59_000}}
    text = ranking(full, built, "full")
    assert "ranked by the reward `pickscore`, where the paper's are by people. PickScore is a metric of this" in text
    assert text.endswith("sees each of 59,000 pairs 5.4 times; in the paper 0.4 times, 851,293 pairs.")
    brought = {"scale": "full", "pairs": {"config": {"split": "train"}, "pairs": 851_293}}
    assert "ranked by people, as the paper's: they are Pick-a-Pic's" in ranking(full, brought, "full")
    other = {"scale": "full", "pairs": {"config": {"reward": "hps"}, "pairs": 10}}
    assert "is a metric of this table" not in ranking(full, other, "full")


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
