r"""Define Gaussian mixtures, whose classes are the prompts, exactly: at every noise level, and when aligned.

Noise levels are in VP coordinates, $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$. A class is an
integer 0..C-1; -1 means unconditional.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CLASS_NAMES = ("square", "triangle", "line")


@dataclass(frozen=True)
class GaussianMixture:
    r"""Define $p(x) = \sum_k w_k\,\mathcal{N}(x; m_k, S_k)$, where component $k$ belongs to class `labels[k]`.

    Arguments: `weights` (K,) positive, `means` (K, D), `covs` (K, D, D), `labels` (K,) integers 0..C-1.
    In every method `c` is None or -1 (unconditional), an int, or a LongTensor (B,); `alpha_bar` is a number or (B,).
    Results come in the dtype of the point that is asked about; parameters are held in float64.
    """

    weights: Tensor
    means: Tensor
    covs: Tensor
    labels: Tensor

    def __post_init__(self):
        for name in ("weights", "means", "covs"):
            object.__setattr__(self, name, getattr(self, name).double())
        if bool((self.weights <= 0).any()):
            raise ValueError(f"weights must be positive, got {self.weights.tolist()}: leave empty components out")
        object.__setattr__(self, "weights", self.weights / self.weights.sum())
        if not bool((torch.linalg.eigvalsh(self.covs) > 0).all()):
            raise ValueError("covs must be positive definite: every eigenvalue above zero")

    @property
    def num_classes(self) -> int:
        """Return the number of classes, which are the prompts."""
        return int(self.labels.max()) + 1

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigh(self.covs)  # (K, D), (K, D, D)

    def class_log_weights(self, c) -> Tensor:
        r"""Return $\log w_{k|c}$, (B or 1, K): renormalised within the class, $-\infty$ outside it."""
        c = torch.as_tensor(-1 if c is None else c).reshape(-1, 1)
        if bool((c < -1).any() or (c >= self.num_classes).any()):
            raise ValueError(f"class {c.unique().tolist()} unknown: use 0..{self.num_classes - 1}, or -1 for no class")
        weights = torch.where((c == self.labels) | (c == -1), self.weights, 0.0)
        return (weights / weights.sum(1, keepdim=True)).log()

    def _components(self, x_t: Tensor, alpha_bar, c):
        """Return per component log w_k N(x_t) (B, K), whitening coordinates, their variances and the eigenbasis."""
        eigenvalues, basis = (value.to(x_t) for value in self._eigen)
        ab = torch.as_tensor(alpha_bar, dtype=torch.float64).to(x_t).reshape(-1, 1, 1)
        z = torch.einsum("bkd,kde->bke", x_t[:, None] - ab.sqrt() * self.means.to(x_t), basis)  # (B, K, D)
        variance = ab * eigenvalues + (1 - ab)
        log_normal = -0.5 * (z**2 / variance + (2 * math.pi * variance).log()).sum(-1)
        return self.class_log_weights(c).to(x_t) + log_normal, z, variance, eigenvalues, basis, ab

    def log_prob_t(self, x_t: Tensor, alpha_bar, c=None) -> Tensor:
        r"""Return $\log p_t(x_t|c) = \log\sum_k w_{k|c}\,\mathcal{N}(x_t; \sqrt{\bar\alpha}\,m_k, C_k)$ (B,) of (B, D),

        with $C_k = \bar\alpha S_k + (1-\bar\alpha) I$."""
        return torch.logsumexp(self._components(x_t, alpha_bar, c)[0], dim=1)

    def log_prob(self, x: Tensor, c=None) -> Tensor:
        r"""Return $\log p(x|c)$, (B, D) -> (B,)."""
        return self.log_prob_t(x, 1.0, c)

    def responsibilities(self, x_t: Tensor, alpha_bar=1.0, c=None) -> Tensor:
        r"""Return $\gamma_k = p(k|x_t, c)$, (B, D) -> (B, K)."""
        return self._components(x_t, alpha_bar, c)[0].softmax(1)

    def score_t(self, x_t: Tensor, alpha_bar, c=None) -> Tensor:
        r"""Return $\nabla\log p_t(x_t|c) = -\sum_k \gamma_k C_k^{-1}(x_t - \sqrt{\bar\alpha}\,m_k)$.  # (B, D)"""
        log_joint, z, variance, _, basis, _ = self._components(x_t, alpha_bar, c)
        return -torch.einsum("bk,bke,kde->bd", log_joint.softmax(1), z / variance, basis)

    def posterior_mean(self, x_t: Tensor, alpha_bar, c=None) -> Tensor:
        r"""Return the posterior mean, which the plain diffusion loss teaches a network to predict, (B, D) -> (B, D):

        $$E[x_0|x_t,c] = \sum_k \gamma_k [m_k + \sqrt{\bar\alpha}\,S_k C_k^{-1}(x_t - \sqrt{\bar\alpha}\,m_k)].$$
        """
        log_joint, z, variance, eigenvalues, basis, ab = self._components(x_t, alpha_bar, c)
        gain = ab.sqrt() * eigenvalues * z / variance
        means = self.means.to(x_t) + torch.einsum("bke,kde->bkd", gain, basis)
        return torch.einsum("bk,bkd->bd", log_joint.softmax(1), means)

    def guided_score_t(self, x_t: Tensor, alpha_bar, c, guidance_scale: float) -> Tensor:
        r"""Return $s_\varnothing + w\,(s_c - s_\varnothing)$, $w$ = `guidance_scale`; 1 is no guidance.  # (B, D)"""
        if guidance_scale == 1:
            return self.score_t(x_t, alpha_bar, c)
        free = self.score_t(x_t, alpha_bar)
        return free + guidance_scale * (self.score_t(x_t, alpha_bar, c) - free)

    def guided_posterior_mean(self, x_t: Tensor, alpha_bar, c, guidance_scale: float) -> Tensor:
        r"""Return $\mu_\varnothing + w\,(\mu_c - \mu_\varnothing)$, Tweedie's image of the guided score.  # (B, D)"""
        if guidance_scale == 1:
            return self.posterior_mean(x_t, alpha_bar, c)
        free = self.posterior_mean(x_t, alpha_bar)
        return free + guidance_scale * (self.posterior_mean(x_t, alpha_bar, c) - free)

    def sample(self, count: int, c=None, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw `count` exact samples, (count, D) float64; `c` may hold one class per sample."""
        weights = self.class_log_weights(c).exp().expand(count, -1)
        k = torch.multinomial(weights, 1, generator=generator).squeeze(1)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        eigenvalues, basis = self._eigen
        return self.means[k] + torch.einsum("bde,be->bd", basis[k], eigenvalues[k].sqrt() * noise)

    def tilted(self, reward: QuadraticReward, beta: float) -> GaussianMixture:
        r"""Return the optimum of KL-regularised alignment, $p^*(x|c) = p(x|c)\,e^{r(x,c)/\beta}/Z(c)$, as a mixture.

        With $r = b^\top x - \tfrac12 x^\top A x$, component $k$ keeps its form:
        $P_k = S_k^{-1} + A/\beta$, $h_k = S_k^{-1}m_k + b/\beta$, $m_k^* = P_k^{-1}h_k$, $S_k^* = P_k^{-1}$,
        $w_k^* \propto w_k\,(|P_k||S_k|)^{-1/2}\exp\tfrac12(h_k^\top P_k^{-1}h_k - m_k^\top S_k^{-1}m_k)$
        within each class; the classes keep their own weight $p(c)$.
        """
        prior = torch.linalg.inv(self.covs)
        precision = prior + reward.quadratic[self.labels] / beta
        if not bool((torch.linalg.eigvalsh(precision) > 0).all()):
            raise ValueError(f"beta={beta} is too small for this reward: exp(r/beta) outgrows the Gaussian; raise beta")
        h = torch.einsum("kde,ke->kd", prior, self.means) + reward.linear[self.labels] / beta
        covs = torch.linalg.inv(precision)
        means = torch.einsum("kde,ke->kd", covs, h)
        shift = torch.einsum("kd,kd->k", h, means) - torch.einsum("kd,kde,ke->k", self.means, prior, self.means)
        log_weights = self.weights.log() + 0.5 * (shift - torch.logdet(precision) - torch.logdet(self.covs))
        weights = torch.zeros_like(self.weights)
        for label in self.labels.unique():
            own = self.labels == label
            weights[own] = self.weights[own].sum() * log_weights[own].softmax(0)
        return GaussianMixture(weights, means, covs, self.labels)


@dataclass(frozen=True)
class QuadraticReward:
    r"""Define $r(x, c) = b_c^\top x - \tfrac12 x^\top A_c x$; call it with x (B, D), c (B,) for (B,).

    Arguments: `linear` (C, D), `quadratic` (C, D, D) symmetric.
    """

    linear: Tensor
    quadratic: Tensor

    def __call__(self, x: Tensor, c: Tensor) -> Tensor:
        linear, quadratic = self.linear.to(x)[c], self.quadratic.to(x)[c]
        return (linear * x).sum(-1) - 0.5 * torch.einsum("...d,...de,...e->...", x, quadratic, x)

    @classmethod
    def toward(cls, point, strength: float, num_classes: int) -> QuadraticReward:
        r"""Return $-\tfrac12\,$strength$\,\|x - $point$\|^2$ up to a constant, the same for every class."""
        point = torch.as_tensor(point, dtype=torch.float64)
        quadratic = strength * torch.eye(len(point), dtype=torch.float64)
        return cls((strength * point).repeat(num_classes, 1), quadratic.repeat(num_classes, 1, 1))


def toy_mixture() -> GaussianMixture:
    r"""Build three prompts: "square" (4 modes), "triangle" (3), "line" (3, long and unequal); std about 1."""
    angles = torch.tensor([90.0, 210.0, 330.0], dtype=torch.float64).deg2rad()
    triangle = 1.25 * torch.stack((angles.cos(), angles.sin()), dim=1)
    square = 0.95 * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    line = torch.tensor([[-1.4, 0.0], [0.0, 0.0], [1.4, 0.0]], dtype=torch.float64)
    round_cov, long_cov = 0.22**2 * torch.eye(2), torch.tensor([[0.03, 0.015], [0.015, 0.07]])
    return GaussianMixture(
        weights=torch.tensor([0.25] * 4 + [0.4, 0.3, 0.3] + [0.3, 0.45, 0.25]),
        means=torch.cat((square, triangle, line)),
        covs=torch.stack([round_cov] * 7 + [long_cov] * 3),
        labels=torch.tensor([0] * 4 + [1] * 3 + [2] * 3),
    )


def toy_reward() -> QuadraticReward:
    r"""Build a reward that prefers what lies near (1, 0.6), in every class."""
    return QuadraticReward.toward((1.0, 0.6), strength=1.0, num_classes=len(CLASS_NAMES))


@dataclass(frozen=True)
class ModeStatistics:
    r"""Describe how samples of one class lie about its modes, each at the component most likely to have made it.

    With $d^2$ the squared Mahalanobis distance to that component's mean, and "on mode" meaning $d^2 \le 9$:
    """

    spread: float  #: sqrt(tr Cov[samples] / tr Cov[data]); the data's is exact. 1 for the data, below 1 when averaged
    within: float  #: the std about the own mean of samples on mode over the data's. 1 for the data
    on_mode: float  #: the share of samples on mode: 0.989 for the data; what is missing lies between modes
    shares: Tensor  #: of each component of the class among the samples on mode  # (K_c,)
    recall: float  #: the share of components that hold at least half of their weight


def mode_statistics(mixture: GaussianMixture, samples: Tensor, c: int) -> ModeStatistics:
    r"""Compute `ModeStatistics` of samples (n, 2) of the class `c`."""
    x, own = samples.double(), mixture.labels == c
    weights = mixture.class_log_weights(c)[0, own].exp()
    means, covs = mixture.means[own], mixture.covs[own]
    k = mixture.responsibilities(x, c=c)[:, own].argmax(1)
    centred = x - means[k]
    distance2 = torch.einsum("bd,bde,be->b", centred, torch.linalg.inv(covs)[k], centred)
    on = distance2 <= 9
    shares = torch.bincount(k[on], minlength=len(weights)) / max(int(on.sum()), 1)
    held = torch.bincount(k[on], minlength=len(weights)) / len(x)
    mean = weights @ means
    data_variance = weights @ (covs.diagonal(dim1=1, dim2=2).sum(1) + (means - mean).square().sum(1))
    truncated = 2 - 9 * math.exp(-4.5) / (1 - math.exp(-4.5))  # E[d^2 | d^2 <= 9] for chi-squared with 2 degrees
    return ModeStatistics(
        spread=float((x.var(0).sum() / data_variance).sqrt()),
        within=float((distance2[on].mean() / truncated).sqrt()),
        on_mode=float(on.double().mean()),
        shares=shares,
        recall=float((held >= 0.5 * weights).double().mean()),
    )


def probability_flow(
    mixture: GaussianMixture, x: Tensor, sigmas: Tensor, c=None, guidance_scale: float = 1.0
) -> Tensor:
    r"""Integrate $dx/d\sigma = -\sigma\,\nabla\log p_\sigma(x)$, the exact ODE in VE coordinates, by Heun's steps.

    Args:
        x: states at `sigmas[0]`  # (B, D)
        sigmas: descending noise levels, the last may be 0  # (N,)

    Returns:
        the state at every level  # (N, B, D)
    """

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        signal = (1 + sigma**2).rsqrt()  # VP x_t = signal * x, so the VE score has one more factor of it
        return -sigma * signal * mixture.guided_score_t(signal * x, signal**2, c, guidance_scale)

    states = [x]
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        first = slope(x, now).to(x)
        step = (after - now).to(x)
        x = x + step * (first + slope(x + step * first, after).to(x)) / 2
        states.append(x)
    return torch.stack(states)
