r"""Train the self-supervised image encoder, which stands where DINO stands in DreamBooth's and PSO's tables.

It is DINO-like in its task alone: it learns from pictures without captions or labels that two views of one picture
belong together. The objective is SimCLR's [arXiv 2002.05709], which a CPU can train in minutes: with unit features z of
2B views, of which i and j show the same picture,

$$L = -\frac{1}{2B} \sum_i \log \frac{\exp(z_i \cdot z_j / \tau)}{\sum_{k \ne i} \exp(z_i \cdot z_k / \tau)}.$$

Views differ in crop, side, hue, brightness, contrast and softness, so none of these can be what tells pictures apart.
The projection that the loss is taken through is thrown away; the features before it are what is kept.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsalign_lib.pocket import networks
from fsalign_lib.pocket.classifiers import soften
from fsalign_lib.pocket.fit import fit
from fsalign_lib.pocket.judge import normalize

STEPS = 400
BATCH = 64
TEMPERATURE = 0.2
WIDTH = 64  # of the projection
GREY = (0.299, 0.587, 0.114)


def views(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one random view of each picture (B, 3, H, W) in [0, 1]."""
    B = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    size, shift = uniform(0.45, 1.0, B), uniform(-1, 1, B, 2)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0] = torch.where(torch.rand(B, generator=generator) < 0.5, size, -size)
    theta[:, 1, 1] = size
    theta[:, :, 2] = shift * (1 - size)[:, None]
    x = F.grid_sample(pictures, F.affine_grid(theta, list(pictures.shape), align_corners=False), align_corners=False)
    grey = (x * torch.tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    # A rotation about the grey axis turns the hue; then some go grey, and all change in brightness and contrast.
    mixed = torch.einsum("bij,bjhw->bihw", hue_rotation(uniform(-3.1416, 3.1416, B)), x - grey)
    saturation = uniform(0.3, 1.3, B) * (torch.rand(B, generator=generator) < 0.8)
    x = grey + saturation.view(-1, 1, 1, 1) * mixed
    middle = x.mean((1, 2, 3), keepdim=True)
    x = (x - middle) * uniform(0.6, 1.4, B, 1, 1, 1) + middle + uniform(-0.2, 0.2, B, 1, 1, 1)
    soft = uniform(0, 1, B) * (torch.rand(B, generator=generator) < 0.5)
    return soften(x.clamp(0, 1), soft)


def hue_rotation(angle: Tensor) -> Tensor:
    """Return rotations about (1, 1, 1) by angles (B,).  # (B, 3, 3)"""
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    axis = torch.full((3, 3), 1 / 3)
    turn = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    return c * torch.eye(3) + (1 - c) * axis + s * turn


def contrast(z: Tensor) -> Tensor:
    """Return the loss of 2B unit features, the two views of a picture at i and B + i. A scalar, minimised."""
    B = len(z) // 2
    logits = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(2 * B, dtype=torch.bool), float("-inf"))
    return F.cross_entropy(logits, torch.arange(2 * B).roll(B))


def train(pictures: Tensor, folder: Path, seed: int):
    """Fit the encoder to uint8 pictures (N, 3, 64, 64); it never hears what they show."""
    torch.manual_seed(seed)
    encoder = networks.encoder()
    features = encoder.config.hidden_sizes[-1]
    head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, WIDTH))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pictures), (BATCH,), generator=generator)
        x = (pictures[index].float() / 255).repeat(2, 1, 1, 1)
        pooled = encoder(normalize(views(x, generator))).pooler_output.flatten(1)
        return contrast(F.normalize(head(pooled), dim=1))

    both = nn.ModuleDict({"encoder": encoder, "head": head})
    fit("selfsup", both, loss, folder, steps=STEPS, lr=2e-3, seed=seed, weight_decay=0.05, every=50)
    return encoder
