"""Measure the memory of DI* with three full copies of a network, and with adapters on one, at pocket size.

python reproduce/benchmarks/adapter_memory.py

Measured: the most bytes that tensors hold at once in the second update of `reproduce/train_distill.py` (the assistant's
updates and the student's; the first one makes the optimizers' moments), by the allocator's own events on the CPU.
Beside it what reproduce/plan.py's counts say. The ratio is adapters over copies. Both modes have the same batch, so the
activations are the same but for the adapters', and the ratio falls with the size of the networks.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from fsalign_lib.models.load import load
from reproduce import train_distill
from reproduce.common.cli import command_line, positive
from reproduce.common.files import plain, writable_folder, write_json
from reproduce.common.provenance import Clock, provenance
from reproduce.evaluation.cost import live_bytes, peak_bytes
from reproduce.planner.footprint import Footprint
from reproduce.planner.report import meta_networks, meta_reward
from reproduce.recipes import make_config

MODES = ("full", "lora")


@dataclass(kw_only=True)
class MemoryConfig:
    """Measure an update of DI* with full copies and with adapters."""

    model: str = "pocket-teacher"
    """Teacher, and where the student starts, so that adapters share one network."""
    rank: int = 16
    batches: tuple[int, ...] = (1, 8)
    gradient_checkpointing: bool = True
    out: Path = Path(__file__).parent / "results" / "adapter_memory.json"


def prepare(config: MemoryConfig) -> MemoryConfig:
    """Check the settings."""
    positive(config, "rank")
    if not config.batches or min(config.batches) < 1:
        raise ValueError(f"batches = {config.batches}: expected numbers above 0")
    writable_folder(config.out.parent)
    load(config.model)  # so that a model that cannot be had is known now
    return config


def measure(config: MemoryConfig, mode: str, batch: int, folder: Path) -> dict[str, Any]:
    """Measure one mode at one batch."""
    about = make_config(
        train_distill.DistillConfig,
        "distar",
        model=config.model,
        teacher=config.model,
        start=None,
        time=399,
        training=mode,
        rank=config.rank,
        batch=batch,
        assistant_updates=1,
        warmup=0,
        updates=3,
        gradient_checkpointing=config.gradient_checkpointing,
        out=folder / f"{mode}-{batch}",
    )
    before = live_bytes()
    setup = train_distill.prepare(about)
    updates = train_distill.train(setup)
    next(updates)
    peak = peak_bytes(lambda: next(updates)) - before
    reward = meta_reward(about.reward, about.scale)
    counted = Footprint(about, meta_networks(about), reward, len(setup.prompts), cuda=False)
    planned = max(counted.peaks(batch, 1, config.gradient_checkpointing).values())
    trained = sum(p.numel() for learner in setup.run.learners for p in learner.parameters)
    return {
        "training": mode,
        "batch": batch,
        "trained": trained,
        "peak_mb": peak / 2**20,
        "planned_mb": planned / 2**20,
    }


def run(config: MemoryConfig) -> None:
    """Measure every mode at every batch, and write the result."""
    torch.set_num_threads(1)
    clock, records, ratios = Clock(), [], {}
    with tempfile.TemporaryDirectory(prefix="adapter-memory-") as folder:
        for batch in config.batches:
            both = [measure(config, mode, batch, Path(folder)) for mode in MODES]
            records += both
            ratios[str(batch)] = both[1]["peak_mb"] / both[0]["peak_mb"]
            for record in both:
                print("  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()))
            print(f"batch {batch}: adapters over copies {ratios[str(batch)]:.3f}")
    write_json(config.out, {**provenance(clock), "config": plain(config), "ratio": ratios, "records": records})
    print(config.out)


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(MemoryConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
