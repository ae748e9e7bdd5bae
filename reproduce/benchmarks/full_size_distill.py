"""Measure DI* on SDXL at full size on a GPU: seconds and memory of an update, against reproduce/plan.py's counts.

python reproduce/benchmarks/full_size_distill.py                     # three adapters, random weights; needs a GPU
python reproduce/benchmarks/full_size_distill.py --models tiny --device cpu --out build/try.json  # its logic

The question is whether DI* with student, assistant and teacher as adapters on frozen SDXL weights fits a card of 24 GB
at 1024 px and micro-batch 1. By plan.py's counts it does with one frozen network, gradient checkpointing (of the
decoder, too) and AdamW at rank 64: 21.6 GB, where the planner lets tensors take 22.1 of 24; with two it takes 26.4, and
without checkpointing the decoder even one takes more (26.6). This script measures it.

Networks have the published configurations and random weights in bfloat16, the reward
(PickScore) float32, as train_distill loads them; nothing is downloaded. Measured for one frozen network that all three
share (the student starts from the teacher's weights) and for two (it starts from DMD2's): an update of the assistant
and one of the student, with and without gradient checkpointing. Memory is torch's own peak of allocated bytes, so
without the CUDA context and the allocator's gaps.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from fsalign_lib import twins
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.models.load import load
from reproduce import train_distill
from reproduce.benchmarks.full_size_gpu import PROMPTS, measure, random_model, random_reward
from reproduce.common.cli import command_line, positive
from reproduce.common.files import plain, write_json
from reproduce.common.provenance import Clock, provenance
from reproduce.planner.footprint import Footprint
from reproduce.planner.report import GB, meta_networks, meta_reward
from reproduce.recipes import make_config

BASES = {"one": ("sdxl", "sdxl"), "two": ("sdxl-dmd2-1step", "sdxl")}  # frozen networks -> student, teacher


@dataclass(kw_only=True)
class DistillGPUConfig:
    """Measure DI* at full size."""

    models: Literal["sdxl", "tiny"] = "sdxl"
    """tiny: small twins, to try the script."""
    bases: tuple[Literal["one", "two"], ...] = ("one", "two")
    """Frozen networks that are held."""
    device: Literal["cuda", "cpu"] = "cuda"
    micro_batches: tuple[int, ...] = (1,)
    rank: int = 16
    repetitions: int = 3
    out: Path = Path(__file__).parent / "results" / "full_size_distill.json"


def prepare(config: DistillGPUConfig) -> DistillGPUConfig:
    """Check the settings; raise a ValueError for no GPU, or numbers that are not positive."""
    positive(config, "rank", "repetitions")
    if not config.micro_batches or min(config.micro_batches) < 1:
        raise ValueError(f"micro_batches = {config.micro_batches}: expected numbers above 0")
    if config.device == "cpu" and config.models != "tiny":
        raise ValueError("--device cpu is for trying the script: use --models tiny with it")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device: run this on a machine with a GPU, or try it by --models tiny --device cpu")
    return config


def networks(config: DistillGPUConfig, names: tuple[str, str], folder: Path) -> tuple[LatentModel, LatentModel]:
    """Build student and teacher, the same object where they share their weights."""
    if config.models == "tiny":
        for name in set(names):
            twins.save_twin(name, folder)
        made = {
            name: load(str(folder / "stabilityai" / "stable-diffusion-xl-base-1.0"), torch.bfloat16) for name in names
        }
    else:
        made = {name: random_model(name, config.device, PROMPTS) for name in dict.fromkeys(names)}
    student, teacher = (made[name] for name in names)
    if student is not teacher:  # random encoders would not read prompts alike
        student.text, student.vae, student.vae_fingerprint = teacher.text, teacher.vae, teacher.vae_fingerprint
        student.fingerprint = "another network"
    return student, teacher


def build(config: DistillGPUConfig, bases: str, micro: int, checkpointing: bool, folder: Path):
    """Build a run of DI* as the full-size recipe has it, but for adapters and the batch, and its count."""
    names = BASES[bases]
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    about = make_config(
        train_distill.DistillConfig,
        "distar",
        "full",
        model=names[0],
        teacher=names[1],
        start=None,
        time=399,
        prompts=str(prompts),
        training="lora",
        rank=config.rank,
        dtype="bfloat16",
        mixed_precision="no",
        batch=2 * micro,
        micro_batch=micro,
        gradient_checkpointing=checkpointing,
        vae_slicing=True,
        out=folder / f"{bases}-{micro}-{checkpointing}",
    )
    student, teacher = networks(config, names, folder)
    if config.models == "tiny":
        return train_distill.prepare(about, student, teacher, lambda images, _: images.mean((1, 2, 3))), None
    setup = train_distill.prepare(about, student, teacher, random_reward(config.device, PROMPTS))
    return setup, Footprint(about, meta_networks(about), meta_reward(about.reward, about.scale), len(PROMPTS))


def records(
    config: DistillGPUConfig, bases: str, micro: int, checkpointing: bool, folder: Path
) -> list[dict[str, Any]]:
    """Yield a record for each network's update. One that the card cannot hold says so."""
    found, cuda = [], config.device == "cuda"
    setup, counted = build(config, bases, micro, checkpointing, folder)
    peaks = counted.peaks(micro, 1, checkpointing) if counted else {}
    calls = {"assistant": train_distill.assistant_update, "student": train_distill.student_update}
    for name, call in calls.items():
        record = {"bases": bases, "update": name, "micro_batch": micro, "gradient_checkpointing": checkpointing}
        if peaks:
            record["planned_gb"] = max(peaks[f"{name} update"], peaks[f"{name} step"]) / GB
        try:
            seconds, peak = measure(partial(call, setup, 0), config.repetitions, cuda)
        except torch.OutOfMemoryError:
            record["error"] = "out of memory"
            torch.cuda.empty_cache()
        else:
            record |= {"seconds": seconds} | ({"peak_gb": peak} if peak is not None else {})
        found.append(record)
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()))
    return found


def run(config: DistillGPUConfig) -> None:
    """Measure every case, and write the result."""
    clock, found = Clock(), []
    for bases in config.bases:
        for micro in config.micro_batches:
            for checkpointing in (True, False):
                with tempfile.TemporaryDirectory(prefix="full-size-") as folder:
                    found += records(config, bases, micro, checkpointing, Path(folder))
                if config.device == "cuda":
                    torch.cuda.empty_cache()
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.out, {**provenance(clock), "config": plain(config), "records": found})
    print(config.out)


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(DistillGPUConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
