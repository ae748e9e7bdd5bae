r"""Measure what a rollout holds in memory: the network's one forward, and the trajectory it returns; no graph.

python reproduce/benchmarks/rollout_memory.py

A trajectory of N steps is states (B, N + 1, ...), predictions (B, N, ...) and log-probs (B, N). Here `rollout` is run
under DDIM with all weights trainable and gradients on, as a loop would have them, at several N. The peak of all tensors
is read off the allocator's own events, less what was there before (weights, conditions, noise). If only the trajectory
grows with N, then

    peak(N) - trajectory(N)

is the same at each N. Kept twice, or with a graph, a step would cost more than it stores: the ratio of the two growths
is printed, and is to be 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import tyro

from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.models.load import load
from fsalign_lib.pocket.captions import prompts
from fsalign_lib.rollout import Trajectory, rollout, seeded_noise
from reproduce.common.cli import command_line, positive
from reproduce.common.files import plain, writable_folder, write_json
from reproduce.common.provenance import Clock, provenance
from reproduce.evaluation import cost as memory


@dataclass(kw_only=True)
class MemoryConfig:
    """Measure the peak memory of rollouts of several lengths."""

    model: str = "pocket-turbo"
    steps: tuple[int, ...] = (10, 20, 50)
    samples: int = 16
    threads: int | None = None
    """CPU threads of torch."""
    out: Path = Path(__file__).parent / "results" / "rollout_memory.json"


def prepare(config: MemoryConfig) -> tuple[MemoryConfig, LatentModel]:
    """Check the settings, and load the model."""
    positive(config, "samples")
    if len(set(config.steps)) < 2:
        raise ValueError(f"steps = {config.steps}: growth needs two lengths or more")
    if torch.cuda.is_available():
        raise ValueError("the peak is read off the CPU's allocator: run it with CUDA_VISIBLE_DEVICES=''")
    if config.threads:
        torch.set_num_threads(config.threads)
    writable_folder(config.out.parent)
    model = load(config.model)
    model.train_all_weights()
    return config, model


def measure(config: MemoryConfig, model: LatentModel, steps: int) -> dict:
    """Measure the memory of one rollout, in bytes."""
    kernel, cond = model.sampler(steps, "ddim"), model.encode_prompts(prompts("animals")[: config.samples])
    noise = seeded_noise(0, 0, range(len(cond)), model.latent_shape, steps + 1)
    before, made = memory.live_bytes(), []
    peak = memory.peak_bytes(lambda: made.append(rollout(model, kernel, cond, noise))) - before
    kept = [getattr(made[0], field.name) for field in fields(Trajectory)]
    graph = any(tensor.requires_grad for tensor in kept)
    return {"steps": steps, "peak": peak, "trajectory": sum(tensor.nbytes for tensor in kept), "graph": graph}


def run(ready: tuple[MemoryConfig, LatentModel]) -> None:
    """Measure every rollout, and write the result."""
    (config, model), clock = ready, Clock()
    found = [measure(config, model, steps) for steps in config.steps]
    first, last = found[0], found[-1]
    growth = (last["peak"] - first["peak"]) / (last["trajectory"] - first["trajectory"])
    write_json(config.out, {"config": plain(config), **provenance(clock), "rollouts": found, "growth": growth})
    for one in found:
        rest = (one["peak"] - one["trajectory"]) / 2**20
        print(
            f"{one['steps']:3} steps: peak {one['peak'] / 2**20:.2f} MB, of which the trajectory "
            f"{one['trajectory'] / 2**20:.2f} and the rest {rest:.2f}; graph: {one['graph']}"
        )
    print(f"a byte more of trajectory costs {growth:.3f} bytes of peak")


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(MemoryConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
