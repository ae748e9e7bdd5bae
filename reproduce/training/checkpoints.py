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
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from fsalign_lib.models.latent_model import LatentModel
from reproduce.common.files import last_checkpoint, remove_written, write_json

SECOND = "second.safetensors"
OPTIMIZERS = ("optimizer.pt", "second.pt")
WRITTEN = (
    *("trained.safetensors", "trained.json", SECOND, *OPTIMIZERS, "kept.safetensors", "state.json"),
    *("deepspeed", "latest", "zero_to_fp32.py"),  # DeepSpeed's own
)


@dataclass
class Weights:
    """Hold what is written of the networks."""

    model: LatentModel
    trained: dict[str, Tensor]  # of the model
    second: dict[str, Tensor] | None = None  # of another network that is trained, if there is one

    def write(self, folder: Path) -> None:
        """Write trained.safetensors and trained.json, and second.safetensors if there is a second network."""
        self.model.save_adapter(folder, self.trained)
        if self.second is not None:
            save_file(self.second, folder / SECOND)


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
    kept: dict[str, Tensor],
) -> None:
    """Write checkpoints/<step>. Every process must call it: each may hold a part of the tensors.

    Args:
        optimizers: of the model, and of the second network if there is one.
        state: as JSON: the step, the configuration, the history, the time spent.
        kept: what else a resumed run needs, the same on all processes.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return _save_deepspeed(out, step, accelerator, weights, state, kept)
    # In the form that a single process has, so that any number of processes can go on from it.
    steps = tree_map(
        lambda v: v.full_tensor().cpu() if isinstance(v, DTensor) else v, [o.state_dict() for o in optimizers]
    )
    if accelerator.is_main_process:
        with new_checkpoint(out, step) as folder:
            weights.write(folder)
            for name, its_steps in zip(OPTIMIZERS, steps, strict=False):
                torch.save(its_steps, folder / name)
            _write_state(folder, state, kept)
    accelerator.wait_for_everyone()


def snapshot(out: Path, step: int, accelerator: Accelerator, model: LatentModel, trained: dict[str, Tensor]) -> None:
    """Keep the trained weights alone in snapshots/<step>. Every process must call it."""
    if accelerator.is_main_process:
        with whole_folder(out, "snapshot", step) as folder:
            model.save_adapter(folder, trained)


def _write_state(folder: Path, state: dict[str, Any], kept: dict[str, Tensor]) -> None:
    if kept:
        save_file(kept, folder / "kept.safetensors")
    write_json(folder / "state.json", state)


def _save_deepspeed(
    out: Path, step: int, accelerator: Accelerator, weights: Weights, state: dict, kept: dict[str, Tensor]
) -> None:
    with new_checkpoint(out, step) if accelerator.is_main_process else contextlib.nullcontext() as folder:
        accelerator.wait_for_everyone()
        engine = weights.model.network
        engine.save_checkpoint(out / "checkpoints" / "unfinished", "deepspeed", exclude_frozen_parameters=True)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            weights.write(folder)
            _write_state(folder, state, kept)
    accelerator.wait_for_everyone()


def load_optimizers(folder: Path, accelerator: Accelerator, model: LatentModel, optimizers: Sequence[Any]) -> None:
    """Set prepared optimizers to what `save` wrote: each process takes its part of the tensors."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        model.network.load_checkpoint(folder, "deepspeed", load_module_strict=False)
        return
    for name, optimizer in zip(OPTIMIZERS, optimizers, strict=False):
        steps = torch.load(folder / name, map_location="cpu", weights_only=True)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for place, kept in steps["state"].items():
            p = parameters[place]
            if isinstance(p, DTensor):
                steps["state"][place] = {key: _part(value, p) for key, value in kept.items()}
        optimizer.load_state_dict(steps)


def _part(value: Tensor, p: DTensor) -> Tensor:
    """Return this process's part of a moment; the count of steps is not in parts."""
    return distribute_tensor(value, p.device_mesh, p.placements) if value.shape == p.shape else value
