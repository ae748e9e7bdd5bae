"""Check exercises on policy gradients for samplers (notebook 09)."""

import torch
from torch import Tensor

from fsalign_lib.lesson.exercise import Exercise, draw
from fsalign_lib.losses.policy_gradient import ddpo_clipped, ddpo_reinforce

check_reinforce_loss = Exercise(
    "reinforce_loss",
    right=lambda logp, advantage: ddpo_reinforce(logp, advantage)[0],
    mistakes={
        "the sign is wrong: minimising this lowers the reward.": lambda logp, A: (A.detach() * logp.sum(1)).mean(),
        "you average over the steps: the log-prob of a trajectory is the sum of its steps.": lambda logp, A: (
            -(A.detach()[:, None] * logp).mean()
        ),
        "you add up over the trajectories: the loss is their mean.": lambda logp, A: -(A.detach() * logp.sum(1)).sum(),
        "you weigh probabilities, not their logs: grad p = p grad log p, and the samples bring the p already.": (
            lambda logp, A: -(A.detach() * logp.sum(1).exp()).mean()
        ),
        "the advantage is not detached: it is a number, its own gradient has no place here.": lambda logp, A: (
            -(A * logp.sum(1)).mean()
        ),
        "the advantage is missing: this raises the likelihood of every sample, good or bad.": lambda logp, A: (
            -logp.sum(1).mean()
        ),
    },
    cases=lambda: [(draw(80, 6, 3).requires_grad_(), draw(81, 6).requires_grad_())],
    returns="a scalar, the mean over trajectories",
)


def _terms(logp: Tensor, old: Tensor, A: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    ratio = (logp - old.detach()).exp()
    return -A[:, None] * ratio, -A[:, None] * ratio.clamp(1 - clip, 1 + clip)


def _of_paths(logp: Tensor, old: Tensor, A: Tensor, clip: float) -> Tensor:
    return torch.maximum(*_terms(logp.sum(1, keepdim=True), old.sum(1, keepdim=True), A, clip)).sum(1).mean()


def _of_logs(logp: Tensor, old: Tensor, A: Tensor, clip: float) -> Tensor:
    rho = logp - old.detach()
    return torch.maximum(-A[:, None] * rho, -A[:, None] * rho.clamp(-clip, clip)).sum(1).mean()


check_clipped_loss = Exercise(
    "clipped_loss",
    right=lambda logp, logp_old, advantage, clip: ddpo_clipped(logp, logp_old, advantage, clip)[0],
    mistakes={
        "you take the smaller of the two losses: that pushes on where it should stop, and stops where a sample went "
        "the wrong way.": lambda *x: torch.minimum(*_terms(*x)).sum(1).mean(),
        "you clip and leave out the maximum: a sample that went the wrong way is abandoned, where it should be pulled "
        "back.": lambda *x: _terms(*x)[1].sum(1).mean(),
        "nothing is clipped: the loss promises more than any policy can gain.": lambda *x: _terms(*x)[0].sum(1).mean(),
        "this has one ratio for the whole trajectory: DDPO has one for each step.": _of_paths,
        "you clip the log-ratio: take exp first.": _of_logs,
        "the sign is wrong: a good sample would become less likely.": lambda logp, old, A, clip: (
            torch.maximum(*_terms(logp, old, -A, clip)).sum(1).mean()
        ),
        "you average over the steps: the printed loss adds them up.": lambda *x: torch.maximum(*_terms(*x)).mean(),
    },
    cases=lambda: [((0.4 * draw(82, 8, 3)).requires_grad_(), 0.2 * draw(83, 8, 3), draw(84, 8), 0.2)],
    returns="a scalar, the mean over trajectories",
)


def _prompt_means(reward: Tensor, prompt: Tensor) -> Tensor:
    same = (prompt[:, None] == prompt).double()
    return same @ reward / same.sum(1)


def _others(reward: Tensor, prompt: Tensor) -> Tensor:
    same = (prompt[:, None] == prompt).double()
    return reward - (same @ reward - reward) / (same.sum(1) - 1)


def _standardised(reward: Tensor, prompt: Tensor) -> Tensor:
    A = reward - _prompt_means(reward, prompt)
    return A / _prompt_means(A.square(), prompt).sqrt()


check_centred_reward = Exercise(
    "centred_reward",
    right=lambda reward, prompt: reward - _prompt_means(reward, prompt),
    mistakes={
        "you subtract the mean of the batch: prompts that are easy for every policy would count as good.": (
            lambda reward, prompt: reward - reward.mean()
        ),
        "these are the means alone: subtract them from the rewards.": _prompt_means,
        "the sign is wrong: a better reward is a larger advantage.": lambda reward, prompt: (
            _prompt_means(reward, prompt) - reward
        ),
        "you divide by the standard deviation of the prompt: that is no baseline, it changes the objective.": (
            _standardised
        ),
        "the sample is left out of its own mean. That baseline is right too, and m / (m - 1) times larger; asked is "
        "the mean that contains it.": _others,
    },
    cases=lambda: [(draw(85, 9) + torch.arange(9) % 3, torch.arange(9) % 3), (draw(86, 8), torch.arange(8) // 2 % 2)],
    returns="(B,), one advantage a trajectory",
)
