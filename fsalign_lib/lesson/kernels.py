"""Check exercises on the steps of few-step samplers (notebook 02)."""

import math

import torch
from torch import Tensor

from fsalign_lib.kernels import build_kernel
from fsalign_lib.lesson.exercise import Exercise, draw
from fsalign_lib.schedules import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear()
RENOISE, EULER = (build_kernel(name, SCHEDULE, 4) for name in ("renoise", "euler-ancestral"))
LEVELS = torch.cat([SCHEDULE.alpha_bar[RENOISE.timesteps], torch.ones(1, dtype=torch.float64)])  # (N + 1,)


def _gaussian(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return -0.5 * ((x_next - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)


def _log_prob(x_next: Tensor, x0_hat: Tensor, alpha_bar: Tensor, n: int) -> Tensor:
    return _gaussian(x_next, alpha_bar[n + 1].sqrt() * x0_hat, (1 - alpha_bar[n + 1]).sqrt())  # (B, D)


def _squared(x_next: Tensor, x0_hat: Tensor, alpha_bar: Tensor, n: int) -> Tensor:
    return (x_next - alpha_bar[n + 1].sqrt() * x0_hat).square().sum(1) / (2 * (1 - alpha_bar[n + 1]))  # (B,)


check_step_log_prob = Exercise(
    "step_log_prob",
    right=lambda x_next, x0_hat, alpha_bar, n: RENOISE.log_prob(x_next, x_next, x0_hat, n, "sum"),
    mistakes={
        "this is the standard deviation of the wrong step: step n ends at alpha_bar[n + 1], and its noise is that.": (
            lambda x_next, x0_hat, ab, n: _gaussian(x_next, ab[n + 1].sqrt() * x0_hat, (1 - ab[n]).sqrt()).sum(1)
        ),
        "mean and noise are those of the level where the step starts. It leads to alpha_bar[n + 1].": (
            lambda x_next, x0_hat, ab, n: _gaussian(x_next, ab[n].sqrt() * x0_hat, (1 - ab[n]).sqrt()).sum(1)
        ),
        "the mean is not shrunk: it is sqrt(alpha_bar) x0_hat, with the square root.": lambda x_next, x0_hat, ab, n: (
            _gaussian(x_next, ab[n + 1] * x0_hat, (1 - ab[n + 1]).sqrt()).sum(1)
        ),
        "you took the variance for the standard deviation: s is sqrt(1 - alpha_bar).": lambda x_next, x0_hat, ab, n: (
            _gaussian(x_next, ab[n + 1].sqrt() * x0_hat, 1 - ab[n + 1]).sum(1)
        ),
        "you average over the dimensions. The density of the whole step is a product, so its log is a sum.": (
            lambda *inputs: _log_prob(*inputs).mean(1)
        ),
        "the dimensions are not added up: a log-prob is one number a sample.": lambda *inputs: _log_prob(*inputs),
        "log s and log 2 pi are counted once for the sample. Each dimension has them.": (
            lambda x_next, x0_hat, ab, n: (
                -_squared(x_next, x0_hat, ab, n) - (1 - ab[n + 1]).log() / 2 - 0.5 * math.log(2 * math.pi)
            )
        ),
        "the normaliser is missing: -D log s - D/2 log(2 pi). It cancels in a ratio of two policies, not here.": (
            lambda *inputs: -_squared(*inputs)
        ),
        "the sign is wrong: a step far from the mean is less likely.": lambda *inputs: -_log_prob(*inputs).sum(1),
    },
    cases=lambda: [(draw(10, 6, 3), draw(11, 6, 3), LEVELS, n) for n in (0, 1, 2)],
    returns="(B,), one log-prob a sample",
)


def _toward(x: Tensor, x0_hat: Tensor, r: float) -> Tensor:
    return x0_hat + r * (x - x0_hat)


def _up(sigma: float, sigma_next: float) -> float:
    return sigma_next * math.sqrt(1 - sigma_next**2 / sigma**2)


check_ancestral_mean = Exercise(
    "ancestral_mean",
    right=lambda x, x0_hat, sigma, sigma_next: EULER.mean(x, x0_hat, 1),
    mistakes={
        "you go down to sigma' itself, as the deterministic Euler step does. The noise that follows would come on top: "
        "the mean goes further down, to sigma'^2 / sigma.": lambda x, x0_hat, s, s_next: _toward(x, x0_hat, s_next / s),
        "this is the step as printed in Eq. 14: the noise sigma_up stands where sigma_down belongs.": (
            lambda x, x0_hat, s, s_next: x + (x - x0_hat) / s * (_up(s, s_next) - s)
        ),
        "the two weights are swapped: r = sigma'^2 / sigma^2 is what is kept of the state.": (
            lambda x, x0_hat, s, s_next: _toward(x, x0_hat, 1 - s_next**2 / s**2)
        ),
        "the levels are swapped in r: it is below 1, sigma'^2 / sigma^2.": lambda x, x0_hat, s, s_next: _toward(
            x, x0_hat, s**2 / s_next**2
        ),
        "the weights do not add up to 1: x - x0_hat shrinks by r, not x.": lambda x, x0_hat, s, s_next: (
            x0_hat + s_next**2 / s**2 * x
        ),
        "this forgets the state: it is the renoising sampler, whose mean is x0_hat.": lambda x, x0_hat, s, s_next: (
            x0_hat
        ),
    },
    cases=lambda: [
        (
            draw(12, 5, 2),
            draw(13, 5, 2),
            SCHEDULE.sigma(int(EULER.timesteps[1])),
            SCHEDULE.sigma(int(EULER.timesteps[2])),
        )
    ],
    returns="(B, D), the mean of each step",
)
