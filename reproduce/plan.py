"""Tell what the rows of a table take on GPUs as they run, before one is rented: memory, FLOPs, GPU hours.

python reproduce/plan.py pso_table2                                # the papers' scale, on 8 H100
python reproduce/plan.py pso_table2 --gpu RTX4090 --count 1 --row online --set online.micro_batch=1
python reproduce/plan.py distar_table2 --fsdp --json
python reproduce/plan.py --ledger                                  # GPU hours of every table

Needs no GPU and no weights. The plan has the settings that the table's script runs with, and chooses none; --set takes
the same settings as there. A GB is 2^30 bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from reproduce.common.cli import command_line
from reproduce.common.files import plain
from reproduce.harness.command import at_scale
from reproduce.harness.declare import Table
from reproduce.planner.gpus import MEASURED, Machine, named

# isort: split
from reproduce import dipp_table1, distar_pareto, distar_table1, distar_table2, distar_table3  # isort: skip
from reproduce import pso_ablations, pso_style, pso_table1, pso_table2, pso_table3, pso_table4  # isort: skip
from reproduce import sdpo_ablations, sdpo_curves, sdpo_instability, sdpo_lcm, sdpo_table1, sdpo_table3  # isort: skip

if TYPE_CHECKING:
    from reproduce.planner.report import Planned, Planner

MODULES = (
    *(pso_table1, pso_table2, pso_table3, pso_table4, pso_style, pso_ablations),
    *(sdpo_table1, sdpo_table3, sdpo_curves, sdpo_ablations, sdpo_instability, sdpo_lcm),
    *(dipp_table1, distar_table1, distar_table2, distar_table3, distar_pareto),
)
TABLES: dict[str, Table] = {module.TABLE.name: module.TABLE for module in MODULES}
# H100 hours by this script as it was before it read the settings that run, when tables had three training seeds: of
# training alone, in float32 without TF32 where no precision was named, and with rows that fitted no card.
BEFORE = {"sdpo": 6_700, "distar": 21_000}
PARTS = ("training", "pictures", "prompts", "pairs encoded")


@dataclass(kw_only=True)
class PlanConfig(Machine):
    """Plan the rows of a table, or the hours of all tables."""

    table: Annotated[str | None, tyro.conf.Positional] = None
    """Its script's name, such as pso_table2."""
    ledger: bool = False
    """Print the GPU hours of every table; trainings that tables share are counted where the first needs them."""
    row: tuple[str, ...] = ()
    """Rows of the table; none: all."""
    scale: Literal["pocket", "full"] = "full"
    recipe: str | None = None
    """A declared recipe that is not the papers', such as adapters (see harness/variants.py)."""
    given: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = ()
    """A setting in the place of the rows' own (see harness/overrides.py)."""
    json: bool = False


@dataclass
class Plan:
    """Hold a plan to be made: what was asked for, and what the rows of each table run."""

    config: PlanConfig
    rows: "dict[str, dict[str, Planned]]"


def prepare(config: PlanConfig) -> Plan:
    """Raise a ValueError for what is wrong with the call."""
    from reproduce.harness.overrides import override
    from reproduce.harness.planned import planned
    from reproduce.harness.variants import vary
    from reproduce.planner import report

    if (config.table is None) != config.ledger or config.table not in (None, *TABLES):
        raise ValueError(f"unknown table {config.table!r}: choose from {', '.join(TABLES)}, or give --ledger")
    named(config.gpu)
    if config.ledger:
        report.check(config, {})
        return Plan(config, {name: planned(at_scale(table, "full"), "full") for name, table in TABLES.items()})
    table = at_scale(TABLES[config.table], config.scale)
    if config.recipe:
        table = vary(table, config.scale, config.recipe)
    table, apart = override(table, config.scale, config.given)
    rows = planned(table, config.scale, apart)
    for name in config.row:
        if name not in rows:
            raise ValueError(f"row {name!r} of {table.name} is unknown: choose from {', '.join(rows)}")
    rows = {name: rows[name] for name in config.row or rows}
    report.check(config, rows)
    return Plan(config, {table.name: rows})


def run(plan: Plan) -> None:
    """Print the plan."""
    from reproduce.planner import report

    c, planner = plan.config, report.Planner(plan.config, plan.config.scale)
    if c.ledger:
        return ledger(report.Planner(replace(c, fsdp=True)), plan.rows)
    [(name, rows)] = plan.rows.items()
    plans = {row: planner.plan(about) for row, about in rows.items()}
    if c.json:
        print(json.dumps({"plan": plain(c), "gpu": asdict(named(c.gpu)), "rows": plans}, indent=1))
    else:
        print(report.text(c, f"{TABLES[name].title}, scale {c.scale}", plans))


def ledger(planner: "Planner", tables: "dict[str, dict[str, Planned]]") -> None:
    """Print GPU hours by table and by what they are spent on, each as soon as it is known."""
    machine, papers, done = planner.machine, dict.fromkeys(BEFORE, 0.0), set()
    sums = dict.fromkeys((*PARTS, "all"), 0.0)
    share = f"{machine.utilisation:g} of its peak ({MEASURED})"
    how = f"{machine.count} of them, FSDP for all weights"
    print(f"GPU hours, {machine.gpu} at {share}, all training seeds; {how}")
    print(f"{'table':<18}{'trainings':>10}" + "".join(f"{part:>15}" for part in sums) + "  too large")
    trainings = 0
    for name, rows in tables.items():
        spent, large, runs = dict.fromkeys(sums, 0.0), [], 0
        for row, about in rows.items():
            if (about.folder, row) in done:  # for an earlier table; the pictures are each table's own
                about = replace(about, training=None, pictures=() if row == "pairs" else about.pictures)
            done.add((about.folder, row))
            if not about.training and not about.pictures:
                continue
            plan = planner.plan(about)
            large += [] if plan["fits"] else [row]
            runs += about.runs if about.training else 0
            for part, hours in plan["hours"].items():
                spent[part] += hours
        spent["all"] = sum(spent.values())
        sums = {part: sums[part] + hours for part, hours in spent.items()}
        trainings += runs
        if (paper := name.partition("_")[0]) in papers:
            papers[paper] += spent["all"]
        print(ledger_line(name, runs, spent) + f"  {', '.join(large) or '-'}", flush=True)
    print(ledger_line("all", trainings, sums))
    hours = sums["all"] / machine.count
    print(f"on {machine.count} at once: {hours:,.0f} hours, {hours / 24:,.0f} days")
    for paper, before in BEFORE.items():
        print(f"{paper}'s tables: {before:,} before (three seeds, training alone), {papers[paper]:,.0f} now")


def ledger_line(name: str, trainings: int, hours: dict[str, float]) -> str:
    """Return a line of the ledger."""
    return f"{name:<18}{trainings:>10}" + "".join(f"{value:>15,.1f}" for value in hours.values())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command_line(lambda args: tyro.cli(PlanConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
