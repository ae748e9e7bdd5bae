"""Run the notebooks at other seeds, and name every cell that fails there.

python tests/seeds.py                          # all notebooks, at seeds 1, 2 and 3
python tests/seeds.py 05 07 --seeds 11 12 13   # those whose name begins so

Each notebook names its seed once, by a line `SEED = n`, and draws everything from it. That line alone is replaced; the
files stay as they are. A cell that raises does not stop the ones after it, so one failure hides no other. Cells are
counted from 0 over all cells, text included. What is found is written to --out after each run.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).parents[1]
SEED = re.compile(r"^SEED = \d+", re.MULTILINE)
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def reseeded(path: Path, seed: int) -> nbformat.NotebookNode:
    """Read a notebook and put another seed in its one line `SEED = n`."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = sum(len(SEED.findall(cell.source)) for cell in code)
    if found != 1:
        raise ValueError(
            f"{path.name}: found {found} lines 'SEED = n', expected one: name the seed once, and draw all from it"
        )
    for cell in code:
        cell.source = SEED.sub(f"SEED = {seed}", cell.source)
    return notebook


def reason(error: nbformat.NotebookNode) -> str:
    """Say why a cell failed in one line: the error's last line, or the assertion itself where it has no words."""
    words = error.evalue.strip().splitlines()
    if not words:
        lines = TERMINAL_COLOURS.sub("", "\n".join(error.traceback)).splitlines()
        words = [re.sub(r"^-+> \d+ +", "", line) for line in lines if re.match(r"-+> \d+", line)]
    return f"{error.ename}: {words[-1].strip()}" if words else error.ename


def failures(notebook: nbformat.NotebookNode) -> Iterator[dict]:
    """Yield the position of each cell that raised, and why; a cell that is tagged raises-exception may."""
    for position, cell in enumerate(notebook.cells):
        if "raises-exception" not in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                if output.output_type == "error":
                    yield {"cell": position, "error": reason(output)}


def run(path: Path, seed: int, timeout: int) -> dict:
    """Execute a notebook at a seed, in its own folder; a cell that takes longer than `timeout` seconds fails."""
    notebook, begun = reseeded(path, seed), time.monotonic()
    client = NotebookClient(
        notebook,
        resources={"metadata": {"path": str(path.parent)}},
        timeout=timeout,
        interrupt_on_timeout=True,
        allow_errors=True,
    )
    try:
        client.execute()
        failed = list(failures(notebook))
    except (CellExecutionError, DeadKernelError) as error:  # the kernel itself is gone, and the rest was not run
        failed = [*failures(notebook), {"cell": None, "error": f"{type(error).__name__}: {error}"}]
    return {"notebook": path.stem, "seed": seed, "seconds": round(time.monotonic() - begun), "failed": failed}


def table(runs: list[dict], seeds: list[int]) -> str:
    """Lay the numbers of failed cells out, a line for each notebook and a column for each seed, then name the cells."""
    names = sorted({run["notebook"] for run in runs})
    count = {(run["notebook"], run["seed"]): str(len(run["failed"])) for run in runs}
    width = max(map(len, ["failed cells", *names]))
    lines = ["failed cells".ljust(width) + "".join(f"{f'seed {seed}':>10}" for seed in seeds)]
    lines += [name.ljust(width) + "".join(f"{count.get((name, seed), '-'):>10}" for seed in seeds) for name in names]
    for run in sorted(runs, key=lambda run: (run["notebook"], seeds.index(run["seed"]))):
        lines += [f"{run['notebook']}, seed {run['seed']}, cell {f['cell']}: {f['error']}" for f in run["failed"]]
    return "\n".join(lines)


def named(beginnings: list[str], folder: Path) -> list[Path]:
    """Find the notebooks whose file's name begins in one of these ways; all of them if nothing is asked for."""
    paths = sorted(folder.glob("*.ipynb"))
    for beginning in beginnings:
        if not any(path.name.startswith(beginning) for path in paths):
            raise ValueError(
                f"{beginning}: no notebook in {folder} begins so, expected the likes of {paths[0].stem[:2]}"
            )
    return [path for path in paths if path.name.startswith(tuple(beginnings) or "")]


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, print the table, and return 1 if any cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", help="how their names begin: 05 07 (all of them)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time (1)")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one cell may take (600)")
    parser.add_argument("--folder", type=Path, default=ROOT / "notebooks")
    parser.add_argument("--out", type=Path, default=ROOT / "build/seeds.json")
    asked = parser.parse_args(arguments)
    # The kernels inherit both: one thread each, and no network.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        paths = named(asked.notebooks, asked.folder)
        for path in paths:
            reseeded(path, asked.seeds[0])  # all are looked at before the first is run
    except ValueError as error:
        parser.error(str(error))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    runs = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        waiting = [pool.submit(run, path, seed, asked.timeout) for path in paths for seed in asked.seeds]
        for done in as_completed(waiting):
            runs.append(done.result())
            asked.out.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
            last = runs[-1]
            print(
                f"{last['notebook']}, seed {last['seed']}: {len(last['failed'])} failed, {last['seconds']} s",
                file=sys.stderr,
                flush=True,
            )
    print(table(runs, asked.seeds))
    return int(any(run["failed"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())
