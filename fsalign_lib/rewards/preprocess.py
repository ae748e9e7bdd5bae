"""Prepare pictures for a vision tower in differentiable torch, in place of the originals' PIL pipelines."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fsalign_lib.devices import send

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Scale to `size` by antialiased bicubic, cut or fill to a square, take (x - mean) / std by channel.

    PIL filters rows, then columns, and after each clips to the range of a byte and rounds to whole bytes. So does this,
    and the gradient passes the rounding as if it were not there (straight-through).

    Attributes:
        square: "crop" scales the shorter side and cuts out the centre; "pad" scales the longer side and lays the
            picture on black.
        crop: how half of an odd number of pixels is rounded. torchvision (open_clip, CLIP, image-reward) rounds to
            even, transformers (PickScore) down: on some pictures that are not square the crops differ by a pixel.
        in_bytes: False where the original resizes floats, which are neither clipped nor rounded.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    crop: Literal["even", "down"] = "even"
    in_bytes: bool = True
    square: Literal["crop", "pad"] = "crop"

    def __call__(self, images: Tensor, size: int) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to (B, 3, size, size), in float32 or better whatever the pictures are in."""
        images = full_precision(images)
        sides = images.shape[-2:]
        if sides != (size, size):
            if self.square == "crop":
                height, width = (size * side // min(sides) for side in sides)
            else:
                height, width = (round(side * (size / max(sides))) for side in sides)
            for shape in ((sides[0], width), (height, width)):
                images = F.interpolate(images, shape, mode="bicubic", antialias=True)
                if self.in_bytes:
                    images = images.clamp(0, 1)
                    images = images + ((images * 255 + 0.5).floor() / 255 - images).detach()  # PIL rounds halves up
            if self.square == "crop":
                top, left = ((n - size) // 2 if self.crop == "down" else round((n - size) / 2) for n in (height, width))
                images = images[..., top : top + size, left : left + size]
            else:
                tall, wide = size - height, size - width
                images = F.pad(images, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
        mean, std = (
            send(torch.tensor(v, dtype=images.dtype), images.device).view(3, 1, 1) for v in (self.mean, self.std)
        )
        return (images - mean) / std


POCKET = Preprocess()
PICKSCORE = Preprocess(CLIP_MEAN, CLIP_STD, "down")
OPENAI = Preprocess(CLIP_MEAN, CLIP_STD)  # CLIP, open_clip, ImageReward, Aesthetic
# hpsv2 makes floats of a picture before it resizes it. (With torchvision before 0.17 that was without antialiasing, so
# that its scores of large pictures depend on the version; this is torchvision's behaviour since.) It shows the whole
# picture, with black bars.
HPS = Preprocess(CLIP_MEAN, CLIP_STD, in_bytes=False, square="pad")


def full_precision(x: Tensor) -> Tensor:
    """Bring to float32, or keep float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
