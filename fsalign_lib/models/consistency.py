r"""Give latent consistency models (LCM, Luo et al. 2023) their embedded guidance weight and their boundary condition.

Their grid is `schedules.lcm_timesteps`.
"""

import functools
import math

import torch
from torch import Tensor

from fsalign_lib.devices import send


@functools.cache
def guidance_embedding(guidance_scale: float, dim: int) -> Tensor:
    r"""Embed the guidance weight, which a consistency model takes in place of classifier-free guidance.

    With diffusers' guidance scale $g$ (1 is none), the paper's weight is $w = g - 1$ (LCM, Luo et al. 2023, Eq. 9:
    $\epsilon = \epsilon_c + w (\epsilon_c - \epsilon_\varnothing)$). The embedding has, for i = 0..dim/2 - 1, the
    sines and then the cosines of $1000\, w \cdot 10000^{-i / (dim/2 - 1)}$.

    Returns:
        float32.  # (1, dim)
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    phase = 1000 * (guidance_scale - 1) * frequencies
    return torch.cat([phase.sin(), phase.cos()])[None]


def boundary_scalings(t: int | Tensor, timestep_scaling: float, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Scale a consistency function at its boundary (LCM, Luo et al. 2023): with $s$ = `timestep_scaling` and
    $\sigma = 0.5$, $c_{skip} = \sigma^2 / ((s t)^2 + \sigma^2)$ and $c_{out} = s t / \sqrt{(s t)^2 + \sigma^2}$.

    Returns:
        both in x's dtype, shaped to multiply x.  # (B or 1, 1, ...)
    """
    scaled = timestep_scaling * torch.as_tensor(t, dtype=torch.float64).view(-1, *[1] * (x.ndim - 1))
    root = (scaled**2 + 0.25).sqrt()
    return send((0.25 / root**2).to(x.dtype), x.device), send((scaled / root).to(x.dtype), x.device)
