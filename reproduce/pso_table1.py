"""PSO Table 1: human preference tuning of a 4-step DMD2 model, beside its multi-step teacher and what is made of that.

python reproduce/pso_table1.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/pso_table1.py --dry-run        # rows, recipes with their sources, claims
python reproduce/pso_table1.py --smoke --out runs/smoke

The teacher is tuned by Diffusion-DPO and by plain fine-tuning on the winners (SFT), on the pairs that offline PSO has;
"DPO + distillation LoRA" puts the LoRA that distils the teacher onto each run of the DPO'd one. All rows that are
trained take as many pictures, but for the DPO'd teacher at full scale, whose settings are Diffusion-DPO's own. RPO, SPO
and MaPO are the paper's numbers alone.

At full scale DPO and SFT are trained here too: the commit of the authors' DPO'd SDXL
(mhdang/dpo-sdxl-text2image-v1) is not known to this project, which reads nothing that is not pinned.
"""

from reproduce.harness.command import command
from reproduce.harness.declare import Row, Table
from reproduce.papers import pso

TABLE = Table(
    name="pso_table1",
    title="PSO Table 1: human preference tuning of SDXL-DMD2",
    rows={
        "teacher": Row("teacher", sampled=pso.TEACHER),
        "dpo": pso.DPO,
        "sft": Row("teacher, SFT", "sft", full=pso.WIDE["sft"], tuning=pso.TUNING, sampled=pso.TEACHER),
        "rpo": Row("teacher, RPO", elsewhere=True),
        "spo": Row("teacher, SPO", elsewhere=True),
        "mapo": Row("teacher, MaPO", elsewhere=True),
        "dpo-lora": pso.composed("DPO + distillation LoRA", {"pocket": "pocket-dmd-lora", "full": "sdxl-dmd2-lora"}),
        "base": Row("base"),
        "offline": Row("offline PSO", "pso-offline", full=pso.WIDE["pso-offline"], tuning=pso.TUNING),
        "online": Row("online PSO", "pso-online", full=pso.WIDE["pso-online"], tuning=pso.TUNING),
    },
    prompts=pso.PROMPTS,
    steps=(4,),
    metrics=pso.METRICS,
    beside=pso.BESIDE,
    models={"pocket": "pocket-renoise", "full": "sdxl-dmd2"},
    teachers=pso.TEACHER.models,
    pictures={"pocket": 2, "full": 1},
    note="The teacher's rows are sampled by DDIM with guidance, in 10 steps at pocket scale and 50 at full scale, all "
    "others in 4 without. The base at pocket scale is the student that `pocket-turbo` is too, sampled as DMD2's; the "
    "LoRA was distilled on its own from the same teacher, so that it puts another student on the DPO'd teacher.",
)

if __name__ == "__main__":
    command(TABLE, __doc__)
