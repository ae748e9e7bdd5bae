"""Online PSO: what matters where the paper and the published code disagree. One base recipe, each row one change.

python reproduce/pso_ablations.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/pso_ablations.py --dry-run        # rows, recipes with their sources, claims
python reproduce/pso_ablations.py --smoke --out runs/smoke

The base recipe is the published code's form on the renoise sampler of SDXL-DMD2, shortened. What the paper claims of
online PSO, that it lies above the model that it started from in all four metrics, is asked of each row; how far a row
lies from the base recipe stands beside it, with an interval.

Log-probs that are summed in place of averaged are a change of units, beta_sum = beta_mean / D, as long as there is no
clamp (the notebooks show it); D is 1,024 here and 65,536 for SDXL. So "summed" with the clamp and beta left as they are
is another algorithm, and so is the printed beta = 5 with the printed sum. At this learning rate no ratio reaches the
clamp: "without the clamp" must give the base recipe's numbers, and what the clamp is for shows at ten times the rate.

The two weights of Eq. 5 belong to the mixed objective, which has targets in place of winners: pso_style.py has both.
"""

import itertools
import statistics
from typing import Any

from reproduce.harness.command import command
from reproduce.harness.declare import Column, Own, Row, Table
from reproduce.papers import pso

# As published for SDXL-DMD2.
CODE = {
    "reduction": ("mean", "published PSO code"),
    "sum_steps": ("outside", "published PSO code"),
    "beta": (50.0, "published PSO code"),
    "clamp": (0.1, "published PSO code"),
    "shared_start": (False, "published PSO code: x_T is drawn for each of a pair"),
    "steps": (4, "PSO App. B.1: N = 4; published code for DMD2: 8, which is a row of its own"),
}
SHORT = {
    "rounds": (20, "own choice: a third of Table 2's"),
    "pairs": (32, "own choice: as Table 2"),
    "minibatch": (32, "PSO App. B.1"),
    "lr": (2e-5, "own choice: twice Table 2's"),
}
FULL = {
    "rounds": (1000, "own choice: a fifth of PSO App. B.1's"),
    "pairs": (128, "PSO App. B.1"),
    "minibatch": (32, "PSO App. B.1"),
    "lr": (1e-5, "PSO App. B.1"),
    **pso.WIDE["pso-online"],
}
# A row of the micro-batch is all steps of a pair where the loss sums over them.
WHOLE = {"micro_batch": (1, pso.FITS)}
CHANGED = "own choice: the one change of the row"
TUNING = "none: twice the lr and a third of the rounds of Table 2, the same in all rows"
# row -> (title, what differs from the base recipe)
VARIANTS = {
    "code": ("published code", {}),
    "paper": (
        "as printed",
        {
            "reduction": ("sum", "PSO Eq. 7"),
            "sum_steps": ("inside", "PSO Eq. 7"),
            "beta": (5.0, "PSO App. B.1"),
            "clamp": (None, "PSO Eq. 7 has none"),
        },
    ),
    "inside": ("sum over steps inside the sigmoid", {"sum_steps": ("inside", "PSO Eq. 7")}),
    "summed": ("log-probs summed over dimensions", {"reduction": ("sum", "PSO Eq. 7")}),
    "beta-5": ("beta 5", {"beta": (5.0, "PSO App. B.1")}),
    "beta-500": ("beta 500", {"beta": (500.0, CHANGED)}),
    "shared": ("shared x_T", {"shared_start": (True, CHANGED)}),
    "steps-8": ("trained at 8 sampling steps", {"steps": (8, "published PSO code for DMD2: 8 sampled, 7 trained")}),
    "no-clamp": ("without the clamp", {"clamp": (None, "PSO Eq. 7 has none")}),
    "fast": ("10 x lr", {}),
    "fast-no-clamp": ("10 x lr, without the clamp", {"clamp": (None, "PSO Eq. 7 has none")}),
}


BASE = "code"  # the row that every other one is held to
LAST = 5  # rounds that the end of training is the mean of
WATCHED = {  # of a run's records
    "drift": Column("mean &#124;log-ratio&#124;", 4),
    "clamped": Column("share clamped", 3),
    "accuracy": Column("pairs ranked right", 3),
    "loss": Column("loss", 4),
}


def row(name: str, title: str, own: dict) -> Row:
    """Return a row of VARIANTS, at ten times the rate where its name says "fast"."""
    short, full = SHORT, FULL
    if name.startswith("fast"):
        short, full = ({**some, "lr": (some["lr"][0] * 10, CHANGED)} for some in (SHORT, FULL))
    if "sum_steps" in own:
        full = full | WHOLE
    return Row(title, "pso-online", CODE | own | short, full=full, tuning=TUNING)


def compare_with_base(table: Table, runs: list[dict], prompts: dict[str, list[str]]) -> dict[str, Any]:
    """Give each run the end of its training, and return how far each row lies from the base recipe."""
    from reproduce.evaluation.scores import compare
    from reproduce.harness.comparisons import Scores

    for run in runs:
        if run["training"]:
            end = run["training"]["history"][-LAST:]
            run["training"]["end"] = {key: statistics.mean(record[key] for record in end) for key in WATCHED}
    found = []
    for name, some, steps in itertools.product(table.rows, table.prompts, table.steps):
        sides = Scores(table, runs, prompts).pair((name, BASE), some, steps)
        if name != BASE and sides:
            place = {"row": name, "prompts": some, "steps": steps}
            found += [place | {"metric": metric} | compare(*sides, metric)._asdict() for metric in table.metrics]
    return {"differences": found}


def sections(table: Table, result: dict | None) -> list[str]:
    """Print how far each row lies from the base recipe, with its interval, and how its training ended."""
    from reproduce.harness.markdown import markdown_table

    parts = [f"## Difference from {table.rows[BASE].title}"]
    for prompts, steps in itertools.product(table.prompts, table.steps):
        place = {"prompts": prompts, "steps": steps}
        body = [
            [
                about.title,
                *(difference(result, {"row": name, "metric": m} | place, c) for m, c in table.metrics.items()),
            ]
            for name, about in table.rows.items()
            if name != BASE
        ]
        parts.append(markdown_table(["row", *(column.title for column in table.metrics.values())], body))
    ends = [
        [about.title, *(ended(result, name, key, column) for key, column in WATCHED.items())]
        for name, about in table.rows.items()
        if about.method
    ]
    parts.append("Row less base recipe, with its 95% interval, bold where that does not hold 0.")
    parts.append(f"The end of training, mean over {LAST} rounds ± standard deviation over training seeds:")
    return [*parts, markdown_table(["row", *(column.title for column in WATCHED.values())], ends)]


def difference(result: dict | None, place: dict, column: Column) -> str:
    """Print a row's difference from the base recipe, such as "**+0.10 [+0.02, +0.18]**"."""
    from reproduce.harness.markdown import interval
    from reproduce.harness.verdicts import NOT_RUN

    found = [d for d in result["differences"] if place.items() <= d.items()] if result else []
    if not found:
        return NOT_RUN
    bold = "**" * (found[0]["low"] > 0 or found[0]["high"] < 0)
    return f"{bold}{interval(found[0], column.decimals)}{bold}"


def ended(result: dict | None, row: str, key: str, column: Column) -> str:
    """Print a record's mean at the end of training, with its standard deviation over training seeds."""
    from reproduce.harness.markdown import mean_and_deviation
    from reproduce.harness.verdicts import NOT_RUN

    values = [run["training"]["end"][key] for run in result["runs"] if run["row"] == row] if result else []
    return mean_and_deviation(values, column.decimals) if values else NOT_RUN


TABLE = Table(
    name="pso_ablations",
    title="PSO: choices on which the paper and its code disagree",
    rows={"base": Row("base")} | {name: row(name, *about) for name, about in VARIANTS.items()},
    prompts={"parti": pso.PROMPTS["parti"]},
    steps=(4,),
    metrics=pso.METRICS,
    beside=pso.BESIDE,
    models={"pocket": "pocket-renoise", "full": "sdxl-dmd2"},
    teachers={},
    pictures={"pocket": 2, "full": 1},
    own=Own(derive=compare_with_base, sections=sections),
    note="Online PSO on PickScore, a short run of each form: the published code's is the base recipe, each row changes "
    "one thing, *as printed* all of them. The mean log-ratio is in the row's own units: a mean over latent dimensions "
    "or, for *summed* and *as printed*, their sum. The paper has no such table: what it claims of online PSO is "
    "asked of each row. The two weights of Eq. 5 belong to the mixed objective: see [its page](pso_style.md).",
)

if __name__ == "__main__":
    command(TABLE, __doc__)
