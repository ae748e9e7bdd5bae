"""Pictures to what a vision tower reads: differentiable torch in place of the originals' PIL pipelines."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Shorter side to `size` by antialiased bicubic, centre crop, per-channel (x - mean) / std.

    PIL filters rows, then columns, and after each clips to the range of a byte, as this does, and rounds to whole
    bytes, which this does not: it would stop the gradient.

    Attributes:
        crop: how half of an odd number of pixels is rounded. torchvision (open_clip, CLIP, image-reward) rounds to
            even, transformers (PickScore) down: on some pictures that are not square the crops differ by a pixel.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    crop: Literal["even", "down"] = "even"

    def __call__(self, images: Tensor, size: int) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 3, size, size), in float32 or better whatever the pictures are in."""
        images = full_precision(images)
        height, width = images.shape[-2:]
        if (height, width) != (size, size):
            short = min(height, width)
            height, width = size * height // short, size * width // short
            images = F.interpolate(images, (images.shape[-2], width), mode="bicubic", antialias=True).clamp(0, 1)
            images = F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
            top, left = ((n - size) // 2 if self.crop == "down" else round((n - size) / 2) for n in (height, width))
            images = images[..., top : top + size, left : left + size]
        mean, std = (
            torch.tensor(v, device=images.device, dtype=images.dtype).view(3, 1, 1) for v in (self.mean, self.std)
        )
        return (images - mean) / std


POCKET = Preprocess()
PICKSCORE = Preprocess(CLIP_MEAN, CLIP_STD, "down")
OPENAI = Preprocess(CLIP_MEAN, CLIP_STD, "even")  # CLIP, open_clip, HPS, ImageReward, Aesthetic


def full_precision(x: Tensor) -> Tensor:
    """float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
