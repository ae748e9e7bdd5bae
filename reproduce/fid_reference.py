"""Compute the reference of "fid" once: mean and covariance of the features of a folder of pictures.

python reproduce/fid_reference.py coco/val2014 --out coco-val2014.safetensors

It goes on where it was killed, and any number of processes (`accelerate launch`) shares the work.

Pictures are stretched to the network's size as pytorch-fid does. Crop them first where a protocol says so, and take
the pictures that belong to it: FID "at 30K" compares 30,000 generated pictures with the set that their captions are of.
"""

import functools
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fsalign_lib.metrics.frechet import Gaussian, Moments, save_statistics
from reproduce.common.cli import command_line
from reproduce.common.files import writable_folder
from reproduce.common.shards import Chunks, processes
from reproduce.evaluation.metrics import Frechet, check_names, load_metrics
from reproduce.evaluation.report import few

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
class Folder:
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
        """Compute a chunk's features. Stretched pictures are not rounded: their bytes are the file's."""
        some = self.paths[index * BATCH : (index + 1) * BATCH]
        pictures = torch.stack([read_picture(path, self.fid.size) for path in some])
        with torch.no_grad():
            return {"features": self.fid.network(pictures.to(self.device)).float().cpu()}

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        moments = Moments(self.fid.dimensions)
        for part in self.chunks.read():
            moments.add(part["features"])
        return moments.gaussian()


@dataclass(kw_only=True)
class ReferenceConfig:
    """Compute the statistics of a folder of pictures for the metric "fid"."""

    folder: tyro.conf.Positional[Path]
    """The pictures; those in folders below count."""
    out: Path
    """A .safetensors file."""
    scale: str = "full"
    """Scale whose network is used: full (FID's) or pocket."""


def prepare(config: ReferenceConfig, fid: Frechet | None = None) -> tuple[ReferenceConfig, Folder]:
    check_names(["fid"], config.scale, reference=True)
    if config.out.suffix != ".safetensors":
        raise ValueError(f"--out {config.out}: expected a file that ends in .safetensors")
    paths = picture_paths(config.folder)
    writable_folder(config.out.parent)
    device = processes().device
    fid = fid or load_metrics(["fid"], device, config.scale, lambda prompts: None)["fid"]
    return config, Folder(paths, fid, config.out.with_suffix(".parts"), device)


def run(setup: tuple[ReferenceConfig, Folder]) -> None:
    (config, folder), state = setup, processes()
    folder.chunks.fill(folder.compute, state, "reference")
    state.wait_for_everyone()
    if state.is_main_process:
        found = folder.gaussian
        save_statistics(config.out, found, folder.fid.extractor)
        print(f"Wrote {config.out}, of {found.count} pictures.")
        print(*few(found.count, folder.fid.dimensions, "reference"), sep="\n")
        shutil.rmtree(folder.parts)


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(ReferenceConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
