"""PSO Table 3: human preference tuning of a 4-step latent consistency model (LCM).

python reproduce/pso_table3.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/pso_table3.py --dry-run        # rows, recipes with their sources, claims
python reproduce/pso_table3.py --smoke --out runs/smoke

The DPO'd teacher is that of Table 1: its runs are taken from there, or trained for both tables where they are missing.
So are the pairs. The paper's SDXL-LCM is a distilled network and its LCM-LoRA another; the pocket's LCM is a LoRA on
the teacher, so at pocket scale "base" and "teacher + LCM-LoRA" are one model.
"""

from reproduce.harness.command import command
from reproduce.harness.declare import Own, Row, Sampled, Table
from reproduce.papers import pso

LORA = {"pocket": "pocket-lcm", "full": "sdxl-lcm-lora"}
RANK = {"rank": (32, "PSO App. B.1: 32 for SDXL-LCM")}

TABLE = Table(
    name="pso_table3",
    title="PSO Table 3: human preference tuning of SDXL-LCM",
    rows={
        "base": Row("base"),
        "teacher-lora": Row(
            "teacher + LCM-LoRA",
            sampled=Sampled(LORA, steps=4, guidance={"pocket": 1.0, "full": 1.0}, kernel="renoise"),
        ),
        "dpo-lora": pso.composed("DPO + LCM-LoRA", LORA),
        "offline": Row("offline PSO", "pso-offline", full=RANK | pso.WIDE["pso-offline"], tuning=pso.TUNING),
        "online": Row("online PSO", "pso-online", full=RANK | pso.WIDE["pso-online"], tuning=pso.TUNING),
    },
    prompts=pso.PROMPTS,
    steps=(4,),
    metrics=pso.METRICS,
    beside=pso.BESIDE,
    models={"pocket": "pocket-lcm", "full": "sdxl-lcm"},
    teachers=pso.TEACHER.models,
    pictures={"pocket": 2, "full": 1},
    own=Own(starts={"dpo": pso.DPO}),
    note="At pocket scale the LCM is a LoRA on the teacher, so *base* and *teacher + LCM-LoRA* are one model, and the "
    "claims against either are one claim. The DPO'd teachers and the pairs are those of Table 1.",
)

if __name__ == "__main__":
    command(TABLE, __doc__)
