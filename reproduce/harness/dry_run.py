"""Print what a table would do: rows, recipes with their sources, data, claims, and at full scale what it takes."""

from collections.abc import Mapping
from typing import Any

from fsalign_lib.models.hub import REVISIONS
from fsalign_lib.models.presets import PRESETS, split
from reproduce.data.pair_settings import SOURCES, FullPairConfig, PairConfig
from reproduce.data.prompt_sets import SETS
from reproduce.harness import targets
from reproduce.harness.claims import claims_of
from reproduce.harness.declare import GIVEN, Row, Table
from reproduce.harness.planned import NOTHING, planned
from reproduce.harness.rows import row_of, uses_pairs
from reproduce.planner.gpus import Machine
from reproduce.planner.report import Planner, divisor, text
from reproduce.recipes import describe, recipe
from reproduce.training.methods import METHODS


def run(table: Table, scale: str, apart: Mapping[str, dict] = NOTHING) -> None:
    """Print a table, as it is at this scale (see command.at_scale).

    Args:
        apart: settings of "pairs" and "targets" that the command line gave.
    """
    print(description(table, scale, apart))
    if scale == "full":
        rows = planned(table, scale, apart)
        machine = Machine(count=divisor(rows), fsdp=True)
        planner = Planner(machine)
        print("\n" + text(machine, table.title, {name: planner.plan(row) for name, row in rows.items()}))


def description(table: Table, scale: str, apart: Mapping[str, dict] = NOTHING) -> str:
    """Return rows, recipes with their sources, and claims, as lines."""
    parts = [f"{table.title}, scale {scale}", f"training seeds {', '.join(map(str, table.seeds))}"]
    sets = (f"{getattr(prompts, scale)} for {prompts.title}" for prompts in table.prompts.values())
    parts.append("prompts: " + "; ".join(sets))
    for name, row in (table.own.starts | table.rows).items():
        parts.append(f"\nrow {name}: {row.title}" + what(row, scale))
        if row.method:
            own = own_settings(table, row, scale) | {"seed": seeds(table, row, scale)}
            parts.append(describe(row.method, scale, own))
    if table.own.targets:
        name, given = table.own.targets[scale], apart.get("targets", {})
        parts += [f"\ntargets {name}", *sourced(targets.named(name, given), targets.SOURCES, given)]
    elif uses_pairs(table):
        kind, given = PairConfig if scale == "pocket" else FullPairConfig, apart.get("pairs", {})
        pairs = kind(**{"model": table.teachers[scale]} | given)
        parts += ["\npairs for offline methods", *sourced(pairs, SOURCES[scale], given)]
    if scale == "full":
        parts += ["\nweights, at pinned commits", *weights(table), "\ndata", *data_sets(table)]
    parts.append("\nclaims")
    for claim in claims_of(table):
        parts.append(f"  {claim.id}" + (f"  ({claim.printed[0]:g} > {claim.printed[1]:g})" if claim.printed else ""))
    return "\n".join(parts)


def sourced(settings: Any, sources: dict[str, str], given: dict[str, Any]) -> list[str]:
    """Return the settings that have sources, as lines "setting = value  # source".

    Args:
        given: by the command line.
    """
    sources = sources | dict.fromkeys(given, GIVEN)
    return [f"  {name} = {getattr(settings, name)!r}  # {source}" for name, source in sources.items()]


def what(row: Row, scale: str) -> str:
    """Say in a few words which model a row is."""
    if row.elsewhere:
        return ", not part of this project: the paper's number alone"
    how = f" ({row.method})" if row.method else ", the model as it is"
    if row.composed:
        how = f", the LoRA of {row.composed[scale]} on what row {row.start} trained"
    if s := row.sampled:
        how += f", {s.models[scale]}: {s.kernel}, {s.steps} steps, eta {s.eta:g}, guidance {s.guidance[scale]:g}"
    return how


def own_settings(table: Table, row: Row, scale: str) -> dict[str, tuple[Any, str]]:
    """Return the settings of the table and of the row, which stand in the place of the recipe's, with their sources."""
    paper = table.title.partition(":")[0]  # such as "PSO Table 1"
    source = paper if scale == "full" else f"own choice: stands for that of {paper}"
    own = {"model": ((row.sampled.models if row.sampled else table.models)[scale], source)}
    if METHODS[row.method].loop == "distill":
        trained = row.start and row_of(table, row.start).method
        start = f"the run of row {row.start}" if trained else None
        own |= {"teacher": (table.teachers[scale], source)}
        own |= {"start": (start, f"{paper}: the pre-trained generator" if trained else "the model itself")}
    return own | row.settings


def seeds(table: Table, row: Row, scale: str) -> tuple[tuple[int, ...], str]:
    """Return the training seeds of a row, with their source and the recipe's seed where that has one of a paper."""
    seed, source = recipe(row.method, scale)["seed"]
    printed = "" if source.startswith("own choice") else f"; {source}: {seed}"
    return row.seeds or table.seeds, f"own choice: the training seeds of the table{printed}"


def weights(table: Table) -> list[str]:
    """Name the models that the rows start from and are taught by, with their commits, as lines."""
    lines = []
    others = [row.sampled.models["full"] for row in table.rows.values() if row.sampled]
    others += [row.composed["full"] for row in table.rows.values() if row.composed]
    for name in dict.fromkeys([table.models["full"], table.teachers.get("full", table.models["full"]), *others]):
        preset = PRESETS[name]
        for source in (preset.pipeline, preset.network, preset.lora, preset.vae):
            if isinstance(source, str):
                lines.append(f"  {name}: {source} at {REVISIONS[split(source)[0]]}")
    return lines


def data_sets(table: Table) -> list[str]:
    """Name the prompts that the rows are trained and compared on at full scale, as lines."""
    trained = [recipe(row.method, "full") for row in table.rows.values() if row.method]
    names = [prompts.full for prompts in table.prompts.values()] + [r["prompts"][0] for r in trained if "prompts" in r]
    lines, names = [], names + ([table.own.targets["full"]] if table.own.targets else [])
    for name in dict.fromkeys(names):
        known = SETS[name]
        place = f", expected at {' or '.join(known.files)} in FSALIGN_DATA" if known.files else ""
        lines.append(f"  {name}: {known.what}, from {known.source}{place}")
    return lines
