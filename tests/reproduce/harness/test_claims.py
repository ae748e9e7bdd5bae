"""Claims: expanded from the papers' patterns, about what each table has, as printed, and decided by an interval."""

import csv
import hashlib
import importlib
from dataclasses import replace

import pytest

from reproduce import pso_table2, sdpo_ablations
from reproduce.common.provenance import ROOT
from reproduce.harness.claims import PAPERS, claims_of, primary_claims, read_claims
from reproduce.harness.command import at_scale
from reproduce.papers import claim as papers_claim
from reproduce.papers.claim import Pattern, TableClaims

# Of each table: how many claims it has, and the first digits of sha256 of their ids, a line each.
KNOWN = {
    "pso_table1": (40, "8c9c107bb992"),
    "pso_table2": (44, "666b4ed1fcac"),
    "pso_table3": (47, "8580d2fba817"),
    "pso_table4": (6, "82a62aa40f6b"),
    "pso_style": (10, "421ba3c49eac"),
    "pso_ablations": (44, "164f2faa1a7e"),
    "sdpo_table1": (64, "816d70cd40b5"),
    "sdpo_table3": (52, "d6c7695831ec"),
    "sdpo_curves": (54, "5e157d285e2a"),
    "sdpo_ablations": (22, "584dd21e7891"),
    "sdpo_instability": (7, "77f3f38d1618"),
    "sdpo_lcm": (2, "198aee8a908a"),
    "dipp_table1": (30, "85c9248cdc5f"),
    "distar_table1": (40, "ddabbdac7e6f"),
    "distar_table2": (24, "2e56e8e6d193"),
    "distar_table3": (6, "7c440df1061a"),
    "distar_pareto": (9, "350c748deb0d"),
}
PRINTED = {"pso_table1", "pso_table2", "pso_table3", "sdpo_table1", "sdpo_table3", "dipp_table1"}
PRINTED |= {"distar_table1", "distar_table2"}  # each claim has its two numbers; of pso_table4 those on DreamBooth
TABLES = {name: at_scale(importlib.import_module(f"reproduce.{name}").TABLE, "pocket") for name in KNOWN}


def lines(table):
    with (ROOT / "reproduce" / "papers" / f"{table.name}.csv").open(newline="") as file:
        return {(line["prompts"], line["row"], int(line["steps"])): line for line in csv.DictReader(file)}


# what the papers claim


def test_there_are_501_claims():
    assert len(KNOWN) == len(PAPERS) == 17 and sum(count for count, _ in KNOWN.values()) == 501


@pytest.mark.parametrize("name", KNOWN)
def test_ids_are_what_they_were(name):
    ids = [claim.id for claim in read_claims(name)]
    assert (len(ids), hashlib.sha256("\n".join(ids).encode()).hexdigest()[:12]) == KNOWN[name]


# How many claims of a table are primary, and how many numbers of steps each is the mean of.
PRIMARY = {
    "pso_table1": (40, {1}),
    "pso_table2": (22, {2}),
    "pso_table3": (47, {1}),
    "pso_table4": (6, {1}),
    "pso_style": (8, {1}),
    "pso_ablations": (44, {1}),
    "sdpo_table1": (16, {4}),
    "sdpo_table3": (20, {1}),
    "sdpo_curves": (18, {1, 5}),
    "sdpo_ablations": (16, {1}),
    "sdpo_instability": (7, {1}),
    "sdpo_lcm": (2, {1}),
    "dipp_table1": (30, {1}),
    "distar_table1": (40, {1}),
    "distar_table2": (24, {1}),
    "distar_table3": (6, {1}),
    "distar_pareto": (9, {1}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_primary_claim_is_one_pair_of_rows_and_metric_over_numbers_of_steps(name):
    found = primary_claims(read_claims(name))
    assert (len(found), {len(parts) for parts in found.values()}) == PRIMARY[name]
    asked = [(c.above, c.below, c.metric, c.prompts) for parts in found.values() for c in parts[:1]]
    assert len(set(asked)) == len(asked), "each question once"
    for primary, parts in found.items():
        assert len({(c.above, c.below, c.metric, c.prompts) for c in parts}) == 1
        assert len({c.steps for c in parts}) == len(parts)
        assert (primary == parts[0].id) if len(parts) == 1 else all(primary != c.id for c in parts)


def test_what_asks_again_in_another_measure_is_not_primary():
    secondary = {c.metric for name in KNOWN for c in read_claims(name) if c.primary is None}
    assert secondary == {"l1", "l2", "aesthetic-timed", "aesthetic-rise", "style-distance-rise"}
    (timed,) = [c for c in read_claims("sdpo_ablations") if c.metric == "aesthetic-timed" and c.primary]
    assert timed.below == "all", "which has no claim but that one"


@pytest.mark.parametrize("name", KNOWN)
def test_claims_are_about_what_the_table_has(name):
    table = TABLES[name]
    found = claims_of(table)
    assert len({c.id for c in found}) == len(found) and all(
        c.id.startswith(name.replace("_", "-") + "-") for c in found
    )
    assert len({(c.metric, c.above, c.below, c.steps, c.prompts) for c in found}) == len(found), "each is made once"
    for c in found:
        assert c.metric in table.metrics and {c.above, c.below} <= set(table.rows) and c.above != c.below
        assert c.steps in table.steps and c.prompts in table.prompts


@pytest.mark.parametrize("name", KNOWN)
def test_printed_values_are_those_of_the_csv_in_the_claimed_order(name):
    table, found = TABLES[name], read_claims(name)
    assert all(c.printed for c in found) == (name in PRINTED)
    if name not in PRINTED | {"pso_table4"}:
        assert not any(c.printed for c in found)
        return
    paper = lines(table)
    for c in found:
        if c.printed:
            rows = [paper[c.prompts, row, at(table, row, c.steps)][c.metric] for row in (c.above, c.below)]
            assert c.printed == tuple(map(float, rows)) and c.printed[0] > c.printed[1]


def at(table, row, steps):
    """The steps of a printed line: the paper's own, for teachers (here at pocket scale fewer)."""
    printed = {s for _, name, s in lines(table) if name == row}
    return steps if steps in printed else min(printed)


@pytest.mark.parametrize("name", ["pso_table1", "pso_table2", "pso_table3", "dipp_table1"])
def test_an_id_says_its_claim(name):
    step = "" if name == "dipp_table1" else "{c.steps}step-"
    for c in read_claims(name):
        assert c.id == ("{id}-{c.above}-above-{c.below}-{c.metric}-" + step + "{c.prompts}").format(
            id=name.replace("_", "-"), c=c
        )


def test_every_printed_order_of_pso_table_2_is_a_claim_but_for_online_against_offline_in_clip_score():
    table = TABLES["pso_table2"]
    paper = lines(table)
    assert set(paper) == {(p, row, s) for p in table.prompts for row in table.rows for s in table.steps}
    claimed = {(c.above, c.below, c.metric, c.steps, c.prompts) for c in read_claims(table.name)}
    for above, below in (("offline", "base"), ("online", "base"), ("online", "offline")):
        for metric in table.metrics:
            for prompts in table.prompts:
                for steps in table.steps:
                    there = (above, below, metric, steps, prompts) in claimed
                    assert there == ((below, metric) != ("offline", "clipscore"))
    assert paper["parti", "online", 4]["clipscore"] < paper["parti", "offline", 4]["clipscore"]


def test_online_pso_above_everything_in_table_3_but_for_one_cell():
    table = TABLES["pso_table3"]
    claimed = {(c.above, c.below, c.metric, c.prompts) for c in read_claims(table.name)}
    baselines = ("base", "teacher-lora", "dpo-lora")
    full = {
        (a, b, m, p) for a in ("offline", "online") for b in baselines for m in table.metrics for p in table.prompts
    }
    assert full - claimed == {("online", "dpo-lora", "clipscore", "pickapic")}
    paper = lines(table)
    assert float(paper["pickapic", "online", 4]["clipscore"]) < float(paper["pickapic", "dpo-lora", 4]["clipscore"])


@pytest.mark.parametrize("name", ["pso_table1", "pso_table3"])
def test_the_paper_prints_every_row_of_the_preference_tables(name):
    table = TABLES[name]
    assert {(p, row) for p, row, _ in lines(table)} == {(p, row) for p in table.prompts for row in table.rows}


def test_every_form_of_the_objective_is_asked_in_every_metric():
    table = TABLES["pso_ablations"]
    assert {(c.above, c.below, c.metric) for c in read_claims(table.name)} == {
        (row, "base", metric) for row in table.rows if row != "base" for metric in table.metrics
    }


def test_every_order_that_sdpos_figures_show_is_a_claim():
    rewards, others = ("aesthetic", "imagereward", "hps"), ("d3po", "ddpo", "rebel")
    found = {(c.metric, c.above, c.below, c.steps) for c in read_claims("sdpo-curves")}
    highest = {(r, f"sdpo-{r}", f"{m}-{r}", s) for r in rewards for m in others for s in (1, 2, 4, 8, 16)}
    assert found == highest | {(f"{r}-rise", f"sdpo-{r}", f"{m}-{r}", 50) for r in rewards for m in others}
    about = read_claims("sdpo-ablations")
    assert {c.below for c in about} == set(sdpo_ablations.VARIANTS) - {"without-last"} and {c.steps for c in about} == {
        1
    }
    ends = {c.below for c in about if c.metric == "aesthetic"}
    assert ends == {c.below for c in about} - {"all"}, "as many queries as steps are as good, and take longer"
    found = {(c.above, c.below, c.steps) for c in read_claims("sdpo-instability")}
    assert found == {(f"{m}-{s}", f"{m}-long", s) for m in others for s in (1, 2)} | {("ddpo-mixed", "ddpo-long", 16)}
    assert {(c.above, c.below, c.steps) for c in read_claims("sdpo-lcm")} == {("sdpo", m, 8) for m in ("ddpo", "rebel")}


def test_every_claim_of_dipp_is_a_printed_order_and_every_printed_order_a_claim():
    table = TABLES["dipp_table1"]
    paper, found = lines(table), read_claims(table.name)
    assert {(prompts, row) for prompts, row, _ in paper} == {
        (prompts, name)
        for prompts in table.prompts
        for name, row in table.rows.items()
        if name != "pretrained" and not (row.elsewhere and prompts == "sam")
    }

    def number(row, metric, prompts):
        return float(paper[prompts, row, at(table, row, 1)][metric])

    stronger = [("cfg1-reward1", "cfg1-reward0"), ("cfg4.5-reward1", "cfg4.5-reward0")]
    stronger += [("cfg4.5-reward10", "cfg4.5-reward1"), ("cfg4.5-reward10", "teacher")]
    stronger += [("cfg4.5-reward0", "cfg1-reward0"), ("cfg4.5-reward1", "cfg1-reward1")]
    borne_out = {
        (above, below, metric, prompts): (number(above, metric, prompts), number(below, metric, prompts))
        for above, below in stronger
        for metric in table.metrics
        for prompts in table.prompts
        if number(above, metric, prompts) > number(below, metric, prompts)
    }
    assert {(c.above, c.below, c.metric, c.prompts): c.printed for c in found} == borne_out


# patterns


def expand(*patterns, by=(), table="none_such"):
    return TableClaims("source", "words", patterns, by).claims(table)


def test_a_pattern_is_every_combination_in_order():
    found = expand(Pattern(("a", "b"), "c", ("x", "y"), ("p", "q"), (4, 1)))
    assert [c.id for c in found[:5]] == [
        *("none-such-a-above-c-x-4step-p", "none-such-a-above-c-x-1step-p"),
        *("none-such-a-above-c-x-4step-q", "none-such-a-above-c-x-1step-q", "none-such-a-above-c-y-4step-p"),
    ]
    assert len(found) == 16 and (found[0].above, found[0].below, found[0].metric) == ("a", "c", "x")
    assert (found[0].steps, found[0].prompts, found[0].printed) == (4, "p", None)


def test_a_star_is_the_reward_and_is_left_out_of_ids():
    found = expand(
        Pattern("s-*", ("d-*", "base"), "*-rise", "p", 1, "{above}-over-{below}-{reward}", rewards=("u", "v"))
    )
    assert [(c.id, c.above, c.below, c.metric) for c in found] == [
        (f"none-such-s-over-{name}-{r}", f"s-{r}", f"{name}-{r}" if name == "d" else name, f"{r}-rise")
        for r in ("u", "v")
        for name in ("d", "base")
    ]


def test_a_primary_claim_has_the_pattern_s_id_without_steps():
    found = expand(Pattern("a", "b", ("x", "y"), "p", (4, 1), primary=("x",)))
    assert [c.primary for c in found] == ["none-such-a-above-b-x-p"] * 2 + [None] * 2
    (alone,) = expand(Pattern("a", "b", "x", "p", 4))
    assert alone.primary == alone.id == "none-such-a-above-b-x-4step-p"


def test_of_a_lower_metric_the_other_row_is_above():
    up, down = expand(Pattern("a", "b", ("x", "distance"), "p", 1, lower=("distance",)))
    assert (up.above, up.below) == ("a", "b") and (down.above, down.below) == ("b", "a")
    assert down.id == "none-such-a-above-b-distance-1step-p", "an id keeps the pattern's order"


def test_claims_are_listed_by_what_is_asked_first():
    found = expand(Pattern("a", "b", ("x", "y"), ("p", "q"), 1), Pattern("b", "c", "z", ("p", "q"), 1), by=("prompts",))
    assert [(c.prompts, c.metric) for c in found] == [(p, m) for p in ("p", "q") for m in ("x", "y", "z")]


def test_an_exception_leaves_its_claims_out_and_must_leave_one_out():
    found = expand(Pattern(("a", "b"), "c", ("x", "y"), "p", 1, but=({"above": "a", "metric": "y"},)))
    assert [(c.above, c.metric) for c in found] == [("a", "x"), ("b", "x"), ("b", "y")]
    with pytest.raises(ValueError, match="exception .*'metric': 'w'.* leaves no claim out"):
        expand(Pattern("a", "c", ("x", "y"), "p", 1, but=({"metric": "w"},)))


def test_two_claims_of_one_id_are_refused():
    with pytest.raises(ValueError, match="none-such-a-above-b-x-1step-p: two claims have this id"):
        expand(Pattern("a", "b", "x", "p", 1), Pattern("a", "b", "x", "p", 1))


def test_a_claim_that_the_print_contradicts_is_refused():
    wrong = Pattern("base", "online", "pickscore", "parti", 4)
    with pytest.raises(ValueError, match="the paper prints 22.88 for base and 23.23 for online; except it"):
        expand(wrong, table="pso_table2")
    assert expand(replace(wrong, prompts="elsewhere"), table="pso_table2")[0].printed is None


def test_a_row_that_is_printed_at_one_number_of_steps_has_its_numbers_in_every_column():
    values = {("p", "teacher", 50): {"x": "2"}, ("p", "a", 1): {"x": "1"}, ("p", "a", 4): {"x": "3"}}
    assert papers_claim.printed_line(values, "p", "teacher", 4) == {"x": "2"}
    assert papers_claim.printed_line(values, "p", "a", 4) == {"x": "3"}
    assert papers_claim.printed_line(values, "p", "a", 2) == papers_claim.printed_line(values, "q", "a", 1) == {}


@pytest.mark.parametrize(
    "change,message",
    [
        ({"metrics": "beauty"}, "pso_table2 has no metric 'beauty', only "),
        ({"above": "best"}, "pso_table2 has no row 'best', only "),
        ({"below": "worst"}, "pso_table2 has no row 'worst', only "),
        ({"prompts": "coco"}, "pso_table2 has no prompt set 'coco', only "),
        ({"steps": 2}, "pso_table2 has no number of steps 2, only "),
    ],
)
def test_a_claim_about_what_the_table_lacks_is_refused(change, message, monkeypatch):
    pattern = replace(Pattern("online", "base", "pickscore", "parti", 4), **change)
    monkeypatch.setitem(PAPERS, "pso_table2", TableClaims("source", "words", (pattern,)))
    with pytest.raises(ValueError, match=message):
        claims_of(pso_table2.TABLE)
