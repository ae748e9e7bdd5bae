"""Intervals of mean differences, and how a mean's chance is estimated."""

from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t
from torch import Tensor

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
    a, b = as_array(after), as_array(before)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"after has shape {a.shape} and before {b.shape}: expected two arrays (n,) matched by index")
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise ValueError("after or before has a value that is not finite: drop or repair those pairs first")
    labels = np.arange(len(a)) if groups is None else as_array(groups, dtype=None)
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
    return Interval(float((a - b).mean()), *quantiles(replicates, level))


def as_array(x: Array, dtype: type | None = np.float64) -> np.ndarray:
    x = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    return np.asarray(x, dtype=dtype)


def quantiles(replicates: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: expected a number between 0 and 1, such as 0.95")
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def crossed_interval(differences: np.ndarray, level: float = 0.95) -> Interval:
    r"""Interval of the mean of paired differences $d_{tpe}$ over training seeds t, prompts p and evaluation seeds e.

    Training seeds and prompts are crossed random effects: a prompt is the same in each run, and brings all its
    evaluation seeds. With the mean squares of a two-way analysis of variance of $\bar d_{tp}$,

    $$\widehat{\mathrm{Var}} = \frac{MS_T + (MS_P - MS_{TP})_+}{TP}, \qquad
      \nu = (MS_T + (MS_P - MS_{TP})_+)^2 \Big/ \Big( \frac{MS_T^2}{T-1}
          + 1_{MS_P > MS_{TP}} \Big[ \frac{MS_P^2}{P-1} + \frac{MS_{TP}^2}{(T-1)(P-1)} \Big] \Big),$$

    and the interval is Student's with Satterthwaite's $\nu$ degrees of freedom, as in studies with several readers and
    cases (Hillis 2007, without the lower terms). Where training seeds differ much it so has about T - 1 of them. A
    bootstrap over three training seeds would hardly be wider than from the lowest to the highest. With one run it is
    the paired t interval over prompts, and says nothing about other runs.

    Args:
        differences: # (T, P, E)
    """
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
