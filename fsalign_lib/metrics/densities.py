"""Measure divergences of densities: of Gaussians in closed form, of samples on a grid."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsalign_lib.metrics.statistics import Array, Interval, as_array, quantiles


def gaussian_kl(mean_p: Array, cov_p: Array, mean_q: Array, cov_q: Array) -> float:
    r"""Return the KL between Gaussians, with D the dimension:

    $$D_{KL}[p \| q] = \tfrac12 \big( \mathrm{tr}(S_q^{-1} S_p) + (m_q - m_p)^\top S_q^{-1} (m_q - m_p) - D
      + \log |S_q| - \log |S_p| \big).$$

    Args:
        mean_p, mean_q: # (D,)
        cov_p, cov_q: # (D, D)
    """
    shift, cov_p, cov_q = as_array(mean_q) - as_array(mean_p), as_array(cov_p), as_array(cov_q)
    trace = np.trace(np.linalg.solve(cov_q, cov_p))
    log_ratio = np.linalg.slogdet(cov_q)[1] - np.linalg.slogdet(cov_p)[1]
    return float(0.5 * (trace + shift @ np.linalg.solve(cov_q, shift) - len(shift) + log_ratio))


@dataclass(frozen=True)
class Grid:
    """Divide [low, high]^2 into bins x bins equal squares, cell (i, j) covering x_i, y_j; one more cell is outside."""

    low: float = -3.0
    high: float = 3.0
    bins: int = 40

    def centers(self, refine: int = 1) -> Tensor:
        """Return the cells' centres, or those of refine x refine parts of each.  # ((bins * refine)^2, 2), x-major"""
        edges = torch.linspace(self.low, self.high, self.bins * refine + 1, dtype=torch.float64)
        middle = (edges[1:] + edges[:-1]) / 2
        return torch.cartesian_prod(middle, middle)

    def probabilities(self, log_density: Callable[[Tensor], Tensor], normalise: bool = False, refine: int = 4):
        r"""Return the exact probability of each cell, $\int_{cell} p(x)\,dx$, by the midpoint rule on refine^2 parts.

        Args:
            log_density: $\log p$ at points (n, 2), (n,); the last cell gets what is missing to 1, at least 1e-12
            normalise: for a density known up to a constant (and negligible outside): divide by the sum.

        Returns:
            (bins^2 + 1,) float64
        """
        density = as_array(log_density(self.centers(refine)).exp()).reshape(self.bins, refine, self.bins, refine)
        cells = density.sum(axis=(1, 3)).ravel() * ((self.high - self.low) / (self.bins * refine)) ** 2
        if normalise:
            cells = cells / cells.sum()
        return np.append(cells, max(1 - cells.sum(), 1e-12))

    def counts(self, samples: Array) -> np.ndarray:
        """Count the samples (n, 2) in each cell.  # (bins^2 + 1,)"""
        x = as_array(samples)
        if not np.isfinite(x).all():
            raise ValueError("samples have a value that is not finite")
        cell = np.floor((x - self.low) / (self.high - self.low) * self.bins).astype(int)  # (n, 2)
        inside = ((cell >= 0) & (cell < self.bins)).all(1)
        index = np.where(inside, cell[:, 0] * self.bins + cell[:, 1], self.bins**2)
        return np.bincount(index, minlength=self.bins**2 + 1)


def histogram_kl(
    counts: Array, probabilities: Array, level: float = 0.95, resamples: int = 500, seed: int = 0
) -> Interval:
    r"""Estimate the KL on a grid from samples to an exact density, with its bootstrap interval:

    $$-\hat H - \sum_i \frac{n_i}{n} \log q_i, \qquad \hat H = \log n - \frac1n \sum_i n_i\, G(n_i),$$

    with Grassberger's (2003) entropy estimate in place of the plug-in, whose bias (about occupied cells / 2n) would
    drown a small KL: $G(1) = -\gamma - \log 2$, $G(2) = 2 + G(1)$, $G(2k+1) = G(2k)$, $G(2k+2) = G(2k) + 2/(2k+1)$.
    It can come out slightly negative. What bias is left is upwards: below some ten samples per occupied cell the 95%
    interval held the truth in 88-90% of trials. A coarser grid can only lower the KL: it bounds that of the densities
    from below. Bootstrap replicates (multinomial redraws of the counts) are centred on the estimate, because redrawing
    adds a bias of its own.

    Args:
        counts: $n_i$ from `Grid.counts`, or a row for each class: then the KLs are averaged  # (G,) or (C, G)
        probabilities: $q_i$ from `Grid.probabilities`, positive wherever there are samples  # (G,) or (C, G)
    """
    n, q = np.atleast_2d(as_array(counts)), np.atleast_2d(as_array(probabilities))
    if n.shape != q.shape:
        raise ValueError(f"counts have shape {n.shape} and probabilities {q.shape}: use the same grid and classes")
    if ((n > 0) & (q <= 0)).any():
        raise ValueError("samples lie in a cell of probability 0, so the KL is infinite: use a wider density or grid")
    rng = np.random.default_rng(seed)
    estimate, replicates = 0.0, np.zeros(resamples)
    for n_c, q_c in zip(n, q, strict=True):
        used, total = n_c > 0, int(n_c.sum())
        draws = rng.multinomial(total, n_c[used] / total, size=resamples)  # (R, m)
        estimate += _counts_kl(n_c[used][None], q_c[used])[0] / len(n)
        replicates += _counts_kl(draws, q_c[used]) / len(n)
    return Interval(estimate, *quantiles(estimate + replicates - replicates.mean(), level))


def _counts_kl(counts: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Estimate the KL of `histogram_kl` for each row of counts (R, m), with q (m,)."""
    total = counts.sum(1)
    steps = np.zeros(int(counts.max()) + 1)  # G(n) by summing its increments, from n = 1
    steps[1] = -np.euler_gamma - np.log(2)
    steps[2::2] = 2 / (np.arange(2, len(steps), 2) - 1)
    return (counts * (np.cumsum(steps)[counts.astype(int)] - np.log(q))).sum(1) / total - np.log(total)
