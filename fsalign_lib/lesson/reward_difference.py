"""Check exercises on regressions of reward differences, dense rewards and their statistics (notebooks 10 to 12)."""

import math

import torch
from torch import Tensor

from fsalign_lib.advantages import EPS, Advantages
from fsalign_lib.dense_reward import anchor_step, cosine_similarity, discounted_returns
from fsalign_lib.lesson.exercise import Exercise, draw
from fsalign_lib.losses.reward_difference import importance_weights, rebel, sdpo


def _pairs(seed: int, *shape: int) -> tuple[Tensor, ...]:
    """Draw log-probs of a, of a under the old policy, of b, of b under the old policy."""
    a, b = ((0.5 * draw(seed + k, *shape)).requires_grad_() for k in (0, 1))
    return a, 0.2 * draw(seed + 2, *shape), b, 0.2 * draw(seed + 3, *shape)


def _rho(a: Tensor, a_old: Tensor, b: Tensor, b_old: Tensor) -> Tensor:
    return (a - a_old) - (b - b_old)


check_rebel_of_pairs = Exercise(
    "rebel_of_pairs",
    right=lambda a, a_old, b, b_old, R_a, R_b, eta: rebel(a, a_old, b, b_old, R_a, R_b, eta)[0],
    mistakes={
        "the sum over steps is outside the square: that is Eq. 7 as printed, each step would account for the whole "
        "difference.": lambda *x: (_rho(*x[:4]) / x[6] - (x[4] - x[5])[:, None]).square().sum(1).mean(),
        "you multiply by eta: the log-ratio is to be eta times the difference, so it is divided.": lambda *x: (
            (x[6] * _rho(*x[:4]).sum(1) - (x[4] - x[5])).square().mean()
        ),
        "the rewards have the wrong sign: the residual is log-ratios minus rewards.": lambda *x: (
            (_rho(*x[:4]).sum(1) / x[6] + (x[4] - x[5])).square().mean()
        ),
        "the old policy is missing: rho is a log-ratio against the policy that sampled.": lambda *x: (
            ((x[0] - x[2]).sum(1) / x[6] - (x[4] - x[5])).square().mean()
        ),
        "you average over the steps: log-ratios of a path add up.": lambda *x: (
            (_rho(*x[:4]).mean(1) / x[6] - (x[4] - x[5])).square().mean()
        ),
        "eta divides the rewards as well: only the log-ratio is scaled.": lambda *x: (
            ((_rho(*x[:4]).sum(1) - (x[4] - x[5])) / x[6]).square().mean()
        ),
        "you square the mean: each pair has its own square.": lambda *x: (
            (_rho(*x[:4]).sum(1) / x[6] - (x[4] - x[5])).mean().square()
        ),
    },
    cases=lambda: [(*_pairs(90, 6, 3), draw(94, 6), draw(95, 6), 0.5)],
    returns="a scalar, the mean over pairs",
)


def _squares(a, a_old, b, b_old, A_a, A_b, clip) -> tuple[Tensor, Tensor]:
    rho_a, rho_b, dA = a - a_old, b - b_old, A_a - A_b
    return (rho_a - rho_b - dA).square(), (rho_a.clamp(-clip, clip) - rho_b.clamp(-clip, clip) - dA).square()


check_sdpo_loss = Exercise(
    "sdpo_loss",
    right=lambda a, a_old, b, b_old, A_a, A_b, clip: sdpo(a, a_old, b, b_old, A_a, A_b, clip=clip)[0],
    mistakes={
        "you clip the difference of the two log-ratios: each is clipped by itself, before the difference.": (
            lambda *x: torch.maximum(_squares(*x)[0], (_rho(*x[:4]).clamp(-x[6], x[6]) - (x[4] - x[5])).square()).mean()
        ),
        "you take the smaller of the two squares: that keeps pushing outside the clip.": lambda *x: torch.minimum(
            *_squares(*x)
        ).mean(),
        "you clip and leave out the maximum: a sample that went the wrong way is abandoned.": lambda *x: _squares(*x)[
            1
        ].mean(),
        "nothing is clipped.": lambda *x: _squares(*x)[0].mean(),
        "the sum over steps is inside the square: that is REBEL, SDPO squares each step.": lambda *x: torch.maximum(
            *(s.mean() for s in _squares(*(y.sum(1) if isinstance(y, Tensor) else y for y in x)))
        ),
        "the advantages have the wrong sign.": lambda *x: torch.maximum(*_squares(*x[:4], -x[4], -x[5], x[6])).mean(),
        "you add up over the steps: the loss is the mean over pairs and steps.": lambda *x: (
            torch.maximum(*_squares(*x)).sum(1).mean()
        ),
    },
    cases=lambda: [(*_pairs(100, 10, 3), draw(104, 10, 3), draw(105, 10, 3), 0.3)],
    returns="a scalar, the mean over pairs and steps",
)


def _arcs_and_clouds() -> Tensor:
    """Make predictions (B, T, D) that turn along arcs, where the ends are least like themselves, and random ones."""
    angle = torch.linspace(0, 1.2, 6, dtype=torch.float64) ** 1.5
    arc = torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    return torch.cat([arc * (1 + draw(110, 4, 6, 1).abs()), draw(111, 12, 6, 3) + 0.5])


def _likeness(x0_hat: Tensor) -> Tensor:
    B, T = x0_hat.shape[:2]
    return cosine_similarity(x0_hat, torch.tensor([0, T - 1]).expand(B, 2)).sum(2)  # (B, T)


check_anchor = Exercise(
    "anchor",
    right=anchor_step,
    mistakes={
        "the first and the last step may win here, and they are queried already: leave them out.": lambda x: _likeness(
            x
        ).argmin(1),
        "you count from the first interior step: add 1 to have the step's own number.": lambda x: _likeness(x)[
            :, 1:-1
        ].argmin(1),
        "this is the step most like the two ends: the anchor is the least.": lambda x: (
            1 + _likeness(x)[:, 1:-1].argmax(1)
        ),
        "these are inner products: a cosine is free of lengths.": lambda x: (
            1 + ((x * x[:, :1]).sum(2) + (x * x[:, -1:]).sum(2))[:, 1:-1].argmin(1)
        ),
        "you compare with the last prediction alone: Eq. 10 adds both cosines.": lambda x: (
            1 + torch.cosine_similarity(x, x[:, -1:], 2)[:, 1:-1].argmin(1)
        ),
    },
    cases=lambda: [(_arcs_and_clouds(),)],
    returns="(B,), the number of a step for each trajectory",
)

check_predicted_rewards = Exercise(
    "predicted_rewards",
    right=lambda similarity, rewards: (similarity * rewards[:, None]).sum(2) / similarity.sum(2),
    mistakes={
        "the weights do not add up to 1: divide by the sum of the similarities.": lambda s, R: (s * R[:, None]).sum(2),
        "you divide by the number of queries: divide by the sum of the similarities.": lambda s, R: (
            s * R[:, None]
        ).mean(2),
        "this is the plain mean of the rewards: the similarities are not used.": lambda s, R: (
            R.mean(1, keepdim=True).expand(s.shape[:2]).clone()
        ),
        "the weights are a softmax: Eq. 11 has the similarities themselves.": lambda s, R: (
            s.softmax(2) * R[:, None]
        ).sum(2),
        "you normalise over the steps: the weights of each step add up to 1 over the queries.": lambda s, R: (
            s / s.sum(1, keepdim=True) * R[:, None]
        ).sum(2),
        "you copy the reward of the most similar query.": lambda s, R: R.gather(1, s.argmax(2)),
    },
    cases=lambda: [(draw(112, 4, 6, 3).abs(), draw(113, 4, 3))],
    returns="(B, T), one reward a step",
)


def _discounts(rewards: Tensor, gamma: float) -> Tensor:
    return gamma ** torch.arange(rewards.shape[1], dtype=rewards.dtype)


def _late(R: Tensor, gamma: float) -> Tensor:
    """Weigh the last reward by 1 and earlier ones by powers of gamma."""
    return (R * _discounts(R, gamma).flip(0)).flip(1).cumsum(1).flip(1)


check_returns = Exercise(
    "returns",
    right=discounted_returns,
    mistakes={
        "you add up the past: a step can earn only what comes after it.": lambda R, gamma: discounted_returns(
            R.flip(1), gamma
        ).flip(1),
        "the discount counts from the start of the trajectory: it counts from the step that is credited.": (
            lambda R, gamma: (R * _discounts(R, gamma)).flip(1).cumsum(1).flip(1)
        ),
        "there is no discount.": lambda R, gamma: R.flip(1).cumsum(1).flip(1),
        "the step's own reward is missing: the sum begins at k = 0.": lambda R, gamma: discounted_returns(R, gamma) - R,
        "all steps have the same return, that of the first: each step has its own.": lambda R, gamma: (
            discounted_returns(R, gamma)[:, :1].expand_as(R).clone()
        ),
        "the discount is on the wrong end: a step's own reward counts most, the last one least.": _late,
    },
    cases=lambda: [(draw(114, 3, 6), 0.7)],
    returns="(B, T), one return a step",
)


def _by_prompt(function, returns: Tensor, prompts: Tensor) -> Tensor:
    result = torch.zeros_like(returns)
    for prompt in prompts.unique():
        result[prompts == prompt] = function(returns[prompts == prompt])
    return result


check_step_advantage = Exercise(
    "step_advantage",
    right=lambda returns, prompts: Advantages(3, returns.shape[1], min_count=1, dtype=torch.float64)(returns, prompts),
    mistakes={
        "you pool the steps of a prompt: early returns sum over more rewards, so each step has its own statistics.": (
            lambda G, prompts: _by_prompt(lambda g: (g - g.mean()) / (g.std(correction=0) + EPS), G, prompts)
        ),
        "you pool the prompts: an easy prompt would count as a good sample.": lambda G, prompts: (
            (G - G.mean(0)) / (G.std(0, correction=0) + EPS)
        ),
        "the division by the standard deviation is missing.": lambda G, prompts: _by_prompt(
            lambda g: g - g.mean(0), G, prompts
        ),
        "you divide by the variance.": lambda G, prompts: _by_prompt(
            lambda g: (g - g.mean(0)) / (g.var(0, correction=0) + EPS), G, prompts
        ),
        "this is the standard deviation with n - 1. The library takes that of the population, correction=0.": (
            lambda G, prompts: _by_prompt(lambda g: (g - g.mean(0)) / (g.std(0) + EPS), G, prompts)
        ),
        "the mean is not subtracted.": lambda G, prompts: _by_prompt(
            lambda g: g / (g.std(0, correction=0) + EPS), G, prompts
        ),
    },
    cases=lambda: [(3 * draw(115, 12, 4) + torch.arange(4) + torch.arange(12)[:, None] % 3, torch.arange(12) % 3)],
    returns="(B, T), one advantage a step",
)

check_step_weights = Exercise(
    "step_weights",
    right=lambda num_steps, decay, eta: importance_weights(num_steps, decay, eta).double(),
    mistakes={
        "the weights are reversed: n = 0, the noisiest step, has the largest.": lambda T, decay, eta: (
            importance_weights(T, decay, eta, "reverse").double()
        ),
        "you multiply by eta: the weight is decay^n / eta.": lambda T, decay, eta: importance_weights(
            T, decay, 1 / eta
        ).double(),
        "the exponent starts at 1: the first step has decay^0 = 1.": lambda T, decay, eta: (
            decay * importance_weights(T, decay, eta).double()
        ),
        "eta is missing.": lambda T, decay, eta: importance_weights(T, decay).double(),
        "the weights fall along a line: they fall by a factor from step to step.": lambda T, decay, eta: (
            (1 - (1 - decay) * torch.arange(T, dtype=torch.float64)) / eta
        ),
        "you take exp(-decay n): the base is decay.": lambda T, decay, eta: (
            torch.exp(-decay * torch.arange(T, dtype=torch.float64)) / eta
        ),
    },
    cases=lambda: [(6, 0.8, 0.5), (4, 0.9, math.e)],
    returns="(T,), one weight a step",
)
