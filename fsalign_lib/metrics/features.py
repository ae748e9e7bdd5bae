r"""Measure sets of features and of pictures, each measure a formula in float64: Vendi score, sharpness.

Inputs are arrays or tensors, which are detached and brought to the CPU here.
"""

import numpy as np

from fsalign_lib.metrics.statistics import Array, as_array


def vendi_score(kernel: Array) -> float:
    r"""Return the effective number of samples: $\exp(-\sum_i \lambda_i \log \lambda_i)$, $\lambda$ of $K / n$.

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
    r"""Return $K_{ij} = f_i^\top f_j / (\|f_i\| \|f_j\|)$, (n, D) -> (n, n)."""
    f = feature_rows(features)
    norms = np.linalg.norm(f, axis=1, keepdims=True)
    if (norms == 0).any():
        raise ValueError("a feature row is zero, so its cosine is undefined: drop it")
    return (f / norms) @ (f / norms).T


def sharpness(images: Array) -> np.ndarray:
    r"""Measure the mean squared horizontal difference, $\frac{1}{CH(W-1)} \sum_{c,i,j} (I_{c,i,j+1} - I_{c,i,j})^2$.

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
    """Check features and return them in float64.  # (n, D)

    Raises:
        ValueError: fewer than 2 rows, another shape, or a value that is not finite.
    """
    x = as_array(x)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(f"features have shape {x.shape}: expected (n, D) with n >= 2, every value finite")
    return x
