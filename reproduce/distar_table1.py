"""DI* Table 1: one-step generators by Diff-Instruct, SIM, DI++ and DI*, beside the student that they start from.

python reproduce/distar_table1.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/distar_table1.py --dry-run        # rows, recipes with their sources, claims
python reproduce/distar_table1.py --smoke --out runs/smoke

Training runs are shared with distar_table2.py, distar_table3.py and distar_pareto.py (see distar_rows.py).
"""

from collections.abc import Sequence

from reproduce.harness.command import command
from reproduce.harness.declare import Prompts, Table, World
from reproduce.papers import distar as distar_rows

TABLE = Table(
    name="distar_table1",
    title="DI* Table 1: one-step generators on Parti and COCO prompts",
    rows=distar_rows.rows("teacher")
    | distar_rows.ELSEWHERE
    | distar_rows.rows("base", "diff-instruct", "sim", "dipp", "distar", "distar-long"),
    prompts={
        "parti": Prompts("Parti prompts", "test-heldout", "parti"),
        "coco": Prompts("COCO prompts", "test-pickapic", "coco-2014-30k", "coco-2014-30k.safetensors"),
    },
    steps=(1,),
    metrics=distar_rows.METRICS | {"fid": ("Frechet distance", 2), "seconds": distar_rows.COSTS["seconds"]},
    beside={"memory": distar_rows.COSTS["memory"]}
    | {name: about for name, about in distar_rows.HELD_OUT.items() if name != "fid"},
    models=distar_rows.MODELS,
    teachers=distar_rows.TEACHERS,
    equal_budgets=(),
    pool=distar_rows.POOL,
    note=f"{distar_rows.PRINTED} Seconds are of one picture after the other, on the device below. SDXL-DPO, SD3.5 and "
    "FLUX are other groups' models, and no part of this project. The Frechet distance has no interval: it is of all "
    "pictures together, from few pictures at pocket scale, and less is better.",
)
SMOKE = World(pictures=2, prompts=2, settings=dict.fromkeys(distar_rows.METHODS, distar_rows.SMOKE))


def main(argv: Sequence[str] | None = None) -> None:
    command(TABLE, SMOKE, __doc__, argv)


if __name__ == "__main__":
    main()
