"""SDPO Table 1: D3PO, DDPO, REBEL and SDPO, each trained on one of four rewards, on prompts that none has seen.

python reproduce/sdpo_table1.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/sdpo_table1.py --dry-run        # rows, recipes with their sources, claims
python reproduce/sdpo_table1.py --smoke --out runs/smoke

All methods train on the same number of samples of the same prompts, the 45 animals, with DDIM; the same networks are
then sampled in 1, 4, 16 and 50 steps.
"""

from reproduce.harness.command import command
from reproduce.harness.declare import Column, Prompts, Row, Table
from reproduce.papers import sdpo

LONG = {"reward": ("aesthetic", "SDPO Sec. 4.1"), "steps": (50, "SDPO Table 2")} | sdpo.CURVE
FEW = {"micro_batch": (2, "own choice: a row of REBEL's minibatch is 2 T pictures")}
# The paper's T, for one reward and one training seed, beside the pocket world's T = 20.
LONG_ROWS = {
    f"{method}-aesthetic-50": {
        "pocket": Row(
            title,
            method,
            LONG | (FEW if method == "rebel" else {}),
            metrics=("aesthetic",),
            group="Aesthetic, T = 50",
            seeds=(0,),
        )
    }
    for method, title in sdpo.METHODS.items()
}
TABLE = Table(
    name="sdpo_table1",
    title="SDPO Table 1: generalization to unseen prompts",
    rows={"base": Row("base")} | sdpo.ROWS | LONG_ROWS,
    prompts={"unseen": Prompts("unseen prompts: colour, count, composition, location", "test-heldout", "sdpo-unseen")},
    steps=(1, 4, 16, 50),
    metrics=sdpo.REWARDS,
    beside=sdpo.WATCHED | {"clipscore": Column("CLIP score", 4), "imagereward-raw": Column("ImageReward, raw", 3)},
    models=sdpo.MODELS,
    teachers={},
    kernel="ddim",
    pictures={"pocket": 2, "full": 64},
    note="At pocket scale a run has 1,024 samples, where the published code's has 25,600 for Aesthetic and 51,200 for "
    "the other rewards: gains are small, and much stays inconclusive. All methods have the same samples, not the same "
    "updates: SDPO makes one a step, 640 a run, the others one a round, 32. Training has T = 20, where the paper has "
    "50; four more rows have 50, for one reward and one training seed, so they carry no claim; their rates are those "
    "of T = 20, not tried again. REBEL's pairs share their start, which the paper's need not (recipes.py). On "
    "Aesthetic the methods end at very different distances from the model as it is: read each gain beside the other "
    "judges' losses, below, and the comparison at equal KL on [the curves' page](sdpo_curves.md). For the other "
    "rewards every method has the smallest rate that was tried: a smaller one might do better. The paper's ImageReward "
    "is probably raw, since its published scorer does not normalise: "
    "at full scale ours is (raw - 0.167) / 1.033, and the raw one is among the numbers below. That "
    "scorer shows all rewards the pictures through OpenAI's CLIP processor, where ours have each their own. HPSv2 and "
    "PickScore are 100 times a cosine, CLIP score is one. Animal accuracy is the share of pictures in which a "
    "classifier finds the one animal asked for; diversity is the mean distance of a prompt's pictures in that "
    "classifier's features.",
)

if __name__ == "__main__":
    command(TABLE, __doc__)
