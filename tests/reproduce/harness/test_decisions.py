"""Claims decided from the scores of pictures: a table of made-up runs, where it is known what is to come out."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fsalign_lib.metrics.statistics import crossed
from reproduce.harness import claims, curves
from reproduce.harness.claims import PAPERS, claims_of, correct, decided, primary_records
from reproduce.harness.comparisons import Scores, unit
from reproduce.harness.declare import SEEDS, Column, Prompts, Row, Sampled, Table
from reproduce.harness.verdicts import equal_distance
from reproduce.papers.claim import Pattern, TableClaims

P, E = 60, 2
TEACHER = Sampled({}, 50, {})
TABLE = Table(
    name="sdpo_made_up",
    title="A table that is made up",
    rows={
        "teacher": Row("teacher", sampled=TEACHER),
        "base": Row("base"),
        "one": Row("one", "ddpo"),
        "other": Row("other", "sdpo"),
        "tuned": Row("tuned teacher", "sft", sampled=TEACHER),
    },
    prompts={"p": Prompts("prompts", "animals", "sdpo-animals")},
    steps=(1, 4),
    metrics={"hps": Column("HPSv2", 2), "clip": Column("CLIP score", 3), "far": Column("distance", 2, lower=True)},
    beside={},
    models={},
    teachers={},
)
CLAIMS = TableClaims(
    "Sec. 1",
    "“Other is above one.”",
    (
        Pattern("other", ("one", "base"), ("hps", "clip", "far"), "p", (1, 4), lower=("far",)),
        Pattern("tuned", "teacher", "clip", "p", 4),
    ),
)


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.setitem(PAPERS, TABLE.name, CLAIMS)


def make(gains, seeds=SEEDS, spread=0.02, reward="hps", scale=1.0):
    """Runs of the table: row -> metric -> what its mean gains over the model as it is, whose pictures differ by 1
    within a prompt and by 5 between prompts."""
    rng, runs = np.random.default_rng(0), []
    noise = {
        (metric, steps): 5 * rng.normal(size=(P, 1)) + rng.normal(size=(P, E))
        for metric in TABLE.metrics
        for steps in (1, 4, 50)
    }
    for row, about in TABLE.rows.items():
        columns = (50,) if about.sampled else TABLE.steps
        for seed in seeds if about.method else (None,):
            cells = {}
            for steps in columns:
                scores = {}
                for metric in TABLE.metrics:
                    own = spread * rng.normal() + 0.1 * rng.normal(size=(P, E)) if about.method else 0.0
                    scores[metric] = (noise[metric, steps] + gains.get(row, {}).get(metric, 0.0) + own).tolist()
                means = {metric: float(np.mean(values)) for metric, values in scores.items()}
                cells[f"p-{steps}"] = {"seeds": [0, 1], "scores": scores, "means": means}
            config = {
                "method": about.method,
                "reward": reward if about.method != "sft" else None,
                "reward_scale": scale,
            }
            training = {"config": config} if about.method else None
            runs.append({"row": row, "seed": seed, "training": training, "cells": cells})
    return runs


def decide(runs):
    found = decided(TABLE, runs, {"p": ["a cat"] * P})
    return found | {"table": TABLE.name, "runs": runs, "prompts": {"p": ["a cat"] * P}}


def statuses(runs):
    result = decide(runs)
    return {about["id"].removeprefix("sdpo-made-up-"): about["status"] for about in result["claims"]}


def both_steps(found, name):
    return {found[name.replace("#", f"{steps}step")] for steps in (1, 4)}


HPS, CLIP, FAR = (f"other-above-one-{metric}-#-p" for metric in ("hps", "clip", "far"))


def test_a_difference_of_rows_that_learned_is_decided():
    found = statuses(make({"one": {"hps": 1.0}, "other": {"hps": 1.5}}))
    assert both_steps(found, HPS) == {"reproduced"}
    found = statuses(make({"one": {"hps": 1.5}, "other": {"hps": 1.0}}))
    assert both_steps(found, HPS) == {"contradicted"}


def test_learning_comes_first():
    """The same difference below the untrained model, or a little above, is none; the untrained model needs no gate."""
    for one, other in ((-1.0, -0.5), (-0.4, 0.1), (0.0, 0.15)):
        found = statuses(make({"one": {"hps": one}, "other": {"hps": other}}))
        assert both_steps(found, HPS) == {"not learned"}
        assert "not learned" not in {status for name, status in found.items() if "above-base" in name}
    assert found["other-above-base-hps-1step-p"] == "reproduced", "by less than the margin, and surely"
    one_side = statuses(make({"one": {"hps": -1.0}, "other": {"hps": 0.5}}))
    assert both_steps(one_side, HPS) == {"reproduced"}, "one side that rose is enough"


def test_what_a_row_was_trained_for_is_its_reward():
    """Both fall in CLIP score: a finding where their reward rose, and none where nothing did."""
    fell = {"one": {"clip": -0.3}, "other": {"clip": -0.8}}
    assert both_steps(statuses(make(fell)), CLIP) == {"not learned"}
    rose = {row: gains | {"hps": 1.0} for row, gains in fell.items()}
    assert both_steps(statuses(make(rose)), CLIP) == {"contradicted"}
    # Without a reward, or with one of scale 0, any metric that is claimed will do.
    assert both_steps(statuses(make(rose, reward=None)), CLIP) == {"contradicted"}
    elsewhere = {row: gains | {"far": -1.0} for row, gains in fell.items()}
    assert both_steps(statuses(make(elsewhere)), CLIP) == {"not learned"}
    assert both_steps(statuses(make(elsewhere, reward=None)), CLIP) == {"contradicted"}, "less distance is a rise"
    assert both_steps(statuses(make(elsewhere, scale=0.0)), CLIP) == {"contradicted"}, "a reward of scale 0 is none"
    farther = {row: gains | {"far": 1.0} for row, gains in fell.items()}
    assert both_steps(statuses(make(farther, reward=None)), CLIP) == {"not learned"}


def test_of_less_is_better_a_fall_is_a_rise():
    found = statuses(make({"one": {"far": -1.0}, "other": {"far": -1.5}}))
    assert both_steps(found, FAR) == {"reproduced"}
    assert both_steps(statuses(make({"one": {"far": 1.0}, "other": {"far": 0.5}})), FAR) == {"not learned"}


def test_rows_that_are_alike_are_equivalent_by_a_margin_within_prompts():
    alike = make({"one": {"hps": 1.0}, "other": {"hps": 1.0}})
    found = decide(alike)
    about = next(c for c in found["claims"] if c["id"].endswith("other-above-one-hps-4step-p"))
    assert about["status"] == "equivalent"
    base = np.array(next(run for run in alike if run["row"] == "base")["cells"]["p-4"]["scores"]["hps"])
    assert about["margin"] == pytest.approx(0.25 * base.var(1, ddof=1).mean() ** 0.5), "1/4 of 1, not of 5"
    uncertain = statuses(make({"one": {"hps": 1.0}, "other": {"hps": 1.0}}, spread=0.8))
    assert both_steps(uncertain, HPS) == {"inconclusive"}


def test_one_seed_is_never_decided():
    found = statuses(make({"one": {"hps": 1.0}, "other": {"hps": 5.0}}, seeds=(0,)))
    assert set(found.values()) == {"one seed"}
    runs = make({"one": {"hps": 1.0}, "other": {"hps": 5.0}})
    single = [run for run in runs if run["row"] != "one" or run["seed"] == 0]
    found = statuses(single)
    assert both_steps(found, HPS) == {"one seed"}, "six seeds against one"
    assert both_steps(found, "other-above-base-hps-#-p") == {"reproduced"}


def test_rows_are_compared_on_the_seeds_that_both_have():
    runs = make({"one": {"hps": 1.0}, "other": {"hps": 1.5}})
    lacking = [run for run in runs if (run["row"], run["seed"]) != ("one", 3)]
    about = next(c for c in decide(lacking)["claims"] if "other-above-one-hps-1step" in c["id"])
    scores = {(r["row"], r["seed"]): np.array(r["cells"]["p-1"]["scores"]["hps"]) for r in runs if "p-1" in r["cells"]}
    kept = [scores["other", seed] - scores["one", seed] for seed in SEEDS if seed != 3]
    assert about["seeds"] == 5 and about["estimate"] == pytest.approx(crossed(np.stack(kept)).estimate)


def test_without_a_row_or_the_untrained_model_nothing_is_decided():
    runs = make({"one": {"hps": 1.0}, "other": {"hps": 1.5}})
    for row in ("other", "base"):
        found = statuses([run for run in runs if run["row"] != row])
        assert {s for name, s in found.items() if name.startswith("other")} == {"not run"}
    assert found["tuned-above-teacher-clip-4step-p"] != "not run", "whose untrained model is the teacher"


def test_a_row_is_held_to_the_model_that_it_was():
    scores = Scores(TABLE, make({}), {"p": ["a cat"] * P})
    assert [scores.untrained(row) for row in TABLE.rows] == ["teacher", "base", "base", "base", "teacher"]
    begun = replace(TABLE, rows=TABLE.rows | {"two": Row("two", "dipp", start="one")})
    assert Scores(begun, [], None).untrained("two") == "one"
    alone = replace(TABLE, rows={"one": TABLE.rows["one"]})
    assert Scores(alone, [], None).untrained("one") is None


def test_a_primary_claim_is_the_mean_over_steps():
    """Above at one step, below at four: each is decided, and their mean is none."""
    runs = make({"one": {"hps": 1.0}, "other": {"hps": 1.0}})
    for run in runs:
        if run["row"] == "other":
            for steps, by in ((1, 0.5), (4, -0.5)):
                cell = run["cells"][f"p-{steps}"]
                cell["scores"] = cell["scores"] | {"hps": (np.array(cell["scores"]["hps"]) + by).tolist()}
    result = decide(runs)
    (about,) = [one for one in result["primary"] if one["id"] == "sdpo-made-up-other-above-one-hps-p"]
    parts = [c for c in result["claims"] if c["id"] in about["claims"]]
    assert {c["status"] for c in parts} == {"reproduced", "contradicted"} and about["status"] == "equivalent"
    assert about["estimate"] == pytest.approx(np.mean([c["estimate"] for c in parts]))
    assert about["margin"] == pytest.approx(np.mean([c["margin"] for c in parts]))
    corrected = primary_records(correct(result, []))
    assert list(corrected) == [
        *(f"sdpo-made-up-other-above-{row}-{metric}-p" for row in ("one", "base") for metric in TABLE.metrics),
        "sdpo-made-up-tuned-above-teacher-clip-4step-p",
    ]


def test_a_metric_of_one_picture_a_prompt_takes_the_margin_that_was_measured_apart():
    runs = make({"one": {"hps": 1.0}, "other": {"hps": 1.0}})
    for run in runs:
        for cell in run["cells"].values():
            cell["seeds"] = [0]
            cell["scores"] = {m: [row[:1] for row in values] for m, values in cell["scores"].items()}
    assert both_steps(statuses(runs), HPS) == {"inconclusive"}, "the margin is not known: nothing is equivalent"
    for run in runs:
        if run["row"] == "base":
            for cell in run["cells"].values():
                cell["margins"] = {"hps": 0.25, "clip": 0.25, "far": 0.25}
    assert both_steps(statuses(runs), HPS) == {"equivalent"}


def test_a_derived_number_has_the_units_of_its_metric():
    named = ("hps-rise", "hps-timed", "hps-drop", "hps-gain", "vendi-ahead", "clip-t", "hps")
    assert [unit(name) for name in named] == ["hps"] * 4 + ["vendi", "clip-t", "hps"]


# over a paper


def test_the_correction_is_over_all_tables_of_a_paper():
    """A claim that is barely decided: among others that are none it falls, among decided ones it stands."""
    barely = decide(make({"one": {"hps": 1.0}, "other": {"hps": 1.5}}))
    about = next(c for c in barely["claims"] if "other-above-one-hps-1step" in c["id"])
    others = {"table": "sdpo_lcm", "primary": []}
    nothing = [about | {"id": f"{i}", "effect": about["effect"] | {"estimate": 0.0}} for i in range(400)]
    weak = about | {"effect": about["effect"] | {"estimate": 3 * crossed_error(about)}}
    result = barely | {"claims": [weak | {"status": "reproduced"}], "primary": []}
    (alone,) = correct(result, [])["claims"]
    (among,) = correct(result, [others | {"claims": nothing}])["claims"]
    strong = [about | {"id": f"{i}"} for i in range(400)]
    (upheld,) = correct(result, [others | {"claims": strong}])["claims"]
    assert alone["corrected"] == upheld["corrected"] == "reproduced" == among["status"]
    assert among["corrected"] != "reproduced"


def crossed_error(about):
    return claims.evidence(about).effect.error


def test_results_of_a_paper_lie_beside_each_other(tmp_path):
    for name in ("sdpo_lcm", "sdpo_table1", "pso_table1", "sdpo_lcm-full"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"table": name, "claims": [], "primary": []}))
    (tmp_path / "sdpo_curves.json").write_text(json.dumps({"table": "sdpo_curves", "claims": []}))
    assert list(claims.other_results(tmp_path / "sdpo_lcm.json")) == ["sdpo_table1"], "and not of an older version"
    assert list(claims.other_results(tmp_path / "sdpo_table1-full.json")) == ["sdpo_lcm"]


def test_a_record_keeps_what_it_rests_on():
    result = json.loads(json.dumps(decide(make({"one": {"hps": 1.0}, "other": {"hps": 1.5}}))))
    for about in result["claims"]:
        found = claims.evidence(about)
        assert found.effect.interval() == pytest.approx((about["estimate"], about["low"], about["high"]))
        assert claims.record(found)["status"] == about["status"] and found.p_different() == pytest.approx(about["p"])
    assert claims.evidence({"id": "x", "status": "not run"}) is None


# learning, collapses, distance


def test_learning_and_collapses_are_told_row_by_row():
    runs = make({"one": {"hps": 1.0}, "other": {"hps": 0.1}})
    for run in runs:
        if (run["row"], run["seed"]) in (("one", 4), ("other", 2)):
            for cell in run["cells"].values():
                cell["scores"] = cell["scores"] | {"hps": (np.array(cell["scores"]["hps"]) - 2.0).tolist()}
    found = {about["row"]: about for about in Scores(TABLE, runs, {"p": ["a cat"] * P}, claims_of(TABLE)).learning()}
    assert found["one"]["collapsed"] == [4] and found["other"]["collapsed"] == [2]
    assert list(found["one"]["rises"]) == ["hps"] and list(found["tuned"]["rises"]) == ["hps", "clip", "far"]
    effect, margin = found["one"]["rises"]["hps"]
    assert effect.estimate == pytest.approx(1.0 - 2.0 / 6, abs=0.1) and margin == pytest.approx(0.25, abs=0.05)


def curve(seed, row, kls, values, steps=4):
    points = [
        {"kl": kl, "kl_steps": steps if i else None, "means": {"p-4": {"hps": value}, "p-1": {"hps": value + 1}}}
        for i, (kl, value) in enumerate(zip(kls, values, strict=True))
    ]
    return {"row": row, "seed": seed, "curve": points}


def test_rows_are_compared_where_both_are_as_far():
    near, far = curve(0, "one", (0, 1, 2), (0, 2, 4)), curve(0, "other", (0, 4, 8), (0, 4, 6))
    assert curves.at_equal_kl(far, near, ["p-4"], "hps") == (2.0, -2.0), "at KL 2: 2 in place of 6, less 4"
    assert curves.at_equal_kl(near, far, ["p-4", "p-1"], "hps") == (2.0, 2.0)
    back = curve(0, "other", (0, 3, 1), (0, 3, 9))
    assert curves.at_equal_kl(back, near, ["p-4"], "hps") == (2.0, -2.0), "where it came there first"
    assert curves.at_equal_kl(curve(0, "other", (0, 4), (0, 4), steps=1), near, ["p-4"], "hps") is None
    assert curves.at_equal_kl({"row": "other", "seed": 0}, near, ["p-4"], "hps") is None
    assert curves.at_equal_kl(far, near, ["p-4"], "clip") is None


def test_at_equal_distance_the_one_that_went_far_may_be_behind():
    """Above at the end of training, below where both have gone equally far; and the page says both."""
    gains = {"one": {"hps": 1.0}, "other": {"hps": 1.5}}
    runs = make(gains)
    for run in runs:
        if run["row"] in ("one", "other"):
            kls = (0, 0.5, 1) if run["row"] == "one" else (0, 5, 10)
            ends = np.array([0.0, 0.5, 1.0]) * gains[run["row"]]["hps"] + 0.001 * run["seed"]
            made = curve(run["seed"], run["row"], kls, ends)["curve"]
            run["curve"] = made
    result = correct(decide(runs), [])
    claim = next(c for c in claims_of(TABLE) if (c.metric, c.below) == ("hps", "one"))
    about = primary_records(result)[claim.primary]
    kl, found = Scores(TABLE, runs, result["prompts"]).equal_kl(claim, (1, 4), claims.evidence(about))
    assert kl == 1.0 and about["status"] == "reproduced"
    assert found.effect.estimate == pytest.approx(0.15 - 1.0, abs=0.01) and found.effect.interval().high < 0
    line = next(
        line for line in equal_distance(TABLE, result).splitlines() if line.startswith("| other better than one")
    )
    assert "| 1 | -0.8" in line and line.endswith("| contradicted |")
    for run in result["runs"]:
        run.pop("curve", None)
    assert "The KL from the reference is not measured over training in this table" in equal_distance(TABLE, result)
