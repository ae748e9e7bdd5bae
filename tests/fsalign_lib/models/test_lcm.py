"""Distillations as a LoRA on the teacher: the consistency function, its target, the files, and another teacher."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import diffusers
import pytest
import torch
import transformers
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from fsalign_lib.kernels import DDIM
from fsalign_lib.models import load as models
from fsalign_lib.models import presets
from fsalign_lib.models.consistency import boundary_scalings
from fsalign_lib.models.presets import LORA_FILE
from fsalign_lib.pocket import build, fit, lcm, networks, student
from fsalign_lib.pocket.lcm import pseudo_huber
from fsalign_lib.schedules import NoiseSchedule, lcm_timesteps

SCHEDULE = NoiseSchedule.scaled_linear()
VARIANCE = 0.36


def along(x, t, t_end, mean):
    """The end of the probability-flow ODE of N(mean, VARIANCE I) from x at t: it is linear."""
    signal, noise = (f.view(-1, 1) for f in (SCHEDULE.alpha_bar[t].sqrt(), SCHEDULE.alpha_bar[t]))
    end = SCHEDULE.alpha_bar[t_end].view(-1, 1)
    ratio = (end * VARIANCE + 1 - end) / (noise * VARIANCE + 1 - noise)
    return end.sqrt() * mean + ratio.sqrt() * (x - signal * mean)


class Denoiser(nn.Module):
    """The exact noise prediction for N(m, VARIANCE I), where the condition is the mean m."""

    def forward(self, x, t, cond):
        alpha_bar = SCHEDULE.alpha_bar[t].view(-1, 1)
        spread = alpha_bar * VARIANCE + 1 - alpha_bar
        return SimpleNamespace(sample=(1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * cond) / spread)


class Ends(nn.Module):
    """A network whose consistency function is the exact map to t = 0 of the guided ODE."""

    def __init__(self, mean):
        super().__init__()
        self.mean = mean

    def forward(self, x, t, cond):
        c_skip, c_out = boundary_scalings(t, lcm.TIMESTEP_SCALING, x)
        x0 = (along(x, t, torch.zeros_like(t), self.mean) - c_skip * x) / c_out.clamp_min(1e-12)
        return SimpleNamespace(sample=SCHEDULE.eps_from_x0(x, x0, t))


def one_step_error(steps, guidance=student.GUIDANCE):
    """How far the target is from the exact end of the guided path, at every step of a grid of so many."""
    generator = torch.Generator().manual_seed(0)
    solver = DDIM(SCHEDULE, lcm_timesteps(steps, steps), eta=0.0)
    n = torch.arange(steps)
    t = solver.timesteps[n]
    cond = torch.randn(steps, 6, generator=generator, dtype=torch.float64)
    empty = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(steps, 6, generator=generator, dtype=torch.float64)
    mean = empty + guidance * (cond - empty)  # the variances are equal, so the guided score is that of a Gaussian
    found = lcm.target(Denoiser(), Ends(mean), solver, x, n, cond, empty)
    return (found - along(x, t, torch.zeros_like(t), mean)).abs().amax(1)


def test_the_target_is_the_end_of_the_guided_path_up_to_the_solvers_error():
    coarse, fine = one_step_error(50), one_step_error(500)
    assert coarse.max() < 0.05 and fine.max() < 2e-3
    assert fine.mean() < coarse.mean() / 20, "of one step, the error is of second order"
    assert one_step_error(500, guidance=1.0).mean() > 10 * fine.mean(), "the guidance weight is part of the target"


def test_the_consistency_function_is_the_identity_at_t_0_alone():
    torch.manual_seed(0)
    x, cond = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(lcm.consistency(Denoiser(), SCHEDULE, x, torch.zeros(3).long(), cond), x)
    t = torch.tensor([19, 499, 999])
    x0 = SCHEDULE.x0_from_eps(x, Denoiser()(x, t, cond).sample, t)
    torch.testing.assert_close(lcm.consistency(Denoiser(), SCHEDULE, x, t, cond), x0, atol=1e-3, rtol=1e-3)


def test_pseudo_huber_is_a_square_near_0_and_an_absolute_value_far_off():
    d = torch.tensor([0.0, 1e-5, -3.0, 3.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 1e-10 / (2 * 0.01), 3.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(pseudo_huber(d, 0.01), expected, atol=1e-2, rtol=1e-2)
    assert pseudo_huber(d, 0.01)[1] == pytest.approx(5e-9, rel=1e-3)


@pytest.fixture
def parts(folder):
    """UNet, text encoder and tokenizer of the tiny pipeline."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    text = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    return unet, text, transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture
def small(monkeypatch):
    for module, name, value in (
        (lcm, "STEPS", 6),
        (lcm, "BATCH", 2),
        (lcm, "fit", partial(fit.fit, every=2)),
        (student, "BATCH", 2),
        (student, "PAIRS", 64),
        (student, "SHAPE", (4, 8, 8)),
        (student, "PAIR_STEPS", 4),
    ):
        monkeypatch.setattr(module, name, value)


def distil(parts, folder):
    unet, text, _ = parts
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(28, (8, 8), generator=torch.Generator().manual_seed(2))
    return lcm.train(unet, text, latents, ids, torch.ones(8).long(), folder, 0)


def only_the_lora_moved(adapted, teacher):
    base = {name.replace(".base_layer", ""): p for name, p in adapted.named_parameters() if "lora_" not in name}
    moved = [p for name, p in adapted.named_parameters() if "lora_B" in name]
    assert all(torch.equal(base[name], p) for name, p in teacher.named_parameters())
    assert moved and all(p.any() for p in moved)


@pytest.mark.slow
def test_a_stopped_distillation_resumes_to_the_same_bits(parts, small, tmp_path, monkeypatch):
    whole, calls = distil(parts, tmp_path / "whole"), []

    def stops(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return pseudo_huber(*args)

    with monkeypatch.context() as patch:
        patch.setattr(lcm, "pseudo_huber", stops)
        with pytest.raises(KeyboardInterrupt):
            distil(parts, tmp_path / "stopped")
    resumed = distil(parts, tmp_path / "stopped")
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    only_the_lora_moved(whole, parts[0])


def test_distribution_matching_trains_a_lora_and_leaves_the_teacher(parts, small, tmp_path):
    unet, text, words = parts
    course = student.Course("dmd-lora", lora=True, regression_steps=2, matching_steps=4)
    only_the_lora_moved(student.train(unet, text, words, tmp_path, 0, course), unet)
    kept = {path.stem for path in tmp_path.iterdir()}
    assert kept == {"dmd-lora-regression", "dmd-lora", "teacher-paths"}, "the student's states are others"


def some_lora(unet):
    adapted = networks.with_lora(unet)
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            p.data = 0.1 * torch.randn_like(p)
    return adapted


def test_the_file_of_a_lora_is_the_lora(parts, tmp_path):
    torch.manual_seed(0)
    unet, adapted = parts[0], some_lora(parts[0])
    build.save_lora(adapted, tmp_path)
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([999, 99]), torch.randn(2, 5, 16)
    with torch.no_grad():
        expected, before = (net(x, t, cond).sample for net in (adapted, unet))
        models.merge_lora(unet, tmp_path / LORA_FILE)
        found = unet(x, t, cond).sample
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)
    assert (found - before).abs().max() > 0.1


def test_a_lora_with_an_alpha_as_lcm_loras_are_published_is_scaled_by_it(parts, tmp_path):
    """The keys of LCM-LoRA's files: lora_unet_<layer>.lora_down.weight, .lora_up.weight, .alpha."""
    unet, adapted = parts[0], some_lora(parts[0])
    tensors, names = {}, {"lora_A": "lora_down", "lora_B": "lora_up"}
    for key, tensor in get_peft_model_state_dict(adapted).items():
        layer, side, _ = key.rsplit(".", 2)
        prefix = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{prefix}.{names[side]}.weight"] = tensor.contiguous()
        tensors[f"{prefix}.alpha"] = torch.tensor(networks.LORA_RANK / 4)
    save_file(tensors, tmp_path / LORA_FILE)
    before = {name: p.clone() for name, p in unet.named_parameters()}
    models.merge_lora(unet, tmp_path / LORA_FILE)
    adapted.fuse_lora()
    adapted.unload_lora()
    for name, p in adapted.named_parameters():
        expected = (p - before[name]) / 4
        torch.testing.assert_close(unet.get_parameter(name) - before[name], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["pocket-lcm", "pocket-dmd-lora"])
def test_another_teacher_takes_the_lora(name):
    teacher = models.load("pocket-teacher")
    before = {key: p.clone() for key, p in teacher.unet.named_parameters()}
    shipped = models.load(name)
    for key, p in models.load(name, network=teacher.unet).unet.named_parameters():
        assert torch.equal(p, shipped.unet.get_parameter(key)), "its own teacher makes the shipped model"
    teacher.add_lora(2)
    for p in teacher.trained_parameters().values():
        p.data += 0.05
    with pytest.raises(ValueError, match=f"model '{name}': the network given has adapters: give LatentModel.merged"):
        models.load(name, network=teacher.unet)
    merged = teacher.merged_network()
    other = models.load(name, network=merged)
    assert other.sampler(4).timesteps.tolist() == shipped.sampler(4).timesteps.tolist()
    assert other.fingerprint != shipped.fingerprint
    for key, p in other.unet.named_parameters():
        lora = shipped.unet.get_parameter(key) - before[key]
        torch.testing.assert_close(p - merged.get_parameter(key), lora, atol=1e-6, rtol=1e-5)
    moved = [not torch.equal(merged.get_parameter(key), p) for key, p in before.items()]
    assert any(moved), "else the teacher given would be the shipped one"


def test_a_lora_that_was_not_built_is_named(monkeypatch, tmp_path):
    preset = presets.PRESETS["pocket-lcm"]
    missing = dataclasses.replace(preset, lora=tmp_path / LORA_FILE)
    monkeypatch.setitem(presets.PRESETS, "pocket-lcm", missing)
    with pytest.raises(FileNotFoundError, match=f"model 'pocket-lcm'.*{LORA_FILE}.*pocket.build"):
        models.load("pocket-lcm")
