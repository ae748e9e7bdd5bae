"""Rewards and decoder in half precision: scores as near to float32 as HALF_AGREES says, gradients in one direction."""

import pytest
import torch

from fsalign_lib.models.load import load
from fsalign_lib.models.presets import POCKET
from fsalign_lib.rewards import HALF_AGREES, load_reward
from fsalign_lib.rollout import rollout, seeded_noise
from fsalign_lib.twins.models import save_twin

PROMPTS = ["a cat", "a red colored dog", "a fox on the moon"]
EACH = 4  # pictures of a prompt
SCORES = ("pickscore", "clipscore", "hps", "imagereward", "aesthetic")
built = pytest.mark.skipif(not POCKET.is_dir(), reason="the pocket world is not built")


@pytest.fixture(scope="module")
def sampled():
    model = load("pocket-turbo")
    names = [prompt for prompt in PROMPTS for _ in range(EACH)]
    noise = seeded_noise(0, 0, range(len(names)), model.latent_shape, 3)
    latents = rollout(model, model.sampler(2), model.encode_prompts(names), noise).final
    return latents, names, model.decode(latents)


# float16 takes a CPU two seconds a picture.
@built
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_scores_agree_within_the_stated_bound(dtype, sampled):
    latents, names, exact = sampled
    with torch.no_grad():
        pictures = load("pocket-turbo", frozen_dtype=dtype).decode(latents)
        assert not torch.equal(pictures, exact)
        for name in SCORES:
            whole, half = load_reward(name)(exact, names), load_reward(name, dtype=dtype)(pictures, names)
            assert half.dtype == torch.float32
            within = whole.view(-1, EACH).std(1).mean()
            assert 0 < (half - whole).abs().max() < HALF_AGREES[dtype] * within, name


@built
def test_the_gradient_through_reward_and_decoder_keeps_its_direction_in_bfloat16(sampled):
    latents, names, _ = (some[::EACH] for some in sampled)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        x, reward = latents.clone().requires_grad_(), load_reward("imagereward", dtype=dtype)
        score = reward(load("pocket-turbo", frozen_dtype=dtype).decode(x, through_clamp=True), names).sum()
        gradients.append(torch.autograd.grad(score, x)[0].flatten(1))
    assert torch.cosine_similarity(*gradients).min() > 0.995
    assert 0.9 < (gradients[1].norm() / gradients[0].norm()) < 1.1


def test_an_autoencoder_that_overflows_is_not_loaded_in_float16(tmp_path):
    """SDXL's own says so in its configuration; the presets' does not."""
    save_twin("sdxl-turbo", tmp_path)
    own = tmp_path / "stabilityai" / "sdxl-turbo"
    for name, given, expected in (
        (own, torch.float16, torch.float32),
        (own, torch.bfloat16, torch.bfloat16),
        ("sdxl-turbo", torch.float16, torch.float16),
    ):
        model = load(name, given, hub=tmp_path)
        assert (model.dtype, model.vae.dtype) == (given, expected)
        assert {encoder.dtype for encoder in model.text.modules} == {given}
    model = load("sdxl-turbo", hub=tmp_path, frozen_dtype=torch.float16)
    assert (model.dtype, model.vae.dtype) == (torch.float32, torch.float16)
