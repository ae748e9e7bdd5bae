"""Diversity at equal reward: KL- against score-regularised alignment over reward scales, which DI* asserts in words.

python reproduce/distar_pareto.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/distar_pareto.py --dry-run        # rows, recipes with their sources, claims
python reproduce/distar_pareto.py --smoke --out runs/smoke

DI++ (KL) and DI* (score) at reward scales 0, 10, 30 and 100, with the same settings otherwise. A row of DI* is held to
the line through DI++'s points at the reward that it reached (`ahead`). Training runs are shared with distar_table1.py,
distar_table2.py and distar_table3.py (see papers/distar.py).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from reproduce.harness.command import command
from reproduce.harness.declare import Column, Own, Prompts, Table
from reproduce.harness.sheets import Line, Panel, Sheet
from reproduce.papers import distar

KL = ("diff-instruct", "dipp-10", "dipp-30", "dipp")
SCORE = ("sim", "distar-10", "distar-30", "distar")
REWARD = "pickscore"
DIVERSITY = {
    "vendi": Column("Vendi score", 3),
    "recall": Column("recall", 3),
    "modes": Column("backgrounds of 8", 2),
}


def numbers(scores: Sequence) -> np.ndarray:
    """Return scores as an array (P, E), nan where a metric says nothing."""
    return np.array(scores, dtype=float)


def along(curve: Sequence[tuple[float, np.ndarray]], reward: float) -> np.ndarray:
    """Return what a curve of (reward, scores (P, E)) has at a reward: between its points, in the order of their
    rewards, linearly; beyond them its end."""
    points = sorted(curve, key=lambda point: point[0])
    place = np.interp(reward, [at for at, _ in points], range(len(points)))
    low = min(int(place), len(points) - 2)
    share = place - low
    return (1 - share) * points[low][1] + share * points[low + 1][1]


def ahead(table: Table, runs: list[dict], prompts: dict[str, list[str]]) -> dict[str, Any]:
    """Give each of DI*'s rows `<metric>-ahead`: its diversity less that of the KL's curve, of the same training seed,
    at the same mean reward; the model as it is gets 0, to compare with.

    The curve is followed picture by picture, and ends where its rewards end: a row with a reward beyond the largest is
    held to the KL's row of the largest.
    """
    from reproduce.evaluation.scores import mean

    found = {(run["row"], run["seed"]): run["cells"] for run in runs}
    for (row, seed), cells in found.items():
        for cell, own in cells.items():
            curve = [found[name, seed][cell] for name in KL if (name, seed) in found]
            for metric in (name for name in DIVERSITY if name in own["scores"]):
                if row == "base":
                    differences = 0 * numbers(own["scores"][metric])  # nan stays where a metric says nothing
                elif row in SCORE and len(curve) == len(KL):
                    points = [(point["means"][REWARD], numbers(point["scores"][metric])) for point in curve]
                    differences = numbers(own["scores"][metric]) - along(points, own["means"][REWARD])
                else:
                    continue
                rows = [[None if v != v else round(v, 5) for v in some] for some in differences.tolist()]
                own["scores"] = own["scores"] | {f"{metric}-ahead": rows}
                own["means"] = own["means"] | {f"{metric}-ahead": mean(rows)}
    return {}


def panel(result: dict, metric: str) -> Panel:
    """Return diversity over reward, with the 95% interval of each point; rows that were not run are left out."""
    from fsalign_lib.metrics.statistics import crossed_interval

    lines = []
    for label, names, color in (("KL (DI++)", KL, "orange"), ("score (DI*)", SCORE, "blue")):
        points = []
        for name in names:
            cells = [next(iter(run["cells"].values())) for run in result["runs"] if run["row"] == name]
            if cells and all(metric in cell["scores"] for cell in cells):
                tables = np.stack([numbers(cell["scores"][metric]) for cell in cells])  # (T, P, E)
                told = tables[:, ~np.isnan(tables).any((0, 2))]
                if told.shape[1] > 1:
                    reward = np.mean([cell["means"][REWARD] for cell in cells])
                    points.append((reward, told.mean((1, 2)), crossed_interval(told)))
        if points:
            values = np.stack([means for _, means, _ in points], 1).tolist()
            bars = [(interval.low, interval.high) for _, _, interval in points]
            lines.append(Line(label, color, [reward for reward, _, _ in points], values, bars))
    title = DIVERSITY[metric].title
    return Panel(title, "PickScore", title, lines)


def figures(result: dict) -> dict[str, Sheet]:
    """Return one sheet: a panel for each measure of diversity."""
    caption = "Diversity over reward, at reward scales 0, 10, 30 and 100; bars are 95% intervals"
    return {"pareto": Sheet(caption, [[panel(result, metric) for metric in DIVERSITY]])}


TABLE = Table(
    name="distar_pareto",
    title="DI*: diversity at equal reward, KL against score divergence",
    rows=distar.rows("base", *KL, *SCORE),
    prompts={"plain": Prompts("plain prompts", "test-pickapic", "parti")},
    steps=(1,),
    metrics={
        "vendi-ahead": Column("Vendi score, ahead", 3),
        "recall-ahead": Column("recall, ahead", 3, scale="pocket"),
        "modes-ahead": Column("backgrounds of 8, ahead", 2, scale="pocket"),
    },
    beside={REWARD: Column("PickScore", 2), "hps": Column("HPSv2", 2)}
    | DIVERSITY
    | {"precision": Column("precision", 3), "accuracy": Column("animal accuracy", 3)},
    models=distar.MODELS,
    teachers=distar.TEACHERS,
    pictures={"pocket": 8, "full": 8},
    own=Own(derive=ahead, figures=figures),
    note="The paper says in words that the score divergence keeps diversity where KL loses it. *Ahead* is a row's "
    "diversity less that of the line through the KL's rows, of the same training seed, at the PickScore that the row "
    "reached; beyond the KL's largest reward, less that of its row there. The model as it is has 0. Recall and "
    f"backgrounds are of the pocket world alone; there {distar.STANDS} Reward scales are the paper's (see "
    "papers/distar.py).",
)

if __name__ == "__main__":
    command(TABLE, __doc__)
