"""Diversity and coverage: precision and recall against loops over definitions, modes and Vendi scores by prompt."""

import numpy as np
import pytest
import torch

from fsalign_lib.metrics.features import cosine_kernel, vendi_score
from fsalign_lib.metrics.precision_recall import in_manifold
from fsalign_lib.models import load as models
from fsalign_lib.pocket import networks
from fsalign_lib.pocket.captions import ANIMALS, parse
from fsalign_lib.pocket.render import render
from reproduce.evaluation import diversity
from reproduce.evaluation import metrics as scoring
from reproduce.evaluation import scores as measure
from tests import tiny


def by_definition(points, samples, k):
    """One ball after the other."""
    found = []
    for p in points:
        inside = False
        for j, s in enumerate(samples):
            others = sorted(np.linalg.norm(s - o) for i, o in enumerate(samples) if i != j)
            inside |= np.linalg.norm(p - s) <= others[k - 1]
        found.append(inside)
    return found


@pytest.mark.parametrize("k", [1, 3])
def test_manifold_by_definition(k):
    rng = np.random.default_rng(0)
    points, samples = rng.normal(size=(40, 3)), rng.normal(size=(25, 3)) + 0.5
    found = in_manifold(points, samples, k)
    assert found.tolist() == by_definition(points, samples, k) and 0 < found.mean() < 1
    assert found.tolist() != by_definition(points, samples, k + 1), "the k-th neighbour and no other"
    # The radius is that of the set's own balls, not of the point's.
    assert in_manifold(samples, points, k).mean() != pytest.approx(found.mean())


def test_precision_and_recall_of_what_is_known():
    """Of two modes one is dropped: all that is drawn is right, and half is missing."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 2)) * 0.1 + np.repeat([[0, 0], [5, 5]], 200, axis=0)
    one = rng.normal(size=(400, 2)) * 0.1
    assert in_manifold(one, real).mean() > 0.95
    assert in_manifold(real, one).mean() == pytest.approx(0.5, abs=0.03)
    assert in_manifold(real, real).all(), "a sample is in its own ball"
    equal = np.ones((5, 2))
    assert in_manifold(equal, equal).all() and not in_manifold(equal + 1e-9, equal).any()


@pytest.mark.parametrize(
    "points,samples,k,message",
    [
        (np.zeros((3, 2)), np.zeros((3, 2)), 3, "k = 3 with 3 samples"),
        (np.zeros((3, 2)), np.zeros((5, 3)), 1, "2 and 3 dimensions"),
        (np.full((3, 2), np.nan), np.zeros((5, 2)), 1, "every value finite"),
    ],
)
def test_manifold_names_bad_input(points, samples, k, message):
    with pytest.raises(ValueError, match=message):
        in_manifold(points, samples, k)


def test_vendi_is_of_each_prompt():
    features = torch.rand(5, 7)
    found = diversity.vendi(features, ["a", "b", "a", "b", "b"])
    a, b = (vendi_score(cosine_kernel(features[rows])) for rows in ([0, 2], [1, 3, 4]))
    assert found.tolist() == pytest.approx([a, b, a, b, b])


def test_background_is_the_octant_of_the_frame():
    images = torch.zeros(3, 3, 16, 16)
    images[1] = torch.tensor([0.9, 0.7, 0.95])[:, None, None]
    images[2] = images[1]
    images[2, :, 3:-3, 3:-3] = 1  # what stands inside does not matter
    assert diversity.background(images).tolist() == [0, 5, 5]


def test_rendered_backgrounds_are_spread_as_they_are_drawn():
    facts = [parse("a cat")] * 400 + [parse("four wolves")] * 400
    pictures = render(facts, torch.Generator().manual_seed(0)) / 255
    share = torch.bincount(diversity.background(pictures), minlength=8) / len(facts)
    assert (share - 1 / 8).abs().max() < 5 * (1 / 8 * 7 / 8 / len(facts)) ** 0.5


def test_modes_count_backgrounds_behind_the_right_animal(monkeypatch):
    light, dark = torch.full((3, 16, 16), 0.9), torch.full((3, 16, 16), 0.7)
    images = torch.stack([light, light, dark, light, dark, dark, light, dark])
    prompts = ["a cat"] * 3 + ["a cat and a dog"] * 3 + ["a dog on the moon"] * 2
    seen = ["cat", "cat", "dog", "cat", "dog", "fox", "dog", "dog"]
    monkeypatch.setattr(diversity, "classify", lambda net, x: torch.tensor([ANIMALS.index(a) for a in seen]))
    found = diversity.modes(None, images, prompts)
    assert found[:6].tolist() == [1, 1, 1, 2, 2, 2], "a dog behind which it is dark is no cat; either of two will do"
    assert found[6:].isnan().all(), "a place is the background"


def test_recall_and_precision_of_pictures(folder):
    """Features kept over batches, scores by place, and the renders that they are held to."""
    asked = []

    def network(images):
        return images.unflatten(2, (2, -1)).unflatten(4, (2, -1)).mean((3, 5)).flatten(1) - 0.4

    def references(prompts, count):
        asked.append((prompts, count))
        return torch.nn.functional.normalize(
            torch.rand(len(prompts) * count, 12, generator=torch.Generator().manual_seed(0)) - 0.4, dim=1
        )

    metrics = {kind: diversity.PrecisionRecall(kind, network, references) for kind in ("precision", "recall")}
    model = models.load(folder)
    pictures = measure.sample(model, None, 1, tiny.PROMPTS, range(3)).flatten(0, 1)
    real, drawn = references(tuple(tiny.PROMPTS), 3), metrics["recall"].features(pictures)
    for batch in (4, 64):
        found = measure.evaluate(model, None, 1, tiny.PROMPTS, range(3), metrics, batch=batch)
        assert np.ravel(found["scores"]["recall"]).tolist() == in_manifold(real, drawn).tolist()
        assert np.ravel(found["scores"]["precision"]).tolist() == in_manifold(drawn, real).tolist()
        assert found["means"]["recall"] == pytest.approx(in_manifold(real, drawn).mean())
    assert set(asked) == {(tuple(tiny.PROMPTS), 3)}


def test_of_rendered_scenes_recall_is_high_and_of_one_scene_low(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(scoring, "load_classifier", lambda *_: networks.classifier(len(ANIMALS)).eval())
    found = scoring.load_metrics(["precision", "recall", "vendi", "modes"])
    prompts = ["a cat", "a red colored dog", "four wolves"]
    facts = [parse(prompt) for prompt in prompts for _ in range(8)]
    scenes = render(facts, torch.Generator().manual_seed(5)) / 255
    same = scenes.unflatten(0, (3, 8))[:, :1].expand(-1, 8, -1, -1, -1).flatten(0, 1)
    wide, narrow = (measure.score(x.unflatten(0, (3, 8)), prompts, range(8), found) for x in (scenes, same))
    recall = [found["recall"].scores(x["recall"], prompts, 8).mean() for x in (wide, narrow)]
    assert recall[0] > 0.5 > recall[1]
    assert (wide["vendi"] > narrow["vendi"]).all() and narrow["vendi"].max() == pytest.approx(1, abs=1e-6)


def test_what_cannot_be_told_is_said(folder):
    with pytest.raises(ValueError, match="vendi needs 2 seeds or more"):
        measure.check(["a cat"], [0], ["vendi"])
    with pytest.raises(ValueError, match="precision and recall need more than 3 pictures"):
        measure.check(["a cat"], [0, 1], ["recall"])
    with pytest.raises(ValueError, match="'modes' is of pocket scale only"):
        scoring.check_names(["modes"], "full", False)
    with pytest.raises(ValueError, match="not in the pocket world's grammar"):
        measure.check(["a unicorn"], [0, 1], ["modes"])
