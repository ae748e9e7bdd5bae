"""The published models, on small random twins of them: loading, conditioning, times; against diffusers' pipelines."""

import diffusers
import pytest
import sentencepiece
import torch
from peft import LoraConfig

from fsalign_lib import twins
from fsalign_lib.models import edm
from fsalign_lib.models import load as models
from fsalign_lib.models.conditioning import Conditioning
from fsalign_lib.models.latent_model import ATTENTION
from fsalign_lib.models.presets import FP16_VAE, PRESETS, SDXL, split
from fsalign_lib.rollout import rollout, seeded_noise, step_log_probs
from fsalign_lib.twins import architectures
from reproduce import train_online
from reproduce.recipes import make_config
from tests import tiny

PROMPTS = ["a cat", "a dog on the moon"]
HOSTED = [name for name, preset in PRESETS.items() if isinstance(preset.pipeline, str)]
TURBO, LCM = [999, 749, 499, 249], [999, 759, 499, 259]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for name in HOSTED:
        twins.save_twin(name, folder)
    return folder


@pytest.mark.parametrize(
    "name,kernel,times,guidance,image_size",
    [
        ("sd-turbo", "EulerAncestral", TURBO, 1, 64),
        ("sdxl-turbo", "EulerAncestral", TURBO, 1, 64),
        ("sdxl-dmd2", "Renoise", TURBO, 1, 64),
        ("sdxl-dmd2-lora", "Renoise", TURBO, 1, 64),
        ("sdxl-dmd2-1step", "Renoise", [399], 1, 64),
        ("sdxl-lcm", "Renoise", LCM, 8, 64),
        ("sdxl-lcm-lora", "Renoise", LCM, 1, 64),
        ("lcm-dreamshaper-v7", "Renoise", LCM, 8, 64),
        ("sdxl", "DDIM", TURBO, 5, 64),
        ("pixart-alpha", "DDIM", TURBO, 4.5, 64),
    ],
)
def test_every_preset_has_its_sampler(hub, name, kernel, times, guidance, image_size):
    model = models.load(name, hub=hub)
    sampler = model.sampler(len(times))
    assert type(sampler).__name__ == kernel and sampler.timesteps.tolist() == times
    assert model.guidance_scale == guidance and model.image_size == image_size
    assert model.prediction_type == "epsilon" and {p.dtype for p in model.unet.parameters()} == {torch.float32}
    assert HOSTED == [n for n in PRESETS if not n.startswith("pocket")], "a preset that is not tested here"


def published_pipeline(name, hub):
    """As the model cards do it, with diffusers alone."""
    kind = diffusers.StableDiffusionXLPipeline
    if name == "pixart-alpha":
        pipeline = diffusers.PixArtAlphaPipeline.from_pretrained(hub / PRESETS[name].pipeline)
    elif name in ("sd-turbo", "lcm-dreamshaper-v7"):
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            hub / PRESETS[name].pipeline, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    elif name == "sdxl-turbo":
        pipeline = kind.from_pretrained(hub / PRESETS[name].pipeline)
    else:
        pipeline = kind.from_pretrained(hub / SDXL)
    if name == "sdxl-lcm":
        pipeline.unet = diffusers.UNet2DConditionModel.from_pretrained(hub / PRESETS[name].network)
    elif name in ("sdxl-dmd2", "sdxl-dmd2-1step"):
        pipeline.unet.load_state_dict(torch.load(hub / PRESETS[name].network, weights_only=True))
    elif PRESETS[name].lora:
        repository, file = split(PRESETS[name].lora)
        pipeline.load_lora_weights(hub / repository, weight_name=file)
    if "turbo" in name:
        pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    elif name in ("sdxl", "pixart-alpha"):
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=False, clip_sample=False
        )
    else:
        pipeline.scheduler = diffusers.LCMScheduler.from_config(pipeline.scheduler.config)
    if PRESETS[name].vae:
        pipeline.vae = diffusers.AutoencoderKL.from_pretrained(hub / FP16_VAE)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampled_by_diffusers(name, pipeline, noise, monkeypatch, steps):
    draws = iter(noise[:, 1:].unbind(1))
    for module in ("euler_ancestral_discrete", "lcm"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{module}.randn_tensor", lambda *_, **__: next(draws))
    how = {"num_inference_steps": steps}
    if "dmd2" in name:
        how = {"timesteps": TURBO if steps == 4 else [399]}
    if name == "pixart-alpha":
        how |= {"clean_caption": False, "use_resolution_binning": False}
    guidance = {"sdxl": 5.0, "pixart-alpha": 4.5, "sdxl-lcm": 8.0, "lcm-dreamshaper-v7": 8.0}.get(name, 0.0)
    return pipeline(PROMPTS, latents=noise[:, 0], guidance_scale=guidance, output_type="latent", **how).images


@pytest.mark.parametrize("name", HOSTED)
def test_rollouts_equal_diffusers_own_pipelines(hub, name, monkeypatch):
    """Text encoders, micro-conditioning, guidance, times, kernel, scaling, decoding: the whole chain."""
    model = models.load(name, hub=hub)
    steps = 1 if name == "sdxl-dmd2-1step" else 4
    noise = seeded_noise(0, 0, [0, 1], model.latent_shape, steps + 1)
    with torch.no_grad():
        final = rollout(model, model.sampler(steps, eta=0.0), model.encode_prompts(PROMPTS), noise).final
        pipeline = published_pipeline(name, hub)
        theirs = sampled_by_diffusers(name, pipeline, noise, monkeypatch, steps)
        torch.testing.assert_close(final, theirs, atol=1e-4, rtol=1e-4)
        pictures = pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample
        pictures = pipeline.image_processor.postprocess(pictures, output_type="pt")
        torch.testing.assert_close(model.decode(final), pictures, atol=1e-4, rtol=1e-4)


def test_the_comparison_sees_each_part_of_the_condition(hub):
    """Were one of them wrong, the test above would fail: each moves the latents by more than its tolerance."""
    model = models.load("sdxl-lcm", hub=hub)
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = model.encode_prompts(PROMPTS)

    def moved(other=cond):
        with torch.no_grad():
            return (model.predict_x0(x, 999, other) - right).abs().max()

    with torch.no_grad():
        right = model.predict_x0(x, 999, cond)
    assert moved(cond[[1, 0]]) > 1e-3
    for name in ("text_embeds", "time_ids"):
        assert moved(Conditioning(cond.text, cond.extra | {name: cond.extra[name] * 0})) > 1e-3, name
    model.guidance_scale = 7.0
    assert moved() > 1e-3
    second, words = model.text.modules[1], model.text.tokenizers[1]
    last = second(words(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids)
    wrong = torch.cat([cond.text[..., : twins.WIDTH], last.last_hidden_state], -1)
    model.guidance_scale = 8.0
    assert moved(Conditioning(wrong, cond.extra)) > 1e-3


def test_conditioning_is_handled_like_a_tensor(hub):
    cond = models.load("sdxl-turbo", hub=hub).encode_prompts([*PROMPTS, PROMPTS[0]])
    assert len(cond) == 3 and cond.text.shape == (3, twins.TEXT_LENGTH, 2 * twins.WIDTH)
    assert cond.extra["text_embeds"].shape == (3, twins.WIDTH)
    assert cond.extra["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * 3
    assert torch.equal(cond[torch.tensor([2])].text, cond.text[:1])
    twice = cond.repeat_interleave(2, 0)
    assert torch.equal(twice.text[1], cond.text[0]) and torch.equal(
        twice.extra["text_embeds"][2], twice[3].extra["text_embeds"]
    )
    assert cond.to(torch.float64).extra["time_ids"].dtype == torch.float64
    with pytest.raises(ValueError, match="dim = 1"):
        cond.repeat_interleave(2, 1)


def test_guidance_of_the_teacher_is_one_forward_with_zeros_for_no_prompt(hub):
    model = models.load("sdxl", hub=hub)
    x, cond = torch.randn(2, *model.latent_shape), model.encode_prompts(PROMPTS)
    null = model.null(2)
    assert null.text.abs().max() == 0 and null.extra["text_embeds"].abs().max() == 0
    assert torch.equal(null.extra["time_ids"], cond.extra["time_ids"])
    calls = []
    model.unet.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        guided = model.predict_eps(x, 500, cond)
        assert len(calls) == 1
        model.guidance_scale = 1.0
        conditional, unconditional = model.predict_eps(x, 500, cond), model.predict_eps(x, 500, null)
    torch.testing.assert_close(guided, unconditional + 5 * (conditional - unconditional), atol=1e-5, rtol=1e-5)
    assert model.text.null().text.shape == (1, twins.TEXT_LENGTH, 2 * twins.WIDTH)
    model.text.zero_null = False
    assert torch.equal(model.text.null().text, model.encode_prompts([""]).text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_in_the_network(hub, dtype):
    model = models.load("sdxl-turbo", dtype=dtype, hub=hub)
    cond, kernel = model.encode_prompts(PROMPTS), model.sampler(4)
    trajectory = rollout(model, kernel, cond, seeded_noise(0, 0, [0, 1], model.latent_shape, 5))
    assert {p.dtype for part in (model.unet, model.vae, *model.text.modules) for p in part.parameters()} == {dtype}
    assert cond.text.dtype == dtype and model.decode(trajectory.final).dtype == torch.float32
    assert {trajectory.states.dtype, trajectory.x0_hat.dtype, trajectory.log_prob.dtype} == {torch.float32}
    model.add_lora(2)
    assert {p.dtype for p in model.trained_parameters().values()} == {torch.float32}
    logp = step_log_probs(model, kernel, trajectory, cond, (0, 1, 2))
    torch.testing.assert_close(logp, trajectory.log_prob[:, :3], atol=2e-2, rtol=0)
    logp.sum().backward()
    assert any(p.grad.abs().sum() > 0 for p in model.trained_parameters().values())
    full = models.load("sdxl-turbo", hub=hub)
    x = trajectory.states[:, 1] / 5
    with torch.no_grad():
        exact = full.predict_eps(x, 749, full.encode_prompts(PROMPTS))
    torch.testing.assert_close(model.predict_eps(x, 749, cond), exact, atol=5e-2, rtol=5e-2)


def test_one_round_of_online_training_on_sdxl(hub, tmp_path, monkeypatch):
    """The loop takes the two text encoders' condition as it takes a tensor; its result goes back into a pipeline."""
    monkeypatch.setenv("FSALIGN_HUB", str(hub))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    settings = {"out": tmp_path / "run", "prompts": str(prompts), "rounds": 1, "pairs": 2, "minibatch": 2, "lr": 1e-3}
    # To be compared to the bit with what is saved and loaded.
    settings |= {"dtype": "float32", "frozen_dtype": "float32"}
    config = make_config(train_online.OnlineConfig, "pso-online", "full", model="sdxl-turbo", rank=2, **settings)
    setup = train_online.prepare(config, reward=tiny.brightness)
    (record,) = train_online.train(setup)
    assert record["gradient"] > 0
    model = setup.model
    x, cond = torch.randn(1, *model.latent_shape), model.encode_prompts(PROMPTS[:1])
    whole = models.load("sdxl-turbo")  # the run has dropped its text encoders
    whole.load_adapter(tmp_path / "run" / "checkpoints" / "000001")
    whole.save_pretrained(tmp_path / "pipeline")
    merged = models.load(tmp_path / "pipeline")
    with torch.no_grad():
        trained, before = model.predict_eps(x, 999, cond), models.load("sdxl-turbo").predict_eps(x, 999, cond)
        with model.reference():
            assert torch.equal(model.predict_eps(x, 999, cond), before)
        torch.testing.assert_close(merged.predict_eps(x, 999, merged.encode_prompts(PROMPTS[:1])), trained)
        assert not torch.equal(trained, before)


def test_pixart_takes_adapters_though_diffusers_has_none_for_it(hub, tmp_path):
    model = models.load("pixart-alpha", hub=hub)
    cond = model.encode_prompts(PROMPTS)
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.predict_eps(x, 500, cond)
    model.add_lora(2)
    assert torch.equal(model.predict_eps(x, 500, cond), before), "B = 0"
    model.predict_eps(x, 500, cond).square().mean().backward()
    trained = model.trained_parameters()
    assert trained and all(p.grad is not None for p in trained.values())
    assert not any(p.requires_grad for name, p in model.unet.named_parameters() if name not in trained)
    with torch.no_grad():
        for p in trained.values():
            p += 0.05
        moved = model.predict_eps(x, 500, cond)
        with model.reference():
            assert torch.equal(model.predict_eps(x, 500, cond), before)
    model.save_pretrained(tmp_path / "merged")
    merged = models.load(tmp_path / "merged", hub=hub)
    assert (moved - before).abs().max() > 1e-3
    merged.guidance_scale = model.guidance_scale
    with torch.no_grad():
        torch.testing.assert_close(merged.predict_eps(x, 500, cond), moved, atol=1e-4, rtol=1e-4)


def test_edm_form_is_the_vp_prediction_at_the_levels_of_the_schedule(hub):
    model = models.load("pixart-alpha", hub=hub)
    cond, t = model.encode_prompts(PROMPTS), torch.tensor([700, 20])
    sigma = model.schedule.sigma(t)
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    x = sigma.float().view(-1, 1, 1, 1) * noise
    with torch.no_grad():
        right = model.predict_x0(model.schedule.ve_to_vp(x, t), t, cond)
        torch.testing.assert_close(edm.denoise(model, x, sigma, cond), right, atol=1e-4, rtol=1e-4)
        unscaled = x - sigma.float().view(-1, 1, 1, 1) * model.predict_eps(x, t, cond)
        assert (unscaled - right).abs().max() > 1e-2, "the network wants x / sqrt(sigma^2 + 1)"
    start = (edm.SIGMA_INIT * noise).requires_grad_()
    edm.denoise(model, start, edm.SIGMA_INIT, cond).sum().backward()
    assert start.grad.abs().sum() > 0


def test_pixart_does_not_see_padding_and_has_its_own_noise_levels(hub):
    model = models.load("pixart-alpha", hub=hub)
    cond, x = model.encode_prompts(PROMPTS), torch.randn(2, *model.latent_shape)
    mask = cond.extra["mask"]
    assert mask.shape == (2, 120) and mask[0].sum() < mask[1].sum() < 120
    other = Conditioning(torch.where(mask[..., None] == 0, 7.0, cond.text), cond.extra)
    with torch.no_grad():
        torch.testing.assert_close(model.predict_eps(x, 500, other), model.predict_eps(x, 500, cond))
    low, below, high = model.schedule.sigma(torch.tensor([0, 998, 999])).tolist()
    assert low == pytest.approx(0.01, rel=1e-3) and high == pytest.approx(157.4, rel=1e-3)
    assert (below + high) / 2 == pytest.approx(156.6155, abs=1e-3), "what DI++ App. C prints"


def test_t5s_published_vocabulary_is_read_as_sentencepiece_reads_it(hub):
    """It is published as SentencePiece's own file, which transformers converts."""
    folder = hub / PRESETS["pixart-alpha"].pipeline / "tokenizer"
    assert {path.name for path in folder.iterdir()} == {"spiece.model", "tokenizer_config.json"}
    tokenizer = models.load("pixart-alpha", hub=hub).text.tokenizer
    original = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
    end, extra = original.eos_id(), original.get_piece_size()
    for text in ("a cat on the moon", "two  dogs, 4k!", "ﬁne café ①", ""):
        assert tokenizer(text).input_ids == [*original.encode(text), end], text
    assert tokenizer.pad_token_id == original.pad_id() == 0 and len(tokenizer) == extra + 100
    assert original.encode("ﬁ①") == original.encode("fi1"), "the file normalises"


def test_lcm_and_dmd2_keep_their_times_in_a_saved_pipeline(hub, tmp_path):
    for name, times in (("sdxl-dmd2", TURBO), ("sdxl-lcm", LCM)):
        models.load(name, hub=hub).save_pretrained(tmp_path / name)
        again = models.load(tmp_path / name)
        assert again.kernel == "renoise" and again.sampler(4).timesteps.tolist() == times
        again.scheduler.set_timesteps(4)
        assert again.scheduler.timesteps.tolist() == times


@pytest.mark.parametrize(
    "name,parameters,lora",
    [
        ("sd-turbo", 865_910_724, 3_319_808),
        ("lcm-dreamshaper-v7", 859_520_964 + 256 * 320, 3_188_736),
        ("sdxl", 2_567_463_684, 23_224_320),
        ("pixart-alpha", 610_856_096, None),
    ],
)
def test_the_real_architectures(name, parameters, lora):
    unet = architectures.meta_unet(name)
    assert sum(p.numel() for p in unet.parameters()) == parameters
    if lora is None:  # diffusers has no adapters for it, and DI++ trains all of its weights
        return
    with torch.device("meta"):
        unet.add_adapter(LoraConfig(r=16, target_modules=list(ATTENTION)))
    assert sum(p.numel() for n, p in unet.named_parameters() if "lora_" in n) == lora


@pytest.mark.parametrize(
    "name,size",
    [("sd-turbo", 512), ("lcm-dreamshaper-v7", 768), ("sdxl-turbo", 512), ("sdxl-dmd2", 1024), ("pixart-alpha", 512)],
)
def test_the_real_architectures_draw_pictures_of_their_size(name, size):
    model = architectures.meta_model(name)
    assert model.image_size == size and model.latent_shape == (4, size // 8, size // 8)


def test_twins_have_the_fields_of_the_real_configurations(hub):
    for name in ("sd-turbo", "lcm-dreamshaper-v7", "sdxl-turbo", "sdxl-lcm"):
        small, full = models.load(name, hub=hub).unet.config, architectures.UNETS[name]
        for key in ("down_block_types", "up_block_types", "use_linear_projection", "addition_embed_type"):
            if key in full:
                assert (
                    tuple(small[key]) == tuple(full[key]) if isinstance(full[key], tuple) else small[key] == full[key]
                )
        assert (small.time_cond_proj_dim is None) == ("time_cond_proj_dim" not in full)
    with pytest.raises(ValueError, match="no full-size configuration of 'pocket-turbo': choose from sd-turbo"):
        architectures.meta_unet("pocket-turbo")
    with pytest.raises(ValueError, match="no twin of 'pocket-turbo': choose from sd-turbo"):
        twins.save_twin("pocket-turbo", hub)
