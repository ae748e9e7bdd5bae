"""Evaluation: what is scored, the same noise for every model, and intervals that know what varies."""

import json

import numpy as np
import pytest
import torch

import evaluate
import runs
import scoring
import tiny
import train_online
from fsalign_lib import metrics, models
from fsalign_lib.pocket import networks
from fsalign_lib.pocket.captions import ANIMALS

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("tiny"))


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
    return evaluate.evaluate(model, None, 2, tiny.PROMPTS, SEEDS, functions)


def test_each_picture_has_its_score(model, result):
    images = evaluate.sample(model, None, 2, tiny.PROMPTS, SEEDS)
    assert images.shape == (6, 3, 3, 32, 32)
    expected = images.mean((2, 3, 4))
    torch.testing.assert_close(torch.tensor(result["scores"]["brightness"]), expected, atol=1e-5, rtol=0)
    assert result["means"]["brightness"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert json.loads(json.dumps(result)) == result


def test_scores_do_not_depend_on_the_batch_or_on_the_other_prompts(model, functions, result):
    one = evaluate.evaluate(model, None, 2, tiny.PROMPTS[2:3], SEEDS, functions, batch=1)
    for name in functions:
        assert one["scores"][name][0] == pytest.approx(result["scores"][name][2], abs=1e-4)


def test_noise_is_of_the_prompt_and_the_seed():
    noise = evaluate.picture_noise(["a cat", "a dog"], [0, 1], (4, 8, 8), 3)
    assert torch.equal(noise[1, 1], evaluate.picture_noise(["a dog"], [1], (4, 8, 8), 3)[0, 0])
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
    assert scores[:3].mean().item() == pytest.approx(metrics.mean_pairwise_distance(unit[:3]), abs=1e-5)
    assert scores[3:].tolist() == pytest.approx([(unit[3] - unit[4]).norm().item()] * 2, abs=1e-5)


def test_a_metric_that_says_nothing_is_null(model, functions):
    prompts = ["a cat", "a cat and a dog"]
    result = evaluate.evaluate(model, None, 1, prompts, SEEDS, functions)
    assert result["scores"]["accuracy"][1] == [None] * 3
    assert result["means"]["accuracy"] == np.mean(result["scores"]["accuracy"][0])


def shifted(result, by):
    scores = {"brightness": (np.array(result["scores"]["brightness"]) + by).tolist()}
    return {**result, "scores": scores}


def test_comparisons_are_paired(result):
    interval = evaluate.compare(shifted(result, 0.25), result, "brightness")
    assert interval == pytest.approx((0.25, 0.25, 0.25))
    three = evaluate.compare([shifted(result, by) for by in (0.1, 0.2, 0.3)], result, "brightness")
    assert three.estimate == pytest.approx(0.2) and 0.1 - 1e-9 <= three.low < 0.2 < three.high <= 0.3 + 1e-9


def test_only_what_matches_is_compared(result):
    for key, value in (("seeds", [5, 6, 7]), ("steps", 1), ("prompts", ["a cat"] * 6)):
        with pytest.raises(ValueError, match=f"other {key}: evaluate both alike"):
            evaluate.compare({**result, key: value}, result, "brightness")
    with pytest.raises(ValueError, match="2 runs against 3"):
        evaluate.compare([result] * 2, [result] * 3, "brightness")


@pytest.mark.parametrize("runs_", [1, 3])
def test_interval_covers_as_often_as_it_says(runs_):
    """Effects of the run (if there are several), of the prompt and of the picture; the truth is 0."""
    rng, covered, spread = np.random.default_rng(0), 0, [0.0, 0.3][runs_ > 1]
    for trial in range(200):
        run, prompt = rng.normal(size=(runs_, 1, 1)) * spread, rng.normal(size=(1, 40, 1))
        data = run + prompt + rng.normal(size=(runs_, 40, 4))
        covered += not evaluate.crossed_interval(data, resamples=400, seed=trial).excludes(0)
    assert covered / 200 > (0.9 if runs_ == 1 else 0.83), "three runs are few for a bootstrap"


def test_interval_without_the_runs_would_be_too_narrow():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(3, 1, 1)) + 0.1 * rng.normal(size=(3, 40, 4))
    good = evaluate.crossed_interval(data)
    naive = metrics.paired_bootstrap(data.ravel(), 0 * data.ravel(), np.tile(np.repeat(np.arange(40), 4), 3))
    assert good.high - good.low > 5 * (naive.high - naive.low)
    single = evaluate.crossed_interval(data[:1])
    grouped = metrics.paired_bootstrap(data[0].ravel(), 0 * data[0].ravel(), np.repeat(np.arange(40), 4))
    assert single == pytest.approx(grouped, abs=2e-3), "with one run it is the bootstrap over prompts"


def test_a_checkpoint_is_compared_with_its_base(folder, functions, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(tiny.PROMPTS))
    small = {"model": str(folder), "prompts": str(prompts), "rounds": 1, "pairs": 2, "minibatch": 2, "lr": 1e-3}
    training = runs.make_config(train_online.OnlineConfig, "pso-online", out=tmp_path / "run", **small)
    train_online.run(train_online.prepare(training, reward=tiny.brightness))
    config = evaluate.EvaluateConfig(
        model=str(folder), checkpoint=tmp_path / "run", prompts=(str(prompts),), steps=(2,), out=tmp_path / "e.json"
    )
    evaluate.run(evaluate.prepare(config, metrics=functions))
    content = json.loads((tmp_path / "e.json").read_text())
    assert {"command", "config", "commit", "versions", "device", "wall_seconds", "peak_memory_mb"} <= content.keys()
    (found,) = content["results"]
    plain = evaluate.evaluate(models.load(folder), None, 2, tiny.PROMPTS, range(4), functions)
    assert found["base"]["scores"] == plain["scores"], "the reference is the model as it was loaded"
    gain = found["means"]["brightness"] - plain["means"]["brightness"]
    assert gain != 0 and found["above_base"]["brightness"]["estimate"] == pytest.approx(gain)
    assert "above base" in capsys.readouterr().out


def test_bad_input_is_told_before_any_sampling(folder, model, functions, tmp_path):
    with pytest.raises(ValueError, match="unknown metric 'beauty': choose from pickscore"):
        scoring.load_metrics(["beauty"])
    with pytest.raises(ValueError, match="0 prompts"):
        evaluate.evaluate(model, None, 2, [], SEEDS, functions)
    with pytest.raises(ValueError, match="diversity needs 2 seeds"):
        evaluate.evaluate(model, None, 2, tiny.PROMPTS, [0], functions)
    with pytest.raises(ValueError, match="'a unicorn' is not in the pocket world's grammar"):
        evaluate.evaluate(model, None, 2, ["a unicorn"], SEEDS, functions)
    config = evaluate.EvaluateConfig(model=str(folder), checkpoint=tmp_path)
    with pytest.raises(FileNotFoundError, match="no trained weights"):
        evaluate.prepare(config, metrics=functions)
    with pytest.raises(ValueError, match="num_steps = 0"):
        evaluate.prepare(evaluate.EvaluateConfig(model=str(folder), steps=(0,)), metrics=functions)


def test_a_score_that_is_not_finite_names_prompt_and_seed(model):
    broken = {"broken": lambda images, prompts: torch.tensor([1.0, float("inf")] + [1.0] * (len(prompts) - 2))}
    with pytest.raises(FloatingPointError, match=r"metric broken is inf for prompt 'a cat' \(seed 1\)"):
        evaluate.evaluate(model, None, 1, tiny.PROMPTS, SEEDS, broken)
