"""Kernels: the same steps as diffusers' schedulers, the same densities as torch.distributions, and no misprint."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm
from torch.distributions import Independent, Normal, kl_divergence

from fsalign_lib.kernels import DDIM, EulerAncestral, Renoise, build_kernel, require_stochastic
from fsalign_lib.schedules import NoiseSchedule, lcm_timesteps, trailing_timesteps

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = (1, 2, 4, 8, 50)
SHAPE = (2, 3, 4, 4)


def randn(seed, *shape, dtype=torch.float32):
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def predict_x0(x_t, t):
    """A stand-in for the network, with clean samples of unit size: any smooth function will do."""
    return 2 * torch.tanh(0.7 * x_t + 0.1 * x_t.roll(1, -1)) + 0.05 * math.cos(float(t))


def theirs_renoise(num_steps, timestep_scaling=1e4):
    # c_skip = 0.25 / ((scaling * t)^2 + 0.25): a large scaling switches LCM's boundary condition off.
    scheduler = LCMScheduler(**STABLE_DIFFUSION, timestep_scaling=timestep_scaling)
    scheduler.set_timesteps(num_steps)
    return scheduler


def theirs_euler(num_steps):
    scheduler = EulerAncestralDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    return scheduler


def theirs_ddim(num_steps):
    # Stable Diffusion's own setting: after the last time comes alpha_bar[0], not 1.
    scheduler = DDIMScheduler(
        **STABLE_DIFFUSION, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


def case(name, num_steps, schedule=None, eta=1.0):
    """(kernel, their scheduler, their step as a function of (eps, n, x, noise)) on one grid."""
    theirs = {"renoise": theirs_renoise, "euler-ancestral": theirs_euler, "ddim": theirs_ddim}[name](num_steps)
    schedule = schedule or NoiseSchedule.scaled_linear()
    timesteps = lcm_timesteps(num_steps) if name == "renoise" else None
    kernel = build_kernel(name, schedule, num_steps, timesteps=timesteps, eta=eta)

    def step(eps, n, x, noise):
        if name == "ddim":
            return theirs.step(eps, theirs.timesteps[n], x, eta=eta, variance_noise=noise).prev_sample
        module = scheduling_lcm if name == "renoise" else scheduling_euler_ancestral_discrete
        theirs._step_index = n
        theirs.is_scale_input_called = True
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise)
            return theirs.step(eps, theirs.timesteps[n], x).prev_sample

    return kernel, theirs, step


def error(ours, theirs):
    return float((ours - theirs).abs().max())


def spread_after(kernel, n):
    """The unit of the state after step n: 1 in VP; in VE sqrt(sigma'^2 + 1), where values of 40 have a float32
    spacing of 4e-6 and an absolute 1e-5 would be two of those."""
    if not isinstance(kernel, EulerAncestral) or n == kernel.num_steps - 1:
        return 1.0
    return math.hypot(1.0, kernel.schedule.sigma(int(kernel.timesteps[n + 1])))


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("name", ["renoise", "euler-ancestral", "ddim"])
def test_every_step_equals_diffusers(name, num_steps):
    kernel, theirs, step = case(name, num_steps)
    assert kernel.timesteps.tolist() == theirs.timesteps.tolist()
    x = kernel.initial(randn(0))
    torch.testing.assert_close(x, randn(0) * theirs.init_noise_sigma, rtol=1e-5, atol=0)
    zeros, ones = torch.zeros(SHAPE), torch.ones(SHAPE)
    for n in range(num_steps):
        noise = randn(n + 1)
        theirs._step_index = n
        network_input = theirs.scale_model_input(x, theirs.timesteps[n])
        assert error(kernel.model_input(x, n), network_input) < 1e-5
        x0_hat = predict_x0(network_input, kernel.timesteps[n])
        eps = kernel.schedule.eps_from_x0(network_input, x0_hat, int(kernel.timesteps[n]))

        sample = kernel.sample(x, x0_hat, n, noise)
        their_mean = step(eps, n, x, zeros)
        their_std = step(zeros, n, zeros, ones)  # a state and a prediction of 0 leave the noise alone
        unit = spread_after(kernel, n)
        assert error(kernel.mean(x, x0_hat, n), their_mean) < 1e-5 * unit
        assert error(sample, step(eps, n, x, noise)) < 1e-5 * unit
        assert error(torch.full(SHAPE, kernel.std(n)), their_std) < 1e-5
        assert (n in kernel.stochastic_steps) == (kernel.std(n) > 0) == bool(their_std.any())
        if n in kernel.stochastic_steps:
            density = Normal(their_mean.double(), their_std.double()).log_prob(sample.double()).flatten(1)
            log_prob = kernel.log_prob(sample, x, x0_hat, n)
            assert log_prob.dtype == torch.float32 and log_prob.shape == (2,)
            assert error(log_prob, density.mean(1)) < 1e-5
            assert error(kernel.log_prob(sample, x, x0_hat, n, "sum") / density.shape[1], density.mean(1)) < 1e-5
        x = sample


@pytest.mark.parametrize("eta", [0.0, 0.3])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_ddim_equals_diffusers_at_other_etas(num_steps, eta):
    kernel, _, step = case("ddim", num_steps, eta=eta)
    x = randn(0)
    for n in range(num_steps):
        x0_hat = predict_x0(x, kernel.timesteps[n])
        eps = kernel.schedule.eps_from_x0(x, x0_hat, int(kernel.timesteps[n]))
        sample = kernel.sample(x, x0_hat, n, randn(n + 1))
        assert error(sample, step(eps, n, x, randn(n + 1))) < 1e-5
        x = sample
    assert kernel.stochastic_steps == (() if eta == 0 else tuple(range(num_steps)))


def test_lcm_boundary_scalings_belong_to_the_prediction():
    # LCM's scheduler steps from c_out * x0_hat + c_skip * x. Given that as the prediction, the kernel is its step,
    # whatever the scaling; given the bare x0_hat it is not, once the scalings matter.
    num_steps, shape = 4, (2, 3, 4, 4)
    for timestep_scaling, matters in ((10.0, False), (1e-3, True)):
        theirs = LCMScheduler(**STABLE_DIFFUSION, timestep_scaling=timestep_scaling)
        theirs.set_timesteps(num_steps)
        kernel = Renoise(NoiseSchedule.scaled_linear(), theirs.timesteps)
        x = randn(0)
        for n, t in enumerate(theirs.timesteps):
            x0_hat = predict_x0(x, t)
            theirs._step_index = n
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(scheduling_lcm, "randn_tensor", lambda *args, **kwargs: randn(n + 1, *shape))  # noqa: B023
                their_sample = theirs.step(kernel.schedule.eps_from_x0(x, x0_hat, int(t)), t, x).prev_sample
            c_skip, c_out = theirs.get_scalings_for_boundary_condition_discrete(t)
            ours = kernel.sample(x, c_out * x0_hat + c_skip * x, n, randn(n + 1))
            assert error(ours, their_sample) < 1e-5
            assert (error(kernel.sample(x, x0_hat, n, randn(n + 1)), their_sample) > 1e-2) == matters
            x = their_sample


def test_values_of_the_four_step_grid():
    schedule = NoiseSchedule.scaled_linear()
    renoise, euler = build_kernel("renoise", schedule, 4), build_kernel("euler-ancestral", schedule, 4)
    assert [round(s, 4) for s in renoise.stds.tolist()] == [0.9713, 0.8499, 0.5697, 0.0]
    assert [round(s, 3) for s in euler.stds.tolist()] == [3.919, 1.482, 0.626, 0.0]
    sigma = schedule.sigma(euler.timesteps)
    sigma_down = euler.x_weight[:3] * sigma[:3]
    assert [round(s, 3) for s in sigma_down.tolist()] == [1.140, 0.637, 0.298]
    torch.testing.assert_close(sigma_down**2 + euler.stds[:3] ** 2, sigma[1:] ** 2)
    # The scale of the log-ratio on ||delta x0_hat||^2 is (1 - r) / (2 sigma'^2).
    scale = [float(euler.kl(randn(0, 1, 1), torch.ones(1, 1), torch.zeros(1, 1), n)) for n in range(3)]
    assert scale == pytest.approx([0.0277, 0.162, 0.848], rel=3e-3)
    ddim = build_kernel("ddim", schedule, 50)
    assert ddim.std(49) == pytest.approx(0.0285, abs=5e-5)
    assert renoise.stochastic_steps == euler.stochastic_steps == (0, 1, 2)
    assert ddim.stochastic_steps == tuple(range(50))


def printed_eq_14(x, x0_hat, sigma, sigma_after):
    """PSO's Eq. 14 with sigma-bar and sigma-hat as printed: (mean, std)."""
    sigma_bar = math.sqrt((sigma**2 - sigma_after**2) * sigma_after**2 / sigma**2)
    sigma_hat = (torch.tensor(sigma_after) ** 2 - sigma**2).sqrt()
    return x + (x - x0_hat) / sigma * (sigma_bar - sigma), sigma_hat


def test_printed_eq_14_is_not_the_sampler():
    kernel, theirs, step = case("euler-ancestral", 4)
    x0_hat = randn(1)
    for n in range(3):
        sigma, after = (kernel.schedule.sigma(int(t)) for t in kernel.timesteps[n : n + 2])
        x = x0_hat + sigma * randn(0)
        printed_mean, printed_std = printed_eq_14(x, x0_hat, sigma, after)
        their_mean = step((x - x0_hat) / sigma, n, x, torch.zeros(SHAPE))
        assert error(kernel.mean(x, x0_hat, n), their_mean) < 1e-5 * spread_after(kernel, n)
        assert error(printed_mean, their_mean) > 0.1
        assert bool(printed_std.isnan())


@pytest.mark.parametrize("num_steps", [2, 4, 50])
def test_euler_ancestral_in_vp_coordinates_is_ddim_with_eta_1(num_steps):
    schedule, grid = NoiseSchedule.scaled_linear(), trailing_timesteps(num_steps)
    euler, ddim = EulerAncestral(schedule, grid), DDIM(schedule, grid, eta=1.0)
    x, x0_hat = randn(0, dtype=torch.float64), randn(1, dtype=torch.float64)
    for n in range(num_steps - 1):
        t, after = int(grid[n]), int(grid[n + 1])
        x_ve = schedule.vp_to_ve(x, t)
        torch.testing.assert_close(euler.model_input(x_ve, n), x)
        torch.testing.assert_close(schedule.ve_to_vp(euler.mean(x_ve, x0_hat, n), after), ddim.mean(x, x0_hat, n))
        signal = math.sqrt(schedule.alpha_bar[after])
        assert euler.std(n) * signal == pytest.approx(ddim.std(n), rel=1e-9)
        torch.testing.assert_close(euler.kl(x_ve, x0_hat, -x0_hat, n), ddim.kl(x, x0_hat, -x0_hat, n))
        # Densities differ by the change of variables only, which cancels in every ratio of policies.
        x_next = ddim.sample(x, x0_hat, n, randn(2, dtype=torch.float64))
        ve = euler.log_prob(schedule.vp_to_ve(x_next, after), x_ve, x0_hat, n)
        torch.testing.assert_close(ve - math.log(signal), ddim.log_prob(x_next, x, x0_hat, n))


KERNELS = [Renoise, EulerAncestral, DDIM]


def four_steps(kernel_class):
    return kernel_class(NoiseSchedule.scaled_linear(), trailing_timesteps(4))


@pytest.mark.parametrize("kernel_class", KERNELS)
def test_log_prob_and_kl_equal_torch_distributions(kernel_class):
    kernel = four_steps(kernel_class)
    x, x0_p, x0_q, noise = (randn(seed, dtype=torch.float64) for seed in range(4))
    for n in kernel.stochastic_steps:
        p, q = (Independent(Normal(kernel.mean(x, x0, n), kernel.std(n)), 3) for x0 in (x0_p, x0_q))
        x_next = kernel.sample(x, x0_p, n, noise)
        torch.testing.assert_close(kernel.log_prob(x_next, x, x0_p, n, "sum"), p.log_prob(x_next))
        torch.testing.assert_close(kernel.log_prob(x_next, x, x0_p, n, "mean"), p.log_prob(x_next) / 48)
        torch.testing.assert_close(kernel.kl(x, x0_p, x0_q, n, "sum"), kl_divergence(p, q))
        torch.testing.assert_close(kernel.kl(x, x0_p, x0_q, n, "mean"), kl_divergence(p, q) / 48)


def test_kl_is_the_expected_log_ratio():
    kernel = four_steps(Renoise)
    x, x0_p, x0_q = torch.zeros(1, 2), torch.tensor([[0.6, -0.3]]), torch.tensor([[0.1, 0.4]])
    draws = 200_000
    x_next = kernel.sample(x, x0_p, 2, randn(0, draws, 2))
    ratio = kernel.log_prob(x_next, x, x0_p, 2, "sum") - kernel.log_prob(x_next, x, x0_q, 2, "sum")
    standard_error = float(ratio.std()) / math.sqrt(draws)
    assert float(ratio.mean()) == pytest.approx(float(kernel.kl(x, x0_p, x0_q, 2, "sum")), abs=4 * standard_error)


@pytest.mark.parametrize("kernel_class", KERNELS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients(kernel_class, reduction):
    kernel = four_steps(kernel_class)
    x, x0_hat, x_next = (randn(seed, 2, 3, dtype=torch.float64) for seed in range(3))
    x0_hat.requires_grad_()
    for n in kernel.stochastic_steps[:3]:
        assert torch.autograd.gradcheck(lambda x0: kernel.log_prob(x_next, x, x0, n, reduction), x0_hat)  # noqa: B023
        assert torch.autograd.gradcheck(lambda x0: kernel.kl(x, x0, x_next, n, reduction), x0_hat)  # noqa: B023
        (gradient,) = torch.autograd.grad(kernel.log_prob(x_next, x, x0_hat, n, reduction).sum(), x0_hat)
        by_hand = kernel.x0_weight[n] * (x_next - kernel.mean(x, x0_hat, n)) / kernel.std(n) ** 2
        torch.testing.assert_close(gradient, by_hand / (3 if reduction == "mean" else 1))


@pytest.mark.parametrize("kernel_class", KERNELS)
def test_a_step_for_each_sample_is_a_loop_over_samples(kernel_class):
    kernel = four_steps(kernel_class)
    n = torch.tensor([2, 0, 1, 2])
    x, x0_hat, noise, other = (randn(seed, 4, 3, 2) for seed in range(4))
    x_next = kernel.sample(x, x0_hat, n, noise)
    for i, step in enumerate(n.tolist()):
        row = slice(i, i + 1)
        assert torch.equal(x_next[row], kernel.sample(x[row], x0_hat[row], step, noise[row]))
        assert torch.equal(kernel.mean(x, x0_hat, n)[row], kernel.mean(x[row], x0_hat[row], step))
        assert torch.equal(kernel.model_input(x, n)[row], kernel.model_input(x[row], step))
        log_prob = kernel.log_prob(x_next, x, x0_hat, n)[row]
        torch.testing.assert_close(log_prob, kernel.log_prob(x_next[row], x[row], x0_hat[row], step))
        torch.testing.assert_close(
            kernel.kl(x, x0_hat, other, n)[row], kernel.kl(x[row], x0_hat[row], other[row], step)
        )
    assert kernel.std(n).tolist() == [kernel.std(step) for step in n.tolist()]


def test_half_precision_is_lifted_to_float32():
    kernel = build_kernel("ddim", NoiseSchedule.scaled_linear(), 50)
    x, x0_hat, x_next = (randn(seed).half() for seed in range(3))
    x_next = (kernel.mean(x.double(), x0_hat.double(), 49) + 0.0285 * x_next).half()
    log_prob = kernel.log_prob(x_next, x, x0_hat, 49)
    exact = kernel.log_prob(x_next.double(), x.double(), x0_hat.double(), 49)
    assert log_prob.dtype == torch.float32 and error(log_prob, exact) < 1e-4
    in_half = Normal(kernel.mean(x, x0_hat, 49), kernel.std(49)).log_prob(x_next).flatten(1).mean(1)
    assert error(in_half, exact) > 1e-3  # the mutation: a log-prob in half precision


def test_eta_to_zero_is_deterministic_ddim():
    schedule, x, x0_hat = NoiseSchedule.scaled_linear(), randn(0), randn(1)
    exact = build_kernel("ddim", schedule, 4, eta=0.0).mean(x, x0_hat, 1)
    errors = [error(build_kernel("ddim", schedule, 4, eta=eta).mean(x, x0_hat, 1), exact) for eta in (1, 0.1, 0.01)]
    assert errors[0] > 50 * errors[1] > 2000 * errors[2]


def test_one_step_samplers():
    schedule, noise, x0_hat = NoiseSchedule.scaled_linear(), randn(0), randn(1)
    for name in ("renoise", "euler-ancestral"):
        kernel = build_kernel(name, schedule, 1)
        torch.testing.assert_close(kernel.sample(kernel.initial(noise), x0_hat, 0, noise), x0_hat)
        with pytest.raises(ValueError, match="num_steps = 1 has no stochastic step.*use 2 steps or more"):
            require_stochastic(kernel)
    require_stochastic(build_kernel("ddim", schedule, 1))
    with pytest.raises(ValueError, match="eta > 0 with DDIM"):
        require_stochastic(build_kernel("ddim", schedule, 4, eta=0.0))


REFUSALS = [
    (lambda s: build_kernel("euler", s, 4), "unknown kernel 'euler': expected one of renoise, euler-ancestral, ddim"),
    (lambda s: build_kernel("renoise", s, 0), "num_steps = 0: expected an integer from 1 to 1000"),
    (lambda s: build_kernel("ddim", s, 1001), "num_steps = 1001: expected an integer from 1 to 1000"),
    (lambda s: build_kernel("ddim", s, 4, eta=1.5), "eta = 1.5: expected 0"),
    (lambda s: build_kernel("renoise", s, 4, timesteps=torch.tensor([999, 499])), "timesteps has 2 values"),
    (lambda s: Renoise(s, torch.tensor([499, 999])), "expected descending values, the noisiest first"),
    (lambda s: Renoise(s, torch.tensor([1000, 499])), "t = 1000 is outside this schedule"),
    (lambda s: Renoise(s, torch.tensor([999.0, 499.0])), "expected a non-empty 1-D tensor of integers"),
    (lambda s: build_kernel("renoise", s, 4).std(4), r"step n = 4: this kernel has steps 0..3"),
    (lambda s: build_kernel("renoise", s, 4).std(-1), r"step n = -1: this kernel has steps 0..3"),
    (lambda s: build_kernel("renoise", s, 4).log_prob(*[torch.ones(2, 3)] * 3, 3), r"n = 3 has a deterministic step"),
    (lambda s: build_kernel("renoise", s, 4).kl(*[torch.ones(2, 3)] * 3, torch.tensor([0, 3])), r"n = \[0, 3\] has a"),
    (lambda s: build_kernel("ddim", s, 4).kl(*[torch.ones(2, 3)] * 3, 0, "max"), "reduction = 'max': expected"),
    (lambda s: build_kernel("ddim", s, 4).kl(*[torch.ones(2)] * 3, 0), r"shape \(2,\) has no dimension left"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call(NoiseSchedule.scaled_linear())
    assert "\n" not in str(refusal.value)
