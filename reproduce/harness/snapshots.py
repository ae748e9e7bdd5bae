"""Run the rows of a table of curves: train a row, or find it trained, then evaluate each of its snapshots.

An evaluated snapshot stands in <table>/<row>-<seed>/points/<round>.json, and is not evaluated again. A row whose runs
lie in another table's folder is trained by that table alone: where a run is missing, this one says by which command.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fsalign_lib.json_files import NUMBER, read_json
from fsalign_lib.kernels import Kernel
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.rollout import rollout
from reproduce.common.cli import processes, refusals, seen
from reproduce.common.files import claim, release, remove_parts, write_json
from reproduce.common.provenance import Clock
from reproduce.common.shards import in_chunks
from reproduce.evaluation.scores import picture_noise
from reproduce.harness import rows
from reproduce.harness.rows import Work, digest, run_path, training_config, training_folder
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
    """Return the rounds or updates of a run."""
    return config.updates if isinstance(config, OfflineConfig) else config.rounds


def do_run(work: Work, row: str, seed: int | None) -> None:
    """Train one row at one seed and evaluate its snapshots, unless that is done; all processes take part."""
    path, about = run_path(work.folder, row, seed), work.table.rows[row]
    if about.method is None or seen(path):
        return rows.do_run(work, row, seed)
    claim(path)
    if not rows.finished(work, row, seed):
        if not rows.trained_here(work.table, about):
            scale = " --scale full" if work.world.scale == "full" else ""
            command = f"python reproduce/{about.runs}.py{scale} --only {row} --seeds {seed}"
            release(path)
            return print(f"{training_folder(work, row, seed)} is not trained yet: {command}")
        rows.train(work, row, seed)
    training = read_json(training_folder(work, row, seed) / "result.json")
    curve = [point(work, row, seed, snapshot) for snapshot in snapshots(work, row, seed)]
    clock = Clock().after(*curve)
    rows.finish(work, row, seed, clock, training, curve[-1]["cells"], curve=curve)
    release(path)


def snapshots(work: Work, row: str, seed: int) -> list[Path]:
    """Return the folders of a run's snapshots, in the order of training.

    Raises:
        FileNotFoundError: one is missing.
    """
    config, folder = training_config(work, row, seed), training_folder(work, row, seed)
    numbers = range(config.snapshot_every, length(config) + 1, config.snapshot_every)
    paths = [folder / "snapshots" / f"{number:06d}" for number in numbers]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing: remove {folder}, and train it again with its snapshots")
    return paths


def point(work: Work, row: str, seed: int, snapshot: Path) -> dict:
    """Return a snapshot's scores and its distance from the reference, measured now or before."""
    path = work.folder / f"{row}-{seed}" / "points" / f"{snapshot.name}.json"
    weights = digest(snapshot)
    with refusals():
        found = read_json(path, weights=str, cells=dict, kl=NUMBER) if seen(path) else {}
    if found.get("weights") == weights:
        return found
    model = work.model.to(processes().device) if work.world.scale == "full" else work.model
    model.load_adapter(snapshot, any_precision=True)
    clock = Clock()
    parts, steps = path.with_suffix(".parts"), training_config(work, row, seed).steps
    found = {"round": int(snapshot.name), "weights": weights, "kl_steps": steps}
    found["kl"] = mean_kl(work, model.sampler(steps, work.table.kernel), parts)
    found["cells"] = rows.evaluate_cells(work, model, f"{row}-{seed}, round {found['round']}", parts)
    found |= clock.spent()
    if processes().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    processes().wait_for_everyone()  # all have read the parts
    if processes().is_main_process:
        remove_parts(parts)
    return found


@torch.no_grad()
def policy_kl(model: LatentModel, kernel: Kernel, prompts: Sequence[str]) -> Tensor:
    r"""Return the KL of a step of the policy from the reference's, in nats, for one trajectory of each prompt.  # (P,)

    $\frac1S \sum_n D_{KL}[\pi(\cdot|x_n) \| \pi_{ref}(\cdot|x_n)]$ over the S stochastic steps of the policy's own
    trajectory, summed over dimensions. S times its mean over trajectories estimates the KL of whole trajectories.
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
    """Return the mean KL over the table's prompts, which at full scale all processes share."""
    prompts, some = [prompt for few in work.prompts.values() for prompt in few], AT_ONCE[work.world.scale]
    full = work.world.scale == "full"

    def part(index: int) -> dict[str, Tensor]:
        if full:
            work.model.forget_prompts()  # see scores.forget
        return {"kl": policy_kl(work.model, kernel, prompts[index * some : (index + 1) * some])}

    found = in_chunks(part, -(-len(prompts) // some), parts / "kl" if full else None, "KL" if full else None)
    return torch.cat([one["kl"] for one in found]).double().mean().item()
