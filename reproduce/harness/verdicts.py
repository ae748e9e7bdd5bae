"""Write what a page says of its claims: counts, primary claims, what was learned, rows at equal distance.

Below, `result` is as in page.py.
"""

from collections.abc import Sequence

from reproduce.harness import protocol
from reproduce.harness.claims import claims_of, count, evidence, primary_claims, primary_records
from reproduce.harness.comparisons import Scores, trained, training_seeds, unit
from reproduce.harness.declare import MOST_SEEDS, SEEDS, Column, Table
from reproduce.harness.markdown import full_title, interval, markdown_table
from reproduce.papers.claim import Claim

NOT_RUN = "not run"
NO_ENDS = (
    "No primary claim of this table is on what two trained rows score at the end of training, which is what can be "
    "compared at equal KL."
)
NO_KL = (
    "The KL from the reference is not measured over training in this table: its rows are compared at equal training "
    "alone, at whatever distance each has gone."
)


def total(table: Table, result: dict | None) -> str:
    """Count the table's claims by status, as in "30 reproduced, 2 contradicted"."""
    return count([claim["corrected"] for claim in result["claims"]] if result else [NOT_RUN])


def by_themselves(table: Table, result: dict | None) -> str:
    """Count the claims by the status that each has by itself, and the primary ones."""
    if not result:
        return ""
    alone = f" Each by itself, before the correction: {count(claim['status'] for claim in result['claims'])}."
    records = primary_records(result).values()
    return alone + f" Primary claims: {count(about['corrected'] for about in records)}."


def tally(table: Table, result: dict | None) -> str:
    """Count the claims of each pair of rows by status, a metric a column; groups of rows are taken together."""
    status = {c["id"]: c["corrected"] for c in result["claims"]} if result else {}
    found: dict[tuple[str, str], dict[str, list[str]]] = {}  # titles of two rows -> metric -> statuses
    for claim in claims_of(table):
        pair = tuple(table.rows[name].title for name in better(table, claim))
        found.setdefault(pair, {}).setdefault(claim.metric, []).append(status.get(claim.id, NOT_RUN))
    metrics = {m: c.title for m, c in columns(table, result).items() if any(m in by for by in found.values())}
    body = [
        [f"{first} {than(table)} {second}", *(count(by[m]) if m in by else "not claimed" for m in metrics)]
        for (first, second), by in found.items()
    ]
    return markdown_table(["claim", *metrics.values()], body)


def primary(table: Table, result: dict | None) -> str:
    """List the primary claims: one for each pair of rows, metric and prompt set, the mean over numbers of steps."""
    records, body = primary_records(result) if result else {}, []
    for name, parts in primary_claims(claims_of(table)).items():
        about, column = records.get(name, {"corrected": NOT_RUN, "status": NOT_RUN}), table.metrics[parts[0].metric]
        margin = about.get("margin")
        body.append(
            [
                titled(table, parts),
                column.title,
                interval(about, column.decimals + 1) if "low" in about else NOT_RUN,
                "unknown" if margin is None else f"{margin:.{column.decimals + 1}f}",
                about["status"],
                worded(about),
            ]
        )
    several = max((len(parts) for parts in primary_claims(claims_of(table)).values()), default=1)
    what = ", the mean over numbers of steps; the claims for each number stand below" if several > 1 else ""
    header = ["claim", "metric", "difference [95%]", "margin", "by itself", "within the paper"]
    return f"## Primary claims\n\nOne for each pair of rows and metric{what}.\n\n{markdown_table(header, body)}"


def titled(table: Table, parts: Sequence[Claim]) -> str:
    """Say what a primary claim compares, as in "SDPO above DDPO, Aesthetic, unseen prompts"."""
    first, second = (table.rows[name] for name in better(table, parts[0]))
    what = [f"{first.title} {than(table)} {second.title}"]
    what += [first.group] if first.group else []
    what += [table.prompts[parts[0].prompts].title] if len(table.prompts) > 1 else []
    if len(parts) == 1 and len({claim.steps for claim in claims_of(table)}) > 1:
        what.append(f"{parts[0].steps} step{'s' * (parts[0].steps > 1)}")
    return ", ".join(what)


def worded(about: dict) -> str:
    """Write a claim's status, of an inconclusive one with the number of training seeds that would decide it."""
    status = about["corrected"]
    if status != "inconclusive" or not about["seeds"]:
        return status
    seeds = about["seeds_to_decide"]
    return f"{status} ({f'{seeds} seeds' if seeds else f'over {protocol.SEEDS_NAMED} seeds'})"


def more_seeds(table: Table, result: dict | None) -> list[str]:
    """Say how many training seeds the table is due by the rule that does not look at its estimates."""
    records = primary_records(result).values() if result else ()
    found = [evidence(about) for about in records if about.get("seeds") and about["effect"]["seeds"] > 1]
    if not found:
        return []
    due = max(protocol.seeds_due(one, len(SEEDS), MOST_SEEDS) for one in found)
    return [
        f"Training seeds: {training_seeds(table, result)} were run; by the rule for more seeds, which sees the spread "
        f"of these alone, the primary claims are due {due}."
    ]


def learning(table: Table, result: dict | None) -> str:
    """Say of each trained row in which metrics it rose above the untrained model, and how many seeds collapsed."""
    body = []
    scores = Scores(table, result["runs"], result["prompts"], claims_of(table)) if result else None
    for found in scores.learning() if scores else ():
        told: dict[bool, list[str]] = {True: [], False: []}
        for metric, (effect, margin) in found["rises"].items():
            column = (table.metrics | table.beside)[metric]
            held = "" if margin is None else f" of {margin:.{column.decimals}f}"
            told[protocol.rose(effect, margin)].append(f"{column.title} {effect.estimate:+.{column.decimals}f}{held}")
        seeds = len(found["seeds"])
        body.append(
            [
                full_title(table.rows[found["row"]]),
                *([table.prompts[found["prompts"]].title] if len(table.prompts) > 1 else []),
                "; ".join(told[True]) or "nothing",
                "; ".join(told[False]),
                f"{len(found['collapsed'])} of {seeds}",
            ]
        )
    prompts = ["prompts"] * (len(table.prompts) > 1)
    note = (
        "In what a row was trained for, its reward, or for a row without one the metrics of this table's claims: how "
        "far it is above the untrained model, of the margin, the mean over numbers of steps (a fall where less is "
        "better). *Rose* means by the margin or more, with a 95% interval above 0. A training seed has collapsed when "
        "it ended below the untrained model by the margin in all of these."
    )
    header = ["row", *prompts, "rose in", "did not rise in", "seeds collapsed"]
    return f"## What was learned\n\n{note}\n\n{markdown_table(header, body) if body else NOT_RUN}"


def equal_distance(table: Table, result: dict | None) -> str:
    """Compare trained rows where both are equally far from the reference, beside the comparison at equal training."""
    scores, body = Scores(table, result["runs"], result["prompts"]) if result else None, []
    records = primary_records(result) if result else {}
    for name, parts in primary_claims(claims_of(table)).items() if result else ():
        claim, about = parts[0], evidence(records[name])
        both = trained(table.rows[claim.above]) and trained(table.rows[claim.below])
        if not both or about is None or unit(claim.metric) != claim.metric:
            continue
        found = scores.equal_kl(claim, [part.steps for part in parts], about)
        if found:
            kl, there = found
            decimals = table.metrics[claim.metric].decimals + 1
            shown = there.effect.interval()._asdict()
            cells = [titled(table, parts), interval(records[name], decimals), f"{kl:.3g}", interval(shown, decimals)]
            body.append([*cells, protocol.status(there)])
    header = ["claim", "at equal training", "KL", "at that KL", "status by itself"]
    note = (
        "Two rows compared where both have gone equally far: at the largest KL that both reached, each where its curve "
        "came there first, between its points linearly, seed by seed. KL in nats, a step's mean, as in *What it took*. "
        "The spread over prompts is taken from the end of training."
    )
    text = f"{note}\n\n{markdown_table(header, body)}" if body else NO_ENDS if table.own.curve else NO_KL
    return f"## At equal distance from the reference\n\n{text}"


def better(table: Table, claim: Claim) -> tuple[str, str]:
    """Return the row that is claimed to be the better one, then the other."""
    return (claim.below, claim.above) if table.metrics[claim.metric].lower else (claim.above, claim.below)


def than(table: Table) -> str:
    """Return the words between two compared rows: "above", unless less is better in some metric of a claim."""
    return "better than" if any(table.metrics[claim.metric].lower for claim in claims_of(table)) else "above"


def verdict(claim: Claim | None, result: dict | None, decimals: int) -> str:
    """Write a claim's status and interval, as in "reproduced, +0.21 [+0.10, +0.32]"."""
    if claim is None:
        return "not claimed"
    if result is None:
        return NOT_RUN
    found = {c["id"]: c for c in result["claims"]}[claim.id]
    by_itself = f" (by itself {found['status']})" if found["status"] != found["corrected"] else ""
    return worded(found) + by_itself + (f", {interval(found, decimals + 1)}" if "low" in found else "")


def columns(table: Table, result: dict | None) -> dict[str, Column]:
    """Return the table's metrics that the result's scale has."""
    scale = result["scale"] if result else "pocket"
    return {metric: column for metric, column in table.metrics.items() if column.scale in (None, scale)}
