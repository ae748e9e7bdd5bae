"""Schedules: the same numbers as diffusers', exact round trips, and clear refusals."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler

from fsalign_lib.schedules import NoiseSchedule, lcm_timesteps, renoise_timesteps, trailing_timesteps

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = (1, 2, 4, 8, 50)


@pytest.fixture
def schedule():
    return NoiseSchedule.scaled_linear()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    return x0, eps, torch.tensor([0, 19, 249, 749, 999])


def test_alpha_bar_is_stable_diffusions(schedule):
    theirs = DDIMScheduler(**STABLE_DIFFUSION).alphas_cumprod
    assert schedule.alpha_bar.dtype == torch.float64 and schedule.num_train_timesteps == 1000
    torch.testing.assert_close(schedule.alpha_bar.float(), theirs, rtol=1e-5, atol=0)
    assert bool((schedule.alpha_bar.diff() < 0).all())


def test_sigma_values_of_the_four_step_grid(schedule):
    sigmas = schedule.sigma(trailing_timesteps(4))
    np.testing.assert_allclose(sigmas, [14.6146, 4.0817, 1.6129, 0.6932], atol=5e-5)
    assert schedule.sigma(999) == sigmas[0]


@pytest.mark.parametrize("num_steps", STEPS)
def test_grids_equal_diffusers(num_steps):
    for scheduler in (DDIMScheduler, EulerAncestralDiscreteScheduler):
        theirs = scheduler(**STABLE_DIFFUSION, timestep_spacing="trailing")
        theirs.set_timesteps(num_steps)
        assert trailing_timesteps(num_steps).tolist() == theirs.timesteps.tolist()
    # Each of these step counts divides 1000, where DMD2's grid is the trailing one.
    assert renoise_timesteps(num_steps).tolist() == trailing_timesteps(num_steps).tolist()


def test_grids_of_every_length():
    lcm, ddim = LCMScheduler(**STABLE_DIFFUSION), DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="trailing")
    for num_steps in range(1, 51):
        lcm.set_timesteps(num_steps)
        assert lcm_timesteps(num_steps).tolist() == lcm.timesteps.tolist(), num_steps
    for num_steps in range(1, 1001):
        ddim.set_timesteps(num_steps)
        # At 62 lengths, 61 the first, diffusers' rounding errors add a time -1, which it would look up from the end.
        assert trailing_timesteps(num_steps).tolist() == ddim.timesteps.tolist()[:num_steps], num_steps
        for grid in (renoise_timesteps(num_steps), trailing_timesteps(num_steps)):
            assert len(grid) == num_steps and grid[0] == 999 and grid[-1] >= 0 and bool((grid.diff() < 0).all())


def test_grids_as_the_papers_code_has_them():
    assert renoise_timesteps(4).tolist() == trailing_timesteps(4).tolist() == [999, 749, 499, 249]
    assert renoise_timesteps(8).tolist() == [999, 874, 749, 624, 499, 374, 249, 124]
    assert lcm_timesteps(4).tolist() == [999, 759, 499, 259]
    assert trailing_timesteps(50)[[0, 1, -1]].tolist() == [999, 979, 19]


def test_add_noise_and_velocity_equal_diffusers(schedule, batch):
    x0, eps, t = batch
    theirs = DDIMScheduler(**STABLE_DIFFUSION)
    x_t = schedule.add_noise(x0.float(), eps.float(), t)
    torch.testing.assert_close(x_t, theirs.add_noise(x0.float(), eps.float(), t), rtol=0, atol=1e-5)
    v = schedule.v_from_x0(*(y.float() for y in (schedule.add_noise(x0, eps, t), x0)), t)
    torch.testing.assert_close(v, theirs.get_velocity(x0.float(), eps.float(), t), rtol=0, atol=1e-4)


def test_round_trips_in_float64(schedule, batch):
    x0, eps, t = batch
    x_t = schedule.add_noise(x0, eps, t)
    score, v = schedule.score_from_x0(x_t, x0, t), schedule.v_from_x0(x_t, x0, t)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(schedule.x0_from_eps(x_t, eps, t), x0, **close)
    torch.testing.assert_close(schedule.eps_from_x0(x_t, x0, t), eps, **close)
    torch.testing.assert_close(schedule.score_from_eps(x_t, eps, t), score, **close)
    torch.testing.assert_close(schedule.x0_from_score(x_t, score, t), x0, **close)
    torch.testing.assert_close(schedule.eps_from_score(x_t, score, t), eps, **close)
    torch.testing.assert_close(schedule.x0_from_v(x_t, v, t), x0, **close)
    torch.testing.assert_close(schedule.eps_from_v(x_t, v, t), eps, **close)
    torch.testing.assert_close(schedule.ve_to_vp(schedule.vp_to_ve(x_t, t), t), x_t, **close)
    sigma = schedule.sigma(t)[:, None, None]
    torch.testing.assert_close(schedule.vp_to_ve(x_t, t), x0 + sigma * eps, **close)
    torch.testing.assert_close(schedule.ve_to_vp(x0, t), x0 / (sigma**2 + 1).sqrt(), **close)


def test_one_time_for_all_is_each_samples_own_time(schedule, batch):
    x0, eps, t = batch
    per_sample = schedule.add_noise(x0, eps, t)
    for i, time in enumerate(t.tolist()):
        assert torch.equal(per_sample[i], schedule.add_noise(x0, eps, time)[i])
        assert torch.equal(per_sample[i], schedule.add_noise(x0, eps, torch.tensor(time))[i])


def test_coefficients_are_rounded_once(schedule):
    x0, eps = torch.ones(1, 1), torch.zeros(1, 1)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x_t = schedule.add_noise(x0.to(dtype), eps.to(dtype), torch.tensor([999]))
        assert x_t.dtype == dtype
        assert x_t.item() == schedule.alpha_bar[999].sqrt().to(dtype).item()


@pytest.mark.parametrize("t", [19, 499, 999])
def test_tweedie_on_a_gaussian(schedule, t):
    # Data N(m, s^2): p_t is N(sqrt(ab) m, ab s^2 + 1 - ab), so the score and the posterior mean are both known.
    ab, m, s2 = schedule.alpha_bar[t], 0.7, 0.3
    x_t = torch.linspace(-3, 3, 11, dtype=torch.float64)[:, None].requires_grad_()
    p_t = torch.distributions.Normal(ab.sqrt() * m, (ab * s2 + 1 - ab).sqrt())
    (score,) = torch.autograd.grad(p_t.log_prob(x_t).sum(), x_t)
    posterior_mean = m + ab.sqrt() * s2 / (ab * s2 + 1 - ab) * (x_t - ab.sqrt() * m)
    torch.testing.assert_close(schedule.x0_from_score(x_t, score, t), posterior_mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(schedule.score_from_x0(x_t, posterior_mean, t), score, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: renoise_timesteps(0), r"num_steps = 0: expected an integer from 1 to 1000"),
        (lambda s: trailing_timesteps(1001), r"num_steps = 1001: expected an integer from 1 to 1000"),
        (lambda s: trailing_timesteps(4.0), r"num_steps = 4.0: expected an integer"),
        (lambda s: lcm_timesteps(51), r"num_steps = 51: expected an integer from 1 to 50 \(origin_steps"),
        (lambda s: s.sigma(1000), r"t = 1000 is outside this schedule: expected 0 <= t <= 999"),
        (lambda s: s.sigma(torch.tensor([3, -1])), r"t = -1 is outside this schedule"),
        (lambda s: s.add_noise(torch.ones(2, 1), torch.ones(2, 1), torch.tensor([0.5, 1.0])), r"LongTensor \(B,\)"),
        (lambda s: NoiseSchedule(torch.tensor([0.9, 1.5])), r"expected \(T,\) with values strictly between 0 and 1"),
    ],
)
def test_refusals_are_one_clear_line(schedule, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(schedule)
    assert "\n" not in str(error.value)


def test_linear_betas_are_ddpms():
    theirs = DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear").alphas_cumprod
    torch.testing.assert_close(NoiseSchedule.linear().alpha_bar.float(), theirs, atol=1e-6, rtol=1e-4)


def test_nearest_time_of_a_noise_level():
    schedule = NoiseSchedule.scaled_linear()
    t = torch.tensor([0, 250, 999])
    assert torch.equal(schedule.nearest_t(schedule.sigma(t)), t)
    between = schedule.sigma(250) * 0.6 + schedule.sigma(251) * 0.4
    assert schedule.nearest_t(between) == 250
    assert torch.equal(schedule.nearest_t(torch.tensor([0.0, 1e4])), torch.tensor([0, 999]))
