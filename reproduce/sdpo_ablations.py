"""SDPO Figs. 5 and 6: SDPO with one part in another form, trained on Aesthetic, sampled in 1 step (4 and 16 beside).

python reproduce/sdpo_ablations.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/sdpo_ablations.py --dry-run        # rows, recipes with their sources, claims
python reproduce/sdpo_ablations.py --smoke --out runs/smoke

What the text claims is decided by the reward at the end of training; where it says that updates are sample-efficient,
by the mean rise over training; where it says that time is saved, by the reward at the time when the quickest of all
runs had ended (see curves). On a CPU these are CPU times, which a busy machine changes little; on GPUs run all rows on
the same kind, with nothing beside them.

18 rows of three training seeds.

"without the last step" is ours, not the paper's: the last step of DDIM has a standard deviation of 0.029, so a score
many times that of the others, and the reward of its prediction does not depend on its own action.
"""

from reproduce.harness.command import command
from reproduce.harness.declare import Column, Own, Row, Table
from reproduce.harness.sheets import Sheet, panel, watched
from reproduce.papers import sdpo

DENSE, RETURNS, NORMALISATION = "dense rewards", "discounted returns", "normalisation"
WEIGHTING, UPDATES, LAST = "importance weighting", "gradient updates", "the last step (not in the paper)"
# row -> (title, panel of the paper, what differs from SDPO as it is)
VARIANTS = {
    "random": ("3 queries & random anchor", DENSE, {"queries": ("random", "SDPO Fig. 5")}),
    "fixed": ("3 queries & fixed anchor", DENSE, {"queries": ("fixed", "SDPO Fig. 5")}),
    "similarity": ("2 queries & similarity", DENSE, {"queries": ("similarity", "SDPO Fig. 5")}),
    "interpolation": ("2 queries & interpolation", DENSE, {"queries": ("interpolation", "SDPO Fig. 5")}),
    "copy": ("1 query & copy", DENSE, {"queries": ("copy", "SDPO Fig. 5")}),
    "all": ("all queries", DENSE, {"queries": ("all", "SDPO Fig. 5")}),
    "gamma-0.9": ("gamma 0.9", RETURNS, {"gamma": (0.9, "SDPO Fig. 5")}),
    "gamma-1": ("gamma 1", RETURNS, {"gamma": (1.0, "SDPO Fig. 5")}),
    "gamma-0": ("rewards without returns", RETURNS, {"gamma": (0.0, "SDPO Fig. 5")}),
    "prompt": ("per prompt", NORMALISATION, {"normalize": ("prompt", "SDPO Fig. 6")}),
    "global": ("global", NORMALISATION, {"normalize": ("global", "SDPO Fig. 6")}),
    "decay-0.9": ("lambda 0.9", WEIGHTING, {"decay": (0.9, "SDPO Fig. 6")}),
    "decay-1": ("lambda 1", WEIGHTING, {"decay": (1.0, "SDPO Fig. 6")}),
    "reverse": ("reverse", WEIGHTING, {"decay_order": ("reverse", "SDPO Fig. 6")}),
    "accumulated": ("accumulated", UPDATES, {"updates": ("accumulated", "SDPO Fig. 6")}),
    "sequential": ("without shuffling", UPDATES, {"updates": ("sequential", "SDPO Fig. 6")}),
    "without-last": ("without the last step", LAST, {"last_step": (False, "own choice: a row that the paper lacks")}),
}
SHARED = {
    "reward": ("aesthetic", "SDPO Sec. 4.3"),
    "snapshot_every": (8, "own choice: points of a curve"),
}
FULL = {"snapshot_every": (10, "own choice: points of a curve")}
COLORS = ("orange", "green", "red", "purple", "sky", "grey")


def figures(result: dict) -> dict[str, Sheet]:
    """Return seven panels for each number of steps, the paper's six and one of ours, and what stands beside them."""
    sheets = {}
    for steps in TABLE.steps:
        groups = []
        for group in (DENSE, RETURNS, NORMALISATION, WEIGHTING, UPDATES, LAST):
            names = [name for name, (_, where, _) in VARIANTS.items() if where == group]
            lines = {name: (VARIANTS[name][0], color) for name, color in zip(names, COLORS, strict=False)}
            groups.append((group, f"animals-{steps}", {"sdpo": ("SDPO", "blue")} | lines))
        panels = [panel(result, lines, cell, "aesthetic", title, "Aesthetic") for title, cell, lines in groups]
        _, cell, dense = groups[0]
        panels.insert(1, panel(result, dense, cell, "aesthetic", "dense rewards, by time", "Aesthetic", "hours"))
        some = f"{steps} step{'s' * (steps > 1)}"
        title = f"Figs. 5 and 6: ablations of SDPO, sampled in {some}"
        sheets[f"{steps}step"] = Sheet(title, [panels[:4], panels[4:]])
        beside = f"What stands beside the trained reward, sampled in {some}"
        sheets[f"{steps}step-watched"] = Sheet(beside, watched(result, groups, TABLE.beside))
    return sheets


TABLE = Table(
    name="sdpo_ablations",
    title="SDPO Figs. 5, 6: ablations",
    rows={"base": Row("base")}
    | {name: Row(title, "sdpo", SHARED | own, full=FULL, group=group) for name, (title, group, own) in VARIANTS.items()}
    | {"sdpo": Row("SDPO", "sdpo", SHARED, full=FULL)},
    prompts=sdpo.ANIMALS,
    steps=(1, 4, 16),
    metrics={
        "aesthetic": Column("Aesthetic", 3),
        "aesthetic-rise": Column("mean rise", 4),
        "aesthetic-timed": Column("at one time", 3),
    },
    beside=sdpo.HELD_OUT,
    models=sdpo.MODELS,
    teachers={},
    kernel="ddim",
    pictures={"pocket": 2, "full": 8},
    seeds=(0, 1, 2),
    note="Each row is SDPO with one thing changed, trained on Aesthetic. The reward is that at the end of training; "
    "*mean rise* is the mean over training of the reward less that of the start; *at one time* is the reward when the "
    "quickest run of the table had ended. The row without the last step is ours.",
    own=Own(curve=True, figures=figures),
)

if __name__ == "__main__":
    command(TABLE, __doc__)
