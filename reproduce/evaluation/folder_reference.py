"""Use a folder of pictures as the reference of a Frechet distance, in chunks that processes share."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fsalign_lib.metrics.frechet import Gaussian, Moments
from reproduce.common.shards import Chunks
from reproduce.evaluation.metrics import Frechet

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
BATCH = 64


def picture_paths(folder: Path) -> list[Path]:
    """List the pictures in a folder and below, in order.

    Raises:
        FileNotFoundError: no such folder. ValueError: fewer than 2 pictures.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"reference {str(folder)!r} does not exist: give statistics or a folder of pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        raise ValueError(
            f"reference {str(folder)!r} has {len(found)} pictures: expected 2 or more ({' '.join(SUFFIXES)})"
        )
    return found


def read_picture(path: Path, size: int) -> Tensor:
    """Read a picture, stretched to (3, size, size), in [0, 1].

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a picture ({str(error)[:60]}): remove or replace it") from None
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(values, (size, size), mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class FolderReference:
    """Use a folder of pictures as a reference, in chunks: its features lie in files until they are summed."""

    paths: list[Path]
    fid: Frechet
    parts: Path
    device: torch.device | str

    @functools.cached_property
    def chunks(self) -> Chunks:
        """Name the chunks by the pictures and the network, so that others have other chunks."""
        about = [self.fid.extractor, *(f"{path} {path.stat().st_size}" for path in self.paths)]
        name = hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]
        return Chunks(self.parts / f"reference-{name}", -(-len(self.paths) // BATCH))

    def compute(self, index: int) -> dict[str, Tensor]:
        """Compute a chunk's features. A picture is stretched without rounding to whole bytes, as pytorch-fid does."""
        some = self.paths[index * BATCH : (index + 1) * BATCH]
        pictures = torch.stack([read_picture(path, self.fid.size) for path in some])
        with torch.no_grad():
            return {"features": self.fid.network(pictures.to(self.device)).float().cpu()}

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        """Sum the features of all chunks to mean and covariance."""
        moments = Moments(self.fid.dimensions)
        for part in self.chunks.read():
            moments.add(part["features"])
        return moments.gaussian()
