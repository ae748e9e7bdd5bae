r"""Measure the Frechet distance between sets of pictures from streamed moments: features are summed, not kept.

The mean and covariance of a reference set are computed once and kept in a file; pytorch-fid's .npz are read as well.
"""

import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor


class Gaussian(NamedTuple):
    """Hold a feature set's mean (D,) and unbiased covariance (D, D), float64, and its size where that is known."""

    mean: np.ndarray
    cov: np.ndarray
    count: int | None = None


class Moments:
    """Sum features and their outer products in float64, batch by batch."""

    def __init__(self, dimensions: int):
        self.count = 0
        self.sum = np.zeros(dimensions)
        self.products = np.zeros((dimensions, dimensions))

    def add(self, features: Tensor | np.ndarray) -> None:
        """Add features (n, D).

        Raises:
            ValueError: another D, or a value that is not finite.
        """
        x = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.sum) or not np.isfinite(x).all():
            raise ValueError(f"features have shape {x.shape}: expected (n, {len(self.sum)}), every value finite")
        self.count += len(x)
        self.sum += x.sum(0)
        self.products += x.T @ x

    def gaussian(self) -> Gaussian:
        """Return mean and covariance; raise a ValueError below 2 samples."""
        if self.count < 2:
            raise ValueError(f"{self.count} sample: a covariance needs 2 or more")
        mean = self.sum / self.count
        cov = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Gaussian(mean, cov, self.count)


def gaussian_frechet(a: Gaussian, b: Gaussian) -> float:
    r"""Return the squared 2-Wasserstein distance of two Gaussians ("Frechet distance", as in FID):

    $$\|m_a - m_b\|^2 + \mathrm{tr}\big( S_a + S_b - 2 (S_a^{1/2} S_b S_a^{1/2})^{1/2} \big).$$

    Of fitted Gaussians it is biased upwards by about 1/n: compare equal sizes. The inner matrix is symmetric, so its
    eigenvalues do, where others take the square root of a general matrix. Roundoff below zero is cut off.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features have {len(a.mean)} and {len(b.mean)} dimensions: use the same extractor for both")
    values, vectors = np.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b.cov @ root), 0, None)).sum()
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.cov) + np.trace(b.cov) - 2 * cross)


def save_statistics(path: Path, gaussian: Gaussian, extractor: str) -> None:
    """Write a .safetensors, whole or not at all.

    Args:
        extractor: name of the network that the features are of.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    about = {"extractor": extractor, "count": str(gaussian.count)}
    save_file({"mean": gaussian.mean, "cov": gaussian.cov}, temporary, metadata=about)
    os.replace(temporary, path)


def read_statistics(path: Path, extractor: str, dimensions: int) -> Gaussian:
    """Read what `save_statistics` wrote, or an .npz of pytorch-fid with `mu` and `sigma`. Nothing is unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, features of another network or dimension, a value that is not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"reference {str(path)!r} does not exist: give statistics or a folder of pictures")
    try:
        gaussian, network = _npz(path) if path.suffix == ".npz" else _safetensors(path)
    except (SafetensorError, zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        expected = "an .npz with mu and sigma, or a .safetensors of reproduce/fid_reference.py"
        raise ValueError(f"reference {str(path)!r} cannot be read ({str(error)[:80]}): expected {expected}") from None
    if network not in (None, extractor):
        raise ValueError(f"reference {str(path)!r} has features of {network}: expected {extractor}: compute it again")
    D = dimensions
    if gaussian.mean.shape != (D,) or gaussian.cov.shape != (D, D) or not np.isfinite(gaussian.cov).all():
        raise ValueError(
            f"reference {str(path)!r} has a mean of shape {gaussian.mean.shape} and a covariance of shape "
            f"{gaussian.cov.shape}: expected ({D},) and ({D}, {D}), every value finite"
        )
    return gaussian


def _npz(path: Path) -> tuple[Gaussian, None]:
    with np.load(path, allow_pickle=False) as file:
        return Gaussian(file["mu"].astype(np.float64), file["sigma"].astype(np.float64)), None


def _safetensors(path: Path) -> tuple[Gaussian, str | None]:
    with safe_open(path, "np") as file:
        about = file.metadata() or {}
        count = about.get("count", "")
        mean, cov = file.get_tensor("mean"), file.get_tensor("cov")
    return Gaussian(mean, cov, int(count) if count.isdigit() else None), about.get("extractor")
