"""DI++ Table 1, and rows of distilled generators: where they start, what stands beside them, what they cost."""

import json
from dataclasses import replace

import pytest
import torch

from fsalign_lib.models import edm
from fsalign_lib.models import load as models
from fsalign_lib.pocket import one_step, report
from fsalign_lib.pocket.networks import load_classifier
from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.twins import architectures
from reproduce import dipp_table1, train_distill
from reproduce.common.files import plain
from reproduce.dipp_table1 import TABLE
from reproduce.harness import claims, dry_run, rows
from reproduce.harness.command import at_scale
from reproduce.harness.declare import Row
from reproduce.recipes import make_config
from tests import tiny
from tests.tiny_tables import make, on_tiny, prepare, small

ALIGNED = "cfg4.5-reward10"
SOME = ("sdxl", "teacher", "pretrained", ALIGNED)


@pytest.fixture
def table(folder, monkeypatch):
    """Few rows; the generator is pre-trained here, once, as it is at full scale."""
    rows = {name: TABLE.rows[name] for name in SOME}
    rows["teacher"] = replace(rows["teacher"], sampled=replace(dipp_table1.TEACHER, steps=3))
    rows["pretrained"] = Row("pre-trained", "diff-instruct", seeds=(0,))
    claim = claims.Claim("dipp-table1-x", "pickscore", ALIGNED, "teacher", 1, "coco")
    monkeypatch.setattr(claims, "read_claims", lambda name: [claim])
    return on_tiny(replace(TABLE, rows=rows), folder, seeds=(0, 1))


@pytest.fixture
def world(prompts_file):
    return small(prompts_file, {"diff-instruct": {"time": 399, "sigma_init": None}})


def test_a_row_starts_from_another_rows_run(table, world, tmp_path, monkeypatch):
    make(table, world, tmp_path, only=(ALIGNED,), seeds=(1,))
    runs = tmp_path / "runs" / "dipp_table1"
    assert {path.name for path in runs.iterdir() if path.is_dir()} == {"pretrained-0", f"{ALIGNED}-1"}
    _, work = prepare(table, world, tmp_path)
    told = rows.training_config(work, ALIGNED, 1)
    assert told.start == runs / "pretrained-0" and (told.guidance, told.reward_scale) == (4.5, 10)

    looked = []
    evaluate = rows.evaluate

    def recorded(model, kernel, steps, *given, **how):
        looked.append((model.guidance_scale, kernel or model.kernel, steps, how.get("eta")))
        return evaluate(model, kernel, steps, *given, **how)

    monkeypatch.setattr(rows, "evaluate", recorded)
    result = make(table, world, tmp_path)
    assert set(looked) == {(2.5, "ddim", 3, 0.0), (1.0, "renoise", 1, None)}
    done = [(run["row"], run["seed"]) for run in result["runs"]]
    assert done == [("teacher", None), ("pretrained", 0), (ALIGNED, 0), (ALIGNED, 1)]
    assert set(result["runs"][0]["cells"]) == {"coco-3", "sam-3"}
    assert result["claims"][0]["status"] != "not run", "3 steps are compared with one"
    page = (tmp_path / "dipp_table1.md").read_text()
    assert "| PickScore | SDXL, 25 steps | 22.9 | not part of this project |  |" in page
    assert "| DI++, guidance 4.5, reward 10 | 1 x 2 | " in page

    other = {**world.settings, "diff-instruct": world.settings["diff-instruct"] | {"lr": 1e-3}}
    with pytest.raises(ValueError, match="has other settings"):  # of what a row starts from, too
        changed = replace(table, rows={name: table.rows[name] for name in (ALIGNED, "pretrained")})
        (runs / "pretrained-0.json").unlink()
        (runs / "pretrained-0" / "settings.json").unlink()
        prepare(changed, replace(world, settings=other), tmp_path)


@pytest.mark.parametrize(
    "method,guidance,by",
    [
        ("dipp", 1.0, "reference"),
        ("diff-instruct", 3.0, "reference"),
        ("distar", 3.0, "reference"),
        ("distar", 3.0, "reward"),
    ],
)
def test_costs_are_what_the_networks_are_asked(method, guidance, by, folder, prompts_file, tmp_path):
    few = {"updates": 2, "batch": 2, "assistant_updates": 2, "warmup": 1, "save_every": 9, "prompts": prompts_file}
    few |= {"model": str(folder), "teacher": str(folder), "start": None, "time": 399, "sigma_init": None}
    config = make_config(train_distill.DistillConfig, method, out=tmp_path, guidance=guidance, guidance_by=by, **few)
    queries, asked = [], {"forward": 0, "backward": 0}

    def reward(pictures, prompts):
        queries.append(len(prompts))
        return tiny.brightness(pictures, prompts)

    setup = train_distill.prepare(config, reward=reward if config.reward else None)

    def count(module, inputs, output):
        asked["forward"] += len(output[0])
        if output[0].requires_grad:

            def back(gradient):
                asked["backward"] += len(gradient)

            output[0].register_hook(back)

    for network in setup.trio.networks():
        network.register_forward_hook(count)
    list(train_distill.train(setup))
    told = train_distill.network_calls(plain(config))
    assert told == {"updates": 2, "batch": 2, **asked, "reward": sum(queries)}


# the paper's numbers


def test_at_full_scale_one_generator_is_pretrained_for_all():
    full, pocket = at_scale(TABLE, "full"), at_scale(TABLE, "pocket")
    assert full.rows["pretrained"].method == "diff-instruct" and pocket.rows["pretrained"].method is None
    assert rows.row_seeds(full, "pretrained") == (0,)
    assert {rows.start_of(full, ALIGNED, seed) for seed in TABLE.seeds} == {("pretrained", 0)}
    assert rows.start_of(pocket, ALIGNED, 0) is None and rows.row_seeds(pocket, "sdxl") == ()
    text = dry_run.description(full, "full")
    assert "start = 'the run of row pretrained'" in text and "the model as it is, pixart-alpha: ddim, 30 steps" in text
    assert "sigma_init = 2.5  # DI++ Table 2" in text and "sam-llava-5k" in text


# the shipped generator

shipped = pytest.mark.skipif(not (WEIGHTS / "one-step").is_dir(), reason="the pocket world is not built")


@shipped
def test_the_shipped_generator_draws_every_animal_in_one_step():
    model = models.load("pocket-one-step")
    assert model.timesteps == (int(model.schedule.nearest_t(edm.SIGMA_INIT)),)
    with pytest.raises(ValueError, match="sampled at t = 625 only"):
        model.sampler(2)
    (row,) = [name for name, how in report.SAMPLERS.items() if how[0] == "pocket-one-step"]
    name, kernel, steps, guidance, bar = report.SAMPLERS[row]
    texts = report.prompts("animals")
    right = report.classify(
        load_classifier(WEIGHTS, "classifier"), report.sample(name, kernel, steps, guidance, texts, 1)
    )
    assert (right == torch.arange(len(texts))).double().mean() >= bar


@shipped
def test_the_shipped_generator_was_made_by_the_recipe():
    about = json.loads((WEIGHTS / "one-step" / "training.json").read_text())["config"]
    recipe = make_config(train_distill.DistillConfig, "diff-instruct", threads=1)
    now = plain(recipe)
    assert about and all(now[name] == value for name, value in about.items())
    # The precision of what is not trained is a younger setting: None is what was done then.
    assert set(one_step.OF_FOLDERS) | {"frozen_dtype"} == set(now) - set(about) and now["frozen_dtype"] is None


def test_an_unfinished_run_is_no_generator(tmp_path):
    with pytest.raises(FileNotFoundError, match="finish the run"):
        one_step.run(one_step.OneStep(run=tmp_path, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pixart_can_be_planned_without_values():
    """T5 itself looks into the mask of its padding, where a meta tensor has nothing."""
    model = architectures.meta_model("pixart-alpha")
    cond = model.encode_prompts(["a cat", "a dog"])
    assert cond.text.shape == (2, 120, 4096) and cond.extra["mask"].shape == (2, 120)
    x = torch.empty(2, *model.latent_shape, device="meta")
    assert model.predict_eps(x, torch.tensor([5, 7], device="meta"), cond).shape == x.shape
