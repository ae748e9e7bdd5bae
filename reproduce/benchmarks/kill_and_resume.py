"""Kill loops and a table again and again, go on with them, and compare what they leave with what one in peace leaves.

OMP_NUM_THREADS=1 python -m reproduce.benchmarks.kill_and_resume --out reproduce/benchmarks/results/kill_and_resume.json

Each loop is started from its command line with --resume, in a process of its own, and killed by SIGKILL after a random
time; then again, until it has been killed often enough, and then once more to its end. A checkpoint is written after
every update, so that many kills strike while one is written. Final weights, optimizer and history must be the same to
the bit; of a table also its scores. The loops' model is the tests' tiny random pipeline, the table's the pocket world.
The processes are forks of this one, which imports everything once and computes nothing.

What is done of a result stands in --out after each loop: the same command goes on from there.
"""

import json
import multiprocessing
import os
import random
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import tyro
from safetensors.torch import load_file

from fsalign_lib.json_files import read_json
from reproduce import train_distill, train_offline, train_online
from reproduce.common.cli import command_line, positive
from reproduce.common.files import (
    last_checkpoint,
    plain,
    writable_folder,
    write_json,
)
from reproduce.common.provenance import ROOT, Clock, provenance
from reproduce.data import sampled_pairs as pair_files
from reproduce.evaluation.cost import COSTS
from reproduce.harness import rows, snapshots  # noqa: F401 what a table imports when it runs something
from reproduce.training.checkpoints import OPTIMIZERS
from tests import tiny

# Both libraries import a class when it is first asked for: once, here, and not in each process.
LOADED = (
    *(diffusers.UNet2DConditionModel, diffusers.AutoencoderKL, diffusers.EulerAncestralDiscreteScheduler),
    *(transformers.CLIPTextModel, transformers.CLIPTokenizer),
)


TABLE, ROWS = "pso_table2", ("base", "offline", "online")


def table(argv: Sequence[str]) -> None:
    """Run the table's script, as its command line does."""
    sys.argv = [str(ROOT / "reproduce" / f"{TABLE}.py"), *argv]
    runpy.run_path(sys.argv[0], run_name="__main__")


# Online PSO; SDPO, whose advantages remember earlier rounds; offline PSO; DI*, which trains two networks in turn and
# averages one of them; a table, which builds pairs, trains and evaluates.
LOOPS = {
    "online": train_online.main,
    "sdpo": train_online.main,
    "offline": train_offline.main,
    "distill": train_distill.main,
    "table": table,
}


@dataclass(kw_only=True)
class KillConfig:
    """Kill and resume each loop and a table."""

    kills: int = 20
    """Kills of each."""
    updates: int = 30
    """Rounds or updates of a whole run; each row of the table has a third of them."""
    seed: int = 0
    """Seed of the delays."""
    out: Path


def build_world(folder: Path) -> None:
    """Build a tiny model, prompts, and pairs for the offline loop."""
    model, prompts = tiny.build(folder / "model"), folder / "prompts.txt"
    prompts.write_text("\n".join(tiny.PROMPTS))
    some = {"count": 8, "batch": 4, "steps": 2, "tie": 0.0}
    pairs = pair_files.PairConfig(out=folder / "pairs", model=str(model), prompts=str(prompts), **some)
    pair_files.build(pair_files.prepare(pairs, utility=tiny.brightness))


def command(config: KillConfig, loop: str, out: Path) -> list[str]:
    """Write the command of a loop or a table on few samples, with a checkpoint after each update."""
    world, third = out.parent, -(-config.updates // 3)
    if loop == "table":
        some = ["--set", f"offline.updates={third}", "--set", f"online.rounds={third}", "--set", "save_every=1"]
        some += ["--smoke", "--only", *ROWS, "--seeds", 0, "--threads", 1, "--out", out]
        return [str(part) for part in some]
    shared = ["--model", world / "model", "--out", out, "--save-every", 1, "--threads", 1, "--resume"]
    if loop == "distill":
        some = ["--method", "distar", "--teacher", world / "model", "--prompts", world / "prompts.txt", "--batch", 2]
        some += ["--start", None, "--time", 399, "--reward", None, "--reward-scale", 0, "--warmup", 1]
        some += ["--assistant-updates", 1, "--updates", config.updates]
        return [str(part) for part in [*shared, *some]]
    if loop != "offline":
        some = ["--reward", "jpeg-incompressibility", "--prompts", world / "prompts.txt", "--pairs", 2]
        some += ["--method", "sdpo", "--steps", 4, "--rank", 2, "--min-count", 1] if loop == "sdpo" else []
        return [str(part) for part in [*shared, *some, "--minibatch", 2, "--rounds", config.updates]]
    return [str(part) for part in [*shared, "--pairs", world / "pairs", "--batch", 2, "--updates", config.updates]]


def quietly(function: Callable, argument: Any) -> None:
    """Run without progress bars."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    function(argument)


def fork(function: Callable, argument: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=quietly, args=(function, argument))
    process.start()
    return process


def start(config: KillConfig, loop: str, out: Path) -> multiprocessing.Process:
    return fork(LOOPS[loop], command(config, loop, out))


def finish(process: multiprocessing.Process) -> None:
    """Wait for a process that is not killed."""
    process.join()
    check(process)


def check(process: multiprocessing.Process) -> None:
    if process.exitcode:
        raise RuntimeError(f"a process failed by itself, with code {process.exitcode}")


def checkpoint_folders(out: Path) -> list[Path]:
    """List the last checkpoint of each run: one, or in a table's folder as many as it trained."""
    found = [last_checkpoint(folder.parent) for folder in sorted(out.rglob("checkpoints"))]
    return [checkpoint for checkpoint in found if checkpoint]


def evaluations(out: Path) -> list[Path]:
    """List what a table's rows were found to be, a file each."""
    return sorted(path for row in ROWS for path in out.glob(f"runs/{TABLE}/{row}*.json"))


def step(out: Path) -> int:
    """Count what is done: updates that are kept, and rows that are evaluated."""
    return sum(int(checkpoint.name) for checkpoint in checkpoint_folders(out)) + len(evaluations(out))


def in_peace(config: KillConfig, loop: str, out: Path) -> tuple[float, float]:
    """Measure the seconds until something is kept, and from there to the end."""
    started = time.time()
    process = start(config, loop, out)
    while step(out) == 0 and process.exitcode is None:
        time.sleep(0.01)
    first = time.time()
    finish(process)
    return first - started, time.time() - first


def kill_often(
    config: KillConfig, loop: str, out: Path, whole: int, times: tuple[float, float], kills: list, delays
) -> None:
    """Kill one run on its way to the end, and add {"after": seconds, "step", "while_saving"} to `kills` each time.

    Args:
        whole: what `step` is at the end.
        times: what `in_peace` measured.
    """
    until_first, rest = times
    while len(kills) < config.kills and step(out) < whole:
        # One in five before the first update; the others leave the run a few updates each.
        early = delays.random() < 0.2
        delay = delays.uniform(0, until_first) if early else until_first + delays.uniform(0, 2 * rest / config.kills)
        started = time.time()
        process = start(config, loop, out)
        process.join(delay)
        if process.exitcode is None:
            process.kill()
            process.join()
            unfinished = out.rglob("unfinished")  # of this process, or of one that was killed before
            saving = any(folder.stat().st_mtime > started for folder in unfinished)
            kills.append({"after": round(delay, 3), "step": step(out), "while_saving": saving})
        else:
            check(process)
    finish(start(config, loop, out))


def same(a: Any, b: Any) -> bool:
    """Compare to the bit, through nested lists and dicts."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def contents(out: Path) -> dict[str, Any]:
    folders = checkpoint_folders(out)
    optimizers = [folder / name for folder in folders for name in OPTIMIZERS if (folder / name).exists()]
    found: dict[str, Any] = {
        "weights": [load_file(path) for folder in folders for path in sorted(folder.glob("*.safetensors"))],
        "optimizer": [torch.load(path, weights_only=True) for path in optimizers],
        "history": [json.loads((folder / "state.json").read_text())["history"] for folder in folders],
        "step": step(out),
    }
    cells = [json.loads(path.read_text())["cells"] for path in evaluations(out)]
    for cell in (cell for row in cells for cell in row.values()):
        for cost in COSTS:  # seconds and memory, as measured
            cell["means"].pop(cost, None)
    return found | ({"scores": cells} if cells else {})


def compare(config: KillConfig, loop: str, folder: Path) -> dict[str, Any]:
    """Compare a loop's killed runs with its peaceful one. A run that ends too soon is followed by another one."""
    peace = folder / f"{loop}-in-peace"
    times = in_peace(config, loop, peace)
    kills, runs, delays = [], [], random.Random(f"{loop}/{config.seed}")
    while len(kills) < config.kills:
        out = folder / f"{loop}-{len(runs)}"
        kill_often(config, loop, out, step(peace), times, kills, delays)
        one, other = contents(peace), contents(out)
        runs.append({name: same(one[name], other[name]) for name in one})
    saving = sum(k["while_saving"] for k in kills)
    return {"kills": len(kills), "while_saving": saving, "runs": runs, "each": kills}


def prepare(config: KillConfig) -> KillConfig:
    positive(config, "kills", "updates")
    writable_folder(config.out.parent)
    if config.out.exists():
        read_json(config.out, config=dict, loops=dict)
    return config


def run(config: KillConfig) -> None:
    clock, loops = Clock(), {}
    before = read_json(config.out) if config.out.exists() else {}
    if before.get("config") == plain(config) and before["loops"].keys() < LOOPS.keys():  # it was stopped
        clock, loops = clock.after(before), before["loops"]
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        finish(fork(build_world, Path(folder)))
        for loop in [name for name in LOOPS if name not in loops]:
            loops[loop] = compare(config, loop, Path(folder))
            write_json(config.out, {"config": plain(config), **provenance(clock), "loops": loops})
    for loop, found in loops.items():
        alike = all(all(equal.values()) for equal in found["runs"])
        alike = "the same to the bit" if alike else f"NOT the same: {found['runs']}"
        print(f"{loop}: {found['kills']} kills, {found['while_saving']} of them while saving: {alike}")


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(KillConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
