"""The notebooks' exercises: each has a stub that says so, and a folded solution that passes the check beside it."""

import json
import re
from pathlib import Path

import pytest

from fsalign_lib.lesson.exercise import NOT_ATTEMPTED
from tests.fsalign_lib.lesson.test_exercises import EXERCISES

WHOLE = {
    path.name: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
}
NOTEBOOKS = {name: notebook["cells"] for name, notebook in WHOLE.items()}
FOLDED = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)```\n</details>", re.DOTALL)


def sources(cells: list[dict], kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def solutions() -> list[tuple[str, str]]:
    """(notebook, code) of every folded solution that is code."""
    return [
        (name, code)
        for name, cells in NOTEBOOKS.items()
        for code in FOLDED.findall("\n".join(sources(cells, "markdown")))
    ]


def written(name: str) -> list[str]:
    """The names of the exercises whose stub a notebook has."""
    return re.findall(r"^check_(\w+)\(\1\)$", "\n".join(sources(NOTEBOOKS[name], "code")), re.MULTILINE)


@pytest.mark.parametrize("notebook, code", solutions(), ids=lambda text: re.sub(r"\W.*", "", text.replace("def ", "")))
def test_the_folded_solution_passes(notebook, code):
    (name,) = re.findall(r"^def (\w+)\(", code, re.MULTILINE)
    assert name in written(notebook), "a stub and a check stand beside the solution"
    imports = re.findall(r"^import torch[\w. ]*$", "\n".join(sources(NOTEBOOKS[notebook], "code")), re.MULTILINE)
    space = {}
    exec("\n".join([*imports, code]), space)
    assert EXERCISES[name].verdict(space[name]) == "right."


def test_every_exercise_stands_in_one_notebook_with_its_solution():
    stubs = [name for notebook in NOTEBOOKS for name in written(notebook)]
    assert sorted(stubs) == sorted(EXERCISES)
    assert sorted(re.search(r"^def (\w+)\(", code, re.MULTILINE)[1] for _, code in solutions()) == sorted(EXERCISES)


@pytest.mark.parametrize("notebook", [name for name in NOTEBOOKS if not name.startswith("00")])
def test_every_notebook_has_two_and_is_committed_unanswered(notebook):
    assert len(written(notebook)) >= 2
    told = [
        "".join(output["text"]).strip()
        for cell in NOTEBOOKS[notebook]
        for output in cell.get("outputs", [])
        if output["output_type"] == "stream"
    ]
    for name in written(notebook):
        assert f"{name}: {NOT_ATTEMPTED}" in told


@pytest.mark.parametrize("notebook", WHOLE)
def test_no_widget_is_committed(notebook):
    """Its model would be gone: a reader of the page saw an error, or nothing, in its place."""
    kinds = {
        kind
        for cell in NOTEBOOKS[notebook]
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
        if "widget" in kind
    }
    assert kinds == set() and "widgets" not in WHOLE[notebook]["metadata"]
