"""Decide comparisons of two rows: what counts as a difference, as none, and as too little to say.

| status | when |
| --- | --- |
| reproduced, contradicted | the 95% interval of (above - below) lies on the claimed side of 0, or on the other |
| equivalent | the 90% interval lies inside (-margin, margin), and the 95% interval holds 0 |
| inconclusive | neither |
| not learned | both rows were trained, and neither rose above the untrained model by the margin |
| one seed | a trained row has a single training seed, which says nothing of others |
| not run | one of the rows, or the untrained model, was not evaluated |

The first four are tests, of which many are made at once. Within a paper the false discovery rate is held at RATE, of
differences and of equivalences each: a claim that is decided by itself alone becomes inconclusive, or equivalent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fsalign_lib.metrics.statistics import Crossed, discovery_threshold

STATUSES = ("reproduced", "contradicted", "equivalent", "inconclusive", "not learned", "one seed", "not run")
TESTED = STATUSES[:4]
RATE = 0.05  # of false discoveries within a paper
SHARE = 0.25  # of a standard deviation, which is the margin
SEEDS_NAMED = 100  # a number of seeds that is estimated to be larger is not named


@dataclass(frozen=True)
class Evidence:
    """Hold what was measured of a comparison."""

    effect: Crossed  # of (above - below)
    margin: float | None  # None: the spread of the untrained model's pictures is not known
    seeds: int | None  # training seeds of the trained row that has fewer; None: nothing was trained
    learned: bool  # one of two trained rows rose by the margin, or a side is not trained

    def p_different(self) -> float:
        """Return the p-value of there being no difference."""
        return self.effect.p_different()

    def p_equivalent(self) -> float:
        """Return the p-value of a difference of the margin or more."""
        return self.effect.p_equivalent(self.margin or 0.0)


def margin(scores: np.ndarray) -> float | None:
    """Return a quarter of the standard deviation within a prompt, of the untrained model's scores.  # (P, E)

    A metric with one number for all pictures of a prompt, such as a Vendi score, has no spread within it; there it is
    the standard deviation between prompts. None: a prompt has a single picture, or none has a score.
    """
    if scores.ndim < 2 or len(scores) < 2 or scores.shape[1] < 2:
        return None
    alike = (scores == scores[:, :1]).all()
    spread = scores[:, 0].std(ddof=1) if alike else scores.var(1, ddof=1).mean() ** 0.5
    return SHARE * float(spread)


def rose(effect: Crossed | None, margin: float | None) -> bool:
    """Say whether a row rose above the untrained model by the margin, and its 95% interval lies above 0."""
    return effect is not None and effect.estimate >= (margin or 0.0) and effect.interval().low > 0


def status(found: Evidence | None, different: float = RATE, equivalent: float = RATE) -> str:
    """Return the status of a claim; None: a row was not run.

    Args:
        different: the p-value up to which a difference counts. By itself a claim has RATE: the 95% interval.
        equivalent: likewise, of none. By itself a claim has RATE: the 90% interval.
    """
    if found is None:
        return "not run"
    if found.seeds == 1:
        return "one seed"
    if not found.learned:
        return "not learned"
    if found.p_different() <= different:
        return "reproduced" if found.effect.estimate > 0 else "contradicted"
    return "equivalent" if found.p_equivalent() <= equivalent else "inconclusive"


def thresholds(evidence: Sequence[Evidence | None]) -> tuple[float, float]:
    """Return the p-values of differences and of equivalences that count, among all claims of a paper."""
    tests = [found for found in evidence if status(found) in TESTED]
    different = discovery_threshold([found.p_different() for found in tests], RATE)
    return different, discovery_threshold([found.p_equivalent() for found in tests], RATE)


def corrected(evidence: Mapping[str, Evidence | None]) -> dict[str, str]:
    """Return the status of each claim of a paper when the false discovery rate is held over all of them."""
    counts = thresholds(list(evidence.values()))
    return {name: status(found, *counts) for name, found in evidence.items()}


def seeds_to_decide(found: Evidence, different: float = RATE, equivalent: float = RATE) -> int | None:
    """Estimate how many training seeds would decide a claim, if estimate and variances stay as they are.

    None: more than SEEDS_NAMED would not, since prompts differ too much, or it was trained at one seed.
    """
    if found.seeds is None or found.effect.seeds < 2:
        return None
    for seeds in range(found.effect.seeds + 1, SEEDS_NAMED + 1):
        more = Evidence(found.effect.with_seeds(seeds), found.margin, seeds, True)
        if status(more, different, equivalent) != "inconclusive":
            return seeds
    return None


def seeds_due(found: Evidence, fewest: int, most: int) -> int:
    """Return how many training seeds a claim gets, by a rule that does not look at which way it falls.

    The smallest number, of `fewest` to `most`, at which half of the 95% interval is at most half the margin: then
    whatever the estimate, the claim is decided or equivalent. `fewest` where even `most` are not enough: prompts, or
    seeds, differ too much for that. The spread of the seeds at hand says which; the estimate has no part in it, or
    adding seeds would make errors more frequent.
    """
    for seeds in range(fewest, most + 1):
        interval = found.effect.with_seeds(seeds).interval()
        if (interval.high - interval.low) / 2 <= (found.margin or 0.0) / 2:
            return seeds
    return fewest


def collapsed(falls: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Say of each training seed whether it collapsed: it ended below the untrained model by the margin or more, in
    each metric that the row was trained for.

    Args:
        falls: the untrained model's mean less the seed's, of each metric.  # (T, M)
        margins: # (M,)
    """
    return ((falls >= margins) & (falls > 0)).all(1)
