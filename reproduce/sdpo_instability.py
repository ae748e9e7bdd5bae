"""SDPO Fig. 7: D3PO, DDPO and REBEL trained on trajectories of 1 step and of 2, and DDPO on mixed lengths.

python reproduce/sdpo_instability.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/sdpo_instability.py --smoke --out runs/smoke

The paper says that these methods "struggle to maintain stable reward optimization" there, "some exhibiting significant
reward collapse". What a program can decide of it:

- the drop of a curve is its largest fall from the best so far, found on one half of the prompts and measured on the
  other (see curves), on the same noise at each snapshot;
- training is unstable on short trajectories if its drop is larger than that of the same method trained on long ones,
  both networks sampled in that small number of steps: a claim for each method at 1 and at 2 steps, and for DDPO on
  mixed lengths at 16. The two drops are of runs of as many samples, with as many snapshots; a curve that only seems to
  fall, by the chance of its pictures, has a drop of 0 on average;
- a row's gain is the end less the start. The paper does not say which rows show a reward collapse: gains are shown,
  not claimed, and the page counts the training seeds that collapsed as for all tables.

The paper names neither the reward nor
the lengths that were mixed: ours are Aesthetic, as in its ablations, and 1, 2, 4, 8, 16 (and 50 at full scale).
"""

from reproduce.harness.command import command
from reproduce.harness.declare import Column, Own, Row, Table
from reproduce.harness.sheets import Sheet, panel, watched
from reproduce.papers import sdpo

METHODS = {"d3po": ("D3PO", "grey"), "ddpo": ("DDPO", "green"), "rebel": ("REBEL", "orange")}
SHARED = {
    "reward": ("aesthetic", "own choice: not published; as SDPO Sec. 4.3"),
    "snapshot_every": (4, "own choice: points of a curve"),
}
FULL = {"snapshot_every": (5, "own choice: points of a curve")}
MIXED = "own choice: SDPO App. B mixes lengths and names none"
LENGTHS = (1, 2, 4, 8, 16)


def figures(result: dict) -> dict[str, Sheet]:
    """Return the paper's three panels, below them the same methods trained on long trajectories and sampled alike, and
    what stands beside the trained reward."""
    groups = []
    for kind in ("", "-long"):
        for steps in (1, 2):
            lines = {f"{method}{kind or f'-{steps}'}": about for method, about in METHODS.items()}
            trained = "long" if kind else f"{steps} step{'s' * (steps > 1)}"
            groups.append((f"trained on {trained}, sampled in {steps}", f"animals-{steps}", lines))
        lines = {f"ddpo{kind or '-mixed'}": METHODS["ddpo"]}
        groups.append((f"trained on {'long' if kind else 'mixed'}, sampled in 16", "animals-16", lines))
    panels = [panel(result, lines, cell, "aesthetic", title, "Aesthetic") for title, cell, lines in groups]
    return {
        "curves": Sheet("Fig. 7: training on few-step trajectories, and on long ones", [panels[:3], panels[3:]]),
        "watched": Sheet("What stands beside the trained reward", watched(result, groups, TABLE.beside)),
    }


def short(method: str, steps: int) -> Row:
    """Return a row that is trained on trajectories of 1 or 2 steps."""
    title = f"{METHODS[method][0]}, {steps} step{'s' * (steps > 1)}"
    return Row(title, method, SHARED | {"steps": (steps, "SDPO Fig. 7")}, full=FULL)


TABLE = Table(
    name="sdpo_instability",
    title="SDPO Fig. 7: instability on few-step trajectories",
    rows={"base": Row("base")}
    | {f"{method}-long": Row(f"{title}, long", method, SHARED, full=FULL) for method, (title, _) in METHODS.items()}
    | {f"{method}-{steps}": short(method, steps) for steps in (1, 2) for method in METHODS}
    | {
        "ddpo-mixed": Row(
            "DDPO, mixed",
            "ddpo",
            SHARED | {"mixed_steps": (LENGTHS, MIXED)},
            full=FULL | {"mixed_steps": ((*LENGTHS, 50), MIXED)},
        )
    },
    prompts=sdpo.ANIMALS,
    steps=(1, 2, 16),
    metrics={
        "aesthetic": Column("Aesthetic", 3),
        "aesthetic-drop": Column("largest drop", 4),
        "aesthetic-gain": Column("gain", 3),
    },
    beside=sdpo.HELD_OUT,
    models=sdpo.MODELS,
    teachers={},
    kernel="ddim",
    pictures={"pocket": 2, "full": 8},
    seeds=(0, 1, 2),
    note="*Largest drop* is the largest fall of the curve from its best so far, found on one half of the prompts and "
    "measured on the other, on the same noise at each snapshot. "
    "Training on short trajectories is unstable if its drop is above that of the same method trained on long ones, "
    "both sampled in as many steps as the short one has. *Gain* is the end less the start. "
    "Every row has the learning rate that its method has on long trajectories, where it was chosen: whether "
    "a smaller one is stable on short ones was not tried.",
    own=Own(curve=True, figures=figures),
)

if __name__ == "__main__":
    command(TABLE, __doc__)
