r"""Take policy gradients for samplers (DDPO): in the REINFORCE form, and in the clipped importance-sampled one.

A sampler's step is an action, $p_\theta(x_{n+1} | x_n, c)$ its policy, and the reward comes with the last picture. Both
losses are surrogates: their value means nothing, their gradient is an estimate of $-\nabla_\theta E[R]$. Both take
log-probs (B, S) of B trajectories at S stochastic steps, and what each is credited with, `advantage`: the reward less a
baseline, mostly scaled (see `fsalign_lib.advantages`), one number a trajectory (B,) or a step (B, S).

- Over dimensions, the caller has reduced the log-probs. "sum" as printed: only then is exp(logp - logp_old) the ratio
  of two densities. "mean", as published code has it, makes it the D-th root of that ratio, and the gradient 1/D of the
  policy gradient; the published clip of 1e-4 belongs to "mean".
- Over steps, `steps="sum"` as printed, `steps="mean"` as published code (1/S of it).
- Over the batch, the mean.

Source: Black et al., "Training diffusion models with reinforcement learning" (DDPO), their DDPO_SF and DDPO_IS;
restated as [SDPO Eq. 6]. Both functions return (loss, diagnostics), the latter detached scalars, and raise ValueError
for log-probs that are not floating (B, S) tensors of one shape, an advantage of another shape, an unknown `steps`, and
a clip outside (0, 1).
"""

import torch
from torch import Tensor

from fsalign_lib.kernels import Reduction
from fsalign_lib.losses.common import Diagnostics, check_rows, for_each_step


def ddpo_reinforce(logp: Tensor, advantage: Tensor, steps: Reduction = "sum") -> tuple[Tensor, Diagnostics]:
    r"""Compute DDPO in its score-function form (DDPO_SF, [SDPO Eq. 6]): REINFORCE on denoising trajectories,

    $$L = -\frac1B \sum_b \sum_n A_b \log p_\theta(x_{n+1}^b | x_n^b, c_b).$$

    Its gradient is right only for trajectories sampled from the model as it is now: one update a round.

    Args:
        logp: log-probs under theta, with their graph  # (B, S)
        advantage: detached  # (B,) or (B, S)

    Returns:
        the loss, and `log_prob`, the mean log-prob of a transition.
    """
    check_rows(logp=logp)
    advantage = for_each_step("advantage", advantage, logp)
    return _over(-advantage * logp, steps), {"log_prob": logp.detach().mean()}


def ddpo_clipped(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, clip: float | None = 1e-4, steps: Reduction = "sum"
) -> tuple[Tensor, Diagnostics]:
    r"""Compute DDPO_IS, importance-sampled with PPO's clip, for several updates on one set of trajectories,

    $$L = \frac1B \sum_b \sum_n \max\big( -A_b\, w_n^b,\; -A_b\, \mathrm{clip}(w_n^b, 1 - c, 1 + c) \big), \qquad
      w_n = \frac{p_\theta(x_{n+1} | x_n, c)}{p_{\theta'}(x_{n+1} | x_n, c)}.$$

    The maximum keeps the gradient of a ratio outside the range when it is outside on the wrong side (a bad sample that
    got likelier) and drops it on the right side. Each step has a ratio of its own, not the trajectory's product: off
    theta' the gradient is biased, which the clip keeps small. At $\theta = \theta'$ it is that of `ddpo_reinforce`.

    Args:
        logp: log-probs under theta, with their graph  # (B, S)
        logp_old: log-probs under theta', the model that sampled; detached  # (B, S)
        advantage: detached  # (B,) or (B, S)
        clip: c, or None for no clip.

    Returns:
        the loss, and `ratio`, the mean w; `clipped`, the share of w outside the range; `stopped`, the share of terms
        without a gradient for that reason; `kl`, the mean of (logp - logp_old)^2 / 2, an estimate of KL(theta' ||
        theta) a step (under "sum" reduction).
    """
    check_rows(logp=logp, logp_old=logp_old)
    if clip is not None and not 0 < clip < 1:
        raise ValueError(f"clip = {clip}: expected a number between 0 and 1, or None for no clip")
    advantage = for_each_step("advantage", advantage, logp)
    log_ratio = logp - logp_old.detach()
    ratio = log_ratio.exp()  # (B, S)
    kept = -advantage * ratio
    if clip is None:
        clipped, terms = kept.detach(), kept
    else:
        clipped = -advantage * ratio.clamp(1 - clip, 1 + clip)
        terms = torch.where(kept >= clipped, kept, clipped)
    ratio, log_ratio = ratio.detach(), log_ratio.detach()
    return _over(terms, steps), {
        "ratio": ratio.mean(),
        "clipped": ((ratio - 1).abs() > (clip or torch.inf)).float().mean(),
        "stopped": (clipped > kept).float().mean(),
        "kl": (log_ratio**2 / 2).mean(),
    }


def _over(terms: Tensor, steps: Reduction) -> Tensor:
    """Return the batch mean of (B, S) terms, summed or averaged over the steps."""
    if steps not in ("sum", "mean"):
        raise ValueError(f'steps = {steps!r}: expected "sum" (as printed) or "mean" (as published code)')
    return terms.sum(1).mean() if steps == "sum" else terms.mean()
