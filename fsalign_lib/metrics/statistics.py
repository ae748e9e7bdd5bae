"""Estimate means of paired differences with their confidence intervals."""

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


def crossed_interval(differences: Array, level: float = 0.95) -> Interval:
    r"""Give the mean of paired differences $d_{tpe}$ over training seeds t, prompts p and evaluation seeds e.

    Training seeds and prompts are crossed random effects: a prompt is the same in each run, and brings all its
    evaluation seeds. With the mean squares of a two-way analysis of variance of $\bar d_{tp}$,

    $$\widehat{\mathrm{Var}} = \frac{MS_T + (MS_P - MS_{TP})_+}{TP}, \qquad
      \nu = (MS_T + (MS_P - MS_{TP})_+)^2 \Big/ \Big( \frac{MS_T^2}{T-1}
          + 1_{MS_P > MS_{TP}} \Big[ \frac{MS_P^2}{P-1} + \frac{MS_{TP}^2}{(T-1)(P-1)} \Big] \Big),$$

    the interval is Student's with Satterthwaite's $\nu$ degrees of freedom, as in studies with several readers and
    cases (Hillis 2007, without the lower terms). Where training seeds differ much, $\nu$ is about T - 1. A bootstrap
    over three training seeds would hardly be wider than from the lowest to the highest. With T = 1 this is the paired
    t interval over prompts, which says nothing about other training seeds.

    Args:
        differences: `after - before`, of one training run `(after - before)[None]`  # (T, P, E)
        level: of confidence.

    Returns:
        the mean, and the ends of its interval.

    Raises:
        ValueError: another shape, fewer than 2 prompts, a value that is not finite, a level outside (0, 1).
    """
    from scipy.stats import t as student_t

    check_level(level)
    differences = as_array(differences)
    if differences.ndim != 3 or not np.isfinite(differences).all():
        raise ValueError(f"differences have shape {differences.shape}: expected (T, P, E), every value finite")
    T, P, _ = differences.shape
    if P < 2:
        raise ValueError(f"{P} prompt: an interval needs 2 or more")
    table = differences.mean(2)
    of_runs, of_prompts, mean = table.mean(1), table.mean(0), float(table.mean())
    if T == 1:
        total, freedom = of_prompts.var(ddof=1), P - 1
    else:
        rest = table - of_runs[:, None] - of_prompts + mean
        ms_t, ms_p = P * of_runs.var(ddof=1), T * of_prompts.var(ddof=1)
        ms_tp = (rest**2).sum() / ((T - 1) * (P - 1))
        total, chance = ms_t, ms_t**2 / (T - 1)
        if ms_p > ms_tp:
            total += ms_p - ms_tp
            chance += ms_p**2 / (P - 1) + ms_tp**2 / ((T - 1) * (P - 1))
        freedom = total**2 / chance if chance > 0 else 1.0
    half = float(student_t.ppf((1 + level) / 2, freedom) * np.sqrt(total / (T * P)))
    return Interval(mean, mean - half, mean + half)
