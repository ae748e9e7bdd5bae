"""Pictures to what a vision tower reads."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_values(images: Tensor, size: int, mean, std) -> Tensor:
    """Resize (B, 3, H, W) in [0, 1] to `size` by antialiased bicubic, where it differs, and normalise per channel."""
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(v, device=images.device, dtype=images.dtype).view(1, 3, 1, 1) for v in (mean, std))
    return (images - mean) / std
