"""Score pictures for prompts by the rewards' own packages and by fsalign_lib.rewards, and print the differences.

make image-reward                     # once: image-reward, open_clip and hpsv2, beside what is installed
python reproduce/score_images.py --images DIR --prompts prompts.txt --reward imagereward
python reproduce/score_images.py --images DIR --prompts prompts.txt --reward hps clipscore pickscore --out scores.json

Line i of the prompts belongs to picture i in order of name; one line belongs to all. Both sides read the same weights,
from the hub or from the folder that FSALIGN_HUB names, and the same upright RGB pictures.

The scores are in the package's unit: fsalign's PickScore, a cosine, is multiplied by the checkpoint's exp(logit_scale),
which is 100. What differs is rounding: fsalign scales pictures in torch, so that gradients pass, and up to two in a
hundred values of a picture come out a level of 255 away from Pillow's. On a GPU, hpsv2 computes in float16.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from reproduce.common.cli import command_line, processes, refusals
from reproduce.common.files import plain, writable_folder, write_json
from reproduce.common.provenance import Clock, provenance
from reproduce.data.prompt_sets import read_prompts

if TYPE_CHECKING:
    from torch import nn

    from reproduce.evaluation.original_rewards import Score


@dataclass(kw_only=True)
class ScoreConfig:
    """Score pictures by the rewards' own packages and by fsalign."""

    images: Path
    """A folder of pictures."""
    prompts: str
    """A prompt set, or a file with a prompt a line: one for each picture, or one for all."""
    reward: tuple[Literal["imagereward", "clipscore", "hps", "hps-2.1", "pickscore"], ...] = ("imagereward",)
    """Rewards of fsalign_lib.rewards at full scale."""
    hub: Path | None = None
    """Folder with the published weights (see fsalign_lib.models.hub); None: FSALIGN_HUB's, or the hub itself."""
    out: Path | None = None
    """A .json file for the scores."""


@dataclass
class Setup:
    """Hold what is scored, and both sides of each reward, loaded."""

    config: ScoreConfig
    rows: list[tuple[Path, str]]
    rewards: dict[str, tuple[Score, nn.Module]]


def prepare(config: ScoreConfig) -> Setup:
    """Pair pictures with prompts, and load the rewards.

    Raises:
        ValueError: as many prompts as pictures are not there, a package is not installed, weights are wrong.
        FileNotFoundError: no such folder, or no picture in it; no weights.
    """
    from fsalign_lib.models.hub import Hub
    from fsalign_lib.rewards import load_reward
    from reproduce.data.pictures import list_pictures, picture_size
    from reproduce.evaluation.original_rewards import ORIGINALS

    if not config.images.is_dir():
        raise FileNotFoundError(f"no folder {config.images}: name one with pictures")
    with warnings.catch_warnings():  # several pictures of one prompt are usual
        warnings.filterwarnings("ignore", ".* repeats ")
        pictures, prompts = list_pictures(config.images), read_prompts(config.prompts)
    if not pictures:
        raise FileNotFoundError(f"no picture in {config.images}")
    if len(prompts) not in (1, len(pictures)):
        raise ValueError(f"{len(prompts)} prompts for {len(pictures)} pictures: give one for each, or one for all")
    for path in pictures:
        picture_size(path)
    if config.out is not None:
        writable_folder(config.out.parent)
    prompts = prompts * len(pictures) if len(prompts) == 1 else prompts
    device, rewards = processes().device, {}
    for name in dict.fromkeys(config.reward):
        try:
            original = ORIGINALS[name](Hub.of(f"reward {name!r}", config.hub), str(device))
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from None
        rewards[name] = original, load_reward(name, scale="full", hub=config.hub).to(device)
    return Setup(config, list(zip(pictures, prompts, strict=True)), rewards)


def score(setup: Setup) -> list[dict[str, Any]]:
    """Return a row for each picture and reward: both scores, in the package's unit, and fsalign's minus the package's.

    Raises:
        ValueError: a picture cannot be read.
    """
    import numpy as np
    import torch

    from reproduce.data.pictures import load_picture

    found = []
    for path, prompt in setup.rows:
        with refusals():  # of a picture that is cut off
            picture = load_picture(path)
        values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
        for name, (original, reward) in setup.rewards.items():
            with torch.no_grad():
                theirs = original(picture, prompt)
                ours = reward(values.to(processes().device), [prompt]).item()
                if name == "pickscore":
                    ours *= reward.model.logit_scale.exp().item()
            scores = {"package": theirs, "fsalign": ours, "difference": ours - theirs}
            found.append({"picture": path.name, "prompt": prompt, "reward": name} | scores)
    return found


def run(setup: Setup) -> None:
    """Print the scores, and write them where that is asked for."""
    clock, rows = Clock(), score(setup)
    width = max(len(row["picture"]) for row in rows)
    print(f"{'reward':<12}{'picture':<{width}}{'package':>12}{'fsalign':>12}{'difference':>12}  prompt")
    for row in rows:
        values = f"{row['package']:>12.5f}{row['fsalign']:>12.5f}{row['difference']:>12.1e}"
        print(f"{row['reward']:<12}{row['picture']:<{width}}{values}  {row['prompt'][:60]}")
    summary = {name: summarise([row for row in rows if row["reward"] == name]) for name in setup.rewards}
    for name, one in summary.items():
        scores = f"{one['pictures']} pictures, package {one['mean']:.4f} +- {one['deviation']:.4f}"
        mean, largest = one["mean_difference"], one["largest_difference"]
        print(f"{name}: {scores}; fsalign differs by {mean:.1e} on average, {largest:.1e} at most")
    if setup.config.out is not None:
        about = {**provenance(clock), "config": plain(setup.config)}
        write_json(setup.config.out, about | {"summary": summary, "scores": rows})


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return mean and standard deviation of the package's scores, mean and largest absolute difference."""
    scores, off = [row["package"] for row in rows], [abs(row["difference"]) for row in rows]
    spread = {"mean": statistics.fmean(scores), "deviation": statistics.pstdev(scores)}
    return {"pictures": len(rows), **spread, "mean_difference": statistics.fmean(off), "largest_difference": max(off)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command_line(lambda args: tyro.cli(ScoreConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
