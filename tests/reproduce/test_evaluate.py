"""Evaluation: what is scored, the same noise for every model, and intervals that know what varies."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

from fsalign_lib import rewards, twins
from fsalign_lib.metrics import frechet
from fsalign_lib.metrics.statistics import crossed_interval
from fsalign_lib.models import load as models
from fsalign_lib.pocket import networks
from fsalign_lib.pocket.captions import ANIMALS
from reproduce import evaluate, train_online
from reproduce import fid_reference as reference
from reproduce.evaluation import metrics as scoring
from reproduce.evaluation import scores as measure
from reproduce.recipes import make_config
from tests import evaluation_worker, tiny
from tests.exact import fitted

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def model(folder):
    return models.load(folder)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return networks.classifier(len(ANIMALS)).eval()


@pytest.fixture(scope="module")
def functions(classifier):
    return {
        "brightness": tiny.brightness,
        "accuracy": lambda images, prompts: scoring.accuracy(classifier, images, prompts),
        "diversity": lambda images, prompts: scoring.diversity(classifier, images, prompts),
    }


@pytest.fixture(scope="module")
def result(model, functions):
    return measure.evaluate(model, None, 2, tiny.PROMPTS, SEEDS, functions)


def test_each_picture_has_its_score(model, result):
    images = measure.sample(model, None, 2, tiny.PROMPTS, SEEDS)
    assert images.shape == (6, 3, 3, 32, 32)
    expected = images.mean((2, 3, 4))
    torch.testing.assert_close(torch.tensor(result["scores"]["brightness"]), expected, atol=1e-5, rtol=0)
    assert result["means"]["brightness"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert json.loads(json.dumps(result)) == result


def test_scores_do_not_depend_on_the_batch_or_on_the_other_prompts(model, functions, result):
    one = measure.evaluate(model, None, 2, tiny.PROMPTS[2:3], SEEDS, functions, batch=1)
    for name in functions:
        assert one["scores"][name][0] == pytest.approx(result["scores"][name][2], abs=1e-4)


def test_noise_is_of_the_prompt_and_the_seed():
    noise = measure.picture_noise(["a cat", "a dog"], [0, 1], (4, 8, 8), 3)
    assert torch.equal(noise[1, 1], measure.picture_noise(["a dog"], [1], (4, 8, 8), 3)[0, 0])
    assert len(noise.flatten(0, 1).flatten(1).unique(dim=0)) == 4


def test_accuracy_counts_animals_where_one_is_asked_for(classifier):
    images = torch.rand(3, 3, 32, 32)
    seen = ANIMALS[classifier(images[:1] * 2 - 1).logits.argmax().item()]
    other = next(a for a in ANIMALS if a != seen)
    prompts = [f"a {seen}", f"a {other}", "a cat and a dog"]
    scores = scoring.accuracy(classifier, images[:1].expand(3, -1, -1, -1), prompts)
    assert scores[:2].tolist() == [1, 0] and scores[2].isnan()


def test_diversity_is_the_mean_distance_within_a_prompt(classifier):
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        features = classifier.resnet(images * 2 - 1).pooler_output.flatten(1)
        scores = scoring.diversity(classifier, images, ["a cat"] * 3 + ["a dog"] * 2)
    unit = features / features.norm(dim=1, keepdim=True)
    assert scores[:3].mean().item() == pytest.approx(torch.pdist(unit[:3]).mean().item(), abs=1e-5)
    assert scores[3:].tolist() == pytest.approx([(unit[3] - unit[4]).norm().item()] * 2, abs=1e-5)


def test_a_metric_that_says_nothing_is_null(model, functions):
    prompts = ["a cat", "a cat and a dog"]
    result = measure.evaluate(model, None, 1, prompts, SEEDS, functions)
    assert result["scores"]["accuracy"][1] == [None] * 3
    assert result["means"]["accuracy"] == np.mean(result["scores"]["accuracy"][0])


def shifted(result, by):
    scores = {"brightness": (np.array(result["scores"]["brightness"]) + by).tolist()}
    return {**result, "scores": scores}


def test_comparisons_are_paired(result):
    interval = measure.compare(shifted(result, 0.25), result, "brightness")
    assert interval == pytest.approx((0.25, 0.25, 0.25))
    three = measure.compare([shifted(result, by) for by in (0.1, 0.2, 0.3)], result, "brightness")
    half = 4.303 * 0.1 / 3**0.5  # Student's with 2 degrees of freedom
    assert three == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-3)


def test_only_what_matches_is_compared(result):
    for key, value in (("seeds", [5, 6, 7]), ("steps", 1), ("prompts", ["a cat"] * 6)):
        with pytest.raises(ValueError, match=f"other {key}: evaluate both alike"):
            measure.compare({**result, key: value}, result, "brightness")
    with pytest.raises(ValueError, match="2 runs against 3"):
        measure.compare([result] * 2, [result] * 3, "brightness")


@pytest.mark.parametrize(("runs_", "spread"), [(1, 0.0), (3, 0.0), (3, 0.15), (3, 0.5), (3, 3.0), (5, 0.5)])
def test_interval_covers_as_often_as_it_says(runs_, spread):
    """Effects of the run, of the prompt (whose mean has a deviation of 0.16) and of the picture; the truth is 0."""
    rng, covered, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        run, prompt = rng.normal(size=(runs_, 1, 1)) * spread, rng.normal(size=(1, 40, 1))
        data = run + prompt + rng.normal(size=(runs_, 40, 4))
        covered += not crossed_interval(data).excludes(0)
    assert 0.90 < covered / trials < 0.98


def test_interval_is_students_where_one_effect_is_all():
    data = np.random.default_rng(0).normal(size=(3, 40, 4))
    low, high = scipy.stats.ttest_1samp(data[0].mean(1), 0).confidence_interval()
    assert crossed_interval(data[:1]) == pytest.approx((data[0].mean(), low, high))
    runs_ = data[:, :1, :1] + 0 * data
    low, high = scipy.stats.ttest_1samp(runs_[:, 0, 0], 0).confidence_interval()
    assert crossed_interval(runs_) == pytest.approx((runs_.mean(), low, high))
    same = np.full((3, 40, 4), 0.25)
    assert crossed_interval(same) == (0.25, 0.25, 0.25)


def test_interval_without_the_runs_would_be_too_narrow():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(3, 1, 1)) + 0.1 * rng.normal(size=(3, 40, 4))
    good = crossed_interval(data)
    naive = crossed_interval(data.transpose(1, 0, 2).reshape(1, 40, 12))  # as if all were of one run
    assert good.high - good.low > 5 * (naive.high - naive.low)


def test_a_checkpoint_is_compared_with_its_base(folder, functions, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(tiny.PROMPTS))
    small = {"model": str(folder), "prompts": str(prompts), "rounds": 1, "pairs": 2, "minibatch": 2, "lr": 1e-3}
    training = make_config(train_online.OnlineConfig, "pso-online", out=tmp_path / "run", **small)
    train_online.run(train_online.prepare(training, reward=tiny.brightness))
    config = evaluate.EvaluateConfig(
        model=str(folder), checkpoint=tmp_path / "run", prompts=(str(prompts),), steps=(2,), out=tmp_path / "e.json"
    )
    evaluate.run(evaluate.prepare(config, metrics=functions))
    content = json.loads((tmp_path / "e.json").read_text())
    assert {"command", "config", "commit", "versions", "device", "wall_seconds", "peak_memory_mb"} <= content.keys()
    (found,) = content["results"]
    plain = measure.evaluate(models.load(folder), None, 2, tiny.PROMPTS, range(4), functions)
    assert found["base"]["scores"] == plain["scores"], "the reference is the model as it was loaded"
    gain = found["means"]["brightness"] - plain["means"]["brightness"]
    assert gain != 0 and found["above_base"]["brightness"]["estimate"] == pytest.approx(gain)
    assert "above base" in capsys.readouterr().out


def test_bad_input_is_told_before_any_sampling(folder, model, functions, tmp_path):
    with pytest.raises(ValueError, match="unknown metric 'beauty': choose from pickscore"):
        scoring.load_metrics(["beauty"])
    with pytest.raises(ValueError, match="0 prompts"):
        measure.evaluate(model, None, 2, [], SEEDS, functions)
    with pytest.raises(ValueError, match="diversity needs 2 seeds"):
        measure.evaluate(model, None, 2, tiny.PROMPTS, [0], functions)
    with pytest.raises(ValueError, match="'a unicorn' is not in the pocket world's grammar"):
        measure.evaluate(model, None, 2, ["a unicorn"], SEEDS, functions)
    config = evaluate.EvaluateConfig(model=str(folder), checkpoint=tmp_path)
    with pytest.raises(FileNotFoundError, match="no trained weights"):
        evaluate.prepare(config, metrics=functions)
    with pytest.raises(ValueError, match="num_steps = 0"):
        evaluate.prepare(evaluate.EvaluateConfig(model=str(folder), steps=(0,)), metrics=functions)


def test_a_score_that_is_not_finite_names_prompt_and_seed(model):
    broken = {"broken": lambda images, prompts: torch.tensor([1.0, float("inf")] + [1.0] * (len(prompts) - 2))}
    with pytest.raises(FloatingPointError, match=r"metric broken is inf for prompt 'a cat' \(seed 1\)"):
        measure.evaluate(model, None, 1, tiny.PROMPTS, SEEDS, broken)


# all pictures together


def quarters(reference):
    return scoring.Frechet("quarters", evaluation_worker.small_features, evaluation_worker.DIMENSIONS, 8, reference)


def test_fid_is_the_distance_of_the_pictures_features(model):
    other = np.random.default_rng(0).uniform(size=(40, 12))
    reference = frechet.Gaussian(other.mean(0), np.cov(other.T), 40)
    asked = []
    fid = quarters(lambda prompts: asked.append(prompts) or reference)
    for batch in (64, 4):
        result = measure.evaluate(model, None, 2, tiny.PROMPTS, SEEDS, {"fid": fid}, batch=batch)
        images = measure.sample(model, None, 2, tiny.PROMPTS, SEEDS).flatten(0, 1)
        images = F.interpolate((images * 255).round() / 255, (8, 8), mode="bilinear")  # as from a PNG
        expected = frechet.gaussian_frechet(fitted(evaluation_worker.small_features(images)), fitted(other))
        assert result["means"]["fid"] == pytest.approx(expected, rel=1e-4) and expected > 0.1
        assert result["scores"] == {} and result["fid"] == {"pictures": 18, "reference": 40, "dimensions": 12}
    assert asked == [tuple(tiny.PROMPTS)] * 2


@pytest.fixture
def config(folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(tiny.PROMPTS + tiny.PROMPTS[:2]))

    def make(**other):
        usual = {"model": str(folder), "prompts": (str(prompts),), "steps": (2,), "seeds": 3}
        return evaluate.EvaluateConfig(**usual | {"out": tmp_path / "e.json"} | other)

    return make


def evaluated(config, model, functions):
    evaluate.run(evaluate.prepare(config, model, functions))
    return json.loads(config.out.read_text())["results"]


def test_pictures_that_are_kept_are_those_that_are_scored(config, model, functions, tmp_path):
    """As a reference, by folder or by its statistics, they are at no distance from themselves."""
    first = evaluated(config(images="keep", out=tmp_path / "first.json"), model, functions)[0]
    assert first["prompts"] == tiny.PROMPTS, "a prompt that is repeated is scored once"
    folder = tmp_path / first["pictures"]["folder"]
    for prompt, row in enumerate(first["scores"]["brightness"]):
        for seed, score in enumerate(row):
            picture = np.asarray(Image.open(folder / f"{prompt:05d}-{seed}.png")) / 255
            assert picture.mean() == pytest.approx(score, abs=2e-3)
    fid = quarters(None)
    made = reference.ReferenceConfig(folder=folder, out=tmp_path / "kept.safetensors")
    reference.run(reference.prepare(made, fid))
    assert not list(tmp_path.glob("*.parts"))
    for source in (folder, tmp_path / "kept.safetensors"):
        asked = config(metrics=("fid",), reference=source)
        (result,) = evaluated(asked, model, {"fid": quarters(None)})
        assert result["means"]["fid"] == pytest.approx(0, abs=1e-5) and result["fid"]["reference"] == 18


def test_too_few_pictures_for_a_covariance_are_told_before(config, model, capsys):
    reference = frechet.Gaussian(np.zeros(12), np.eye(12))
    evaluated(config(seeds=2), model, {"fid": quarters(lambda prompts: reference)})
    told = capsys.readouterr().out
    assert "fid: 12 pictures for 12 feature dimensions: the covariance is rank-deficient" in told
    with pytest.raises(ValueError, match="fid needs 2 pictures or more"):
        measure.evaluate(model, None, 2, ["a cat"], [0], {"fid": quarters(None)})


def test_a_feature_that_is_not_finite_names_prompt_and_seed(model):
    fid = scoring.Frechet("broken", lambda images: images.flatten(1)[:, :12] / 0 - 1e9, 12, 8, None)
    with pytest.raises(FloatingPointError, match=r"metric fid is (inf|nan) for prompt 'a cat' \(seed 0\)"):
        measure.evaluate(model, None, 1, tiny.PROMPTS, SEEDS, {"fid": fid})


def test_renders_of_the_prompts_are_the_reference_of_the_pocket_world(classifier):
    fid = scoring.Frechet("c", lambda x: scoring.pooled(classifier, x), 192, 64, None)
    there = scoring.rendered(fid, ["a cat", "two dogs"], count=9)
    assert there.count == 10 and there.mean.shape == (192,)
    assert np.array_equal(there.mean, scoring.rendered(fid, ["a cat", "two dogs"], count=9).mean)
    with pytest.raises(ValueError, match="not in the pocket world's grammar"):
        scoring.rendered(fid, ["a unicorn"])


# full scale


def tower():
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, projection_dim=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    return rewards.AestheticReward(transformers.CLIPVisionModelWithProjection(config)).eval()


def test_full_scale_loads_the_published_rewards_each_once(monkeypatch):
    loaded = []

    def fake(name, *, scale):
        loaded.append((name, scale))
        return tower() if name == "aesthetic" else torch.nn.Identity()

    monkeypatch.setattr(scoring, "load_reward", fake)
    names = ("diversity", "aesthetic", "hps-2.1", "pickscore", "sharpness")
    found = scoring.load_metrics(names, scale="full")
    assert tuple(found) == names
    assert sorted(loaded) == [("aesthetic", "full"), ("hps-2.1", "full"), ("pickscore", "full")]
    assert found["pickscore"].factor == 100 and found["hps-2.1"].factor == 100
    images, prompts = torch.rand(4, 3, 32, 32), ["a"] * 3 + ["b"]
    with torch.no_grad():
        unit = found["aesthetic"].reward.image_embeddings(images)
        scores = found["diversity"](images, prompts)
    assert scores[:3].mean().item() == pytest.approx(torch.pdist(unit[:3]).mean().item(), abs=1e-5)
    loaded.clear()
    scoring.load_metrics(["diversity"], scale="full")
    assert loaded == [("aesthetic", "full")]


def test_raw_imagereward_is_the_output_before_its_normalisation(monkeypatch):
    class Scorer(torch.nn.Module):
        mean, std = 0.167, 1.033

        def forward(self, images, prompts):
            return (images.mean((1, 2, 3)) - self.mean) / self.std

    loaded = []
    monkeypatch.setattr(scoring, "load_reward", lambda name, *, scale: loaded.append(name) or Scorer())
    images = torch.rand(3, 3, 8, 8)
    found = scoring.load_metrics(["imagereward", "imagereward-raw"], scale="full")
    assert loaded == ["imagereward"], "one network for both"
    torch.testing.assert_close(found["imagereward-raw"](images, ["a"] * 3), images.mean((1, 2, 3)))
    assert not torch.allclose(found["imagereward"](images, ["a"] * 3), images.mean((1, 2, 3)))
    found = scoring.load_metrics(["imagereward-raw"], scale="full")
    torch.testing.assert_close(found["imagereward-raw"](images, ["a"] * 3), images.mean((1, 2, 3)))


def test_fid_at_full_scale_is_on_its_own_network(monkeypatch):
    network = torch.nn.Identity()
    monkeypatch.setattr(scoring.inception, "load_inception", lambda: network)
    reference = object()
    fid = scoring.load_metrics(["fid"], scale="full", reference=reference)["fid"]
    assert (fid.network, fid.reference, fid.dimensions, fid.size) == (network, reference, 2048, 299)


def test_what_a_scale_stands_for():
    pocket = evaluate.resolved(evaluate.EvaluateConfig())
    assert pocket.model == "pocket-turbo" and pocket.metrics == scoring.DEFAULT_METRICS
    full = evaluate.resolved(
        evaluate.EvaluateConfig(scale="full", model="sd-turbo", prompts=("p.txt",), steps=(4, 1, 4))
    )
    assert full.steps == (4, 1) and "accuracy" not in full.metrics
    for given, missing in (({"model": "sd-turbo"}, "prompts"), ({"prompts": ("p.txt",)}, "model")):
        with pytest.raises(ValueError, match=f"--scale full has no {missing} of its own"):
            evaluate.resolved(evaluate.EvaluateConfig(scale="full", **given))


def test_a_full_size_model_is_evaluated_by_the_same_command(config, tmp_path, monkeypatch):
    monkeypatch.setenv("FSALIGN_HUB", str(twins.save_twin("sd-turbo", tmp_path / "hub")))
    asked = config(model="sd-turbo", scale="full", metrics=("sharpness",), steps=(1, 2), dtype="bfloat16")
    evaluate.run(evaluate.prepare(asked))
    found = json.loads(asked.out.read_text())
    assert found["config"]["scale"] == "full" and [r["steps"] for r in found["results"]] == [1, 2]
    assert all(np.isfinite(r["means"]["sharpness"]) for r in found["results"])
