"""Write tables, titles and numbers as the pages have them."""

import statistics
from collections.abc import Sequence

from reproduce.harness.declare import Row


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def full_title(row: Row) -> str:
    """Return the row's title with its group."""
    return f"{row.title}, {row.group}" if row.group else row.title


def mean_and_deviation(values: Sequence[float], decimals: int) -> str:
    """Write the mean over training seeds and, of more than one, their standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{deviation}"


def interval(found: dict, decimals: int) -> str:
    """Write an estimate and its interval, as in "+0.21 [+0.10, +0.32]"."""
    estimate, low, high = (f"{found[key]:+.{decimals}f}" for key in ("estimate", "low", "high"))
    return f"{estimate} [{low}, {high}]"
