"""Define a claim of a paper, and the patterns by which claims of one kind are written once."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

Names = str | tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """Claim that row `above` has a higher `metric` than row `below`, at that number of steps, on those prompts."""

    id: str
    metric: str
    above: str
    below: str
    steps: int
    prompts: str
    # The id of the question that it is a part of: the same rows, metric and prompts, the mean over numbers of steps.
    # None: it asks a primary claim's question again, in another measure.
    primary: str | None = None
    printed: tuple[float, float] | None = None  # the paper's values of the two rows; None: it prints none


@dataclass(frozen=True)
class Pattern:
    """Write claims of one kind once: each row of `above` is above each row of `below`.

    One claim is made for each pair of rows, metric, prompt set and number of steps, in the order of the fields below.
    A "*" in a row or metric stands for each of `rewards` in turn. In an id the names of rows are written without "-*".
    """

    above: Names
    below: Names
    metrics: Names
    prompts: Names
    steps: int | tuple[int, ...]
    id: str = "{above}-above-{below}-{metric}-{steps}step-{prompts}"
    rewards: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()  # metrics of which less is better: there the row of `below` has the higher value
    but: tuple[dict, ...] = ()  # exceptions, such as {"above": row, "metric": name}: what agrees with one is no claim
    primary: tuple[str, ...] | None = None  # metrics whose claims are primary; None: all

    def claims(self, table: str) -> Iterator[Claim]:
        """Yield the claims, without printed values; their ids begin with the table's name, such as "pso-table2-".

        Raises:
            ValueError: an exception leaves no claim out.
        """
        used = []  # exceptions
        fields = ("above", "below", "metric", "prompts", "steps")
        values = (self.above, self.below, self.metrics, self.prompts, self.steps)
        for reward, *combination in product(self.rewards or ("",), *map(several, values)):
            written = dict(zip(fields, combination, strict=True))
            exceptions = [some for some in self.but if some.items() <= written.items()]
            used += exceptions
            if exceptions:
                continue
            claimed = {k: v.replace("*", reward) if isinstance(v, str) else v for k, v in written.items()}
            short = {row: written[row].removesuffix("-*") for row in ("above", "below")}
            named = claimed | short | {"reward": reward}
            name, prefix, question = self.id.format(**named), table.replace("_", "-"), None
            if self.primary is None or written["metric"] in self.primary:
                # One question is asked at several numbers of steps: its id names none.
                one = self.id.replace("-{steps}step", "") if len(several(self.steps)) > 1 else self.id
                question = f"{prefix}-{one.format(**named)}"
            if claimed["metric"] in self.lower:
                claimed["above"], claimed["below"] = claimed["below"], claimed["above"]
            yield Claim(f"{prefix}-{name}", **claimed, primary=question)
        for exception in self.but:
            if exception not in used:
                raise ValueError(f"{table}: the exception {exception} leaves no claim out; correct it or take it away")


@dataclass(frozen=True)
class TableClaims:
    """State what a paper says of one of its tables or figures, in its words and as patterns."""

    source: str
    words: str  # quoted, with what they are taken to claim and what they are not
    patterns: tuple[Pattern, ...]
    by: tuple[str, ...] = ()  # fields that order the claims, such as ("prompts", "metric"); none: pattern by pattern

    def claims(self, table: str) -> list[Claim]:
        """Return the claims in their order, with the values that papers/<table>.csv prints.

        Args:
            table: the name of its script, such as "pso_table2".

        Raises:
            ValueError: two claims of one id, or a printed pair that contradicts its claim.
        """
        found = [claim for pattern in self.patterns for claim in pattern.claims(table)]
        # `by` moves claims that share a value next to each other, in the order in which the values first occur.
        order = {key: list(dict.fromkeys(getattr(claim, key) for claim in found)) for key in self.by}
        found.sort(key=lambda claim: [order[key].index(getattr(claim, key)) for key in self.by])
        values = printed(table)
        found = [replace(claim, printed=printed_pair(values, claim)) for claim in found]
        for number, claim in enumerate(found):
            if any(claim.id == other.id for other in found[:number]):
                raise ValueError(f"{claim.id}: two claims have this id; give one of their patterns another")
            if claim.printed and claim.printed[0] <= claim.printed[1]:
                raise ValueError(
                    f"{claim.id}: the paper prints {claim.printed[0]} for {claim.above} and {claim.printed[1]} for "
                    f"{claim.below}; except it from the pattern"
                )
        return found


def several(value: Names | int | tuple[int, ...]) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def printed(table: str) -> dict[tuple[str, str, int], dict[str, str]]:
    """Read what the paper prints: (prompts, row, steps) -> metric -> the number as printed, "" where there is none.

    Args:
        table: the name of its script, such as "pso_table2". A table that the paper only draws has no numbers.
    """
    path = Path(__file__).with_name(f"{table}.csv")
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {(line["prompts"], line["row"], int(line["steps"])): line for line in csv.DictReader(file)}


def printed_line(values: dict, prompts: str, row: str, steps: int) -> dict[str, str]:
    """Return a row's numbers at these steps.

    A row that is printed at one number of steps alone, such as a teacher, has those numbers in every column.
    """
    if (prompts, row, steps) in values:
        return values[prompts, row, steps]
    lines = [line for (some, name, _), line in values.items() if (some, name) == (prompts, row)]
    return lines[0] if len(lines) == 1 else {}


def printed_pair(values: dict, claim: Claim) -> tuple[float, float] | None:
    """Return the printed numbers of a claim's two rows; None unless both are printed."""
    cells = [
        printed_line(values, claim.prompts, row, claim.steps).get(claim.metric) for row in (claim.above, claim.below)
    ]
    return (float(cells[0]), float(cells[1])) if all(cells) else None
