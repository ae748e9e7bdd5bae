"""`make seeds`: the seed is replaced, each failing cell is counted where it stands, and hides none that comes after."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from tests import seeds

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def write(folder: Path, *cells: str, name: str = "05_small.ipynb") -> Path:
    """Write a notebook of a text cell and these code cells."""
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_markdown_cell("# Small"), *map(new.new_code_cell, cells)])
    nbformat.write(notebook, folder / name)
    return folder / name


def test_failed_cells_are_counted_by_position_and_hide_nothing(tmp_path, capsys):
    path = write(
        tmp_path,
        "SEED = 0  # everything is drawn from it",
        "assert SEED == 7, 'some words\\nand the last line'",
        "found = SEED + 1\nassert found == 8",
        "def verify(a, b):\n    assert a == b\nverify(found, 9)",
    )
    before = path.read_bytes()
    out = tmp_path / "deep/seeds.json"
    arguments = ["05", "--seeds", "7", "8", "--folder", str(tmp_path), "--out", str(out)]
    assert seeds.main(arguments) == 1
    assert path.read_bytes() == before
    runs = {run["seed"]: run["failed"] for run in json.loads(out.read_text())}
    assert runs == {
        7: [{"cell": 4, "error": "AssertionError: assert a == b"}],
        8: [
            {"cell": 2, "error": "AssertionError: and the last line"},
            {"cell": 3, "error": "AssertionError: assert found == 8"},
        ],
    }
    printed = capsys.readouterr().out
    assert re.search(r"failed cells +seed 7 +seed 8\n05_small +1 +2\n", printed)
    assert "05_small, seed 8, cell 3: AssertionError: assert found == 8\n" in printed


def test_no_failed_cell_is_success(tmp_path, monkeypatch):
    write(tmp_path, "SEED = 0")
    monkeypatch.setattr(
        seeds, "run", lambda path, seed, timeout: {"notebook": path.stem, "seed": seed, "seconds": 0, "failed": []}
    )
    assert seeds.main(["--seeds", "3", "--folder", str(tmp_path), "--out", str(tmp_path / "seeds.json")]) == 0


@pytest.mark.parametrize("cells", [["seed = 0"], ["SEED = 0", "SEED = 1"]], ids=["none", "two"])
def test_a_notebook_names_its_seed_once(tmp_path, cells, capsys):
    write(tmp_path, *cells)
    with pytest.raises(SystemExit):
        seeds.main(["--folder", str(tmp_path), "--out", str(tmp_path / "seeds.json")])
    assert f"05_small.ipynb: found {len(cells) * ('SEED' in cells[0])} lines 'SEED = n'" in capsys.readouterr().err
    assert not (tmp_path / "seeds.json").exists()


def test_a_name_that_no_notebook_has_is_refused(tmp_path, capsys):
    write(tmp_path, "SEED = 0")
    with pytest.raises(SystemExit):
        seeds.main(["77", "--folder", str(tmp_path)])
    assert "77: no notebook" in capsys.readouterr().err


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_draws_from_its_one_seed(path):
    code = "\n".join(cell.source for cell in seeds.reseeded(path, 1).cells if cell.cell_type == "code")
    assert len(re.findall(r"\bSEED\b", code)) > 1, "SEED is named and not used"
    assert re.findall(r"manual_seed\(\d+\)|\bseed=\d+", code) == [], "drawn past SEED"
