"""Prepare the pictures that rows are taught from: a set in a style, or a handful of pictures of one subject.

| set | pictures | captions |
| --- | --- | --- |
| chalk (pocket) | scenes of the training prompts, drawn as line art on dark paper | the prompts |
| panda (pocket) | five drawings of a creature outside the 45 animals | "a v bear" for all |
| pokemon (full) | a folder that you bring (DATA.md) | its own |
| dreambooth (full) | one subject of DreamBooth's: `dog`, or another that is named | "a photo of sks dog" for all |

A subject comes with two sets of samples, each of the model before any training: `prior`, of its class, of the model
that a row trains; and `pairs`, in which each target stands against a sample of the few-step model for the subject's own
prompt (PSO App. B.3).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.pocket import captions, concept
from fsalign_lib.pocket.render import render
from reproduce.common.cli import processes, seen
from reproduce.common.files import remove_parts, sha256, write_text
from reproduce.common.shards import in_chunks
from reproduce.data.pictures import read_picture
from reproduce.data.prompt_sets import SUBJECTS, data_folder, find, read_pictures, subject_prompts
from reproduce.evaluation.scores import sample
from reproduce.harness.declare import Table, World
from reproduce.training.methods import METHODS

if TYPE_CHECKING:
    from reproduce.harness.rows import Work

READ = 200  # pictures that metrics compare with, at most
AT_ONCE = 8  # samples of one prompt


@dataclass(frozen=True)
class Targets:
    """Describe a set of pictures to learn.

    Attributes:
        subject: one of DreamBooth's (see prompt_sets.SUBJECTS), which says prompt and class; None: of another set.
        prompt: of a subject's pictures, with its name in it; None for a style, whose pictures have captions.
        class_prompt: of its class.
        references, prior: samples that are drawn of the subject's prompt and of its class.
    """

    count: int
    prompt: str | None = None
    class_prompt: str | None = None
    references: int = 20  # published PSO code
    prior: int = 0
    subject: str | None = None


# Where each of these comes from.
SOURCES = {
    "count": "own choice at pocket scale; all that there are at full scale",
    "prompt": "PSO App. B.3: 'A photo of [V] concept'",
    "class_prompt": "DreamBooth: the class without its name",
    "references": "published PSO code: 20",
    "prior": "own choice at pocket scale; DreamBooth's public implementations: 200",
    "subject": "DreamBooth's data set, as PSO App. B.3; which of the 30 is not published",
}
SETS = {
    "chalk": Targets(400),
    "panda": Targets(5, concept.PROMPT, concept.plain(concept.PROMPT), prior=40),
    "pokemon": Targets(10_000),  # all that there are
    "dreambooth": Targets(10, "a photo of sks dog", "a photo of a dog", prior=200, subject="dog"),
}


def dreambooth(subject: str) -> Targets:
    """Return the pictures of one of DreamBooth's subjects.

    Raises:
        ValueError: no subject of this name.
    """
    subject_prompts(subject)
    kind = SUBJECTS[subject]
    own = {"prompt": f"a photo of sks {kind}", "class_prompt": f"a photo of a {kind}"}
    return replace(SETS["dreambooth"], subject=subject, **own)


def named(name: str, settings: dict) -> Targets:
    """Return a set, or a subject's, with these settings in the place of its own."""
    return replace(dreambooth(settings["subject"]) if settings.get("subject") else SETS[name], **settings)


def write_pictures(folder: Path, images: Tensor, texts: list[str]) -> None:
    """Write uint8 pictures (N, 3, H, W) with their captions in metadata.jsonl, which is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:04d}.png")
    lines = [json.dumps({"file_name": f"{number:04d}.png", "text": text}) for number, text in enumerate(texts)]
    write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")


def build_targets(name: str, folder: Path, some: Targets) -> None:
    """Draw a pocket set, or copy a subject's pictures, unless that is done; a style of full scale stays where it is.

    Raises:
        ValueError: a subject's pictures are others than those that were copied.
    """
    if (folder / "metadata.jsonl").exists() or name == "pokemon":
        if name == "dreambooth" and data_folder() is not None:
            _same_pictures(find(name)[0] / some.subject, folder, some)
        return
    generator = torch.Generator().manual_seed(0)
    if name == "chalk":
        texts = captions.prompts("train")[: some.count]
        write_pictures(folder, render([captions.parse(text) for text in texts], generator, style="chalk"), texts)
    elif name == "panda":
        texts = [concept.PROMPT] * some.count
        write_pictures(folder, concept.draw(texts, generator), texts)
    else:
        rows = read_pictures(find(name)[0] / some.subject, some.prompt)[: some.count]
        folder.mkdir(parents=True, exist_ok=True)
        for path, _ in rows:
            shutil.copy(path, folder / path.name)
        lines = [json.dumps({"file_name": path.name, "text": some.prompt}) for path, _ in rows]
        write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")


def _same_pictures(source: Path, folder: Path, some: Targets) -> None:
    for path, _ in read_pictures(source, some.prompt)[: some.count]:
        copy = folder / path.name
        if not copy.is_file() or sha256(copy) != sha256(path):
            raise ValueError(
                f"{path} is another picture than the table was begun with, {copy}: put that one back, or choose "
                "another --work"
            )


def picture_folder(name: str, folder: Path) -> Path:
    """Return the folder in which the pictures of a set lie."""
    return find(name)[0] if name == "pokemon" else folder


def read_targets(folder: Path, size: int, spare: Path | None = None) -> Tensor:
    """Read the first pictures of a folder, fitted to a size, in [0, 1].  # (N, 3, size, size)

    Args:
        spare: where they are unpacked from parquet files, if the folder cannot be written to.
    """
    paths = [path for path, _ in read_pictures(folder, spare=spare)][:READ]
    return torch.stack([read_picture(path, size, resize=True) for path in paths]).float() / 255


def draw_samples(
    model: LatentModel, prompt: str, count: int, kernel: str | None, steps: int, parts: Path | None
) -> Tensor:
    """Sample uint8 pictures from the model as it was before training.  # (count, 3, H, W)

    Args:
        parts: folder of those that are done, a file for each AT_ONCE; all processes share the work, and each gets all
            pictures. None: this process samples all.
    """
    some = torch.arange(count).split(AT_ONCE)

    def part(index: int) -> dict[str, Tensor]:
        with model.reference():
            pictures = sample(model, kernel, steps, [prompt], some[index])[0]
        return {"pictures": (pictures * 255).round().byte().cpu()}

    return torch.cat([found["pictures"] for found in in_chunks(part, len(some), parts, "samples")])


def write_references(folder: Path, targets: Path, size: int, samples: Tensor, prompt: str) -> None:
    """Write pairs.jsonl: each target in turn against a sample (N, 3, size, size) for the subject's prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    winners, lines = [path for path, _ in read_pictures(targets)], []
    for number, image in enumerate(samples):
        path = winners[number % len(winners)]
        target = read_picture(path, size, resize=True)
        names = f"target-{number % len(winners)}.png", f"reference-{number:03d}.png"
        for name, picture in zip(names, (target, image), strict=True):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / name)
        lines.append(json.dumps({"prompt": prompt, "winner": names[0], "loser": names[1], "label": 1}))
    write_text(folder / "pairs.jsonl", "\n".join(lines) + "\n")


# what the rows of a table read


def target_set(table: Table, world: World) -> tuple[str, Targets]:
    """Return the set that a table's rows learn, as large as the world has it; with twins, the pocket world's."""
    name = table.own.targets["pocket" if world.twins else world.scale]
    return name, named(name, world.settings.get("targets", {}))


def folders(work: Work, row: str, model: str) -> dict[str, Path]:
    """Return the folders that a row reads: "pairs", of pictures or pairs, and "prior" for a subject.

    Args:
        model: the name of the one that draws the prior.
    """
    name, some = target_set(work.table, work.world)
    folder = work.folder / "pairs"
    if "losers" not in METHODS[work.table.rows[row].method].needs:
        folder = picture_folder(name, work.folder / "targets")
    if some.prompt is None:
        return {"pairs": folder}
    return {"pairs": folder, "prior": work.folder / f"prior-{model.replace('/', '-')}"}


def settings(work: Work) -> dict:
    """Return the settings that the folders were made with; a run's own settings name the networks that drew."""
    name, some = target_set(work.table, work.world)
    found = asdict(some)
    if some.subject is None:  # as it was written down when there were no subjects to choose from
        del found["subject"]
    return {"targets": name, **found}


def table_targets(table: Table, world: World, folder: Path) -> Path:
    """Draw the targets, unless that is done, and return where they lie."""
    name, some = target_set(table, world)
    if processes().is_main_process:
        build_targets(name, folder / "targets", some)
    processes().wait_for_everyone()
    return picture_folder(name, folder / "targets")


def build_samples(work: Work, row: str, model: LatentModel, folders: dict[str, Path | None]) -> None:
    """Draw a subject's references and its class's samples, unless that is done.

    Args:
        model: of the row; it draws the prior. References are the table's model's.
        folders: that the row reads, as the function of this name gives them; a prior of None is not drawn.
    """
    _, some = target_set(work.table, work.world)
    pictures = table_targets(work.table, work.world, work.folder)
    if some.prompt is None:
        return
    about, steps, main = work.table.rows[row], work.table.steps[0], processes().is_main_process

    prior, pairs = folders["prior"], folders["pairs"]

    def parts(folder: Path) -> Path | None:
        # At full scale all processes share the work, which goes on where it was stopped.
        return folder.with_name(f"{folder.name}.parts") if work.world.scale == "full" else None

    if prior and not seen(prior / "metadata.jsonl"):
        how = (about.sampled.kernel, about.sampled.steps) if about.sampled else (None, steps)
        found = draw_samples(model, some.class_prompt, some.prior, *how, parts(prior))
        if main:
            write_pictures(prior, found, [some.class_prompt] * some.prior)
    if "losers" in METHODS[about.method].needs and not seen(pairs / "pairs.jsonl"):
        found = draw_samples(work.model, some.prompt, some.references, None, steps, parts(pairs))
        if main:
            write_references(pairs, pictures, work.model.image_size, found, some.prompt)
    processes().wait_for_everyone()
    for folder in filter(None, (prior, pairs)):
        if main and parts(folder):
            remove_parts(parts(folder))
