"""Measure what the shipped pocket weights score: `python -m fsalign_lib.pocket.report`.

Measures everything again from the weights, prints it, and writes the model card (README.md) and the contact sheet
beside them. Pictures and prompts measured on were in no training.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from PIL import Image
from torch import Tensor

from fsalign_lib.metrics.features import sharpness
from fsalign_lib.models import load as models
from fsalign_lib.plotting import contact_sheet
from fsalign_lib.pocket import judge, networks
from fsalign_lib.pocket.captions import ANIMALS, caption, prompts
from fsalign_lib.pocket.classifiers import classify
from fsalign_lib.pocket.refusals import refusals
from fsalign_lib.pocket.render import scenes
from fsalign_lib.pocket.rewards import agreement, held_out_pairs
from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.rewards import load_reward
from fsalign_lib.rollout import rollout, seeded_noise

HELD_OUT_SEED = 90_001  # no stage of the build draws from it
# row -> model, sampler, steps, guidance, bar of the design on single-animal accuracy
SAMPLERS = {
    "teacher, DDIM, 20 steps, guidance 2.5": ("pocket-teacher", "ddim", 20, 2.5, 0.95),
    "teacher, renoise, 4 steps": ("pocket-teacher", "renoise", 4, 1.0, None),
    "teacher, renoise, 1 step": ("pocket-teacher", "renoise", 1, 1.0, None),
    "student, renoise, 4 steps": ("pocket-turbo", "renoise", 4, 1.0, 0.92),
    "student, Euler ancestral, 4 steps": ("pocket-turbo", "euler-ancestral", 4, 1.0, 0.92),
    "student, Euler ancestral, 1 step": ("pocket-turbo", "euler-ancestral", 1, 1.0, 0.85),
    "LCM-LoRA, 1 step": ("pocket-lcm", "renoise", 1, 1.0, None),
    "LCM-LoRA, 2 steps": ("pocket-lcm", "renoise", 2, 1.0, None),
    "LCM-LoRA, 4 steps": ("pocket-lcm", "renoise", 4, 1.0, 0.92),
    "LCM-LoRA, 8 steps": ("pocket-lcm", "renoise", 8, 1.0, None),
    "DMD-LoRA, renoise, 1 step": ("pocket-dmd-lora", "renoise", 1, 1.0, None),
    "DMD-LoRA, renoise, 4 steps": ("pocket-dmd-lora", "renoise", 4, 1.0, 0.92),
    "one-step generator (Diff-Instruct), 1 step": ("pocket-one-step", None, 1, 1.0, 0.85),
}
SHEETS = (
    "teacher, DDIM, 20 steps, guidance 2.5",
    "student, Euler ancestral, 4 steps",
    "student, Euler ancestral, 1 step",
    "LCM-LoRA, 4 steps",
    "DMD-LoRA, renoise, 4 steps",
)


@dataclass
class Report:
    """Measure the shipped pocket weights and write their model card."""

    seeds: int = 8
    """Pictures per animal."""
    work: Path = Path("build/pocket")
    """Where the held-out preference pairs are kept between runs."""
    write: bool = True
    """Write README.md, report.json and contact-sheet.png beside the weights."""


@torch.no_grad()
def sample(name: str, kernel_name: str | None, steps: int, guidance: float, texts: list[str], seeds: int) -> Tensor:
    """Sample pictures in [0, 1], (len(texts) * seeds, 3, 64, 64), prompt-major, with the same seeds everywhere."""
    model = models.load(name)
    model.guidance_scale = guidance
    kernel = model.sampler(steps, kernel_name, eta=0.0)
    pictures = []
    for i, text in enumerate(texts):
        ids = [i * 1000 + s for s in range(seeds)]
        noise = seeded_noise(HELD_OUT_SEED, -1, ids, model.latent_shape, steps + 1)
        cond = model.encode_prompts([text] * seeds)
        pictures.append(model.decode(rollout(model, kernel, cond, noise).final))
    return torch.cat(pictures)


def measure_samplers(seeds: int, classifier) -> tuple[dict, dict[str, Tensor]]:
    """Measure each shipped sampler on the animals."""
    texts, rows, pictures = prompts("animals"), {}, {}
    label = torch.arange(len(ANIMALS)).repeat_interleave(seeds)
    for row, (name, kernel, steps, guidance, bar) in SAMPLERS.items():
        images = sample(name, kernel, steps, guidance, texts, seeds)
        right = (classify(classifier, images) == label).float()
        rows[row] = {"accuracy": right.mean().item(), "sharpness": sharpness(images).mean().item(), "bar": bar}
        pictures[row] = images.view(len(texts), seeds, *images.shape[1:])[:, 0]
    return rows, pictures


def measure_rewards(work: Path) -> dict:
    """Measure how often each reward agrees with the judge."""
    vae, eye = networks.load_vae(WEIGHTS), networks.load_classifier(WEIGHTS, "eye")
    facts, pairs = held_out_pairs(vae, eye, HELD_OUT_SEED + 1, work / "held-out-pairs.safetensors")
    texts, rows = [caption(f) for f in facts], {}
    for name in judge.TASTES:
        if not (WEIGHTS / name).is_dir():
            continue
        reward = load_reward(name)
        scores = {}
        for side in "ab":
            chunks = zip(pairs[side].split(250), range(0, len(texts), 250), strict=True)
            with torch.no_grad():
                scores[side] = torch.cat([reward(x.float() / 255, texts[i : i + 250]) for x, i in chunks])
        agrees, best = agreement(scores, pairs, facts, name)
        rows[name] = {"agreement": agrees, "ceiling": best}
    return rows


@torch.no_grad()
def measure() -> dict:
    """Measure the autoencoder's error and the classifier's accuracy, on renders that no training has seen."""
    facts, pictures = scenes(2_000, HELD_OUT_SEED)
    x = pictures.float() / 255
    vae = networks.load_vae(WEIGHTS)
    decoded = torch.cat([vae.decode(vae.encode(p * 2 - 1).latent_dist.mean).sample for p in x[:1000].split(250)])
    single = torch.tensor([f.second is None for f in facts])
    label = torch.tensor([ANIMALS.index(f.animal) for f in facts])[single]
    classifier = networks.load_classifier(WEIGHTS, "classifier")
    eye = networks.load_classifier(WEIGHTS, "eye")
    seen = torch.cat([eye(judge.normalize(p)).logits for p in x.split(250)])
    return {
        "autoencoder mean squared error on [-1, 1]": (decoded - (x[:1000] * 2 - 1)).square().mean().item(),
        "classifier accuracy on held-out renders": (classify(classifier, x[single]) == label).float().mean().item(),
        "alignment the eye sees in right renders": judge.alignment(seen, judge.targets(facts)).mean().item(),
    }


def card(result: dict) -> str:
    """Write the model card from the measured numbers alone."""

    def aim(bar: float | None) -> str:
        return "" if bar is None else f"{bar:.0%}"

    samplers = "\n".join(
        f"| {row} | {100 * v['accuracy']:.1f}% | {aim(v['bar'])} | {v['sharpness']:.4f} |"
        for row, v in result["samplers"].items()
    )
    rewards = "\n".join(
        f"| {name} | {100 * v['agreement']:.1f}% | {100 * v['ceiling']:.1f}% |" for name, v in result["rewards"].items()
    )
    networks_ = "\n".join(f"| {name} | {value:.4f} |" for name, value in result["networks"].items())
    sizes = "\n".join(f"| {name} | {size / 1e6:.2f} MB |" for name, size in result["sizes"].items())
    return f"""# Weights of the pocket world

A 64x64 text-to-image world on the 45 animals of SDPO's training prompts. Made by
`python -m fsalign_lib.pocket.build` (seed {result["seed"]}) on a CPU, measured by
`python -m fsalign_lib.pocket.report`, which wrote this page.

All weights were trained on pictures drawn from [OpenMoji](https://openmoji.org), the open-source emoji and icon
project, licence [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/). The weights and the contact sheet
carry the same licence.

![45 animals: teacher, student at 4 steps and at 1, LCM-LoRA and DMD-LoRA at 4](contact-sheet.png)

## Single animals recognised by the held-out classifier ({result["seeds"]} pictures an animal)

| sampler | recognised | aimed at | sharpness |
| --- | --- | --- | --- |
{samplers}

The two LoRAs are on the teacher, for diffusers' `load_lora_weights`: a latent consistency model (`pocket-lcm`) and
DMD2's distribution matching (`pocket-dmd-lora`).

## Networks on held-out renders

| measure | value |
| --- | --- |
{networks_}

## Rewards on held-out preference pairs

Agreement with the simulated judge's noisy choices, beside the best that any ranker could reach against that noise.

| reward | agreement | ceiling |
| --- | --- | --- |
{rewards}

## Files

| folder | size |
| --- | --- |
{sizes}

Half-precision safetensors in the layout of diffusers and transformers; `fsalign_lib.models.load.load("pocket-turbo")`
and `fsalign_lib.rewards.load_reward("pickscore")` read them in float32. What each network is and how it was trained
stands in `fsalign_lib/pocket/`. Use: teaching and testing. They know 45 animals and nothing else.
"""


def check(config: Report) -> None:
    """Raise a ValueError or an OSError for a number or a folder that cannot be had."""
    if config.seeds < 1:
        raise ValueError(f"seeds = {config.seeds}: expected 1 or more")
    config.work.mkdir(parents=True, exist_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    config = tyro.cli(Report, description=__doc__, args=argv)
    with refusals():
        check(config)
    classifier = networks.load_classifier(WEIGHTS, "classifier")
    samplers, pictures = measure_samplers(config.seeds, classifier)
    folders = sorted(p for p in WEIGHTS.iterdir() if p.is_dir() and not p.name.startswith("__"))
    result = {
        "seed": 0,
        "seeds": config.seeds,
        "samplers": samplers,
        "networks": measure(),
        "rewards": measure_rewards(config.work),
        "sizes": {f.name: sum(p.stat().st_size for p in f.rglob("*") if p.is_file()) for f in folders},
    }
    text = card(result)
    print(text)
    if config.write:
        (WEIGHTS / "report.json").write_text(json.dumps(result, indent=2) + "\n")
        (WEIGHTS / "README.md").write_text(text)
        rows = torch.cat([pictures[row] for row in SHEETS])
        figure = contact_sheet(rows, [*ANIMALS] * len(SHEETS), columns=15)
        figure.savefig(WEIGHTS / "contact-sheet.png", dpi=80)
        with Image.open(WEIGHTS / "contact-sheet.png") as png:
            png.quantize(255, dither=Image.Dither.NONE).save(WEIGHTS / "contact-sheet.png", optimize=True)


if __name__ == "__main__":
    main()
