"""Make a table's result from its runs: the claims of the paper, and what the pictures' scores say of each.

comparisons.py measures what is compared, and protocol.py says how it is decided.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fsalign_lib.json_files import OPTIONAL, read_json
from fsalign_lib.metrics.statistics import Crossed
from reproduce.common.cli import refusals
from reproduce.common.provenance import Clock, provenance
from reproduce.harness import curves, protocol
from reproduce.harness.comparisons import Scores
from reproduce.harness.declare import Table
from reproduce.harness.protocol import STATUSES, Evidence
from reproduce.harness.rows import row_seeds, run_path, shared_folder, uses_pairs
from reproduce.papers import dipp, distar, pso, sdpo
from reproduce.papers.claim import Claim, TableClaims
from reproduce.train_distill import network_calls
from reproduce.training.methods import METHODS

PAPERS: dict[str, TableClaims] = pso.CLAIMS | sdpo.CLAIMS | dipp.CLAIMS | distar.CLAIMS


# what is claimed


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


def count(statuses: Iterable[str]) -> str:
    """Return "30 reproduced, 2 contradicted, 12 inconclusive", or "not run" when all are, or there is none."""
    found = Counter(statuses)
    if set(found) <= {"not run"}:
        return "not run"
    return ", ".join(f"{found[s]} {s}" for s in STATUSES if found[s])


def gather(table: Table, folder: Path, clock: Clock, scale: str = "pocket", smoke: bool = False) -> dict:
    """Collect the finished runs in `folder` into the table's result, and decide its claims."""
    paths = [run_path(folder, row, seed) for row in table.rows for seed in row_seeds(table, row)]
    needed = {"row": str, "cells": dict, "settings": dict, "training": (dict, OPTIONAL), "evaluation": dict}
    with refusals():  # of results that were damaged since
        runs = [read_json(path, **needed) for path in paths if path.exists()]
    result = {"table": table.name, "scale": scale, "smoke": smoke, **provenance(clock)}
    pairs = shared_folder(folder, "pairs", scale) / "about.json"
    result["pairs"] = read_json(pairs) if uses_pairs(table) and pairs.exists() else None
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
    return result | decided(table, runs, result["prompts"]) | {"runs": runs}


# how it is decided


def decided(table: Table, runs: list[dict], prompts: dict | None) -> dict[str, list[dict]]:
    """Return {"claims", "primary"}: each claim, and each primary claim that is the mean over several of them.

    A record has "id", "status" by itself, and where both rows were run what it rests on (see `record`); a primary one
    has "claims" too, the ids of its parts.
    """
    claims = claims_of(table)
    scores = Scores(table, runs, prompts, claims)
    found = [{"id": claim.id} | record(scores.evidence(claim, (claim.steps,))) for claim in claims]
    means = [
        {"id": name, "claims": [claim.id for claim in parts]}
        | record(scores.evidence(parts[0], [claim.steps for claim in parts]))
        for name, parts in primary_claims(claims).items()
        if len(parts) > 1
    ]
    return {"claims": found, "primary": means}


def primary_claims(claims: Sequence[Claim]) -> dict[str, list[Claim]]:
    """Return the primary claims by id: each is the mean over its parts, one for each number of steps."""
    found: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.primary:
            found.setdefault(claim.primary, []).append(claim)
    return found


def record(found: Evidence | None) -> dict:
    """Return a status with what it rests on, as the result file keeps it."""
    about = {"status": protocol.status(found)}
    if found is None:
        return about
    about |= found.effect.interval()._asdict() | {"p": found.p_different(), "margin": found.margin}
    return about | {"seeds": found.seeds, "learned": found.learned, "effect": found.effect._asdict()}


def evidence(about: dict) -> Evidence | None:
    """Return what a record rests on."""
    if "effect" not in about:
        return None
    return Evidence(Crossed(**about["effect"]), about["margin"], about["seeds"], about["learned"])


def paper_of(name: str) -> str:
    """Return the paper of a table, such as "pso" of "pso_table2"."""
    return name.partition("_")[0]


def other_results(path: Path) -> dict[str, dict]:
    """Read the results of a paper's other tables that lie beside this one's, at the same scale: name -> result.

    One that an older version decided is left out, until --table-only decides it again.
    """
    scale = "-full" * path.stem.endswith("-full")
    own = path.stem.removesuffix(scale)
    there = {name: path.with_name(f"{name}{scale}.json") for name in PAPERS if paper_of(name) == paper_of(own) != own}
    with refusals():
        found = {name: read_json(file, claims=list) for name, file in there.items() if name != own and file.exists()}
    return {name: result for name, result in found.items() if "primary" in result}


def correct(result: dict, others: Iterable[dict]) -> dict:
    """Return a result with a second status of each claim, "corrected": the false discovery rate is held over the paper.

    Args:
        others: the results of the paper's other tables.
    """
    records = [about for one in (result, *others) for about in (*one["claims"], *one["primary"])]
    found = {about["id"]: evidence(about) for about in records}
    status, (different, equivalent) = protocol.corrected(found), protocol.thresholds(list(found.values()))

    def both(about: dict) -> dict:
        more = {"corrected": status[about["id"]]}
        if more["corrected"] == "inconclusive":
            more["seeds_to_decide"] = protocol.seeds_to_decide(found[about["id"]], different, equivalent)
        return about | more

    return result | {kind: [both(about) for about in result[kind]] for kind in ("claims", "primary")}


def primary_records(result: dict) -> dict[str, dict]:
    """Return the record of each primary claim of a result, by id: a claim's own, or the mean over several."""
    records = {about["id"]: about for about in (*result["claims"], *result["primary"])}
    found = primary_claims(read_claims(result["table"]))
    return {name: records[name if len(parts) > 1 else parts[0].id] for name, parts in found.items()}
