"""Use a folder of pictures as the reference of a Frechet distance, in chunks that processes share."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsalign_lib.metrics.frechet import Gaussian, Moments
from reproduce.common.files import digest, stamp
from reproduce.common.shards import Chunks
from reproduce.data.pictures import SUFFIXES, list_pictures, load_picture, picture_size
from reproduce.evaluation.metrics import Frechet

BATCH = 64


def picture_paths(folder: Path) -> list[Path]:
    """List the pictures in a folder and below, in order.

    Raises:
        FileNotFoundError: no such folder. ValueError: fewer than 2 pictures, or one that is none by its header.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"reference {str(folder)!r} does not exist: give statistics or a folder of pictures")
    found = list_pictures(folder, below=True)
    if len(found) < 2:
        raise ValueError(
            f"reference {str(folder)!r} has {len(found)} pictures: expected 2 or more ({' '.join(SUFFIXES)})"
        )
    for path in found:
        picture_size(path)
    return found


def stretched(path: Path, size: int) -> Tensor:
    """Read a picture, stretched to (3, size, size), in [0, 1].

    Raises:
        ValueError: it cannot be read.
    """
    values = torch.from_numpy(np.array(load_picture(path))).permute(2, 0, 1)[None].float() / 255
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
        """Name the chunks by the pictures and the network, so that others, or replaced ones, have other chunks."""
        name = digest([self.fid.extractor, *([str(path), *stamp(path)] for path in self.paths)])
        return Chunks(self.parts / f"reference-{name}", -(-len(self.paths) // BATCH))

    def compute(self, index: int) -> dict[str, Tensor]:
        """Compute a chunk's features. A picture is stretched without rounding to whole bytes, as pytorch-fid does.

        Raises:
            OSError: a picture is cut off.
        """
        some = self.paths[index * BATCH : (index + 1) * BATCH]
        try:
            pictures = torch.stack([stretched(path, self.fid.size) for path in some])
        except ValueError as error:  # headers were looked at before, and this one is cut off
            raise OSError(str(error)) from None
        with torch.no_grad():
            return {"features": self.fid.network(pictures.to(self.device)).float().cpu()}

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        """Sum the features of all chunks to mean and covariance."""
        moments = Moments(self.fid.dimensions)
        for part in self.chunks.read():
            moments.add(part["features"])
        return moments.gaussian()
