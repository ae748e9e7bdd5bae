"""Compute the reference of "fid" once: mean and covariance of the features of a folder of pictures.

python reproduce/fid_reference.py coco/val2014 --out coco-val2014.safetensors

It goes on where it was killed, and any number of processes (`accelerate launch`) shares the work.

Pictures are stretched to the network's size as pytorch-fid does. Crop them first where a protocol says so, and take
the pictures that belong to it: FID "at 30K" compares 30,000 generated pictures with the set that their captions are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from reproduce.common.cli import command_line, processes
from reproduce.common.files import claim, release, remove_parts, writable_folder

if TYPE_CHECKING:
    from reproduce.evaluation.folder_reference import FolderReference
    from reproduce.evaluation.metrics import Frechet


@dataclass(kw_only=True)
class ReferenceConfig:
    """Compute the statistics of a folder of pictures for the metric "fid"."""

    folder: tyro.conf.Positional[Path]
    """The pictures; those in folders below count."""
    out: Path
    """A .safetensors file."""
    scale: str = "full"
    """Scale whose network is used: full (FID's) or pocket."""


def prepare(config: ReferenceConfig, fid: Frechet | None = None) -> tuple[ReferenceConfig, FolderReference]:
    """Check the settings and find the pictures; `fid` is taken in place of the scale's own."""
    from reproduce.evaluation.folder_reference import FolderReference, picture_paths
    from reproduce.evaluation.metrics import check_names, load_metrics

    check_names(["fid"], config.scale, reference=True)
    if config.out.suffix != ".safetensors":
        raise ValueError(f"--out {config.out}: expected a file that ends in .safetensors")
    paths = picture_paths(config.folder)
    writable_folder(config.out.parent)
    claim(config.out)
    device = processes().device
    fid = fid or load_metrics(["fid"], device, config.scale, lambda prompts: None)["fid"]
    return config, FolderReference(paths, fid, config.out.with_suffix(".parts"), device)


def run(setup: tuple[ReferenceConfig, FolderReference]) -> None:
    """Compute the features that are missing, and write their statistics."""
    from fsalign_lib.metrics.frechet import save_statistics
    from reproduce.evaluation.metrics import few_pictures

    (config, folder), state = setup, processes()
    folder.chunks.fill(folder.compute, state, "reference")
    state.wait_for_everyone()
    if state.is_main_process:
        gaussian = folder.gaussian
        save_statistics(config.out, gaussian, folder.fid.extractor)
        print(f"Wrote {config.out}, of {gaussian.count} pictures.")
        print(*few_pictures(gaussian.count, folder.fid.dimensions, "reference"), sep="\n")
        remove_parts(folder.parts)
    release(config.out)


def main(argv: Sequence[str] | None = None) -> None:
    command_line(
        lambda args: tyro.cli(ReferenceConfig, description=__doc__, args=args),
        prepare,
        run,
        argv,
        lambda c: (f"finished parts are kept beside {c.out}", ""),
    )


if __name__ == "__main__":
    main()
