"""The command line that all table scripts share.

python reproduce/<table>.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/<table>.py --dry-run        # rows, recipes with their sources, claims
python reproduce/<table>.py --smoke --out runs/smoke

Two processes side by side, each on a thread of its own; the one that ends last makes the table:

python reproduce/<table>.py --threads 1 --only ROW &
python reproduce/<table>.py --threads 1 --only OTHER ROWS
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from fsalign_lib.models.hub import REVISIONS
from fsalign_lib.models.presets import PRESETS, split
from fsalign_lib.plotting import save
from reproduce.common.cli import command_line, positive
from reproduce.common.files import writable_folder, write_json, write_text
from reproduce.common.provenance import ROOT, Clock
from reproduce.common.shards import processes
from reproduce.data import targets
from reproduce.data.prompt_sets import SETS
from reproduce.data.sampled_pairs import FullPairConfig, PairConfig
from reproduce.harness import readmes
from reproduce.harness import rows as table_runs
from reproduce.harness import settings as table_settings
from reproduce.harness import snapshots as curve_runs
from reproduce.harness.claims import claims_of, gather
from reproduce.harness.declare import Row, Table, World
from reproduce.harness.figures import draw
from reproduce.harness.page import page, total
from reproduce.recipes import describe, recipe
from reproduce.training.methods import METHODS

SHOWN = 6  # missing runs named
RESULTS = ROOT / "reproduce" / "results"


@dataclass(kw_only=True)
class TableConfig:
    """Train, evaluate, and write results/<table>.json and .md."""

    scale: Literal["pocket", "full"] = "pocket"
    only: tuple[str, ...] = ()
    """Rows to run in this call; none named: all."""
    seeds: tuple[int, ...] = ()
    """Training seeds to run in this call; none named: all."""
    work: Path | None = None
    """Training runs and evaluations, a file each when finished; by default reproduce/runs/<table>, or, with
    --smoke or tiny models, runs/<table> in --out."""
    out: Path = RESULTS
    """Where the result and its page go."""
    threads: int | None = None
    """CPU threads of torch. Several processes side by side must share the cores."""
    smoke: bool = False
    """The whole way with next to no prompts, pairs and updates; needs its own --out."""
    models: Literal["published", "tiny"] = "published"
    """At full scale: the published weights, or small random twins in the same formats, which shows that it all runs."""
    dry_run: bool = False
    """Print rows, recipes and claims, at full scale also what it takes on 8 H100 (see plan.py), and stop."""
    table_only: bool = False
    """Run nothing: write the table from the runs there are, or else the page from the result there is."""


@dataclass
class Ready:
    """A table's call, checked."""

    table: Table
    config: TableConfig
    work: table_settings.Work | None  # None: nothing is to be run


def check(table: Table, config: TableConfig) -> None:
    """What can be wrong with the call."""
    unknown = [row for row in config.only if row not in table.rows]
    if unknown:
        raise ValueError(f"unknown row {unknown[0]!r}: choose from {', '.join(table.rows)}")
    if not set(config.seeds) <= set(table.seeds):
        raise ValueError(f"seeds {list(config.seeds)}: the table has the training seeds {list(table.seeds)}")
    config.only, config.seeds = config.only or tuple(table.rows), config.seeds or table.seeds
    if config.dry_run:
        return
    if config.models == "tiny" and config.scale != "full":
        raise ValueError("--models tiny stands in for the published weights: add --scale full")
    if config.threads is not None:
        positive(config, "threads")
    cut = "--smoke" if config.smoke else "--models tiny" if config.models == "tiny" else None
    if cut:
        if config.out.resolve() == RESULTS:
            raise ValueError(f"{cut} must not write over {config.out}: name another folder with --out")
    runs = (config.out if cut else ROOT / "reproduce") / "runs"
    config.work = config.work or runs / file_name(table.reads or table.pool or table.name, config)
    if table.reads:
        config.work = config.work / "curves"
    if table.pool:
        config.work = config.work / table.name
    writable_folder(config.out)


def file_name(name: str, config: TableConfig) -> str:
    return name + ("-full" if config.scale == "full" else "")


def prepare(table: Table, config: TableConfig, world: World) -> Ready:
    """Check the call and load what it needs."""
    check(table, config)
    if config.dry_run or config.table_only:
        return Ready(table, config, None)
    work = table_runs.prepare(table, world, config.work, config.threads)
    if table.curve:
        curve_runs.check(work)
    return Ready(table, config, work)


def run(ready: Ready) -> None:
    table, config, work = ready.table, ready.config, ready.work
    if config.dry_run:
        print(description(table, config.scale))
        if config.scale == "full" and not table.reads and any(row.method for row in table.rows.values()):
            from reproduce import plan  # which reads the tables

            print()
            plan.run(plan.prepare(plan.PlanConfig(table=table.name, count=plan.divisor(table))))
        return
    clock, path = Clock(), config.out / f"{file_name(table.name, config)}.json"
    if work:
        for row in config.only:
            for seed in table_settings.row_seeds(table, row):
                if seed in (None, *config.seeds) or table.rows[row].seeds:
                    (curve_runs if table.curve else table_runs).do_run(work, row, seed)
    done = {
        (row, seed): table_settings.run_path(config.work, row, seed).exists()
        for row in table.rows
        for seed in table_settings.row_seeds(table, row)
    }
    missing = [row if seed is None else f"{row} seed {seed}" for (row, seed), there in done.items() if not there]
    if not processes().is_main_process:
        return
    if missing and not config.table_only:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        print(f"to do before there is a table: {', '.join(missing[:SHOWN])}{more}")
        return
    if any(done.values()):
        cut = config.smoke or config.models == "tiny"
        write_json(path, gather(table, config.work, clock, config.scale, cut))
    result = json.loads(path.read_text()) if path.exists() else None
    if result and table.figures:
        for name, sheet in table.figures(result).items():
            save(draw(sheet), path.with_name(f"{path.stem}-{name}.png"))
    write_text(path.with_suffix(".md"), page(table, result))
    if path.parent.resolve() == RESULTS and config.scale == "pocket":
        readmes.update(table, result)
    print(f"{path.with_suffix('.md')}: {total(table, result)}")


def description(table: Table, scale: str) -> str:
    """Rows, recipes with their sources, and claims."""
    table = table.at(scale)
    parts = [f"{table.title}, scale {scale}", f"training seeds {', '.join(map(str, table.seeds))}"]
    sets = (f"{getattr(prompts, scale)} for {prompts.title}" for prompts in table.prompts.values())
    parts.append("prompts: " + "; ".join(sets))
    for name, row in table.rows.items():
        parts.append(f"\nrow {name}: {row.title}" + what(row, scale))
        if row.method:
            own = own_settings(table, row, scale) | {"seed": row.seeds or table.seeds}
            parts.append(describe(row.method, scale, own))
    if table.targets:
        parts.append(f"\ntargets {table.targets[scale]}: {targets.SETS[table.targets[scale]]}")
    elif any(row.method and METHODS[row.method].loop == "offline" for row in table.rows.values()):
        parts.append(f"\npairs for offline methods: {PairConfig() if scale == 'pocket' else FullPairConfig()}")
    if scale == "full":
        parts += ["\nweights, at pinned commits", *weights(table), "\ndata", *data_sets(table)]
    parts.append("\nclaims")
    for claim in claims_of(table):
        parts.append(f"  {claim.id}" + (f"  ({claim.printed[0]:g} > {claim.printed[1]:g})" if claim.printed else ""))
    return "\n".join(parts)


def what(row: Row, scale: str) -> str:
    """Which model a row is, in a few words."""
    if row.elsewhere:
        return ", not part of this project: the paper's number alone"
    how = f" ({row.method})" if row.method else ", the model as it is"
    if row.composed:
        how = f", the LoRA of {row.composed[scale]} on what row {row.start} trained"
    if s := row.sampled:
        how += f", {s.models[scale]}: {s.kernel}, {s.steps} steps, eta {s.eta:g}, guidance {s.guidance[scale]:g}"
    return how


def own_settings(table: Table, row: Row, scale: str) -> dict:
    """Those of the table and of the row, in the place of the recipe's."""
    own = row.own(scale)
    own = {"model": (row.sampled.models if row.sampled else table.models)[scale]} | own
    if METHODS[row.method].loop != "distill":
        return own
    trained = row.start and table.rows[row.start].method
    start = f"the run of row {row.start}" if trained else None
    return {"teacher": table.teachers[scale], "start": start} | own


def weights(table: Table) -> list[str]:
    """Of the models that the rows start from and are taught by, as lines."""
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
    """The prompts that the rows are trained and compared on at full scale, as lines."""
    trained = [recipe(row.method, "full") for row in table.rows.values() if row.method]
    names = [prompts.full for prompts in table.prompts.values()] + [r["prompts"][0] for r in trained if "prompts" in r]
    lines, names = [], names + ([table.targets["full"]] if table.targets else [])
    for name in dict.fromkeys(names):
        known = SETS[name]
        place = f", expected at {' or '.join(known.files)} in FSALIGN_DATA" if known.files else ""
        lines.append(f"  {name}: {known.what}, from {known.source}{place}")
    return lines


def parse(argv: Sequence[str] | None, doc: str | None) -> TableConfig:
    return tyro.cli(TableConfig, description=doc, args=argv)


def choose_world(config: TableConfig, smoke: World) -> World:
    if config.models == "tiny":
        return replace(smoke, scale="full", twins=True, training_prompts="animals")
    return replace(smoke if config.smoke else World(), scale=config.scale)


def command(table: Table, smoke: World, doc: str | None, argv: Sequence[str] | None = None) -> None:
    """The command line of a table's script."""
    command_line(
        lambda args: parse(args, doc),
        lambda config: prepare(table.at(config.scale), config, choose_world(config, smoke)),
        run,
        argv,
    )
