"""DI++ Table 1: one-step generators aligned with guidance and reward of several scales, beside their teacher.

python reproduce/dipp_table1.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/dipp_table1.py --dry-run        # rows, recipes with their sources, claims
python reproduce/dipp_table1.py --smoke --out runs/smoke

The paper's three stages (App. A.2):
1. pre-training by Diff-Instruct: at full scale the row "pretrained"; at pocket scale the shipped generator, which
   `train_distill.py --method diff-instruct` made (see fsalign_lib/pocket/one_step.py);
2. reward modelling by Bradley-Terry on preference pairs: the paper takes ImageReward as published; the pocket's was
   made by `python -m fsalign_lib.pocket.build --stages imagereward` (see fsalign_lib/pocket/rewards.py);
3. alignment, from one generator to five, a row each.

The unit of the reward scale: beside w(t) = 1 / ||d_psi - d_ref|| (Eq. C.8) the divergence pulls each sample with a
gradient of norm 1, and the pocket's ImageReward with 0.5 times the scale (the mean norm of its gradient through the
decoder, at the start), so that the paper's 0, 1 and 10 stand for none, a weaker and a stronger pull here too.
"""

from reproduce.harness.command import command
from reproduce.harness.declare import Column, Prompts, Row, Sampled, Table

SETTINGS = {  # row -> guidance, reward scale
    "cfg1-reward0": (1.0, 0.0),
    "cfg1-reward1": (1.0, 1.0),
    "cfg4.5-reward0": (4.5, 0.0),
    "cfg4.5-reward1": (4.5, 1.0),
    "cfg4.5-reward10": (4.5, 10.0),
}
SOURCE = "DI++ App. A.2: one of its five configurations"
OTHERS = {
    "sd15": "SD 1.5, 25 steps",
    "sd15-lcm": "SD 1.5 LCM, 4 steps",
    "sd15-tcd": "SD 1.5 TCD, 4 steps",
    "perflow": "PeRFlow, 4 steps",
    "hyper-sd15": "Hyper-SD 1.5, 1 step",
    "sdxl": "SDXL, 25 steps",
    "sdxl-lcm": "SDXL LCM, 4 steps",
    "sdxl-tcd": "SDXL TCD, 4 steps",
    "sdxl-lightning-4": "SDXL-Lightning, 4 steps",
    "hyper-sdxl-4": "Hyper-SDXL, 4 steps",
    "sdxl-turbo": "SDXL-Turbo, 1 step",
    "sdxl-lightning": "SDXL-Lightning, 1 step",
    "hyper-sdxl": "Hyper-SDXL, 1 step",
}
TEACHER = Sampled({"pocket": "pocket-teacher", "full": "pixart-alpha"}, 30, {"pocket": 2.5, "full": 4.5})

TABLE = Table(
    name="dipp_table1",
    title="DI++ Table 1: one-step generators aligned with human preferences",
    rows={name: Row(title, elsewhere=True) for name, title in OTHERS.items()}
    | {
        "teacher": Row("teacher, 30 steps", sampled=TEACHER),
        "pretrained": {
            "pocket": Row("pre-trained by Diff-Instruct"),
            "full": Row("pre-trained by Diff-Instruct", "diff-instruct", seeds=(0,)),
        },
    }
    | {
        name: Row(
            f"DI++, guidance {guidance:g}, reward {scale:g}",
            "dipp",
            {"guidance": (guidance, SOURCE), "reward_scale": (scale, SOURCE)},
            start="pretrained",
        )
        for name, (guidance, scale) in SETTINGS.items()
    },
    prompts={
        "coco": Prompts("COCO 2017's validation captions", "test-heldout", "coco-2017"),
        "sam": Prompts("SAM-LLaVA's captions", "test-pickapic", "sam-llava-5k"),
    },
    steps=(1,),
    metrics={
        "aesthetic": Column("Aesthetic", 2),
        "imagereward": Column("ImageReward", 2),
        "pickscore": Column("PickScore", 2),
    },
    beside={
        "accuracy": Column("animal accuracy", 3),
        "diversity": Column("diversity", 3),
        "sharpness": Column("sharpness", 4),
    },
    models={"pocket": "pocket-one-step", "full": "pixart-alpha"},
    teachers={"pocket": "pocket-teacher", "full": "pixart-alpha"},
    note="The paper trained one generator of each kind, and says what it took for the aligned ones alone: 4 A100 for 4 "
    "days, half of it pre-training. Rows of other models are the paper's and hold for COCO; their numbers of steps are "
    "partly lost in the text at hand, and are put down in the order of the rows. The pre-trained generator is not in "
    "the paper's table. The paper's PickScore, a cosine, is printed times 100, as in the other tables.",
)

if __name__ == "__main__":
    command(TABLE, __doc__)
