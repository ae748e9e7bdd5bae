r"""Define noise levels $\bar\alpha_t$ and $\sigma_t$, maps between eps, x0, v and score, VP and VE, and few-step grids.

Time is the integer $t \in \{0, \dots, T-1\}$ of DDPM, $T = 1000$; $t = 999$ is the noisiest. In variance-preserving
(VP) coordinates, those of every network here,

$$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad \epsilon \sim N(0, I).$$

In variance-exploding (VE) coordinates the same sample is $x_t / \sqrt{\bar\alpha_t} = x_0 + \sigma_t \epsilon$.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fsalign_lib.devices import send, table_on

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    r"""Hold the noise schedule $\bar\alpha_t$, one float64 value for each $t$, decreasing.

    Every method takes `t` as an int, or as a LongTensor (B,) with one time for each sample, and samples (B, ...).
    Coefficients are computed in float64 and rounded once, to the dtype of `x`.

    Raises:
        ValueError: `alpha_bar` is not 1-D with values in (0, 1); `t` is outside 0..T-1 (checked for an int and for a
            CPU tensor; a tensor on an accelerator is not read back).
    """

    alpha_bar: Tensor  # (T,) float64

    def __post_init__(self) -> None:
        alpha_bar = torch.as_tensor(self.alpha_bar).detach().to("cpu", torch.float64)
        if alpha_bar.ndim != 1 or not bool(((alpha_bar > 0) & (alpha_bar < 1)).all()):
            raise ValueError(
                f"alpha_bar has shape {tuple(alpha_bar.shape)} and values from {alpha_bar.min():.3g} to "
                f"{alpha_bar.max():.3g}: expected (T,) with values strictly between 0 and 1"
            )
        object.__setattr__(self, "alpha_bar", alpha_bar)

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS
    ) -> "NoiseSchedule":
        r"""Build Stable Diffusion's: $\sqrt{\beta_t}$ is linear in $t$, $\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$.

        This and `linear` are the only places where beta means a noise variance.
        """
        noise_variances = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
        return cls(torch.cumprod(1 - noise_variances, dim=0))

    @classmethod
    def linear(
        cls, beta_start: float = 0.0001, beta_end: float = 0.02, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS
    ) -> "NoiseSchedule":
        r"""Build DDPM's and PixArt's: $\beta_t$ is linear in $t$, $\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$."""
        return cls(torch.cumprod(1 - torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64), 0))

    @property
    def num_train_timesteps(self) -> int:
        """Return the number of times t, 1000 for all published models."""
        return len(self.alpha_bar)

    @cached_property
    def _signal(self) -> Tensor:
        return self.alpha_bar.sqrt()

    @cached_property
    def _noise(self) -> Tensor:
        return (1 - self.alpha_bar).sqrt()

    @cached_property
    def _sigmas(self) -> Tensor:
        return self._noise / self._signal

    def _at(self, table: Tensor, t: int | Tensor, x: Tensor) -> float | Tensor:
        """Return table[t] to multiply x by: a float for an int t, (B, 1, ..., 1) in x's dtype for LongTensor t (B,)."""
        self._check(t)
        if not isinstance(t, Tensor) or t.ndim == 0:
            return float(table[int(t)])
        values = table_on(table, x.device, x.dtype)[send(t, x.device)]
        return values.view(-1, *[1] * (x.ndim - 1))

    def _check(self, t: int | Tensor) -> None:
        last = self.num_train_timesteps - 1
        if isinstance(t, Tensor) and (t.is_floating_point() or t.ndim > 1):
            raise ValueError(f"t has dtype {t.dtype} and shape {tuple(t.shape)}: expected an int or a LongTensor (B,)")
        # Reading a tensor back from an accelerator would stall it at every network call.
        if isinstance(t, Tensor) and t.device.type != "cpu":
            return
        low, high = (int(t.min()), int(t.max())) if isinstance(t, Tensor) else (t, t)
        if low < 0 or high > last:
            raise ValueError(f"t = {low if low < 0 else high} is outside this schedule: expected 0 <= t <= {last}")

    def sigma(self, t: int | Tensor) -> float | Tensor:
        r"""Return the VE level $\sigma_t = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}$.  # float, or float64 (B,)"""
        self._check(t)
        if not isinstance(t, Tensor):
            return float(self._sigmas[t])
        return table_on(self._sigmas, t.device, torch.float64)[t]

    def nearest_t(self, sigma: float | Tensor) -> Tensor:
        r"""Return the time whose VE noise level $\sigma_t$ is nearest to $\sigma$.  # LongTensor, of sigma's shape"""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        levels = table_on(self._sigmas, sigma.device, torch.float64)
        return (levels - sigma[..., None]).abs().argmin(-1)

    def add_noise(self, x0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        r"""Sample $q(x_t | x_0)$ as $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon$."""
        return self._at(self._signal, t, x0) * x0 + self._at(self._noise, t, x0) * eps

    def x0_from_eps(self, x_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $x_0 = (x_t - \sqrt{1 - \bar\alpha_t}\, \epsilon) / \sqrt{\bar\alpha_t}$."""
        return (x_t - self._at(self._noise, t, x_t) * eps) / self._at(self._signal, t, x_t)

    def eps_from_x0(self, x_t: Tensor, x0: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $\epsilon = (x_t - \sqrt{\bar\alpha_t}\, x_0) / \sqrt{1 - \bar\alpha_t}$."""
        return (x_t - self._at(self._signal, t, x_t) * x0) / self._at(self._noise, t, x_t)

    def score_from_eps(self, x_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $\nabla_{x_t} \log p_t(x_t) = -\epsilon / \sqrt{1 - \bar\alpha_t}$, for the posterior mean eps."""
        return -eps / self._at(self._noise, t, x_t)

    def eps_from_score(self, x_t: Tensor, score: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $\epsilon = -\sqrt{1 - \bar\alpha_t}\, \nabla_{x_t} \log p_t(x_t)$."""
        return -self._at(self._noise, t, x_t) * score

    def score_from_x0(self, x_t: Tensor, x0: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $\nabla_{x_t} \log p_t(x_t) = (\sqrt{\bar\alpha_t}\, x_0 - x_t) / (1 - \bar\alpha_t)$ (Tweedie)."""
        return self.score_from_eps(x_t, self.eps_from_x0(x_t, x0, t), t)

    def x0_from_score(self, x_t: Tensor, score: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $x_0 = (x_t + (1 - \bar\alpha_t)\, \nabla_{x_t} \log p_t(x_t)) / \sqrt{\bar\alpha_t}$ (Tweedie)."""
        return self.x0_from_eps(x_t, self.eps_from_score(x_t, score, t), t)

    def v_from_x0(self, x_t: Tensor, x0: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, x_0$."""
        eps = self.eps_from_x0(x_t, x0, t)
        return self._at(self._signal, t, x_t) * eps - self._at(self._noise, t, x_t) * x0

    def x0_from_v(self, x_t: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $x_0 = \sqrt{\bar\alpha_t}\, x_t - \sqrt{1 - \bar\alpha_t}\, v$."""
        return self._at(self._signal, t, x_t) * x_t - self._at(self._noise, t, x_t) * v

    def eps_from_v(self, x_t: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $\epsilon = \sqrt{1 - \bar\alpha_t}\, x_t + \sqrt{\bar\alpha_t}\, v$."""
        return self._at(self._noise, t, x_t) * x_t + self._at(self._signal, t, x_t) * v

    def vp_to_ve(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $x_t / \sqrt{\bar\alpha_t} = x_0 + \sigma_t \epsilon$."""
        return x_t / self._at(self._signal, t, x_t)

    def ve_to_vp(self, x: Tensor, t: int | Tensor) -> Tensor:
        r"""Return $\sqrt{\bar\alpha_t}\, x = x / \sqrt{\sigma_t^2 + 1}$, the scaling in front of the network."""
        return self._at(self._signal, t, x) * x


def _check_num_steps(num_steps: int, most: int, why: str) -> None:
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or not 1 <= num_steps <= most:
        raise ValueError(f"num_steps = {num_steps!r}: expected an integer from 1 to {most} ({why})")


def renoise_timesteps(num_steps: int) -> Tensor:
    r"""Return DMD2's grid, $t = k \cdot 1000 / N - 1$ for $k = N, \dots, 1$: 999, 749, 499, 249 for four steps.  # (N,)

    For an N that does not divide 1000 it rounds down.
    """
    T = NUM_TRAIN_TIMESTEPS
    _check_num_steps(num_steps, T, "the training timesteps")
    return torch.tensor([k * T // num_steps - 1 for k in range(num_steps, 0, -1)])


def trailing_timesteps(num_steps: int) -> Tensor:
    """Return diffusers' "trailing" grid (Turbo: 999, 749, 499, 249; DDIM with 50 steps: 999, 979, ..., 19).  # (N,)

    It equals `renoise_timesteps` for an N that divides 1000, and rounds to the nearest for others.
    """
    T = NUM_TRAIN_TIMESTEPS
    _check_num_steps(num_steps, T, "the training timesteps")
    # np.arange and not k * T / N: its rounding errors decide the halves (N = 48), and the aim is diffusers' grid. For
    # some N (61 is the first) they also add a time -1 at the end, which is cut.
    return torch.from_numpy(np.arange(T, 0, -T / num_steps).round()[:num_steps].astype(np.int64) - 1)


def lcm_timesteps(num_steps: int, origin_steps: int = 50) -> Tensor:
    """Return the grid of diffusers' LCMScheduler: N of the `origin_steps` times that a latent consistency model was
    distilled at, as evenly spaced in index as rounding down allows: 999, 759, 499, 259 for four steps.  # (N,)
    """
    T = NUM_TRAIN_TIMESTEPS
    _check_num_steps(origin_steps, T, "origin_steps: the training timesteps")
    _check_num_steps(num_steps, origin_steps, "origin_steps, the times at which the LCM was distilled")
    origin = [k * (T // origin_steps) - 1 for k in range(origin_steps, 0, -1)]
    return torch.tensor([origin[i * origin_steps // num_steps] for i in range(num_steps)])
