"""Lay out what offline methods learn in a table with targets: pictures of a style or a subject, and samples.

A subject's pictures are paired with samples of the model (`pairs`), and stand beside samples of its class (`prior`).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fsalign_lib.models.latent_model import LatentModel
from reproduce.common.cli import processes
from reproduce.harness import targets
from reproduce.harness.declare import Table, World
from reproduce.training.methods import METHODS

if TYPE_CHECKING:
    from reproduce.harness.rows import Work


def target_set(table: Table, world: World) -> tuple[str, targets.Targets]:
    """Return the set that a table's rows learn, as large as the world has it; with twins, the pocket world's."""
    name = table.own.targets["pocket" if world.twins else world.scale]
    return name, replace(targets.SETS[name], **world.settings.get("targets", {}))


def folders(work: Work, row: str, model: str) -> dict[str, Path]:
    """Return the folders that a row reads: "pairs", of pictures or pairs, and "prior" for a subject.

    Args:
        model: the name of the one that draws the prior.
    """
    name, some = target_set(work.table, work.world)
    folder = work.folder / "pairs"
    if "losers" not in METHODS[work.table.rows[row].method].needs:
        folder = targets.picture_folder(name, work.folder / "targets")
    if some.prompt is None:
        return {"pairs": folder}
    return {"pairs": folder, "prior": work.folder / f"prior-{model.replace('/', '-')}"}


def settings(work: Work) -> dict:
    """Return all that the folders depend on, but for the networks that drew samples, which a run names anyway."""
    name, some = target_set(work.table, work.world)
    return {"targets": name, **asdict(some)}


def build_targets(table: Table, world: World, folder: Path) -> Path:
    """Draw the targets, unless that is done, and return where they lie."""
    name, some = target_set(table, world)
    if processes().is_main_process:
        targets.build_targets(name, folder / "targets", some.count)
    processes().wait_for_everyone()
    return targets.picture_folder(name, folder / "targets")


def build_samples(work: Work, row: str, model: LatentModel, folders: dict[str, Path | None]) -> None:
    """Draw a subject's references and its class's samples, unless that is done.

    Args:
        model: of the row; it draws the prior. References are the table's model's.
        folders: that the row reads, as the function of this name gives them; a prior of None is not drawn.
    """
    _, some = target_set(work.table, work.world)
    pictures = build_targets(work.table, work.world, work.folder)
    if some.prompt is None:
        return
    if processes().is_main_process:
        about, steps = work.table.rows[row], work.table.steps[0]
        how = (about.sampled.kernel, about.sampled.steps) if about.sampled else (None, steps)
        if folders["prior"]:
            targets.build_prior(folders["prior"], model, some.class_prompt, some.prior, *how)
        if "losers" in METHODS[about.method].needs:
            targets.build_references(folders["pairs"], pictures, work.model, some.prompt, some.references, steps)
    processes().wait_for_everyone()
