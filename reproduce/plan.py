"""What the rows of a table take on GPUs, before one is rented: parameters trained, memory, FLOPs, hours.

python reproduce/plan.py pso_table2                                # the papers' scale, on 8 H100
python reproduce/plan.py pso_table2 --gpu RTX4090 --count 1 --row online
python reproduce/plan.py pso_table2 --training full --optimizer adamw8bit --json
python reproduce/plan.py distar_table2 --row distar --model sdxl --training lora --gpu RTX4090 --count 1

Needs no GPU and no weights. Each line gives the largest micro-batch (with the batch of the rollout, in pairs) that fits
a card, the peak of memory there, and the hours of one run. The settings have the names that train_online.py and
train_offline.py give them. A GB is 2^30 bytes.
"""

import importlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn

from fsalign_lib.models.latent_model import LatentModel, Training
from fsalign_lib.models.load import load
from fsalign_lib.models.presets import PRESETS
from fsalign_lib.rewards import load_reward
from fsalign_lib.twins import architectures
from reproduce.common.cli import command_line, positive
from reproduce.common.files import plain
from reproduce.data.prompt_sets import read_prompts
from reproduce.harness.command import at_scale
from reproduce.harness.declare import Table
from reproduce.harness.rows import trained_here
from reproduce.planner.distill_footprint import DistillFootprint, DistillNetworks, key
from reproduce.planner.footprint import Footprint, Networks
from reproduce.planner.gpus import GPU, MEMORIES, USABLE, UTILISATION, named
from reproduce.planner.text import text
from reproduce.recipes import make_config
from reproduce.train_distill import DistillConfig
from reproduce.train_offline import OfflineConfig
from reproduce.train_online import OnlineConfig
from reproduce.training.config import TrainConfig
from reproduce.training.methods import METHODS, sums_steps

GB = 2**30


@dataclass(kw_only=True)
class PlanConfig:
    """What the rows of a table take on GPUs."""

    table: Annotated[str, tyro.conf.Positional]
    """Its script's name, such as pso_table2."""
    row: tuple[str, ...] = ()
    """Rows of the table; none: all."""
    gpu: str = "H100"
    """See reproduce/planner/gpus.py."""
    count: int = 8
    """GPUs, one process each."""
    scale: Literal["pocket", "full"] = "full"
    model: str | None = None
    """Where the rows start; None: where the table says. In distillation the teacher itself: with adapters, student,
    assistant and teacher then share one frozen network."""
    training: Training | None = None
    """None: the recipe's."""
    optimizer: Literal["adamw", "adamw8bit"] | None = None
    """None: the recipe's."""
    utilisation: float = UTILISATION
    """Share of the peak FLOP/s that is reached: an assumption."""
    held: int = 4000
    """Prompts, or pairs, of a set that is not on this machine. The embeddings of prompts stay on the GPU."""
    json: bool = False


def tables() -> list[str]:
    """Scripts of tables."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "\nTABLE = " in path.read_text())


def read_table(name: str) -> Table:
    """Raises: ValueError: there is no such table."""
    if name not in tables():
        raise ValueError(f"unknown table {name!r}: choose from {', '.join(tables())}")
    return importlib.import_module(f"reproduce.{name}").TABLE


def trained_rows(table: Table, asked: Sequence[str]) -> list[str]:
    """The rows that are trained, of those asked for, or of all.

    Raises:
        ValueError: one that the table lacks, or one asked for that is not trained; or nothing in the table is.
    """
    trained = [name for name, row in table.rows.items() if trained_here(table, row)]
    if not trained:
        raise ValueError(f"{table.name} trains nothing, so there is nothing to plan")
    for name in asked:
        if name not in table.rows:
            raise ValueError(f"unknown row {name!r} of {table.name}: choose from {', '.join(trained)}")
        if name not in trained:
            raise ValueError(
                f"row {name!r} of {table.name} is the model as it is, and takes no training: choose from "
                f"{', '.join(trained)}"
            )
    return list(asked) or trained


def row_config(config: PlanConfig, table: Table, name: str) -> TrainConfig:
    """The recipe's settings and the row's own, but for what is asked otherwise and what the GPU lacks."""
    row = table.rows[name]
    config_type = OnlineConfig if METHODS[row.method].loop == "online" else OfflineConfig
    models = row.sampled.models if row.sampled else table.models
    settings = {"model": models[config.scale]} | row.settings
    if METHODS[row.method].loop == "distill":
        config_type, settings = DistillConfig, {"teacher": table.teachers[config.scale]} | settings
    settings |= {"model": config.model} if config.model else {}
    made = make_config(config_type, row.method, config.scale, **settings)
    if config.optimizer:
        made = replace(made, optimizer=config.optimizer)
    if config.training and config.training != made.training:
        half = "bfloat16" if config.scale == "full" else "float32"
        made = replace(made, training=config.training, dtype=half if config.training == "lora" else "float32")
        made = replace(made, mixed_precision="no")
        if config.training == "full" and config.scale == "full":
            made = replace(made, mixed_precision="bf16")
    if not named(config.gpu).bf16:
        if made.dtype == "bfloat16":
            made = replace(made, dtype="float16", mixed_precision="fp16")
        elif made.mixed_precision == "bf16":
            made = replace(made, mixed_precision="fp16")
    return replace(made, vae_slicing=config.scale == "full")


def held(config: TrainConfig, otherwise: int) -> int:
    """Prompts of the set, if it is here."""
    try:
        return otherwise if isinstance(config, OfflineConfig) else len(read_prompts(config.prompts))
    except (OSError, ValueError):
        return otherwise


@dataclass
class Plan:
    """What was asked, checked."""

    config: PlanConfig
    gpu: GPU
    table: Table
    rows: dict[str, TrainConfig]


def prepare(config: PlanConfig) -> Plan:
    """Raises: ValueError: see the messages."""
    gpu, table = named(config.gpu), at_scale(read_table(config.table), config.scale)
    positive(config, "count", "utilisation", "held")
    if config.utilisation > 1:
        raise ValueError(f"utilisation = {config.utilisation}: expected a share of the peak, at most 1")
    if config.model and config.model not in PRESETS:
        raise ValueError(f"unknown model {config.model!r}: choose from {', '.join(PRESETS)}")
    rows = {}
    for name in trained_rows(table, config.row):
        rows[name] = row = row_config(config, table, name)
        for batch in ("pairs", "minibatch") if isinstance(row, OnlineConfig) else ("batch",):
            if getattr(row, batch) % config.count:
                raise ValueError(
                    f"count = {config.count}: {batch} = {getattr(row, batch)} of row {name!r} does not divide among "
                    "so many GPUs: choose another --count"
                )
    return Plan(config, gpu, table, rows)


def divisor(table: Table, most: int = 8) -> int:
    """The largest number of GPUs, of at most that many, among which every row's batches divide."""
    rows = [row_config(PlanConfig(table=table.name), table, name) for name in trained_rows(table, ())]
    batches = [getattr(row, name, 0) for row in rows for name in ("pairs", "minibatch", "batch")]
    return math.gcd(most, *(value for value in batches if isinstance(value, int)))


KEY = ("model", "training", "rank", "alpha", "dtype", "mixed_precision")


def all_networks(rows: dict[str, TrainConfig]) -> dict[str, Networks | DistillNetworks]:
    """Row -> its networks on the meta device. Rows that train the same in the same way share them, and their traces."""
    made: dict[tuple, Networks] = {}
    distilled: dict[tuple, DistillNetworks] = {}
    found: dict[str, Networks | DistillNetworks] = {}
    # Those with a reward come first: others, which need none, take the networks that they made, unless these have the
    # two halves of guidance, which offline losses are without.
    for name, config in sorted(rows.items(), key=lambda item: isinstance(item[1], OfflineConfig)):
        if isinstance(config, DistillConfig):
            if key(config) not in distilled:
                distilled[key(config)] = distill_networks(config)
            found[name] = distilled[key(config)]
            continue
        own = tuple(getattr(config, field) for field in KEY)
        reward = getattr(config, "reward", None)
        same = [
            nets
            for (of, by), nets in made.items()
            if of == own and reward in (None, by) and (reward or nets.model.guidance_scale == 1)
        ]
        if not same:
            same = [Networks(meta_model(config), meta_reward(reward, config.scale), config)]
            made[own, reward] = same[0]
        found[name] = same[0]
    return found


def distill_networks(config: DistillConfig) -> DistillNetworks:
    teacher = meta_model(replace(config, model=config.teacher))
    student = teacher if config.model == config.teacher else meta_model(config)
    reward = meta_reward(config.reward if config.reward_scale else None, config.scale)
    return DistillNetworks(student, teacher, reward, config)


def footprint_of(config: TrainConfig, nets: Networks | DistillNetworks, prompts: int, processes: int):
    kind = DistillFootprint if isinstance(config, DistillConfig) else Footprint
    return kind(config, nets, prompts, processes)


def meta_model(config: TrainConfig) -> LatentModel:
    """A published model from its configuration, another from its folder."""
    dtype = getattr(torch, config.dtype)
    preset = PRESETS.get(config.model)
    if preset is not None and isinstance(preset.pipeline, str):
        return architectures.meta_model(config.model, dtype)
    return load(config.model, dtype).to(torch.device("meta"))


def meta_reward(name: str | None, scale: str) -> nn.Module | None:
    """In float32, as train_online loads it; None for those without a network."""
    if name is None or name.startswith("jpeg"):
        return None
    return architectures.meta_reward(name) if scale == "full" else load_reward(name).to("meta")


def plan_row(plan: Plan, config: TrainConfig, nets: Networks | DistillNetworks) -> dict[str, Any]:
    """What one row takes, as JSON."""
    c = plan.config
    footprint = footprint_of(config, nets, held(config, c.held), c.count)
    share = footprint.batch // c.count
    sampled = config.pairs // c.count if footprint.online else 1
    settings = []
    for checkpointing in (False, True):
        flops = footprint.flops(checkpointing)
        seconds = [
            value / (plan.gpu.peak(dtype) * c.utilisation) for phase in flops.values() for dtype, value in phase.items()
        ]
        settings.append(
            {
                "gradient_checkpointing": checkpointing,
                "flops": {phase: sum(of.values()) for phase, of in flops.items()},
                "hours": sum(seconds) * footprint.rounds / c.count / 3600,
                "cards": [fit(footprint, gb, share, sampled, checkpointing) for gb in MEMORIES],
            }
        )
    online, distilled = footprint.online, isinstance(config, DistillConfig)
    batch_of = "pairs" if not online or sums_steps(config) else "steps of pairs"
    return {
        "config": plain(config),
        "image_size": nets.model.image_size,
        "parameters": sum(p.numel() for p in nets.model.unet.parameters()),
        "trained": sum(p.numel() for p in nets.trained),
        "fixed_gb": {part: value / GB for part, value in footprint.fixed.items()},
        "unit": "round" if online else "update",
        "units": footprint.rounds,
        "batch": footprint.batch,
        "batch_of": "samples" if distilled else batch_of,
        "network_rows": footprint.rows,
        "forward_flops": sum(nets.forward().flops_per_row.values()),
        "settings": settings,
    }


def fit(footprint: Footprint, gb: int, share: int, sampled: int, checkpointing: bool) -> dict[str, Any]:
    """The largest micro-batch, and batch of the rollout, that fit a card; what they need, and what needs the most.

    Where not even one pair fits, what one pair would need.
    """

    def peaks(micro: int, rollout: int) -> dict[str, int]:
        return footprint.peaks(micro, rollout, checkpointing, share)

    room = USABLE * gb * GB
    micro = next((m for m in halves(share) if max(peaks(m, 1).values()) <= room), None)
    rollout = next((r for r in halves(sampled) if max(peaks(micro or 1, r).values()) <= room), None)
    needs = peaks(micro or 1, rollout or 1)
    phase = max(needs, key=needs.get)
    batches = {"micro_batch": micro, "rollout_batch": rollout if micro and footprint.online else None}
    return {"memory_gb": gb, **batches, "peak_gb": needs[phase] / GB, "phase": phase}


def halves(n: int) -> list[int]:
    """n, then the powers of two below it: 12, 8, 4, 2, 1."""
    return [n] + [2**k for k in reversed(range(n.bit_length())) if 2**k < n]


def run(plan: Plan) -> None:
    nets = all_networks(plan.rows)
    rows = {name: plan_row(plan, config, nets[name]) for name, config in plan.rows.items()}
    if plan.config.json:
        about = {"plan": plain(plan.config), "gpu": asdict(plan.gpu), "seeds": len(plan.table.seeds), "rows": rows}
        print(json.dumps(about, indent=1))
        return
    print(text(plan.config, plan.gpu, plan.table, rows))


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(PlanConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
