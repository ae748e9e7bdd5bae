"""Online PSO: what matters where the paper and the published code disagree. One base recipe, each row one change.

python reproduce/pso_ablations.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/pso_ablations.py --dry-run        # rows, recipes with their sources, claims
python reproduce/pso_ablations.py --smoke --out runs/smoke

The base recipe is the published code's form on the renoise sampler of SDXL-DMD2, shortened. What the paper claims of
online PSO, that it lies above the model that it started from in all four metrics, is asked of each row; how far a row
lies from the base recipe stands beside it, with an interval.

Log-probs that are summed in place of averaged are a change of units, beta_sum = beta_mean / D, as long as there is no
clamp (the notebooks show it); D is 1,024 here and 65,536 for SDXL. So "summed" with the clamp and beta left as they are
is another algorithm, and so is the printed beta = 5 with the printed sum. At this learning rate no ratio reaches the
clamp: "without the clamp" must give the base recipe's numbers, and what the clamp is for shows at ten times the rate.

The two weights of Eq. 5 belong to the mixed objective, which has targets in place of winners: pso_style.py has both.
"""

from collections.abc import Sequence

from reproduce import pso_table2
from reproduce.harness.command import command
from reproduce.harness.declare import Row, Table, World

# As published for SDXL-DMD2; in the full recipe beta is the paper's.
CODE = {"reduction": "mean", "sum_steps": "outside", "beta": 50.0, "clamp": 0.1, "shared_start": False, "steps": 4}
SHORT = {"rounds": 20, "pairs": 32, "minibatch": 32, "lr": 2e-5}
FULL = {"rounds": 1000, "pairs": 128, "minibatch": 32, "lr": 1e-5}
TUNING = "none: twice the lr and a third of the rounds of Table 2, the same in all rows"
# row -> (title, what differs from the base recipe)
VARIANTS = {
    "code": ("published code", {}),
    "paper": ("as printed", {"reduction": "sum", "sum_steps": "inside", "beta": 5.0, "clamp": None}),
    "inside": ("sum over steps inside the sigmoid", {"sum_steps": "inside"}),
    "summed": ("log-probs summed over dimensions", {"reduction": "sum"}),
    "beta-5": ("beta 5", {"beta": 5.0}),
    "beta-500": ("beta 500", {"beta": 500.0}),
    "shared": ("shared x_T", {"shared_start": True}),
    "steps-8": ("trained at 8 sampling steps", {"steps": 8}),
    "no-clamp": ("without the clamp", {"clamp": None}),
    "fast": ("10 x lr", {}),
    "fast-no-clamp": ("10 x lr, without the clamp", {"clamp": None}),
}


def row(name: str, title: str, own: dict) -> Row:
    rate = 10 if name.startswith("fast") else 1
    short, full = ({**some, "lr": some["lr"] * rate} for some in (SHORT, FULL))
    return Row(title, "pso-online", CODE | own | short, full, tuning=TUNING)


TABLE = Table(
    name="pso_ablations",
    title="PSO: choices on which the paper and its code disagree",
    rows={"base": Row("base")} | {name: row(name, *about) for name, about in VARIANTS.items()},
    prompts={"parti": pso_table2.TABLE.prompts["parti"]},
    steps=(4,),
    metrics=pso_table2.TABLE.metrics,
    beside=pso_table2.TABLE.beside,
    models={"pocket": "pocket-renoise", "full": "sdxl-dmd2"},
    teachers={},
    pictures={"pocket": 2, "full": 1},
    against="code",
    watched={
        "drift": ("mean &#124;log-ratio&#124;", 4),
        "clamped": ("share clamped", 3),
        "accuracy": ("pairs ranked right", 3),
        "loss": ("loss", 4),
    },
    note="Online PSO on PickScore, a short run of each form: the published code's is the base recipe, each row changes "
    "one thing, *as printed* all of them. The mean log-ratio is in the row's own units: a mean over latent dimensions "
    "or, for *summed* and *as printed*, their sum. The paper has no such table: what it claims of online PSO is "
    "asked of each row. The two weights of Eq. 5 belong to the mixed objective: see [its page](pso_style.md).",
)
SMOKE = World(pictures=2, prompts=2, settings={"pso-online": {"rounds": 1, "pairs": 2, "minibatch": 2}})


def main(argv: Sequence[str] | None = None) -> None:
    command(TABLE, SMOKE, __doc__, argv)


if __name__ == "__main__":
    main()
