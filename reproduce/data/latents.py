"""Encode pictures to latents on disk once, a shard at a time, and read them by rows while training.

A cache folder holds files of SHARD pictures each. A shard appears whole or not at all, so encoding that was stopped
goes on with the first that is missing. Nothing but a shard is ever in memory: Pick-a-Pic's pictures take hundreds of
gigabytes as SDXL's latents.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from fsalign_lib.models.latent_model import LatentModel
from reproduce.common.files import write_tensors

SHARD = 500  # pictures a file
BATCHES = ((128, 100), (512, 10), (100_000, 4))  # up to this size: so many encoded at a time


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


def read_picture(path: Path, size: int, resize: bool = False) -> Tensor:
    """Read a picture as uint8 (3, size, size); one of another size is refused, or fitted if `resize`."""
    try:
        picture = Image.open(path)
        if not resize:
            _check_size(path, picture.size, size)
        picture = picture.convert("RGB")
    except (UnidentifiedImageError, OSError):
        raise ValueError(f"{path} is not a picture: replace it or drop its pair") from None
    return torch.from_numpy(np.array(fit(picture, size) if resize else picture)).permute(2, 0, 1)


def _check_size(path: Path, found: tuple[int, int], size: int) -> None:
    if found != (size, size):
        raise ValueError(
            f"{path} is {found[0]}x{found[1]}: the model draws {size}x{size}: resize it or drop its pair "
            "(or pass --resize)"
        )


def check_pictures(paths: Sequence[Path], size: int, resize: bool) -> None:
    """Look at every header, before anything is computed."""
    for path in paths:
        try:
            with Image.open(path) as picture:
                found = picture.size
        except (UnidentifiedImageError, OSError):
            raise ValueError(f"{path} is not a picture: replace it or drop its pair") from None
        if not resize:
            _check_size(path, found, size)


def cache_name(content: bytes, model: LatentModel, resize: bool) -> str:
    """Name the folder of the latents of what `content` lists, as this model's autoencoder makes them."""
    how = f"{model.vae_fingerprint}/{model.image_size}/{model.vae.dtype}/{resize}"
    return f"latents-{hashlib.sha256(content + how.encode()).hexdigest()[:12]}"


class Latents:
    """Read latents by row: a LongTensor of rows in, float32 (B, C, h, w) on the CPU out."""

    def __init__(self, folder: Path, count: int, shape: tuple[int, ...]):
        self.folder, self.count, self.shape = folder, count, shape

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Tensor) -> Tensor:
        out, shards = torch.empty(len(rows), *self.shape), rows // SHARD
        for shard in shards.unique().tolist():
            # Opened anew each time: thousands of files held open would pass a process's usual limit.
            with safe_open(shard_path(self.folder, shard), "pt") as file:
                latents = file.get_slice("latents")
                for place in (shards == shard).nonzero()[:, 0].tolist():
                    row = int(rows[place]) % SHARD
                    out[place] = latents[row : row + 1][0]
        return out

    def check(self) -> None:
        """Raise a ValueError if a shard is damaged."""
        for shard in range(_shards(self.count)):
            path, expected = shard_path(self.folder, shard), min(SHARD, self.count - shard * SHARD)
            try:
                with safe_open(path, "pt") as file:
                    found = file.get_slice("latents").get_shape()
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}): remove it, and its pictures are encoded again"
                ) from None
            if found != [expected, *self.shape]:
                raise ValueError(f"{path} holds {found}, not {[expected, *self.shape]}: remove it")


def shard_path(folder: Path, shard: int) -> Path:
    """Return where a shard of a cache folder lies."""
    return folder / f"{shard:06d}.safetensors"


def _shards(count: int) -> int:
    return -(-count // SHARD)


def encode_pictures(
    paths: Sequence[Path], model: LatentModel, folder: Path, resize: bool = False, part: tuple[int, int] = (0, 1)
) -> Latents:
    """Encode what is not in the folder yet, a shard after the other, each written when it is whole.

    Args:
        part: (i, n): the i-th of n processes that share the work; all must be done before the latents are read.

    Raises:
        ValueError: a picture that cannot be read, or of another size than the model draws (unless `resize`).
        OSError: the disk is full; what was written before is whole, and is used next time.
    """
    size, index, processes = model.image_size, *part
    mine = [s for s in range(_shards(len(paths)))[index::processes] if not shard_path(folder, s).exists()]
    todo = {shard: paths[shard * SHARD : (shard + 1) * SHARD] for shard in mine}
    for some in todo.values():
        check_pictures(some, size, resize)
    folder.mkdir(parents=True, exist_ok=True)
    batch = next(number for limit, number in BATCHES if size <= limit)
    bar = tqdm(total=sum(map(len, todo.values())), desc="encode", unit="picture", delay=1)
    for shard, some in todo.items():
        parts = []
        for first in range(0, len(some), batch):
            pictures = torch.stack([read_picture(path, size, resize) for path in some[first : first + batch]])
            parts.append(model.encode(pictures.to(model.device) / 255).to(model.vae.dtype).cpu())
            bar.update(len(pictures))
        write_tensors(shard_path(folder, shard), {"latents": torch.cat(parts)})
    bar.close()
    return Latents(folder, len(paths), model.latent_shape)
