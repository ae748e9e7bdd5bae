"""Guards the notebooks before nbval runs them.

nbval compares nothing at a cell whose execution_count is missing, so a notebook that was committed unrun would pass
whatever it prints. Such a notebook fails at collection, with or without --nbval.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # the kernels inherit it


def unrun_cells(notebook: Path) -> list[int]:
    """The positions, from 0 over all cells, of code cells that have not been run and are not tagged nbval-skip."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [
        position
        for position, cell in enumerate(cells)
        if cell["cell_type"] == "code"
        and "".join(cell["source"]).strip()
        and cell.get("execution_count") is None
        and "nbval-skip" not in cell["metadata"].get("tags", [])
    ]


class UnrunNotebook(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        raise self.CollectError(
            f"{self.path.name}: code cells {unrun_cells(self.path)} were never run, so nbval would compare nothing "
            "there: run `make notebooks` and commit the result"
        )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> UnrunNotebook | None:
    if file_path.suffix == ".ipynb" and unrun_cells(file_path):
        return UnrunNotebook.from_parent(parent, path=file_path)
    return None
