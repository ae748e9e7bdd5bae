"""Check exercises on distribution matching for one-step generators (notebooks 13 to 17)."""

import torch
from torch import Tensor

from fsalign_lib.lesson.exercise import Exercise, draw
from fsalign_lib.losses.distribution_matching import (
    diff_instruct,
    edm_weight,
    guidance_reward,
    inverse_gap_weight,
    reward_term,
    sim,
)
from fsalign_lib.schedules import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear()
T = 499
ALPHA_BAR = SCHEDULE.alpha_bar[T]


def _attached(*seeds: int) -> list[Tensor]:
    """Draw predictions or samples (B, D) with a graph."""
    return [draw(seed, 6, 3).requires_grad_() for seed in seeds]


check_conditional_score = Exercise(
    "conditional_score",
    right=lambda x_t, x0, alpha_bar: SCHEDULE.score_from_x0(x_t, x0, T),
    mistakes={
        "the sign is wrong: the score points from x_t back to sqrt(alpha_bar) x_0.": lambda x_t, x0, ab: (
            (x_t - ab.sqrt() * x0) / (1 - ab)
        ),
        "you divide by the standard deviation: this is minus the noise. The score divides by the variance.": (
            lambda x_t, x0, ab: -(x_t - ab.sqrt() * x0) / (1 - ab).sqrt()
        ),
        "x_0 is not shrunk: the mean of x_t given x_0 is sqrt(alpha_bar) x_0.": lambda x_t, x0, ab: (
            -(x_t - x0) / (1 - ab)
        ),
        "x_0 is shrunk by alpha_bar: it is its square root.": lambda x_t, x0, ab: -(x_t - ab * x0) / (1 - ab),
        "the division is missing.": lambda x_t, x0, ab: ab.sqrt() * x0 - x_t,
    },
    cases=lambda: [(draw(120, 5, 2), draw(121, 5, 2), ALPHA_BAR)],
    returns="(B, D), the score of each point",
)


def _y(assistant: Tensor, reference: Tensor) -> Tensor:
    return (assistant - reference).detach()


check_pseudo_loss = Exercise(
    "pseudo_loss",
    right=lambda assistant, reference, x_t: diff_instruct(assistant, reference, x_t)[0],
    mistakes={
        "y is not detached: its own gradient has no place in the theorem.": lambda s, r, x: ((s - r) * x).sum(1).mean(),
        "the sign of y is wrong: it is the assistant's score minus the teacher's.": lambda s, r, x: (
            -(_y(s, r) * x).sum(1).mean()
        ),
        "you average over the dimensions: y^T x_t is a sum.": lambda s, r, x: (_y(s, r) * x).mean(),
        "the assistant is missing: the teacher's score alone pulls all samples to its modes.": lambda s, r, x: (
            -(r.detach() * x).sum(1).mean()
        ),
        "this is the squared distance of the scores: it has another gradient, and none at all in x_t here.": (
            lambda s, r, x: (s - r).square().sum(1).mean()
        ),
        "you add up over the samples: the loss is their mean.": lambda s, r, x: (_y(s, r) * x).sum(),
        "x_t is detached: it is the only thing through which the student learns.": lambda s, r, x: (
            ((s - r) * x.detach()).sum(1).mean()
        ),
    },
    cases=lambda: [tuple(_attached(122, 123, 124))],
    returns="a scalar, the mean over samples",
)


def _log_ratio(log_p: Tensor, prior: Tensor, c: int) -> Tensor:
    return log_p[:, c] - (log_p + prior.log()).logsumexp(1)


check_log_density_ratio = Exercise(
    "log_density_ratio",
    right=_log_ratio,
    mistakes={
        "this is log p(c | x), with the prior of the class in it: the reward is log p(x | c) - log p(x).": (
            lambda log_p, prior, c: _log_ratio(log_p, prior, c) + prior[c].log()
        ),
        "the sign is wrong: what the prompt explains better than the others is rewarded.": lambda *x: -_log_ratio(*x),
        "the marginal is not weighted by the prior of the classes.": lambda log_p, prior, c: (
            log_p[:, c] - log_p.logsumexp(1)
        ),
        "you average logs: the marginal is the log of a mean of densities.": lambda log_p, prior, c: (
            log_p[:, c] - log_p @ prior
        ),
        "this is the ratio: the reward is its log.": lambda *x: _log_ratio(*x).exp(),
        "the marginal is missing: this is the log-density under the prompt.": lambda log_p, prior, c: log_p[:, c],
    },
    cases=lambda: [(draw(125, 6, 3), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 1)],
    returns="(B,), one reward a point",
)

check_guidance_loss = Exercise(
    "guidance_loss",
    right=guidance_reward,
    mistakes={
        "the sign is wrong: a loss is minimised, so a reward enters it with a minus.": lambda c, u, x: (
            ((c - u).detach() * x).sum(1).mean()
        ),
        "the scores are not detached: only x_t carries the gradient.": lambda c, u, x: -((c - u) * x).sum(1).mean(),
        "the unconditional score is missing: the reward is a ratio of two densities.": lambda c, u, x: (
            -(c.detach() * x).sum(1).mean()
        ),
        "you average over the dimensions: an inner product is a sum.": lambda c, u, x: -((c - u).detach() * x).mean(),
        "you add the two scores: the reward has their difference.": lambda c, u, x: (
            -((c + u).detach() * x).sum(1).mean()
        ),
        "x_t is detached: nothing is left to learn from.": lambda c, u, x: -((c - u) * x.detach()).sum(1).mean(),
    },
    cases=lambda: [tuple(_attached(126, 127, 128))],
    returns="a scalar, the mean over samples",
)


def _divergence(s: Tensor, r: Tensor, x: Tensor) -> Tensor:
    return (_y(s, r) * x).sum(1).mean()


check_dipp_loss = Exercise(
    "dipp_loss",
    right=lambda s, r, x_t, reward, alpha: diff_instruct(s, r, x_t)[0] + reward_term(reward, alpha),
    mistakes={
        "the reward stands inside the sum over dimensions, as in Listing 1: it counts D times.": (
            lambda s, r, x, reward, alpha: (_y(s, r) * x - alpha * reward[:, None]).sum(1).mean()
        ),
        "you divide the reward by alpha: alpha is 1 / beta, and multiplies it.": lambda s, r, x, reward, alpha: (
            _divergence(s, r, x) - reward.mean() / alpha
        ),
        "the reward has the wrong sign: minimising this lowers it.": lambda s, r, x, reward, alpha: (
            _divergence(s, r, x) + alpha * reward.mean()
        ),
        "alpha multiplies the divergence as well, which leaves the balance as it was.": (
            lambda s, r, x, reward, alpha: alpha * (_divergence(s, r, x) - reward.mean())
        ),
        "y is not detached.": lambda s, r, x, reward, alpha: ((s - r) * x).sum(1).mean() - alpha * reward.mean(),
        "the sign of y is wrong: this drives the student away from its teacher.": lambda s, r, x, reward, alpha: (
            -_divergence(s, r, x) - alpha * reward.mean()
        ),
        "the reward is detached: its gradient through the sample is what aligns.": lambda s, r, x, reward, alpha: (
            _divergence(s, r, x) - alpha * reward.detach().mean()
        ),
        "the rewards are added up over the samples, the divergence is their mean.": lambda s, r, x, reward, alpha: (
            _divergence(s, r, x) - alpha * reward.sum()
        ),
    },
    cases=lambda: [(*_attached(129, 130, 131), draw(132, 6).requires_grad_(), 0.3)],
    returns="a scalar, the mean over samples",
)

check_gap_weight = Exercise(
    "gap_weight",
    right=inverse_gap_weight,
    mistakes={
        "the weight is not detached: it scales the update and is not to be learned from.": lambda a, r: (
            1 / (a - r).norm(dim=1)
        ),
        "you divide by the squared norm: Eq. C.8 has the norm.": lambda a, r: 1 / (a - r).detach().square().sum(1),
        "there is one weight for the batch: each sample has its own gap.": lambda a, r: (
            1 / (a - r).detach().norm(dim=1).mean().expand(len(a))
        ),
        "this is the gap: the weight is one over it.": lambda a, r: (a - r).detach().norm(dim=1),
        "this is the root of the mean square: the norm sums over the dimensions.": lambda a, r: (
            1 / (a - r).detach().square().mean(1).sqrt()
        ),
        "this is the sum of absolute values: Eq. C.8 has the Euclidean norm.": lambda a, r: (
            1 / (a - r).detach().abs().sum(1)
        ),
    },
    cases=lambda: [tuple(_attached(133, 134))],
    returns="(B,), one weight a sample",
)


def _root(y: Tensor, c: float) -> Tensor:
    return (y.square().sum(1, keepdim=True) + c**2).sqrt()


check_huber_slope = Exercise(
    "huber_slope",
    right=lambda y, c: y / _root(y, c),
    mistakes={
        "each entry has a normaliser of its own: the norm is over the whole sample.": lambda y, c: (
            y / (y.square() + c**2).sqrt()
        ),
        "the normaliser is detached: it is a function of x_t too, and stays in the graph.": lambda y, c: (
            y / _root(y, c).detach()
        ),
        "c is not squared under the root.": lambda y, c: y / (y.square().sum(1, keepdim=True) + c).sqrt(),
        "the root is missing: the slope has a norm below 1, however large y is.": lambda y, c: (
            y / (y.square().sum(1, keepdim=True) + c**2)
        ),
        "this is y / (|y| + c): near 0 it is no derivative of the pseudo-Huber distance.": lambda y, c: (
            y / (y.norm(dim=1, keepdim=True) + c)
        ),
        "there is one norm for the batch: each sample has its own.": lambda y, c: y / (y.square().sum() + c**2).sqrt(),
    },
    cases=lambda: [(*_attached(135), 0.5)],
    returns="(B, D), the slope of each sample",
)

check_score_loss = Exercise(
    "score_loss",
    right=lambda s, r, target: sim(s, r, target, distance="squared")[0],
    mistakes={
        "y is detached, as Diff-Instruct has it: here the gradient flows through both networks' inputs.": (
            lambda s, r, t: -((s - r).detach() * (s - t)).sum(1).mean()
        ),
        "the teacher is run without a graph: its weights are frozen, its input is not.": lambda s, r, t: (
            -((s - r.detach()) * (s - t)).sum(1).mean()
        ),
        "the sign is wrong: this is the gradient uphill.": lambda s, r, t: ((s - r) * (s - t)).sum(1).mean(),
        "you average over the dimensions: an inner product is a sum.": lambda s, r, t: -((s - r) * (s - t)).mean(),
        "this is the distance itself: at the samples its gradient is not that of the theorem.": lambda s, r, t: (
            0.5 * (s - r).square().sum(1).mean()
        ),
        "the second factor has the teacher's score: it is the assistant's minus the target.": lambda s, r, t: (
            -((s - r) * (r - t)).sum(1).mean()
        ),
    },
    cases=lambda: [tuple(_attached(136, 137, 138))],
    returns="a scalar, the mean over samples",
)


def _direction(gap: Tensor) -> Tensor:
    return gap / gap.norm(dim=1, keepdim=True)


check_combined_pull = Exercise(
    "combined_pull",
    right=lambda assistant, reference, reward_gradient, alpha: (
        inverse_gap_weight(assistant, reference)[:, None] * (assistant - reference) - alpha * reward_gradient
    ),
    mistakes={
        "the reward has the wrong sign: the loss holds minus alpha r.": lambda a, r, g, alpha: (
            _direction(a - r) + alpha * g
        ),
        "the gap is not normalised: Eq. C.8 divides by its norm.": lambda a, r, g, alpha: a - r - alpha * g,
        "the reward's gradient is normalised too: alpha would then mean the same for every reward, and it does not.": (
            lambda a, r, g, alpha: _direction(a - r) - alpha * _direction(g)
        ),
        "the gap has the wrong sign: it is the assistant's denoiser minus the teacher's.": lambda a, r, g, alpha: (
            _direction(r - a) - alpha * g
        ),
        "you normalise by the whole batch: each sample has its own norm.": lambda a, r, g, alpha: (
            (a - r) / (a - r).norm() - alpha * g
        ),
        "alpha is missing.": lambda a, r, g, alpha: _direction(a - r) - g,
    },
    cases=lambda: [(draw(139, 5, 4), draw(140, 5, 4), draw(141, 5, 4), 0.3)],
    returns="(B, D), the gradient of the loss in x_0 for each sample",
)

check_noise_weight = Exercise(
    "noise_weight",
    right=edm_weight,
    mistakes={
        "it is upside down: the weight grows where the noise is faint.": lambda s, d: (s * d) ** 2 / (s**2 + d**2),
        "the product in the denominator is not squared.": lambda s, d: (s**2 + d**2) / (s * d),
        "the numerator is the square of the sum: variances add, so it is the sum of squares.": lambda s, d: (
            (s + d) ** 2 / (s * d) ** 2
        ),
        "sigma_data is missing in the numerator: this is 1 / sigma_data^2 at every level.": lambda s, d: (
            s**2 / (s * d) ** 2
        ),
        "this is 1 / sigma^2: the part that stays at large noise, 1 / sigma_data^2, is missing.": lambda s, d: (
            s**-2 * d / d
        ),
    },
    cases=lambda: [(torch.logspace(-1, 1, 5, dtype=torch.float64), 0.5)],
    returns="(n,), one weight a noise level",
)

check_balanced_scale = Exercise(
    "balanced_scale",
    right=lambda reward_gradient: 1 / reward_gradient.flatten(1).norm(dim=1).mean(),
    mistakes={
        "this is the reward's own pull: the scale that makes it 1 is one over it.": lambda g: (
            g.flatten(1).norm(dim=1).mean()
        ),
        "you average the gradients before the norm: pulls of different samples cancel in it.": lambda g: (
            1 / g.mean(0).norm()
        ),
        "this is the norm over the whole batch: each sample has its own.": lambda g: 1 / g.norm(),
        "this is the squared norm: take its root.": lambda g: 1 / g.flatten(1).square().sum(1).mean(),
        "you average over the dimensions: a pull is a norm over the sample.": lambda g: (
            1 / g.flatten(1).square().mean(1).sqrt().mean()
        ),
        "you average 1 / norm: a sample with hardly any gradient would decide alone.": lambda g: (
            1 / g.flatten(1).norm(dim=1)
        ).mean(),
    },
    cases=lambda: [(0.1 * draw(142, 6, 2, 3) * draw(143, 6, 1, 1).exp(),), (3 * draw(144, 4, 5),)],
    returns="a scalar",
)
