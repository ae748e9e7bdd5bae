"""DI* Table 2: KL and score divergence, guidance in the reference or as a reward, and reward scales.

python reproduce/distar_table2.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/distar_table2.py --dry-run        # rows, recipes with their sources, claims
python reproduce/distar_table2.py --smoke --out runs/smoke

Training runs are shared with distar_table1.py, distar_table3.py and distar_pareto.py (see papers/distar.py).
"""

from reproduce.harness.command import command
from reproduce.harness.declare import Prompts, Table
from reproduce.papers import distar

DI_STAR = ("distar-out", "distar-unguided", "sim", "distar-1", "distar-10", "distar", "distar-long")
TABLE = Table(
    name="distar_table2",
    title="DI* Table 2: guidance strategies and reward scales",
    rows=distar.rows("base", "kl-unguided", "diff-instruct", "dipp", *DI_STAR),
    prompts={"parti": Prompts("Parti prompts", "test-heldout", "parti")},
    steps=(1,),
    metrics=distar.METRICS,
    beside={name: column for name, column in distar.HELD_OUT.items() if name != "fid"},
    models=distar.MODELS,
    teachers=distar.TEACHERS,
    note=f"{distar.PRINTED} One of the paper's rows, whose setting is lost from the text at hand, is left out, "
    "and the reward scales of the rows DI++ without guidance, DI++ and DI* with guidance as a reward are inferred.",
)

if __name__ == "__main__":
    command(TABLE, __doc__)
