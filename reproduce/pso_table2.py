"""PSO Table 2: human preference tuning of a 4-step Turbo model by offline and online PSO, sampled at 4 steps and at 1.

python reproduce/pso_table2.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/pso_table2.py --dry-run        # rows, recipes with their sources, claims
python reproduce/pso_table2.py --smoke --out runs/smoke
"""

from reproduce.harness.command import command
from reproduce.harness.declare import Row, Table
from reproduce.papers import pso

TABLE = Table(
    name="pso_table2",
    title="PSO Table 2: human preference tuning of SDXL-Turbo",
    rows={
        "base": Row("base"),
        "offline": Row("offline PSO", "pso-offline"),
        "online": Row("online PSO", "pso-online"),
    },
    prompts=pso.PROMPTS,
    steps=(4, 1),
    metrics=pso.METRICS,
    beside=pso.BESIDE,
    models={"pocket": "pocket-turbo", "full": "sdxl-turbo"},
    teachers=pso.TEACHER.models,
)

if __name__ == "__main__":
    command(TABLE, __doc__)
