"""Rollouts: seeds that survive any split, and log-probs that are the same when recorded and when recomputed."""

import contextlib
from dataclasses import fields

import pytest
import torch
from torch import nn

from fsalign_lib.kernels import build_kernel
from fsalign_lib.rollout import Trajectory, rollout, seeded_noise, step_log_probs
from fsalign_lib.schedules import NoiseSchedule
from reproduce.evaluation import cost as memory

SHAPE = (3, 4)


class TinyModel(nn.Module):
    """x0 from a linear map of (x_t, t, cond) plus an adapter that starts at zero; counts its calls."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.schedule = NoiseSchedule.scaled_linear()
        self.weight = nn.Parameter(torch.randn(12 + 2 + 5, 12, generator=generator) / 4, requires_grad=False)
        self.adapter = nn.Parameter(torch.zeros(12 + 2 + 5, 12))
        self.adapter_on, self.calls = True, []

    def predict_x0(self, x_t, t, cond):
        self.calls.append(len(x_t))
        phase = torch.as_tensor(t).expand(len(x_t))[:, None] / 1000
        features = torch.cat([x_t.flatten(1), phase.sin(), phase.cos(), cond], dim=1)
        weight = self.weight + self.adapter if self.adapter_on else self.weight
        return torch.tanh(features @ weight).view_as(x_t)

    @contextlib.contextmanager
    def reference(self):
        self.adapter_on = False
        try:
            yield
        finally:
            self.adapter_on = True


@pytest.fixture
def model():
    return TinyModel()


def setting(model, name="renoise", num_steps=4, batch=6):
    kernel = build_kernel(name, model.schedule, num_steps)
    cond = torch.randn(batch, 5, generator=torch.Generator().manual_seed(1))
    noise = seeded_noise(7, 0, range(batch), SHAPE, num_steps + 1)
    return kernel, cond, noise


NAMES = ["renoise", "euler-ancestral", "ddim"]


def test_seeded_noise_ignores_the_batch_split():
    whole = seeded_noise(3, 10, [5, 6, 7, 8], SHAPE, 5)
    assert whole.shape == (4, 5, *SHAPE) and whole.dtype == torch.float32
    parts = [seeded_noise(3, 10, ids, SHAPE, 5) for ids in ([5], torch.tensor([6, 7]), [8])]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole.flip(0), seeded_noise(3, 10, [8, 7, 6, 5], SHAPE, 5))
    assert torch.equal(whole[:1], seeded_noise(3, 10, torch.tensor([5]), SHAPE, 5))
    assert seeded_noise(3, 10, [], SHAPE, 5).shape == (0, 5, *SHAPE)


def test_seeded_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    seeded_noise(0, 0, [1], SHAPE, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_seeded_noise_differs_in_run_step_prompt_and_draw():
    draws = [seeded_noise(run, step, [p], (64,), 2)[0] for run in (0, 1) for step in (0, 1, 10) for p in (0, 1, 10)]
    flat = torch.cat(draws)  # (18 * 2, 64)
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    # 630 pairs with standard error 1/8: equal seeds, as from adding the three numbers, would give 1.
    assert float(correlation.abs().max()) < 0.6
    many = seeded_noise(0, 0, range(500), (20,), 1)
    assert abs(float(many.mean())) < 0.04 and abs(float(many.std()) - 1) < 0.03


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [1, 4])
def test_rollout_is_the_sampler(model, name, num_steps):
    kernel, cond, noise = setting(model, name, num_steps)
    trajectory = rollout(model, kernel, cond, noise)
    assert model.calls == [6] * num_steps  # one network call a step
    assert trajectory.states.shape == (6, num_steps + 1, *SHAPE) and trajectory.x0_hat.shape == (6, num_steps, *SHAPE)
    assert trajectory.log_prob.shape == (6, num_steps) and trajectory.log_prob.dtype == torch.float32
    assert not any(getattr(trajectory, field.name).requires_grad for field in fields(Trajectory))
    assert torch.equal(trajectory.states[:, 0], kernel.initial(noise[:, 0]))
    assert torch.equal(trajectory.final, trajectory.states[:, -1])
    for n in range(num_steps):
        x, x0_hat = trajectory.states[:, n], trajectory.x0_hat[:, n]
        x_next = trajectory.states[:, n + 1]
        torch.testing.assert_close(x0_hat, model.predict_x0(kernel.model_input(x, n), int(kernel.timesteps[n]), cond))
        assert torch.equal(x_next, kernel.sample(x, x0_hat, n, noise[:, n + 1]))
        if n in kernel.stochastic_steps:
            assert torch.equal(trajectory.log_prob[:, n], kernel.log_prob(x_next, x, x0_hat, n))
        else:
            assert not trajectory.log_prob[:, n].any()
            torch.testing.assert_close(x_next, x0_hat)


@pytest.mark.slow
def test_memory_grows_by_what_is_kept_alone(model):
    """A graph would cost more than a step stores, and so would lists that are stacked at the end."""

    def held(num_steps, sample=rollout):
        kernel, cond, noise = setting(model, "ddim", num_steps, batch=2000)
        before, made = memory.live_bytes(), []
        peak = memory.peak_bytes(lambda: made.append(sample(model, kernel, cond, noise)))
        return peak - before, sum(getattr(made[0], field.name).nbytes for field in fields(Trajectory))

    def with_a_graph(*args):
        trajectory = rollout.__wrapped__(*args)
        assert trajectory.states.requires_grad
        return trajectory

    (low, less), (peak, kept), (graph, _) = held(3), held(9), held(9, with_a_graph)
    assert (peak - low) / (kept - less) == pytest.approx(1, abs=0.02)
    assert (graph - low) / (kept - less) > 2


@pytest.mark.parametrize("name", NAMES)
def test_rollout_is_the_same_in_parts(model, name):
    kernel, cond, noise = setting(model, name)
    whole = rollout(model, kernel, cond, noise)
    parts = [rollout(model, kernel, cond[s], noise[s]) for s in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(whole.states, torch.cat([p.states for p in parts]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", NAMES)
def test_the_ratio_is_one_before_any_update(model, name, reduction):
    kernel, cond, noise = setting(model, name)
    trajectory = rollout(model, kernel, cond, noise, reduction)
    model.calls.clear()
    steps = kernel.stochastic_steps
    log_probs = step_log_probs(model, kernel, trajectory, cond, steps, reduction)
    assert model.calls == [6 * len(steps)]  # all steps in one network call
    assert log_probs.shape == (6, len(steps)) and log_probs.dtype == torch.float32 and log_probs.requires_grad
    dims = 12 if reduction == "sum" else 1
    ratio = (log_probs - trajectory.log_prob[:, list(steps)]).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-6 * dims)
    with torch.no_grad(), model.reference():
        reference = step_log_probs(model, kernel, trajectory, cond, steps, reduction)
    torch.testing.assert_close(reference, log_probs.detach(), rtol=0, atol=1e-6 * dims)  # the adapter starts at zero


def looped_log_probs(model, kernel, trajectory, cond, steps):
    columns = []
    for n in steps:
        x, x_next = trajectory.states[:, n], trajectory.states[:, n + 1]
        x0_hat = model.predict_x0(kernel.model_input(x, n), int(kernel.timesteps[n]), cond)
        columns.append(kernel.log_prob(x_next, x, x0_hat, n))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("steps", [(0, 1, 2), (2, 0), (1,)])
@pytest.mark.parametrize("name", NAMES)
def test_folded_steps_equal_the_loop(model, name, steps):
    kernel, cond, noise = setting(model, name)
    trajectory = rollout(model, kernel, cond, noise)
    with torch.no_grad():
        model.adapter += 0.05 * torch.randn(model.adapter.shape, generator=torch.Generator().manual_seed(2))
    folded = step_log_probs(model, kernel, trajectory, cond, steps)
    looped = looped_log_probs(model, kernel, trajectory, cond, steps)
    torch.testing.assert_close(folded, looped, rtol=1e-5, atol=1e-6)
    weight = torch.randn(folded.shape, generator=torch.Generator().manual_seed(3))
    gradients = [torch.autograd.grad((weight * y).sum(), model.adapter)[0] for y in (folded, looped)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), model.reference():
        reference = step_log_probs(model, kernel, trajectory, cond, steps)
    recorded = trajectory.log_prob[:, list(steps)]
    torch.testing.assert_close(reference, recorded, rtol=0, atol=1e-6)  # the reference has not moved
    assert float((folded - recorded).detach().abs().max()) > 1e-3  # while the model has


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_can_have_steps_of_its_own(model, name):
    kernel, cond, noise = setting(model, name)
    trajectory = rollout(model, kernel, cond, noise)
    own = torch.tensor([[0, 2], [2, 1], [1, 1], [0, 1], [2, 0], [1, 2]])
    model.calls.clear()
    picked = step_log_probs(model, kernel, trajectory, cond, own)
    assert model.calls == [12] and picked.shape == (6, 2)
    torch.testing.assert_close(picked, step_log_probs(model, kernel, trajectory, cond, (0, 1, 2)).gather(1, own))


def test_mixed_up_conditions_or_times_would_show(model):
    kernel, cond, noise = setting(model)
    trajectory = rollout(model, kernel, cond, noise)
    right = step_log_probs(model, kernel, trajectory, cond, (0, 1, 2))
    other_cond = step_log_probs(model, kernel, trajectory, cond.roll(1, 0), (0, 1, 2))
    other_times = looped_log_probs(model, build_kernel("renoise", model.schedule, 8), trajectory, cond, (0, 1, 2))
    assert (
        float((right - other_cond).detach().abs().max()) > 1e-2
        and float((right - other_times).detach().abs().max()) > 1e-2
    )


def test_refusals_are_one_clear_line(model):
    kernel, cond, noise = setting(model)
    trajectory = rollout(model, kernel, cond, noise)
    short = Trajectory(trajectory.states[:, :3], trajectory.x0_hat[:, :2], trajectory.log_prob[:, :2])
    for call, message in [
        (lambda: rollout(model, kernel, cond[:2], noise), "noise has batch size 6 and cond 2"),
        (lambda: rollout(model, kernel, cond, noise[:, :4]), r"expected \(B, 5, ...\), N \+ 1 draws for N steps"),
        (lambda: step_log_probs(model, kernel, trajectory, cond, ()), r"steps = \[\]: expected some of .* \(0, 1, 2\)"),
        (lambda: step_log_probs(model, kernel, trajectory, cond, (2, 3)), r"steps = \[2, 3\]: expected some of"),
        (lambda: step_log_probs(model, kernel, trajectory, cond, (-1,)), r"steps = \[-1\]: expected some of"),
        (
            lambda: step_log_probs(model, kernel, trajectory, cond, torch.zeros(5, 1).long()),
            r"steps has shape \(5, 1\): expected \(S,\), or \(6, S\)",
        ),
        (lambda: step_log_probs(model, kernel, trajectory, cond[:1], (0,)), "cond has batch size 1 and the trajectory"),
        (lambda: step_log_probs(model, kernel, short, cond, (0,)), "the trajectory has 2 steps and the kernel 4"),
    ]:
        calls = len(model.calls)
        with pytest.raises(ValueError, match=message) as refusal:
            call()
        assert "\n" not in str(refusal.value) and len(model.calls) == calls  # refused before any compute
