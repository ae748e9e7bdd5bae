"""Compare a table's rows: differences of their pictures' scores, margins, what was learned, equal distance."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fsalign_lib.metrics.statistics import Crossed, crossed
from reproduce.evaluation.scores import array, differences
from reproduce.harness import curves, protocol
from reproduce.harness.declare import Row, Table
from reproduce.harness.protocol import Evidence
from reproduce.papers.claim import Claim


@dataclass
class Scores:
    """Read a table's runs: the scores of every picture, by row, prompt set and number of steps."""

    table: Table
    runs: list[dict]
    prompts: dict[str, list[str]] | None
    claims: Sequence[Claim] = ()  # what is claimed of the table, which says what a row without a reward was trained for

    def cells(self, row: str, prompts: str, steps: int) -> dict[int | None, dict]:
        """Return the evaluations of a row by training seed, those that there are.

        Args:
            steps: the table's column. A row that is sampled in a way of its own has the same evaluation in each column.
        """
        sampled = self.table.rows[row].sampled
        cell = f"{prompts}-{sampled.steps if sampled else steps}"
        found = {run["seed"]: run["cells"][cell] for run in self.runs if run["row"] == row}
        return {seed: found[seed] for seed in sorted(found, key=lambda seed: seed or 0)}

    def pair(self, rows: tuple[str, str], prompts: str, steps: int) -> tuple[list[dict], list[dict]] | None:
        """Return the evaluations of two rows, ready for `differences`: of the training seeds that both have.

        A row with a single run, such as the model as it is, stands against each. None: a row was not run.
        """
        sides = [self.cells(row, prompts, steps) for row in rows]
        if all(len(side) > 1 for side in sides):
            sides = [{seed: side[seed] for seed in side if seed in sides[0].keys() & sides[1].keys()} for side in sides]
        if not all(sides):
            return None
        about = {"prompts": self.prompts[prompts], "steps": steps}
        first, second = ([cell | about for cell in side.values()] for side in sides)
        return first, second

    def difference(self, rows: tuple[str, str], metric: str, prompts: str, steps: Sequence[int]) -> np.ndarray | None:
        """Return first less second row, picture by picture, the mean over numbers of steps.  # (T, P, E)

        None: a row was not run, or this scale does not have the metric.
        """
        sides = [self.pair(rows, prompts, number) for number in steps]
        if not all(sides) or not all(metric in cell["scores"] for pair in sides for side in pair for cell in side):
            return None
        return np.mean([differences(*pair, metric) for pair in sides], 0)

    def untrained(self, row: str) -> str | None:
        """Name the row of the model that a row was before training, sampled alike; itself where nothing is trained.

        None: the table has no such row.
        """
        about = self.table.rows[row]
        if not trained(about):
            return row
        if about.method and about.start in self.table.rows:
            return about.start
        models = {name: other for name, other in self.table.rows.items() if not trained(other) and not other.elsewhere}
        return next((name for name, other in models.items() if other.sampled == about.sampled), None)

    def margin(self, row: str, metric: str, prompts: str, steps: Sequence[int]) -> float | None:
        """Return the margin of a metric by an untrained row, the mean over numbers of steps; None: it is not known."""
        found = []
        for number in steps:
            cell = next(iter(self.cells(row, prompts, number).values()))
            own = protocol.margin(array(cell["scores"][unit(metric)]))
            found.append(cell.get("margins", {}).get(unit(metric)) if own is None else own)
        return None if None in found else float(np.mean(found))

    def aims(self, row: str, prompts: str) -> tuple[str, ...]:
        """Name the metrics in which a row is to rise: the reward that it was trained on.

        A row that learns from pairs, pictures or a teacher, or whose reward is not scored here, has all that are
        claimed in this table.
        """
        config = next((run["training"]["config"] for run in self.runs if run["row"] == row and run["training"]), {})
        reward = config.get("reward") if config.get("reward_scale", 1.0) else None
        scored = next(iter(self.cells(row, prompts, self.table.steps[0]).values()))["scores"]
        claimed = dict.fromkeys(unit(claim.metric) for claim in self.claims)
        return (reward,) if reward in scored else tuple(metric for metric in claimed if metric in scored)

    def rise(self, row: str, metric: str, prompts: str, steps: Sequence[int]) -> tuple[Crossed, float | None]:
        """Return how far a row is above the untrained model, where more is better, with the margin."""
        before = self.untrained(row)
        column = (self.table.metrics | self.table.beside).get(metric)
        difference = self.difference((row, before), metric, prompts, steps)
        if column and column.lower:
            difference = -difference
        return crossed(difference), self.margin(before, metric, prompts, steps)

    def learned(self, row: str, metric: str, prompts: str, steps: Sequence[int]) -> bool:
        """Say whether a row rose above the untrained model by the margin, in the claim's metric or in its aims."""
        names = dict.fromkeys((unit(metric), *self.aims(row, prompts)))
        return any(protocol.rose(*self.rise(row, name, prompts, steps)) for name in names)

    def evidence(self, claim: Claim, steps: Sequence[int]) -> Evidence | None:
        """Return what was measured of a claim, the mean over numbers of steps; None: a row was not run."""
        rows, metric, prompts = (claim.above, claim.below), claim.metric, claim.prompts
        difference = self.difference(rows, metric, prompts, steps)
        found = [row for row in rows if trained(self.table.rows[row])]
        before = dict.fromkeys(self.untrained(row) for row in (found or rows))
        if difference is None or not all(row and self.cells(row, prompts, steps[0]) for row in before):
            return None
        margins = [self.margin(row, metric, prompts, steps) for row in before]
        margin = None if None in margins else math.sqrt(sum(value**2 for value in margins) / len(margins))
        # A number such as "vendi-ahead" compares trained rows by itself, so one side is enough.
        gated = len(found) == 2 or metric.endswith("-ahead")
        learned = not gated or any(self.learned(row, metric, prompts, steps) for row in found)
        runs = [min(len(self.cells(row, prompts, steps[0])), len(difference)) for row in found]
        return Evidence(crossed(difference), margin, min(runs, default=None), learned)

    def equal_kl(self, claim: Claim, steps: Sequence[int], found: Evidence) -> tuple[float, Evidence] | None:
        """Return the KL at which two trained rows are compared, and what they differ by there; None: not measured.

        See curves.at_equal_kl. Their spread over prompts is taken to be what it is at the end of training.
        """
        rows = [{run["seed"]: run for run in self.runs if run["row"] == row} for row in (claim.above, claim.below)]
        cells = [f"{claim.prompts}-{number}" for number in steps]
        pairs = [(rows[0][seed], rows[1][seed]) for seed in sorted(rows[0].keys() & rows[1].keys(), key=str)]
        both = [curves.at_equal_kl(*pair, cells, claim.metric) for pair in pairs]
        if not both or None in both:
            return None
        kl, gaps = np.array(both).T
        effect = found.effect._replace(estimate=float(gaps.mean()))
        if len(gaps) > 1:
            effect = effect._replace(ms_seeds=float(effect.prompts * gaps.var(ddof=1)))
        return float(kl.mean()), Evidence(effect, found.margin, found.seeds, found.learned)

    def learning(self) -> Iterator[dict]:
        """Yield for each trained row and prompt set how far it rose in what it was trained for, and who collapsed."""
        rows = [(row, self.untrained(row)) for row, about in self.table.rows.items() if trained(about)]
        for (row, before), prompts in itertools.product(rows, self.table.prompts):
            steps = self.table.steps[:1] if self.table.rows[row].sampled else self.table.steps
            if not before or not all(self.cells(name, prompts, steps[0]) for name in (row, before)):
                continue
            if not (aims := self.aims(row, prompts)):
                continue
            rises = {metric: self.rise(row, metric, prompts, steps) for metric in aims}
            lower = [-1 if (c := self.table.metrics.get(m)) and c.lower else 1 for m in aims]
            ends = [self.difference((row, before), metric, prompts, steps).mean((1, 2)) for metric in aims]
            falls = -np.stack(ends, 1) * lower  # (T, M)
            margins = np.array([margin or 0.0 for _, margin in rises.values()])
            seeds = list(self.cells(row, prompts, steps[0]))
            gone = [seed for seed, bad in zip(seeds, protocol.collapsed(falls, margins), strict=True) if bad]
            yield {"row": row, "prompts": prompts, "rises": rises, "seeds": seeds, "collapsed": gone}


def trained(row: Row) -> bool:
    """Say whether a row depends on a training seed."""
    return row.method is not None or row.composed is not None


def training_seeds(table: Table, result: dict | None) -> int:
    """Return how many training seeds a row has at most, of those that were run; 0 where nothing is trained."""
    if not any(row.method for row in table.rows.values()):
        return 0
    runs = [run for run in result["runs"] if run["seed"] is not None] if result else []
    return len({run["seed"] for run in runs}) or len(table.seeds)


def unit(metric: str) -> str:
    """Name the metric in whose units a derived one is, such as "hps" for "hps-rise"."""
    name, _, kind = metric.rpartition("-")
    return name if kind in (*curves.KINDS, "ahead") else metric
