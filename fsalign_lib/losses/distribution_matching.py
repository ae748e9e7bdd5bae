r"""Match distributions for a one-step generator: Diff-Instruct, DI++, SIM, SiD, DI*, and guidance as a reward.

A generator (the student) makes $x_0 = g_\theta(z, c)$, and $x_t$ is that sample noised. An assistant $\psi$ is fitted
to the student's samples with `assistant_loss`, so that its score $s_\psi$ is that of $p_{\theta,t}$; the reference
(the teacher) has $s_{ref}$. A generator's loss is a sum of the terms below, each already a scalar:

| method | terms |
| --- | --- |
| Diff-Instruct | `diff_instruct` |
| DI++ | `diff_instruct` with a `guided` reference, + `reward_term` |
| SIM; SiD | `sim`; `sid` |
| DI*, guidance by choice 1 | `sim` + alpha_cfg * `guidance_reward` + `reward_term` |
| DI*, guidance by choice 2 | `sim` with a `guided` reference, + `reward_term` |

These are pseudo-losses: at the exact assistant, and in expectation, their gradient in $\theta$ is that of an objective
whose value they do not show. They can be negative, and do not tell whether training converges; the diagnostics do.

**Two forms.** Predictions are (B, ...) scores, or (B, ...) denoisers $d = E[x_0|x_t]$, the same for all of one call:

| | scores | denoisers |
| --- | --- | --- |
| `assistant`, `reference` | $s_\psi(x_t), s_{ref}(x_t)$ | $d_\psi(x_t), d_{ref}(x_t)$ |
| `target` | $\nabla_{x_t} \log p_t(x_t|x_0)$, `schedule.score_from_x0(x_t, x0, t)` | $x_0$, with its graph |

With $x_t = a x_0 + b\epsilon$ the scores are the denoisers times $a/b^2$, up to terms that cancel in every difference
here (EDM: $a = 1$, $b = \sigma$, DI++ C.3; VP: $a^2 = \bar\alpha_t$, $b^2 = 1 - \bar\alpha_t$). The same loss needs

- `diff_instruct`, `guidance_reward`: weight_denoiser = weight_score * $a/b^2$;
- `sim` and `sid`, squared: weight_score * $a^2/b^4$; pseudo-Huber: weight_score * $a/b^2$ and c_denoiser = c * $b^2/a$;
- `assistant_loss`: weight_score * $a^2/b^4$.

So weight 1 means one thing in DI++'s Algorithms 1 and 2 (scores) and another in its Algorithm 3 (denoisers). The KL
is the same in VP and VE coordinates of $x_t$; a divergence of scores is not, and its weight and c depend on them.

**Reductions.** Over dimensions "sum" (an inner product or squared norm, as printed) or "mean" (1/D of it), over the
batch the mean. A `weight` w(t) is a number or (B,), and is detached. Norms inside a weight or a distance are over the
whole sample, whatever the reduction. The reward has no dimensions left to reduce: its term is added after the
reduction, and alpha_rew means the same under "sum" as printed, and is D times stronger under "mean".

All raise ValueError for predictions that are not floating (B, ...) tensors of one shape, a weight of another shape, a
number that is not finite, and, while gradients are recorded, for a tensor without the graph that the formula needs.
Half precision is computed in float32.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from fsalign_lib.kernels import Reduction, at_least_float32, reduce_dims
from fsalign_lib.losses.common import Diagnostics, check_samples, squared_error

Distance = Literal["squared", "pseudo-huber"]


def assistant_loss(
    prediction: Tensor, target: Tensor, weight: float | Tensor = 1.0, reduction: Reduction = "sum"
) -> Tensor:
    r"""Fit the assistant to the student's own samples, [DI++ Alg. 1] (scores) or [DI++ Eq. C.2] (denoisers),

    $$L(\psi) = \lambda(t)\, \| s_\psi(x_t|t,c) - \nabla_{x_t} \log p_t(x_t|x_0) \|^2
      \quad\text{or}\quad \lambda(t)\, \| d_\psi(x_t|t,c) - x_0 \|^2.$$

    Noise predictions with target eps do as well. Make $x_t$ from $x_0$ without the student's graph. The minimiser is
    the posterior mean of the target, for any weight: $s_\psi = \nabla \log p_{\theta,t}$, $d_\psi = E[x_0|x_t]$.

    Args:
        prediction: the assistant's, with the graph to its weights  # (B, ...)
        target: detached here  # (B, ...)
        weight: $\lambda(t)$, such as `edm_weight`  # (B,), or a number
    """
    check_samples(prediction=prediction, target=target)
    _require_graph("the assistant's weights", prediction=prediction)
    return _average(squared_error(prediction, target.detach(), reduction), weight)


def edm_weight(sigma: float | Tensor, sigma_data: float = 0.5) -> float | Tensor:
    r"""Return DI++ Eq. C.7, $\lambda(\sigma) = (\sigma^2 + \sigma_{data}^2) / (\sigma\, \sigma_{data})^2$."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def diff_instruct(
    assistant: Tensor,
    reference: Tensor,
    x_t: Tensor,
    weight: float | Tensor = 1.0,
    reduction: Reduction = "sum",
) -> tuple[Tensor, Diagnostics]:
    r"""Compute the integral KL of Diff-Instruct (arXiv 2305.18455), [DI++ Thm 3.5], [DI++ Eq. 3.10] without its reward,

    $$L(\theta) = w(t)\, y_t^\top x_t, \qquad y_t = s_\psi(sg[x_t]|t,c) - \tilde s_{ref}(sg[x_t]|t,c),$$

    with the gradient of $w(t)\, D_{KL}(p_{\theta,t} \,\|\, \tilde p_{ref,t})$ in $\theta$ ([DI++ Thm 3.2]; on
    clean samples [DI++ Thm 3.1]). Only $x_t$ carries a graph: the networks need none, and run under
    `torch.no_grad()`. Eq. 3.10 prints an unguided $s_{ref}$ in $y_t$; Algorithm 2, and the line above $y_t$ that
    defines $\tilde s_{ref}$, mean the `guided` one.

    Args:
        assistant, reference: $s_\psi$ and $\tilde s_{ref}$, or denoisers; detached here  # (B, ...)
        x_t: the student's samples, noised, with their graph  # (B, ...)
        weight: w(t): 1 (DI++ A.1), or `inverse_gap_weight` (DI++ C.8). Published Diff-Instruct: 1 on denoisers, which
            is $\sigma^2$ on scores.  # (B,), or a number

    Returns:
        the loss, and `gap`, the mean of $\|y_t\|$.
    """
    check_samples(assistant=assistant, reference=reference, x_t=x_t)
    _require_graph("the student", x_t=x_t)
    y = (at_least_float32(assistant) - at_least_float32(reference)).detach()
    return _average(reduce_dims(y * at_least_float32(x_t), reduction), weight), {"gap": _norm(y).mean()}


def inverse_gap_weight(assistant: Tensor, reference: Tensor, offset: float = 1e-6) -> Tensor:
    r"""Return [DI++ Eq. C.8], $w = 1 / (\|d_\psi(x_t) - \tilde d_{ref}(x_t)\|_2 + o)$ on denoisers, detached.  # (B,)

    The paper has no offset $o$: 0/0 at the optimum. It depends on $x_t$, so it is no $w(t)$ of Thms 3.2 and 3.5: with
    it `diff_instruct` moves along $E[w(x_t)\, y_t^\top \partial x_t/\partial\theta]$, which is not the gradient of an
    integral KL.
    """
    check_samples(assistant=assistant, reference=reference)
    if not (math.isfinite(offset) and offset > 0):
        raise ValueError(f"offset = {offset}: expected a finite positive number, to divide by where the gap is zero")
    return 1 / (_norm(at_least_float32(assistant) - at_least_float32(reference)).detach() + offset)


def sim(
    assistant: Tensor,
    reference: Tensor,
    target: Tensor,
    weight: float | Tensor = 1.0,
    distance: Distance = "pseudo-huber",
    c: float | None = None,
    reduction: Reduction = "sum",
) -> tuple[Tensor, Diagnostics]:
    r"""Compute [DI* Eq. 3.4] without its reward (SIM, arXiv 2410.16794), with $y_t = s_\psi(x_t) - s_{ref}(x_t)$:

    $$L(\theta) = w(t)\, \{-d'(y_t)\}^\top \{ s_\psi(x_t) - \nabla_{x_t} \log p_t(x_t|x_0) \},$$

    with the gradient of $w(t)\, E_{x_t \sim sg[p_{\theta,t}]}\, d(s_\theta(x_t) - s_{ref}(x_t))$ in $\theta$
    ([DI* Thm 3.1]): of the scores at fixed points, not of the points. The distances are

    $$d(y) = \tfrac12 \|y\|^2,\quad d'(y) = y \qquad\text{("squared")};\qquad
      d(y) = \sqrt{\|y\|^2 + c^2} - c,\quad d'(y) = \frac{y}{\sqrt{\|y\|^2 + c^2}}
      \qquad\text{("pseudo-huber", [DI* Eq. 3.8])}.$$

    Nothing is detached but the weight: the gradient flows through the inputs $x_t$ of both networks, the normaliser of
    $d'$, and in denoiser form $x_0$. The networks' weights must be frozen, and their calls recorded.

    Args:
        assistant, reference: $s_\psi$ and $s_{ref}$ (choice 2: the `guided` one), or denoisers  # (B, ...)
        target: $\nabla_{x_t} \log p_t(x_t|x_0)$, or $x_0$  # (B, ...)
        c: of the pseudo-Huber distance; the paper does not give it.

    Returns:
        the loss; `gap`, the mean of $\|y_t\|$; `divergence`, the mean of $w\, d(y_t)$, the objective's own value.

    Raises:
        ValueError: also for an unknown distance, and a pseudo-Huber one without a finite positive c.
    """
    y, residual = _difference_and_residual(assistant, reference, target)
    if distance == "squared":
        d, slope = 0.5 * _norm(y) ** 2, y
    elif distance == "pseudo-huber":
        if c is None or not (math.isfinite(c) and c > 0):
            raise ValueError(f"c = {c}: the pseudo-Huber distance needs a finite positive number")
        root = (y.flatten(1).square().sum(1) + c**2).sqrt()  # (B,)
        d, slope = root - c, y / _per_sample(root, y)
    else:
        raise ValueError(f'distance = {distance!r}: expected "squared" or "pseudo-huber"')
    loss = _average(reduce_dims(-slope * residual, reduction), weight)
    return loss, {"gap": _norm(y).detach().mean(), "divergence": _average(d.detach(), weight)}


def sid(
    assistant: Tensor,
    reference: Tensor,
    target: Tensor,
    alpha: float,
    weight: float | Tensor = 1.0,
    reduction: Reduction = "sum",
) -> tuple[Tensor, Diagnostics]:
    r"""Compute the loss of SiD (arXiv 2404.04057), with $y_t = s_\psi(x_t) - s_{ref}(x_t)$:

    $$L(\theta) = w(t) \big[ (1 - \alpha) \|y_t\|^2
        - y_t^\top \{ s_\psi(x_t) - \nabla_{x_t} \log p_t(x_t|x_0) \} \big].$$

    The second term is `sim` with the squared distance, and the whole of it at $\alpha = 1$. At $\alpha = 1/2$ the
    gradient is that of the Fisher divergence $\tfrac12 E_{x_t \sim p_{\theta,t}} \|s_\theta - s_{ref}\|^2$, whose
    points move too. Arguments, graph and results are those of `sim`; `divergence` has $d = \tfrac12\|y\|^2$.
    """
    _finite(alpha=alpha)
    y, residual = _difference_and_residual(assistant, reference, target)
    loss = _average(reduce_dims((1 - alpha) * y.square() - y * residual, reduction), weight)
    return loss, {"gap": _norm(y).detach().mean(), "divergence": _average(0.5 * _norm(y).detach() ** 2, weight)}


def guided(conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> Tensor:
    r"""Guide by [DI++ Eq. 3.5], DI* choice 2: $\tilde s_{ref} = s_\varnothing + \alpha_{cfg} (s_c - s_\varnothing)$.

    Predictions are scores or denoisers; nothing is detached. $\alpha_{cfg} = 1$ is no guidance; [DI++ Thm 3.3] calls it
    $1 + 1/\beta$.
    """
    check_samples(conditional=conditional, unconditional=unconditional)
    _finite(guidance_scale=guidance_scale)
    return unconditional + guidance_scale * (conditional - unconditional)


def guidance_reward(
    conditional: Tensor,
    unconditional: Tensor,
    x_t: Tensor,
    weight: float | Tensor = 1.0,
    reduction: Reduction = "sum",
) -> Tensor:
    r"""Turn guidance into a reward that no network computes, [DI* Thm 3.2], [DI* Eq. 3.6], [DI* Eq. 3.7] (choice 1),

    $$L(\theta) = -w(t)\, \{ s_{ref}(sg[x_t]|t,c) - s_{ref}(sg[x_t]|t,\varnothing) \}^\top x_t,$$

    with the gradient of $-w(t)\, E_{x_t \sim p_{\theta,t}} \log (p_{ref}(x_t|t,c) / p_{ref}(x_t|t))$, the implicit
    reward of [DI++ Eq. 3.8], whatever the assistant. Add alpha_cfg times it, where 0 is no guidance. Beside
    `diff_instruct` it is the same as choice 2 at the scale 1 + alpha_cfg ([DI++ Thm 3.3]); beside `sim` it is another
    objective.

    Args:
        conditional, unconditional: the reference's scores, or denoisers; detached here  # (B, ...)
        x_t: the student's samples, noised, with their graph  # (B, ...)
    """
    return diff_instruct(unconditional, conditional, x_t, weight, reduction)[0]


def reward_term(reward: Tensor, reward_scale: float) -> Tensor:
    r"""Return $-\alpha_{rew}\, r(x_0, c)$ [DI++ Eq. 3.10], [DI* Eq. 3.4], the batch mean, to add to a reduced loss.

    Its gradient is $-\alpha_{rew} \nabla_{x_0} r\, \partial x_0/\partial\theta$; DI++'s Eqs. 3.3 and 3.7 miss the last
    factor. A reward on pictures is taken of the decoded latent, and its gradient must come back through
    the decoder: run it, and the reward, with frozen weights and a recorded graph. DI++'s Listing 1 adds the rewards
    before it sums over (C, H, W), which multiplies alpha_rew by C*H*W, and decodes nothing.

    Args:
        reward: one number for each sample, with the graph to the student  # (B,)
        reward_scale: alpha_rew, which is DI++'s $1/\beta$; with 0 the reward needs no graph.
    """
    if reward.ndim != 1 or not reward.is_floating_point() or reward.numel() == 0:
        raise ValueError(f"reward is {reward.dtype} of shape {tuple(reward.shape)}: expected floats (B,), one a sample")
    _finite(reward_scale=reward_scale)
    if reward_scale != 0:
        _require_graph("the student, through reward and decoder", reward=reward)
    return -reward_scale * at_least_float32(reward).mean()


def _difference_and_residual(assistant: Tensor, reference: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return y_t and s_psi - grad log p(x_t|x_0), with every graph that they came with."""
    check_samples(assistant=assistant, reference=reference, target=target)
    _require_graph("its input x_t", assistant=assistant, reference=reference)
    assistant = at_least_float32(assistant)
    return assistant - at_least_float32(reference), assistant - at_least_float32(target)


def _norm(y: Tensor) -> Tensor:
    return torch.linalg.vector_norm(y.flatten(1), dim=1)  # (B,)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _average(values: Tensor, weight: float | Tensor) -> Tensor:
    """Return the batch mean of w * values, (B,) -> ()."""
    if isinstance(weight, Tensor):
        if weight.shape not in ((), values.shape):
            raise ValueError(f"weight has shape {tuple(weight.shape)}: expected ({len(values)},), one a sample")
        return (weight.detach().to(values) * values).mean()
    _finite(weight=weight)
    return weight * values.mean()


def _finite(**numbers: float) -> None:
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} = {value}: expected a finite number")


def _require_graph(leads_to: str, **inputs: Tensor) -> None:
    for name, x in inputs.items():
        if torch.is_grad_enabled() and not x.requires_grad:
            raise ValueError(f"{name} carries no gradient: compute it with the graph to {leads_to}")
