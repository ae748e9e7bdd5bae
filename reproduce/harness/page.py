"""Write the page of a table in results/: Markdown, made from the table's declaration and its result alone.

Below, `result` is the content of results/<table>.json with corrected statuses (claims.correct), or None where nothing
was run.
"""

import re
import statistics
from dataclasses import asdict

from reproduce.common.provenance import core_seconds
from reproduce.data.pair_settings import FullPairConfig, PairConfig
from reproduce.harness.claims import PAPERS, claims_of
from reproduce.harness.comparisons import Scores, trained, training_seeds
from reproduce.harness.curves import spent
from reproduce.harness.declare import Row, Table
from reproduce.harness.markdown import full_title, markdown_table, mean_and_deviation
from reproduce.harness.rows import uses_pairs
from reproduce.harness.verdicts import (
    NOT_RUN,
    better,
    by_themselves,
    columns,
    equal_distance,
    learning,
    more_seeds,
    primary,
    tally,
    than,
    total,
    verdict,
)
from reproduce.papers.claim import printed, printed_line
from reproduce.recipes import recipe, sdpo
from reproduce.training.methods import METHODS

ELSEWHERE = "not part of this project"
ONE_SEED = (
    "**One training seed a row.** The intervals are over prompts and pictures alone: they say how sure a difference "
    "of these runs is, not whether another seed would show it. So no claim about a trained row is decided."
)
DECIDED = (
    "*equivalent* when the 90% interval lies inside the margin, a quarter of the untrained model's standard deviation "
    "within a prompt, and *inconclusive* otherwise"
)
TRAINED = (
    ", with the number of training seeds that would decide it, estimated. A comparison of two trained rows is *not "
    "learned* where neither rose above the untrained model by the margin. A claim about a row with a single training "
    "seed is *one seed*."
)
CORRECTED = (
    " Over all claims of the paper the false discovery rate is held at 5%: a status is the one after that correction, "
    "and where a claim would have another by itself, that one stands beside it. "
    "[More on this](../README.md#how-a-claim-is-decided)."
)


def page(table: Table, result: dict | None) -> str:
    """Write the whole page: what the numbers are, claims, figures, costs, the table itself, tuning, runs."""
    scale = result["scale"] if result else "pocket"
    stem = table.name + ("-full" if scale == "full" else "")
    parts = [f"# {table.title}"]
    if result and result["smoke"]:
        parts.append("**A smoke run: settings cut down until it is quick. Its numbers mean nothing.**")
    if result and "given" in result:
        parts.append(given(result["given"]))
    parts += introduction(table, result, scale)
    parts += [f"**Claims: {total(table, result)}.**{by_themselves(table, result)}", tally(table, result)]
    parts += [primary(table, result), *more_seeds(table, result)]
    if any(trained(row) for row in table.rows.values()):
        parts += [learning(table, result), equal_distance(table, result)]
    if result:
        pictures = (table.own.figures(result) if table.own.figures else {}) | table.own.drawings
        parts += [f"![{picture.caption}]({stem}-{name}.png)" for name, picture in pictures.items()]
    if table.own.curve or any(row.method in sdpo.RECIPES for row in table.rows.values()):
        parts.append(costs(table, result))
    elif any(distilled(row) for row in table.rows.values()):
        parts.append(distill_costs(table, result))
    if table.own.sections:
        parts += table.own.sections(table, result)
    parts += [section(table, result, prompts, steps) for prompts in table.prompts for steps in table.steps]
    if any(row.tuning for row in table.rows.values()):
        parts.append(tuning(table, result))
    if result:
        parts.append(runs(result))
    return "\n\n".join(parts) + "\n"


def introduction(table: Table, result: dict | None, scale: str) -> list[str]:
    """Say what the numbers are, how a claim is decided, what the metrics mean, and what the paper says."""
    unprinted = "The paper draws this." if table.own.figures else "The paper has no such table."
    seeds = training_seeds(table, result)
    numbers = ("Paper: the printed value." if printed(table.name) else unprinted) + " Ours: mean"
    numbers += f" ± standard deviation over {seeds} training seeds" if seeds > 1 else ""
    numbers += ", on the pocket world: compare the differences, not the values" if scale == "pocket" else ""
    decided = (
        "A claim is *reproduced* when the 95% interval of its paired difference, over "
        f"{'training seeds, ' * (seeds > 1)}prompts and pictures, lies above 0, *contradicted* when it lies below, "
        f"{DECIDED}{TRAINED if seeds else '.'}{CORRECTED}"
    )
    claims = PAPERS[table.name]
    return [
        f"Made by `python reproduce/{table.name}.py`; do not edit. {numbers}. {decided}",
        *([ONE_SEED] if seeds == 1 else []),
        *([table.note] if table.note else []),
        *([ranking(table, result, scale)] if uses_pairs(table) else []),
        f"**The paper's words** ({claims.source}). {claims.words}",
    ]


def given(settings: dict[str, dict]) -> str:
    """Say which settings the command line gave in the place of the table's."""
    told = (
        f"{row}: {', '.join(f'{name} = {value}' for name, value in some.items())}" for row, some in settings.items()
    )
    return f"**Not the table's own settings: given by --set.** {'; '.join(told)}."


def ranking(table: Table, result: dict | None, scale: str) -> str:
    """Say who ranked the pairs that offline rows learn from, and how often a run sees each of them."""
    made = (result or {}).get("pairs") or {"config": asdict(PairConfig() if scale == "pocket" else FullPairConfig())}
    config = made["config"]
    if "taste" in config:
        by = f"the simulated judge, in its taste for `{config['taste']}`, as the paper's are by people"
    elif "reward" in config:
        by = f"the reward `{config['reward']}`, where the paper's are by people"
    else:
        by = "people, as the paper's: they are Pick-a-Pic's"
    parts = [f"**Pairs.** Those that offline rows learn from are ranked by {by}."]
    if metric := table.metrics.get(config.get("reward")):
        parts.append(
            f"{metric.title} is a metric of this table, too: what these rows gain in it is what they were shown."
        )
    known = recipe("pso-offline", scale)
    draws, pairs = known["updates"][0] * known["batch"][0], made.get("pairs", config.get("count"))
    paper = "; in the paper 0.4 times, 851,293 pairs" if scale == "full" else ""
    if pairs:
        parts.append(f"A run of offline PSO sees each of {pairs:,} pairs {draws / pairs:.1f} times{paper}.")
    return " ".join(parts)


# the table itself


def section(table: Table, result: dict | None, prompts: str, steps: int) -> str:
    """Write one prompt set at one number of steps: the paper's values, ours, the claims, and what stands beside."""
    declared = table.prompts[prompts]
    name = getattr(declared, result["scale"] if result else "pocket")
    same_steps = not any(row.sampled for row in table.rows.values())
    parts = [f"## {declared.title} (here `{name}`)" + f", {steps} step{'s' * (steps > 1)}" * same_steps]
    for group, rows in groups(table).items():
        if group and len(table.metrics) > 1:
            parts.append(f"### {group}")
        parts.append(comparison(table, result, prompts, steps, rows))
    return "\n\n".join(parts + beside(table, result, (prompts, steps)))


def groups(table: Table) -> dict[str | None, dict[str, Row]]:
    """Split the rows into those that are compared with each other; a row without a group is in each."""
    named = dict.fromkeys(row.group for row in table.rows.values() if row.group) or {None: None}
    return {g: {name: row for name, row in table.rows.items() if row.group in (None, g)} for g in named}


def comparison(table: Table, result: dict | None, prompts: str, steps: int, rows: dict[str, Row]) -> str:
    """Compare rows metric by metric: a line for each row, a column for each row that a claim puts below another."""
    values = printed(table.name)
    claims = {
        (claim.metric, *better(table, claim)): claim
        for claim in claims_of(table)
        if (claim.prompts, claim.steps) == (prompts, steps) and {claim.above, claim.below} <= rows.keys()
    }
    others = [name for name in rows if any(worse == name for _, _, worse in claims)]
    shown = set().union(*(row.metrics or table.metrics for row in rows.values() if row.group)) or table.metrics
    body = []
    for metric, column in columns(table, result).items():
        for number, (name, row) in enumerate(rows.items()):
            if metric not in shown:
                continue
            cells = [column.title, row.title]
            if values:
                cells.append(printed_line(values, prompts, name, steps).get(metric, ""))
            cells.append(ours(table, result, name, (prompts, steps), metric, column.decimals))
            for other in others:  # each pair once: at the later of its rows
                later = number > list(rows).index(other) and not row.elsewhere
                cells.append(verdict(claims.get((metric, name, other)), result, column.decimals) if later else "")
            body.append(cells)
    numbers = ["paper", "ours"] if values else ["ours"]
    return markdown_table(["metric", "row", *numbers, *(f"{than(table)} {rows[name].title}" for name in others)], body)


def ours(table: Table, result: dict | None, row: str, cell: tuple[str, int], metric: str, decimals: int) -> str:
    """Write what we measured of a row, as in "22.40 ± 0.02".

    Args:
        cell: (prompts, steps) of the table.
    """
    if table.rows[row].elsewhere:
        return ELSEWHERE
    cells = Scores(table, result["runs"], result["prompts"]).cells(row, *cell) if result else None
    if not cells:
        return NOT_RUN
    means = [each["means"].get(metric) for each in cells.values()]
    return "none" if None in means else mean_and_deviation(means, decimals)


def beside(table: Table, result: dict | None, cell: tuple[str, int]) -> list[str]:
    """Write what the paper does not have, measured on the same pictures; nothing where there is no such metric."""
    made = result["runs"] if result else []
    scored = {name for run in made[:1] for measured in run["cells"].values() for name in measured["means"]}
    shown = {name: column for name, column in table.beside.items() if not made or name in scored}
    if not shown:
        return []
    body = [
        [full_title(row), *(ours(table, result, name, cell, metric, c.decimals) for metric, c in shown.items())]
        for name, row in table.rows.items()
        if not row.elsewhere
    ]
    header = ["row", *(column.title for column in shown.values())]
    return ["Beside the paper's metrics, on the same pictures:", markdown_table(header, body)]


# what it took, and where the numbers come from


def costs(table: Table, result: dict | None) -> str:
    """Write what each trained row took, and for a curve how far from the reference it went."""
    formats = {"samples": ".0f", "queries": ".0f", "hours": ".3f"} | ({"kl": ".3g"} if table.own.curve else {})
    titles = {"samples": "samples", "queries": "reward queries", "hours": "training, hours", "kl": "KL of a step"}
    body = []
    for name, row in table.rows.items():
        if row.method is None:
            continue
        made = [run for run in result["runs"] if run["row"] == name] if result else []
        timed = [run for run in made if "cpu_seconds" in run["training"]]  # older runs have wall time alone
        cells = [full_title(row)]
        for key, form in formats.items():
            counted = timed or made if key == "hours" else made
            ends = [run["curve"][-1] if table.own.curve else spent(run["training"]) for run in counted]
            wall = " (wall)" if key == "hours" and not timed else ""
            cells.append(f"{statistics.mean(end[key] for end in ends):{form}}{wall}" if ends else NOT_RUN)
        body.append(cells)
    over = ", the mean over training seeds" if training_seeds(table, result) > 1 else ""
    note = (
        f"Of one run{over}. Hours are core hours on a CPU, of the runs that recorded CPU time; *wall* where none did: "
        "longer, since another run was beside it."
    )
    if table.own.curve:
        note += (
            " KL to the reference in nats, summed over dimensions, the mean over the stochastic steps of the policy's "
            "own trajectories at the end of training, with as many steps as it was trained with."
        )
    return "\n\n".join(["## What it took", markdown_table(["row", *(titles[key] for key in formats)], body), note])


def distilled(row: Row) -> bool:
    return row.method is not None and METHODS[row.method].loop == "distill"


def distill_costs(table: Table, result: dict | None) -> str:
    """Write what each distilled row took."""
    body = []
    for name, row in table.rows.items():
        if not distilled(row):
            continue
        made = [run["training"] for run in result["runs"] if run["row"] == name] if result else []
        cells = [NOT_RUN] * 5
        if made:
            cost = made[0]["cost"]  # the same for each seed
            cells = [
                f"{cost['updates']} x {cost['batch']}",
                f"{cost['forward'] / cost['updates']:.0f} + {cost['backward'] / cost['updates']:.0f}",
                f"{cost['reward']}",
                f"{statistics.mean(map(core_seconds, made)) / 60:.1f}",
                f"{max(one['peak_memory_mb'] for one in made) / 1024:.1f} GB",
            ]
        body.append([full_title(row), *cells])
    header = ["row", "updates x batch", "network calls an update", "reward queries", "training, min", "memory"]
    note = (
        "Of one run. A network call is one sample through one network, forward + backward, the assistant's updates "
        "and its warm-up counted in. Minutes are core minutes on a CPU, the mean over training seeds; memory is the "
        "peak of the process."
    )
    return "\n\n".join(["## What it took", markdown_table(header, body), note])


def tuning(table: Table, result: dict | None) -> str:
    """Write what was tried for each row before its settings were fixed."""
    tried = result["tuning"] if result else {name: row.tuning for name, row in table.rows.items() if row.tuning}
    body = [[full_title(table.rows[name]), what] for name, what in tried.items()]
    return "## Tuning\n\n" + markdown_table(["row", "tried"], body)


def runs(result: dict) -> str:
    """Write where the numbers come from: time, memory, device and commit of each run, and the versions."""
    body = []
    for run in result["runs"]:
        training, evaluation = run["training"], run["evaluation"]
        name = run["row"] if run["seed"] is None else f"{run['row']}, seed {run['seed']}"
        minutes = [f"{core_seconds(part) / 60:.1f}" if part else "" for part in (training, evaluation)]
        memory = max(part["peak_memory_mb"] for part in (training, evaluation) if part)
        made = training or evaluation
        commit = re.sub(r"^(.{9})[^+]*(\+?).*", r"\1\2", made["commit"] or "")  # a plus: files had been changed
        body.append([name, *minutes, f"{memory} MB", f"{made['device']}, {made['threads']} threads", commit])
    header = ["run", "training, min", "evaluation, min", "memory of the process", "device", "commit"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    note = (
        f"{versions}. Minutes are CPU time, on a GPU or where none was recorded wall time. Settings, commands and "
        "every picture's scores are in the JSON beside this page."
    )
    return "\n\n".join(["## Runs", markdown_table(header, body), note])
