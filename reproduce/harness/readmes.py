"""Write the lines of a table in README.md and reproduce/README.md again whenever a committed result changes.

A result changes the corrected statuses of the paper's other tables, too: so their counts are written again with it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from reproduce.common.files import write_text
from reproduce.common.provenance import ROOT, core_seconds
from reproduce.harness.claims import PAPERS as TABLES
from reproduce.harness.claims import (
    claims_of,
    correct,
    count,
    paper_of,
    primary_claims,
    primary_records,
    read_claims,
)
from reproduce.harness.comparisons import training_seeds
from reproduce.harness.declare import Table
from reproduce.harness.protocol import STATUSES
from reproduce.harness.rows import trained_here
from reproduce.harness.verdicts import NOT_RUN, total

ALL = "| **all** |"
TITLES = {"pso": "PSO", "sdpo": "SDPO", "dipp": "DI++", "distar": "DI*"}
KINDS = ("primary claims", "all claims", "all, each by itself")


def update(table: Table, result: dict | None, others: Mapping[str, dict]) -> None:
    """Write the table's line in both READMEs, and the counts of its paper.

    Args:
        others: the results of the paper's other tables.
    """
    results = dict(others) | ({table.name: result} if result else {})
    there = {name: correct(one, (r for key, r in results.items() if key != name)) for name, one in results.items()}
    for path, line, kinds in (
        (ROOT / "README.md", counts(table, result), ("primary claims",)),
        (ROOT / "reproduce" / "README.md", command(table, result), KINDS),
    ):
        content = with_line(path.read_text(encoding="utf-8"), line)
        for name in others:
            content = with_statuses(content, name, [claim["corrected"] for claim in there[name]["claims"]])
        for kind in kinds:
            content = with_line(content, paper_line(paper_of(table.name), there, kind), "papers")
        write_text(path, content)


def paper_line(paper: str, results: Mapping[str, dict], kind: str) -> str:
    """Return how the claims of a paper came out; those of a table without a result are not run.

    Args:
        results: of the paper's tables, with corrected statuses.
        kind: one of KINDS.
    """
    statuses = []
    for name in (name for name in TABLES if paper_of(name) == paper):
        claims = read_claims(name)
        if name not in results:
            count = len(primary_claims(claims)) if kind == KINDS[0] else len(claims)
            statuses += [NOT_RUN] * count
        elif kind == KINDS[0]:
            statuses += [about["corrected"] for about in primary_records(results[name]).values()]
        else:
            statuses += [about["corrected" if kind == KINDS[1] else "status"] for about in results[name]["claims"]]
    return "| " + " | ".join([f"{TITLES[paper]}, {kind}", *numbers(statuses)]) + " |"


def counts(table: Table, result: dict | None) -> str:
    """Return README.md's line: claims by status, and core hours."""
    statuses = [claim["corrected"] for claim in result["claims"]] if result else [NOT_RUN for _ in claims_of(table)]
    time = hours(table, result)
    cells = [
        f"[{table.title}](reproduce/results/{table.name}.md)",
        *numbers(statuses),
        NOT_RUN if time is None else f"{time:.2g}",
    ]
    return "| " + " | ".join(cells) + " |"


def numbers(statuses: Iterable[str]) -> list[str]:
    """Return how many there are of each status, in the order of STATUSES."""
    statuses = list(statuses)
    return [f"{statuses.count(status)}" for status in STATUSES]


def command(table: Table, result: dict | None) -> str:
    """Return reproduce/README.md's line: command, training seeds, core hours, memory, claims."""
    time, size = hours(table, result), memory(result)
    seeds = str(training_seeds(table, result) or "none")
    cells = [
        f"[{table.title}](results/{table.name}.md)",
        f"`python reproduce/{table.name}.py`",
        seeds,
        NOT_RUN if time is None else f"{time:.2g}",
        NOT_RUN if size is None else f"{size:.1f} GB",
        total(table, result),
    ]
    return "| " + " | ".join(cells) + " |"


def hours(table: Table, result: dict | None) -> float | None:
    """Return the core hours (on a CPU) of all runs; runs that another table trains are counted there."""
    if not result or not result["runs"]:
        return None
    trains = any(trained_here(table, row) for row in table.rows.values())
    keys = ("training", "evaluation") if trains else ("evaluation",)
    parts = [result["pairs"]] + [run[key] for run in result["runs"] for key in keys]
    return sum(core_seconds(part) for part in parts if part) / 3600


def memory(result: dict | None) -> float | None:
    """Return the peak of the largest process, in GB."""
    if not result or not result["runs"]:
        return None
    parts = [run[key] for run in result["runs"] for key in ("training", "evaluation")]
    return max(part["peak_memory_mb"] for part in parts if part) / 1024


def with_line(content: str, line: str, block: str = "tables") -> str:
    """Put a line in the place of the one that begins alike; one that there is none of yet comes last. Add up again.

    Args:
        block: name of the markers between which the lines stand.

    Raises:
        ValueError: the text has no table between the markers.
    """
    begin, end = f"<!-- {block}:begin -->\n", f"<!-- {block}:end -->"
    if begin not in content or end not in content:
        raise ValueError(f"README without {begin.strip()} ... {end}: put them around its table of {block}")
    head, rest = content.split(begin)
    inside, tail = rest.split(end)
    header, rows = inside.splitlines()[:2], [row for row in inside.splitlines()[2:] if not row.startswith(ALL)]
    title = line.split(" | ")[0]
    names = [row.split(" | ")[0] for row in rows]
    if title in names:
        rows[names.index(title)] = line
    else:
        rows.append(line)
    sums = [added_up(rows)] if ALL in inside else []
    return head + begin + "\n".join(header + rows + sums) + "\n" + end + tail


def with_statuses(content: str, name: str, statuses: Sequence[str]) -> str:
    """Put new counts of its claims into the line of a table, which stays as it is otherwise."""

    def line(found: re.Match) -> str:
        title, *cells = found[0].strip("| ").split(" | ")
        # README.md has a column for each status, and one more; reproduce/README.md has the counts in its last.
        of_claims = (*numbers(statuses), cells[-1]) if "](reproduce/" in title else (*cells[:-1], count(statuses))
        return "| " + " | ".join((title, *of_claims)) + " |"

    return re.sub(rf"^\| \[[^]]+\]\([\w/]*results/{name}\.md\) \|.*$", line, content, flags=re.MULTILINE)


def added_up(rows: list[str]) -> str:
    """Return the line of sums over the columns of claims. Hours are not added: tables share training runs."""
    columns = list(zip(*(row.split(" | ")[1:-1] for row in rows), strict=True))
    return " ".join([ALL, *(f"**{sum(map(int, column))}** |" for column in columns), " |"])
