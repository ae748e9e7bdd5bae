"""DI* Table 2: KL and score divergence, guidance in the reference or as a reward, and reward scales.

python reproduce/distar_table2.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/distar_table2.py --dry-run        # rows, recipes with their sources, claims
python reproduce/distar_table2.py --smoke --out runs/smoke

Training runs are shared with distar_table1.py, distar_table3.py and distar_pareto.py (see distar_rows.py).
"""

from collections.abc import Sequence

from reproduce.harness.command import command
from reproduce.harness.declare import Prompts, Table, World
from reproduce.papers import distar as distar_rows

DI_STAR = ("distar-out", "distar-unguided", "sim", "distar-1", "distar-10", "distar", "distar-long")
TABLE = Table(
    name="distar_table2",
    title="DI* Table 2: guidance strategies and reward scales",
    rows=distar_rows.rows("base", "kl-unguided", "diff-instruct", "dipp", *DI_STAR),
    prompts={"parti": Prompts("Parti prompts", "test-heldout", "parti")},
    steps=(1,),
    metrics=distar_rows.METRICS,
    beside={name: about for name, about in distar_rows.HELD_OUT.items() if name != "fid"},
    models=distar_rows.MODELS,
    teachers=distar_rows.TEACHERS,
    equal_budgets=(),
    pool=distar_rows.POOL,
    note=f"{distar_rows.PRINTED} One of the paper's rows, whose setting is lost from the text at hand, is left out, "
    "and the reward scales of the rows DI++ without guidance, DI++ and DI* with guidance as a reward are inferred.",
)
SMOKE = World(pictures=2, prompts=2, settings=dict.fromkeys(distar_rows.METHODS, distar_rows.SMOKE))


def main(argv: Sequence[str] | None = None) -> None:
    command(TABLE, SMOKE, __doc__, argv)


if __name__ == "__main__":
    main()
