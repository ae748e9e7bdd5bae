"""Score pictures of a model: prompts x seeds x steps x metrics -> one JSON, and a page to read.

python reproduce/evaluate.py --checkpoint runs/pso --out runs/pso/evaluation.json
accelerate launch --num_processes 8 reproduce/evaluate.py --scale full --model sdxl-dmd2 --dtype float16 \\
    --prompts coco.txt --seeds 1 --steps 1 2 4 8 16 50 --metrics pickscore fid --reference coco.safetensors

The start noise and the sampler's noise depend on (seed, prompt) alone, so that two models are compared picture by
picture. With a checkpoint, the model that it was trained from is scored as well, and each metric's mean difference
gets a 95% interval of paired differences. What each metric is stands in evaluation/metrics.py.

Work is done in chunks of whole prompts, the same whatever the number of processes, which share them. Finished chunks
lie in <out>.parts: the same command goes on where it was killed, and the numbers are the same.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from fsalign_lib.json_files import read_json
from reproduce.common.cli import command_line, positive, processes
from reproduce.common.files import (
    claim,
    digest,
    last_checkpoint,
    plain,
    release,
    remove_parts,
    sha256,
    writable_folder,
    write_json,
)
from reproduce.common.provenance import Clock, provenance
from reproduce.common.shards import Chunks
from reproduce.data.prompt_sets import read_prompts, warn_of_cut

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

    from fsalign_lib.metrics.frechet import Gaussian
    from fsalign_lib.models.latent_model import LatentModel
    from reproduce.evaluation.folder_reference import FolderReference
    from reproduce.evaluation.scores import Metrics

STATISTICS = (".npz", ".safetensors")


@dataclass(kw_only=True)
class EvaluateConfig:
    """Score a model, or a trained checkpoint against the model that it started from."""

    scale: str = "pocket"
    """Scale whose metrics are used: pocket or full."""
    model: str | None = None
    """A preset of fsalign_lib.models.presets, or a pipeline folder; None: pocket-turbo, at pocket scale."""
    checkpoint: Path | None = None
    """Folder of a training run, or of one of its checkpoints."""
    prompts: tuple[str, ...] | None = None
    """Names of prompt sets, or files with a prompt a line; None: test-pickapic and test-heldout, at pocket scale."""
    steps: tuple[int, ...] = (4, 1)
    """Sampling steps."""
    seeds: int = 4
    """Pictures a prompt."""
    metrics: tuple[str, ...] | None = None
    """None: all of the scale but hps, the JPEG sizes and fid."""
    reference: Path | None = None
    """For fid: a folder of pictures, or statistics (.safetensors of fid_reference.py, .npz of pytorch-fid)."""
    kernel: str | None = None
    """Sampler; None: the model's own."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """dtype of the model; None: the one that the checkpoint was trained in, or float32. The metrics are in float32."""
    batch: int | None = None
    """Pictures at a time, about; None: what 8 GB decode, at most 64 (see LatentModel.pictures_at_once)."""
    images: Literal["drop", "keep"] = "drop"
    """Keep the pictures in <out>.pictures."""
    format: Literal["png", "jpeg"] = "png"
    """File format of the pictures that are kept."""
    out: Path = Path("reproduce/runs/evaluation.json")
    """The page is written beside it, with the ending .html."""
    threads: int | None = None
    """CPU threads of torch."""


@dataclass(frozen=True)
class Cell:
    """Name a prompt set at a number of steps, for the model or (base) for the one that it was trained from."""

    name: str
    prompt_set: str
    prompts: list[str]
    steps: int
    base: bool
    chunks: Chunks


@dataclass
class Setup:
    """Hold everything an evaluation needs, checked."""

    config: EvaluateConfig
    model: LatentModel
    metrics: Metrics
    cells: list[Cell]
    state: PartialState
    reference: FolderReference | None  # where it is one
    settings: dict  # all that a chunk depends on


def resolved(config: EvaluateConfig) -> EvaluateConfig:
    """Replace None in the settings by what the scale stands for.

    Raises:
        ValueError: an unknown scale, a metric that it lacks, or nothing to evaluate at full scale.
    """
    from fsalign_lib.models.latent_model import trained_about
    from reproduce.evaluation.metrics import DEFAULTS, check_names

    names = DEFAULTS.get(config.scale, ()) if config.metrics is None else config.metrics
    check_names(names, config.scale, config.reference is not None)
    model, prompts = config.model, config.prompts
    if config.scale == "pocket":
        model, prompts = model or "pocket-turbo", prompts or ("test-pickapic", "test-heldout")
    for option, value in (("model", model), ("prompts", prompts)):
        if value is None:
            raise ValueError(f"--scale {config.scale} has no {option} of its own: say what to score with --{option}")
    steps, dtype = tuple(dict.fromkeys(config.steps)), config.dtype
    if dtype is None and config.checkpoint is not None:
        dtype = trained_about(last_checkpoint(config.checkpoint) or config.checkpoint)["dtype"]
    dtype = dtype or "float32"
    return replace(config, model=model, prompts=prompts, metrics=names, steps=steps, dtype=dtype)


def prepare(config: EvaluateConfig, model: LatentModel | None = None, metrics: Metrics | None = None) -> Setup:
    """Check the settings, load what they name. A model or metrics that are given are taken in place of the named."""
    import torch

    from fsalign_lib.metrics.frechet import read_statistics
    from fsalign_lib.models.load import load
    from reproduce.evaluation.folder_reference import FolderReference, picture_paths
    from reproduce.evaluation.metrics import load_metrics
    from reproduce.evaluation.scores import at_once, check

    c = resolved(config)
    positive(c, "seeds", *(["batch"] if c.batch is not None else []))
    # A prompt and a seed give one picture: a prompt that is repeated would give it again.
    prompts = {name: read_prompts(name, once=True) for name in c.prompts}
    for some in prompts.values():
        check(some, range(c.seeds), metrics or c.metrics)
    if c.out.is_dir():
        raise ValueError(f"{c.out} is a folder: name a file with --out")
    statistics = c.reference is not None and c.reference.suffix in STATISTICS
    pictures = [] if c.reference is None or statistics else picture_paths(c.reference)
    if c.threads is not None:
        positive(c, "threads")
        torch.set_num_threads(c.threads)
    model = model or load(c.model, getattr(torch, c.dtype))
    for some in prompts.values():
        warn_of_cut(model, some)
    c = replace(c, batch=c.batch or at_once(model))
    state = processes()
    model.to(state.device)
    metrics = metrics or load_metrics(c.metrics, model.device, c.scale, _unread if c.reference else None)
    if statistics:
        fid = metrics["fid"]
        there = read_statistics(c.reference, fid.extractor, fid.dimensions)
        fid.reference = lambda prompts: there
    if c.checkpoint is not None:
        model.load_adapter(last_checkpoint(c.checkpoint) or c.checkpoint)
    for steps in c.steps:
        model.sampler(steps, c.kernel)
    writable_folder(c.out.parent)
    if c.out.suffix != ".json":
        raise ValueError(f"--out {c.out}: expected a file that ends in .json")
    claim(c.out)
    setup = Setup(c, model, metrics, list(cells(c, prompts)), state, None, settings(c, model, metrics, prompts))
    if pictures:
        setup.reference = FolderReference(pictures, metrics["fid"], parts_folder(c.out), model.device)
        metrics["fid"].reference = lambda prompts: setup.reference.gaussian
    same_settings(setup)
    return setup


def _unread(prompts: Sequence[str]) -> Gaussian:
    """Stand in for a reference until its network is there, which says what to expect of it."""
    raise NotImplementedError


def cells(c: EvaluateConfig, prompts: dict[str, list[str]]) -> Iterator[Cell]:
    """Yield the cells: prompt sets, numbers of steps, and with a checkpoint its base."""
    for place, (name, some) in enumerate(prompts.items()):
        for steps in c.steps:
            for base in (False, True) if c.checkpoint is not None else (False,):
                title = re.sub(r"[^\w-]+", "-", Path(name).stem)[:40]  # a file's name may be anything
                title = f"{place}-{title}-{steps}{'-base' * base}"
                chunks = Chunks(parts_folder(c.out) / title, -(-len(some) // prompts_at_once(c)))
                yield Cell(title, name, some, steps, base, chunks)


def parts_folder(out: Path) -> Path:
    """Return the folder of the finished chunks."""
    return out.with_suffix(".parts")


def pictures_folder(out: Path) -> Path:
    """Return the folder of the pictures that are kept."""
    return out.with_suffix(".pictures")


def prompts_at_once(c: EvaluateConfig) -> int:
    """Return the prompts in a chunk, the same for any number of processes."""
    return max(1, c.batch // c.seeds)


def settings(c: EvaluateConfig, model: LatentModel, metrics: Metrics, prompts: dict[str, list[str]]) -> dict:
    """List all that the numbers of a chunk depend on."""
    from fsalign_lib.models.latent_model import fingerprint

    same = ("scale", "seeds", "kernel", "dtype", "batch", "images", "format")
    about = {name: value for name, value in plain(c).items() if name in same}
    encoders = [fingerprint(encoder) for encoder in model.text.modules]
    about |= {"metrics": sorted(metrics), "weights": [model.fingerprint, model.vae_fingerprint, *encoders]}
    about["prompts"] = {name: digest(some) for name, some in prompts.items()}
    about["reference"] = str(c.reference) if c.reference else None
    about["checkpoint"] = None
    if c.checkpoint is not None:
        about["checkpoint"] = sha256((last_checkpoint(c.checkpoint) or c.checkpoint) / "trained.safetensors")[:12]
    return about


def same_settings(setup: Setup) -> None:
    """Raise a ValueError if there are chunks of an evaluation with other settings."""
    folder = parts_folder(setup.config.out)
    if not (folder / "settings.json").exists():
        return
    before = read_json(folder / "settings.json")
    other = [name for name, value in setup.settings.items() if before.get(name) != value]
    if other:
        raise ValueError(
            f"{folder} holds a part of an evaluation with other {', '.join(other)}: go on with the same settings, "
            "remove it, or choose another --out"
        )


def compute(setup: Setup, cell: Cell, index: int) -> dict[str, Tensor]:
    """Compute the scores of a chunk, whose pictures are written before if they are kept."""
    from reproduce.evaluation.scores import forget, sample, save_pictures, score

    c, model = setup.config, setup.model
    forget(model, setup.metrics)
    first = index * prompts_at_once(c)
    prompts = cell.prompts[first : first + prompts_at_once(c)]
    with model.reference() if cell.base else contextlib.nullcontext():
        images = sample(model, c.kernel, cell.steps, prompts, range(c.seeds))
    if c.images == "keep":
        save_pictures(pictures_folder(c.out) / cell.name, first, images, c.format)
    return score(images, prompts, range(c.seeds), setup.metrics)


def run(setup: Setup) -> None:
    """Compute the chunks that are missing, and write the JSON and its page."""
    from reproduce.data.encoded_prompts import store_prompts
    from reproduce.evaluation import report
    from reproduce.evaluation.metrics import few_pictures

    c, state, clock = setup.config, setup.state, Clock()
    if "fid" in setup.metrics and state.is_main_process:
        for cell in setup.cells:
            for line in few_pictures(len(cell.prompts) * c.seeds, setup.metrics["fid"].dimensions, "pictures"):
                print(f"{cell.name}: {line}")
    folder, turn = parts_folder(c.out), 0
    if state.is_main_process:
        if not (folder / "settings.json").exists():  # what is left of one that was being removed
            remove_parts(folder)
        folder.mkdir(exist_ok=True)
        write_json(folder / "settings.json", setup.settings)
    state.wait_for_everyone()
    if c.scale == "full":
        every = dict.fromkeys(prompt for cell in setup.cells for prompt in cell.prompts)
        store_prompts([setup.model], list(every), c.out.parent)
    if setup.reference:
        setup.reference.chunks.fill(setup.reference.compute, state, "reference")
    for cell in setup.cells:
        cell.chunks.fill(functools.partial(compute, setup, cell), state, cell.name, turn)
        turn += cell.chunks.count
    state.wait_for_everyone()
    if state.is_main_process:
        results = [result(setup, cell) for cell in setup.cells if not cell.base]
        about = {"config": plain(c), **provenance(clock), "processes": state.num_processes}
        write_json(c.out, about | {"results": results})
        page = report.write(c.out, c.out.with_suffix(".html"))
        print(f"Wrote {c.out} and {page}")
        remove_parts(folder)
    release(c.out)


def result(setup: Setup, cell: Cell) -> dict:
    """Collect all numbers of a cell, beside its base's if there is one."""
    from reproduce.evaluation.scores import compare

    numbers = {"prompt_set": cell.prompt_set, **collect(setup, cell)}
    if setup.config.images == "keep":
        kept = pictures_folder(setup.config.out).name
        numbers["pictures"] = {"format": setup.config.format, "folder": f"{kept}/{cell.name}"}
    for other in setup.cells:
        if other.base and (other.prompt_set, other.steps) == (cell.prompt_set, cell.steps):
            base = collect(setup, other)
            numbers["base"] = {key: base[key] for key in base if key in ("scores", "means", "intervals", "fid")}
            both = [name for name in base["scores"] if base["intervals"][name] is not None]
            numbers["above_base"] = {name: compare(numbers, base, name)._asdict() for name in both}
            if "pictures" in numbers:
                numbers["pictures"]["base"] = f"{kept}/{other.name}"
    print(summary(numbers))
    return numbers


def collect(setup: Setup, cell: Cell) -> dict:
    """Gather the scores of a cell's chunks, and add the intervals of the means."""
    from reproduce.evaluation.scores import gather, interval

    c = setup.config
    kernel = c.kernel or setup.model.kernel
    numbers = gather(cell.chunks.read(), kernel, cell.steps, cell.prompts, range(c.seeds), setup.metrics)
    intervals = {name: interval(scores) for name, scores in numbers["scores"].items()}
    return numbers | {"intervals": {name: found and found._asdict() for name, found in intervals.items()}}


def summary(result: dict) -> str:
    """Write a line for each metric: its mean, and the difference from the base with its interval."""
    from fsalign_lib.metrics.statistics import Interval

    lines = [f"{result['prompt_set']}, {result['steps']} steps, {len(result['prompts'])} prompts"]
    for name, value in result["means"].items():
        above = result.get("above_base", {}).get(name)
        difference = f"   above base: {Interval(**above)}" if above else ""
        lines.append(f"  {name:12s} {'-' if value is None else f'{value:.4f}'}{difference}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    command_line(
        lambda args: tyro.cli(EvaluateConfig, description=__doc__, args=args),
        prepare,
        run,
        argv,
        lambda c: (f"finished parts are kept beside {c.out}", ""),
    )


if __name__ == "__main__":
    main()
