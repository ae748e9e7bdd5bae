"""Tell what the rows of a table take on GPUs as they run: hours, memory, whether they fit, and what would."""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fsalign_lib.models.load import load
from fsalign_lib.models.presets import PRESETS
from fsalign_lib.rewards import load_reward
from fsalign_lib.twins import architectures
from reproduce.common.cli import positive
from reproduce.common.files import plain
from reproduce.data.encoded_prompts import SPARE
from reproduce.data.prompt_sets import SETS, read_prompts
from reproduce.planner.counting import size
from reproduce.planner.footprint import Footprint, Networks, tensors, text_flops, weights
from reproduce.planner.gpus import MEASURED, USABLE, Machine, named
from reproduce.planner.sampling import OF_REWARD, Pictures, Sampling, Taken
from reproduce.training.config import TrainConfig

GB = 2**30
DISK = 200 * GB  # free beside the runs: prompts that need more are not stored
# Prompts of sets that are too large to be counted, about; and of one that is not known.
MANY, UNKNOWN = {"laion-aesthetics": 3_000_000, "sam-llava": 10_000_000}, 4000
NOT_COUNTED = """\
not counted
  hours   loading, checkpoints, communication between GPUs, a subject's own samples, what is no matrix product,
          convolution or attention: the utilisation stands for it
  memory  workspaces of kernels other than convolutions' (for these, a copy of all they touch), the CUDA context, gaps:
          {reserve:.0%} of a card is left for them
  assumed attention without an attention matrix (flash or memory-efficient kernels); DDP where there are several GPUs
          and no --fsdp; prompt sets that are not here as large as they were published; {disk:.0f} GB free on the
          disk for encoded prompts"""


@dataclass(frozen=True)
class Planned:
    """Name what a row of a table runs: a training, if it has one, and after it the pictures that it is compared by.

    Attributes:
        runs: how often, such as once for each training seed.
        metrics: networks that lie on the device while it trains.
        pairs: or pictures, that an offline method learns.
        folder: of its training, beside the table's: one that tables share is trained once. "" for pairs.
    """

    title: str
    training: TrainConfig | None = None
    pictures: tuple[Sampling, ...] = ()
    runs: int = 1
    metrics: tuple[str, ...] = ()
    pairs: int | None = None
    folder: str = ""


def batches(config: TrainConfig) -> dict[str, int]:
    """Return what divides among processes (offline `pairs` is a folder)."""
    values = {name: getattr(config, name, None) for name in ("pairs", "minibatch", "batch")}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def divisor(rows: Mapping[str, Planned], most: int = 8) -> int:
    """Return the largest number of GPUs, of at most that many, among which every row's batches divide."""
    trained = [row.training for row in rows.values() if row.training]
    return math.gcd(most, *(value for config in trained for value in batches(config).values()))


def check(machine: Machine, rows: Mapping[str, Planned]) -> None:
    """Raise a ValueError for an unknown GPU, numbers out of range, batches that do not divide among the GPUs."""
    named(machine.gpu)
    positive(machine, "count", "utilisation")
    if machine.utilisation > 1:
        raise ValueError(f"utilisation = {machine.utilisation}: expected a share of the peak, at most 1")
    trained = {name: row.training for name, row in rows.items() if row.training}
    for name, batch, value in ((name, *item) for name, config in trained.items() for item in batches(config).items()):
        if value % machine.count:
            raise ValueError(
                f"count = {machine.count}: {batch} = {value} of row {name!r} does not divide among so many GPUs: "
                "choose another --count"
            )


def meta_model(name: str, dtype: str):
    """Make a published model from its configuration, another from its folder, on the meta device."""
    if name in PRESETS and isinstance(PRESETS[name].pipeline, str):
        return architectures.meta_model(name, getattr(torch, dtype))
    return load(name, getattr(torch, dtype)).to(torch.device("meta"))


def meta_reward(name: str | None, scale: str, dtype: str = "float32"):
    """Make a reward, as the loops load it; None for those without a network."""
    if name is None or name.startswith("jpeg"):
        return None
    precision = getattr(torch, dtype)
    if scale == "full":
        return architectures.meta_reward(name, precision)
    return load_reward(name, dtype=precision).to("meta")


def meta_networks(config: TrainConfig) -> Networks:
    """Make the networks that a run loads."""
    models = {name: meta_model(name, config.dtype) for name in {config.model, getattr(config, "teacher", config.model)}}
    for model in models.values():
        for part in (model.vae, *model.text.modules):  # diffusers' own `to` warns of nothing
            torch.nn.Module.to(part, getattr(torch, config.frozen_dtype or config.dtype))
    return Networks(config, models[config.model], models[config.teacher] if config.loop == "distill" else None)


def draws(config: TrainConfig) -> float:
    """Return how many prompts a run draws, with repetition; inf online, where all are encoded."""
    if config.loop == "online":
        return math.inf
    if config.loop == "offline":
        return config.batch * config.updates
    return config.batch * (config.updates * (1 + config.assistant_updates) + config.warmup)


def prompt_count(name: str) -> int:
    """Return how many prompts a set has: here, or as published."""
    try:
        return len(read_prompts(name))
    except (OSError, ValueError):  # it is not here
        return MANY.get(name) or (SETS[name].count if name in SETS else None) or UNKNOWN


class Planner:
    """Plan rows on a machine. Rows that train or draw from the same networks share them, and their traces."""

    def __init__(self, machine: Machine, scale: str = "full"):
        self.machine, self.scale, self.gpu = machine, scale, named(machine.gpu)
        self.networks: dict[tuple, Networks] = {}
        self.rewards: dict[tuple, torch.nn.Module | None] = {}
        self.drawers: dict[tuple, Pictures] = {}

    def on(self, count: int, fsdp: bool) -> "Planner":
        """Return a planner for so many of its cards, which shares networks and traces with this one."""
        other = copy.copy(self)
        other.machine = replace(self.machine, count=count, fsdp=fsdp)
        return other

    @property
    def room(self) -> float:
        """Return the bytes of a card that tensors may take."""
        return USABLE * self.gpu.memory * GB

    def reward(self, name: str | None, dtype: str = "float32") -> torch.nn.Module | None:
        if (name, dtype) not in self.rewards:
            self.rewards[name, dtype] = meta_reward(name, self.scale, dtype)
        return self.rewards[name, dtype]

    def footprint(self, row: Planned, **change: Any) -> Footprint:
        """Trace the training of a row, with some settings changed."""
        config, metrics = replace(row.training, **change), row.metrics
        same = ("loop", "teacher", "model", "training", "rank", "alpha", "dtype", "frozen_dtype", "mixed_precision")
        key = tuple(getattr(config, field, None) for field in same)
        if key not in self.networks:
            self.networks[key] = meta_networks(config)
        scored = getattr(config, "reward", None) if getattr(config, "reward_scale", 1) else None
        reward = self.reward(scored, config.frozen_dtype or "float32")
        beside = {"metrics": self.idle(metrics)}
        nets, prompts = self.networks[key], row.pairs or prompt_count(config.prompts)
        room = SPARE * prompts * size(tensors(nets.cond)) <= DISK
        stored = config.scale == "full" and prompts <= draws(config) and room  # as encoded_prompts has it
        count, fsdp = self.machine.count, self.machine.fsdp
        return Footprint(config, nets, reward, prompts, count, sharded=fsdp, beside=beside, stored=stored)

    def idle(self, metrics: Iterable[str], but: Iterable[str] = ()) -> int:
        """Return the bytes of the networks of metrics, but of some."""
        names = {OF_REWARD[name] for name in metrics if name in OF_REWARD} - {OF_REWARD.get(name) for name in but}
        return sum(weights(self.reward(name)) for name in names)

    def take(self, job: Sampling) -> Taken:
        """Count pictures."""
        key = job.model, job.dtype
        if key not in self.drawers:
            self.drawers[key] = Pictures(meta_model(*key), self.reward)
        return self.drawers[key].take(job)

    def drawing(self, row: Planned) -> int:
        """Return the peak of bytes while a row's pictures are drawn and scored; 0: it has none."""
        return max((self.take(job).peak + self.idle(row.metrics, job.scored) for job in row.pictures), default=0)

    def hours(self, flops: Mapping[str, float]) -> float:
        """Return GPU hours of FLOPs by dtype."""
        return sum(n / (self.gpu.peak(dtype) * self.machine.utilisation) for dtype, n in flops.items()) / 3600

    def plan(self, row: Planned) -> dict[str, Any]:
        """Return what a row takes, as JSON; hours are of one GPU and of all runs together."""
        found = {"title": row.title, "runs": row.runs, "hours": Counter(), "flops": {}, "fixed_gb": {}, "peaks_gb": {}}
        if row.training:
            self.plan_training(row, found)
        if row.pictures:
            found["peaks_gb"]["pictures"] = self.drawing(row) / GB
        for job in row.pictures:
            taken = self.take(job)
            found["fixed_gb"] = found["fixed_gb"] or {part: n / GB for part, n in taken.held.items()}
            for part, flops in taken.flops.items():
                name = {"encode": "pairs encoded", "prompts": "prompts"}.get(part, "pictures")
                found["hours"][name] += (1 if part == "prompts" else row.runs) * self.hours(flops)
        found["phase"] = max(found["peaks_gb"], key=found["peaks_gb"].get)
        found["peak_gb"] = found["peaks_gb"][found["phase"]]
        found["fits"] = found["peak_gb"] * GB <= self.room
        found["hours"] = {part: n for part, n in found["hours"].items() if n}
        return found

    def plan_training(self, row: Planned, found: dict[str, Any]) -> None:
        """Add what the training of a row takes."""
        c, footprint = row.training, self.footprint(row)
        nets, flops = footprint.networks, footprint.flops(row.training.gradient_checkpointing)
        found["hours"]["training"] += row.runs * footprint.rounds * sum(map(self.hours, flops.values()))
        if footprint.stored or not footprint.many_prompts:  # once for all runs
            prompts = row.pairs or prompt_count(c.prompts)
        else:  # in each update anew
            prompts = row.runs * draws(c)
        found["hours"]["prompts"] += self.hours(text_flops(nets.model, nets.cond, prompts))
        found |= {
            "config": plain(c),
            "image_size": nets.model.image_size,
            "parameters": sum(p.numel() for p in nets.model.unet.parameters()),
            "trained": sum(p.numel() for p in next(iter(nets.learners.values()))),
            "fixed_gb": {part: value / GB for part, value in footprint.fixed.items()},
            "unit": "round" if c.loop == "online" else "update",
            "units": footprint.rounds,
            "batch": footprint.batch,
            "flops": {part: sum(of.values()) for part, of in flops.items()},
        }
        found["peaks_gb"] |= {phase: n / GB for phase, n in footprint.as_run().items()}

    def fitting(self, row: Planned) -> tuple[dict[str, Any], float] | None:
        """Return the fewest settings, of those that spare memory, with which a training fits, and its peak in GB."""
        for change in sparing(row.training):
            footprint = self.footprint(row, **change)
            most = max(1, footprint.batch // footprint.processes)
            for micro in halves(min(row.training.micro_batch or most, most)):
                footprint.config = replace(footprint.config, micro_batch=micro)
                peak = max(footprint.as_run().values())
                if peak <= self.room:
                    return {"micro_batch": micro} | change, peak / GB
        return None


def sparing(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Yield settings that take less and less memory, each with those before it."""
    change: dict[str, Any] = {}
    yield {}
    distill = config.loop == "distill"  # which decodes with a gradient, and has a recipe of its own for adapters
    for more, spares in (
        ({"rollout_batch": 1}, config.loop == "online"),
        ({"gradient_checkpointing": True}, not config.gradient_checkpointing),
        ({"vae_slicing": True}, not (config.vae_slicing or distill)),
        ({"training": "lora", "dtype": "bfloat16", "mixed_precision": "no"}, config.training == "full" and not distill),
    ):
        if spares:
            change |= more
            yield dict(change)


def halves(n: int) -> list[int]:
    """Return n, then the powers of two below it: 12, 8, 4, 2, 1."""
    return [n] + [2**k for k in reversed(range(n.bit_length())) if 2**k < n]


def text(machine: Machine, title: str, rows: Mapping[str, dict[str, Any]]) -> str:
    """Return the plan of some rows, from `Planner.plan`, as a page."""
    gpu = named(machine.gpu)
    lines = [
        title,
        f"on {machine.count} x {machine.gpu}{', FSDP' * machine.fsdp}: {gpu.memory} GB, of which {USABLE:.0%} may be "
        f"used; {gpu.half:g} TFLOP/s in half precision ({gpu.source}), half of it in TF32, of which "
        f"{machine.utilisation:g} are reached ({MEASURED})",
        *(line for name, row in rows.items() for line in row_text(name, row)),
        "",
    ]
    hours = sum(sum(row["hours"].values()) for row in rows.values())
    lines.append(f"{len(rows)} rows: {hours:,.3g} GPU hours, {hours / machine.count:,.3g} hours on {machine.count}")
    if too_large := [name for name, row in rows.items() if not row["fits"]]:
        lines.append(f"do not fit {gpu.memory} GB: {', '.join(too_large)}")
    return "\n".join([*lines, "", NOT_COUNTED.format(reserve=1 - USABLE, disk=DISK / GB)])


def row_text(name: str, row: dict[str, Any]) -> list[str]:
    """Return a row's plan as lines."""
    lines = ["", f"{name}: {row['title']}" + f", {row['runs']} runs" * (row["runs"] > 1)]
    if "config" in row:
        c, flops = row["config"], row["flops"]
        how = f"LoRA rank {c['rank']}" if c["training"] == "lora" else "all weights"
        how += ", " + c["dtype"] + ("" if c["mixed_precision"] == "no" else f", autocast {c['mixed_precision']}")
        how += f", {c['optimizer']}, micro-batch {c['micro_batch'] or 'all'}" + ", VAE by slices" * c["vae_slicing"]
        how += f", {c['rollout_batch'] or 'all'} pairs sampled at a time" if "rollout_batch" in c else ""
        how += ", gradient checkpointing" * c["gradient_checkpointing"]
        pairs = f"{c['pairs']} pairs, minibatch {c['minibatch']}, " if "minibatch" in c else ""
        lines[-1] += f" ({c['method']}), {c['model']} at {row['image_size']} px"
        lines[-1] += f", assistant and teacher {c['teacher']}" if "teacher" in c else ""
        lines += [
            f"  run       {row['units']} {row['unit']}s of {pairs}{row['batch']} rows an update",
            f"  settings  {how}",
            f"  trained   {row['trained']:,} of {row['parameters']:,} parameters",
            f"  FLOPs     {row['unit']} {sum(flops.values()) / 1e12:.4g} TFLOP: "
            + ", ".join(f"{part} {value / 1e12:.3g}" for part, value in flops.items()),
        ]
    held = ", ".join(f"{part} {gb:.2f}" for part, gb in row["fixed_gb"].items() if gb >= 0.005)
    fits = "fits" if row["fits"] else "does not fit"
    parts = ", ".join(f"{part} {n:.3g}" for part, n in row["hours"].items())
    return [
        *lines,
        f"  held GB   {held}",
        f"  peak GB   {row['peak_gb']:.1f} ({row['phase']}): {fits}",
        f"  GPU hours {sum(row['hours'].values()):.3g}: {parts}",
    ]
