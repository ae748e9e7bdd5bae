"""The Markdown of a table, made from its result alone: the page in results/, and the marked blocks of the READMEs."""

import re
import statistics
from pathlib import Path

from reproduce.common.files import write_text
from reproduce.common.provenance import ROOT, core_seconds
from reproduce.harness.claims import LAST, claims_of, count, row_cells
from reproduce.harness.curves import spent
from reproduce.harness.declare import Row, Table
from reproduce.papers.claim import Claim, printed, printed_line
from reproduce.recipes import sdpo
from reproduce.training.methods import METHODS

NOT_RUN = "not run"
ELSEWHERE = "not part of this project"
ONE_SEED = (
    "**One training seed a row.** The intervals are over prompts and pictures alone: they say how sure a difference "
    "of these runs is, not whether another seed would show it."
)


def ours(table: Table, result: dict | None, row: str, cell: tuple[str, int], metric: str, decimals: int) -> str:
    """ "22.40 ± 0.02": mean and standard deviation over training seeds. A cell is (prompts, steps)."""
    if table.rows[row].elsewhere:
        return ELSEWHERE
    cells = row_cells(table, result["runs"], row, *cell) if result else None
    if not cells:
        return NOT_RUN
    means = [found["means"].get(metric) for found in cells]
    if None in means:
        return "none"
    spread = f" ± {statistics.stdev(means):.{decimals}f}" if len(means) > 1 else ""
    return f"{statistics.mean(means):.{decimals}f}{spread}"


def verdict(claim: Claim | None, result: dict | None, decimals: int) -> str:
    """ "reproduced, +0.21 [+0.10, +0.32]" """
    if claim is None:
        return "not claimed"
    found = {c["id"]: c for c in result["claims"]}[claim.id] if result else {"status": NOT_RUN}
    if "low" not in found:
        return found["status"]
    estimate, low, high = (f"{found[key]:+.{decimals + 1}f}" for key in ("estimate", "low", "high"))
    return f"{found['status']}, {estimate} [{low}, {high}]"


def lines(header: list[str], rows: list[list[str]]) -> str:
    table = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def better(table: Table, claim: Claim) -> tuple[str, str]:
    """The row that a claim puts before the other."""
    return (claim.below, claim.above) if claim.metric in table.lower else (claim.above, claim.below)


def groups(table: Table) -> dict[str | None, dict[str, Row]]:
    """Rows that are compared with each other, those without a group in each."""
    named = dict.fromkeys(row.group for row in table.rows.values() if row.group) or {None: None}
    return {g: {name: row for name, row in table.rows.items() if row.group in (None, g)} for g in named}


def section(table: Table, result: dict | None, prompts: str, steps: int) -> str:
    """One prompt set at one number of steps: the paper's values, ours, and each claim's status."""
    own = getattr(table.prompts[prompts], result["scale"] if result else "pocket")
    of_all = not any(row.sampled for row in table.rows.values())
    columns = f", {steps} step{'s' * (steps > 1)}" if of_all else ""
    parts = [f"## {table.prompts[prompts].title} (here `{own}`){columns}"]
    for group, rows in groups(table).items():
        parts += [f"### {group}"] if group and len(table.metrics) > 1 else []
        parts.append(comparison(table, result, prompts, steps, rows))
    beside = beside_lines(table, result, (prompts, steps))
    return "\n\n".join(parts + ([beside] if beside else []))


def comparison(table: Table, result: dict | None, prompts: str, steps: int, rows: dict[str, Row]) -> str:
    """Rows that are compared with each other, metric by metric."""
    cell, paper = (prompts, steps), printed(table.name)
    claims = {}
    for claim in claims_of(table):
        if (claim.prompts, claim.steps) == (prompts, steps) and {claim.above, claim.below} <= rows.keys():
            claims[claim.metric, *better(table, claim)] = claim
    against = [name for name in rows if any(other == name for _, _, other in claims)]
    shown = set().union(*(row.metrics or table.metrics for row in rows.values() if row.group)) or table.metrics
    body = []
    for metric, (label, decimals) in table.metrics.items():
        for number, (name, row) in enumerate(rows.items()):
            if metric not in shown:
                continue
            values = [printed_line(paper, prompts, name, steps).get(metric, "")] if paper else []
            values.append(ours(table, result, name, cell, metric, decimals))
            for other in against:
                later = number > list(rows).index(other) and not row.elsewhere
                values.append(verdict(claims.get((metric, name, other)), result, decimals) if later else "")
            body.append([label, row.title, *values])
    word = "better than" if table.lower else "above"
    numbers = ["paper", "ours"] if paper else ["ours"]
    return lines(["metric", "row", *numbers, *(f"{word} {rows[name].title}" for name in against)], body)


def beside_lines(table: Table, result: dict | None, cell: tuple[str, int]) -> str | None:
    """What the paper does not have, on the same pictures."""
    scale = result["scale"] if result else "pocket"
    runs = result["runs"] if result else []
    pictures = runs[0]["settings"]["pictures"] if runs else table.pictures[scale]
    shown = {m: table.beside[m] for m in table.metric_names(scale, pictures) if m in table.beside}
    if not shown:
        return None
    body = [
        [told(row), *(ours(table, result, name, cell, metric, d) for metric, (_, d) in shown.items())]
        for name, row in table.rows.items()
        if not row.elsewhere
    ]
    table_ = lines(["row", *(label for label, _ in shown.values())], body)
    return f"Beside the paper's metrics, on the same pictures:\n\n{table_}"


def differences(table: Table, result: dict | None) -> str:
    """How far each row lies from `table.against`, with its interval, and how its training ended."""
    title = table.rows[table.against].title
    parts = [f"## Difference from {title}"]
    note = "Row less base recipe, with its 95% interval, bold where that does not hold 0."
    for prompts in table.prompts:
        for steps in table.steps:
            cell = {"prompts": prompts, "steps": steps}
            body = [
                [row.title, *(difference(result, name, cell, m, d) for m, (_, d) in table.metrics.items())]
                for name, row in table.rows.items()
                if name != table.against
            ]
            parts.append(lines(["row", *(label for label, _ in table.metrics.values())], body))
    ends = [
        [row.title, *(ended(result, name, key, d) for key, (_, d) in table.watched.items())]
        for name, row in table.rows.items()
        if row.method
    ]
    parts += [note, f"The end of training, mean over {LAST} rounds ± standard deviation over training seeds:"]
    return "\n\n".join([*parts, lines(["row", *(label for label, _ in table.watched.values())], ends)])


def difference(result: dict | None, row: str, cell: dict, metric: str, decimals: int) -> str:
    place = {"row": row, "metric": metric} | cell
    found = [d for d in result["differences"] if place.items() <= d.items()] if result else []
    if not found:
        return NOT_RUN
    estimate, low, high = (f"{found[0][key]:+.{decimals}f}" for key in ("estimate", "low", "high"))
    apart = found[0]["low"] > 0 or found[0]["high"] < 0
    return f"{'**' * apart}{estimate} [{low}, {high}]{'**' * apart}"


def ended(result: dict | None, row: str, key: str, decimals: int) -> str:
    values = [run["training"]["end"][key] for run in result["runs"] if run["row"] == row] if result else []
    if not values:
        return NOT_RUN
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{spread}"


def tuning(table: Table, result: dict | None) -> str:
    """What was tried for each row before its settings were fixed."""
    tried = result["tuning"] if result else {name: row.tuning for name, row in table.rows.items() if row.tuning}
    return "## Tuning\n\n" + lines(["row", "tried"], [[told(table.rows[name]), what] for name, what in tried.items()])


def told(row: Row) -> str:
    return f"{row.title}, {row.group}" if row.group else row.title


def tally(table: Table, result: dict | None) -> str:
    """How many claims have which status, by comparison and metric, whatever the group; metrics without one are out."""
    status = {c["id"]: c["status"] for c in result["claims"]} if result else {}
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for claim in claims_of(table):
        this, other = (table.rows[name].title for name in better(table, claim))
        found.setdefault((this, other), {}).setdefault(claim.metric, []).append(status.get(claim.id, NOT_RUN))
    word = "better than" if table.lower else "above"
    metrics = {name: label for name, (label, _) in table.metrics.items() if any(name in by for by in found.values())}
    body = [
        [f"{this} {word} {other}", *(count(by[m]) if m in by else "not claimed" for m in metrics)]
        for (this, other), by in found.items()
    ]
    return lines(["claim", *metrics.values()], body)


def total(table: Table, result: dict | None) -> str:
    status = [c["status"] for c in result["claims"]] if result else []
    return count(status or [NOT_RUN])


def hours(table: Table, result: dict | None) -> float | None:
    """Of all runs, core hours on a CPU; the training of another table's runs is counted there."""
    if not result or not result["runs"]:
        return None
    keys = ("evaluation",) if table.reads else ("training", "evaluation")
    parts = [result["pairs"]] + [run[key] for run in result["runs"] for key in keys]
    return sum(core_seconds(part) for part in parts if part) / 3600


def memory(result: dict | None) -> float | None:
    """The largest process, in GB."""
    if not result or not result["runs"]:
        return None
    parts = [run[key] for run in result["runs"] for key in ("training", "evaluation")]
    return max(part["peak_memory_mb"] for part in parts if part) / 1024


def page(table: Table, result: dict | None) -> str:
    """The whole Markdown page of a table; None: nothing was run."""
    unprinted = "The paper has no such table." if table.against else "The paper draws this."
    numbers = ("Paper: the printed value." if printed(table.name) else unprinted) + " Ours: mean"
    seeds = len(table.seeds) if any(row.method for row in table.rows.values()) else 0
    if seeds > 1:
        numbers += f" ± standard deviation over {seeds} training seeds"
    if not result or result["scale"] == "pocket":
        numbers += ", on the pocket world: compare the differences, not the values"
    parts = [
        f"# {table.title}",
        f"Made by `python reproduce/{table.name}.py`; do not edit. {numbers}. A claim is "
        "*reproduced* when the 95% interval of its paired difference, over "
        f"{'training seeds, ' * (seeds > 1)}prompts and pictures, lies above 0, *contradicted* when it lies below, "
        "*inconclusive* when it holds 0. Each claim has an interval of its own: of 40 differences that are none, two "
        "would be decided by chance.",
        *([ONE_SEED] if seeds == 1 else []),
        *([table.note] if table.note else []),
        f"**Claims: {total(table, result)}.**",
        tally(table, result),
    ]
    if result and result["smoke"]:
        parts.insert(1, "**A smoke run: settings cut down until it is quick. Its numbers mean nothing.**")
    if result and table.figures:
        stem = table.name + ("-full" if result["scale"] == "full" else "")
        parts += [f"![{sheet.caption}]({stem}-{name}.png)" for name, sheet in table.figures(result).items()]
    if result and table.drawn:
        stem = table.name + ("-full" if result["scale"] == "full" else "")
        parts += [f"![{caption}]({stem}-{name}.png)" for name, caption in table.drawn.items()]
    if table.curve or any(row.method in sdpo.RECIPES for row in table.rows.values()):
        parts.append(costs(table, result))
    elif any(row.method and METHODS[row.method].loop == "distill" for row in table.rows.values()):
        parts.append(distill_costs(table, result))
    parts += [differences(table, result)] if table.against else []
    parts += [section(table, result, prompts, steps) for prompts in table.prompts for steps in table.steps]
    parts += [tuning(table, result)] if any(row.tuning for row in table.rows.values()) else []
    return "\n\n".join(parts + ([about(result)] if result else [])) + "\n"


def costs(table: Table, result: dict | None) -> str:
    """What each row took, and for a curve how far from the reference it went."""
    about = {"samples": ".0f", "queries": ".0f", "hours": ".3f"} | ({"kl": ".3g"} if table.curve else {})
    titles = {"samples": "samples", "queries": "reward queries", "hours": "training, hours", "kl": "KL of a step"}
    body = []
    for name, row in table.rows.items():
        if row.method is None:
            continue
        made = [run for run in result["runs"] if run["row"] == name] if result else []
        timed = [run for run in made if "cpu_seconds" in run["training"]]  # older runs have wall time alone
        values = []
        for key, form in about.items():
            those = timed or made if key == "hours" else made
            ends = [run["curve"][-1] if table.curve else spent(run["training"]) for run in those]
            wall = " (wall)" if key == "hours" and not timed else ""
            values.append(f"{statistics.mean(end[key] for end in ends):{form}}{wall}" if ends else NOT_RUN)
        body.append([told(row), *values])
    table_ = lines(["row", *(titles[key] for key in about)], body)
    note = (
        f"Of one run{', the mean over training seeds' * (len(table.seeds) > 1)}. Hours are core hours on a CPU, of the "
        "runs that recorded CPU time; *wall* where none did: longer, since another run was beside it."
    )
    if table.curve:
        note += (
            " KL to the reference in nats, summed over dimensions, the mean over the stochastic steps of the policy's "
            "own trajectories at the end of training, with as many steps as it was trained with."
        )
    return f"## What it took\n\n{table_}\n\n{note}"


def distill_costs(table: Table, result: dict | None) -> str:
    """What each distilled row took, beside what the generator that it starts from had taken."""
    body = []
    for name, row in table.rows.items():
        if row.method is None or METHODS[row.method].loop != "distill":
            continue
        made = [run["training"] for run in result["runs"] if run["row"] == name] if result else []
        values = [NOT_RUN] * 5
        if made:
            cost = made[0]["cost"]  # the same for each seed
            calls = (cost["forward"] / cost["updates"], cost["backward"] / cost["updates"])
            minutes = statistics.mean(map(core_seconds, made)) / 60
            size = max(one["peak_memory_mb"] for one in made) / 1024
            values = [
                f"{cost['updates']} x {cost['batch']}",
                "{:.0f} + {:.0f}".format(*calls),
                f"{cost['reward']}",
                f"{minutes:.1f}",
                f"{size:.1f} GB",
            ]
        body.append([told(row), *values])
    header = ["row", "updates x batch", "network calls an update", "reward queries", "training, min", "memory"]
    note = (
        "Of one run. A network call is one sample through one network, forward + backward, the assistant's updates "
        "and its warm-up counted in. Minutes are core minutes on a CPU, the mean over training seeds; memory is the "
        "peak of the process."
    )
    return f"## What it took\n\n{lines(header, body)}\n\n{note}"


def about(result: dict) -> str:
    """Where the numbers come from."""
    body = []
    for run in result["runs"]:
        training, evaluation = run["training"], run["evaluation"]
        name = run["row"] if run["seed"] is None else f"{run['row']}, seed {run['seed']}"
        minutes = [f"{core_seconds(part) / 60:.1f}" if part else "" for part in (training, evaluation)]
        made = training or evaluation
        memory = max(part["peak_memory_mb"] for part in (training, evaluation) if part)
        body.append([name, *minutes, f"{memory} MB", f"{made['device']}, {made['threads']} threads", commit(made)])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    table = lines(["run", "training, min", "evaluation, min", "memory of the process", "device", "commit"], body)
    beside = (
        "Minutes are CPU time, on a GPU or where none was recorded wall time. Settings, commands and every picture's "
        "scores are in the JSON beside this page."
    )
    return f"## Runs\n\n{table}\n\n{versions}. {beside}"


def commit(made: dict) -> str:
    """The start of its hash, with a plus where files had been changed."""
    return re.sub(r"^(.{9})[^+]*(\+?).*", r"\1\2", made["commit"] or "")


def readme_row(table: Table, result: dict | None) -> str:
    """The table of reproduce/README.md."""
    time, size = hours(table, result), memory(result)
    row = [
        f"[{table.title}](results/{table.name}.md)",
        f"`python reproduce/{table.name}.py`",
        result["scale"] if result else "pocket",
        NOT_RUN if time is None else f"{time:.2g}",
        NOT_RUN if size is None else f"{size:.1f} GB",
        total(table, result),
    ]
    return lines(["table", "command", "scale", "hours", "memory", "status of its claims"], [row])


def update_block(path: Path, name: str, text: str) -> None:
    """Put text between <!-- name:begin --> and <!-- name:end -->; a file without the markers stays as it is."""
    if path.exists() and (found := replace_block(path.read_text(encoding="utf-8"), name, text)) is not None:
        write_text(path, found)


def replace_block(content: str, name: str, text: str) -> str | None:
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{text}\n{m[2]}", content) if pattern.search(content) else None


def write_pages(table: Table, result: dict | None, path: Path, readmes: bool) -> None:
    """The page, and the READMEs' blocks if these are the results that are committed."""
    write_text(path, page(table, result))
    if readmes:
        update_block(ROOT / "reproduce" / "README.md", path.stem, readme_row(table, result))
        update_block(ROOT / "README.md", path.stem, tally(table, result))
