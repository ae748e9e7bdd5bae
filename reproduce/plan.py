"""Tell what the rows of a table take on GPUs, before one is rented: parameters trained, memory, FLOPs, hours.

python reproduce/plan.py pso_table2                                # the papers' scale, on 8 H100
python reproduce/plan.py pso_table2 --gpu RTX4090 --count 1 --row online
python reproduce/plan.py pso_table2 --training full --optimizer adamw8bit --json
python reproduce/plan.py distar_table2 --row distar --model sdxl --training lora --gpu RTX4090 --count 1

Needs no GPU and no weights. Each line gives the largest micro-batch (with the pairs sampled at a time) that fits a
card, the peak of memory there, and the hours of one run. The settings have the names that train_online.py,
train_offline.py and train_distill.py give them. A GB is 2^30 bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fsalign_lib.models.presets import PRESETS
from reproduce.common.cli import command_line
from reproduce.common.files import plain
from reproduce.harness.command import at_scale
from reproduce.harness.declare import Table
from reproduce.planner.gpus import Machine, named

# isort: split
from reproduce import dipp_table1, distar_pareto, distar_table1, distar_table2, distar_table3  # isort: skip
from reproduce import pso_ablations, pso_style, pso_table1, pso_table2, pso_table3, pso_table4  # isort: skip
from reproduce import sdpo_ablations, sdpo_curves, sdpo_instability, sdpo_lcm, sdpo_table1, sdpo_table3  # isort: skip

if TYPE_CHECKING:
    from reproduce.training.config import TrainConfig

MODULES = (
    *(dipp_table1, distar_pareto, distar_table1, distar_table2, distar_table3),
    *(pso_ablations, pso_style, pso_table1, pso_table2, pso_table3, pso_table4),
    *(sdpo_ablations, sdpo_curves, sdpo_instability, sdpo_lcm, sdpo_table1, sdpo_table3),
)
TABLES: dict[str, Table] = {module.TABLE.name: module.TABLE for module in MODULES}


@dataclass(kw_only=True)
class PlanConfig(Machine):
    """Plan the rows of a table."""

    table: Annotated[str, tyro.conf.Positional]
    """Its script's name, such as pso_table2."""
    row: tuple[str, ...] = ()
    """Rows of the table; none: all."""
    scale: Literal["pocket", "full"] = "full"
    model: str | None = None
    """Where the rows start; None: where the table says. In distillation the teacher itself: with adapters, student,
    assistant and teacher then share one frozen network."""
    training: Literal["lora", "full"] | None = None
    """None: the recipe's."""
    optimizer: Literal["adamw", "adamw8bit"] | None = None
    """None: the recipe's."""
    vae_slicing: bool = False
    """Encode and decode a picture at a time, also where the recipe does not."""
    json: bool = False


@dataclass
class Plan:
    """Hold a plan to be made: the settings asked for, the table, and its rows' training settings, all checked."""

    config: PlanConfig
    table: Table
    rows: "dict[str, TrainConfig]"


def prepare(config: PlanConfig) -> Plan:
    """Raise a ValueError for what is wrong with the call."""
    from reproduce.harness.dry_run import trained_rows
    from reproduce.planner import report

    if config.table not in TABLES:
        raise ValueError(f"unknown table {config.table!r}: choose from {', '.join(TABLES)}")
    if config.model and config.model not in PRESETS:
        raise ValueError(f"unknown model {config.model!r}: choose from {', '.join(PRESETS)}")
    table = at_scale(TABLES[config.table], config.scale)
    rows = trained_rows(table, config.scale)
    if not rows:
        raise ValueError(f"{table.name} trains nothing, so there is nothing to plan")
    for name in config.row:
        if name not in rows:
            why = "is the model as it is, and takes no training" if name in table.rows else "is unknown"
            raise ValueError(f"row {name!r} of {table.name} {why}: choose from {', '.join(rows)}")
    rows = {name: asked(config, rows[name]) for name in config.row or rows}
    report.check(config, rows)
    return Plan(config, table, rows)


def asked(config: PlanConfig, row: "TrainConfig") -> "TrainConfig":
    """Return a row's settings, but for what is asked otherwise and what the GPU lacks."""
    values = {name: getattr(config, name) for name in ("model", "optimizer", "vae_slicing")}
    row = replace(row, **{name: value for name, value in values.items() if value})
    if config.training and config.training != row.training:
        half, lora = config.scale == "full", config.training == "lora"
        dtype, mixed = ("bfloat16" if lora and half else "float32"), ("bf16" if half and not lora else "no")
        row = replace(row, training=config.training, dtype=dtype, mixed_precision=mixed)
    if not named(config.gpu).bf16 and "b" in (row.dtype[0], row.mixed_precision[0]):
        dtype = "float16" if row.dtype == "bfloat16" else row.dtype
        row = replace(row, dtype=dtype, mixed_precision="fp16")
    return row


def run(plan: Plan) -> None:
    """Print the plan."""
    from reproduce.planner import report

    c, table, rows = plan.config, plan.table, report.plan_rows(plan.config, plan.rows)
    if c.json:
        about = {"plan": plain(c), "gpu": asdict(named(c.gpu)), "seeds": len(table.seeds), "rows": rows}
        print(json.dumps(about, indent=1))
        return
    titles = {name: row.title for name, row in (table.own.starts | table.rows).items()}
    print(report.text(c, f"{table.title}, scale {c.scale}", rows, titles, len(table.seeds)))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command_line(lambda args: tyro.cli(PlanConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
