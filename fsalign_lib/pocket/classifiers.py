"""Train the two networks that look at pictures from outside: the judge's eye, and the held-out classifier.

Both are small ResNets; they differ in seed, in pictures and in what they read. Their training pictures are rendered
scenes, part of them softened or noised, so that a generated picture is not foreign to them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fsalign_lib.pocket import judge, networks
from fsalign_lib.pocket.captions import ANIMALS, Fact
from fsalign_lib.pocket.fit import fit

STEPS = 2_000
BATCH = 64
AT_ONCE = 250  # pictures in a call that trains nothing


def soften(x: Tensor, factor: Tensor) -> Tensor:
    """Mix each picture with its blurred self; factor (B,) from 0 (as it is) to 1 (blurred over 5x5)."""
    k = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (k[:, None] * k).expand(x.shape[1], 1, 5, 5)
    blurred = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), kernel, groups=x.shape[1])
    return torch.lerp(x, blurred, factor[:, None, None, None])


def worn(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Wear uint8 pictures, in [0, 1]: half stay as they are, half are softened and given a little noise."""
    x = pictures.float() / 255
    touched = (torch.rand(len(x), generator=generator) < 0.5).float()
    x = soften(x, touched * torch.rand(len(x), generator=generator))
    strength = touched * 0.08 * torch.rand(len(x), generator=generator)
    return (x + strength[:, None, None, None] * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def train_eye(pictures: Tensor, facts: list[Fact], folder: Path, seed: int):
    """Train the judge's eye, which reads animals (several), colour, count and place."""
    want = judge.targets(facts)

    def loss(index: Tensor, logits: Tensor) -> Tensor:
        animals = F.binary_cross_entropy_with_logits(logits[:, judge.ANIMAL], want["animals"][index])
        parts = ((judge.COLOR, "color"), (judge.COUNT, "count"), (judge.PLACE, "place"))
        return 20 * animals + sum(F.cross_entropy(logits[:, part], want[name][index]) for part, name in parts)

    return _train("eye", judge.LABELS, pictures, torch.arange(len(facts)), loss, folder, seed)


def train_classifier(pictures: Tensor, facts: list[Fact], folder: Path, seed: int):
    """Train the classifier, which names the animal of a picture; it measures accuracy and never trains a method."""
    rows = torch.tensor([i for i, f in enumerate(facts) if f.second is None])
    label = torch.tensor([ANIMALS.index(f.animal) for f in facts])
    return _train(
        "classifier", 45, pictures, rows, lambda index, logits: F.cross_entropy(logits, label[index]), folder, seed
    )


def _train(name: str, labels: int, pictures: Tensor, rows: Tensor, criterion, folder: Path, seed: int):
    torch.manual_seed(seed)
    net = networks.classifier(labels)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        return criterion(index, net(judge.normalize(worn(pictures[index], generator))).logits)

    fit(name, net, loss, folder, steps=STEPS, lr=2e-3, seed=seed, weight_decay=0.05, every=200)
    return net


@torch.no_grad()
def classify(classifier, images: Tensor) -> Tensor:
    """Return the index of the animal seen in each picture (B, 3, 64, 64) in [0, 1]."""
    return torch.cat([classifier(judge.normalize(x)).logits.argmax(1) for x in images.split(AT_ONCE)])
