"""Read preference pairs, and pictures with captions, as latents."""

import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from fsalign_lib.models.latent_model import LatentModel
from reproduce.data.latents import Latents, cache_name, encode_pictures
from reproduce.data.prompt_sets import read_pictures


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
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
            prompt, winner, loser = row["prompt"], row["winner"], row["loser"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f'{where}: expected {{"prompt": ..., "winner": ..., "loser": ...}}') from None
        if winner == loser or row.get("label", 1) not in (1, 1.0, True):
            raise ValueError(f"{where}: a tie (label {row.get('label', 1)!r}, {prompt!r}): remove ties from the file")
        missing = [p for p in (winner, loser) if not (folder / p).is_file()]
        if missing:
            raise FileNotFoundError(f"{where}: picture {missing[0]!r} is missing: restore it or drop the line")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty: write a pair a line")
    return rows


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
        resize: fit pictures of other sizes (see `latents.fit`), where they are an error otherwise.
        spare: where latents are kept if nothing can be written to the folder.
    """
    if (folder / "pairs.jsonl").is_file() or not folder.is_dir():
        rows = read_rows(folder)
        prompts = [row["prompt"] for row in rows]
        names = {name: None for row in rows for name in (row["winner"], row["loser"])}
        names = {name: place for place, name in enumerate(names)}
        places = torch.tensor([[names[row["winner"]], names[row["loser"]]] for row in rows])
        content = (folder / "pairs.jsonl").read_bytes()
    else:
        rows = read_pictures(folder)
        prompts, names = [caption for _, caption in rows], [path.relative_to(folder) for path, _ in rows]
        places = torch.arange(len(rows))[:, None]
        content = "\n".join(map(str, names)).encode()
    name = cache_name(content, model, resize)
    home = folder if os.access(folder, os.W_OK) or (folder / name).is_dir() or spare is None else spare
    part = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    pictures = encode_pictures([folder / name for name in names], model, home / name, resize, part)
    if accelerator:
        accelerator.wait_for_everyone()
    pictures.check()
    return prompts, PairLatents(pictures, places)
