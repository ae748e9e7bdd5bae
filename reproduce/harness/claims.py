"""Make a table's result from its runs: the claims of the paper, and what the pictures' scores say of each."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fsalign_lib.metrics.statistics import Interval
from reproduce.common.provenance import Clock, provenance
from reproduce.evaluation.scores import compare
from reproduce.harness import curves
from reproduce.harness.declare import Table
from reproduce.harness.rows import row_seeds, run_path, shared_folder, uses_pairs
from reproduce.papers import dipp, distar, pso, sdpo
from reproduce.papers.claim import Claim, TableClaims
from reproduce.train_distill import network_calls
from reproduce.training.methods import METHODS

PAPERS: dict[str, TableClaims] = pso.CLAIMS | sdpo.CLAIMS | dipp.CLAIMS | distar.CLAIMS
STATUSES = ("reproduced", "contradicted", "inconclusive", "not run")


def read_claims(table_id: str) -> list[Claim]:
    """Return the claims of a table, such as "pso-table2", with the values that the paper prints."""
    name = table_id.replace("-", "_")
    return PAPERS[name].claims(name)


def claims_of(table: Table) -> list[Claim]:
    """Return the table's claims.

    Raises:
        ValueError: a claim names a metric, row, prompt set or number of steps that the table does not have.
    """
    claims = read_claims(table.name)
    for claim in claims:
        for kind, names, there in (
            ("metric", (claim.metric,), table.metrics),
            ("row", (claim.above, claim.below), table.rows),
            ("prompt set", (claim.prompts,), table.prompts),
            ("number of steps", (claim.steps,), table.steps),
        ):
            for name in names:
                if name not in there:
                    raise ValueError(f"claim {claim.id}: {table.name} has no {kind} {name!r}, only {list(there)}")
    return claims


def status(interval: Interval | None) -> str:
    """Return what a 95% interval of (above - below) says of a claim; None stands for a row that was not run."""
    if interval is None:
        return "not run"
    if not interval.excludes(0.0):
        return "inconclusive"
    return "reproduced" if interval.estimate > 0 else "contradicted"


def count(statuses: Iterable[str]) -> str:
    """Return "30 reproduced, 2 contradicted, 12 inconclusive", or "not run" when all are."""
    found = Counter(statuses)
    if set(found) <= {"not run"}:
        return "not run"
    return ", ".join(f"{found[s]} {s}" for s in STATUSES if found[s])


def gather(table: Table, folder: Path, clock: Clock, scale: str = "pocket", smoke: bool = False) -> dict:
    """Collect the finished runs in `folder` into the table's result, and decide its claims."""
    paths = [run_path(folder, row, seed) for row in table.rows for seed in row_seeds(table, row)]
    runs = [json.loads(path.read_text()) for path in paths if path.exists()]
    result = {"table": table.name, "scale": scale, "smoke": smoke, **provenance(clock)}
    pairs = shared_folder(folder, "pairs", scale) / "about.json"
    result["pairs"] = json.loads(pairs.read_text()) if uses_pairs(table) and pairs.exists() else None
    result["prompts"] = runs[0]["settings"]["prompts"] if runs else None
    given = {name: settings for run in runs for name, settings in run.get("given", {}).items()}
    result |= {"given": given} if given else {}
    result["tuning"] = {name: row.tuning for name, row in table.rows.items() if row.tuning}

    # Numbers that follow from the scores and histories of the runs.
    if table.own.curve:
        curves.summarise(table, runs)
    if table.own.derive and runs:
        result |= table.own.derive(table, runs, result["prompts"])

    # The prompts of all runs stand once, and of a history, which is long, the last record and the sums.
    for run in runs:
        del run["settings"]["prompts"]
        if training := run["training"]:
            training["queries"] = sum(record.get("queries", 0) for record in training["history"]) or None
            training["history"] = training["history"][-1:]
            if METHODS[training["config"]["method"]].loop == "distill":
                training["cost"] = network_calls(training["config"])
    return result | {"claims": decide(table, runs, result["prompts"]), "runs": runs}


def row_cells(table: Table, runs: list[dict], row: str, prompts: str, steps: int) -> list[dict] | None:
    """Return the evaluations of a row, one for each training seed in order; None while one of them is missing.

    Args:
        steps: the table's column. A row that is sampled in a way of its own has the same evaluation in each column.
    """
    sampled = table.rows[row].sampled
    cell = f"{prompts}-{sampled.steps if sampled else steps}"
    found = {run["seed"]: run["cells"][cell] for run in runs if run["row"] == row}
    seeds = row_seeds(table, row)
    return [found[seed] for seed in seeds] if set(seeds) <= set(found) else None


def paired(
    table: Table, runs: list[dict], prompts: dict | None, rows: tuple[str, str], some: str, steps: int
) -> tuple[list[dict], list[dict]] | None:
    """Return the evaluations of two rows, ready to be compared picture by picture; None while one was not run.

    Args:
        some: one of the table's prompt sets.
    """
    sides = [row_cells(table, runs, row, some, steps) for row in rows]
    if not all(sides):
        return None
    first, second = ([{**one, "prompts": prompts[some], "steps": steps} for one in side] for side in sides)
    return first, second


def decide(table: Table, runs: list[dict], prompts: dict | None) -> list[dict]:
    """Return each claim's {"id", "status"}, with the interval of (above - below) where both rows were run."""
    decided = []
    for claim in claims_of(table):
        sides = paired(table, runs, prompts, (claim.above, claim.below), claim.prompts, claim.steps)
        interval = None
        # A metric that this scale does not have is in no cell.
        if sides and all(claim.metric in one["scores"] for side in sides for one in side):
            interval = compare(*sides, claim.metric)
        decided.append({"id": claim.id, "status": status(interval)} | (interval._asdict() if interval else {}))
    return decided
