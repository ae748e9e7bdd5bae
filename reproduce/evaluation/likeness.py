"""Measure how like a set of target pictures others are: in the concept, or in the style.

| metric | of one picture |
| --- | --- |
| clip-t | the CLIP score with its prompt, the concept's name taken out of it |
| clip-i | mean cosine to the target pictures, in the CLIP score's network |
| dino | the same mean cosine in a self-supervised network: DINO at full scale, a DINO-like one at pocket scale |
| style-distance | mean 1-Wasserstein distance to the targets' distributions of six values (below) |
| concept (pocket scale) | 1 if most of the nearest renders, by the held-out classifier's features, show the concept |
| creature (pocket scale) | 1 if most of those renders show the animal that the prompt asks for, in whatever style |
| context (pocket scale) | 1 if the judge's eye reads the colour, number and place that the prompt asks for, else 0 |

The six values are red, green, blue, how far a pixel is from grey, and its differences from the pixels beside and below:
palette and line. DreamBooth's metrics of these names are the first three; PSO Table 4 does not say which CLIP it took.
None is trained on by any method.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fsalign_lib.pocket import concept, judge
from fsalign_lib.pocket.captions import ANIMALS, COLORS, COUNTS, PLACES, Fact, parse
from fsalign_lib.pocket.networks import load_classifier
from fsalign_lib.pocket.render import render
from fsalign_lib.pocket.styles import STYLES
from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.rewards import load_reward
from fsalign_lib.rewards.dino import load_image_encoder
from reproduce.evaluation.metrics import pooled

Metric = Callable[[Tensor, Sequence[str]], Tensor]  # pictures, prompts -> (B,)
FULL = ("clip-t", "clip-i", "dino", "style-distance")
LIKENESS = {"pocket": (*FULL, "concept", "creature", "context"), "full": FULL}
LEVELS = 64  # quantiles that a distribution is compared by
NEIGHBOURS, RENDERS = 3, 24  # of `shown`: votes, and renders of each creature in each style


def load_likeness(
    names: Sequence[str], targets: Tensor | None, device: torch.device | str = "cpu", scale: str = "pocket"
) -> dict[str, Metric]:
    """Load the named metrics.

    Args:
        targets: pictures in [0, 1]  # (N, 3, H, W); None where no metric needs them.

    Raises:
        ValueError: an unknown metric, or one that needs targets where there are none.
    """
    loaded: dict[str, Metric] = {}
    for name in names:
        if name not in LIKENESS[scale]:
            raise ValueError(f"unknown metric {name!r}: choose from {', '.join(LIKENESS[scale])}")
        if targets is None and name in ("clip-i", "dino", "style-distance"):
            raise ValueError(f"metric {name} compares with target pictures, and there are none")
    if {"clip-t", "clip-i"} & set(names):
        clip = load_reward("clipscore", scale=scale).to(device)
        loaded["clip-t"] = lambda images, prompts: clip(images, [concept.plain(prompt) for prompt in prompts])
        loaded["clip-i"] = like(clip.image_embeddings, targets, device)
    if "dino" in names:
        loaded["dino"] = like(load_image_encoder(scale).to(device), targets, device)
    if {"concept", "creature"} & set(names):
        look = judge_of_creatures(device)
        loaded["concept"] = lambda images, prompts: (look(images) == len(ANIMALS)).float()
        loaded["creature"] = lambda images, prompts: (look(images) == asked(prompts)).float()
    if "context" in names:
        eye = load_classifier(WEIGHTS, "eye").to(device)
        loaded["context"] = lambda images, prompts: in_context(eye, images, prompts)
    if "style-distance" in names:
        style = quantiles(targets.to(device)).mean(0)
        loaded["style-distance"] = lambda images, prompts: (quantiles(images) - style).abs().mean((1, 2))
    return {name: loaded[name] for name in names}


@torch.no_grad()
def like(encode: Callable[[Tensor], Tensor], targets: Tensor | None, device: torch.device | str) -> Metric | None:
    """Mean cosine of a picture's unit embedding to the targets'."""
    if targets is None:
        return None
    mean = torch.cat([encode(some.to(device)) for some in targets.split(16)]).mean(0)
    return lambda images, prompts: encode(images) @ mean


def quantiles(images: Tensor) -> Tensor:
    """Return evenly spaced quantiles of six distributions of values of each picture (B, 3, H, W) in [0, 1].

    The mean distance of two pictures' quantiles is the 1-Wasserstein distance of their distributions.  # (B, 6, LEVELS)
    """
    images = images.float()
    grey = images.mean(1)
    parts = [*images.unbind(1), (images - grey[:, None]).square().mean(1).sqrt()]
    parts += [(grey[..., 1:] - grey[..., :-1]).abs(), (grey[..., 1:, :] - grey[..., :-1, :]).abs()]
    at = (torch.arange(LEVELS, device=images.device) + 0.5) / LEVELS
    values = [part.flatten(1).sort(1).values for part in parts]
    return torch.stack([each[:, (at * each.shape[1]).long()] for each in values], 1)


def judge_of_creatures(device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """Return `shown` by the features of the classifier that no method is trained on."""
    classifier = load_classifier(WEIGHTS, "classifier").to(device)
    return shown(lambda images: F.normalize(pooled(classifier, images), dim=1), device)


@torch.no_grad()
def shown(encoder: Callable[[Tensor], Tensor], device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """Tell what each picture shows: the place of an animal in ANIMALS, or len(ANIMALS) for the concept.  # (B,)

    The majority among the NEIGHBOURS nearest of RENDERS renders of each, in every style and in all sorts of contexts.
    """
    features, shows, generator = [], [], torch.Generator().manual_seed(0)
    for place, creature in enumerate((*ANIMALS, None)):
        facts = [context(creature or concept.CLASS, i) for i in range(RENDERS)]
        for style in STYLES:
            pictures = render(facts, generator, style, None if creature else concept.bank())
            features.append(encoder(pictures.to(device) / 255))
            shows += [place] * RENDERS
    known, labels = torch.cat(features), torch.tensor(shows, device=device)

    def look(images: Tensor) -> Tensor:
        return labels[(encoder(images) @ known.T).topk(NEIGHBOURS, dim=1).indices].mode(1).values.cpu()

    return look


def asked(prompts: Sequence[str]) -> Tensor:
    """Return the place in ANIMALS of the animal that each prompt is about, with two of them the first.  # (B,)"""
    return torch.tensor([ANIMALS.index(parse(concept.plain(prompt)).animal) for prompt in prompts])


def context(animal: str, number: int) -> Fact:
    """Return a fact: the plain animal, a colour, a number and a place in turn."""
    kind, which = number % 4, number // 4
    if kind == 1:
        return Fact(animal, color=COLORS[which % len(COLORS)])
    if kind == 2:
        return Fact(animal, count=tuple(COUNTS)[which % len(COUNTS)])
    return Fact(animal, place=tuple(PLACES)[which % len(PLACES)]) if kind == 3 else Fact(animal)


def in_context(eye, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return 1 where the eye reads colour, number and place as the prompt has them, else 0.  # (B,)"""
    want = judge.targets([parse(concept.plain(prompt)) for prompt in prompts])
    logits = judge.look(eye, images)["logits"].cpu()
    parts = ((judge.COLOR, "color"), (judge.COUNT, "count"), (judge.PLACE, "place"))
    return torch.stack([logits[:, part].argmax(1) == want[name] for part, name in parts]).all(0).float()
