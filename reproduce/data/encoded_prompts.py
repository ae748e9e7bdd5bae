"""Encode prompts once, before a training or an evaluation, keep them on disk, and free the encoders' memory.

PixArt's T5 has eight times the weights of the network that it conditions, and would run in every micro-batch.

A folder holds files of SHARD prompts each, in the precision in which the encoders gave them, and about.json. Its name
is a digest of the prompts and of what encodes them, so that with another prompt, encoder or precision there is another
folder. Processes share the work; a file appears whole or not at all.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from torch import Tensor

from fsalign_lib.models.conditioning import Cond, Conditioning
from fsalign_lib.models.latent_model import LatentModel, fingerprint
from reproduce.common.cli import processes
from reproduce.common.files import digest, write_json
from reproduce.common.shards import Chunks

FOLDER = "encoded-prompts"
SHARD = 512  # prompts a file
SPARE = 2  # times the room that the prompts take must be free on the disk


class StoredText:
    """Take the place of a model's text encoders: read from disk what they made of the prompts.

    Attributes:
        modules: none that a model has to move or count. text: the encoders, on the CPU; None: they are dropped.
    """

    modules = ()

    def __init__(self, text, null: Cond, chunks: Chunks, prompts: Sequence[str], device: torch.device, keep: bool):
        self.pipeline, self.network, self.inputs = text.pipeline, text.network, text.inputs
        self.chunks, self.rows, self.device = chunks, {prompt: row for row, prompt in enumerate(prompts)}, device
        self.text, self._encoders, self._null = text if keep else None, text.modules, null
        for encoder in self._encoders:
            encoder.to("cpu" if keep else "meta")

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Return the conditions of prompts, in the encoders' precision.

        Prompts that were not stored are encoded, where the encoders are kept.

        Raises:
            ValueError: a prompt was not stored, and the encoders are dropped.
        """
        unknown = [prompt for prompt in prompts if prompt not in self.rows]
        if not unknown:
            return self._read([self.rows[prompt] for prompt in prompts]).to(self.device)
        if self.text is None:
            raise ValueError(f"prompt {unknown[0]!r} was not encoded before the text encoders were dropped")
        for encoder in self._encoders:
            encoder.to(self.device)
        found = self.text.encode(prompts)
        for encoder in self._encoders:
            encoder.to("cpu")
        return found

    def _read(self, rows: Sequence[int]) -> Cond:
        files = {shard: safe_open(self.chunks.path(shard), "pt") for shard in {row // SHARD for row in rows}}
        parts: dict[str, list[Tensor]] = {}
        for row in rows:
            file = files[row // SHARD]
            for name in file.keys():  # noqa: SIM118
                parts.setdefault(name, []).append(file.get_slice(name)[row % SHARD : row % SHARD + 1])
        found = {name: torch.cat(some) for name, some in parts.items()}
        text = found.pop("text")
        return Conditioning(text, found) if found else text

    def null(self) -> Cond:
        """Return the condition of no prompt.  # 1"""
        return self._null

    def components(self) -> dict:
        """Return the encoders' parts of a diffusers pipeline.

        Raises:
            ValueError: the encoders are dropped.
        """
        if self.text is None:
            raise ValueError("the text encoders were dropped: load the model anew, and the trained weights into it")
        return self.text.components()


@torch.no_grad()
def store_prompts(
    models: Sequence[LatentModel], prompts: Sequence[str], beside: Path, draws: int | None = None, keep: bool = False
) -> None:
    """Encode prompts to a folder of `beside`, unless they are there, and have the models read them from it.

    The encoders stay as they are where the disk has no room for twice as much, or a run draws fewer prompts than there
    are. All processes of the launcher must call it.

    Args:
        models: which share their text encoders.
        draws: prompts that the run draws, with repetition; None: all.
        keep: the encoders wait on the CPU for prompts that were not stored; otherwise they are dropped.
    """
    model, distinct, state = models[0], list(dict.fromkeys(prompts)), processes()
    if isinstance(model.text, StoredText) or (draws is not None and draws < len(distinct)):
        return
    about = {
        "encoders": [f"{type(e).__name__} {e.dtype} {fingerprint(e)}" for e in model.text.modules],
        "picture size": model.image_size,  # which SDXL's conditions hold
        "prompts": len(distinct),
        "prompts' sha256": hashlib.sha256("\0".join(distinct).encode()).hexdigest(),
    }
    name = digest(about)
    chunks = Chunks(beside / FOLDER / name, -(-len(distinct) // SHARD))
    null = model.text.null()
    if not broadcast_object_list([_has_room(chunks, len(distinct) * _size(null))])[0]:
        return

    def encode(index: int) -> dict[str, Tensor]:
        cond = model.text.encode(distinct[index * SHARD : (index + 1) * SHARD])
        parts = {"text": cond} if isinstance(cond, Tensor) else {"text": cond.text} | cond.extra
        return {name: part.cpu() for name, part in parts.items()}

    chunks.fill(encode, state, "encode prompts")
    if state.is_main_process:
        write_json(chunks.folder / "about.json", about)
    state.wait_for_everyone()
    stored = StoredText(model.text, null, chunks, distinct, model.device, keep)
    for each in models:
        each.text = stored


def _size(cond: Cond) -> int:
    parts = [cond] if isinstance(cond, Tensor) else [cond.text, *cond.extra.values()]
    return sum(part.nbytes for part in parts)


def _has_room(chunks: Chunks, size: int) -> bool:
    chunks.folder.mkdir(parents=True, exist_ok=True)
    there = sum(chunks.path(i).stat().st_size for i in range(chunks.count) if chunks.path(i).exists())
    return shutil.disk_usage(chunks.folder).free >= SPARE * (size - there)
