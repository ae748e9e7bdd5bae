"""Preference losses: each against its printed formula written out, its identities, and the forms known to be wrong."""

import math

import pytest
import torch
import torch.nn.functional as F

from fsalign_lib.kernels import build_kernel
from fsalign_lib.losses.common import squared_error
from fsalign_lib.losses.preference import d3po, diffusion_dpo, pso, pso_offline, pso_online, pso_weights
from fsalign_lib.schedules import NoiseSchedule

B, D, BETA = 5, 12, 3.0
SCHEDULE = NoiseSchedule.scaled_linear()
LOG_2 = math.log(2)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(seed=0, steps=3, scale=0.3):
    """(theta_w, ref_w, theta_l, ref_l), each (B, S), as log-probs or errors near each other."""
    ref_w, ref_l = randn(seed, B, steps) - 1, randn(seed + 1, B, steps) - 1
    return ref_w + scale * randn(seed + 2, B, steps), ref_w, ref_l + scale * randn(seed + 3, B, steps), ref_l


# Every loss as a function of (theta_w, ref_w, theta_l, ref_l). In the mixed PSO the winner is an error and the loser a
# log-prob, so it is not symmetric under a swap of its arguments: it has a swap of its own below.
SYMMETRIC = {
    "diffusion_dpo": lambda *x: diffusion_dpo(*x, BETA, weight=0.7),
    "d3po": lambda *x: d3po(*x, BETA),
    "d3po clamped": lambda *x: d3po(*x, BETA, clamp=0.1),
    "pso_offline inside": lambda *x: pso_offline(*x, BETA),
    "pso_offline outside": lambda *x: pso_offline(*x, BETA, steps="outside"),
    "pso_online inside": lambda *x: pso_online(*x, BETA),
    "pso_online outside": lambda *x: pso_online(*x, BETA, steps="outside"),
    "pso_online inside clamped": lambda *x: pso_online(*x, BETA, clamp=0.1),
    "pso_online outside clamped": lambda *x: pso_online(*x, BETA, clamp=0.1, steps="outside"),
}
WEIGHT = torch.tensor([6.41, 3.20, 2.71], dtype=torch.float64)
LOSSES = SYMMETRIC | {
    "pso inside": lambda *x: pso(*x, BETA, WEIGHT),
    "pso outside": lambda *x: pso(*x, BETA, WEIGHT, steps="outside"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_log_2_and_a_tie_at_the_reference(name):
    _, ref_w, _, ref_l = inputs()
    loss, diagnostics = LOSSES[name](ref_w, ref_w, ref_l, ref_l)
    assert float(loss) == pytest.approx(LOG_2, abs=1e-15)
    assert diagnostics["margin"] == 0 and diagnostics["accuracy"] == 0.5 and diagnostics["clamped"] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_and_a_detached_reference(name):
    theta_w, ref_w, theta_l, ref_l = (x.requires_grad_() for x in inputs())
    assert torch.autograd.gradcheck(lambda w, l: LOSSES[name](w, ref_w, l, ref_l)[0], (theta_w, theta_l))
    loss, diagnostics = LOSSES[name](theta_w, ref_w, theta_l, ref_l)
    loss.backward()
    assert theta_w.grad is not None and ref_w.grad is None and ref_l.grad is None
    assert not any(value.requires_grad for value in diagnostics.values())


@pytest.mark.parametrize("name", SYMMETRIC)
def test_swapping_the_pair_negates_the_margin(name):
    theta_w, ref_w, theta_l, ref_l = inputs()
    _, forward = SYMMETRIC[name](theta_w, ref_w, theta_l, ref_l)
    _, swapped = SYMMETRIC[name](theta_l, ref_l, theta_w, ref_w)
    assert float(forward["margin"]) == pytest.approx(-float(swapped["margin"]), abs=1e-12)
    assert float(forward["margin"]) != 0
    assert float(forward["accuracy"]) == pytest.approx(1 - float(swapped["accuracy"]))


def test_swapping_the_halves_of_mixed_pso_negates_the_margin():
    # Log-ratio -w * (difference of errors) on one side, log-prob difference on the other: exchange the two.
    err, err_ref, logp, logp_ref = inputs()
    _, forward = pso(err, err_ref, logp, logp_ref, BETA, WEIGHT)
    _, swapped = pso(-logp / WEIGHT, -logp_ref / WEIGHT, -WEIGHT * err, -WEIGHT * err_ref, BETA, WEIGHT)
    assert float(forward["margin"]) == pytest.approx(-float(swapped["margin"]), abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_falls_when_the_winner_gets_likelier(name):
    _, ref_w, _, ref_l = inputs()
    # A likelier sample has a larger log-prob, but a smaller error.
    up_w = -0.05 if name.startswith(("diffusion_dpo", "pso_offline", "pso inside", "pso outside")) else 0.05
    up_l = -0.05 if name.startswith(("diffusion_dpo", "pso_offline")) else 0.05
    likelier_winner, diagnostics = LOSSES[name](ref_w + up_w, ref_w, ref_l, ref_l)
    assert float(likelier_winner) < LOG_2 and diagnostics["accuracy"] == 1
    likelier_loser, diagnostics = LOSSES[name](ref_w, ref_w, ref_l + up_l, ref_l)
    assert float(likelier_loser) > LOG_2 and diagnostics["accuracy"] == 0


# ---- each loss against its formula written out from predictions, beside the forms known to be wrong ----


class Pair:
    """Predictions of a model and its reference on both members of B pairs, at the steps of a kernel."""

    def __init__(self, kernel_name="renoise", num_steps=4):
        self.kernel = build_kernel(kernel_name, SCHEDULE, num_steps)
        self.steps = list(self.kernel.stochastic_steps)
        shape = (B, len(self.steps), D)
        self.x = [randn(seed, *shape) for seed in (0, 1)]  # states of winner, loser
        self.x0_theta = [randn(seed, *shape) for seed in (2, 3)]
        self.x0_ref = [x0 + 0.2 * randn(seed, *shape) for x0, seed in zip(self.x0_theta, (4, 5), strict=True)]
        self.x_next = [
            torch.stack([self.kernel.sample(x[:, i], f[:, i], n, z[:, i]) for i, n in enumerate(self.steps)], 1)
            for x, f, z in zip(self.x, self.x0_ref, (randn(6, *shape), randn(7, *shape)), strict=True)
        ]
        self.eps = [randn(seed, *shape) for seed in (8, 9)]
        self.eps_theta = [randn(seed, *shape) for seed in (10, 11)]
        self.eps_ref = [e + 0.2 * randn(seed, *shape) for e, seed in zip(self.eps_theta, (12, 13), strict=True)]

    def log_prob(self, member, x0, reduction="sum"):
        x, x_next = self.x[member], self.x_next[member]
        columns = [
            self.kernel.log_prob(x_next[:, i], x[:, i], x0[member][:, i], n, reduction)
            for i, n in enumerate(self.steps)
        ]
        return torch.stack(columns, 1)  # (B, S)

    def log_probs(self, reduction="sum"):
        """Arguments of the online losses."""
        return [self.log_prob(m, x0, reduction) for m in (0, 1) for x0 in (self.x0_theta, self.x0_ref)]

    def errors(self, reduction="sum"):
        """Arguments of the offline losses."""
        return [
            squared_error(self.eps[m], e[m], reduction, batch_dims=2)
            for m in (0, 1)
            for e in (self.eps_theta, self.eps_ref)
        ]

    def squared_step_error(self, member, x0, b, n):
        """||x_{n+1} - mu||^2 for pair b at the n-th trained step, from the coordinates."""
        mean = self.kernel.mean(self.x[member][b, n], x0[member][b, n], self.steps[n])
        return float(((self.x_next[member][b, n] - mean) ** 2).sum())

    def squared_eps_error(self, member, eps, b, n):
        return float(((self.eps[member][b, n] - eps[member][b, n]) ** 2).sum())


def minus_log_sigmoid(value):
    return math.log1p(math.exp(-value))


def written_online(pair, beta, sign=1.0, per_dimension=False, one_sigma=False, reference=True):
    """PSO Eq. 7 as loops over pairs and steps; the arguments make it one of the wrong forms."""
    total = 0.0
    for b in range(B):
        inside = 0.0
        for n, step in enumerate(pair.steps):
            variance = pair.kernel.std(pair.steps[0] if one_sigma else step) ** 2
            target, other = (
                pair.squared_step_error(m, pair.x0_theta, b, n)
                - (pair.squared_step_error(m, pair.x0_ref, b, n) if reference else 0.0)
                for m in (0, 1)
            )
            inside += (target - other) / (2 * variance * (D if per_dimension else 1))
        total += minus_log_sigmoid(-sign * beta * inside)
    return total / B


def written_offline(pair, beta, sign=1.0, per_dimension=False, reference=True, average=False):
    """PSO Eq. 6 as loops over pairs and steps; the arguments make it one of the wrong forms."""
    total = 0.0
    for b in range(B):
        inside = 0.0
        for n in range(len(pair.steps)):
            target, other = (
                pair.squared_eps_error(m, pair.eps_theta, b, n)
                - (pair.squared_eps_error(m, pair.eps_ref, b, n) if reference else 0.0)
                for m in (0, 1)
            )
            inside += (target - other) / (D if per_dimension else 1) / (len(pair.steps) if average else 1)
        total += minus_log_sigmoid(-sign * beta * inside)
    return total / B


def written_mixed(pair, beta, weights, sign_target=1.0, sign_reference=1.0, one_sigma=False, reference=True):
    """PSO Eq. 5 as loops over pairs and steps; the arguments make it one of the wrong forms."""
    total = 0.0
    for b in range(B):
        inside = 0.0
        for n, step in enumerate(pair.steps):
            variance = pair.kernel.std(pair.steps[0] if one_sigma else step) ** 2
            error = pair.squared_eps_error(0, pair.eps_theta, b, n)
            drift = pair.squared_step_error(1, pair.x0_theta, b, n)
            if reference:
                error -= pair.squared_eps_error(0, pair.eps_ref, b, n)
                drift -= pair.squared_step_error(1, pair.x0_ref, b, n)
            inside += sign_target * float(weights[n]) * error - sign_reference * drift / (2 * variance)
        total += minus_log_sigmoid(-beta * inside)
    return total / B


SMALL_BETA = 0.05  # keeps the sigmoids of summed dimensions away from saturation
KERNEL_NAMES = ["renoise", "euler-ancestral", "ddim"]


@pytest.mark.parametrize("kernel_name", KERNEL_NAMES)
def test_online_pso_is_eq_7_and_not_its_mutations(kernel_name):
    pair = Pair(kernel_name)
    if kernel_name == "ddim":  # its last std, 0.029, would saturate every sigmoid
        pair.steps = pair.steps[:3]
    loss = float(pso_online(*pair.log_probs(), SMALL_BETA)[0])
    assert loss == pytest.approx(written_online(pair, SMALL_BETA), rel=1e-9)
    per_dimension = float(pso_online(*pair.log_probs("mean"), SMALL_BETA)[0])
    assert per_dimension == pytest.approx(written_online(pair, SMALL_BETA, per_dimension=True), rel=1e-9)
    wrong = {
        "flipped sign": written_online(pair, SMALL_BETA, sign=-1.0),
        "sum for mean": written_online(pair, SMALL_BETA, per_dimension=True),
        "1/(2 sigma^2) before the sum, as printed": written_online(pair, SMALL_BETA, one_sigma=True),
        "missing reference": written_online(pair, SMALL_BETA, reference=False),
        "one sigmoid a step": float(pso_online(*pair.log_probs(), SMALL_BETA, steps="outside")[0]),
    }
    for name, value in wrong.items():
        assert abs(value - loss) > 1e-3, name


def test_offline_pso_is_eq_6_and_not_its_mutations():
    pair = Pair()
    loss = float(pso_offline(*pair.errors(), SMALL_BETA)[0])
    assert loss == pytest.approx(written_offline(pair, SMALL_BETA), rel=1e-9)
    per_dimension = float(pso_offline(*pair.errors("mean"), SMALL_BETA)[0])
    assert per_dimension == pytest.approx(written_offline(pair, SMALL_BETA, per_dimension=True), rel=1e-9)
    wrong = {
        "flipped sign": written_offline(pair, SMALL_BETA, sign=-1.0),
        "sum for mean over dimensions": written_offline(pair, SMALL_BETA, per_dimension=True),
        "mean for sum over steps": written_offline(pair, SMALL_BETA, average=True),
        "missing reference": written_offline(pair, SMALL_BETA, reference=False),
    }
    for name, value in wrong.items():
        assert abs(value - loss) > 1e-4, name


@pytest.mark.parametrize("kind", ["printed", "exact"])
def test_mixed_pso_is_eq_5_and_not_its_mutations(kind):
    pair, beta = Pair(), 0.02
    weights = pso_weights(pair.kernel, kind)
    arguments = (*pair.errors()[:2], *pair.log_probs()[2:])
    loss = float(pso(*arguments, beta, weights)[0])
    assert loss == pytest.approx(written_mixed(pair, beta, weights), rel=1e-6)
    other = pso_weights(pair.kernel, "exact" if kind == "printed" else "printed")
    wrong = {
        "flipped target": written_mixed(pair, beta, weights, sign_target=-1.0),
        "flipped reference": written_mixed(pair, beta, weights, sign_reference=-1.0),
        "one sigma": written_mixed(pair, beta, weights, one_sigma=True),
        "missing reference model": written_mixed(pair, beta, weights, reference=False),
        "the other weighting": written_mixed(pair, beta, other),
    }
    for name, value in wrong.items():
        assert abs(value - loss) > 1e-4, name


def test_diffusion_dpo_and_d3po_are_their_formulas_and_not_mutations():
    theta_w, ref_w, theta_l, ref_l = inputs()
    theirs = -F.logsigmoid(-BETA * ((theta_w - ref_w) - (theta_l - ref_l))).mean()
    ours = diffusion_dpo(theta_w, ref_w, theta_l, ref_l, BETA)[0]
    torch.testing.assert_close(ours, theirs)
    per_time = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    weighted = -F.logsigmoid(-BETA * per_time * ((theta_w - ref_w) - (theta_l - ref_l))).mean()
    torch.testing.assert_close(diffusion_dpo(theta_w, ref_w, theta_l, ref_l, BETA, per_time)[0], weighted)
    torch.testing.assert_close(  # errors against log-probs: the sign
        d3po(theta_w, ref_w, theta_l, ref_l, BETA)[0], diffusion_dpo(-theta_w, -ref_w, -theta_l, -ref_l, BETA)[0]
    )
    h = (theta_w - ref_w) - (theta_l - ref_l)
    wrong = {
        "flipped sign": -F.logsigmoid(BETA * h).mean(),
        "missing reference": -F.logsigmoid(-BETA * (theta_w - theta_l)).mean(),
        "log sigmoid of the mean (diffusers #6702)": -F.logsigmoid(-BETA * h.mean()),
        "sum over pairs": -F.logsigmoid(-BETA * h).sum(),
        "one sigmoid a pair": -F.logsigmoid(-BETA * h.sum(1)).mean(),
    }
    for name, value in wrong.items():
        assert abs(float(value - ours)) > 1e-2, name


# ---- special cases ----


def test_offline_pso_is_diffusion_dpo_on_the_few_step_times():
    x = inputs()
    for steps in (x, inputs(steps=1)):
        ours, diagnostics = pso_offline(*steps, BETA, steps="outside")
        theirs, their_diagnostics = diffusion_dpo(*steps, BETA)
        assert torch.equal(ours, theirs) and diagnostics == their_diagnostics
    assert torch.equal(pso_offline(*inputs(steps=1), BETA)[0], diffusion_dpo(*inputs(steps=1), BETA)[0])
    assert abs(float(pso_offline(*x, BETA)[0] - diffusion_dpo(*x, BETA)[0])) > 1e-2  # not with the sum inside


@pytest.mark.parametrize("clamp", [None, 0.1])
def test_online_pso_is_d3po_a_step_at_a_time(clamp):
    x = inputs()
    ours, diagnostics = pso_online(*x, BETA, clamp, steps="outside")
    theirs, their_diagnostics = d3po(*x, BETA, clamp)
    assert torch.equal(ours, theirs) and diagnostics == their_diagnostics
    assert abs(float(pso_online(*x, BETA, clamp)[0] - theirs)) > 1e-2  # not with the sum inside
    # N = 2: "remove the last step" leaves one, and the two agree either way.
    pair = Pair(num_steps=2)
    assert pair.steps == [0]
    one = pair.log_probs("mean")
    assert torch.equal(pso_online(*one, BETA, clamp, steps="inside")[0], d3po(*one, BETA, clamp)[0])


def test_a_sigmoid_a_step_is_an_upper_bound_at_one_nth_of_beta():
    # -log sigmoid is convex: by Jensen the mean over steps at S * beta is at least the sigmoid of the sum at beta.
    x = inputs()
    inside, outside = pso_online(*x, BETA)[0], pso_online(*x, 3 * BETA, steps="outside")[0]
    assert float(outside) > float(inside)


@pytest.mark.parametrize("steps", ["inside", "outside"])
def test_sum_and_mean_over_dimensions_differ_by_beta(steps):
    pair = Pair()
    for loss, arguments in ((pso_online, pair.log_probs), (pso_offline, pair.errors)):
        summed = loss(*arguments("sum"), BETA / D, steps=steps)[0]
        torch.testing.assert_close(summed, loss(*arguments("mean"), BETA, steps=steps)[0])
    # Both halves of the mixed objective scale alike, so one weight serves both reductions.
    for kind in ("printed", "exact"):
        weights = pso_weights(pair.kernel, kind)
        values = [
            pso(*pair.errors(r)[:2], *pair.log_probs(r)[2:], beta, weights, steps)[0]
            for r, beta in (("sum", BETA / D), ("mean", BETA))
        ]
        torch.testing.assert_close(*values)
    # The mutation: a mean on one half and a sum on the other.
    mixed_up = pso(*pair.errors("mean")[:2], *pair.log_probs("sum")[2:], BETA / D, weights, steps)[0]
    assert abs(float(mixed_up - values[0])) > 1e-2


# ---- PSO Eq. 5's weights ----


def test_exact_weights_of_the_four_step_grid():
    renoise = build_kernel("renoise", SCHEDULE, 4)
    exact = pso_weights(renoise, "exact")
    assert [round(w, 2) for w in exact.tolist()] == [6.41, 3.20, 2.71]
    ab = SCHEDULE.alpha_bar[renoise.timesteps]
    formula = ab[1:] * (1 - ab[:-1]) / (2 * ab[:-1] * (1 - ab[1:]))
    torch.testing.assert_close(exact, formula.float())
    assert pso_weights(renoise, "printed").tolist() == [1, 1, 1]
    for name in ("euler-ancestral", "ddim"):  # the Markov chain's posterior: exactly one half less
        weights = pso_weights(build_kernel(name, SCHEDULE, 4), "exact")
        torch.testing.assert_close(weights[:3], exact - 0.5)


@pytest.mark.parametrize("kernel_name", KERNEL_NAMES)
def test_exact_weights_turn_errors_into_kls(kernel_name):
    kernel = build_kernel(kernel_name, SCHEDULE, 4)
    steps = list(kernel.stochastic_steps)
    x0, eps, eps_theta, eps_pre = (randn(seed, B, D) for seed in range(4))
    target, errors = [], []
    for n in steps:
        t = int(kernel.timesteps[n])
        x_t = SCHEDULE.add_noise(x0, eps, t)
        state = SCHEDULE.vp_to_ve(x_t, t) if kernel_name == "euler-ancestral" else x_t
        f_theta, f_pre = (SCHEDULE.x0_from_eps(x_t, e, t) for e in (eps_theta, eps_pre))
        kl_difference = kernel.kl(state, x0, f_pre, n, "sum") - kernel.kl(state, x0, f_theta, n, "sum")
        # The log-ratio is linear in x_{n+1}, so its expectation under q is its value at q's mean: no Jensen needed.
        at_q_mean = kernel.mean(state, x0, n)
        log_ratio = kernel.log_prob(at_q_mean, state, f_theta, n, "sum") - kernel.log_prob(
            at_q_mean, state, f_pre, n, "sum"
        )
        torch.testing.assert_close(log_ratio, kl_difference)
        target.append(kl_difference)
        errors.append([squared_error(eps, e, "sum") for e in (eps_theta, eps_pre)])
    err, err_ref = (torch.stack([pair[i] for pair in errors], 1) for i in (0, 1))
    target = torch.stack(target, 1)  # (B, S)
    weights = pso_weights(kernel, "exact")
    torch.testing.assert_close(-weights * (err - err_ref), target, rtol=1e-5, atol=1e-5)

    beta, nothing = 1e-3, torch.zeros(B, len(steps), dtype=torch.float64)
    loss, diagnostics = pso(err, err_ref, nothing, nothing, beta, weights)
    torch.testing.assert_close(diagnostics["margin"], target.sum(1).mean(), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss, -F.logsigmoid(beta * target.sum(1)).mean(), rtol=1e-6, atol=0)
    printed = pso(err, err_ref, nothing, nothing, beta, pso_weights(kernel, "printed"))[1]["margin"]
    assert abs(float(printed / diagnostics["margin"]) - 1) > 0.3  # another scale than the reference half's


def test_exact_weights_need_independent_noising_not_the_printed_markov_chain():
    # Under the Markov chain of Eq. 2, q(x_{n+1} | x_n, x_0) is the DDPM posterior, whose mean is not the renoise one:
    # then the expected log-ratio of the renoise kernel is no multiple of the error difference.
    renoise, posterior = build_kernel("renoise", SCHEDULE, 4), build_kernel("ddim", SCHEDULE, 4)
    x0, eps, eps_theta, eps_pre = (randn(seed, B, D) for seed in range(4))
    t = int(renoise.timesteps[1])
    x_t = SCHEDULE.add_noise(x0, eps, t)
    f_theta, f_pre = (SCHEDULE.x0_from_eps(x_t, e, t) for e in (eps_theta, eps_pre))
    errors = squared_error(eps, eps_theta, "sum") - squared_error(eps, eps_pre, "sum")
    ratios = {}
    for name, q_mean in (("independent", renoise.mean(x_t, x0, 1)), ("markov", posterior.mean(x_t, x0, 1))):
        log_probs = [renoise.log_prob(q_mean, x_t, f, 1, "sum") for f in (f_theta, f_pre)]
        ratios[name] = (log_probs[0] - log_probs[1]) / -errors
    weight = pso_weights(renoise, "exact")[1].double()
    torch.testing.assert_close(ratios["independent"], weight.expand(B), rtol=1e-5, atol=0)
    assert float((ratios["markov"] / weight - 1).abs().max()) > 0.2  # and it differs from sample to sample
    assert float(ratios["markov"].std()) > 0.1


# ---- gradients by hand, and the clamp ----


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("steps", ["inside", "outside"])
def test_gradient_of_online_pso_by_hand(steps, reduction):
    pair = Pair()
    for x0 in pair.x0_theta:
        x0.requires_grad_()
    beta = 0.1
    arguments = pair.log_probs(reduction)
    loss, _ = pso_online(*arguments, beta, steps=steps)
    gradients = torch.autograd.grad(loss, pair.x0_theta)

    h = (arguments[0] - arguments[1] - arguments[2] + arguments[3]).detach()  # (B, S)
    S = h.shape[1]
    h = h.sum(1, keepdim=True).expand(B, S) if steps == "inside" else h
    # dL/dh = -beta sigmoid(-beta h) / count, dh/dlogp = +1 for the winner, -1 for the loser, and
    # dlogp/dx0_hat = b (x' - mu) / s^2, divided by D under the mean.
    pull = -beta * torch.sigmoid(-beta * h) / (B if steps == "inside" else B * S)
    for member, sign in ((0, 1.0), (1, -1.0)):
        for i, n in enumerate(pair.steps):
            mean = pair.kernel.mean(pair.x[member][:, i], pair.x0_theta[member][:, i], n)
            score = pair.kernel.x0_weight[n] * (pair.x_next[member][:, i] - mean) / pair.kernel.std(n) ** 2
            by_hand = sign * pull[:, i : i + 1] * score / (D if reduction == "mean" else 1)
            torch.testing.assert_close(gradients[member][:, i], by_hand)


def clamp_gradients(loss, ratio_w, ratio_l):
    w, l = (torch.full((1, 1), r, dtype=torch.float64, requires_grad=True) for r in (ratio_w, ratio_l))
    zero = torch.zeros(1, 1, dtype=torch.float64)
    value = loss(w, zero, l, zero)
    return [float(g) for g in torch.autograd.grad(value, (w, l))]


def check_clamp(loss):
    """Zero gradient outside, whichever side and whichever member; the value is log clip(ratio, 0.9, 1.1)."""
    for outside in (0.2, -0.2, math.log(1.1) + 1e-6, math.log(0.9) - 1e-6):
        for inside in (0.0, 0.05, math.log(1.1) - 1e-6, math.log(0.9) + 1e-6):
            w, l = clamp_gradients(loss, outside, inside)
            assert w == 0 and l > 0, (outside, inside)
            w, l = clamp_gradients(loss, inside, outside)
            assert w < 0 and l == 0, (inside, outside)
        assert clamp_gradients(loss, outside, outside) == [0, 0]
    zero = torch.zeros(1, 1, dtype=torch.float64)
    for ratio, clipped in ((0.2, 1.1), (-0.2, 0.9), (0.05, math.exp(0.05))):
        value = float(loss(zero + ratio, zero, zero, zero))
        assert value == pytest.approx(minus_log_sigmoid(BETA * math.log(clipped)), rel=1e-12)


@pytest.mark.parametrize("steps", ["inside", "outside"])
def test_clamp_stops_the_gradient_in_both_directions(steps):
    check_clamp(lambda *x: pso_online(*x, BETA, clamp=0.1, steps=steps)[0])
    check_clamp(lambda *x: d3po(*x, BETA, clamp=0.1)[0])


LOW, HIGH = math.log(0.9), math.log(1.1)
WRONG_CLAMPS = {
    "none": lambda d, sign: d,
    "one-sided, as in PPO": lambda d, sign: d.clamp(max=HIGH) if sign > 0 else d.clamp(min=LOW),
    "one-sided, the other side": lambda d, sign: d.clamp(min=LOW) if sign > 0 else d.clamp(max=HIGH),
    "on 1/ratio": lambda d, sign: -((-d).clamp(LOW, HIGH)),
    "on the log-ratio": lambda d, sign: d.clamp(-0.1, 0.1),
    "on the ratio, without the log": lambda d, sign: d.exp().clamp(0.9, 1.1) - 1,
    "straight-through": lambda d, sign: d + (d.clamp(LOW, HIGH) - d).detach(),
}


@pytest.mark.parametrize("name", WRONG_CLAMPS)
def test_wrong_clamps_fail_the_check(name):
    clamp = WRONG_CLAMPS[name]
    with pytest.raises(AssertionError):
        check_clamp(lambda w, rw, l, rl: -F.logsigmoid(BETA * (clamp(w - rw, 1) - clamp(l - rl, -1))).mean())


def test_beyond_the_clamp_on_both_sides_training_stops_at_log_2():
    # What a run that drifted too far looks like: both ratios at the same bound, loss log 2, and no way back.
    x = [torch.full((B, 3), value, dtype=torch.float64) for value in (0.5, 0.0, 0.3, 0.0)]
    x[0].requires_grad_(), x[2].requires_grad_()
    loss, diagnostics = pso_online(*x, beta=50.0, clamp=0.1, steps="outside")
    loss.backward()
    assert float(loss.detach()) == pytest.approx(LOG_2) and diagnostics["clamped"] == 1
    assert not x[0].grad.any() and not x[2].grad.any()


def test_diagnostics():
    zero = torch.zeros(2, 2)
    logp_w = torch.tensor([[0.3, 0.05], [-0.05, -0.3]])
    _, outside = pso_online(logp_w, zero, zero, zero, BETA, steps="outside")
    _, inside = pso_online(logp_w, zero, zero, zero, BETA)
    _, clamped = pso_online(logp_w, zero, zero, zero, BETA, clamp=0.1, steps="outside")
    assert float(outside["margin"]) == 0 and outside["accuracy"] == 0.5 and outside["clamped"] == 0
    assert float(inside["margin"]) == 0 and inside["accuracy"] == 0.5
    assert float(clamped["margin"]) == pytest.approx((LOW + HIGH) / 4) and clamped["clamped"] == 0.25


def test_extreme_margins_stay_finite():
    zero = torch.zeros(1, 1)
    loss, _ = d3po(zero - 1e4, zero, zero + 1e4, zero, beta=50.0)
    assert float(loss) == pytest.approx(1e6)


def test_squared_error():
    a, b = randn(0, 2, 3, 4, 5).float(), randn(1, 2, 3, 4, 5).float()
    torch.testing.assert_close(squared_error(a, b, "sum"), ((a - b) ** 2).sum((1, 2, 3)))
    torch.testing.assert_close(squared_error(a, b, "mean", batch_dims=2), ((a - b) ** 2).mean((2, 3)))
    torch.testing.assert_close(squared_error(a, b, "sum"), 60 * squared_error(a, b))
    assert squared_error(a.half(), b.half()).dtype == torch.float32


TWO, OTHER, NONE = torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2, 0)
REFUSALS = [
    (lambda: pso_online(TWO, TWO, TWO, OTHER, 1.0), r"logp_l_ref has shape \(2, 2\) and logp_w \(2, 3\)"),
    (lambda: pso_offline(TWO[:, 0], TWO, TWO, TWO, 1.0), r"err_w is torch.float32 of shape \(2,\): expected floats"),
    (lambda: d3po(NONE, NONE, NONE, NONE, 1.0), r"logp_w is torch.float32 of shape \(2, 0\): expected floats"),
    (lambda: d3po(TWO.long(), TWO, TWO, TWO, 1.0), r"logp_w is torch.int64"),
    (lambda: diffusion_dpo(TWO, TWO, TWO, TWO, 0.0), "beta = 0.0: expected a finite positive number"),
    (lambda: diffusion_dpo(TWO, TWO, TWO, TWO, math.nan), "beta = nan: expected a finite positive number"),
    (lambda: pso_online(TWO, TWO, TWO, TWO, 1.0, clamp=1.0), "clamp = 1.0: expected a number between 0 and 1"),
    (lambda: pso_online(TWO, TWO, TWO, TWO, 1.0, steps="mean"), "steps = 'mean': expected \"inside\""),
    (lambda: pso(TWO, TWO, TWO, TWO, 1.0, torch.ones(2)), r"weight has shape \(2,\): expected \(3,\), one a step"),
    (lambda: pso_weights(build_kernel("renoise", SCHEDULE, 4), "paper"), "weight kind 'paper': expected \"printed\""),
    (lambda: pso_weights(build_kernel("renoise", SCHEDULE, 1), "exact"), "num_steps = 1 has no stochastic step"),
    (lambda: squared_error(TWO, TWO, "max"), 'reduction = \'max\': expected "mean" or "sum"'),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)
