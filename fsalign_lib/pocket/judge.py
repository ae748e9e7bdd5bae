"""Simulate the judge: the one place that says what people of the pocket world prefer, and how noisily.

The judge looks at a picture with its eye, a network that reads what is shown, and with three numbers taken from the
pixels. From these it makes a utility for each kind of annotator, and a preference follows Bradley-Terry,

    P(a preferred to b) = sigmoid(u(a, prompt) - u(b, prompt)).

The rewards are trained on such noisy preferences and never see a utility. The eye is not the classifier that measures
accuracy: that one is trained apart, and no method may train on either.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fsalign_lib.pocket.captions import ANIMALS, COLORS, PLACES, Fact

# Slices of the eye's 66 logits.
ANIMAL = slice(0, 45)
COLOR = slice(45, 53)  # none, then COLORS
COUNT = slice(53, 57)  # 1, 2, 3, 4 animals
PLACE = slice(57, 66)  # none, then PLACES
LABELS = 66

# A little above the median of rendered pictures; below it a picture looks soft.
CRISP_RENDER = 0.085
WARMTH_SPAN = 0.25


@dataclass(frozen=True)
class Taste:
    """Weigh utility = alignment * (what was asked is shown) + warmth * (warm light) + crispness * (sharp outlines).

    The weights take account of how much each term varies. Over pictures that a good four-step student draws of one
    prompt, warmth has a standard deviation near 0.26 (the background may have any hue), crispness near 0.02 and
    alignment, when the content is right, near 0.005. With weights of 1, 4 and 5 a preference would be one for warm
    backgrounds and little else, and a model aligned with it turns orange. These make crispness count about three times
    as much as warmth, and let alignment decide wherever the content is wrong.
    """

    alignment: float
    warmth: float
    crispness: float


TASTES = {
    "pickscore": Taste(alignment=8.0, warmth=0.3, crispness=12.0),
    "hps": Taste(alignment=6.0, warmth=0.5, crispness=10.0),
    "imagereward": Taste(alignment=12.0, warmth=0.1, crispness=8.0),
    "aesthetic": Taste(alignment=0.0, warmth=0.8, crispness=14.0),
}


def targets(facts: list[Fact]) -> dict[str, Tensor]:
    """Return what the eye should read: animals (B, 45) as 0/1, class indices of colour, count and place (B,)."""
    animals = torch.zeros(len(facts), len(ANIMALS))
    for row, fact in zip(animals, facts, strict=True):
        row[ANIMALS.index(fact.animal)] = 1
        if fact.second:
            row[ANIMALS.index(fact.second)] = 1
    places = tuple(PLACES)
    return {
        "animals": animals,
        "color": torch.tensor([COLORS.index(f.color) + 1 if f.color else 0 for f in facts]),
        "count": torch.tensor([1 if f.second else f.count - 1 for f in facts]),
        "place": torch.tensor([places.index(f.place) + 1 if f.place else 0 for f in facts]),
    }


def alignment(logits: Tensor, want: dict[str, Tensor]) -> Tensor:
    """Score what is seen of what is wanted, in [0, 1], (B,): animals weigh two, colour, count and place one each.

    `logits` (B, 66) of the eye; `want` as `targets` gives it.
    """
    animals = (logits[:, ANIMAL].sigmoid() * want["animals"]).sum(1) / want["animals"].sum(1)

    def seen(part: slice, index: Tensor) -> Tensor:
        return logits[:, part].softmax(1).gather(1, index[:, None])[:, 0]

    score, weight = 2 * animals + seen(COUNT, want["count"]), torch.full((len(logits),), 3.0)
    for part, name in ((COLOR, "color"), (PLACE, "place")):
        asked = (want[name] > 0).float()
        score, weight = score + asked * seen(part, want[name]), weight + asked
    return score / weight


def warmth(images: Tensor) -> Tensor:
    """Mean red minus mean blue over 0.25, clipped to [-1, 1]. Images (B, 3, H, W) in [0, 1]."""
    return ((images[:, 0] - images[:, 2]).mean((1, 2)) / WARMTH_SPAN).clamp(-1, 1)


def crispness(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels over that of a rendered picture, clipped to [0, 1].

    Clipped, since above a rendered picture's value it is noise and not sharpness that grows.
    """
    dx = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
    dy = (images[..., 1:, :] - images[..., :-1, :]).abs().mean((1, 2, 3))
    return ((dx + dy) / CRISP_RENDER).clamp(0, 1)


@torch.no_grad()
def look(eye, images: Tensor) -> dict[str, Tensor]:
    """Look at pictures (B, 3, 64, 64) in [0, 1]: the eye's logits, warmth and crispness."""
    return {"logits": eye(normalize(images)).logits, "warmth": warmth(images), "crispness": crispness(images)}


def utility(seen: dict[str, Tensor], want: dict[str, Tensor], taste: str) -> Tensor:
    """Return u(image, prompt) of one kind of annotator, (B,), from what `look` saw and the prompts want (`targets`)."""
    t = TASTES[taste]
    aligned = alignment(seen["logits"], want)
    return t.alignment * aligned + t.warmth * seen["warmth"] + t.crispness * seen["crispness"]


def normalize(images: Tensor) -> Tensor:
    """Map [0, 1] to [-1, 1], as the eye and the classifier were trained."""
    return images * 2 - 1


def prefer(u_a: Tensor, u_b: Tensor, generator: torch.Generator) -> Tensor:
    """Choose noisily, once a pair: True where a is chosen, (B,)."""
    return torch.rand(u_a.shape, generator=generator) < (u_a - u_b).sigmoid()


def votes(u_a: Tensor, u_b: Tensor, annotators: int, generator: torch.Generator) -> Tensor:
    """Return the share of `annotators` who choose a, each on their own."""
    p = (u_a - u_b).sigmoid()
    return torch.binomial(torch.full_like(p, annotators), p, generator=generator) / annotators


def ceiling(u_a: Tensor, u_b: Tensor) -> float:
    """Return how often the best possible ranker agrees with the judge's noisy choices: E max(p, 1 - p)."""
    p = (u_a - u_b).sigmoid()
    return torch.maximum(p, 1 - p).mean().item()
