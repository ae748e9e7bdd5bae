"""SDPO Figs. 3, 4 and 8-11: reward against training samples of D3PO, DDPO, REBEL and SDPO, sampled in 1 to 50 steps.

python reproduce/sdpo_table1.py && python reproduce/sdpo_curves.py
python reproduce/sdpo_table1.py --smoke --out runs/smoke && python reproduce/sdpo_curves.py --smoke --out runs/smoke

Nothing is trained: the snapshots of sdpo_table1.py's runs are sampled on the 45 animals, on the same noise for all.
Beside the trained reward stand the three others, animal accuracy, diversity, and the KL to the reference, at the
number of steps of the training (see snapshots.policy_kl). Fig. 3 of the paper averages over the training samples
themselves; here all points are pictures of fixed noise.

What the paper's text claims of a curve is decided so: "highest" by the reward at the end of training, "steeper" by its
mean rise over training (see curves), each by the interval of all claims.
"""

from dataclasses import replace

from reproduce.harness.command import command
from reproduce.harness.declare import Column, Own, Row, Table
from reproduce.harness.sheets import KL, Sheet, panel
from reproduce.papers import sdpo
from reproduce.papers.sdpo import METHODS, REWARDS, WATCHED

COLORS = dict(zip(METHODS, ("grey", "green", "orange", "blue"), strict=True))
FIGURES = {1: "4", 2: "8", 4: "9", 8: "10", 16: "11", 50: "3"}


def figures(result: dict) -> dict[str, Sheet]:
    """Return a sheet for each number of steps: a row of panels for each trained reward, other judges and KL beside."""
    labels = {name: column.title for name, column in (REWARDS | WATCHED).items()} | {"kl": KL}
    sheets = {}
    for steps, number in FIGURES.items():
        rows, cell = [], f"animals-{steps}"
        scored = result["runs"][0]["cells"][cell]["means"] if result["runs"] else {}
        for reward in REWARDS:
            lines = {f"{method}-{reward}": (title, COLORS[method]) for method, title in METHODS.items()}
            others = [name for name in (*REWARDS, *WATCHED) if name != reward and name in scored]
            panels = [panel(result, lines, cell, name, labels[name], "") for name in (*others, "kl")]
            trained = panel(result, lines, cell, reward, labels[reward], f"trained on {labels[reward]}")
            rows.append([trained, *panels])
        some = f"{steps} step{'s' * (steps > 1)}"
        sheets[f"{steps}step"] = Sheet(f"Fig. {number} and what stands beside it: sampled in {some}", rows)
    return sheets


TABLE = Table(
    name="sdpo_curves",
    title="SDPO Figs. 3, 4, 8-11: rewards against training samples",
    rows={"base": Row("base")}
    | {name: replace(row, metrics=(*row.metrics, f"{row.metrics[0]}-rise")) for name, row in sdpo.ROWS.items()},
    prompts=sdpo.ANIMALS,
    steps=tuple(FIGURES),
    metrics=REWARDS
    | {f"{name}-rise": Column(f"{column.title}, mean rise", column.decimals + 1) for name, column in REWARDS.items()},
    beside=REWARDS | WATCHED,
    models=sdpo.MODELS,
    teachers={},
    kernel="ddim",
    pictures={"pocket": 2, "full": 8},
    note="Trained by sdpo_table1.py. The reward is that at the end of training (*highest*); *mean rise* is the mean "
    "over training of the reward less that of the start (*steeper*). Points are pictures of the 45 animals on fixed "
    "noise, where Fig. 3 averages over the training samples.",
    own=Own(curve=True, figures=figures),
)

if __name__ == "__main__":
    command(TABLE, __doc__)
