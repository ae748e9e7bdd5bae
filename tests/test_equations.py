"""notebooks/equations.csv names every numbered equation of the four papers and where it is derived, or says why not."""

import csv
import functools
import json
import re

import pytest

from tests.test_tags import ROOT, library, notebooks, tags

# What the papers number, counted in the papers
EVERY = [
    *(f"PSO Eq. {n}" for n in range(1, 15)),
    *(f"PSO Alg. {n}" for n in range(1, 4)),
    *(f"SDPO Eq. {n}" for n in range(1, 28)),
    "SDPO Alg. 1",
    *(f"DI++ Eq. 2.{n}" for n in range(1, 4)),
    *(f"DI++ Eq. 3.{n}" for n in range(1, 11)),
    *(f"DI++ Eq. B.{n}" for n in range(1, 20)),
    *(f"DI++ Eq. C.{n}" for n in range(1, 12)),
    *(f"DI++ Thm 3.{n}" for n in (1, 2, 3, 5)),
    *(f"DI++ Alg. {n}" for n in range(1, 4)),
    "DI++ Listing 1",
    *(f"DI* Eq. 2.{n}" for n in range(1, 3)),
    *(f"DI* Eq. 3.{n}" for n in range(1, 9)),
    *(f"DI* Thm 3.{n}" for n in range(1, 3)),
    "DI* Alg. 1",
]
STATUSES = ("derived", "asserted", "corrected")
ASSERTION = re.compile(r"\bassert\b|\bverify\(|\bcheck\(")
ROWS = list(csv.DictReader((ROOT / "notebooks/equations.csv").read_text(encoding="utf-8").splitlines()))
ROW = {row["equation"]: row for row in ROWS}


@functools.cache
def cells() -> dict[str, list[tuple[str, str]]]:
    """The kind and the source of each cell, by the number of the notebook."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        of_one = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found[path.name[:2]] = [(cell["cell_type"], "".join(cell["source"]).replace("\\*", "*")) for cell in of_one]
    return found


def places(row: dict[str, str], column: str) -> list[str]:
    return row[column].split(" | ") if row[column] else []


def fault(place: str, column: str, cells: dict[str, list[tuple[str, str]]]) -> str | None:
    """Say what is wrong with a place: "05: text of one cell", or "path/to/file.py::function"."""
    if "::" in place and ".py" in place:
        path, function = place.split("::")
        if not (ROOT / path).is_file():
            return "no such file"
        if not re.search(rf"^def {function}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE):
            return "no such function"
        if column in ("stated", "derived"):
            return "code states and derives nothing"
        return None if path.startswith("tests/") or column == "corrected" else "asserts nothing: name a test"
    number, text = place.split(": ", 1)
    kinds = {
        "stated": ("markdown",),
        "derived": ("markdown",),
        "asserted": ("code",),
        "corrected": ("markdown", "code"),
    }
    holding = [(kind, source) for kind, source in cells.get(number, []) if kind in kinds[column] and text in source]
    if len(holding) != 1:
        return f"found in {len(holding)} cells, not in one"
    kind, source = holding[0]
    if kind == "code" and not ASSERTION.search(source):
        return "the cell asserts nothing"
    return "the cell has no formula" if column == "derived" and "$" not in source else None


def test_every_number_of_the_papers_is_in_the_table_once():
    assert [row["equation"] for row in ROWS] == EVERY


@pytest.mark.parametrize("equation", EVERY)
def test_each_place_is_there_or_a_reason_is(equation):
    row = ROW[equation]
    wrong = {place: fault(place, column, cells()) for column in ("stated", *STATUSES) for place in places(row, column)}
    assert {place: why for place, why in wrong.items() if why} == {}
    assert row["about"] and not any("\\|" in row[column] for column in STATUSES), (
        "an escaped bar breaks the table of 00"
    )
    if not any(row[column] for column in STATUSES):
        assert row["note"].startswith("Because "), "neither derived nor asserted nor corrected: say why"
    assert row["note"] or not row["corrected"], "say what was corrected"


def test_a_tag_names_an_equation_of_the_table_and_the_table_a_notebook_with_the_tag():
    texts = notebooks()
    for tag in sorted(tags("\n".join(texts.values())) | tags("\n".join(library().values()))):
        if tag.split()[0][1:] not in {equation.split()[0] for equation in EVERY}:
            continue  # Diffusion-DPO's
        row = ROW[tag[1:-1]]
        named = {place[:2] for column in ("stated", *STATUSES) for place in places(row, column) if ".py" not in place}
        assert any(path.name[:2] in named and tag in text for path, text in texts.items()), f"{tag}: {sorted(named)}"


def test_a_text_that_is_taken_away_is_missed():
    for row in ROWS:
        for column in ("stated", *STATUSES):
            for place in places(row, column):
                if ".py" not in place:
                    number, text = place.split(": ", 1)
                    without = {number: [(kind, source.replace(text, "")) for kind, source in cells()[number]]}
                    assert fault(place, column, without) == "found in 0 cells, not in one"


def test_wrong_places_are_told():
    some = {
        "05": [
            ("markdown", "## [PSO Eq. 5] $x$"),
            ("code", "verify(x)"),
            ("code", "print(x)"),
            ("markdown", "in words"),
        ]
    }
    assert fault("05: [PSO Eq. 5]", "derived", some) is None
    assert fault("05: verify(x)", "asserted", some) is None
    assert (
        fault("05: [PSO Eq. 5]", "asserted", some) == fault("06: x", "stated", some) == "found in 0 cells, not in one"
    )
    assert fault("05: x", "corrected", some) == "found in 3 cells, not in one"
    assert fault("05: print(x)", "asserted", some) == "the cell asserts nothing"
    assert fault("05: in words", "derived", some) == "the cell has no formula"
    here = "tests/test_equations.py::"
    assert fault(f"{here}test_wrong_places_are_told", "asserted", some) is None
    assert fault(f"{here}test_that_was_never_written", "asserted", some) == "no such function"
    assert fault("tests/test_nothing.py::test_x", "asserted", some) == "no such file"
    assert fault("fsalign_lib/rollout.py::rollout", "asserted", some) == "asserts nothing: name a test"


def test_the_map_shows_the_table_as_it_is():
    start = json.loads((ROOT / "notebooks/00_start_here.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = "".join(
        text
        for cell in start
        for output in cell.get("outputs", [])
        for text in output.get("data", {}).get("text/markdown", [])
    )
    lines = [f"| {row['equation']} | {row['about']} |".replace("*", "\\*") for row in ROWS]
    assert [line for line in lines if line not in shown] == [], "run notebook 00 again"
