"""The latent model: conversions, guidance, the reference, adapters, and loading."""

import json

import diffusers
import pytest
import torch

from fsalign_lib.kernels import build_kernel
from fsalign_lib.models import latent_model
from fsalign_lib.models import load as models
from fsalign_lib.rollout import rollout, seeded_noise
from fsalign_lib.twins import architectures
from reproduce.planner import counting
from tests import tiny


@pytest.fixture
def model(folder):
    return models.load(folder)


@pytest.fixture
def batch(model):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *model.latent_shape, generator=generator)
    return x, torch.tensor([999, 500, 20]), model.encode_prompts(tiny.PROMPTS[:3])


def nudge(model):
    with torch.no_grad():
        for p in model.trained_parameters().values():
            p.add_(0.05)


def test_predictions_agree_with_the_network_and_each_other(model, batch):
    x, t, cond = batch
    with torch.no_grad():
        eps = model.predict_eps(x, t, cond)
        assert torch.equal(eps, model.unet(x, t, cond).sample)
        x0 = model.predict_x0(x, t, cond)
        torch.testing.assert_close(model.schedule.add_noise(x0, eps, t), x, atol=1e-5, rtol=1e-5)
        one = model.predict_eps(x[:1], 999, cond[:1])
    torch.testing.assert_close(one, eps[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_prediction_types(model, batch, kind):
    x, t, cond = batch
    model.prediction_type = kind
    with torch.no_grad():
        out, x0, eps = model.unet(x, t, cond).sample, model.predict_x0(x, t, cond), model.predict_eps(x, t, cond)
    torch.testing.assert_close(model.schedule.add_noise(x0, eps, t), x, atol=1e-4, rtol=1e-4)
    expected = x0 if kind == "sample" else model.schedule.v_from_x0(x, x0, t)
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=1e-3)


def test_guidance_is_the_formula_in_one_forward(model, batch):
    x, t, cond = batch
    with torch.no_grad():
        conditional = model.predict_eps(x, t, cond)
        null = model.predict_eps(x, t, model.encode_prompts([""]).expand_as(cond))
        model.guidance_scale = 2.5
        calls = []
        handle = model.unet.register_forward_hook(lambda *_: calls.append(1))
        guided = model.predict_eps(x, t, cond)
        handle.remove()
    torch.testing.assert_close(guided, null + 2.5 * (conditional - null), atol=1e-5, rtol=1e-5)
    assert len(calls) == 1


def test_prompts_are_encoded_once(model):
    calls = []
    model.text.encoder.register_forward_hook(lambda *_: calls.append(1))
    first = model.encode_prompts(["a cat", "a dog", "a cat"])
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    assert torch.equal(model.encode_prompts(["a dog"])[0], first[1])
    assert len(calls) == 1


def test_as_many_pictures_are_decoded_at_once_as_the_stated_memory_holds(model, monkeypatch):
    """The same pictures come out; with a gradient they stay together, for the loop has cut them already."""
    sizes, decode = [], model.vae._decode
    monkeypatch.setattr(model.vae, "_decode", lambda z: sizes.append(len(z)) or decode(z))
    latents = torch.randn(5, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    assert model.pictures_at_once > 1000
    whole = model.decode(latents)
    one = 10 * model.vae.config.block_out_channels[0] * model.image_size**2 * 4
    monkeypatch.setattr(latent_model, "DECODING", 2 * one + 1)
    assert model.pictures_at_once == 2
    torch.testing.assert_close(model.decode(latents), whole, atol=1e-5, rtol=0)
    model.decode(latents.requires_grad_())
    assert sizes == [5, 2, 2, 1, 5]


@pytest.mark.parametrize("name,dtype,pictures", [("sdxl", "bfloat16", 3), ("sd-turbo", "float32", 6)])
def test_pictures_at_once_take_no_more_than_is_stated(name, dtype, pictures):
    """Counted on the meta device, at the published sizes."""
    model = architectures.meta_model(name, getattr(torch, dtype))
    assert model.pictures_at_once == pictures
    with torch.no_grad(), counting.Meter(model.vae.parameters()) as meter:
        model.decode(torch.empty(pictures, *model.latent_shape, device="meta"))
    assert 0.8 * latent_model.DECODING < max(meter.trace) <= latent_model.DECODING


def test_decode_is_in_range_and_differentiable_and_encode_has_the_latent_shape(model):
    latents = torch.randn(2, *model.latent_shape, requires_grad=True)
    images = model.decode(latents)
    assert images.shape == (2, 3, model.image_size, model.image_size)
    assert images.min() >= 0 and images.max() <= 1
    images.sum().backward()
    assert latents.grad.abs().sum() > 0
    assert model.encode(images.detach()).shape == latents.shape


@pytest.mark.parametrize("training", ["lora", "full"])
def test_reference_is_the_untrained_network(model, batch, training):
    x, t, cond = batch
    with torch.no_grad():
        before = model.predict_eps(x, t, cond)
        model.add_lora(2) if training == "lora" else model.train_all_weights()
        assert torch.equal(model.predict_eps(x, t, cond), before), "training starts at the reference"
        nudge(model)
        assert not torch.allclose(model.predict_eps(x, t, cond), before)
        with model.reference():
            assert torch.equal(model.predict_eps(x, t, cond), before)
        assert not torch.allclose(model.predict_eps(x, t, cond), before)


def test_lora_starts_from_its_seed_and_leaves_the_global_one(folder):
    def adapters(seed):
        model = models.load(folder)
        state = torch.get_rng_state()
        model.add_lora(2, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        assert all("lora" in name for name in model.trained_parameters())
        return torch.cat([p.detach().flatten() for p in model.trained_parameters().values()])

    first = adapters(1)
    assert torch.equal(first, adapters(1)) and not torch.equal(first, adapters(2))


@pytest.mark.parametrize("training", ["lora", "full"])
def test_adapter_and_pipeline_round_trips(folder, model, batch, tmp_path, training):
    x, t, cond = batch
    model.add_lora(2, 4) if training == "lora" else model.train_all_weights()
    nudge(model)
    model.save_adapter(tmp_path)
    model.save_pretrained(tmp_path / "pipeline")
    with torch.no_grad():
        trained = model.predict_eps(x, t, cond)
        again = models.load(folder)
        again.load_adapter(tmp_path)
        assert torch.equal(again.predict_eps(x, t, cond), trained)
        merged = models.load(tmp_path / "pipeline")
        torch.testing.assert_close(merged.predict_eps(x, t, cond), trained, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.predict_eps(x, t, cond), trained, atol=0, rtol=0)
    assert not list((tmp_path / "pipeline").rglob("*.bin"))


def test_sampling_equals_diffusers_own_pipeline(folder, model):
    """The whole chain (text, kernel, scaling, decoding) against StableDiffusionPipeline at one deterministic step."""
    model.save_pretrained(folder / "pipeline")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    noise = seeded_noise(0, 0, [0, 1], model.latent_shape, 2)
    theirs = pipeline(
        ["a cat", "a dog"], latents=noise[:, 0], num_inference_steps=1, guidance_scale=0.0, output_type="pt"
    ).images
    kernel = build_kernel(model.kernel, model.schedule, 1)
    with torch.no_grad():
        ours = model.decode(rollout(model, kernel, model.encode_prompts(["a cat", "a dog"]), noise).final)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_checkpoint_of_another_model_is_refused(model, tmp_path):
    other = models.load(tiny.build(tmp_path / "other", seed=1))
    other.add_lora(2)
    other.save_adapter(tmp_path)
    with pytest.raises(ValueError, match="was trained from .*other"):
        model.load_adapter(tmp_path)
    with pytest.raises(FileNotFoundError, match="no trained weights"):
        model.load_adapter(tmp_path / "nowhere")


def test_other_training_is_refused(folder, model, tmp_path):
    model.add_lora(2)
    model.save_adapter(tmp_path)
    again = models.load(folder)
    again.train_all_weights()
    with pytest.raises(ValueError, match="make them agree"):
        again.load_adapter(tmp_path)
    with pytest.raises(ValueError, match="trained already"):
        again.add_lora(2)


def test_loading_errors_say_what_to_do(folder, tmp_path):
    with pytest.raises(ValueError, match="unknown model 'sd-trubo': choose from pocket-turbo"):
        models.load("sd-trubo")
    (tmp_path / "unet").mkdir()
    with pytest.raises(FileNotFoundError, match="has no scheduler/"):
        models.load(tmp_path)
    for key, value, message in (
        ("_class_name", "UniPCMultistepScheduler", "scheduler UniPC.* is not supported"),
        ("beta_schedule", "squaredcos_cap_v2", "beta_schedule 'squaredcos_cap_v2': expected scaled_linear"),
        ("prediction_type", "flow", "prediction_type 'flow'"),
    ):
        path = tiny.build(tmp_path / key)
        (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(tiny.SCHEDULER | {key: value}))
        with pytest.raises(ValueError, match=message):
            models.load(path)


def test_pickles_are_never_loaded(tmp_path):
    path = tiny.build(tmp_path / "pickled")
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(OSError, match="safetensors"):
        models.load(path)
