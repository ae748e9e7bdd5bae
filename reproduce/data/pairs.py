"""Read preference pairs, and pictures with captions, as latents."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from fsalign_lib.models.latent_model import LatentModel
from reproduce.common.files import digest
from reproduce.data.latents import Latents, cache_name, check_pictures, encode_pictures, stale
from reproduce.data.prompt_sets import read_pictures
from reproduce.data.texts import checked, records


def read_rows(folder: Path) -> list[dict]:
    """Read the lines of pairs.jsonl, each with its prompt and two pictures that exist.

    Raises:
        FileNotFoundError: no pairs.jsonl, or a picture of it is missing.
        ValueError: no pair in it, a line that is not a pair, or a tie.
    """
    path = folder / "pairs.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no pairs in {folder}: expected pairs.jsonl (build one with reproduce/build_pairs.py)")
    rows = []
    for where, row in records(path):
        if not isinstance(row, dict) or not row.keys() >= {"prompt", "winner", "loser"}:
            raise ValueError(f'{where}: expected {{"prompt": ..., "winner": ..., "loser": ...}}')
        checked(where, row["prompt"])
        pictures = [checked(f"{where}, {side}", row[side]) for side in ("winner", "loser")]
        _check_label(where, row, pictures)
        missing = [name for name in pictures if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{where}: picture {missing[0]!r} is missing: restore it or drop the line")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty: write a pair a line")
    return rows


def _check_label(where: str, row: dict, pictures: list[str]) -> None:
    """Raise a ValueError unless the winner won."""
    label = row.get("label", 1)
    if label == 0 and pictures[0] != pictures[1]:
        raise ValueError(f"{where}: label {label!r} says that the loser won: swap the two, and leave the label out")
    if label == 0.5 or pictures[0] == pictures[1]:
        raise ValueError(f"{where}: a tie (label {label!r}, {row['prompt']!r}): remove ties from the file")
    if label != 1:
        raise ValueError(f"{where}: label {label!r}: expected 1, the winner won, or none")


class PairLatents:
    """Read the latents of pairs: a LongTensor of rows in, float32 (B, 2, C, h, w) on the CPU out, winners at index 0.

    Pictures without a loser give (B, 1, C, h, w).
    """

    def __init__(self, pictures: Latents, places: Tensor):
        self.pictures, self.places = pictures, places  # places (P, 2), or (P, 1): which pictures a pair has

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.pictures[self.places[rows].flatten()].unflatten(0, (-1, self.places.shape[1]))

    def digest(self) -> str:
        """Return a hash of the pairs' pictures, and of who won."""
        return digest([self.pictures.digest(), *self.places.flatten().tolist()])


def check_folder(folder: Path, model: LatentModel, resize: bool = False, spare: Path | None = None) -> None:
    """Raise what `read_latents` would raise of a folder's lines and of its pictures' headers; encode nothing."""
    _, paths, _ = _listed(folder, spare)
    check_pictures(paths, model.image_size, resize)


def _listed(folder: Path, spare: Path | None) -> tuple[list[str], list[Path], Tensor]:
    """Return the prompts of a folder, its pictures, and which of these each prompt has.  # (P, 2) or (P, 1)"""
    if (folder / "pairs.jsonl").is_file() or not folder.is_dir():
        rows = read_rows(folder)
        names = dict.fromkeys(name for row in rows for name in (row["winner"], row["loser"]))
        places = {name: place for place, name in enumerate(names)}
        both = torch.tensor([[places[row["winner"]], places[row["loser"]]] for row in rows])
        return [row["prompt"] for row in rows], [folder / name for name in names], both
    rows = read_pictures(folder, spare=spare)
    return [caption for _, caption in rows], [path for path, _ in rows], torch.arange(len(rows))[:, None]


def read_latents(
    folder: Path,
    model: LatentModel,
    resize: bool = False,
    accelerator: Accelerator | None = None,
    spare: Path | None = None,
) -> tuple[list[str], PairLatents]:
    """Read prompts and latents of all pairs. Each picture is encoded once, by one process, and kept in the folder.

    A folder without pairs.jsonl holds pictures with captions (see `prompt_sets.read_pictures`), which have no losers.

    Args:
        resize: fit pictures of other sizes (see `pictures.fit`), where they are an error otherwise.
        spare: where latents are kept if nothing can be written to the folder.
    """
    prompts, paths, places = _listed(folder, spare)
    name = cache_name([os.path.relpath(path, folder) for path in paths], model, resize)
    home = folder
    if spare is not None and not os.access(folder, os.W_OK) and stale(paths, folder / name):
        home = spare
    part = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    pictures = encode_pictures(paths, model, home / name, resize, part)
    if accelerator:
        accelerator.wait_for_everyone()
    pictures.check()
    return prompts, PairLatents(pictures, places)
