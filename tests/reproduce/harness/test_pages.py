"""Pages: the committed ones are those that the committed results give, and say what their numbers are."""

import functools
import importlib
import json
from dataclasses import replace

import pytest

from reproduce import pso_table2, sdpo_ablations, sdpo_instability, sdpo_table1, sdpo_table3
from reproduce.common.provenance import ROOT
from reproduce.harness import readmes
from reproduce.harness.claims import PAPERS, correct, decided, other_results
from reproduce.harness.command import at_scale
from reproduce.harness.declare import MOST_SEEDS, SEEDS
from reproduce.harness.page import page, ranking
from reproduce.harness.protocol import STATUSES
from reproduce.harness.rows import row_seeds

RESULTS = ROOT / "reproduce" / "results"
NAMES = list(PAPERS)


def table_of(name):
    return at_scale(importlib.import_module(f"reproduce.{name}").TABLE, "pocket")


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@functools.cache
def result_of(name):
    """A committed result with statuses that are corrected over its paper."""
    return correct(read(name), other_results(RESULTS / f"{name}.json").values())


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_page_is_the_generated_one(name):
    assert (RESULTS / f"{name}.md").read_text() == page(table_of(name), result_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_result_is_a_full_run_and_its_claims_are_decided_by_its_scores(name):
    table, result = table_of(name), read(name)
    assert not result["smoke"] and result["scale"] == "pocket"
    # Each row has the same training seeds, of those that a table may have; rows with seeds of their own have those.
    found = {run["seed"] for run in result["runs"] if not table.rows[run["row"]].seeds} - {None}
    assert found <= set(range(MOST_SEEDS))
    assert {(run["row"], run["seed"]) for run in result["runs"]} == {
        (name, seed)
        for name, row in table.rows.items()
        if not row.elsewhere
        for seed in (row.seeds or (None if row_seeds(table, name) == (None,) else found) or (None,))
    }
    assert decided(table, result["runs"], result["prompts"]) == {key: result[key] for key in ("claims", "primary")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path,line", [("README.md", readmes.counts), ("reproduce/README.md", readmes.command)])
def test_lines_of_the_readmes_are_the_generated_ones(name, path, line):
    content = (ROOT / path).read_text(encoding="utf-8")
    assert line(table_of(name), result_of(name)) in content.splitlines()
    assert readmes.with_line(content, line(table_of(name), result_of(name))) == content


def test_readme_says_how_many_training_seeds_the_tables_have():
    trained = [name for name in NAMES if any(row.method for row in table_of(name).rows.values())]
    assert set(NAMES) - set(trained) == {"sdpo_table3"}
    declared = {name: table_of(name).seeds for name in trained}
    assert {name for name, seeds in declared.items() if seeds != SEEDS} == {"sdpo_ablations", "sdpo_instability"}
    assert min(map(len, declared.values())) >= 3, "one seed decides nothing"
    run = {name: len({r["seed"] for r in read(name)["runs"]} - {None}) for name in trained}
    assert {name for name, count in run.items() if count == 1} == {"sdpo_ablations", "sdpo_instability"}
    assert set(run.values()) == {1, 3}
    told = (ROOT / "README.md").read_text()
    assert "SDPO Figs. 5-7 have been run at one training seed, SDPO Table 3 trains nothing" in told


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
    counts = " | ".join(["0"] * (len(STATUSES) - 1) + ["44"])
    assert readmes.counts(table, None).endswith(f"(reproduce/results/pso_table2.md) | {counts} | not run |")
    assert readmes.command(table, None).endswith("`python reproduce/pso_table2.py` | 6 | not run | not run | not run |")
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
    assert "So no claim about a trained row is decided." in pages[1]
    for seeds, text in pages.items():
        assert (
            ("over prompts and pictures, lies above 0" in text) == ("One training seed a row" in text) == (seeds == 1)
        )
        assert ("over training seeds, prompts and pictures" in text) == ("± standard deviation" in text) == (seeds > 1)
    assert sdpo_ablations.TABLE.seeds == sdpo_instability.TABLE.seeds == (0, 1, 2)
    assert sdpo_table1.TABLE.seeds == SEEDS == tuple(range(6))
    untrained = page(sdpo_table3.TABLE, None)
    assert "over prompts and pictures, lies above 0" in untrained and "training seed" not in untrained


def test_a_row_without_seeds_is_not_run_and_one_that_lacks_a_seed_stands_on_the_others():
    table, result = pso_table2.TABLE, read("pso_table2")

    def without(*gone):
        runs = [run for run in result["runs"] if (run["row"], run["seed"]) not in gone]
        return correct({**result, "runs": runs, **decided(table, runs, result["prompts"])}, [])

    none = without(*(("online", seed) for seed in (0, 1, 2)))
    assert all((c["corrected"] == "not run") == ("online" in c["id"]) for c in none["claims"])
    assert "| PickScore | online PSO | 22.71 | not run | not run | not run |" in page(table, none)
    one = without(("online", 0), ("online", 2))
    assert all((c["status"] == "one seed") == ("online" in c["id"]) for c in one["claims"])
    two = without(("online", 2))
    assert {c["seeds"] for c in two["claims"] if "online" in c["id"]} == {2}


def test_a_page_has_both_statuses_and_what_they_rest_on():
    result = result_of("sdpo_table1")
    text = page(table_of("sdpo_table1"), result)
    fallen = [c for c in result["claims"] if c["status"] != c["corrected"]]
    assert fallen, "over 243 claims of the paper some fall"
    for c in fallen:
        assert c["status"] in STATUSES[:3] and c["corrected"] in ("equivalent", "inconclusive")
    alone = [f"(by itself {c['status']}), {c['estimate']:+.2f}"[:-1] for c in fallen]
    assert all(words in text for words in alone) and text.count("(by itself ") == len(fallen)
    counts = text.split("**Claims: ")[1].split(".**")[0]
    assert f"{sum(c['corrected'] == 'not learned' for c in result['claims'])} not learned" in counts
    assert "## Primary claims" in text and "| SDPO above DDPO, Aesthetic | Aesthetic | " in text
    assert "## What was learned" in text and "by the rule for more seeds" in text
    assert "The KL from the reference is not measured over training in this table" in text
    assert "| at equal training | KL | at that KL |" in page(table_of("sdpo_curves"), result_of("sdpo_curves"))


def test_results_of_other_tables_change_a_papers_lines():
    """The counts of a table follow from all results of its paper: its line is written again with any of them."""
    content = (ROOT / "README.md").read_text(encoding="utf-8")
    line = next(line for line in content.splitlines() if "results/sdpo_lcm.md)" in line)
    changed = readmes.with_statuses(content, "sdpo_lcm", ["reproduced", "equivalent"])
    (new,) = set(changed.splitlines()) - set(content.splitlines())
    assert new.startswith(line.split(" | ")[0]) and new.endswith(" | 1 | 0 | 1 | 0 | 0 | 0 | 0 | 0.57 |")
    below = (ROOT / "reproduce" / "README.md").read_text(encoding="utf-8")
    (new,) = set(readmes.with_statuses(below, "sdpo_lcm", ["not run"] * 2).splitlines()) - set(below.splitlines())
    assert new.endswith(" | 3 | 0.57 | 2.0 GB | not run |")
    assert readmes.paper_line("sdpo", {}, "primary claims").endswith(" | 0 | 0 | 0 | 0 | 0 | 0 | 79 |")
