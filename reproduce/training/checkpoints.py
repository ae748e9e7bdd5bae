"""Write and read a run's checkpoints: whole or not at all, the same files however many processes wrote them.

checkpoints/<step>/ holds trained.safetensors and trained.json (see `LatentModel.save_adapter`), optimizer.pt and
state.json. Where the method has them: kept.safetensors, the statistics of the advantages, or the weights whose average
is in trained.safetensors; second.safetensors and second.pt, of another network that is trained. DeepSpeed keeps the
optimizer in parts, a file a process, in deepspeed/: such a run goes on with as many processes as it had.

Whatever else lies in these folders is left there.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedType
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from fsalign_lib.models.latent_model import LatentModel, share_of, whole
from reproduce.common.files import last_checkpoint, remove_written, write_json

SECOND = "second.safetensors"
AGAIN = "remove this checkpoint, and train anew"
OPTIMIZERS = ("optimizer.pt", "second.pt")
WRITTEN = (
    *("trained.safetensors", "trained.json", SECOND, *OPTIMIZERS, "kept.safetensors", "state.json"),
    *("deepspeed", "latest", "zero_to_fp32.py"),  # DeepSpeed's own
)


class Kept(Protocol):
    """Hold tensors that a run needs to go on, beside its weights and optimizers; the same on all processes."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Trained(Protocol):
    """Give the weights that a run leaves: the model's that learns, or an average over its updates."""

    def trained_tensors(self) -> dict[str, Tensor]: ...


@dataclass
class Weights:
    """Hold what is written of the networks."""

    model: LatentModel
    trained: Trained  # the weights that the run leaves: the model's, or an average's
    second: LatentModel | None = None  # another that is trained, if there is one

    def write(self, folder: Path | None) -> None:
        """Write trained.safetensors and trained.json, and second.safetensors if there is a second network.

        Args:
            folder: None on the processes that do not write: under FSDP they hold a share of the tensors.
        """
        tensors = self.trained.trained_tensors()
        if folder:
            self.model.save_adapter(folder, tensors)
        if self.second is not None:
            tensors = self.second.trained_tensors()
            if folder:
                save_file(tensors, folder / SECOND)


@contextlib.contextmanager
def whole_folder(out: Path, kind: str, step: int) -> Iterator[Path]:
    """Yield a folder to write into, which becomes <kind>s/<step> if nothing goes wrong.

    Raises:
        OSError: it could not be written; the run's last checkpoint is still there.
    """
    folder = out / f"{kind}s"
    temporary, final = folder / "unfinished", folder / f"{step:06d}"
    try:
        remove_written(temporary, *WRITTEN)
        temporary.mkdir(parents=True, exist_ok=True)
        yield temporary
        remove_written(final, *WRITTEN)  # a snapshot of before the run was killed
        for other in final.iterdir() if final.is_dir() else ():
            os.replace(other, temporary / other.name)
        if final.is_dir():
            final.rmdir()
        os.replace(temporary, final)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        remove_written(temporary, *WRITTEN)
        before = last_checkpoint(out)
        kept = f"{before} is still whole" if before else "there is none before it"
        why = str(error.__cause__ or error).splitlines()[0]
        raise OSError(f"cannot write {kind} {final} ({why}); {kept}: free space, then go on with --resume") from error


@contextlib.contextmanager
def new_checkpoint(out: Path, step: int) -> Iterator[Path]:
    """Yield a folder that becomes checkpoints/<step>, as `whole_folder` does, and then drop the older ones."""
    with whole_folder(out, "checkpoint", step) as folder:
        yield folder
    drop_checkpoints(out, keep=step)


def drop_checkpoints(out: Path, keep: int | None = None) -> None:
    """Remove a run's checkpoints but that of step `keep`; whatever else lies in their folder is left."""
    for old in (out / "checkpoints").iterdir():
        if re.fullmatch(r"\d+", old.name) and old.name != f"{keep or 0:06d}":
            remove_written(old, *WRITTEN)


def save(
    out: Path,
    step: int,
    accelerator: Accelerator,
    weights: Weights,
    optimizers: Sequence[Any],
    state: dict[str, Any],
    kept: Kept | None,
) -> None:
    """Write checkpoints/<step>. Every process must call it: each may hold a part of the tensors.

    Tensors in parts are gathered one after the other, for a file at a time, and written in the form that a single
    process has: any number of processes can go on from it.

    Args:
        optimizers: of the model, and of the second network if there is one.
        state: as JSON: the step, the configuration, the history, the time spent.
        kept: what else a resumed run needs.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return _save_deepspeed(out, step, accelerator, weights, state, kept)
    with new_checkpoint(out, step) if accelerator.is_main_process else contextlib.nullcontext() as folder:
        weights.write(folder)
        for name, optimizer in zip(OPTIMIZERS, optimizers, strict=False):
            steps = tree_map(lambda v: whole(v) if isinstance(v, DTensor) else v, optimizer.state_dict())
            if folder:
                torch.save(steps, folder / name)
        _write_state(folder, state, kept)
    accelerator.wait_for_everyone()


def snapshot(out: Path, step: int, accelerator: Accelerator, weights: Weights) -> None:
    """Keep the trained weights alone in snapshots/<step>. Every process must call it."""
    tensors = weights.trained.trained_tensors()
    if accelerator.is_main_process:
        with whole_folder(out, "snapshot", step) as folder:
            weights.model.save_adapter(folder, tensors)


def _write_state(folder: Path | None, state: dict[str, Any], kept: Kept | None) -> None:
    tensors = kept.state_dict() if kept is not None else {}
    if folder:
        if tensors:
            save_file(tensors, folder / "kept.safetensors")
        write_json(folder / "state.json", state)


def _save_deepspeed(
    out: Path, step: int, accelerator: Accelerator, weights: Weights, state: dict, kept: Kept | None
) -> None:
    with new_checkpoint(out, step) if accelerator.is_main_process else contextlib.nullcontext() as folder:
        accelerator.wait_for_everyone()
        engine = weights.model.network
        engine.save_checkpoint(out / "checkpoints" / "unfinished", "deepspeed", exclude_frozen_parameters=True)
        accelerator.wait_for_everyone()
        weights.write(folder)
        _write_state(folder, state, kept)
    accelerator.wait_for_everyone()


def load_optimizers(folder: Path, accelerator: Accelerator, model: LatentModel, optimizers: Sequence[Any]) -> None:
    """Set prepared optimizers to what `save` wrote: each process takes its part of the tensors.

    Raises:
        ValueError: a file is damaged, or of other weights. FileNotFoundError: it is missing.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        model.network.load_checkpoint(folder, "deepspeed", load_module_strict=False)
        return
    for name, optimizer in zip(OPTIMIZERS, optimizers, strict=False):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        sharded = isinstance(parameters[0], DTensor)  # then only a share of what is read has to be in memory
        try:
            steps = torch.load(folder / name, map_location="cpu", weights_only=True, mmap=sharded)
            for place, kept in steps["state"].items():
                p = parameters[place]
                # the count of steps is not in parts
                steps["state"][place] = {k: share_of(v, p) if v.shape == p.shape else v for k, v in kept.items()}
            optimizer.load_state_dict(steps)
        except (UnpicklingError, RuntimeError, EOFError, KeyError, IndexError, TypeError, ValueError) as error:
            why = str(error).split("\n")[0][:60]
            raise ValueError(f"{folder / name} is damaged, or of other weights ({why}): {AGAIN}") from error
