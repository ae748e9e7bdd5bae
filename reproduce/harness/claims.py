"""The papers' claims (claims.yaml), and how a result decides them."""

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from fsalign_lib.metrics.statistics import Interval

PATH = Path(__file__).parents[1] / "claims.yaml"
STATUSES = ("reproduced", "contradicted", "inconclusive", "not run")


@dataclass(frozen=True)
class Claim:
    """Row `above` has a higher `metric` than row `below`, at that number of steps, on those prompts."""

    id: str
    metric: str
    above: str
    below: str
    steps: int
    prompts: str
    printed: tuple[float, float] | None = None  # None: the paper draws it


@functools.cache
def read_file() -> dict:
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


def read_claims(table: str) -> list[Claim]:
    """The claims of a table, such as "pso-table2"."""
    claims = read_file()[table]["claims"]
    return [Claim(**claim | ({"printed": tuple(claim["printed"])} if "printed" in claim else {})) for claim in claims]


def status(interval: Interval | None) -> str:
    """What a 95% interval of (above - below) says of a claim; None where a row was not run."""
    if interval is None:
        return "not run"
    if not interval.excludes(0.0):
        return "inconclusive"
    return "reproduced" if interval.estimate > 0 else "contradicted"


def count(statuses: Iterable[str]) -> str:
    """ "30 reproduced, 2 contradicted, 12 inconclusive"; "not run" when all are."""
    found = Counter(statuses)
    if set(found) <= {"not run"}:
        return "not run"
    return ", ".join(f"{found[s]} {s}" for s in STATUSES if found[s])
