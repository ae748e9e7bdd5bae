"""Each metric is in the unit that `reproduce.evaluation.metrics` says, by a computation of its own."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from fsalign_lib.pocket.captions import parse
from fsalign_lib.pocket.networks import load_classifier
from fsalign_lib.pocket.render import render
from fsalign_lib.pocket.weights import WEIGHTS
from reproduce.evaluation.metrics import METRICS, Frechet, load_metrics

PROMPTS = ["a cat"] * 3 + ["a dog"] * 3
NAMES = tuple(name for name in METRICS["pocket"] if name not in ("fid", "precision", "recall"))


@pytest.fixture(scope="module")
def pictures():
    drawn = render([parse(prompt) for prompt in PROMPTS], torch.Generator().manual_seed(0)).float() / 255
    noise = torch.rand(drawn.shape, generator=torch.Generator().manual_seed(1))
    return (0.9 * drawn + 0.1 * noise).clamp(0, 1)


@pytest.fixture(scope="module")
def loaded():
    return load_metrics(NAMES)


@pytest.fixture(scope="module")
def unit():
    """Features of the held-out classifier, of length one."""
    classifier = load_classifier(WEIGHTS, "classifier")

    @torch.no_grad()
    def features(images):
        found = classifier.resnet(images * 2 - 1).pooler_output.flatten(1)
        return found / found.norm(dim=1, keepdim=True)

    return features


def kilobytes(picture):
    file = io.BytesIO()
    Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    return len(file.getvalue()) / 1000


@pytest.mark.parametrize("name,factor", [("pickscore", 100), ("hps", 100), ("clipscore", 1)])
def test_scores_of_a_clip_are_cosines_of_their_scale(loaded, pictures, name, factor):
    clip = loaded[name].reward
    with torch.no_grad():
        scores = loaded[name](pictures, PROMPTS)
        for row, prompt in enumerate(PROMPTS):
            picture, text = clip.image_embeddings(pictures[row : row + 1])[0], clip.text_embeddings([prompt])[0]
            cosine = (picture @ text / (picture.norm() * text.norm())).item()
            assert -1 <= cosine <= 1 and scores[row].item() == pytest.approx(factor * cosine, rel=1e-4, abs=1e-5)


def test_rewards_of_their_own_scale_are_as_the_library_gives_them(loaded, pictures):
    for name in ("imagereward", "aesthetic"):
        with torch.no_grad():
            torch.testing.assert_close(loaded[name](pictures, PROMPTS), loaded[name].reward(pictures, PROMPTS))


def test_jpeg_is_in_kilobytes_and_signed(loaded, pictures):
    sizes = [kilobytes(picture) for picture in pictures]
    assert loaded["jpeg-incompressibility"](pictures, PROMPTS).tolist() == pytest.approx(sizes)
    assert loaded["jpeg-compressibility"](pictures, PROMPTS).tolist() == pytest.approx([-size for size in sizes])


def test_shares_are_of_one(loaded, pictures):
    assert set(loaded["accuracy"](pictures, PROMPTS).tolist()) <= {0.0, 1.0}
    assert loaded["accuracy"](pictures, PROMPTS).mean() > loaded["accuracy"](pictures, PROMPTS[::-1]).mean()


def test_distances_within_a_prompt_are_between_unit_features(loaded, pictures, unit):
    features = unit(pictures)
    for row in range(6):
        others = [i for i in range(row // 3 * 3, row // 3 * 3 + 3) if i != row]
        expected = np.mean([(features[row] - features[i]).norm().item() for i in others])
        assert loaded["diversity"](pictures, PROMPTS)[row].item() == pytest.approx(expected, rel=1e-4)


def test_effective_numbers_are_of_pictures(loaded, pictures, unit):
    f = unit(pictures[:3]).double()
    shares = torch.linalg.eigvalsh(f @ f.T / 3).clamp_min(1e-15)
    expected = math.exp(-(shares * shares.log()).sum())
    found = loaded["vendi"](pictures, PROMPTS)
    assert found[:3].tolist() == pytest.approx([expected] * 3, rel=1e-4) and 1 <= expected <= 3
    same = pictures[:1].expand(6, -1, -1, -1)
    assert loaded["vendi"](same, PROMPTS).tolist() == pytest.approx([1.0] * 6, rel=1e-4)
    assert all(0 <= number <= 3 for number in loaded["modes"](pictures, PROMPTS).tolist())


def test_sharpness_is_a_mean_square_of_differences(loaded):
    steps = torch.zeros(1, 3, 4, 4)
    steps[..., 2:] = 0.5  # one of the three differences of each row
    assert loaded["sharpness"](steps, ["a cat"]).tolist() == pytest.approx([0.25 / 3])


def test_features_of_fid_are_of_pictures_in_whole_bytes():
    seen = []
    fid = Frechet("name", lambda x: seen.append(x) or x.flatten(1), 3 * 64 * 64, 64, None)
    picture = torch.rand(1, 3, 64, 64)
    fid.features(picture)
    torch.testing.assert_close(seen[0] * 255, (picture * 255).round())
    assert 0 <= seen[0].min() and seen[0].max() <= 1
