"""Write the lines of a table in README.md and reproduce/README.md again whenever a committed result changes."""

from reproduce.common.files import write_text
from reproduce.common.provenance import ROOT, core_seconds
from reproduce.harness.claims import STATUSES, claims_of
from reproduce.harness.declare import Table
from reproduce.harness.page import NOT_RUN, total
from reproduce.harness.rows import trained_here

BEGIN, END = "<!-- tables:begin -->\n", "<!-- tables:end -->"
ALL = "| **all** |"


def update(table: Table, result: dict | None) -> None:
    """Write the table's line in both READMEs."""
    for path, line in (
        (ROOT / "README.md", counts(table, result)),
        (ROOT / "reproduce" / "README.md", command(table, result)),
    ):
        write_text(path, with_line(path.read_text(encoding="utf-8"), line))


def counts(table: Table, result: dict | None) -> str:
    """Return README.md's line: claims by status, and core hours."""
    statuses = [claim["status"] for claim in result["claims"]] if result else [NOT_RUN for _ in claims_of(table)]
    time = hours(table, result)
    cells = [
        f"[{table.title}](reproduce/results/{table.name}.md)",
        *(f"{statuses.count(status)}" for status in STATUSES),
        NOT_RUN if time is None else f"{time:.2g}",
    ]
    return "| " + " | ".join(cells) + " |"


def command(table: Table, result: dict | None) -> str:
    """Return reproduce/README.md's line: command, training seeds, core hours, memory, claims."""
    time, size = hours(table, result), memory(result)
    seeds = str(len(table.seeds)) if any(row.method for row in table.rows.values()) else "none"
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


def with_line(content: str, line: str) -> str:
    """Put a line in the place of the one that begins alike; a table that has none yet comes last. Add up again.

    Raises:
        ValueError: the text has no table between the markers.
    """
    if BEGIN not in content or END not in content:
        raise ValueError(f"README without {BEGIN.strip()} ... {END}: put them around its table of tables")
    head, rest = content.split(BEGIN)
    block, tail = rest.split(END)
    header, rows = block.splitlines()[:2], [row for row in block.splitlines()[2:] if not row.startswith(ALL)]
    title = line.split(" | ")[0]
    names = [row.split(" | ")[0] for row in rows]
    if title in names:
        rows[names.index(title)] = line
    else:
        rows.append(line)
    sums = [added_up(rows)] if ALL in block else []
    return head + BEGIN + "\n".join(header + rows + sums) + "\n" + END + tail


def added_up(rows: list[str]) -> str:
    """Return the line of sums over the columns of claims. Hours are not added: tables share training runs."""
    columns = list(zip(*(row.split(" | ")[1:-1] for row in rows), strict=True))
    return " ".join([ALL, *(f"**{sum(map(int, column))}** |" for column in columns), " |"])
