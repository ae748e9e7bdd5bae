"""Tell what training runs take on GPUs, before one is rented: micro-batches that fit, memory, FLOPs, hours."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from fsalign_lib.models.load import load
from fsalign_lib.models.presets import PRESETS
from fsalign_lib.rewards import load_reward
from fsalign_lib.twins import architectures
from reproduce.common.cli import positive
from reproduce.common.files import plain
from reproduce.data.prompt_sets import read_prompts
from reproduce.planner.footprint import Footprint, Networks
from reproduce.planner.gpus import MEMORIES, USABLE, Machine, named
from reproduce.training.config import TrainConfig

GB = 2**30
NOT_COUNTED = """a row is what --micro-batch counts: a pair, or online a step of a pair unless the loss sums over steps
not counted
  hours   encoding the pairs' pictures, evaluation, loading, checkpoints, communication between GPUs, operations other
          than matrix products, convolutions and attention, which the utilisation stands for
  memory  workspaces of kernels other than convolutions' (for these, a copy of all they touch), the CUDA context, gaps:
          {reserve:.0%} of a card is left for them. What is fixed is on each GPU (FSDP, DeepSpeed share it)
  assumed attention without an attention matrix (flash or memory-efficient kernels); DDP where there are several GPUs;
          that prompt sets which are not here have {held} prompts, and sets of pairs as many (--held); --micro-batch and
          --rollout-batch (pairs sampled at a time) as they fit, all other settings as the row says"""


def batches(config: TrainConfig) -> dict[str, int]:
    """Return what divides among processes (offline `pairs` is a folder)."""
    values = {name: getattr(config, name, None) for name in ("pairs", "minibatch", "batch")}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def divisor(rows: Mapping[str, TrainConfig], most: int = 8) -> int:
    """Return the largest number of GPUs, of at most that many, among which every row's batches divide."""
    return math.gcd(most, *(value for config in rows.values() for value in batches(config).values()))


def check(machine: Machine, rows: Mapping[str, TrainConfig]) -> None:
    """Raise a ValueError for an unknown GPU, numbers out of range, batches that do not divide among the GPUs."""
    named(machine.gpu)
    positive(machine, "count", "utilisation", "held")
    if machine.utilisation > 1:
        raise ValueError(f"utilisation = {machine.utilisation}: expected a share of the peak, at most 1")
    for name, batch, value in ((name, *item) for name, config in rows.items() for item in batches(config).items()):
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


def meta_reward(name: str | None, scale: str):
    """Make a reward in float32, as the loops load it; None for those without a network."""
    if name is None or name.startswith("jpeg"):
        return None
    return architectures.meta_reward(name) if scale == "full" else load_reward(name).to("meta")


def meta_networks(config: TrainConfig) -> Networks:
    """Make the networks that a run loads."""
    models = {name: meta_model(name, config.dtype) for name in {config.model, getattr(config, "teacher", config.model)}}
    return Networks(config, models[config.model], models[config.teacher] if config.loop == "distill" else None)


def plan_rows(machine: Machine, rows: Mapping[str, TrainConfig]) -> dict[str, dict[str, Any]]:
    """Return what each run takes, as JSON."""
    return {name: plan_row(machine, footprint) for name, footprint in footprints(machine, rows).items()}


def footprints(machine: Machine, rows: Mapping[str, TrainConfig]) -> dict[str, Footprint]:
    """Trace each run. Those that train the same networks in the same way share them, and their traces."""
    networks, rewards, found = {}, {}, {}
    for name, config in rows.items():
        same = ("loop", "teacher", "model", "training", "rank", "alpha", "dtype", "mixed_precision")
        key = tuple(getattr(config, field, None) for field in same)
        networks[key] = networks.get(key) or meta_networks(config)
        scored = getattr(config, "reward", None) if getattr(config, "reward_scale", 1) else None, config.scale
        if scored not in rewards:
            rewards[scored] = meta_reward(*scored)
        try:
            prompts = len(read_prompts(config.prompts))
        except (AttributeError, OSError, ValueError):  # offline prompts are the pairs'; or the set is not here
            prompts = machine.held
        found[name] = Footprint(config, networks[key], rewards[scored], prompts, machine.count)
    return found


def plan_row(machine: Machine, footprint: Footprint) -> dict[str, Any]:
    """Return what one run takes, as JSON."""
    gpu, nets, settings = named(machine.gpu), footprint.networks, []
    for checkpointing in (False, True):
        flops = footprint.flops(checkpointing)
        seconds = [n / (gpu.peak(dtype) * machine.utilisation) for part in flops.values() for dtype, n in part.items()]
        settings.append(
            {
                "gradient_checkpointing": checkpointing,
                "flops": {part: sum(of.values()) for part, of in flops.items()},
                "hours": sum(seconds) * footprint.rounds / machine.count / 3600,
                "fits": fit(footprint, gpu.memory, checkpointing)["micro_batch"] is not None,
                "cards": [fit(footprint, gb, checkpointing) for gb in MEMORIES],
            }
        )
    return {
        "config": plain(footprint.config),
        "image_size": nets.model.image_size,
        "parameters": sum(p.numel() for p in nets.model.unet.parameters()),
        "trained": sum(p.numel() for p in next(iter(nets.learners.values()))),
        "fixed_gb": {part: value / GB for part, value in footprint.fixed.items()},
        "unit": "round" if footprint.config.loop == "online" else "update",
        "units": footprint.rounds,
        "batch": footprint.batch,
        "settings": settings,
    }


def fit(footprint: Footprint, gb: int, checkpointing: bool) -> dict[str, Any]:
    """Find the largest micro-batch, and pairs of the rollout, that fit a card; what they need, what needs the most.

    Where not even one row fits, what one row would need.
    """

    def peaks(micro: int, rollout: int) -> dict[str, int]:
        return footprint.peaks(micro, rollout, checkpointing)

    room, sizes = USABLE * gb * GB, (footprint.batch // footprint.processes, footprint.pairs // footprint.processes)
    micro = next((m for m in halves(sizes[0]) if max(peaks(m, 1).values()) <= room), None)
    rollout = next((r for r in halves(sizes[1]) if max(peaks(micro or 1, r).values()) <= room), None)
    needs = peaks(micro or 1, rollout or 1)
    phase = max(needs, key=needs.get)
    sampled = rollout if micro and footprint.config.loop == "online" else None
    return dict(memory_gb=gb, micro_batch=micro, rollout_batch=sampled, peak_gb=needs[phase] / GB, phase=phase)


def halves(n: int) -> list[int]:
    """Return n, then the powers of two below it: 12, 8, 4, 2, 1."""
    return [n] + [2**k for k in reversed(range(n.bit_length())) if 2**k < n]


def text(
    machine: Machine, title: str, rows: Mapping[str, dict[str, Any]], titles: Mapping[str, str], seeds: int
) -> str:
    """Return the plan of some rows as a page.

    Args:
        rows: from `plan_rows`. titles: row -> its title. seeds: training seeds of each row.
    """
    gpu = named(machine.gpu)
    lines = [
        title,
        f"on {machine.count} x {machine.gpu}: {gpu.memory} GB, {gpu.half:g} TFLOP/s in half precision, {gpu.single:g} "
        f"in float32 ({gpu.source}), of which {machine.utilisation:g} are reached (assumed)",
        *(line for name, row in rows.items() for line in row_text(name, titles[name], row)),
        "",
    ]
    for i, how in enumerate(("without gradient checkpointing", "with gradient checkpointing")):
        hours = [row["settings"][i]["hours"] for row in rows.values() if row["settings"][i]["fits"]]
        too_large = ", ".join(name for name, row in rows.items() if not row["settings"][i]["fits"])
        told = f"{len(hours)} of {len(rows)} rows at {seeds} training seeds, {how}: {seeds * sum(hours):.3g} hours"
        lines.append(told + f" (left out, as they do not fit {gpu.memory} GB: {too_large})" * bool(too_large))
    return "\n".join([*lines, "", NOT_COUNTED.format(reserve=1 - USABLE, held=machine.held)])


def row_text(name: str, title: str, row: dict[str, Any]) -> list[str]:
    """Return a row's plan as lines."""
    c, flops = row["config"], row["settings"][0]["flops"]
    how = f"LoRA rank {c['rank']}" if c["training"] == "lora" else "all weights"
    how += ", " + c["dtype"] + ("" if c["mixed_precision"] == "no" else f", autocast {c['mixed_precision']}")
    how += f", {c['optimizer']}, pictures encoded and decoded " + ("one by one" if c["vae_slicing"] else "together")
    pairs = f"{c['pairs']} pairs, minibatch {c['minibatch']}, " if "minibatch" in c else ""
    lines = [
        "",
        f"{name}: {title} ({c['method']}), {c['model']} at {row['image_size']} px"
        + (f", assistant and teacher {c['teacher']}" if "teacher" in c else ""),
        f"  run         {row['units']} {row['unit']}s of {pairs}{row['batch']} rows an update",
        f"  settings    {how}",
        f"  trained     {row['trained']:,} of {row['parameters']:,} parameters",
        f"  FLOPs       {row['unit']} {sum(flops.values()) / 1e12:.4g} TFLOP: "
        + ", ".join(f"{part} {value / 1e12:.3g}" for part, value in flops.items()),
        "  fixed GB    " + ", ".join(f"{part} {gb:.2f}" for part, gb in row["fixed_gb"].items()),
        "  micro-batch in rows" + " (pairs sampled at a time)" * bool(pairs) + " and peak GB on a card of",
        f"  {'gradient checkpointing':<24}{'hours':>8}" + "".join(f"{f'{gb} GB':>18}" for gb in MEMORIES),
    ]
    for s in row["settings"]:
        label = "on" if s["gradient_checkpointing"] else "off"
        label += ", as the recipe" * (s["gradient_checkpointing"] == c["gradient_checkpointing"])
        lines.append(f"  {label:<24}{s['hours']:>8.3g}" + "".join(f"{cell(card):>18}" for card in s["cards"]))
    return lines


def cell(card: dict[str, Any]) -> str:
    """Return what fits a card, in a few characters."""
    if card["micro_batch"] is None:
        return f"no: {card['peak_gb']:.1f}"
    rollout = "" if card["rollout_batch"] is None else f" ({card['rollout_batch']})"
    return f"{card['micro_batch']}{rollout} {card['peak_gb']:.1f}"
