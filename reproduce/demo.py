"""Align the shipped 4-step model with a reward by online PSO, on a CPU, in a few minutes: `make demo`.

python reproduce/demo.py --rounds 60 --out demo-output

Trains on the "train" prompts with PickScore, and measures on prompts that no network has seen, before and after, with
the same start noise for each picture: the table's intervals are paired. The training run (configuration, history,
weights) is left in <out>/run, the table in <out>/demo.json, the pictures in <out>/before-after.png.
"""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from fsalign_lib.json_files import read_json
from fsalign_lib.pocket.captions import prompts
from reproduce.common.cli import command_line, positive
from reproduce.common.files import claim, last_checkpoint, plain, release, writable_folder, write_json
from reproduce.common.provenance import Clock, provenance

if TYPE_CHECKING:
    from torch import Tensor

    from fsalign_lib.metrics.statistics import Interval
    from fsalign_lib.models.latent_model import LatentModel
    from reproduce import train_online
    from reproduce.evaluation.metrics import Metric
    from reproduce.training.config import RewardFunction

CREDIT = "Pictures: weights trained on OpenMoji (openmoji.org), CC BY-SA 4.0"
SMOOTH = 10  # rounds that the progress bar averages the reward over
SHOWN = 16  # pictures before and after: the first held-out prompts, not chosen


@dataclass(frozen=True)
class Row:
    """Name a line of the table."""

    metric: str
    label: str
    digits: int


@dataclass(frozen=True)
class Part:
    """Describe an evaluation, from which some lines of the table come."""

    prompts: str
    seeds: int
    rows: tuple[Row, ...]


PARTS = (
    Part(
        "test-heldout",
        2,
        (
            Row("pickscore", "PickScore (trained)", 3),
            Row("aesthetic", "Aesthetic", 3),
            Row("clipscore", "CLIP score", 4),
            Row("imagereward", "ImageReward", 3),
            Row("diversity", "diversity", 4),
            Row("sharpness", "sharpness", 5),
        ),
    ),
    Part("animals", 4, (Row("accuracy", "animal accuracy", 3),)),
)


@dataclass(kw_only=True)
class DemoConfig:
    """Align the pocket world's 4-step model by online PSO, and show it before and after."""

    rounds: int = 60
    """Rounds of sampling and updating; 60 take about 3 minutes on two free cores."""
    pairs: int = 32
    """Prompts a round, with two pictures each."""
    lr: float = 1e-5
    """Learning rate of AdamW."""
    seed: int = 0
    """Seed of the training; the pictures measured on are always the same."""
    out: Path = Path("demo-output")
    """Folder for the run, the table and the pictures."""
    threads: int | None = None
    """CPU threads of torch; None: its own choice."""


@dataclass
class Demo:
    """Hold everything the demo needs, checked."""

    config: DemoConfig
    setup: train_online.Setup
    metrics: Mapping[str, Metric]

    @property
    def model(self) -> LatentModel:
        return self.setup.model


def prepare(
    config: DemoConfig,
    model: LatentModel | None = None,
    reward: RewardFunction | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Demo:
    """Check the settings, load what the demo needs. What is given is taken in place of the shipped weights."""
    from fsalign_lib.models.load import load
    from reproduce import train_online
    from reproduce.evaluation.metrics import load_metrics
    from reproduce.recipes import make_config
    from reproduce.training.checkpoints import drop_checkpoints

    positive(config, "rounds", "pairs", "lr", *(["threads"] if config.threads is not None else []))
    writable_folder(config.out)
    os.environ["ACCELERATE_USE_CPU"] = "true"  # so that every machine shows the same
    claim(config.out)
    folder, note = config.out / "run", config.out / "demo.json"
    before = last_checkpoint(folder) is not None
    if before and not earlier(folder, note):
        raise ValueError(f"{folder} holds a run that is not this demo's: choose another --out")
    model = model or load("pocket-turbo")
    metrics = metrics or load_metrics([row.metric for part in PARTS for row in part.rows])
    if before:
        drop_checkpoints(folder)
    write_json(note, {"config": plain(config)})  # so that a demo that was stopped is known, too
    shared = {"seed": config.seed, "lr": config.lr, "rounds": config.rounds, "save_every": config.rounds}
    training = make_config(
        train_online.OnlineConfig, "pso-online", out=folder, pairs=config.pairs, threads=config.threads, **shared
    )
    return Demo(config, train_online.prepare(training, model, reward), metrics)


def earlier(folder: Path, note: Path) -> bool:
    """Tell whether the run in a folder is the one that an earlier demo left, by its settings."""
    if not (note.exists() and (folder / "config.json").exists()):
        return False
    ours, run = read_json(note, config=dict)["config"], read_json(folder / "config.json", method=str)
    same = (run.get(name) == ours.get(name) for name in ("rounds", "pairs", "lr", "seed"))
    return run["method"] == "pso-online" and all(same)


def measure(demo: Demo, title: str) -> list[dict]:
    """Evaluate the model: a result of `evaluate` for each part."""
    from reproduce.evaluation.scores import evaluate

    steps, results = demo.setup.config.steps, []
    for part in PARTS:
        metrics = {row.metric: demo.metrics[row.metric] for row in part.rows}
        names, bar = prompts(part.prompts), f"{title}, {part.prompts}"
        results.append(evaluate(demo.model, None, steps, names, range(part.seeds), metrics, progress=bar))
    return results


def pictures(demo: Demo) -> Tensor:
    """Sample the pictures to show.  # (SHOWN, 3, H, W)"""
    from reproduce.evaluation.scores import sample

    return sample(demo.model, None, demo.setup.config.steps, shown_prompts(), [0])[:, 0]


def shown_prompts() -> list[str]:
    """List the prompts whose pictures are shown."""
    return prompts(PARTS[0].prompts)[:SHOWN]


def train(demo: Demo) -> list[float]:
    """Train by online PSO, and return the mean reward of each round."""
    from tqdm import tqdm

    from reproduce import train_online

    rewards: list[float] = []
    bar = tqdm(train_online.train(demo.setup), total=demo.config.rounds, desc="online PSO", unit="round")
    for record in bar:
        rewards.append(100 * record["reward"])
        lately = rewards[-SMOOTH:]
        bar.set_postfix_str(f"PickScore of the last {len(lately)} rounds {sum(lately) / len(lately):.2f}")
    demo.setup.run.finish()
    return rewards


def differences(before: Sequence[dict], after: Sequence[dict]) -> dict[str, Interval]:
    """Compare each metric of the table before and after."""
    from reproduce.evaluation.scores import compare

    return {
        row.metric: compare(a, b, row.metric)
        for part, b, a in zip(PARTS, before, after, strict=True)
        for row in part.rows
    }


def table(before: Sequence[dict], after: Sequence[dict], difference: Mapping[str, Interval]) -> str:
    """Write the table: before, after, and the difference with its interval."""
    lines = [f"{'':20}{'before':>9}{'after':>9}{'difference':>12}   95% interval"]
    for part, b, a in zip(PARTS, before, after, strict=True):
        for row in part.rows:
            d, gap = row.digits, difference[row.metric]
            lines.append(
                f"{row.label:20}{b['means'][row.metric]:9.{d}f}{a['means'][row.metric]:9.{d}f}"
                f"{gap.estimate:+12.{d}f}   [{gap.low:+.{d}f}, {gap.high:+.{d}f}]"
            )
    held_out, animals = (f"{len(prompts(part.prompts))} prompts, {part.seeds} pictures each" for part in PARTS)
    lines.append(f"On held-out combinations: {held_out}. Animal accuracy: {animals}.")
    lines.append("Both sides start from the same noise; the intervals are over prompts, of this one training run.")
    return "\n".join(lines)


def verdict(gap: Interval) -> str:
    """Say in one line whether PickScore rose, with its interval."""
    amount = f"by {abs(gap.estimate):.3f}, 95% interval [{gap.low:+.3f}, {gap.high:+.3f}]"
    if not gap.excludes(0):
        return (
            f"PickScore on held-out prompts moved {amount}: zero is inside, so this run shows no change beyond noise."
        )
    direction = "rose" if gap.estimate > 0 else "FELL"
    return f"PickScore on held-out prompts {direction} {amount}: zero is outside."


def figure(before: Tensor, after: Tensor, names: Sequence[str], title: str, columns: int = 8):
    """Lay out rows of `columns` pictures in turn: before, with their prompts, and after."""
    import torch

    from fsalign_lib.plotting import contact_sheet

    images, captions = [], []
    for first in range(0, len(names), columns):
        some = slice(first, first + columns)
        images += [before[some], after[some]]
        captions += ["\n".join(textwrap.wrap(name, 15)) for name in names[some]] + [""] * len(names[some])
    sheet = contact_sheet(torch.cat(images), captions, columns, size=1.0)
    for number, cell in enumerate(sheet.axes[::columns]):
        side = "after" if number % 2 else "before"
        cell.text(-0.06, 0.5, side, transform=cell.transAxes, rotation=90, ha="right", va="center", fontsize=8)
    groups = -(-len(names) // columns)
    sheet.set_size_inches(columns + 0.3, 2 * groups + 0.36 * groups + 0.55)  # pictures, captions, title and credit
    sheet.suptitle(title, fontsize=9)
    sheet.supxlabel(CREDIT, fontsize=6.5)
    return sheet


def run(demo: Demo) -> None:
    """Measure, train, measure again, and write the table and the pictures."""
    import torch

    from fsalign_lib.plotting import save

    c, clock = demo.config, Clock()
    count = len(demo.setup.prompts)
    print(f"Aligning {demo.model.name}, {demo.setup.config.steps} steps, with PickScore on {count} training prompts:")
    print(f"{c.rounds} rounds of {c.pairs} pairs, lr {c.lr:g}, {torch.get_num_threads()} threads.")
    before, before_pictures = measure(demo, "before"), pictures(demo)
    trained = time.time()
    rewards = train(demo)
    trained = time.time() - trained
    after, after_pictures = measure(demo, "after"), pictures(demo)
    gaps = differences(before, after)
    print(f"\n{table(before, after, gaps)}")
    title = f"Online PSO, {c.rounds} rounds of {c.pairs} pairs: held-out prompts, the same noise before and after"
    picture = save(figure(before_pictures, after_pictures, shown_prompts(), title), c.out / "before-after.png")
    about = {"config": plain(c), **provenance(clock), "training_seconds": round(trained, 1), "rewards": rewards}
    rows = {
        row.metric: {"before": b["means"][row.metric], "after": a["means"][row.metric], **gaps[row.metric]._asdict()}
        for part, b, a in zip(PARTS, before, after, strict=True)
        for row in part.rows
    }
    write_json(c.out / "demo.json", about | {"table": rows, "before": before, "after": after})
    took = f"{about['wall_seconds']:.0f} s, {trained:.0f} of training"
    print(f"\nWrote {picture} and {c.out / 'demo.json'} in {took}.")
    release(c.out)
    print(CREDIT + ".")
    print(verdict(gaps["pickscore"]))


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(DemoConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
