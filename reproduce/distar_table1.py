"""DI* Table 1: one-step generators by Diff-Instruct, SIM, DI++ and DI*, beside the student that they start from.

python reproduce/distar_table1.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/distar_table1.py --dry-run        # rows, recipes with their sources, claims
python reproduce/distar_table1.py --smoke --out runs/smoke

Training runs are shared with distar_table2.py, distar_table3.py and distar_pareto.py (see papers/distar.py).
"""

from reproduce.harness.command import command
from reproduce.harness.declare import Column, Prompts, Table
from reproduce.papers import distar

TABLE = Table(
    name="distar_table1",
    title="DI* Table 1: one-step generators on Parti and COCO prompts",
    rows=distar.rows("teacher")
    | distar.ELSEWHERE
    | distar.rows("base", "diff-instruct", "sim", "dipp", "distar", "distar-long"),
    prompts={
        "parti": Prompts("Parti prompts", "test-heldout", "parti"),
        "coco": Prompts("COCO prompts", "test-pickapic", "coco-2014-30k", "coco-2014-30k.safetensors"),
    },
    steps=(1,),
    metrics=distar.METRICS | {"fid": distar.HELD_OUT["fid"], "seconds": Column("s per 10 pictures", 2)},
    beside={name: column for name, column in distar.HELD_OUT.items() if name != "fid"},
    models=distar.MODELS,
    teachers=distar.TEACHERS,
    note=f"{distar.PRINTED} Seconds are of one picture after the other, on the device below. SDXL-DPO, SD3.5 and "
    "FLUX are other groups' models, and no part of this project. The Frechet distance has no interval: it is of all "
    "pictures together, from few pictures at pocket scale, and less is better.",
)

if __name__ == "__main__":
    command(TABLE, __doc__)
