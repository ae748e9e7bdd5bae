"""Draw a scene of the pocket world in one of two styles: as OpenMoji colours it, and as line art on dark paper.

A style draws no random numbers: the same facts and the same generator give the same scene in each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PAPER = (0.09, 0.11, 0.17)
CHALK = (0.93, 0.92, 0.86)
FILL = 0.16  # of a picture's own colours that is left within its lines
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Style:
    """Say how to draw.

    Attributes:
        paint: premultiplied RGBA pictures (B, 4, h, w), recoloured by colours (B, 3) of which NaN leaves one as it is.
        ground: backgrounds (B, 3, H, W), as they are in colour.
    """

    paint: Callable[[Tensor, Tensor], Tensor]
    ground: Callable[[Tensor], Tensor]


def luminance(layer: Tensor) -> Tensor:
    """Return the luminance of premultiplied RGBA (B, 4, h, w), before it was multiplied.  # (B, 1, h, w)"""
    grey = (layer[:, :3] * torch.tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return grey / layer[:, 3:].clamp(min=1e-3)


def tint(layer: Tensor, color: Tensor) -> Tensor:
    """Recolour premultiplied RGBA (B, 4, h, w) by `color` (B, 3); NaN leaves a picture as it is, outlines stay dark."""
    rgb, a, light = layer[:, :3], layer[:, 3:], luminance(layer)
    inside = ((light - 0.05) / 0.1).clamp(0, 1)
    tinted = inside * (0.35 + 0.65 * light) * color.nan_to_num()[:, :, None, None] * a
    keep = color[:, 0].isnan()[:, None, None, None]
    return torch.cat([torch.where(keep, rgb, tinted), a], 1)


def chalk_lines(layer: Tensor, color: Tensor) -> Tensor:
    """Turn dark outlines into light lines, in the colour asked for or in chalk's; within them is little but paper."""
    a = layer[:, 3:]
    line = ((0.28 - luminance(layer)) / 0.15).clamp(0, 1) * a
    chalk = torch.where(color.isnan(), torch.tensor(CHALK), color)[:, :, None, None]
    inside = torch.tensor(PAPER).view(1, 3, 1, 1) * a + FILL * layer[:, :3]
    return torch.cat([line * chalk + (1 - line) * inside, a], 1)


def dark_paper(canvas: Tensor) -> Tensor:
    """Draw paper, a little lighter where the background was light, and a chalk line along a horizon."""
    grey = (canvas * torch.tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
    paper = torch.tensor(PAPER).view(1, 3, 1, 1) + 0.08 * grey
    step = torch.zeros_like(grey)
    step[..., 1:, :] = (grey[..., 1:, :] - grey[..., :-1, :]).abs()
    line = (step > 0.03).float() * 0.7
    return (1 - line) * paper + line * torch.tensor(CHALK).view(1, 3, 1, 1)


STYLES = {"color": Style(tint, lambda canvas: canvas), "chalk": Style(chalk_lines, dark_paper)}
