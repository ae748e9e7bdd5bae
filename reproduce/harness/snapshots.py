"""Runs of a table of curves: train a row (or find it trained), then evaluate each of its snapshots.

An evaluated snapshot stands in <work>/<row>-<seed>/points/<round>.json, and is not evaluated again. A table that
`reads` another's runs lies in a folder of that table's runs, and trains nothing.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fsalign_lib.kernels import Kernel
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.rollout import rollout
from reproduce.common.files import write_json
from reproduce.common.provenance import Clock
from reproduce.common.shards import Chunks, processes
from reproduce.evaluation.scores import picture_noise
from reproduce.harness import rows as table_runs
from reproduce.harness import settings as table_settings
from reproduce.harness.settings import Work, digest, note_path, run_path, training_config
from reproduce.train_offline import OfflineConfig
from reproduce.training.config import TrainConfig

AT_ONCE = {"pocket": 32, "full": 4}  # prompts whose trajectories are held to the reference together


def check(work: Work) -> None:
    """Raise a ValueError for a row whose snapshots would not end with its training."""
    for row, about in work.table.rows.items():
        if about.method is None:
            continue
        config = training_config(work, row, 0)
        if not config.snapshot_every or length(config) % config.snapshot_every:
            raise ValueError(
                f"row {row}: snapshot_every = {config.snapshot_every} for {length(config)} rounds: expected a divisor, "
                "so that the last snapshot is the end of training"
            )


def length(config: TrainConfig) -> int:
    """Rounds or updates of a run."""
    return config.updates if isinstance(config, OfflineConfig) else config.rounds


def do_run(work: Work, row: str, seed: int | None) -> None:
    """One row at one seed, unless that is done; all processes of the launcher take part."""
    path = run_path(work.folder, row, seed)
    if work.table.rows[row].method is None or path.exists():
        return table_runs.do_run(work, row, seed)
    folder = find(work, row, seed) if work.table.reads else table_runs.trained_run(work, row, seed)[0].out
    if folder is None:
        return
    training = json.loads((folder / "result.json").read_text())
    curve = [point(work, row, seed, snapshot) for snapshot in snapshots(work, row, seed, folder)]
    clock = Clock().after(*curve)
    table_runs.finish(work, row, seed, clock, training, curve[-1]["cells"], curve=curve)


def find(work: Work, row: str, seed: int) -> Path | None:
    """The folder of a run of the table that this one reads; None: it is not trained yet.

    Raises:
        ValueError: it was trained with other settings.
    """
    folder = work.folder.parent / f"{row}-{seed}"
    if not (folder / "result.json").exists():
        scale = " --scale full" if work.world.scale == "full" else ""
        told = f"python reproduce/{work.table.reads}.py{scale} --only {row} --seeds {seed}"
        print(f"{folder} is not trained yet: {told}")
        return None
    note, now = note_path(work.folder.parent, row, seed), table_settings.settings(work, row, seed)
    before = table_settings.known_settings(work, row, seed, json.loads(note.read_text())["settings"])
    if before["training"] != now["training"] or before["weights"]["model"] != now["weights"]["model"]:
        raise ValueError(f"{note} has other training settings or weights than {work.table.reads}.py has now")
    if processes().is_main_process:
        note_path(work.folder, row, seed).parent.mkdir(parents=True, exist_ok=True)
        write_json(note_path(work.folder, row, seed), {"settings": now})
    return folder


def snapshots(work: Work, row: str, seed: int, folder: Path) -> list[Path]:
    """Raises: FileNotFoundError: one is missing."""
    config = training_config(work, row, seed)
    rounds = range(config.snapshot_every, length(config) + 1, config.snapshot_every)
    paths = [folder / "snapshots" / f"{number:06d}" for number in rounds]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing: remove {folder}, and train it again with its snapshots")
    return paths


def point(work: Work, row: str, seed: int, snapshot: Path) -> dict:
    """A snapshot's scores and its distance from the reference, measured now or before."""
    path = work.folder / f"{row}-{seed}" / "points" / f"{snapshot.name}.json"
    weights = digest(snapshot)
    if path.exists() and (found := json.loads(path.read_text()))["weights"] == weights:
        return found
    model = work.model.to(processes().device) if work.world.scale == "full" else work.model
    model.load_adapter(snapshot)
    clock = Clock()
    parts, steps = path.with_suffix(".parts"), training_config(work, row, seed).steps
    found = {"round": int(snapshot.name), "weights": weights, "kl_steps": steps}
    found["kl"] = mean_kl(work, model.sampler(steps, work.table.kernel), parts)
    found["cells"] = table_runs.evaluate_cells(work, model, f"{row}-{seed}, round {found['round']}", parts)
    found |= clock.spent()
    if processes().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        shutil.rmtree(parts, ignore_errors=True)
    processes().wait_for_everyone()
    return found


@torch.no_grad()
def policy_kl(model: LatentModel, kernel: Kernel, prompts: Sequence[str]) -> Tensor:
    r"""KL of a step of the policy from the reference's, in nats, $\frac1S \sum_n D_{KL}[\pi(\cdot|x_n) \| \pi_{ref}
    (\cdot|x_n)]$ over the S stochastic steps of one trajectory of the policy for each prompt; summed over dimensions.

    S times its mean over trajectories estimates the KL of whole trajectories.  # (P,)
    """
    noise = picture_noise(prompts, range(1), model.latent_shape, kernel.num_steps + 1)[:, 0].to(model.device)
    cond, steps = model.encode_prompts(prompts), []
    trajectory = rollout(model, kernel, cond, noise)
    with model.reference():
        for n in kernel.stochastic_steps:
            x = trajectory.states[:, n]
            reference = model.predict_x0(kernel.model_input(x, n), int(kernel.timesteps[n]), cond)
            steps.append(kernel.kl(x, trajectory.x0_hat[:, n], reference, n, "sum"))
    return torch.stack(steps, 1).mean(1).cpu()


def mean_kl(work: Work, kernel: Kernel, parts: Path) -> float:
    """Over the table's prompts, which at full scale all processes share."""
    prompts, some = [prompt for few in work.prompts.values() for prompt in few], AT_ONCE[work.world.scale]
    count = -(-len(prompts) // some)

    def part(index: int) -> dict[str, Tensor]:
        return {"kl": policy_kl(work.model, kernel, prompts[index * some : (index + 1) * some])}

    found = map(part, range(count))
    if work.world.scale == "full":
        chunks, state = Chunks(parts / "kl", count), processes()
        chunks.fill(part, state, "KL")
        state.wait_for_everyone()
        found = chunks.read()
    return torch.cat([one["kl"] for one in found]).double().mean().item()
