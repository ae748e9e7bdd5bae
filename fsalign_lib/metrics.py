r"""Metrics, each a formula, with bootstrap intervals; numpy in float64.

Inputs are arrays or tensors (detached and brought to the CPU here); random resampling takes an explicit seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fsalign_lib.frechet import Gaussian, gaussian_frechet

Array = np.ndarray | Tensor


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def excludes(self, value: float = 0.0) -> bool:
        return not self.low <= value <= self.high


def paired_bootstrap(
    after: Array,
    before: Array,
    groups: Array | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    r"""Percentile bootstrap interval of the mean paired difference $\frac1n \sum_i (a_i - b_i)$.

    Pairs are resampled whole. With `groups`, whole groups are (the prompts, when each has several seeds: its pairs are
    not independent), and each replicate is the mean over the pairs it holds.

    Args:
        after, before: $a$ and $b$, matched by index  # (n,)
        groups: a label for each pair  # (n,)

    Raises:
        ValueError: lengths differ, fewer than 2 pairs or groups, a value that is not finite, a level outside (0, 1).
    """
    a, b = _array(after), _array(before)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"after has shape {a.shape} and before {b.shape}: expected two arrays (n,) matched by index")
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise ValueError("after or before has a value that is not finite: drop or repair those pairs first")
    labels = np.arange(len(a)) if groups is None else _array(groups, dtype=None)
    if labels.shape != a.shape:
        raise ValueError(f"groups has shape {labels.shape}: expected {a.shape}, a label for each pair")
    _, index = np.unique(labels, return_inverse=True)
    sums, counts = np.bincount(index, a - b), np.bincount(index)  # (G,), (G,)
    if len(sums) < 2:
        raise ValueError(f"{len(sums)} pair or group: expected at least 2 to resample")
    rng = np.random.default_rng(seed)
    replicates = np.empty(resamples)
    for chunk in np.array_split(np.arange(resamples), max(1, resamples * len(sums) // 4_000_000)):
        draw = rng.integers(len(sums), size=(len(chunk), len(sums)))
        replicates[chunk] = sums[draw].sum(1) / counts[draw].sum(1)
    return Interval(float((a - b).mean()), *_quantiles(replicates, level))


def frechet_distance(features_a: Array, features_b: Array) -> float:
    r"""Squared 2-Wasserstein distance between Gaussians fitted to two feature sets ("Frechet distance", as in FID):

    $$\|m_a - m_b\|^2 + \mathrm{tr}\big( S_a + S_b - 2 (S_a^{1/2} S_b S_a^{1/2})^{1/2} \big),$$

    with means and unbiased covariances over the samples. It is biased upwards by about 1/n: compare equal sizes.

    Args:
        features_a, features_b: one row a sample; the numbers of rows may differ  # (n, D), (m, D)
    """
    a, b = feature_rows(features_a), feature_rows(features_b)
    return gaussian_frechet(Gaussian(a.mean(0), _cov(a)), Gaussian(b.mean(0), _cov(b)))


def gaussian_kl(mean_p: Array, cov_p: Array, mean_q: Array, cov_q: Array) -> float:
    r"""KL between Gaussians, with D the dimension:

    $$D_{KL}[p \| q] = \tfrac12 \big( \mathrm{tr}(S_q^{-1} S_p) + (m_q - m_p)^\top S_q^{-1} (m_q - m_p) - D
      + \log |S_q| - \log |S_p| \big).$$

    Args:
        mean_p, mean_q: # (D,)
        cov_p, cov_q: # (D, D)
    """
    shift, cov_p, cov_q = _array(mean_q) - _array(mean_p), _array(cov_p), _array(cov_q)
    trace = np.trace(np.linalg.solve(cov_q, cov_p))
    log_ratio = np.linalg.slogdet(cov_q)[1] - np.linalg.slogdet(cov_p)[1]
    return float(0.5 * (trace + shift @ np.linalg.solve(cov_q, shift) - len(shift) + log_ratio))


def mean_pairwise_distance(features: Array) -> float:
    r"""Diversity as $\frac{2}{n(n-1)} \sum_{i<j} \|f_i - f_j\|$.

    Args:
        features: one row a sample  # (n, D)
    """
    f = feature_rows(features)
    square = (f**2).sum(1)
    distances = np.sqrt(np.clip(square[:, None] + square - 2 * f @ f.T, 0, None))
    return float(distances[np.triu_indices(len(f), 1)].mean())


def vendi_score(kernel: Array) -> float:
    r"""Diversity as an effective number of samples: $\exp(-\sum_i \lambda_i \log \lambda_i)$, $\lambda$ of $K / n$.

    It is 1 for n equal samples and n for samples that have nothing in common.

    Args:
        kernel: positive semi-definite similarities with ones on the diagonal, as `cosine_kernel` gives  # (n, n)
    """
    k = _array(kernel)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or not np.allclose(np.diag(k), 1):
        raise ValueError(f"kernel has shape {k.shape}: expected (n, n) similarities with ones on the diagonal")
    eigenvalues = np.linalg.eigvalsh(k / len(k))
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def cosine_kernel(features: Array) -> np.ndarray:
    r"""$K_{ij} = f_i^\top f_j / (\|f_i\| \|f_j\|)$, (n, D) -> (n, n)."""
    f = feature_rows(features)
    norms = np.linalg.norm(f, axis=1, keepdims=True)
    if (norms == 0).any():
        raise ValueError("a feature row is zero, so its cosine is undefined: drop it")
    return (f / norms) @ (f / norms).T


def rbf_kernel(features: Array, bandwidth: float) -> np.ndarray:
    r"""$K_{ij} = \exp(-\|f_i - f_j\|^2 / (2 h^2))$ with $h$ = `bandwidth`, (n, D) -> (n, n)."""
    f = feature_rows(features)
    return np.exp(-((f[:, None] - f) ** 2).sum(-1) / (2 * bandwidth**2))


def sharpness(images: Array) -> np.ndarray:
    r"""Mean squared horizontal difference, $\frac{1}{CH(W-1)} \sum_{c,i,j} (I_{c,i,j+1} - I_{c,i,j})^2$.

    It falls when pictures blur, and rises with noise: read it beside a recogniser.

    Args:
        images: in [0, 1]  # (B, C, H, W)

    Returns:
        one value for each image  # (B,)
    """
    x = _array(images)
    if x.ndim != 4 or x.shape[3] < 2:
        raise ValueError(f"images have shape {x.shape}: expected (B, C, H, W) with W >= 2")
    return (np.diff(x, axis=3) ** 2).mean(axis=(1, 2, 3))


@dataclass(frozen=True)
class Grid:
    """bins x bins equal square cells on [low, high]^2, cell (i, j) covering x_i, y_j; then one cell for all outside."""

    low: float = -3.0
    high: float = 3.0
    bins: int = 40

    def centers(self, refine: int = 1) -> Tensor:
        """Centres of the cells, or of refine x refine parts of each, x-major.  # ((bins * refine)^2, 2) float64"""
        edges = torch.linspace(self.low, self.high, self.bins * refine + 1, dtype=torch.float64)
        middle = (edges[1:] + edges[:-1]) / 2
        return torch.cartesian_prod(middle, middle)

    def probabilities(self, log_density: Callable[[Tensor], Tensor], normalise: bool = False, refine: int = 4):
        r"""The exact probability of each cell, $\int_{cell} p(x)\,dx$, by the midpoint rule on refine^2 parts.

        Args:
            log_density: $\log p$ at points (n, 2), (n,); the last cell gets what is missing to 1, at least 1e-12
            normalise: for a density known up to a constant (and negligible outside): divide by the sum.

        Returns:
            (bins^2 + 1,) float64
        """
        density = _array(log_density(self.centers(refine)).exp()).reshape(self.bins, refine, self.bins, refine)
        cells = density.sum(axis=(1, 3)).ravel() * ((self.high - self.low) / (self.bins * refine)) ** 2
        if normalise:
            cells = cells / cells.sum()
        return np.append(cells, max(1 - cells.sum(), 1e-12))

    def counts(self, samples: Array) -> np.ndarray:
        """How many samples (n, 2) fall into each cell.  # (bins^2 + 1,)"""
        x = _array(samples)
        if not np.isfinite(x).all():
            raise ValueError("samples have a value that is not finite")
        cell = np.floor((x - self.low) / (self.high - self.low) * self.bins).astype(int)  # (n, 2)
        inside = ((cell >= 0) & (cell < self.bins)).all(1)
        index = np.where(inside, cell[:, 0] * self.bins + cell[:, 1], self.bins**2)
        return np.bincount(index, minlength=self.bins**2 + 1)


def discrete_kl(p: Array, q: Array) -> float:
    r"""$\sum_i p_i \log(p_i / q_i)$ between probabilities; with more axes, the mean of it over the leading ones."""
    p, q = _array(p), _array(q)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return float(terms.sum(-1).mean())


def histogram_kl(
    counts: Array, probabilities: Array, level: float = 0.95, resamples: int = 500, seed: int = 0
) -> Interval:
    r"""KL on a grid from samples to an exact density, with its bootstrap interval:

    $$-\hat H - \sum_i \frac{n_i}{n} \log q_i, \qquad \hat H = \log n - \frac1n \sum_i n_i\, G(n_i),$$

    with Grassberger's (2003) entropy estimate in place of the plug-in, whose bias (about occupied cells / 2n) would
    drown a small KL: $G(1) = -\gamma - \log 2$, $G(2) = 2 + G(1)$, $G(2k+1) = G(2k)$, $G(2k+2) = G(2k) + 2/(2k+1)$.
    It can come out slightly negative. What bias is left is upwards: below some ten samples per occupied cell the 95%
    interval held the truth in 88-90% of trials. A coarser grid can only lower the KL: it bounds that of the densities
    from below. Bootstrap replicates (multinomial redraws of the counts) are centred on the estimate, because redrawing
    adds a bias of its own.

    Args:
        counts: $n_i$ from `Grid.counts`, or a row for each class: then the KLs are averaged  # (G,) or (C, G)
        probabilities: $q_i$ from `Grid.probabilities`, likewise; positive wherever there are samples
    """
    n, q = np.atleast_2d(_array(counts)), np.atleast_2d(_array(probabilities))
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
    return Interval(estimate, *_quantiles(estimate + replicates - replicates.mean(), level))


def _counts_kl(counts: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The estimate of `histogram_kl` for each row of counts (R, m), with q (m,)."""
    total = counts.sum(1)
    steps = np.zeros(int(counts.max()) + 1)  # G(n) by summing its increments, from n = 1
    steps[1] = -np.euler_gamma - np.log(2)
    steps[2::2] = 2 / (np.arange(2, len(steps), 2) - 1)
    return (counts * (np.cumsum(steps)[counts.astype(int)] - np.log(q))).sum(1) / total - np.log(total)


def _array(x: Array, dtype: type | None = np.float64) -> np.ndarray:
    x = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    return np.asarray(x, dtype=dtype)


def feature_rows(x: Array) -> np.ndarray:
    """(n, D) in float64; a ValueError for fewer than 2 rows, another shape, or a value that is not finite."""
    x = _array(x)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(f"features have shape {x.shape}: expected (n, D) with n >= 2, every value finite")
    return x


def _cov(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _quantiles(replicates: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: expected a number between 0 and 1, such as 0.95")
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
