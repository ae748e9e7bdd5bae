"""What README says of a table in words is what the committed result says."""

import json
import re

import pytest

from reproduce.common.provenance import ROOT

RESULTS = ROOT / "reproduce" / "results"
README = (ROOT / "README.md").read_text("utf-8")
LINE = re.compile(r"^(\| `reproduce/(\w+)\.py` \|.*\| run.*?\[results\])", re.MULTILINE)
ROWS = {name: line for line, name in LINE.findall(README)}  # of the scripts that were run


def counted(name: str) -> str:
    """As in "of 40 claims 29 reproduced, 8 contradicted, 3 inconclusive"."""
    statuses = [claim["status"] for claim in json.loads((RESULTS / f"{name}.json").read_text())["claims"]]
    run = [status for status in statuses if status != "not run"]
    told = ", ".join(
        f"{run.count(kind)} {kind}" for kind in ("reproduced", "contradicted", "inconclusive") if kind in run
    )
    return f"{len(run)} claims {told}"


def test_every_result_has_its_row():
    there = {path.stem for path in RESULTS.glob("*.json")} - {path.stem for path in RESULTS.glob("*-full*.json")}
    assert {name for name in there if "table" in json.loads((RESULTS / f"{name}.json").read_text())} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_claims_are_counted_as_in_the_result(name):
    assert counted(name) in ROWS[name]
