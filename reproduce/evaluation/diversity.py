"""Measure how much of what could be drawn is drawn, on features and pixels that no method trains on.

They compare a prompt's pictures with each other (vendi, modes), or all pictures with a reference set (precision,
recall). See the table in metrics.py.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsalign_lib.metrics.features import cosine_kernel, vendi_score
from fsalign_lib.metrics.precision_recall import in_manifold
from fsalign_lib.pocket.captions import ANIMALS, parse
from fsalign_lib.pocket.classifiers import classify

Renders = Callable[[tuple[str, ...], int], Tensor]  # prompts, so many of each -> features (P * count, D), by prompt

FRAME = 3  # pixels; the animals of the pocket world stand inside it
# The middle of each colour channel of the pocket world's plain backgrounds, U[0.66, 1]; its 8 octants are as frequent.
PASTEL = 0.83


def vendi(features: Tensor, prompts: Sequence[str]) -> Tensor:
    """Give each picture the Vendi score of its prompt's pictures, with the cosine kernel.  # (B, D) -> (B,)"""
    return of_each_prompt(prompts, lambda rows: vendi_score(cosine_kernel(features[rows])))


def modes(classifier, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Give each picture the number of the 8 backgrounds that its prompt's pictures show behind the animal asked for.

    Pictures in which the classifier names another animal do not count, so that noise is no diversity; where two animals
    are asked for, either will do. nan for prompts with a place, whose background is given.  # (B,)
    """
    facts = [parse(prompt) for prompt in prompts]
    seen = classify(classifier, images).tolist()
    right = [ANIMALS[animal] in (fact.animal, fact.second) for animal, fact in zip(seen, facts, strict=True)]
    behind = background(images)

    def count(rows: list[int]) -> float:
        if facts[rows[0]].place:
            return float("nan")
        return float(len({int(behind[row]) for row in rows if right[row]}))

    return of_each_prompt(prompts, count)


def background(images: Tensor) -> Tensor:
    """Return the octant of the pastels, 0 to 7, of the frame's median colour.  # (B, 3, H, W) -> (B,) long"""
    inside = torch.zeros(images.shape[2:], dtype=torch.bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    frame = images[:, :, ~inside.to(images.device)]  # (B, 3, pixels)
    light = (frame.median(2).values > PASTEL).long()
    return (light * torch.tensor([4, 2, 1], device=images.device)).sum(1)


def of_each_prompt(prompts: Sequence[str], value: Callable[[list[int]], float]) -> Tensor:
    """Compute a number for the rows of each prompt, and give it to each of them.  # (B,)"""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    values = {prompt: value(own) for prompt, own in rows.items()}
    return torch.tensor([values[prompt] for prompt in prompts])


class PrecisionRecall:
    """Measure precision or recall of all pictures together, against as many renders of each prompt.

    Args:
        kind: "precision" is whether a picture lies among the renders, "recall" whether a render lies among the
            pictures: then the score of a place is that of the render that stands there.
    """

    def __init__(self, kind: str, network: Callable[[Tensor], Tensor], renders: Renders):
        self.kind, self.network, self.renders = kind, network, renders

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return features of unit length.  # (B, D)"""
        return F.normalize(self.network(images), dim=1).float().cpu()

    def scores(self, features: Tensor, prompts: Sequence[str], count: int) -> Tensor:
        """Return 0 or 1 for each of a prompt's `count` places.  # (P * count, D) -> (P, count)"""
        real = self.renders(tuple(prompts), count)
        sides = (features, real) if self.kind == "precision" else (real, features)
        return torch.from_numpy(in_manifold(*sides).astype(np.float32)).unflatten(0, (-1, count))
