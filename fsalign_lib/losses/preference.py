r"""Learn from preferred pairs: Diffusion-DPO, D3PO, and PSO mixed, offline and online.

Each is $-\log \sigma(\beta\, h)$, minimised, with $h$ a margin between the log-ratios of a winner (the papers' target
$\tau$) and a loser (their reference sample $\rho$) against a frozen reference model ($p_{pre}$, $\pi_{ref}$).
Inputs are (B, S), one number for each pair and step: log-probs $\log p(x_{n+1} | x_n, c)$, or squared errors
$\|\epsilon - \epsilon_\theta(x_{t_n}, t_n, c)\|^2$ from `squared_error`. Steps are the kernel's stochastic ones; those
without a density (the last of `Renoise` and `EulerAncestral`) must be left out.

- Over dimensions, the caller has reduced: "sum" as printed, or "mean" as published code does. The log-probs and
  errors are linear in it, so $\beta_{sum} = \beta_{mean} / D$ gives the same loss (without a clamp).
- Over steps, `steps="inside"` sums inside the sigmoid (as printed: one sigmoid a pair); `steps="outside"` takes one
  sigmoid for each step and averages (as published code). They agree for a single step.
- Over the batch, the mean.

What comes from the reference model is detached. Every function returns (loss, diagnostics), the latter detached
scalars: `margin`, the mean of $h$ over sigmoids; `accuracy`, the share of sigmoids with $h > 0$ (a tie counts half);
`clamped`, the share of log-ratios outside the clamp.

All raise ValueError for inputs that are not floating (B, S) tensors of one shape with S >= 1, a beta that is not
finite and positive, an unknown `steps`, and a clamp outside (0, 1).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fsalign_lib.kernels import Kernel, require_stochastic
from fsalign_lib.losses.common import Diagnostics, Steps, check_positive, check_rows


def diffusion_dpo(
    err_w: Tensor, err_w_ref: Tensor, err_l: Tensor, err_l_ref: Tensor, beta: float, weight: float | Tensor = 1.0
) -> tuple[Tensor, Diagnostics]:
    r"""Compute [Diffusion-DPO Eq. 14], one sigmoid for each pair and time, on noise-prediction errors:

    $$L = -\log \sigma\Big( -\beta\, \omega_t \big[
        (\|\epsilon^w - \epsilon_\theta\|^2 - \|\epsilon^w - \epsilon_{ref}\|^2)
        - (\|\epsilon^l - \epsilon_\theta\|^2 - \|\epsilon^l - \epsilon_{ref}\|^2) \big] \Big).$$

    The paper's factor T is within `beta`. Its published code uses beta_dpo / 2 with errors averaged over dimensions,
    and the same eps and t for both pictures of a pair.

    Args:
        err_w, err_w_ref, err_l, err_l_ref: errors of winner and loser, under theta and the reference  # (B, S)
        weight: $\omega_t$, a number or a tensor that broadcasts to (B, S).
    """
    _check(beta, err_w=err_w, err_w_ref=err_w_ref, err_l=err_l, err_l_ref=err_l_ref)
    margin = -weight * (_ratio(err_w, err_w_ref) - _ratio(err_l, err_l_ref))  # (B, S)
    return _logistic(margin, beta, "outside")


def d3po(
    logp_w: Tensor, logp_w_ref: Tensor, logp_l: Tensor, logp_l_ref: Tensor, beta: float, clamp: float | None = None
) -> tuple[Tensor, Diagnostics]:
    r"""Compute D3PO, where each denoising step is an action of its own: one sigmoid for each pair and step,

    $$L = -\frac1S \sum_n \log \sigma\Big( \beta \log \frac{\pi_\theta(a_n^w | s_n^w)}{\pi_{ref}(a_n^w | s_n^w)}
        - \beta \log \frac{\pi_\theta(a_n^l | s_n^l)}{\pi_{ref}(a_n^l | s_n^l)} \Big).$$

    Args:
        logp_w, logp_w_ref, logp_l, logp_l_ref: log-probs of the transitions  # (B, S)
        clamp: c clips both probability ratios to [1 - c, 1 + c], as published code does (c = 0.1) and the papers do
            not say. Outside, the gradient is zero in both directions, also in the one that would lead back.
    """
    _check(beta, clamp, logp_w=logp_w, logp_w_ref=logp_w_ref, logp_l=logp_l, logp_l_ref=logp_l_ref)
    winner, clamped_w = _clamp(_ratio(logp_w, logp_w_ref), clamp)
    loser, clamped_l = _clamp(_ratio(logp_l, logp_l_ref), clamp)
    return _logistic(winner - loser, beta, "outside", (clamped_w + clamped_l) / 2)


def pso(
    err_target: Tensor,
    err_target_ref: Tensor,
    logp_reference: Tensor,
    logp_reference_ref: Tensor,
    beta: float,
    weight: float | Tensor = 1.0,
    steps: Steps = "inside",
) -> tuple[Tensor, Diagnostics]:
    r"""Compute mixed PSO [PSO Eq. 5]: data noised forward against samples of the current model,

    $$L = -\log \sigma\Big( -\beta \sum_n \Big[
        \omega_n \big( \|\epsilon^\tau - \epsilon_\theta\|^2 - \|\epsilon^\tau - \epsilon_{pre}\|^2 \big)
        - \frac{1}{2 s_n^2} \big( \|x_{n+1}^\rho - \mu_\theta\|^2 - \|x_{n+1}^\rho - \mu_{pre}\|^2 \big) \Big] \Big).$$

    The second half enters as log-probs, which hold 1/(2 s_n^2) and whose normaliser cancels. Both halves must carry
    the same reduction over dimensions: then $\omega_n$ means the same under "mean" and "sum".

    Args:
        err_target, err_target_ref: errors on the noised data, under theta and the reference model  # (B, S)
        logp_reference, logp_reference_ref: log-probs of the model's own transitions, likewise  # (B, S)
        weight: $\omega_n$ from `pso_weights`  # (S,), or a number
    """
    _check(
        beta,
        err_target=err_target,
        err_target_ref=err_target_ref,
        logp_reference=logp_reference,
        logp_reference_ref=logp_reference_ref,
    )
    if isinstance(weight, Tensor):
        if weight.ndim > 1 or weight.numel() not in (1, err_target.shape[1]):
            raise ValueError(f"weight has shape {tuple(weight.shape)}: expected ({err_target.shape[1]},), one a step")
        weight = weight.to(err_target)
    target = -weight * _ratio(err_target, err_target_ref)  # (B, S)
    return _logistic(target - _ratio(logp_reference, logp_reference_ref), beta, steps)


def pso_weights(kernel: Kernel, kind: Literal["printed", "exact"]) -> Tensor:
    r"""Return the weight $\omega_n$ [PSO Eq. 11] that turns a difference of noise-prediction errors into one of KLs,

    $$D_{KL}[q(x_{n+1} | x_n, x_0) \,\|\, p_\theta(x_{n+1} | x_n, c)] = \omega_n \|\epsilon - \epsilon_\theta\|^2,
      \qquad \omega_n = \frac{b_n^2 \sigma_{t_n}^2}{2 s_n^2},$$

    with q the kernel's own step taken with the true $x_0$ in place of $\hat x_0$ ($b_n$, $s_n$: see kernels). For
    `Renoise`, whose q noises $x_{n+1}$ independently of $x_n$ given $x_0$,

    $$\omega_n = \frac{\bar\alpha_{t_{n+1}} (1 - \bar\alpha_{t_n})}{2 \bar\alpha_{t_n} (1 - \bar\alpha_{t_{n+1}})}.$$

    `EulerAncestral` and `DDIM(eta=1)`, whose q is the posterior of the Markov chain, have exactly 1/2 less.
    "exact" is this; "printed" is 1, as the paper sets it while it keeps $1/(2 s_n^2)$ on the other half.

    Returns:
        one weight for each of `kernel.stochastic_steps`, float32.  # (S,)

    Raises:
        ValueError: an unknown kind, or a kernel without a stochastic step.
    """
    require_stochastic(kernel)
    n = torch.tensor(kernel.stochastic_steps)
    if kind == "printed":
        return torch.ones(len(n))
    if kind == "exact":
        sigma = kernel.schedule.sigma(kernel.timesteps[n])
        return (kernel.x0_weight[n] ** 2 * sigma**2 / (2 * kernel.stds[n] ** 2)).float()
    raise ValueError(f'weight kind {kind!r}: expected "printed" or "exact"')


def pso_offline(
    err_w: Tensor, err_w_ref: Tensor, err_l: Tensor, err_l_ref: Tensor, beta: float, steps: Steps = "inside"
) -> tuple[Tensor, Diagnostics]:
    r"""Compute offline PSO [PSO Eq. 6]: both pictures of a pair are given and noised forward to the few-step times,

    $$L = -\log \sigma\Big( -\beta \sum_n \big[
        (\|\epsilon^\tau - \epsilon_\theta\|^2 - \|\epsilon^\tau - \epsilon_{pre}\|^2)
        - (\|\epsilon^\rho - \epsilon_\theta\|^2 - \|\epsilon^\rho - \epsilon_{pre}\|^2) \big] \Big).$$

    With `steps="outside"`, or one step, it is Diffusion-DPO on the times of the few-step grid.

    Args:
        err_w, err_w_ref, err_l, err_l_ref: errors of target and reference pictures, under theta and the reference
            model  # (B, S)
    """
    _check(beta, err_w=err_w, err_w_ref=err_w_ref, err_l=err_l, err_l_ref=err_l_ref)
    margin = -(_ratio(err_w, err_w_ref) - _ratio(err_l, err_l_ref))  # (B, S)
    return _logistic(margin, beta, steps)


def pso_without_reference(
    err_w: Tensor, err_l: Tensor, beta: float, share: float = 0.1, margin: float = 1.0
) -> tuple[Tensor, Diagnostics]:
    r"""Compute PSO for concept customization (App. B.3): offline, without the reference, in the published code's form,

    $$L = \frac1S \sum_n \max\big(0,\; m - \beta\, [\, \kappa\, \|\epsilon^\rho - \epsilon_\theta\|^2
        - \|\epsilon^\tau - \epsilon_\theta\|^2 \,] \big).$$

    The paper says only that the reference model is left out; the hinge, its margin m = 1 and the share kappa = 0.1 of
    the loser are the code's, which trains one time after another: one hinge a step. While every hinge is open (with
    beta 5 and errors below 2 it always is) the gradient is that of $\beta\, (err^\tau - \kappa\, err^\rho)$. The code
    adds 0.5 err^rho of the same pictures to preserve the prior, and at its beta of 5 the loser then cancels: what is
    left is the diffusion loss on the few-step times. Here the prior is the caller's, on pictures of its own.

    Args:
        err_w, err_l: errors of target and reference pictures, under theta  # (B, S)

    Returns:
        as the other losses; `clamped` is the share of closed hinges.
    """
    check_positive("beta", beta)
    check_rows(err_w=err_w, err_l=err_l)
    hinge = margin - beta * (share * err_l - err_w)  # (B, S)
    h = (err_l - err_w).detach()
    return hinge.clamp_min(0).mean(), {
        "margin": h.mean(),
        "accuracy": ((h > 0).float() + 0.5 * (h == 0).float()).mean(),
        "clamped": (hinge.detach() <= 0).float().mean(),
    }


def pso_online(
    logp_w: Tensor,
    logp_w_ref: Tensor,
    logp_l: Tensor,
    logp_l_ref: Tensor,
    beta: float,
    clamp: float | None = None,
    steps: Steps = "inside",
) -> tuple[Tensor, Diagnostics]:
    r"""Compute online PSO [PSO Eq. 7]: both trajectories are sampled from the model, and a reward says which one won,

    $$L = -\log \sigma\Big( -\beta \sum_n \frac{1}{2 s_n^2} \big[
        (\|x_{n+1}^\tau - \mu_\theta\|^2 - \|x_{n+1}^\tau - \mu_{pre}\|^2)
        - (\|x_{n+1}^\rho - \mu_\theta\|^2 - \|x_{n+1}^\rho - \mu_{pre}\|^2) \big] \Big).$$

    The paper prints $1/(2 s_n^2)$ before the sum; it depends on n and belongs inside, where the log-probs hold it.
    With `steps="outside"`, or one step, it is D3PO. Published code: `steps="outside"`, `clamp=0.1`, log-probs averaged
    over dimensions.

    Args:
        logp_w, logp_w_ref, logp_l, logp_l_ref: log-probs of the transitions of winner and loser  # (B, S)
        clamp: as in `d3po`, applied to each step's ratio.
    """
    _check(beta, clamp, logp_w=logp_w, logp_w_ref=logp_w_ref, logp_l=logp_l, logp_l_ref=logp_l_ref)
    winner, clamped_w = _clamp(_ratio(logp_w, logp_w_ref), clamp)
    loser, clamped_l = _clamp(_ratio(logp_l, logp_l_ref), clamp)
    return _logistic(winner - loser, beta, steps, (clamped_w + clamped_l) / 2)


def _ratio(theta: Tensor, reference: Tensor) -> Tensor:
    return theta - reference.detach()


def _clamp(log_ratio: Tensor, clamp: float | None) -> tuple[Tensor, Tensor]:
    """Return log clip(e^D, 1-c, 1+c) without the exponential, and the share of D outside."""
    if clamp is None:
        return log_ratio, log_ratio.new_zeros(())
    low, high = math.log1p(-clamp), math.log1p(clamp)
    outside = (log_ratio < low) | (log_ratio > high)
    return log_ratio.clamp(low, high), outside.float().mean()


def _logistic(margin: Tensor, beta: float, steps: Steps, clamped: Tensor | None = None) -> tuple[Tensor, Diagnostics]:
    """Average -log sigmoid(beta h) over sigmoids, with h = margin (B, S) summed over the steps for "inside"."""
    if steps not in ("inside", "outside"):
        raise ValueError(f'steps = {steps!r}: expected "inside" (sum in the sigmoid) or "outside" (a sigmoid per step)')
    h = margin.sum(1) if steps == "inside" else margin
    loss = -F.logsigmoid(beta * h).mean()
    h = h.detach()
    return loss, {
        "margin": h.mean(),
        "accuracy": ((h > 0).float() + 0.5 * (h == 0).float()).mean(),
        "clamped": h.new_zeros(()) if clamped is None else clamped.detach(),
    }


def _check(beta: float, clamp: float | None = None, **inputs: Tensor) -> None:
    check_positive("beta", beta)
    if clamp is not None and not 0 < clamp < 1:
        raise ValueError(f"clamp = {clamp}: expected a number between 0 and 1, or None for no clamp")
    check_rows(**inputs)
