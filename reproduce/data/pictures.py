"""Read pictures as a viewer shows them, and refuse by name what is none.

| a file | is read |
| --- | --- |
| turned by its EXIF orientation | upright, before anything is measured |
| of 16 bits a channel | as the upper 8 of each |
| grey, with a palette, CMYK | as RGB, by Pillow's conversion; colour profiles are not applied |
| transparent in places | laid on white, with a warning that names the file once |
| of several pictures, such as an animation | as the first of them |
| of more than 179 million pixels, cut off, or of another format | not: a ValueError names it |
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # a JPEG of several pictures, as phones make, is among them
BESIDE = (".txt", ".json", ".jsonl", ".csv", ".md", ".parquet", ".safetensors")  # what may lie beside pictures
NAMED = 20  # transparent pictures that warnings name
STRIP = 100  # a picture this many times longer than wide has no middle to cut out
transparent: set[str] = set()  # those that were named


def load_picture(path: Path) -> Image.Image:
    """Load a picture in RGB, upright.

    Raises:
        ValueError: it cannot be read. FileNotFoundError, PermissionError: it cannot be opened.
    """
    with _refusing(path), Image.open(path, formats=FORMATS) as file:
        picture = ImageOps.exif_transpose(file)
        clear = picture.has_transparency_data
        if picture.mode.startswith("I"):  # grey of 16 bits, which Pillow would cut off at 255
            values = np.asarray(picture)
            if clear:
                values = np.where(values == picture.info["transparency"], 65535, values)
            picture = Image.fromarray((values >> 8).astype(np.uint8))
        elif clear:
            picture = picture.convert("RGBA")
            clear = picture.getextrema()[3][0] < 255
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")
    if clear:
        _name_transparent(path)
    return picture


def read_picture(path: Path, size: int, resize: bool = False) -> Tensor:
    """Read a picture as uint8 (3, size, size); one of another size is refused, or fitted if `resize`.

    Raises:
        ValueError: it cannot be read, or has another size.
    """
    import torch

    picture = load_picture(path)
    check_size(path, picture.size, size, resize)
    return torch.from_numpy(np.array(fit(picture, size) if resize else picture)).permute(2, 0, 1)


def picture_size(path: Path, content: bytes | None = None) -> tuple[int, int]:
    """Read width and height of a picture, upright, from its header.

    Args:
        content: the file's bytes, where they are not on the disk.

    Raises:
        ValueError: it is not a picture. FileNotFoundError, PermissionError: it cannot be opened.
    """
    with _refusing(path), Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as picture:
        width, height = picture.size
        # A square's size is the same however it is turned: asking would read all of a PNG.
        turned = width != height and picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def whole_picture(content: bytes) -> bool:
    """Say whether a file's bytes are a picture to the end. A JPEG is decoded small, but all of it is read."""
    try:
        with _refusing(Path("picture")), Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            picture.draft("RGB", (64, 64))
            picture.load()
    except ValueError:
        return False
    return True


def check_size(path: Path, found: tuple[int, int], size: int, resize: bool) -> None:
    """Raise a ValueError for a picture that is not as large as the model draws, or, if `resize`, cannot be fitted."""
    if resize and max(found) > STRIP * min(found):
        raise ValueError(f"{path} is {found[0]}x{found[1]}, a strip without a middle: drop its pair")
    if not resize and found != (size, size):
        raise ValueError(
            f"{path} is {found[0]}x{found[1]}: the model draws {size}x{size}: resize it or drop its pair "
            "(or pass --resize)"
        )


def fit(picture: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size`, bilinear, and cut out the middle.

    As torchvision's Resize and CenterCrop, which the published Diffusion-DPO code uses; it also mirrors half of the
    pictures at random, which latents that are encoded once cannot be.
    """
    width, height = picture.size
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    left, top = round((width - size) / 2), round((height - size) / 2)
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR)
    return scaled.crop((left, top, left + size, top + size))


def list_pictures(folder: Path, below: bool = False) -> list[Path]:
    """List a folder's pictures in order of name. A warning says what is left out; hidden files are no pictures.

    Args:
        below: those in folders below, too.
    """
    found = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    files = [p for p in found if not any(part.startswith(".") for part in p.parts) and not (folder / p).is_dir()]
    pictures, left = [], Counter()
    for path in files:
        suffix = path.suffix.lower()
        if suffix in SUFFIXES and (below or len(path.parts) == 1):
            pictures.append(folder / path)
        elif suffix in SUFFIXES:
            left[f"{suffix} in folders below"] += 1
        elif suffix not in BESIDE:
            left[suffix or "no ending"] += 1
    if left:
        told = ", ".join(f"{count} of {what}" for what, count in sorted(left.items()))
        warnings.warn(f"{folder}: {told} left out: pictures are {' '.join(SUFFIXES)}", stacklevel=2)
    return pictures


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what Pillow raises within the block into a ValueError that names the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, which name no file
            yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise ValueError(f"{path} has more than {limit:.0f} million pixels: scale it down or drop its pair") from None
    except UnidentifiedImageError:
        known = " ".join(SUFFIXES)
        raise ValueError(f"{path} is not a picture: replace it or drop its pair (pictures are {known})") from None
    except Exception as error:  # damaged bytes lead Pillow's readers to any
        why = " ".join(str(error).split())[:80] or type(error).__name__
        raise ValueError(f"{path} is not a picture: replace it or drop its pair ({why})") from None


def _name_transparent(path: Path) -> None:
    if str(path) in transparent or len(transparent) > NAMED:
        return
    transparent.add(str(path))
    more = "" if len(transparent) <= NAMED else "; further ones are not named"
    warnings.warn(f"{path} is transparent in places: it is laid on white{more}", stacklevel=4)
