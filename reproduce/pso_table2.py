"""PSO Table 2: human preference tuning of a 4-step Turbo model by offline and online PSO, sampled at 4 steps and at 1.

python reproduce/pso_table2.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/pso_table2.py --dry-run        # rows, recipes with their sources, claims
python reproduce/pso_table2.py --smoke --out runs/smoke

Two processes side by side, each on a thread of its own; the one that ends last makes the table:

python reproduce/pso_table2.py --threads 1 --only online &
python reproduce/pso_table2.py --threads 1 --only base offline
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

import recipes
import table_runs
from claims import read_claims
from common import ROOT, command_line, positive, writable_folder, write_json
from pairs import PairConfig
from table_runs import Row, Table, World
from table_text import total, write_pages

TABLE = Table(
    name="pso_table2",
    title="PSO Table 2: human preference tuning of SDXL-Turbo",
    rows={
        "base": Row("base"),
        "offline": Row("offline PSO", "pso-offline"),
        "online": Row("online PSO", "pso-online"),
    },
    prompts={
        "pickapic": ("Pick-a-Pic's test prompts", "test-pickapic"),
        "parti": ("Parti-Prompts", "test-heldout"),
    },
    steps=(4, 1),
    metrics={
        "pickscore": ("PickScore", 2),
        "clipscore": ("CLIP score", 4),
        "imagereward": ("ImageReward", 4),
        "aesthetic": ("Aesthetic", 3),
    },
    beside={
        "accuracy": ("animal accuracy", 3),
        "diversity": ("diversity", 3),
        "sharpness": ("sharpness", 4),
    },
)
RESULTS = ROOT / "reproduce" / "results"
SMOKE = World(
    pictures=2,
    prompts=2,
    settings={
        "pairs": {"count": 4, "batch": 4, "steps": 2, "tie": 0.0},
        "pso-offline": {"updates": 1, "batch": 2},
        "pso-online": {"rounds": 1, "pairs": 2, "minibatch": 2},
    },
)


@dataclass(kw_only=True)
class Table2Config:
    """Train, evaluate, and write results/pso_table2.json and .md."""

    scale: Literal["pocket", "full"] = "pocket"
    only: tuple[Literal["base", "offline", "online"], ...] = ("base", "offline", "online")
    """Rows to run in this call."""
    seeds: tuple[int, ...] = TABLE.seeds
    """Training seeds to run in this call."""
    work: Path = Path("reproduce/runs/pso_table2")
    """Training runs and evaluations, a file each when finished."""
    out: Path = RESULTS
    """Where the result and its page go."""
    threads: int | None = None
    """CPU threads of torch. Several processes side by side must share the cores."""
    smoke: bool = False
    """The whole way with next to no prompts, pairs and updates; needs its own --out."""
    dry_run: bool = False
    """Print rows, recipes and claims, and stop."""
    table_only: bool = False
    """Run nothing: write the table from the runs there are, or else the page from the result there is."""


def check(config: Table2Config) -> Table2Config:
    """What can be wrong with the call."""
    if config.dry_run:
        return config
    if config.scale == "full":
        raise ValueError(
            "scale 'full' needs SDXL-Turbo, which this version cannot run: use --scale pocket, or --dry-run"
        )
    if not config.seeds or not set(config.seeds) <= set(TABLE.seeds):
        raise ValueError(f"seeds {list(config.seeds)}: the table has the training seeds {list(TABLE.seeds)}")
    if config.threads is not None:
        positive(config, "threads")
    if config.smoke:
        if config.out.resolve() == RESULTS:
            raise ValueError(f"--smoke must not write over {config.out}: name another folder with --out")
        config.work = config.out / "runs"
    writable_folder(config.out)
    return config


def prepare(config: Table2Config, world: World | None = None):
    """Check the call and load what it needs; a world that is given takes the place of the pocket's."""
    check(config)
    if config.dry_run or config.table_only:
        return config, None
    return config, table_runs.prepare(TABLE, world or (SMOKE if config.smoke else World()), config.work, config.threads)


def run(ready) -> None:
    config, work = ready
    if config.dry_run:
        print(description(config.scale))
        return
    started, path = time.time(), config.out / f"{TABLE.name}.json"
    if work:
        for row in config.only:
            for seed in table_runs.row_seeds(TABLE, row):
                if seed is None or seed in config.seeds:
                    table_runs.do_run(work, row, seed)
    done = {
        (row, seed): table_runs.run_path(config.work, row, seed).exists()
        for row in TABLE.rows
        for seed in table_runs.row_seeds(TABLE, row)
    }
    missing = [row if seed is None else f"{row} seed {seed}" for (row, seed), there in done.items() if not there]
    if missing and not config.table_only:
        print(f"to do before there is a table: {', '.join(missing)}")
        return
    if any(done.values()):
        write_json(path, table_runs.gather(TABLE, config.work, started, config.smoke))
    result = json.loads(path.read_text()) if path.exists() else None
    write_pages(TABLE, result, config.out, readmes=config.out.resolve() == RESULTS)
    print(f"{config.out / TABLE.name}.md: {total(TABLE, result)}")


def description(scale: str) -> str:
    """Rows, recipes with their sources, and claims."""
    parts = [f"{TABLE.title}, scale {scale}", f"training seeds {', '.join(map(str, TABLE.seeds))}"]
    parts.append("prompts: " + "; ".join(f"{ours} in the place of {title}" for title, ours in TABLE.prompts.values()))
    for row in TABLE.rows.values():
        parts.append(f"\nrow {row.title}" + (f" ({row.method})" if row.method else ": the model as it is"))
        if row.method:
            parts.append(recipes.describe(row.method, scale))
    if scale == "pocket":
        parts.append(f"\npairs for {TABLE.rows['offline'].title}: {PairConfig()}")
    parts.append("\nclaims")
    parts += [f"  {claim.id}  ({claim.printed[0]:g} > {claim.printed[1]:g})" for claim in read_claims(TABLE.id)]
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(Table2Config, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
