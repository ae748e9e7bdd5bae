"""Say what a table runs at a scale, for the planner; and refuse a card that it does not fit, before anything is loaded.

Trainings have the settings that rows.training_config gives them; pictures are drawn as rows.evaluate_cells draws them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch

from reproduce.data.pair_settings import FullPairConfig, PairConfig
from reproduce.harness.declare import Row, Table
from reproduce.harness.rows import CONFIGS, EVALUATION, row_of, row_seeds, scored_names, trained_here, uses_pairs
from reproduce.harness.targets import named as target_set
from reproduce.harness.variants import vary
from reproduce.planner import report
from reproduce.planner.gpus import Machine
from reproduce.planner.report import GB, Planned, Planner, prompt_count
from reproduce.planner.sampling import Sampling
from reproduce.recipes import make_config, values
from reproduce.training.config import TrainConfig
from reproduce.training.methods import METHODS

NOTHING: Mapping[str, dict] = MappingProxyType({})


def trained_rows(table: Table, scale: str) -> dict[str, TrainConfig]:
    """Return the settings of each row that this table trains, and of those that its rows start from.

    What rows start from may be another table's; where it is missing, it is trained here.
    """
    rows = table.own.starts | {name: row for name, row in table.rows.items() if trained_here(table, row)}
    found = {}
    for name, row in rows.items():
        given = {"model": (row.sampled.models if row.sampled else table.models)[scale]}
        if METHODS[row.method].loop == "distill":
            given |= {"teacher": table.teachers[scale], "start": None}
        found[name] = make_config(CONFIGS[METHODS[row.method].loop], row.method, scale, **given | values(row.settings))
    return found


def planned(table: Table, scale: str, apart: Mapping[str, dict] = NOTHING) -> dict[str, Planned]:
    """Return what a table runs: the pairs of its offline rows, its trainings, and the pictures of all its rows.

    Args:
        table: as it is at the scale (see command.at_scale).
        apart: settings of "pairs" and "targets" that the command line gave.
    """
    found, configs = {}, trained_rows(table, scale)
    kind = FullPairConfig if scale == "full" else PairConfig
    pairs = kind(**{"model": table.teachers.get(scale, "")} | apart.get("pairs", {}))
    metrics = scored_names(table, scale, table.pictures[scale])
    if uses_pairs(table):
        ranked = (pairs.reward,) if scale == "full" else ()
        dtype, guidance, both = getattr(pairs, "dtype", "float32"), sum(pairs.guidance) / 2, 2 * pairs.count
        drawn = Sampling(pairs.model, dtype, pairs.count, both, (pairs.steps,), guidance, ranked, encoded=both)
        found["pairs"] = Planned(f"{pairs.count:,} pairs, drawn, ranked, encoded", pictures=(drawn,), metrics=metrics)
    if table.own.measure:
        every = sum(prompt_count(getattr(prompts, scale)) for prompts in table.prompts.values())
        [drawn] = drawings(table, next(iter(table.rows.values())), scale, None)
        looks = replace(drawn, looks=table.steps[0], stored=False)
        return found | {"all rows": Planned(f"{every} prompts, each step scored", pictures=(looks,))}
    for name, row in (table.own.starts | table.rows).items():
        config, compared = configs.get(name), name in table.rows and not row.elsewhere
        if not compared and config is None:
            continue
        shown = drawings(table, row, scale, config or trained_elsewhere(table, row, scale)) if compared else ()
        learned = None
        if config and config.loop == "offline":
            learned = pairs.count if not table.own.targets else target_count(table, scale, apart)
        seeds = len(row_seeds(table, name))
        found[name] = Planned(row.title, config, shown, seeds, metrics, learned, row.runs or table.name)
    return found


def target_count(table: Table, scale: str, apart: Mapping[str, dict]) -> int:
    """Return how many pictures offline rows learn, where they are no pairs."""
    return target_set(table.own.targets[scale], apart.get("targets", {})).count


def trained_elsewhere(table: Table, row: Row, scale: str) -> TrainConfig | None:
    """Return the settings of a row that another table trains."""
    own = replace(table, name=row.runs or table.name, rows={"row": row}, own=replace(table.own, starts={}))
    return trained_rows(own, scale).get("row") if row.method else None


def drawings(table: Table, row: Row, scale: str, config: TrainConfig | None) -> tuple[Sampling, ...]:
    """Return the pictures that a row is compared by, after one run; on curves those of each snapshot, and its KL."""
    prompts = sum(prompt_count(getattr(some, scale)) for some in table.prompts.values())
    model = row.composed or (row.sampled.models if row.sampled else table.models)
    points = 1
    if table.own.curve and config:
        points = (config.rounds if config.loop == "online" else config.updates) // config.snapshot_every
    drawn = Sampling(
        model[scale],
        str(EVALUATION[scale]).removeprefix("torch."),
        prompts,
        points * prompts * table.pictures[scale],
        (row.sampled.steps,) if row.sampled else table.steps,
        row.sampled.guidance[scale] if row.sampled else None,
        scored_names(table, scale, table.pictures[scale]),
        trained=config.training if config else None,
        stored=scale == "full",
    )
    if not (table.own.curve and config):
        return (drawn,)
    # a trajectory of each prompt, and the reference's predictions along it
    return drawn, replace(drawn, prompts=0, pictures=points * prompts, steps=(2 * config.steps,), scored=(), looks=0)


def machine_here(gpu: str | None) -> tuple[Machine, float] | None:
    """Return the machine that this command runs on, and the GB of a card; None where there is no GPU.

    Args:
        gpu: a card to take in the place of the one that is found.
    """
    count, fsdp = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if gpu:
        machine = Machine(gpu=gpu, count=count, fsdp=fsdp)
        return machine, report.named(gpu).memory
    if not torch.cuda.is_available():
        return None
    return Machine(count=count, fsdp=fsdp), torch.cuda.get_device_properties(0).total_memory / GB


def preflight(table: Table, scale: str, apart: Mapping[str, dict], only: Sequence[str], gpu: str | None) -> None:
    """Compare what these rows take with the card.

    Args:
        gpu: see `machine_here`.

    Raises:
        ValueError: a row does not fit, with its numbers, and with settings that would.
    """
    here = machine_here(gpu)
    if here is None:
        return
    machine, memory = here
    rows, planner = planned(table, scale, apart), Planner(machine, scale)
    planner.gpu = replace(planner.gpu, memory=memory)
    wanted = {name for row in only for name in (row, row_of(table, row).start) if name} | {"all rows"}
    if any(rows[name].pairs for name in wanted & rows.keys()) and uses_pairs(table):
        wanted.add("pairs")
    plans = {name: planner.plan(row) for name, row in rows.items() if name in wanted}
    too_large = [name for name, plan in plans.items() if not plan["fits"]]
    if not too_large:
        return
    name, adapters = too_large[0], None
    if (config := rows[name].training) and config.loop == "distill" and config.training == "full":
        adapters = planned(vary(table, scale, "adapters"), scale, apart)[name]
    plan, more = plans[name], f" (and {len(too_large) - 1} more rows)" * (len(too_large) > 1)
    held = ", ".join(f"{part} {gb:.1f}" for part, gb in plan["fixed_gb"].items() if gb >= 0.05)
    raise ValueError(
        f"row {name}{more} needs {plan['peak_gb']:.1f} GB in its {plan['phase']} (held: {held}), and "
        f"{gpu or 'this card'} has {memory:.0f}, of which {planner.room / GB:.1f} may be used: "
        f"{remedy(planner, rows[name], adapters)}; --anyway goes on"
    )


def remedy(planner: Planner, row: Planned, adapters: Planned | None) -> str:
    """Say with which settings a row would fit.

    Args:
        adapters: the row by the recipe of that name; None: it has none.
    """
    ways, count, fsdp = [], planner.machine.count, planner.machine.fsdp
    if row.training and row.training.training == "full" and not fsdp and planner.drawing(row) <= planner.room:
        peak = max(planner.on(8, fsdp=True).footprint(row).as_run().values())
        if peak <= planner.room:
            ways.append(f"8 such cards with reproduce/launch/fsdp.yaml take {peak / GB:.1f} each")
    for option, some, sharded in (([], row, fsdp), (["--recipe adapters"], adapters, False)):
        if some is None or some.training is None or planner.drawing(some) > planner.room:
            continue
        if fitting := planner.on(count, sharded).fitting(some):
            change, peak = fitting
            new = {name: value for name, value in change.items() if value != getattr(some.training, name)}
            given = [f"--set {some.training.method}.{name}={value}" for name, value in new.items()]
            ways.append(f"{' '.join(option + given)} takes {peak:.1f}")
    if ways:
        return " or ".join(ways)
    if (least := planner.drawing(adapters or row)) > planner.room:
        return f"drawing and scoring alone take {least / GB:.1f}, which no setting spares"
    return "no settings fit: use a larger card"
