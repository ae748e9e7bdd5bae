r"""Learn from differences of rewards: REBEL on whole trajectories, SDPO step by step.

Two trajectories a and b of one prompt are sampled from the model $\theta'$. The regression asks that the difference of
their log-ratios $\rho = \log p_\theta / p_{\theta'}$ be $\eta$ times the difference of what they earned:

$$\rho^a - \rho^b = \eta\,(R^a - R^b) \quad\Leftrightarrow\quad p_\theta = p_{\theta'}\, e^{\eta R} / Z,$$

one step of mirror descent on E[R], in which $\eta$ is the step size (1/beta of the other losses). With
$\rho^j_n = \log p_\theta(x^j_{n+1} | x^j_n, c) - \log p_{\theta'}(x^j_{n+1} | x^j_n, c)$, the paper's
$p_\theta(x_t | c)$ is this transition.

The right-hand side holds for every pair only if Z is common to both: a and b must start from the same state. In SDPO
they share the prompt and $x_T$, so it holds for the sum over a trajectory (REBEL) and for the first step. At a later
step of SDPO the two stand at different states, and the level of a state can be regressed on only through
$E[\rho | s] = -KL(\theta' \| \theta) \le 0$: a state worse than the mean by more than $w_n$ is left in any direction,
even if all its actions are worth the same. At $\theta'$ the gradient knows nothing of this; the clip keeps near there.

Inputs are log-probs (B, S) of B pairs at S stochastic steps, reduced over dimensions by the caller: "sum" as printed,
"mean" as published code ($\eta_{sum} = D\,\eta_{mean}$ gives the same optimum; the published clip of 1e-4 belongs to
"mean"). Over the batch, the mean. The log-probs under $\theta'$, rewards and advantages are detached. Losses return
(loss, diagnostics), the latter detached scalars, and raise ValueError for inputs that are not floating (B, S) tensors
of one shape, rewards or advantages of another shape, an `eta` or `clip` that is not positive, and an unknown option.
"""

from typing import Literal

import torch
from torch import Tensor

from fsalign_lib.losses.common import Diagnostics, Steps, check_positive, check_rows, for_each_step

Updates = Literal["shuffled", "sequential", "accumulated"]


def rebel(
    logp_a: Tensor,
    logp_a_old: Tensor,
    logp_b: Tensor,
    logp_b_old: Tensor,
    reward_a: Tensor,
    reward_b: Tensor,
    eta: float = 1.0,
    steps: Steps = "inside",
) -> tuple[Tensor, Diagnostics]:
    r"""Compute REBEL on trajectories (Gao et al. 2024; [SDPO Eq. 7], corrected): the square of the sum over the steps,

    $$L = \Big( \frac1\eta \sum_n (\rho_n^a - \rho_n^b) - (R^a - R^b) \Big)^2.$$

    The paper prints the sum of squares, `steps="outside"`: each step alone must then account for the whole difference
    of rewards. The two agree in their gradient at $\theta = \theta'$ and for a single step, not in their optimum.

    Args:
        logp_a, logp_a_old, logp_b, logp_b_old: log-probs under theta, with their graph, and theta'  # (B, S)
        reward_a, reward_b: R, or an advantage (with one baseline and one scale for both)  # (B,)
        eta: the log-ratio scale factor.
        steps: "inside" the square, or "outside": squares are summed.

    Returns:
        the loss, and `residual`, the root of the mean square per term; `log_ratio`, the mean of |rho_n|.
    """
    check_rows(logp_a=logp_a, logp_a_old=logp_a_old, logp_b=logp_b, logp_b_old=logp_b_old)
    check_positive("eta", eta)
    for name, reward in (("reward_a", reward_a), ("reward_b", reward_b)):
        if not reward.is_floating_point() or reward.shape != logp_a.shape[:1]:
            raise ValueError(
                f"{name} is {reward.dtype} of shape {tuple(reward.shape)}: expected floats ({len(logp_a)},)"
            )
    if steps not in ("inside", "outside"):
        raise ValueError(f'steps = {steps!r}: expected "inside" (the square of the sum) or "outside" (as printed)')
    rho_a, rho_b = logp_a - logp_a_old.detach(), logp_b - logp_b_old.detach()
    difference = rho_a - rho_b  # (B, S)
    if steps == "inside":
        difference = difference.sum(1, keepdim=True)  # (B, 1)
    residual = difference / eta - (reward_a - reward_b).detach()[:, None]
    return residual.square().sum(1).mean(), {
        "residual": residual.detach().square().mean().sqrt(),
        "log_ratio": torch.cat([rho_a, rho_b]).detach().abs().mean(),
    }


def sdpo(
    logp_a: Tensor,
    logp_a_old: Tensor,
    logp_b: Tensor,
    logp_b_old: Tensor,
    advantage_a: Tensor,
    advantage_b: Tensor,
    weight: float | Tensor = 1.0,
    clip: float | None = 1e-4,
) -> tuple[Tensor, Diagnostics]:
    r"""Compute SDPO: a regression for each pair and step, the larger [SDPO Eq. 16] of unclipped [SDPO Eq. 14] and
    clipped [SDPO Eq. 15],

    $$L = \frac{1}{BS} \sum \max(l, \tilde l), \quad l = \big( w_n (\rho_n^a - \rho_n^b) - (A_n^a - A_n^b) \big)^2,
      \quad \tilde l = \big( w_n (\tilde\rho_n^a - \tilde\rho_n^b) - (A_n^a - A_n^b) \big)^2,$$

    with $\tilde\rho = \mathrm{clip}(\rho, -\epsilon, \epsilon)$ for a and b each, and $w_n = \lambda^n / \eta$ from
    `importance_weights`. [SDPO Eq. 12] is this with rewards for advantages, $w = 1/\eta$ and no clip.

    The gradient is that of the branch that is the larger, for each pair and step, with
    $\nabla \tilde\rho = 1\{|\rho| < \epsilon\} \nabla\rho$; [SDPO Eq. 27], which prints the maximum of the two
    gradients, has no meaning for vectors. A pair whose ratios left the range in the direction that the advantages ask
    for has no gradient (where only one left, the other still pulls); one that left it the wrong way is pulled back.
    At $\theta = \theta'$ the gradient is $-2 w\,\Delta A\,\nabla(\rho^a - \rho^b)$, that of `ddpo_reinforce` with
    the other trajectory as the baseline; with $\epsilon w \ll |\Delta A|$ it stays near that inside the range.

    Args:
        logp_a, logp_a_old, logp_b, logp_b_old: log-probs under theta, with their graph, and theta'. Columns may be
            another step for each pair, as in shuffled updates  # (B, S)
        advantage_a, advantage_b: A at the same steps  # (B, S), or (B,) for one number a trajectory
        weight: $w_n$  # a number, (S,), or (B, S) where the steps differ between pairs
        clip: epsilon, or None for the unclipped objective.

    Returns:
        the loss, and `residual`, the mean of |w drho - dA|; `log_ratio`, the mean of |rho|; `clipped`, the share of
        rho outside the range; `limited`, the share of terms in which the clipped branch is the larger.
    """
    check_rows(logp_a=logp_a, logp_a_old=logp_a_old, logp_b=logp_b, logp_b_old=logp_b_old)
    if clip is not None:
        check_positive("clip", clip)
    if isinstance(weight, Tensor):
        if weight.shape not in (logp_a.shape, logp_a.shape[1:], ()):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}: expected ({logp_a.shape[1]},), one a step, or "
                f"{tuple(logp_a.shape)}"
            )
        weight = weight.to(logp_a).detach()
    rho_a, rho_b = logp_a - logp_a_old.detach(), logp_b - logp_b_old.detach()  # (B, S)
    difference = for_each_step("advantage_a", advantage_a, logp_a) - for_each_step("advantage_b", advantage_b, logp_a)
    residual = weight * (rho_a - rho_b) - difference
    loss = residual.square()
    rho = torch.stack([rho_a, rho_b]).detach()
    clipped = limited = loss.new_zeros(())
    if clip is not None:
        trusted = (weight * (rho_a.clamp(-clip, clip) - rho_b.clamp(-clip, clip)) - difference).square()
        clipped, limited = (rho.abs() > clip).float().mean(), (trusted > loss).float().mean()
        loss = torch.where(loss >= trusted, loss, trusted)
    return loss.mean(), {
        "residual": residual.detach().abs().mean(),
        "log_ratio": rho.abs().mean(),
        "clipped": clipped,
        "limited": limited,
    }


def importance_weights(
    num_steps: int, decay: float = 0.99, eta: float = 1.0, order: Literal["decaying", "reverse"] = "decaying"
) -> Tensor:
    r"""Return SDPO's weights $w_n = \lambda^n / \eta$, n = 0 the noisiest step (the paper's $\lambda^{T-t-1}$).

    They scale the log-ratio, not the loss: a smaller weight asks for a larger log-ratio, of $\Delta A\,\eta/\lambda^n$.

    Args:
        decay: $\lambda$ in (0, 1]; 1 weighs all steps alike.
        order: "reverse" runs the same weights from the last step to the first (the paper's ablation).

    Returns:
        float32, for all steps of the trajectory: index with the steps that enter the loss.  # (T,)

    Raises:
        ValueError: num_steps < 1, a decay outside (0, 1], an eta that is not positive, an unknown order.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: expected 1 or more")
    if not 0 < decay <= 1:
        raise ValueError(f"decay = {decay}: expected a number above 0, up to 1")
    check_positive("eta", eta)
    if order not in ("decaying", "reverse"):
        raise ValueError(f'order = {order!r}: expected "decaying" or "reverse"')
    weights = decay ** torch.arange(num_steps, dtype=torch.float64) / eta
    return (weights if order == "decaying" else weights.flip(0)).float()


def step_updates(steps: Tensor, keys: Tensor, kind: Updates = "shuffled") -> Tensor:
    r"""Choose which steps of which pair enter which update: every step of every pair once an epoch.

    "shuffled" (SDPO): S updates, each with one step of every pair, in an order of each pair's own; both trajectories
    of a pair share it. "sequential": the same without shuffling, all pairs at one step. "accumulated": one update with
    all steps.

    Args:
        steps: the kernel's stochastic steps  # (S,) long
        keys: random numbers, whose order within a row is that of the pair's steps. Drawn for each pair by its (run,
            epoch, prompt), they make the order independent of the number of processes  # (B, S)

    Returns:
        long; use each [u] with `gather` on (B, T), and as `steps` of `step_log_probs`.  # (U, B, S/U)

    Raises:
        ValueError: shapes that do not match, or an unknown kind.
    """
    if steps.ndim != 1 or len(steps) == 0 or keys.ndim != 2 or keys.shape[1] != len(steps):
        raise ValueError(
            f"steps has shape {tuple(steps.shape)} and keys {tuple(keys.shape)}: expected (S,) and (B, S), S >= 1"
        )
    if kind == "shuffled":
        return steps[keys.argsort(1)].T[..., None]  # (S, B, 1)
    rows = steps.expand(len(keys), -1)  # (B, S)
    if kind == "sequential":
        return rows.T[..., None]
    if kind == "accumulated":
        return rows[None]
    raise ValueError(f'kind = {kind!r}: expected "shuffled", "sequential" or "accumulated"')
