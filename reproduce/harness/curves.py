r"""Turn curves over training, of what a run's snapshots scored, into numbers that claims compare.

Point 0 is the model as it was; the others are snapshots. Of a metric m, picture by picture, under the same noise:

| name | of the curve s_0, ..., s_K |
| --- | --- |
| m | s_K, the end of training |
| m-gain | s_K - s_0 |
| m-rise | the mean of s - s_0 over training, by the trapezoid rule: the steeper a curve, the larger |
| m-drop | s_i - s_j, i < j, where the mean over the other half of the prompts fell most from its best so far, or 0 |
| m-timed | s at the time when the quickest run of the table had ended, between snapshots linearly |

The places i and j of a drop are chosen on one half of the prompts and measured on the other, both ways round: the
largest fall among noisy means is positive whatever the model does, and so it is 0 on average unless it is there again.

The time of a point is its share of the rounds of the run's CPU time, or on a GPU of its wall time.
"""

from collections.abc import Sequence

import numpy as np

from reproduce.common.provenance import core_seconds
from reproduce.harness.declare import Table


def gain(scores: np.ndarray, x: Sequence[float]) -> np.ndarray:
    """Return the last value less the first.  # scores (K + 1, P, E) -> (P, E)"""
    return scores[-1] - scores[0]


def rise(scores: np.ndarray, x: Sequence[float]) -> np.ndarray:
    """Return the mean over x of the value less the first, by the trapezoidal rule.  # scores (K + 1, P, E) -> (P, E)"""
    above = scores - scores[0]
    if len(x) == 1:
        return above[0]
    width = np.diff(x)[:, None, None]
    return ((above[1:] + above[:-1]) / 2 * width).sum(0) / (x[-1] - x[0])


def drop(scores: np.ndarray, x: Sequence[float]) -> np.ndarray:
    """Return the deepest fall below the best value before it, whose points the other half of the prompts choose.

    With a single prompt they are chosen where the fall is measured.  # scores (K + 1, P, E) -> (P, E)
    """
    fold, falls = np.arange(scores.shape[1]) % 2, np.empty(scores.shape[1:])
    for measured in (fold == 0, fold == 1):
        mean = scores[:, ~measured if (~measured).any() else measured].mean((1, 2))
        best = [int(mean[: j + 1].argmax()) for j in range(len(mean))]
        j = int(np.argmax(mean[best] - mean))
        falls[measured] = (scores[best[j]] - scores[j])[measured]
    return falls


def at(scores: np.ndarray, x: Sequence[float], where: float) -> np.ndarray:
    """Interpolate the curve at x = `where`; beyond the end, return its end."""
    j = min(max(int(np.searchsorted(x, where)), 1), len(x) - 1)
    if j < 1:
        return scores[0]
    share = min((where - x[j - 1]) / (x[j] - x[j - 1]), 1.0)
    return (1 - share) * scores[j - 1] + share * scores[j]


OVER_ROUNDS = {"gain": gain, "rise": rise, "drop": drop}
KINDS = (*OVER_ROUNDS, "timed")


def derived(table: Table, row: str) -> dict[str, tuple[str, str]]:
    """Return name -> (metric, kind) of the metrics of curves that the row is compared in."""
    parts = {name: name.rpartition("-") for name in table.rows[row].metrics or table.metrics}
    return {name: (metric, kind) for name, (metric, _, kind) in parts.items() if kind in KINDS}


def hours(training: dict) -> float:
    """Return the hours that a run took: core hours on a CPU, else wall time."""
    return core_seconds(training) / 3600


def summarise(table: Table, runs: list[dict]) -> None:
    """Give each run its curve as means, and its cells what is derived from it.

    Without the run of the model as it is there is no start: then no run is left.
    """
    start = next((run for run in runs if run["training"] is None), None)
    if start is None:
        runs.clear()
        return
    quickest = min((hours(run["training"]) for run in runs if run["training"]), default=0.0)
    beginning = {"round": 0, "kl": 0.0, "kl_steps": None, "cells": start["cells"]}
    for run in runs:
        curve = [beginning, *run.pop("curve", [])]
        costs = [cost(run["training"], point["round"]) for point in curve]
        cells = {cell: {**found} for cell, found in run["cells"].items()}
        for cell, found in cells.items():
            more = {}
            for name, (metric, kind) in derived(table, run["row"]).items():
                scores = np.array([point["cells"][cell]["scores"][metric] for point in curve], dtype=float)
                if kind == "timed":
                    more[name] = at(scores, [c["hours"] for c in costs], quickest)
                else:
                    more[name] = OVER_ROUNDS[kind](scores, [point["round"] for point in curve])
            found["scores"] = found["scores"] | {name: values.round(5).tolist() for name, values in more.items()}
            found["means"] = found["means"] | {name: float(values.mean()) for name, values in more.items()}
        run["cells"] = cells
        run["curve"] = [
            {"round": point["round"], **paid, "kl": point["kl"], "kl_steps": point["kl_steps"]}
            | {"means": {cell: found["means"] for cell, found in point["cells"].items()}}
            for point, paid in zip(curve, costs, strict=True)
        ]


def at_equal_kl(first: dict, second: dict, cells: Sequence[str], metric: str) -> tuple[float, float] | None:
    """Compare two runs of one training seed where they are equally far from the reference.

    That is at the largest KL that both reached: each is taken where its curve came there first, between its points
    linearly.

    Args:
        first: a run of the result, with its curve of means.
        cells: what is averaged over.

    Returns:
        that KL, and the first run's score less the second's; None where the runs have no curve, their KL is of
        other numbers of steps, or the metric is not one of a curve's points.
    """
    sides = [run.get("curve") for run in (first, second)]
    if not all(sides) or len({side[-1]["kl_steps"] for side in sides}) > 1:
        return None
    if any(metric not in point["means"][cell] for side in sides for point in side for cell in cells):
        return None
    reached = [np.array([point["kl"] for point in side]) for side in sides]
    where = min(kl.max() for kl in reached)
    found = []
    for side, kl in zip(sides, reached, strict=True):
        scores = [np.mean([point["means"][cell][metric] for cell in cells]) for point in side]
        j = int(np.argmax(kl >= where))  # the first point that is there
        share = (where - kl[j - 1]) / (kl[j] - kl[j - 1]) if j else 1.0
        found.append(share * scores[j] + (1 - share) * scores[j - 1] if j else scores[0])
    return float(where), float(found[0] - found[1])


def spent(training: dict) -> dict[str, float]:
    """Return samples, reward queries and hours of a whole online run, from a result, which keeps no history."""
    config = training["config"]
    return {
        "samples": 2 * config["pairs"] * config["rounds"],
        "queries": training["queries"],
        "hours": hours(training),
    }


def cost(training: dict | None, number: int) -> dict[str, float]:
    """Return samples, reward queries and hours of the first `number` rounds or updates."""
    if training is None:
        return {"samples": 0, "queries": 0, "hours": 0.0}
    history = training["history"]
    return {
        "samples": 2 * training["config"]["pairs" if "rounds" in training["config"] else "batch"] * number,
        "queries": round(sum(record.get("queries", 0) for record in history[:number])),
        "hours": hours(training) * number / len(history),
    }
