r"""Define one step of a few-step sampler as a Gaussian policy.

Steps are indexed n = 0, ..., N-1 in the order in which they are taken: step n leads from $t_n$ (`timesteps[n]`) to
$t_{n+1}$. The papers count down: their $t_n \to t_{n-1}$ is step N - n here. In all three samplers the mean is
linear in the state and in the predicted clean sample, with a standard deviation that no weight of the network enters:

$$p_\theta(x' | x, c) = N\big(a_n\, x + b_n\, \hat x_0,\; s_n^2 I\big), \qquad \hat x_0 = f_\theta(x, t_n, c).$$

| kernel | state | $a_n$ | $b_n$ | $s_n$ |
| --- | --- | --- | --- | --- |
| `Renoise` | VP | 0 | sqrt(ab') | sqrt(1 - ab') |
| `EulerAncestral` | VE | r | 1 - r | sigma' sqrt(1 - r), with r = sigma'^2 / sigma^2 |
| `DDIM` | VP | sqrt((1 - ab' - s^2)/(1 - ab)) | sqrt(ab') - a sqrt(ab) | eta sqrt((1 - ab')/(1 - ab) (1 - ab/ab')) |

Here ab and sigma are taken at $t_n$, ab' and sigma' at $t_{n+1}$.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fsalign_lib.devices import send, table_on
from fsalign_lib.schedules import NoiseSchedule, renoise_timesteps, trailing_timesteps

Reduction = Literal["mean", "sum"]


def at_least_float32(x: Tensor) -> Tensor:
    """Bring x to float32, unless it is float64: half precision is too coarse for log-probs."""
    return x if x.dtype == torch.float64 else x.float()


def reduce_dims(x: Tensor, reduction: Reduction, batch_dims: int = 1) -> Tensor:
    """Reduce all but the first `batch_dims`: by the mean ("mean", as in published code) or the sum ("sum", as printed).

    Raises:
        ValueError: an unknown reduction, or nothing left to reduce.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction = {reduction!r}: expected "mean" or "sum"')
    if x.ndim <= batch_dims:
        raise ValueError(f"shape {tuple(x.shape)} has no dimension left to reduce after {batch_dims} of batch")
    x = x.flatten(batch_dims)
    return x.mean(-1) if reduction == "mean" else x.sum(-1)


@dataclass(frozen=True, eq=False)
class Kernel(ABC):
    """Take Gaussian steps down a grid: `schedule`, `timesteps` (N,) descending, and what the three kernels share.

    Each method takes the step `n` as an int, or as a LongTensor (B,) with a step for each sample. `x`, `x_next` and
    `noise` are states (B, ...), `x0_hat` the predicted clean sample (B, ...).

    Raises:
        ValueError: the grid is empty, not descending, or leaves the schedule; n is not a step of the grid (checked for
            an int and for a CPU tensor; a tensor on an accelerator is not read back).
    """

    schedule: NoiseSchedule
    timesteps: Tensor  # (N,) long, on the CPU

    def __post_init__(self) -> None:
        timesteps = torch.as_tensor(self.timesteps).to("cpu")
        if timesteps.ndim != 1 or len(timesteps) == 0 or timesteps.is_floating_point():
            raise ValueError(f"timesteps = {timesteps.tolist()}: expected a non-empty 1-D tensor of integers")
        if bool((timesteps.diff() >= 0).any()):
            raise ValueError(f"timesteps = {timesteps.tolist()}: expected descending values, the noisiest first")
        self.schedule._check(timesteps)
        object.__setattr__(self, "timesteps", timesteps.long())

    @abstractmethod
    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Compute a, b and s of every step, each (N,) in float64."""

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._coefficients()

    @cached_property
    def _log_stds(self) -> Tensor:
        return self.stds.log()

    @cached_property
    def _kl_weights(self) -> Tensor:
        return self.x0_weight / self.stds

    @property
    def num_steps(self) -> int:
        """Return N, the steps of the grid."""
        return len(self.timesteps)

    @property
    def x_weight(self) -> Tensor:
        """Return a, the weight of the state in the mean.  # (N,) float64"""
        return self._tables[0]

    @property
    def x0_weight(self) -> Tensor:
        """Return b, the weight of x0_hat in the mean.  # (N,) float64"""
        return self._tables[1]

    @property
    def stds(self) -> Tensor:
        """Return s, the standard deviation of each step.  # (N,) float64"""
        return self._tables[2]

    @cached_property
    def stochastic_steps(self) -> tuple[int, ...]:
        """List the steps that have a density, and so enter losses: those with std > 0."""
        return tuple(n for n, std in enumerate(self.stds.tolist()) if std > 0)

    def _at(self, table: Tensor, n: int | Tensor, x: Tensor | None = None) -> float | Tensor:
        if not isinstance(n, Tensor) or n.device.type == "cpu":
            low, high = (int(n.min()), int(n.max())) if isinstance(n, Tensor) else (n, n)
            if low < 0 or high >= self.num_steps:
                raise ValueError(f"step n = {low if low < 0 else high}: this kernel has steps 0..{self.num_steps - 1}")
        if not isinstance(n, Tensor):
            return float(table[n])
        if x is None:
            return table_on(table, n.device, table.dtype)[n]
        return table_on(table, x.device, x.dtype)[send(n, x.device)].view(-1, *[1] * (x.ndim - 1))

    def initial(self, noise: Tensor) -> Tensor:
        """Return the state before step 0 from noise ~ N(0, I)."""
        return noise

    def model_input(self, x: Tensor, n: int | Tensor) -> Tensor:
        """Return the VP sample that the network sees for the state x."""
        return x

    def mean(self, x: Tensor, x0_hat: Tensor, n: int | Tensor) -> Tensor:
        r"""Return $\mu_n = a_n\, x + b_n\, \hat x_0$.  # (B, ...)"""
        return self._at(self.x_weight, n, x) * x + self._at(self.x0_weight, n, x) * x0_hat

    def std(self, n: int | Tensor) -> float | Tensor:
        """Return s_n, 0.0 at a deterministic step: a float, or float64 (B,) for a LongTensor n (B,)."""
        return self._at(self.stds, n)

    def sample(self, x: Tensor, x0_hat: Tensor, n: int | Tensor, noise: Tensor) -> Tensor:
        r"""Return $x' = \mu_n + s_n z$, where the caller draws $z$ = `noise` ~ N(0, I).  # (B, ...)"""
        return self.mean(x, x0_hat, n) + self._at(self.stds, n, x) * noise

    def log_prob(
        self, x_next: Tensor, x: Tensor, x0_hat: Tensor, n: int | Tensor, reduction: Reduction = "mean"
    ) -> Tensor:
        r"""Return the Gaussian log-density of a transition,

        $$\log p_\theta(x' | x, c) = -\frac{\|x' - \mu_n\|^2}{2 s_n^2} - D \log s_n - \frac{D}{2} \log 2\pi .$$

        Args:
            x_next: $x'$, the state that followed  # (B, ...)
            reduction: "sum" over the D dimensions as written, or "mean", the same divided by D.

        Returns:
            float32 (float64 for float64 input), with the gradient of `x0_hat`.  # (B,)

        Raises:
            ValueError: step n is deterministic.
        """
        self._require_density(n)
        x_next, x, x0_hat = at_least_float32(x_next), at_least_float32(x), at_least_float32(x0_hat)
        z = (x_next - self.mean(x, x0_hat, n)) / self._at(self.stds, n, x)
        log_std = self._at(self._log_stds, n, x)
        return reduce_dims(-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi), reduction)

    def _require_density(self, n: int | Tensor) -> None:
        if isinstance(n, Tensor) and n.device.type != "cpu":
            return
        steps = n.tolist() if isinstance(n, Tensor) else [n]
        if any(self.std(m) == 0 for m in set(steps)):
            raise ValueError(
                f"n = {n if isinstance(n, int) else steps} has a deterministic step, so no density: "
                f"use the kernel's stochastic_steps {self.stochastic_steps}"
            )

    def kl(
        self, x: Tensor, x0_hat_p: Tensor, x0_hat_q: Tensor, n: int | Tensor, reduction: Reduction = "mean"
    ) -> Tensor:
        r"""Return the KL between two policies at one state. They share $s_n$, so it is symmetric and the state cancels:

        $$D_{KL}[p \,\|\, q] = \frac{\|\mu_p - \mu_q\|^2}{2 s_n^2}
          = \frac{b_n^2 \|\hat x_0^p - \hat x_0^q\|^2}{2 s_n^2}.$$

        Returns:
            float32 (float64 for float64 input), over the dimensions as `reduction` says.  # (B,)

        Raises:
            ValueError: step n is deterministic.
        """
        self._require_density(n)
        difference = at_least_float32(x0_hat_p) - at_least_float32(x0_hat_q)
        z = self._at(self._kl_weights, n, difference) * difference
        return reduce_dims(0.5 * z**2, reduction)


@dataclass(frozen=True, eq=False)
class Renoise(Kernel):
    r"""Predict the clean sample, then noise it afresh, as DMD2 and LCM do [PSO Eq. 4]:

    $$x_{t_{n+1}} = \sqrt{\bar\alpha_{t_{n+1}}}\, \hat x_0 + \sqrt{1 - \bar\alpha_{t_{n+1}}}\, z .$$

    The last step returns $\hat x_0$ and is deterministic. LCM's boundary scalings c_skip and c_out belong to the
    network's prediction (`predict_x0`), not to the kernel.
    """

    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        after = torch.cat([self.schedule.alpha_bar[self.timesteps[1:]], torch.ones(1, dtype=torch.float64)])
        return torch.zeros_like(after), after.sqrt(), (1 - after).sqrt()


@dataclass(frozen=True, eq=False)
class EulerAncestral(Kernel):
    r"""Step as the Euler ancestral sampler of Turbo does, [PSO Eq. 14] corrected. With $\sigma = \sigma_{t_n}$,
    $\sigma' = \sigma_{t_{n+1}}$ and $r = \sigma'^2 / \sigma^2$,

    $$x' = x + \frac{x - \hat x_0}{\sigma} (\sigma_{down} - \sigma) + \sigma_{up}\, z, \qquad
      \sigma_{down} = \frac{\sigma'^2}{\sigma}, \quad
      \sigma_{up}^2 = \frac{\sigma'^2 (\sigma^2 - \sigma'^2)}{\sigma^2},$$

    that is $N(\hat x_0 + r (x - \hat x_0),\; \sigma'^2 (1 - r) I)$, the posterior of the VE chain. The paper prints
    $\sigma_{up}$ where $\sigma_{down}$ belongs, and $\sqrt{\sigma'^2 - \sigma^2}$, which is imaginary, for the noise.
    In VP coordinates this is exactly `DDIM` with eta = 1 between the same two times.

    States stay in VE coordinates, as in the published sampler; `model_input` scales by $1 / \sqrt{\sigma^2 + 1}$.
    The last step goes to $\sigma' = 0$ and is deterministic; its result is a clean sample, the same in VE and VP.
    """

    @cached_property
    def _sigmas(self) -> Tensor:
        return torch.cat([self.schedule.sigma(self.timesteps), torch.zeros(1, dtype=torch.float64)])

    @cached_property
    def _input_scale(self) -> Tensor:
        return (self._sigmas[:-1] ** 2 + 1).rsqrt()

    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        sigma, after = self._sigmas[:-1], self._sigmas[1:]
        r = after**2 / sigma**2
        return r, 1 - r, after * (1 - r).sqrt()

    def initial(self, noise: Tensor) -> Tensor:
        r"""Return $x = \sigma_{t_0} z$, as the published sampler starts (not $\sqrt{\sigma_{t_0}^2 + 1}\, z$)."""
        return float(self._sigmas[0]) * noise

    def model_input(self, x: Tensor, n: int | Tensor) -> Tensor:
        r"""Return $x / \sqrt{\sigma_{t_n}^2 + 1}$."""
        return self._at(self._input_scale, n, x) * x


@dataclass(frozen=True, eq=False)
class DDIM(Kernel):
    r"""Step as DDIM does (Song et al. 2021, their Eqs. 12 and 16),

    $$x' = \sqrt{\bar\alpha'}\, \hat x_0 + \sqrt{1 - \bar\alpha' - s^2}\, \epsilon + s z, \qquad
      s^2 = \eta^2\, \frac{1 - \bar\alpha'}{1 - \bar\alpha} \Big( 1 - \frac{\bar\alpha}{\bar\alpha'} \Big),$$

    with $\epsilon = (x - \sqrt{\bar\alpha}\, \hat x_0) / \sqrt{1 - \bar\alpha}$. eta = 0 is deterministic throughout;
    eta = 1 is the posterior of DDPM. After the last time comes t = 0, not a clean sample ("prev_t clamped to 0"), so
    that the last step of eta > 0 keeps a density: the result still carries noise, of standard deviation 0.029 under
    Stable Diffusion's schedule.

    Raises:
        ValueError: eta is outside [0, 1].
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta = {self.eta}: expected 0 (deterministic) to 1 (the DDPM posterior)")

    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        alpha_bar = self.schedule.alpha_bar
        now, after = alpha_bar[self.timesteps], alpha_bar[torch.cat([self.timesteps[1:], torch.zeros(1).long()])]
        std = self.eta * ((1 - after) / (1 - now) * (1 - now / after)).sqrt()
        x_weight = ((1 - after - std**2) / (1 - now)).sqrt()
        return x_weight, after.sqrt() - x_weight * now.sqrt(), std


KERNELS = ("renoise", "euler-ancestral", "ddim")


def build_kernel(
    name: str, schedule: NoiseSchedule, num_steps: int, *, timesteps: Tensor | None = None, eta: float = 1.0
) -> Kernel:
    """Build a kernel by name on its usual grid: "renoise" (DMD2's grid), "euler-ancestral" or "ddim" (trailing).

    Args:
        timesteps: another grid of `num_steps` times, such as `lcm_timesteps(4)`  # (N,)
        eta: for "ddim" only.

    Raises:
        ValueError: an unknown name, num_steps outside 1..1000, or timesteps of another length.
    """
    if name not in KERNELS:
        raise ValueError(f"unknown kernel {name!r}: expected one of {', '.join(KERNELS)}")
    grid = renoise_timesteps(num_steps) if name == "renoise" else trailing_timesteps(num_steps)
    if timesteps is not None:
        if len(timesteps) != num_steps:
            raise ValueError(f"timesteps has {len(timesteps)} values for num_steps = {num_steps}: make them agree")
        grid = timesteps
    if name == "ddim":
        return DDIM(schedule, grid, eta)
    return Renoise(schedule, grid) if name == "renoise" else EulerAncestral(schedule, grid)


def require_stochastic(kernel: Kernel) -> None:
    """Raise a ValueError for a kernel that no policy objective can train: one without a stochastic step.

    "Remove the last step" (PSO) leaves nothing of a one-step renoise or Euler-ancestral sampler.
    """
    if not kernel.stochastic_steps:
        raise ValueError(
            f"{type(kernel).__name__} with num_steps = {kernel.num_steps} has no stochastic step, so there is no "
            "likelihood to train: use 2 steps or more to train (1 step is for sampling), and eta > 0 with DDIM"
        )
