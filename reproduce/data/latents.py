"""Encode pictures to latents on disk once, a shard at a time, and read them by rows while training.

A cache folder holds files of SHARD pictures each. A shard appears whole or not at all, so encoding that was stopped
goes on with the first that is missing. Its header says what each picture was: size and times of its file, and their
SHA-256. A shard of which a picture has changed since is encoded again. Nothing but a shard is ever in memory:
Pick-a-Pic's pictures take hundreds of gigabytes as SDXL's latents.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from fsalign_lib.models.latent_model import LatentModel
from reproduce.common.files import digest, sha256, stamp, write_tensors
from reproduce.data.pictures import check_size, picture_size, read_picture

SHARD = 500  # pictures a file
BATCHES = ((128, 100), (512, 10), (100_000, 4))  # up to this size: so many encoded at a time


def check_pictures(paths: Sequence[Path], size: int, resize: bool) -> None:
    """Look at every header, before anything is computed."""
    for path in paths:
        check_size(path, picture_size(path), size, resize)


def cache_name(names: Sequence[str], model: LatentModel, resize: bool) -> str:
    """Name the folder of the latents of pictures of these names, as this model's autoencoder makes them."""
    how = (model.vae_fingerprint, model.vae.config.scaling_factor, model.image_size, str(model.vae.dtype), resize)
    return f"latents-{digest([*names, how])}"


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

    def digest(self) -> str:
        """Return a hash of what all pictures are."""
        found = hashlib.sha256()
        for shard in range(_shards(self.count)):
            found.update("".join(digest for *_, digest in made_of(shard_path(self.folder, shard))).encode())
        return found.hexdigest()[:12]

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


def made_of(path: Path) -> list[list] | None:
    """Read what each picture of a shard was, [size, two times, SHA-256]; None for one that is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("pictures", "null"))
    except (SafetensorError, OSError):
        return None


def _about(contents: list[list]) -> dict[str, str]:
    return {"pictures": json.dumps(contents)}


def _contents(paths: Sequence[Path], before: Sequence[list] = ()) -> list[list]:
    """Return what each picture is, as `made_of` does; one whose size and times are as before is not read again."""
    found = []
    for path, known in itertools.zip_longest(paths, before[: len(paths)]):
        now = stamp(path)
        found.append(known if known and known[:-1] == now else [*now, sha256(path)])
    return found


def stale(paths: Sequence[Path], folder: Path, part: tuple[int, int] = (0, 1)) -> dict[int, Sequence[Path]]:
    """Find the shards that are missing, damaged, or of a picture that has changed since: their pictures, by number.

    Args:
        part: (i, n): of each n shards, look at the i-th.
    """
    todo, (index, processes) = {}, part
    for shard in range(_shards(len(paths)))[index::processes]:
        path, pictures = shard_path(folder, shard), paths[shard * SHARD : (shard + 1) * SHARD]
        before = made_of(path)
        now = _contents(pictures, before) if before else []
        if not before or [digest for *_, digest in before] != [digest for *_, digest in now]:
            todo[shard] = pictures
        elif now != before and os.access(folder, os.W_OK):  # copied or touched: not to be read again next time
            write_tensors(path, load_file(path), _about(now))
    return todo


def encode_pictures(
    paths: Sequence[Path], model: LatentModel, folder: Path, resize: bool = False, part: tuple[int, int] = (0, 1)
) -> Latents:
    """Encode what the folder does not have as it is now, a shard after the other, each written when it is whole.

    Args:
        part: (i, n): the i-th of n processes that share the work; all must be done before the latents are read.

    Raises:
        ValueError: a picture that cannot be read, or of another size than the model draws (unless `resize`).
        OSError: the disk is full; what was written before is whole, and is used next time.
    """
    size, todo = model.image_size, stale(paths, folder, part)
    for some in todo.values():
        check_pictures(some, size, resize)
    folder.mkdir(parents=True, exist_ok=True)
    batch = next(number for limit, number in BATCHES if size <= limit)
    with tqdm(total=sum(map(len, todo.values())), desc="encode", unit="picture", delay=1) as bar:
        for shard, some in todo.items():
            parts, now = [], _contents(some)
            for first in range(0, len(some), batch):
                pictures = torch.stack([read_picture(path, size, resize) for path in some[first : first + batch]])
                parts.append(model.encode(pictures.to(model.device) / 255).to(model.vae.dtype).cpu())
                bar.update(len(pictures))
            write_tensors(shard_path(folder, shard), {"latents": torch.cat(parts)}, _about(now))
    return Latents(folder, len(paths), model.latent_shape)
