r"""Use a VP network in the form of EDM (Karras et al. 2022), as DI++ App. C uses PixArt-alpha.

A noisy sample is $x = x_0 + \sigma \epsilon$ with any $\sigma$. The network $F$ knows 1000 noise levels of its own
schedule and is called at the nearest; for PixArt's they go from 0.01 to 157.4 (DI++ prints 156.6155, the middle of
the last two).
"""

import torch
from torch import Tensor

from fsalign_lib.models.conditioning import Cond

SIGMA_INIT = 2.5  # DI++ App. C and Diff-Instruct: the noise level of the one-step generator's input


def denoise(model, x: Tensor, sigma: float | Tensor, cond: Cond) -> Tensor:
    r"""Denoise by DI++ Eq. C.10, the preconditioning that EDM calls iDDPM + DDIM:

    $$D_\theta(x; \sigma) = x - \sigma F_\theta\big(x / \sqrt{\sigma^2 + 1},\; t(\sigma)\big), \qquad
      t(\sigma) = \arg\min_t |\sigma_t - \sigma| .$$

    The one-step generator of Eq. C.11 is this at $\sigma$ = SIGMA_INIT and $x \sim N(0, \sigma^2 I)$ (printed with
    $\sigma$ for the variance). Differentiable in x and in the weights; guidance is the model's.

    Args:
        model: with `schedule` and `predict_eps`.
        x: x_0 plus noise of standard deviation sigma.  # (B, ...)
        sigma: one for all, or one a sample  # (B,)

    Returns:
        the predicted clean sample.  # (B, ...)
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(len(x))
    t = model.schedule.nearest_t(sigma)
    scale, sigma = (s.to(x.dtype).view(-1, *[1] * (x.ndim - 1)) for s in ((sigma**2 + 1).rsqrt(), sigma))
    return x - sigma * model.predict_eps(scale * x, t, cond)
