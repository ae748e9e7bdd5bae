"""Estimate means of paired differences with their confidence intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

Array = np.ndarray | Tensor


class Interval(NamedTuple):
    """Hold an estimate with the ends of its confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def excludes(self, value: float = 0.0) -> bool:
        """Tell whether a value lies outside."""
        return not self.low <= value <= self.high


def as_array(x: Array) -> np.ndarray:
    """Copy an array or a tensor, detached, to float64 on the CPU."""
    return np.asarray(x.detach().cpu().numpy() if isinstance(x, Tensor) else x, dtype=np.float64)


def check_level(level: float) -> None:
    """Raise a ValueError where a confidence level is no share, such as 95 for 95%."""
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: expected a number between 0 and 1, such as 0.95")


def quantiles(replicates: np.ndarray, level: float) -> tuple[float, float]:
    """Return the two values between which the middle `level` of the replicates lies.  # replicates (R,)"""
    check_level(level)
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Crossed(NamedTuple):
    r"""Hold the mean of paired differences over training seeds and prompts, with what tells how sure it is.

    Training seeds and prompts are crossed random effects: a prompt is the same in each run, and brings all its
    pictures. With the mean squares of a two-way analysis of variance,

    $$\widehat{\mathrm{Var}} = \frac{MS_T + (MS_P - MS_{TP})_+}{TP}, \qquad
      \nu = (MS_T + (MS_P - MS_{TP})_+)^2 \Big/ \Big( \frac{MS_T^2}{T-1}
          + 1_{MS_P > MS_{TP}} \Big[ \frac{MS_P^2}{P-1} + \frac{MS_{TP}^2}{(T-1)(P-1)} \Big] \Big),$$

    intervals and p-values are Student's with Satterthwaite's $\nu$ degrees of freedom, as in studies with several
    readers and cases (Hillis 2007, without the lower terms). Where training seeds differ much, $\nu$ is about T - 1. A
    bootstrap over three training seeds would hardly be wider than from the lowest to the highest. With T = 1 all this
    is the paired t test over prompts ($MS_T = MS_{TP} = 0$), which says nothing about other training seeds.
    """

    estimate: float
    seeds: int  # T
    prompts: int  # P
    ms_seeds: float  # MS_T
    ms_prompts: float  # MS_P
    ms_rest: float  # MS_TP

    @property
    def error(self) -> float:
        """Return the standard error of the estimate."""
        return ((self.ms_seeds + max(self.ms_prompts - self.ms_rest, 0.0)) / (self.seeds * self.prompts)) ** 0.5

    @property
    def freedom(self) -> float:
        """Return Satterthwaite's degrees of freedom; 1 where nothing varies."""
        runs, prompts = max(self.seeds - 1, 1), self.prompts - 1
        total, chance = self.ms_seeds, self.ms_seeds**2 / runs
        if self.ms_prompts > self.ms_rest:
            total += self.ms_prompts - self.ms_rest
            chance += self.ms_prompts**2 / prompts + self.ms_rest**2 / (runs * prompts)
        return total**2 / chance if chance > 0 else 1.0

    def interval(self, level: float = 0.95) -> Interval:
        """Return the mean with the ends of its interval.

        Raises:
            ValueError: a level outside (0, 1).
        """
        from scipy.special import stdtrit

        check_level(level)
        half = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return Interval(self.estimate, self.estimate - half, self.estimate + half)

    def p_different(self) -> float:
        """Return the two-sided p-value of a mean of 0: below 0.05 where the 95% interval excludes 0."""
        return 2 * self._above(abs(self.estimate)) if self.estimate else 1.0

    def p_equivalent(self, margin: float) -> float:
        """Return the p-value of a mean outside (-margin, margin), by two one-sided tests (Schuirmann 1987).

        It is below 0.05 where the 90% interval lies inside.
        """
        return self._above(margin - abs(self.estimate)) if margin > 0 else 1.0

    def _above(self, distance: float) -> float:
        """Return the chance that the estimate lies above its mean by so much, or more."""
        from scipy.special import stdtr

        if self.error == 0.0:
            return 0.0 if distance > 0 else 1.0
        return float(stdtr(self.freedom, -distance / self.error))

    def with_seeds(self, seeds: int) -> "Crossed":
        """Return what is to be expected of another number of training seeds: the same estimate and variances.

        Raises:
            ValueError: it was measured at one seed, whose spread is not known.
        """
        if self.seeds < 2:
            raise ValueError("one training seed says nothing of others: measure at 2 or more")
        of_prompts = max(self.ms_prompts - self.ms_rest, 0.0) * seeds / self.seeds
        return self._replace(seeds=seeds, ms_prompts=self.ms_rest + of_prompts)


def crossed(differences: Array) -> Crossed:
    """Measure paired differences d over training seeds t, prompts p and pictures e.

    Args:
        differences: `after - before`, of one training run `(after - before)[None]`  # (T, P, E)

    Raises:
        ValueError: another shape, fewer than 2 prompts, a value that is not finite.
    """
    differences = as_array(differences)
    if differences.ndim != 3 or not np.isfinite(differences).all():
        raise ValueError(f"differences have shape {differences.shape}: expected (T, P, E), every value finite")
    T, P, _ = differences.shape
    if P < 2:
        raise ValueError(f"{P} prompt: an interval needs 2 or more")
    table = differences.mean(2)
    of_runs, of_prompts, mean = table.mean(1), table.mean(0), float(table.mean())
    ms_prompts = float(T * of_prompts.var(ddof=1))
    if T == 1:
        return Crossed(mean, T, P, 0.0, ms_prompts, 0.0)
    rest = table - of_runs[:, None] - of_prompts + mean
    ms_rest = float((rest**2).sum() / ((T - 1) * (P - 1)))
    return Crossed(mean, T, P, float(P * of_runs.var(ddof=1)), ms_prompts, ms_rest)


def crossed_interval(differences: Array, level: float = 0.95) -> Interval:
    """Return the mean of paired differences with the ends of its confidence interval (see Crossed).

    Args:
        differences: `after - before`, of one training run `(after - before)[None]`  # (T, P, E)
        level: of confidence.

    Raises:
        ValueError: another shape, fewer than 2 prompts, a value that is not finite, a level outside (0, 1).
    """
    check_level(level)
    return crossed(differences).interval(level)


def discovery_threshold(p_values: Sequence[float], rate: float = 0.05) -> float:
    """Return the p-value up to which hypotheses are rejected, so that at most `rate` of the rejections are wrong.

    Benjamini and Hochberg (1995): of m sorted p-values, `rate` * k / m for the largest k with p_k <= `rate` * k / m.
    Where none is, `rate` / m, which none reaches. It holds for p-values that are independent or go together.
    """
    p = np.sort(np.asarray(p_values, dtype=float))
    steps = rate * np.arange(1, len(p) + 1) / max(len(p), 1)
    below = np.flatnonzero(p <= steps)
    return float(steps[below[-1]] if len(below) else rate / max(len(p), 1))
