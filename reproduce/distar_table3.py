"""DI* Table 3: HPS by category of prompt.

python reproduce/distar_table3.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/distar_table3.py --dry-run        # rows, recipes with their sources, claims
python reproduce/distar_table3.py --smoke --out runs/smoke

At full scale the score is HPSv2.1 and the categories are those of HPDv2's benchmark; at pocket scale they are the kinds
of the caption grammar. A category is a metric that says nothing of other prompts. Training runs are shared with
distar_table1.py, distar_table2.py and distar_pareto.py (see papers/distar.py).
"""

import functools
from typing import Any

from fsalign_lib.pocket.captions import parse
from reproduce.harness.command import command
from reproduce.harness.declare import Column, Own, Prompts, Table
from reproduce.papers import distar

FULL = {
    "anime": Column("Animation", 2, scale="full"),
    "concept-art": Column("Concept-art", 2, scale="full"),
    "paintings": Column("Painting", 2, scale="full"),
    "photo": Column("Photo", 2, scale="full"),
}
POCKET = {
    "animal": Column("one animal", 2, scale="pocket"),
    "color": Column("colour", 2, scale="pocket"),
    "count": Column("count", 2, scale="pocket"),
    "composition": Column("composition", 2, scale="pocket"),
    "place": Column("location", 2, scale="pocket"),
}


@functools.cache
def benchmark() -> dict[str, str]:
    """Return HPDv2's prompts -> their categories, where they are at hand."""
    from reproduce.data.prompt_sets import data_folder, read_prompts

    if data_folder() is None:
        return {}
    return {prompt: name for name in FULL for prompt in read_prompts(f"hpdv2-{name}")}


def category(prompt: str, known: dict[str, str]) -> str:
    """Return the category of HPDv2, or the kind of the pocket world; a number of animals at a place is a count."""
    return known.get(prompt) or parse(prompt).kind.removesuffix("+place")


def by_category(table: Table, runs: list[dict], prompts: dict[str, list[str]]) -> dict[str, Any]:
    """Give each cell HPS by category, and over all as "average"."""
    from reproduce.evaluation.scores import mean

    for run in runs:
        for cell, found in run["cells"].items():
            named = prompts[cell.rpartition("-")[0]]
            scores = found["scores"]
            known = benchmark() if "hps-2.1" in scores else {}
            hps = scores.get("hps-2.1", scores.get("hps"))
            kinds = [category(prompt, known) for prompt in named]
            more = {"average": hps}
            for name in dict.fromkeys(kinds):
                more[name] = [row if kind == name else [None] * len(row) for row, kind in zip(hps, kinds, strict=True)]
            found["scores"] = scores | more
            if margins := found.get("margins"):
                found["margins"] = margins | {"average": margins.get("hps-2.1", margins.get("hps"))}
            found["means"] = found["means"] | {name: mean(rows) for name, rows in more.items()}
    return {}


TABLE = Table(
    name="distar_table3",
    title="DI* Table 3: human preference scores by category",
    rows=distar.rows("teacher")
    | distar.ELSEWHERE
    | distar.rows("base", "diff-instruct", "sim", "dipp", "distar", "distar-long"),
    prompts={"benchmark": Prompts("HPDv2's benchmark", "test-pickapic", "hpdv2")},
    steps=(1,),
    metrics=FULL | POCKET | {"average": Column("Average", 2)},
    beside={},
    models=distar.MODELS,
    teachers=distar.TEACHERS,
    own=Own(scored=("hps", "hps-2.1"), derive=by_category),
    note=f"100 times HPS's cosine. At pocket scale {distar.STANDS} The text of the paper that is at hand keeps "
    "five cells of the table: four of the row of longer training, and FLUX's photos. Categories of the pocket world "
    "are the kinds of its captions; which of the paper's they stand for is nobody's to say, so the claims are on the "
    "average alone.",
)

if __name__ == "__main__":
    command(TABLE, __doc__)
