r"""Measure improved precision and recall (Kynkaanniemi et al. 2019): whether samples lie among other samples.

The manifold of a set is estimated by balls: each sample of the set is the centre of one, which reaches to the sample's
k-th nearest neighbour in the set. Of generated and real features the precision is the share of the generated in the
real set's manifold, and the recall the share of the real in the generated set's:

    precision, recall = in_manifold(generated, real).mean(), in_manifold(real, generated).mean()

Both depend on the sizes of the sets: compare equal ones. An outlier has a large ball, which makes them generous.
"""

import numpy as np

from fsalign_lib.metrics.features import feature_rows
from fsalign_lib.metrics.statistics import Array

K = 3  # the paper's


def in_manifold(points: Array, samples: Array, k: int = K) -> np.ndarray:
    r"""Return $1\{\exists j: \|p_i - s_j\| \le \|s_j - NN_k(s_j)\|\}$ for each point, (n, D) and (m, D) -> (n,) bool.

    $NN_k(s_j)$ is the k-th nearest of the other samples. Equal samples count as neighbours at distance 0.

    Raises:
        ValueError: other dimensions, a value that is not finite, or no more than k samples.
    """
    points, samples = feature_rows(points), feature_rows(samples)
    if points.shape[1] != samples.shape[1]:
        raise ValueError(f"features have {points.shape[1]} and {samples.shape[1]} dimensions: use the same extractor")
    if not 1 <= k < len(samples):
        raise ValueError(f"k = {k} with {len(samples)} samples: expected 1 or more, and more samples than that")
    between = square_distances(samples, samples)
    np.fill_diagonal(between, np.inf)  # roundoff must not take a sample for its own neighbour's neighbour
    radii = np.partition(between, k - 1, axis=1)[:, k - 1]  # (m,)
    return (square_distances(points, samples) <= radii).any(1)


def square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (n, D), (m, D) -> (n, m) as sums of squared differences, in which nearly equal features do not cancel."""
    return np.stack([((row - b) ** 2).sum(1) for row in a])
