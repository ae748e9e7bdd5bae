"""Check exercises on losses from preferred pairs (notebooks 04 to 08)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fsalign_lib.kernels import build_kernel
from fsalign_lib.lesson.exercise import Exercise, draw
from fsalign_lib.losses.preference import d3po, pso, pso_online, pso_weights, pso_without_reference
from fsalign_lib.schedules import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear()
RENOISE = build_kernel("renoise", SCHEDULE, 4)
BEFORE, AFTER = SCHEDULE.alpha_bar[RENOISE.timesteps[:-1]], SCHEDULE.alpha_bar[RENOISE.timesteps[1:]]


def _log_probs(seed: int, *shape: int) -> tuple[Tensor, ...]:
    """Draw log-probs of winner, winner under the reference, loser, loser under the reference."""
    w, l = (draw(seed + k, *shape).requires_grad_() for k in (0, 1))
    return w, draw(seed + 2, *shape), l, draw(seed + 3, *shape)


check_tilt = Exercise(
    "tilt",
    right=lambda p, r, beta: (p.log() + r / beta).softmax(0),
    mistakes={
        "you multiply the reward by beta. A larger beta is a tighter leash: it divides.": lambda p, r, beta: (
            p.log() + beta * r
        ).softmax(0),
        "the result is not normalised: it has to add up to 1.": lambda p, r, beta: p * (r / beta).exp(),
        "the reference is missing: this is what the reward alone wants.": lambda p, r, beta: (r / beta).softmax(0),
        "beta divides the log of the reference too, which sharpens or flattens it. It belongs to the reward alone.": (
            lambda p, r, beta: ((p.log() + r) / beta).softmax(0)
        ),
        "you add the reward's softmax to the reference: the tilt multiplies.": lambda p, r, beta: (
            (p + (r / beta).softmax(0)) / 2
        ),
    },
    cases=lambda: [(draw(20, 7).softmax(0), draw(21, 7), 0.5)],
    returns="(n,), probabilities",
)

check_dpo_loss = Exercise(
    "dpo_loss",
    right=lambda w, w_ref, l, l_ref, beta: d3po(*(x[:, None] for x in (w, w_ref, l, l_ref)), beta)[0],
    mistakes={
        "the reference is missing: without it nothing holds the policy, and log-ratios become log-probs.": (
            lambda w, w_ref, l, l_ref, beta: -F.logsigmoid(beta * (w - l)).mean()
        ),
        "winner and loser are swapped: this makes the loser likelier.": lambda w, w_ref, l, l_ref, beta: (
            -F.logsigmoid(-beta * ((w - w_ref) - (l - l_ref))).mean()
        ),
        "the sign is wrong: the log-likelihood of the votes is to be raised, so the loss is minus that.": (
            lambda w, w_ref, l, l_ref, beta: F.logsigmoid(beta * ((w - w_ref) - (l - l_ref))).mean()
        ),
        "the log is missing: minus the probability of the vote, not minus its log.": lambda w, w_ref, l, l_ref, beta: (
            -torch.sigmoid(beta * ((w - w_ref) - (l - l_ref))).mean()
        ),
        "beta stands outside the sigmoid, where it only scales the loss.": lambda w, w_ref, l, l_ref, beta: (
            -beta * F.logsigmoid((w - w_ref) - (l - l_ref)).mean()
        ),
        "you divide by beta: the implicit reward is beta times the log-ratio.": lambda w, w_ref, l, l_ref, beta: (
            -F.logsigmoid(((w - w_ref) - (l - l_ref)) / beta).mean()
        ),
        "you average the margins of all pairs inside the sigmoid: each pair is a vote of its own.": (
            lambda w, w_ref, l, l_ref, beta: -F.logsigmoid(beta * ((w - w_ref) - (l - l_ref)).mean())
        ),
    },
    cases=lambda: [(*_log_probs(30, 8), 2.0)],
    returns="a scalar, the mean over pairs",
)

check_kl_weight = Exercise(
    "kl_weight",
    right=lambda before, after: pso_weights(RENOISE, "exact").double(),
    mistakes={
        "it is upside down: the level before the step stands in the denominator, through sigma^2 = (1 - ab) / ab.": (
            lambda before, after: before * (1 - after) / (2 * after * (1 - before))
        ),
        "the 1/2 of the Gaussian KL is missing.": lambda before, after: after * (1 - before) / (before * (1 - after)),
        "b_n is not squared: it is sqrt(alpha_bar') and the KL has b_n^2.": lambda before, after: (
            after.sqrt() * (1 - before) / (2 * before * (1 - after))
        ),
        "sigma_t^2 is (1 - alpha_bar) / alpha_bar: you left out the division by alpha_bar.": lambda before, after: (
            after * (1 - before) / (2 * (1 - after))
        ),
        "this is the weight for the posterior of the Markov chain, 1/2 less. A renoising step forgets its state.": (
            lambda before, after: after * (1 - before) / (2 * before * (1 - after)) - 0.5
        ),
        "these are the printed weights, 1 for all steps: they do not give the KL.": lambda before, after: (
            torch.ones_like(before)
        ),
        "s_n is not squared: the KL divides by twice the variance 1 - alpha_bar'.": lambda before, after: (
            after * (1 - before) / (2 * before * (1 - after).sqrt())
        ),
    },
    cases=lambda: [(BEFORE, AFTER)],
    returns="(S,), one weight a step",
)


def _delta(w: Tensor, w_ref: Tensor, l: Tensor, l_ref: Tensor) -> Tensor:
    return (w - w_ref) - (l - l_ref)


check_online_pso_loss = Exercise(
    "online_pso_loss",
    right=lambda w, w_ref, l, l_ref, beta: pso_online(w, w_ref, l, l_ref, beta)[0],
    mistakes={
        "the sum over steps is outside the sigmoid: one sigmoid a step is D3PO, which has another optimum.": (
            lambda *x: -F.logsigmoid(x[4] * _delta(*x[:4])).mean()
        ),
        "you average over the steps inside the sigmoid: log-probs of a path add up.": lambda *x: (
            -F.logsigmoid(x[4] * _delta(*x[:4]).mean(1)).mean()
        ),
        "the reference is missing: a log-ratio is against the frozen model.": lambda w, w_ref, l, l_ref, beta: (
            -F.logsigmoid(beta * (w - l).sum(1)).mean()
        ),
        "winner and loser are swapped.": lambda *x: -F.logsigmoid(-x[4] * _delta(*x[:4]).sum(1)).mean(),
        "beta stands outside the sigmoid, where it only scales the loss.": lambda *x: (
            -x[4] * F.logsigmoid(_delta(*x[:4]).sum(1)).mean()
        ),
        "you divide by beta.": lambda *x: -F.logsigmoid(_delta(*x[:4]).sum(1) / x[4]).mean(),
        "you add up over the pairs: the loss is their mean.": lambda *x: (
            -F.logsigmoid(x[4] * _delta(*x[:4]).sum(1)).sum()
        ),
        "you add up the pairs, too, inside one sigmoid: each pair has its own.": lambda *x: (
            -F.logsigmoid(x[4] * _delta(*x[:4]).sum())
        ),
    },
    cases=lambda: [(*_log_probs(40, 5, 3), 0.7)],
    returns="a scalar, the mean over pairs",
)

check_clipped_log_ratio = Exercise(
    "clipped_log_ratio",
    right=lambda logp, ref, c: (logp - ref).exp().clamp(1 - c, 1 + c).log(),
    mistakes={
        "you clip the log-ratio to [-c, c]. Published code clips the ratio to [1 - c, 1 + c].": lambda logp, ref, c: (
            logp - ref
        ).clamp(-c, c),
        "the log is missing: what enters the loss is the log of the clipped ratio.": lambda logp, ref, c: (
            (logp - ref).exp().clamp(1 - c, 1 + c)
        ),
        "the ratio is upside down: the policy over the reference.": lambda logp, ref, c: (
            (ref - logp).exp().clamp(1 - c, 1 + c).log()
        ),
        "you clip the log-ratio to [1 - c, 1 + c]: take exp first.": lambda logp, ref, c: (logp - ref).clamp(
            1 - c, 1 + c
        ),
        "nothing is clipped.": lambda logp, ref, c: logp - ref,
        "only the upper end is clipped.": lambda logp, ref, c: (logp - ref).exp().clamp(max=1 + c).log(),
    },
    cases=lambda: [((0.2 * draw(50, 6, 3)).requires_grad_(), 0.05 * draw(51, 6, 3), 0.1)],
    returns="(B, S), a log-ratio for each step",
)

check_loss_per_step = Exercise(
    "loss_per_step",
    right=lambda delta, beta: pso_online(
        delta, 0 * delta.detach(), 0 * delta, 0 * delta.detach(), beta, steps="outside"
    )[0],
    mistakes={
        "the steps are added up inside the sigmoid: that is the paper's form, not the code's.": lambda delta, beta: (
            -F.logsigmoid(beta * delta.sum(1)).mean()
        ),
        "the sigmoids of a pair are added up: published code takes their mean, so this is S times the loss.": (
            lambda delta, beta: -F.logsigmoid(beta * delta).sum(1).mean()
        ),
        "you average the steps inside the sigmoid.": lambda delta, beta: -F.logsigmoid(beta * delta.mean(1)).mean(),
        "beta stands outside the sigmoid.": lambda delta, beta: -beta * F.logsigmoid(delta).mean(),
        "the sign is wrong: this loss falls when the loser wins.": lambda delta, beta: (
            -F.logsigmoid(-beta * delta).mean()
        ),
    },
    cases=lambda: [(draw(52, 5, 3).requires_grad_(), 1.5)],
    returns="a scalar, the mean over pairs and steps",
)

check_kept_share = Exercise(
    "kept_share",
    right=lambda r: r.var(1).mean() / r.flatten().var(),
    mistakes={
        "this is the share that the start decides: the variance of the means. Asked is what is left within a start.": (
            lambda r: r.mean(1).var() / r.flatten().var()
        ),
        "you take variances over the starts, dimension 0. The start is given: the variance is over its ends.": (
            lambda r: r.var(0).mean() / r.flatten().var()
        ),
        "these are standard deviations: variances add up, standard deviations do not.": lambda r: (
            r.std(1).mean() / r.flatten().std()
        ),
        "the division is missing: a share is of the whole variance.": lambda r: r.var(1).mean(),
        "it is upside down.": lambda r: r.flatten().var() / r.var(1).mean(),
    },
    cases=lambda: [(draw(53, 40, 8) + 1.5 * draw(54, 40, 1),), (2 * draw(55, 40, 8) + draw(56, 40, 1),)],
    returns="a scalar between 0 and 1",
)


def _mixed(err: Tensor, err_pre: Tensor, logp: Tensor, logp_pre: Tensor) -> tuple[Tensor, Tensor]:
    return err - err_pre, logp - logp_pre


check_mixed_loss = Exercise(
    "mixed_loss",
    right=lambda err, err_pre, logp, logp_pre, omega, beta: pso(err, err_pre, logp, logp_pre, beta, omega)[0],
    mistakes={
        "the model's own samples have the wrong sign: their log-ratio is subtracted from the margin.": lambda *x: (
            -F.logsigmoid(x[5] * (-x[4] * _mixed(*x[:4])[0] + _mixed(*x[:4])[1]).sum(1)).mean()
        ),
        "the data half has the wrong sign: a smaller error is a larger likelihood.": lambda *x: (
            -F.logsigmoid(x[5] * (x[4] * _mixed(*x[:4])[0] - _mixed(*x[:4])[1]).sum(1)).mean()
        ),
        "omega is missing: it turns a noise error into nats, the unit of the other half.": lambda *x: (
            -F.logsigmoid(x[5] * (-_mixed(*x[:4])[0] - _mixed(*x[:4])[1]).sum(1)).mean()
        ),
        "omega weighs both halves: log-probs are in nats already.": lambda *x: (
            -F.logsigmoid(x[5] * (-x[4] * sum(_mixed(*x[:4]))).sum(1)).mean()
        ),
        "the frozen model is missing in the data half.": lambda *x: (
            -F.logsigmoid(x[5] * (-x[4] * x[0] - _mixed(*x[:4])[1]).sum(1)).mean()
        ),
        "there is a sigmoid for each step: Eq. 5 adds the steps up inside.": lambda *x: (
            -F.logsigmoid(x[5] * (-x[4] * _mixed(*x[:4])[0] - _mixed(*x[:4])[1])).mean()
        ),
        "you average over the steps inside the sigmoid: the paper adds them up.": lambda *x: (
            -F.logsigmoid(x[5] * (-x[4] * _mixed(*x[:4])[0] - _mixed(*x[:4])[1]).mean(1)).mean()
        ),
    },
    cases=lambda: [
        (
            draw(60, 5, 3).square().requires_grad_(),
            draw(61, 5, 3).square(),
            draw(62, 5, 3).requires_grad_(),
            draw(63, 5, 3),
            torch.tensor([6.4, 3.2, 2.7], dtype=torch.float64),
            0.2,
        )
    ],
    returns="a scalar, the mean over pairs",
)

check_concept_loss = Exercise(
    "concept_loss",
    right=lambda err_w, err_l, beta, share: pso_without_reference(err_w, err_l, beta, share)[0],
    mistakes={
        "target and reference are swapped: this unlearns the concept.": lambda w, l, beta, share: (
            (1 - beta * (share * w - l)).clamp_min(0).mean()
        ),
        "the share belongs to the references alone.": lambda w, l, beta, share: (
            (1 - beta * share * (l - w)).clamp_min(0).mean()
        ),
        "the share of the references is missing: they would push as hard as the targets pull.": (
            lambda w, l, beta, share: (1 - beta * (l - w)).clamp_min(0).mean()
        ),
        "the hinge is missing: a pair that is won by the margin has no more gradient.": lambda w, l, beta, share: (
            1 - beta * (share * l - w)
        ).mean(),
        "one hinge for the sum of all steps: published code trains one step after another, a hinge each.": (
            lambda w, l, beta, share: (1 - beta * (share * l - w).sum(1)).clamp_min(0).mean()
        ),
        "the margin of 1 is missing: the hinge would close at a tie.": lambda w, l, beta, share: (
            (-beta * (share * l - w)).clamp_min(0).mean()
        ),
    },
    cases=lambda: [
        (draw(70, 6, 3).square().requires_grad_(), (6 * draw(71, 6, 3).square()).requires_grad_(), 5.0, 0.1)
    ],
    returns="a scalar, the mean over pairs and steps",
)
