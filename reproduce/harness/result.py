"""The result of a table: its runs, and the status of each claim."""

import itertools
import json
import statistics
from pathlib import Path

from reproduce.common.provenance import Clock, provenance
from reproduce.evaluation.scores import compare
from reproduce.harness import curves
from reproduce.harness.claims import read_claims, status
from reproduce.harness.declare import Table
from reproduce.harness.settings import row_seeds, run_path, shared_folder
from reproduce.training import distillation
from reproduce.training.methods import METHODS

LAST = 5  # rounds or updates that the end of training is the mean of


def gather(table: Table, folder: Path, clock: Clock, scale: str = "pocket", smoke: bool = False) -> dict:
    """The result of the table: what was run, and the status of each claim."""
    runs = []
    for row in table.rows:
        for seed in row_seeds(table, row):
            path = run_path(folder, row, seed)
            if path.exists():
                runs.append(json.loads(path.read_text()))
    result = {"table": table.name, "scale": scale, "smoke": smoke, **provenance(clock)}
    pairs = shared_folder(table, folder) / "pairs" / "about.json"
    result["pairs"] = json.loads(pairs.read_text()) if pairs.exists() else None
    result["prompts"] = runs[0]["settings"]["prompts"] if runs else None
    result["tuning"] = {name: row.tuning for name, row in table.rows.items() if row.tuning}
    if table.curve:
        curves.summarise(table, runs)
    if table.derive and runs:
        table.derive(runs, result["prompts"])
    for run in runs:
        del run["settings"]["prompts"]
        if run["training"]:
            history = run["training"]["history"]
            run["training"]["queries"] = sum(record.get("queries", 0) for record in history) or None
            end = history[-LAST:]
            run["training"]["end"] = {key: statistics.mean(record[key] for record in end) for key in table.watched}
            run["training"]["series"] = {name: [r[name] for r in history if name in r] for name in table.series}
            run["training"]["history"] = history[-1:]
            if METHODS[run["training"]["config"]["method"]].loop == "distill":
                run["training"]["cost"] = distillation.cost(run["training"]["config"])
    if table.against:
        result["differences"] = differences(table, runs, result["prompts"])
    return result | {"claims": decide(table, runs, result["prompts"]), "runs": runs}


def differences(table: Table, runs: list[dict], prompts: dict) -> list[dict]:
    """[{"row", "prompts", "steps", "metric", and the interval of (row - table.against)}], of rows that were run."""
    found = []
    for name, some, steps in itertools.product(table.rows, table.prompts, table.steps):
        sides = [row_cells(table, runs, row, some, steps) for row in (name, table.against)]
        if name == table.against or not all(sides):
            continue
        named = [[{**one, "prompts": prompts[some]} for one in side] for side in sides]
        place = {"row": name, "prompts": some, "steps": steps}
        found += [place | {"metric": metric} | compare(*named, metric)._asdict() for metric in table.metrics]
    return found


def row_cells(table: Table, runs: list[dict], row: str, prompts: str, steps: int) -> list[dict] | None:
    """The evaluations of a row, in the order of its training seeds; None while one of them is missing.

    Args:
        steps: of the column; a row that is sampled in a way of its own has the same in each.
    """
    cell = f"{prompts}-{table.rows[row].steps_at(steps)}"
    found = {run["seed"]: run["cells"][cell] for run in runs if run["row"] == row}
    seeds = row_seeds(table, row)
    return [found[seed] for seed in seeds] if set(seeds) <= set(found) else None


def decide(table: Table, runs: list[dict], prompts: dict | None) -> list[dict]:
    """[{"id", "status", and the interval of (above - below) where there is one}]"""
    statuses = []
    for claim in read_claims(table.id):
        where = claim.prompts, claim.steps
        above, below = (row_cells(table, runs, row, *where) for row in (claim.above, claim.below))
        interval = None
        if above and below:
            same = {"prompts": prompts[claim.prompts], "steps": claim.steps}
            above, below = ([{**one, **same} for one in side] for side in (above, below))
            if all(claim.metric in one["scores"] for one in (*above, *below)):  # some are of one scale alone
                interval = compare(above, below, claim.metric)
        statuses.append({"id": claim.id, "status": status(interval)} | (interval._asdict() if interval else {}))
    return statuses
