"""SDPO Fig. 12: DDPO, REBEL and SDPO on a latent consistency model.

python reproduce/sdpo_lcm.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/sdpo_lcm.py --smoke --out runs/smoke

The paper takes RLCM's code for DDPO and REBEL, and RLCM's settings for SDPO too, but for SDPO's own (App. A.2); it says
neither which reward nor how many steps. Ours are those of RLCM's Aesthetic task, 8 steps of the model's own sampler.
That sampler predicts the clean sample and noises it afresh; its last step is deterministic, and is not trained (RLCM
noises it too). As in RLCM, REBEL's two samples have a start each, where SDPO's share theirs. What RLCM has and
we have not: a learning rate that falls by a third over a run; REBEL without a limit on gradient norm and advantages,
which here are DDPO's, as SDPO's App. A.1 has it for the other model.
"""

from reproduce.harness.command import command
from reproduce.harness.declare import Column, Own, Row, Table
from reproduce.harness.sheets import Sheet, watched
from reproduce.papers import sdpo

METHODS = {"ddpo": ("DDPO", "green"), "rebel": ("REBEL", "orange"), "sdpo": ("SDPO", "blue")}
RLCM_CODE = "SDPO App. A.2: as RLCM; published RLCM code, Aesthetic"
SHARED = {
    "reward": ("aesthetic", "own choice: not published; as SDPO Sec. 4.3"),
    "kernel": ("renoise", "the model's own sampler"),
    "steps": (8, RLCM_CODE),
    "snapshot_every": (4, "own choice: points of a curve"),
}
# Own tuning on Aesthetic, three rates a method at seed 100: 3e-3 and 1e-2 for 10 rounds, then 5e-3 for all 32 (SDPO,
# with seven updates a round to the others' one: 2e-3). The last cost more than one animal in ten at 8 steps, DDPO and
# REBEL after 24 rounds, SDPO after 32: below it stand 3e-3, which kept all for 10 rounds, and sdpo_table1's 1e-3.
TUNED = "own tuning at pocket scale"
OWN = {
    "ddpo": {"lr": (3e-3, TUNED)},
    "rebel": {"lr": (3e-3, TUNED), "shared_start": (False, "published RLCM code: a start each")},
    "sdpo": {"lr": (1e-3, TUNED)},
}
RLCM = {
    "lr": (1e-4, RLCM_CODE),
    "weight_decay": (0.0, RLCM_CODE),
    "rank": (8, RLCM_CODE),
    "alpha": (8, RLCM_CODE),
    "grad_clip": (5.0, RLCM_CODE),
    "advantage_clip": (10.0, RLCM_CODE),
    "rounds": (1000, RLCM_CODE + ": 100 epochs of 10 batches"),
    "pairs": (32, RLCM_CODE + ": 8 prompts on each of 4 GPUs"),
    "minibatch": (32, RLCM_CODE + ": 2 x 4 on each of 4 GPUs"),
    "snapshot_every": (100, "own choice: points of a curve"),
    "micro_batch": (4, "fits H100: plan, at 768 px"),
}
FITS = {
    "rebel": {
        "micro_batch": (1, "fits H100: plan, at 768 px; a row is a whole pair, 16 pictures"),
        "gradient_checkpointing": (False, "fits H100: plan"),
    }
}


def figures(result: dict) -> dict[str, Sheet]:
    """Return the paper's panel, in the number of steps of the training and in one, and what stands beside it."""
    groups = [(f"sampled in {n} step{'s' * (n > 1)}", f"animals-{n}", METHODS) for n in TABLE.steps]
    panels = watched(result, groups, TABLE.metrics | TABLE.beside)
    return {"curves": Sheet("Fig. 12: a latent consistency model trained on Aesthetic", panels)}


TABLE = Table(
    name="sdpo_lcm",
    title="SDPO Fig. 12: a latent consistency model",
    rows={"base": Row("base")}
    | {
        method: Row(title, method, SHARED | OWN[method], full=RLCM | FITS.get(method, {}))
        for method, (title, _) in METHODS.items()
    },
    prompts=sdpo.ANIMALS,
    steps=(1, 8),
    metrics={"aesthetic": Column("Aesthetic", 3)},
    beside=sdpo.HELD_OUT,
    models={"pocket": "pocket-lcm", "full": "lcm-dreamshaper-v7"},
    teachers={},
    kernel="renoise",
    pictures={"pocket": 2, "full": 8},
    note="Trained on Aesthetic, in 8 steps. The reward is that at the end of training.",
    own=Own(curve=True, figures=figures),
)

if __name__ == "__main__":
    command(TABLE, __doc__)
