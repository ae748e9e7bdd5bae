r"""Predict a reward for each step from a few reward queries, and sum them to discounted returns (SDPO).

Steps are indexed n = 0, ..., T-1 in the order in which they are taken; the paper counts t = T-1-n down. Step n predicts
`x0_hat[:, n]`, from the state before it, and it is this prediction, decoded, that a reward sees: never the noisy state.
[SDPO Eq. 8] gives the reward of step n the index of the state after it; the two agree once x0_hat is named by its
step.

1. `query_steps` chooses the steps whose prediction is worth a query [SDPO Eq. 9] [SDPO Eq. 10], as a strategy has it;
2. the caller decodes those and scores them, or leaves both to `dense_rewards`, which counts the queries;
3. `predict_rewards` fills in the other steps [SDPO Eq. 11] and keeps the exact rewards where they were queried;
4. `discounted_returns` sums over the future [SDPO Eq. 13]; `fsalign_lib.advantages` standardises per step and prompt.

| strategy | queries | the other steps | in the paper's Sec. 4.3 |
| --- | --- | --- | --- |
| adaptive | first, anchor, last | similarity | 3 queries & similarity & adaptive anchor |
| random | first, a random interior step, last | similarity | 3 queries & similarity & random anchor |
| fixed | first, the middle step, last | similarity | 3 queries & similarity & fixed anchor (25th of 50) |
| similarity | first, last | similarity | 2 queries & similarity |
| interpolation | first, last | linear in n | 2 queries & interpolation |
| copy | last | the same | 1 query & copy |
| all | every step | none left | 50 queries |

With T <= 2 no step lies inside: the strategies with an anchor, and those with two queries, then query every step.
Nothing here carries a gradient. All is computed in float32 (float64 for float64 input).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fsalign_lib.devices import send
from fsalign_lib.kernels import at_least_float32

Strategy = Literal["adaptive", "random", "fixed", "similarity", "interpolation", "copy", "all"]


def _check_strategy(strategy: str, x0_hat: Tensor) -> None:
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy = {strategy!r}: expected one of {', '.join(get_args(Strategy))}")
    if x0_hat.ndim < 3 or x0_hat.numel() == 0 or not x0_hat.is_floating_point():
        raise ValueError(f"x0_hat is {x0_hat.dtype} of shape {tuple(x0_hat.shape)}: expected floats (B, T, ...)")


def _take(x: Tensor, steps: Tensor) -> Tensor:
    """Return x[b, steps[b, q]].  # (B, Q, ...)"""
    return x[torch.arange(len(x), device=x.device)[:, None], steps]


def cosine_similarity(x0_hat: Tensor, steps: Tensor) -> Tensor:
    r"""Return at [b, n, q] the cosine of $\hat x_0$ of step n and of step `steps[b, q]` [SDPO Eq. 9].

    Args:
        x0_hat: predictions, in latent space  # (B, T, ...)
        steps: long  # (B, Q)

    Returns:
        float32, 0 where a prediction is zero.  # (B, T, Q)
    """
    x = at_least_float32(x0_hat.detach()).flatten(2)  # (B, T, D)
    norm = torch.linalg.vector_norm(x, dim=2)  # (B, T)
    product = x @ _take(x, steps).transpose(1, 2)  # (B, T, Q)
    scale = norm[:, :, None] * _take(norm, steps)[:, None]
    return torch.where(scale > 0, product / scale.clamp_min(torch.finfo(x.dtype).tiny), 0.0)


def anchor_step(x0_hat: Tensor) -> Tensor:
    r"""Return the interior step least like the first and the last [SDPO Eq. 10],

    $$\arg\min_{0 < n < T-1} \cos(\hat x_0^{(n)}, \hat x_0^{(0)}) + \cos(\hat x_0^{(n)}, \hat x_0^{(T-1)}),$$

    the earliest of equals. Published code lets n run over all steps. But where the predictions move along an arc
    the sum is least at its ends (at angle a of an arc h < pi it is cos a + cos(h - a)), and the query is spent on a
    step already known; so the two ends stay out, as printed.

    Returns:
        long.  # (B,)

    Raises:
        ValueError: T < 3, which leaves no interior.
    """
    B, T = x0_hat.shape[:2]
    if T < 3:
        raise ValueError(f"x0_hat has {T} steps: an anchor needs 3 or more; query every step instead")
    ends = send(torch.tensor([0, T - 1]), x0_hat.device).expand(B, 2)
    return 1 + cosine_similarity(x0_hat, ends).sum(2)[:, 1:-1].argmin(1)


def query_steps(x0_hat: Tensor, strategy: Strategy = "adaptive", uniform: Tensor | None = None) -> Tensor:
    """Choose the steps whose rewards are queried, ascending in each row.

    Args:
        x0_hat: predictions  # (B, T, ...)
        uniform: for "random", numbers in [0, 1) that choose the anchor  # (B,)

    Returns:
        long, on the device of x0_hat.  # (B, Q)

    Raises:
        ValueError: an unknown strategy, x0_hat not floats (B, T, ...), or "random" without `uniform` (B,) in [0, 1).
    """
    _check_strategy(strategy, x0_hat)
    B, T = x0_hat.shape[:2]
    if strategy == "random" and (
        uniform is None
        or uniform.shape != (B,)
        or (uniform.device.type == "cpu" and ((uniform < 0) | (uniform >= 1)).any())
    ):
        raise ValueError(f'uniform: strategy "random" needs {B} numbers in [0, 1), one a trajectory')
    if strategy == "copy":
        steps = torch.tensor([T - 1])
    elif strategy == "all" or T <= 2:
        steps = torch.arange(T)
    else:
        steps = torch.tensor([0, T - 1])
        if strategy in ("adaptive", "random", "fixed"):
            anchor = {
                "adaptive": lambda: anchor_step(x0_hat),
                "random": lambda: 1 + (uniform * (T - 2)).long(),
                "fixed": lambda: torch.full((B,), (T - 1) // 2),
            }[strategy]()
            anchor = send(anchor, x0_hat.device)
            return torch.stack([torch.zeros_like(anchor), anchor, torch.full_like(anchor, T - 1)], 1)
    return send(steps, x0_hat.device).expand(B, -1)


def predict_rewards(x0_hat: Tensor, steps: Tensor, rewards: Tensor, strategy: Strategy = "adaptive") -> Tensor:
    r"""Predict a reward for each step from the Q that were queried [SDPO Eq. 11],

    $$\hat R_n = \frac{\sum_q \mathrm{Sim}_q^n\, R_q}{\sum_q \mathrm{Sim}_q^n}, \qquad \hat R_{n_q} = R_q,$$

    Sim the cosine similarity of step n to step $n_q$. The second half is published code's: Eq. 11 alone would blur the
    very rewards that were paid for. A negative similarity counts as 0 (as printed it would lead out of the range of
    the queried rewards, without bound where the sum nears 0); if none is positive, the mean of the queried rewards.

    Args:
        x0_hat: predictions  # (B, T, ...)
        steps: the queried steps, from `query_steps`  # (B, Q) long
        rewards: their rewards  # (B, Q)

    Returns:
        float32, detached.  # (B, T)

    Raises:
        ValueError: an unknown strategy, x0_hat not floats (B, T, ...), or steps and rewards not of one shape (B, Q).
    """
    _check_strategy(strategy, x0_hat)
    B, T = x0_hat.shape[:2]
    if steps.shape != rewards.shape or steps.ndim != 2 or len(steps) != B:
        raise ValueError(
            f"steps has shape {tuple(steps.shape)}, rewards {tuple(rewards.shape)}: expected both ({B}, Q)"
        )
    rewards = at_least_float32(rewards.detach())
    if strategy == "interpolation" and T > 1:
        n = torch.linspace(0, 1, T, dtype=rewards.dtype, device=rewards.device)
        predicted = torch.lerp(rewards[:, :1], rewards[:, -1:], n)
    elif strategy in ("copy", "all"):
        predicted = rewards[:, -1:].repeat(1, T)
    else:
        similarity = cosine_similarity(x0_hat, steps).clamp_min(0).to(rewards.dtype)  # (B, T, Q)
        total = similarity.sum(2, keepdim=True)
        similarity = torch.where(total > 0, similarity / total.where(total > 0, 1), 1 / steps.shape[1])
        predicted = (similarity * rewards[:, None]).sum(2)
    return predicted.scatter(1, steps, rewards)


@dataclass(frozen=True)
class DenseRewards:
    """Hold the `rewards` of every step, the `steps` that were queried, and the number of `queries` (reward calls)."""

    rewards: Tensor  # (B, T)
    steps: Tensor  # (B, Q)
    queries: int


@torch.no_grad()
def dense_rewards(
    x0_hat: Tensor,
    reward: Callable[[Tensor, Tensor], Tensor],
    strategy: Strategy = "adaptive",
    uniform: Tensor | None = None,
    share_first: int = 1,
) -> DenseRewards:
    """Choose the steps, query them in one call, fill in the rest.

    Args:
        x0_hat: predictions  # (B, T, ...)
        reward: takes M predictions (M, ...) and the rows (M,) of x0_hat that they come from (on the CPU, for the
            prompts), decodes, and returns their rewards (M,).
        uniform: for "random"  # (B,)
        share_first: rows come in groups of this many with one prompt and one x_T, such as the 2 of a pair. Their first
            predictions are the same, and are queried once.

    Raises:
        ValueError: as `query_steps`; B is not a multiple of share_first; the reward is not (M,).
    """
    steps = query_steps(x0_hat, strategy, uniform)
    B, Q = steps.shape
    if share_first < 1 or B % share_first:
        raise ValueError(f"share_first = {share_first}: expected a divisor of the batch size {B}")
    # Row by row; a group's step 0, which every strategy but "copy" queries first, is queried in its first row. So where
    # each query stands is known without reading the steps back from an accelerator.
    asked = torch.ones(B, Q, dtype=torch.bool)
    shares = strategy != "copy" or x0_hat.shape[1] == 1
    if shares:
        asked[torch.arange(B) % share_first > 0, 0] = False
    place = asked.flatten().cumsum(0).view(B, Q) - 1  # of each among the M
    if shares:
        place[:, 0] = place[::share_first, 0].repeat_interleave(share_first)
    chosen = asked.flatten().nonzero()[:, 0]  # (M,)
    rows, device = chosen // Q, steps.device
    scores = reward(x0_hat[send(rows, device), steps.flatten()[send(chosen, device)]], rows)
    if scores.shape != rows.shape:
        raise ValueError(f"the reward has shape {tuple(scores.shape)}: expected ({len(rows)},), one a prediction")
    return DenseRewards(predict_rewards(x0_hat, steps, scores[send(place, device)], strategy), steps, len(rows))


def discounted_returns(rewards: Tensor, gamma: float = 0.99) -> Tensor:
    r"""Return $G_n = \sum_{k \ge 0} \gamma^k R_{n+k}$ [SDPO Eq. 13] in float32; for gamma = 0 the rewards.  # (B, T)

    Raises:
        ValueError: gamma outside [0, 1], or rewards that are not floats (B, T).
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma = {gamma}: expected 0 (no returns) to 1 (no discount)")
    if rewards.ndim != 2 or not rewards.is_floating_point():
        raise ValueError(f"rewards is {rewards.dtype} of shape {tuple(rewards.shape)}: expected floats (B, T)")
    rewards = at_least_float32(rewards.detach())
    n = torch.arange(rewards.shape[1], device=rewards.device)
    ahead = n - n[:, None]  # (T, T)
    discount = torch.where(ahead >= 0, gamma ** ahead.clamp_min(0).to(rewards.dtype), 0.0)
    return rewards @ discount.T
