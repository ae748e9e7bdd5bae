"""Run every table of the pocket world, and say what each took and what is missing: `make ledger`.

python reproduce/ledger.py             # everything; finished runs are skipped, stopped ones go on
python reproduce/ledger.py --status    # run nothing: hours, runs that are missing, claims

Tables of one paper share trainings, so they run one after the other, in a process of one thread; as many papers run
side by side as --jobs says. What a table prints goes to a log beside its runs.
"""

import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from fsalign_lib.json_files import check_objects, read_json
from reproduce.common.cli import positive, refusals
from reproduce.common.files import writable_folder

REPRODUCE = Path(__file__).parent
# Those that take longest come first. A table that trains for others comes before them.
LANES = {
    "SDPO": ("sdpo_table1", "sdpo_curves", "sdpo_ablations", "sdpo_instability", "sdpo_lcm", "sdpo_table3"),
    "PSO": ("pso_table1", "pso_table2", "pso_table3", "pso_table4", "pso_style", "pso_ablations"),
    "DI++ and DI*": ("dipp_table1", "distar_table1", "distar_table2", "distar_table3", "distar_pareto"),
}


@dataclass(kw_only=True)
class LedgerConfig:
    """Run every table of the pocket world, and say what is missing."""

    jobs: int = max(1, os.cpu_count() or 1)
    """Papers that run side by side, each in one process of one thread."""
    runs: Path = REPRODUCE / "runs"
    """Where the tables' runs lie, and their logs."""
    results: Path = REPRODUCE / "results"
    """Where results and pages go."""
    status: bool = False
    """Run nothing."""


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and print the ledger."""
    with refusals():
        config = tyro.cli(LedgerConfig, description=__doc__, args=argv)
        positive(config, "jobs")
        if not config.status:
            writable_folder(config.runs)
    failed = [] if config.status else run(config)
    with refusals():  # of results that were damaged
        print(text(config))
    for name in failed:
        print(f"{name} stopped: read {log_of(config, name)}, and call this again", file=sys.stderr)
    sys.exit(1 if failed else 0)


def run(config: LedgerConfig) -> list[str]:
    """Run all tables; return those that ended with an error, after which their lane went on."""
    config.runs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(config.jobs) as lanes:
        return [name for lane in lanes.map(lambda names: run_lane(config, names), LANES.values()) for name in lane]


def run_lane(config: LedgerConfig, names: tuple[str, ...]) -> list[str]:
    """Run tables one after the other; return those that ended with an error."""
    failed = []
    for name in names:
        command = [sys.executable, str(REPRODUCE / f"{name}.py"), "--threads", "1"]
        command += ["--work", str(config.runs / name), "--out", str(config.results)]
        with log_of(config, name).open("a") as log:
            if subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
                failed.append(name)
        print(f"{name} {'stopped' if name in failed else 'is done'}", flush=True)
    return failed


def log_of(config: LedgerConfig, name: str) -> Path:
    """Return the file that what a table prints goes to."""
    return config.runs / f"{name}.log"


def text(config: LedgerConfig) -> str:
    """Write a line for each table: runs that are there and missing, core hours, claims; and their sums."""
    from reproduce.harness.claims import correct, count, other_results
    from reproduce.harness.command import at_scale
    from reproduce.harness.readmes import hours
    from reproduce.harness.rows import row_seeds, run_path

    lines, taken, lacking = [], 0.0, 0
    for name in (name for names in LANES.values() for name in names):
        table = at_scale(importlib.import_module(f"reproduce.{name}").TABLE, "pocket")
        every = [run_path(config.runs / name, row, seed) for row in table.rows for seed in row_seeds(table, row)]
        missing = [path.stem for path in every if not path.exists()]
        path = config.results / f"{name}.json"
        result = read_json(path, claims=list, primary=list, runs=list) if path.exists() else None
        if result:
            check_objects(f"claims in {path}", result["claims"] + result["primary"], id=str, status=str)
            check_objects(f"runs in {path}", result["runs"], row=str)
        spent = hours(table, result)
        claims = "no result"
        if result:
            claims = count(about["corrected"] for about in correct(result, other_results(path).values())["claims"])
        taken, lacking = taken + (spent or 0.0), lacking + len(missing)
        some = f"; missing: {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}" if missing else ""
        there = f"{len(every) - len(missing):4} of {len(every):4} runs"
        lines.append(f"{name:18} {there} {spent or 0:6.2f} core h  {claims}{some}")
    lines.append(f"{'in all':18} {lacking:4} missing {'':9} {taken:6.2f} core h")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
