"""PSO Table 1: human preference tuning of a 4-step DMD2 model, beside its multi-step teacher and what is made of that.

python reproduce/pso_table1.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/pso_table1.py --dry-run        # rows, recipes with their sources, claims
python reproduce/pso_table1.py --smoke --out runs/smoke

The teacher is tuned by Diffusion-DPO and by plain fine-tuning on the winners (SFT), on the pairs that offline PSO has;
"DPO + distillation LoRA" puts the LoRA that distils the teacher onto each run of the DPO'd one. All rows that are
trained take as many pictures. RPO, SPO and MaPO are the paper's numbers alone.

At full scale DPO and SFT are trained here too: the commit of the authors' DPO'd SDXL
(mhdang/dpo-sdxl-text2image-v1) is not known to this project, which reads nothing that is not pinned.
"""

from collections.abc import Sequence
from dataclasses import replace

from reproduce import pso_table2
from reproduce.harness.command import command
from reproduce.harness.declare import Row, Sampled, Table, World

TEACHER = Sampled({"pocket": "pocket-teacher", "full": "sdxl"}, steps=10, guidance={"pocket": 2.5, "full": 5.0})
TUNING = (
    "Table 2's lr, updates and batch, tried once: 16 updates of 16 pairs at training seed 7, scored on 24 training "
    "prompts; nothing was changed after"
)


def teacher(title: str, method: str | None = None) -> Row:
    """As it is, or trained by a method. 50 steps at full scale: the table's number; the text has 25."""
    row = Row(title, method, sampled=TEACHER, tuning=TUNING if method else "")
    return replace(row, at_full=replace(row, sampled=replace(TEACHER, steps=50)))


TABLE = Table(
    name="pso_table1",
    title="PSO Table 1: human preference tuning of SDXL-DMD2",
    rows={
        "teacher": teacher("teacher"),
        "dpo": teacher("teacher, Diffusion-DPO", "diffusion-dpo"),
        "sft": teacher("teacher, SFT", "sft"),
        "rpo": Row("teacher, RPO", elsewhere=True),
        "spo": Row("teacher, SPO", elsewhere=True),
        "mapo": Row("teacher, MaPO", elsewhere=True),
        "dpo-lora": Row(
            "DPO + distillation LoRA", start="dpo", composed={"pocket": "pocket-dmd-lora", "full": "sdxl-dmd2-lora"}
        ),
        "base": Row("base"),
        "offline": Row("offline PSO", "pso-offline", tuning=TUNING),
        "online": Row("online PSO", "pso-online", tuning=TUNING),
    },
    prompts=pso_table2.TABLE.prompts,
    steps=(4,),
    metrics=pso_table2.TABLE.metrics,
    beside=pso_table2.TABLE.beside,
    models={"pocket": "pocket-renoise", "full": "sdxl-dmd2"},
    teachers=TEACHER.models,
    pictures={"pocket": 2, "full": 1},
    note="The teacher's rows are sampled by DDIM with guidance, in 10 steps at pocket scale and 50 at full scale, all "
    "others in 4 without. The base at pocket scale is the student that `pocket-turbo` is too, sampled as DMD2's; the "
    "LoRA was distilled on its own from the same teacher, so that it puts another student on the DPO'd teacher.",
)
SMOKE = World(
    pictures=2,
    prompts=2,
    settings=pso_table2.SMOKE.settings | dict.fromkeys(("diffusion-dpo", "sft"), {"updates": 1, "batch": 2}),
)


def main(argv: Sequence[str] | None = None) -> None:
    command(TABLE, SMOKE, __doc__, argv)


if __name__ == "__main__":
    main()
