"""Run a table's script: read its command line, run its rows, write its result, figures and page.

python reproduce/<table>.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/<table>.py --dry-run        # rows, recipes with their sources, claims
python reproduce/<table>.py --smoke --out runs/smoke

Two processes side by side, each on a thread of its own; the one that ends last makes the table:

python reproduce/<table>.py --threads 1 --only ROW &
python reproduce/<table>.py --threads 1 --only OTHER ROWS

What runs a row is imported when something is run, so that --help answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fsalign_lib.json_files import check_objects, read_json
from reproduce.common.cli import failures, interruptions, leave, positive, processes, quiet, refusals, set_up_machine
from reproduce.common.files import writable_folder, write_json, write_text
from reproduce.harness.declare import GIVEN, MOST_SEEDS, SMOKE, Row, Table, World

if TYPE_CHECKING:
    from reproduce.common.provenance import Clock
    from reproduce.harness.rows import Work

SHOWN = 6  # missing runs named
REPRODUCE = Path(__file__).resolve().parents[1]
RESULTS = REPRODUCE / "results"


@dataclass(kw_only=True)
class TableConfig:
    """Train, evaluate, and write results/<table>.json and .md."""

    scale: Literal["pocket", "full"] = "pocket"
    only: tuple[str, ...] = ()
    """Rows to run in this call; none named: all."""
    seeds: tuple[int, ...] = ()
    """Training seeds to run in this call; none named: all. One that the table does not have is added to it."""
    work: Path | None = None
    """Training runs and evaluations, a file each when finished; what tables share lies beside it. By default
    reproduce/runs/<table>, or, with --smoke or tiny models, runs/<table> in --out."""
    out: Path = RESULTS
    """Where the result and its page go."""
    threads: int | None = None
    """CPU threads of torch. Several processes side by side must share the cores."""
    smoke: bool = False
    """The whole way with next to no prompts, pairs and updates; needs its own --out."""
    models: Literal["published", "tiny"] = "published"
    """At full scale: the published weights, or small random twins in the same formats, which shows that it all runs."""
    recipe: str | None = None
    """At full scale: a declared recipe that is not the paper's. adapters: DI++ and DI* with student and assistant as
    adapters on the teacher's one network, for want of memory (see harness/variants.py). It needs its own --out."""
    given: Annotated[tuple[str, ...], tyro.conf.arg(name="set"), tyro.conf.UseAppendAction] = ()
    """A setting in the place of the rows' own, such as online.micro_batch=4, dtype=float32 or targets.subject=cat; may
    be given several times (see harness/overrides.py). One that changes numbers needs its own --out."""
    gpu: str | None = None
    """At full scale: the card that the plan is held against before anything is loaded, such as RTX4090 (see
    planner/gpus.py); None: the one that is here, if there is one."""
    anyway: bool = False
    """Go on where the plan says that a row does not fit the card."""
    dry_run: bool = False
    """Print rows, recipes and claims, at full scale also what it takes on 8 H100 (see plan.py), and stop."""
    table_only: bool = False
    """Run nothing: write the table from the runs there are, or else the page from the result there is."""
    apart: Annotated[dict[str, dict[str, Any]], tyro.conf.Suppress] = field(default_factory=dict)


def command(table: Table, doc: str | None, argv: Sequence[str] | None = None) -> None:
    """Do what the command line of a table's script asks; wrong input ends it with one line, before any compute."""
    with refusals():
        config = tyro.cli(TableConfig, description=doc, args=argv)
        table = at_scale(table, config.scale)
        if config.recipe:
            from reproduce.harness.variants import vary

            table = vary(table, config.scale, config.recipe)
        if config.given:
            from reproduce.harness.overrides import override

            table, config.apart = override(table, config.scale, config.given)
        check(table, config)
        if config.dry_run:
            from reproduce.harness import dry_run

            return dry_run.run(table, config.scale, config.apart)
        quiet()
        set_up_machine()
        table = with_more_seeds(table, config)
        with interruptions(lambda: kept(config), argv):
            if config.scale == "full" and config.models == "published" and not (config.anyway or config.table_only):
                from reproduce.harness import planned

                planned.preflight(table, config.scale, config.apart, config.only, config.gpu)
            work = None if config.table_only else prepare(table, config)
    with failures(), interruptions(lambda: kept(config), argv):
        run(table, config, work)
    leave()


def kept(config: TableConfig) -> tuple[str, str]:
    """Return what an interrupted table leaves: the same command goes on from there."""
    return f"finished rows, and the last checkpoint of the one in training, are kept in {config.work}", ""


def with_rows(table: Table, change: Callable[[str, Row | dict[str, Row]], Row | None]) -> Table:
    """Return the table with each of its rows, and of those that they start from, changed.

    Args:
        change: (name, row as it is declared) -> the row in its place; None: there is none.
    """

    def changed(rows: dict[str, Row | dict[str, Row]]) -> dict[str, Row]:
        found = {name: change(name, row) for name, row in rows.items()}
        return {name: row for name, row in found.items() if row is not None}

    return replace(table, rows=changed(table.rows), own=replace(table.own, starts=changed(table.own.starts)))


def at_scale(table: Table, scale: str) -> Table:
    """Return the table with the rows, and the settings of rows, that it has at this scale."""

    def there(_: str, row: Row | dict[str, Row]) -> Row | None:
        row = row if isinstance(row, Row) else row.get(scale)
        if row is None:
            return None
        sampled = row.sampled
        if sampled and isinstance(sampled.steps, dict):
            sampled = replace(sampled, steps=sampled.steps[scale])
        return replace(row, settings=row.settings | getattr(row, scale), pocket={}, full={}, sampled=sampled)

    return with_rows(table, there)


def check(table: Table, config: TableConfig) -> None:
    """Fill in what the call leaves open.

    Raises:
        ValueError: rows, seeds or folders that do not go with the table or with each other.
        PermissionError: --out cannot be written to.
    """
    unknown = [row for row in config.only if row not in table.rows]
    if unknown:
        raise ValueError(f"unknown row {unknown[0]!r}: choose from {', '.join(table.rows)}")
    if not set(config.seeds) <= {*table.seeds, *range(MOST_SEEDS)}:
        raise ValueError(
            f"seeds {list(config.seeds)}: the table has the training seeds {list(table.seeds)}, and more up to "
            f"{MOST_SEEDS - 1} where its page says that they are due"
        )
    config.only, config.seeds = config.only or tuple(table.rows), config.seeds or table.seeds
    if config.dry_run:
        return
    if config.models == "tiny" and config.scale != "full":
        raise ValueError("--models tiny stands in for the published weights: add --scale full")
    if config.threads is not None:
        positive(config, "threads")
    cut = "--smoke" if config.smoke else "--models tiny" if config.models == "tiny" else None
    if config.given and not cut:
        from reproduce.harness.overrides import changes_numbers, given_settings

        cut = GIVEN if changes_numbers(given_settings(table, config.apart)) else None
    cut = cut or (f"--recipe {config.recipe}" if config.recipe else None)
    if cut and config.out.resolve() == RESULTS:
        raise ValueError(f"{cut} must not write over {config.out}: name another folder with --out")
    config.work = config.work or (config.out if cut else REPRODUCE) / "runs" / file_name(table, config)
    writable_folder(config.out)


def with_more_seeds(table: Table, config: TableConfig) -> Table:
    """Return the table with the training seeds that were added to its own: asked for now, or begun before.

    Then every row is to have them, so that no row is compared on seeds of its choice.
    """
    from reproduce.harness.rows import run_path

    more = (seed for seed in range(MOST_SEEDS) if seed not in table.seeds)
    begun = {s for s in more if s in config.seeds or any(run_path(config.work, r, s).exists() for r in table.rows)}
    return replace(table, seeds=(*table.seeds, *sorted(begun)))


def file_name(table: Table, config: TableConfig) -> str:
    """Return the stem of the table's result, page and figures at this scale, and the name of its folder of runs."""
    return table.name + ("-full" if config.scale == "full" else "")


def prepare(table: Table, config: TableConfig, world: World | None = None) -> Work:
    """Load what all runs share.

    Args:
        world: taken in place of the one that --scale, --smoke and --models ask for.
    """
    from reproduce.harness import rows, snapshots

    if world is None:
        world = replace(SMOKE if config.smoke else World(), scale=config.scale)
        if config.models == "tiny":
            world = replace(SMOKE, scale="full", twins=True, training_prompts="animals")
    if config.given:
        from reproduce.harness.overrides import given_settings

        apart = {name: world.settings.get(name, {}) | settings for name, settings in config.apart.items()}
        world = replace(world, settings=world.settings | apart, given=given_settings(table, config.apart))
    work = rows.prepare(table, world, config.work, config.threads)
    rows.check_batches(work, runs(table, config))
    if table.own.curve:
        snapshots.check(work)
    return work


def runs(table: Table, config: TableConfig) -> list[tuple[str, int | None]]:
    """Return the runs, (row, seed), that the call asks for."""
    from reproduce.harness.rows import row_seeds

    asked = [(row, seed) for row in config.only for seed in row_seeds(table, row)]
    return [(row, seed) for row, seed in asked if seed in (None, *config.seeds) or table.rows[row].seeds]


def run(table: Table, config: TableConfig, work: Work | None) -> None:
    """Run what the call asks for, unless it is done, and make the table when nothing is missing."""
    from reproduce.common.provenance import Clock
    from reproduce.harness import rows, snapshots

    clock = Clock()
    if work and table.own.measure:
        rows.measure(work)
    elif work:
        do_run = snapshots.do_run if table.own.curve else rows.do_run
        for row, seed in runs(table, config):
            do_run(work, row, seed)
    if not processes().is_main_process:
        return
    done = {
        (row, seed): rows.run_path(config.work, row, seed).exists()
        for row in table.rows
        for seed in rows.row_seeds(table, row)
    }
    if work and all(done[row, table.seeds[0]] for row, about in table.rows.items() if about.method and not about.seeds):
        for name, drawing in table.own.drawings.items():
            drawing.draw(work, config.out / f"{file_name(table, config)}-{name}.png")
    missing = [row if seed is None else f"{row} seed {seed}" for (row, seed), there in done.items() if not there]
    if missing and not config.table_only:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        print(f"to do before there is a table: {', '.join(missing[:SHOWN])}{more}")
        return
    write_table(table, config, clock if any(done.values()) else None)


def write_table(table: Table, config: TableConfig, clock: Clock | None) -> None:
    """Write the result, from the runs that there are, its figures and its page.

    Args:
        clock: when the call began; None: there are no runs, and the claims of the result that is there are decided
            again.
    """
    from fsalign_lib.plotting import save
    from reproduce.harness import claims, readmes
    from reproduce.harness.figures import draw
    from reproduce.harness.page import page, total

    path = config.out / f"{file_name(table, config)}.json"
    result = None
    if clock:
        result = claims.gather(table, config.work, clock, config.scale, config.smoke or config.models == "tiny")
    elif path.exists():
        with refusals():
            result = read_json(path, runs=list, prompts=dict)
            check_objects(f"runs in {path}", result["runs"], row=str, cells=dict)
        result |= claims.decided(table, result["runs"], result["prompts"])
    if result:
        write_json(path, result)
    if result and table.own.figures:
        for name, sheet in table.own.figures(result).items():
            save(draw(sheet), path.with_name(f"{path.stem}-{name}.png"))
    others = claims.other_results(path)
    result = result and claims.correct(result, others.values())
    write_text(path.with_suffix(".md"), page(table, result))
    if path.parent.resolve() == RESULTS and config.scale == "pocket":
        readmes.update(table, result, others)
    print(f"{path.with_suffix('.md')}: {total(table, result)}")
