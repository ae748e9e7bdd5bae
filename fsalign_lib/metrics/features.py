r"""Metrics, each a formula, with bootstrap intervals; numpy in float64.

Inputs are arrays or tensors (detached and brought to the CPU here); random resampling takes an explicit seed.
"""

import numpy as np

from fsalign_lib.metrics.frechet import Gaussian, gaussian_frechet
from fsalign_lib.metrics.statistics import Array, as_array


def frechet_distance(features_a: Array, features_b: Array) -> float:
    r"""Squared 2-Wasserstein distance between Gaussians fitted to two feature sets ("Frechet distance", as in FID):

    $$\|m_a - m_b\|^2 + \mathrm{tr}\big( S_a + S_b - 2 (S_a^{1/2} S_b S_a^{1/2})^{1/2} \big),$$

    with means and unbiased covariances over the samples. It is biased upwards by about 1/n: compare equal sizes.

    Args:
        features_a, features_b: one row a sample; the numbers of rows may differ  # (n, D), (m, D)
    """
    a, b = feature_rows(features_a), feature_rows(features_b)
    return gaussian_frechet(Gaussian(a.mean(0), _cov(a)), Gaussian(b.mean(0), _cov(b)))


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
    k = as_array(kernel)
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
    x = as_array(images)
    if x.ndim != 4 or x.shape[3] < 2:
        raise ValueError(f"images have shape {x.shape}: expected (B, C, H, W) with W >= 2")
    return (np.diff(x, axis=3) ** 2).mean(axis=(1, 2, 3))


def feature_rows(x: Array) -> np.ndarray:
    """(n, D) in float64; a ValueError for fewer than 2 rows, another shape, or a value that is not finite."""
    x = as_array(x)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(f"features have shape {x.shape}: expected (n, D) with n >= 2, every value finite")
    return x


def _cov(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)
