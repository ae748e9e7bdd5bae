"""What a table script does: train each row at each seed, evaluate it, gather the result and its claims.

A run is one row at one training seed. When it is finished its evaluation stands in <work>/<row>-<seed>.json, and it is
not run again; a run that was stopped goes on from its last checkpoint.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from fsalign_lib.metrics.frechet import Gaussian, read_statistics
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.models.load import load
from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.rewards import REWARDS
from fsalign_lib.twins import save_dino_twin, save_reward_twin, save_twin
from reproduce import train_distill, train_offline, train_online
from reproduce.common.files import last_checkpoint, writable_folder, write_json
from reproduce.common.provenance import Clock, provenance
from reproduce.common.shards import processes
from reproduce.data import sampled_pairs as pair_files
from reproduce.data import targets
from reproduce.data.prompt_sets import data_folder, read_prompts
from reproduce.evaluation.cost import sampling_cost
from reproduce.evaluation.likeness import LIKENESS, load_likeness
from reproduce.evaluation.metrics import Frechet, Metric, load_metrics
from reproduce.evaluation.scores import evaluate
from reproduce.harness.declare import Prompts, Row, Sampled, Table, World
from reproduce.harness.settings import (
    Work,
    begun_with,
    check_budgets,
    check_same,
    digest,
    lesson_folders,
    lora_source,
    model_name,
    note_path,
    pair_config,
    pair_settings,
    row_seeds,
    run_path,
    settings,
    start_of,
    start_work,
    target_set,
    training_config,
)
from reproduce.recipes import recipe
from reproduce.train_distill import DistillConfig
from reproduce.train_online import OnlineConfig
from reproduce.training.config import TrainConfig
from reproduce.training.methods import METHODS
from reproduce.training.run import load_model

NETWORKS = (
    *("teacher", "student", "vae", "text_encoder", "eye", "classifier"),
    *("clip", "pickscore", "imagereward", "aesthetic"),
)


def prepare(table: Table, world: World, folder: Path, threads: int | None) -> Work:
    """Load what all runs share, and see that what lies in the folder was made with the same settings."""
    if threads:
        torch.set_num_threads(threads)
    writable_folder(folder)
    if world.twins:
        make_twins(table, folder / "twins")
    full = world.scale == "full"
    model = load(world.model or table.models[world.scale], model_dtype(table, world))
    names = table.metric_names(world.scale, world.pictures or table.pictures[world.scale])
    metrics = world.metrics or all_metrics(table, world, folder, names, model)
    sets = "pocket" if world.twins else world.scale
    prompts = {name: read_prompts(getattr(some, sets))[: world.prompts] for name, some in table.prompts.items()}
    weights = {}
    if not full and not world.metrics:
        more = {"hps"} & set(names) | ({"selfsup"} if "dino" in names else set())
        weights = {name: digest(WEIGHTS / name) for name in (*NETWORKS, *sorted(more))}
    work = Work(table, world, folder, threads, model, metrics, prompts, weights)
    check_budgets(work)
    for row in table.rows:
        for seed in row_seeds(table, row):
            check_same(work, row, seed)
            if table.rows[row].composed:
                check_same(start_work(work, row), *start_of(table, row, seed))
    return work


def load_table_metrics(table: Table, names: Sequence[str], device, full: bool) -> dict[str, Metric | Frechet]:
    """At full scale "fid" is against statistics that must be there; they are read here, before any compute."""
    if not full or "fid" not in names:
        return load_metrics(names, device, "full" if full else "pocket")
    metrics = load_metrics(names, device, "full", reference=lambda prompts: None)
    for prompts in table.prompts.values():
        if prompts.statistics:
            read_reference(prompts, metrics["fid"])
    return metrics


def read_reference(prompts: Prompts, fid: Frechet) -> Gaussian:
    """The statistics of the pictures that a set's captions are of.

    Raises:
        ValueError: no data folder, or other statistics. FileNotFoundError: there are none.
    """
    if data_folder() is None:
        raise ValueError(
            f"fid needs {prompts.statistics}: make it with reproduce/fid_reference.py, and set FSALIGN_DATA to its "
            "folder"
        )
    return read_statistics(data_folder() / prompts.statistics, fid.extractor, fid.dimensions)


def all_metrics(
    table: Table, world: World, folder: Path, names: tuple[str, ...], model: LatentModel
) -> dict[str, Metric]:
    """Those of pictures alone, and those that hold them to the table's targets, in their order."""
    device = processes().device if world.scale == "full" else model.device
    like = [name for name in names if name in LIKENESS[world.scale]]
    if world.twins:  # there is none of FID's network
        names = tuple(name for name in names if name != "fid")
    others = [name for name in names if name not in like]
    found = load_table_metrics(table, others, device, world.scale == "full")
    if like:
        pictures = (
            targets.read_targets(build_targets(table, world, folder), model.image_size) if table.targets else None
        )
        found |= load_likeness(like, pictures, device, world.scale)
    return {name: found[name] for name in names}


def build_targets(table: Table, world: World, folder: Path) -> Path:
    """Where the targets lie, which are drawn now if they were not."""
    name, some = target_set(table, world)
    if processes().is_main_process:
        targets.build_targets(name, folder / "targets", some.count)
    processes().wait_for_everyone()
    return targets.picture_folder(name, folder / "targets")


def build_samples(work: Work, row: str) -> None:
    """A subject's references and its class's samples, unless that is done."""
    _, some = target_set(work.table, work.world)
    lessons = build_targets(work.table, work.world, work.folder)
    if some.prompt is None:
        return
    if processes().is_main_process:
        this, steps = work.table.rows[row], work.table.steps[0]
        model = sampled_model(work, row) if this.sampled else work.model
        kernel, own_steps = (this.sampled.kernel, this.sampled.steps) if this.sampled else (None, steps)
        folders = lesson_folders(work, row)
        targets.build_prior(folders["prior"], model, some.class_prompt, some.prior, kernel, own_steps)
        if "losers" in METHODS[work.table.rows[row].method].needs:
            targets.build_references(folders["pairs"], lessons, work.model, some.prompt, some.references, steps)
    processes().wait_for_everyone()


def model_dtype(table: Table, world: World) -> torch.dtype:
    """The rows' own: the model as it is must be in the precision of those that were trained."""
    methods = [row.method for row in table.rows.values() if row.method]
    found = {recipe(method, world.scale).get("dtype", ("float32", ""))[0] for method in methods}
    return getattr(torch, found.pop() if found else "float32")


def make_twins(table: Table, hub: Path) -> None:
    """Write the twins of all that the table reads at full scale, and have it read them."""
    rewards = {"pickscore", *(row_reward(row) for row in table.rows.values())} - {None}
    rewards |= set(table.metric_names("full", pictures=2)) & set(REWARDS["full"])
    if processes().is_main_process:
        others = [row.sampled.models["full"] for row in table.rows.values() if row.sampled]
        others += [row.composed["full"] for row in table.rows.values() if row.composed]
        for model in dict.fromkeys((table.models["full"], table.teachers.get("full"), *others)):
            if model is not None:
                save_twin(model, hub)
        like = set(table.metric_names("full", pictures=2)) & set(LIKENESS["full"])
        for reward in {*rewards, "aesthetic", *(["clipscore"] if like else [])}:  # whose networks other metrics read
            save_reward_twin(reward, hub)
        if like:
            save_dino_twin(hub)
    processes().wait_for_everyone()
    os.environ["FSALIGN_HUB"] = str(hub)


def row_reward(row: Row) -> str | None:
    """What scores a row's pictures in its training at full scale."""
    known = recipe(row.method, "full") if row.method else {}
    return row.own("full").get("reward", known.get("reward", (None,))[0])


def do_run(work: Work, row: str, seed: int | None) -> None:
    """Train and evaluate one row at one seed, unless that is done; all processes of the launcher take part."""
    path, training = run_path(work.folder, row, seed), None
    if path.exists():
        print(f"{path.stem} is done")
        return
    parts, this = work.folder / f"{path.stem}.parts", work.table.rows[row]
    if this.method:
        config, model = trained_run(work, row, seed)
        training, clock = json.loads((config.out / "result.json").read_text()), Clock()
        if this.sampled:
            model.guidance_scale = this.sampled.guidance[work.world.scale]
        cells = evaluate_cells(work, model, path.stem, parts, this.sampled)
    elif this.composed:
        model, clock = composed_model(work, row, seed), Clock()
        cells = evaluate_cells(work, model, path.stem, parts)
    elif this.sampled:
        clock = Clock()
        cells = evaluate_cells(work, sampled_model(work, row), path.stem, parts, this.sampled)
    else:
        model, clock = work.model.to(processes().device) if work.world.scale == "full" else work.model, Clock()
        with model.reference():  # it may hold the weights of a row that was evaluated before
            cells = evaluate_cells(work, model, path.stem, parts)
    finish(work, row, seed, clock, training, cells)
    if processes().is_main_process:
        shutil.rmtree(parts, ignore_errors=True)


def trained_run(work: Work, row: str, seed: int) -> tuple[TrainConfig, LatentModel]:
    """A run that was trained to its end, by another table or before this one was stopped, or that is trained now."""
    config = training_config(work, row, seed)
    if not (config.out / "result.json").exists() or isinstance(config, DistillConfig) and not work.table.pool:
        return train(work, row, seed)
    model = load_model(config) if not work.table.pool else work.model
    model = model.to(processes().device) if work.world.scale == "full" else model
    model.load_adapter(last_checkpoint(config.out))
    return config, model


def train(work: Work, row: str, seed: int) -> tuple[TrainConfig, LatentModel]:
    """To the end, from where it was stopped; the result is then in the folder of the run."""
    start = start_of(work.table, row, seed)
    if start and not (work.runs / f"{start[0]}-{start[1]}" / "result.json").exists():
        train(work, *start)
    config = training_config(work, row, seed)
    if processes().is_main_process:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(note_path(work.runs, row, seed), {"settings": begun_with(work, row, seed)})
    if isinstance(config, DistillConfig):
        setup = train_distill.prepare(config, reward=work.world.reward if config.reward else None)
        train_distill.run(setup)
    elif isinstance(config, OnlineConfig):
        setup = train_online.prepare(config, reward=work.world.reward)
        train_online.run(setup)
    else:
        build_samples(work, row) if work.table.targets else build_pairs(work)
        setup = train_offline.prepare(config)
        train_offline.run(setup)
    return config, setup.model


def composed_model(work: Work, row: str, seed: int) -> LatentModel:
    """The row's LoRA on what the row that it starts from trained, which is trained now if it was not."""
    _, trained = trained_run(start_work(work, row), *start_of(work.table, row, seed))
    dtype = model_dtype(work.table, work.world)
    model = load(lora_source(work, row)["preset"], dtype, network=trained.merged_network())
    return model.to(processes().device) if work.world.scale == "full" else model


def sampled_model(work: Work, row: str) -> LatentModel:
    """Another model than the table's; its precision is that of the rows."""
    model = load(model_name(work, row), model_dtype(work.table, work.world))
    model.guidance_scale = work.table.rows[row].sampled.guidance[work.world.scale]
    return model.to(processes().device) if work.world.scale == "full" else model


def evaluate_cells(
    work: Work, model: LatentModel, title: str, parts: Path, sampled: Sampled | None = None
) -> dict[str, dict]:
    """The model on each prompt set at each number of steps; at full scale what is done is kept in `parts`."""
    cells, how = {}, {"eta": sampled.eta} if sampled else {}
    kernel = sampled.kernel if sampled else work.table.kernel
    columns = (sampled.steps,) if sampled else work.table.steps
    costs = {}
    if work.table.timed:
        some = next(iter(work.prompts.values()))
        costs = {steps: sampling_cost(model, kernel, steps, some, **how) for steps in columns}
    for name, prompts in work.prompts.items():
        metrics = metrics_of(work, name)
        for steps in columns:
            kept = {"progress": f"{title}: {name}, {steps} steps"}
            kept["folder"] = parts / f"{name}-{steps}" if work.world.scale == "full" else None
            found = evaluate(model, kernel, steps, prompts, range(work.pictures), metrics, **kept, **how)
            found["means"] |= costs.get(steps, {})
            cells[f"{name}-{steps}"] = {key: value for key, value in found.items() if key != "prompts"}
    return cells


def metrics_of(work: Work, name: str) -> Mapping[str, Metric | Frechet]:
    """The metrics of a prompt set, with its own reference."""
    fid, about = work.metrics.get("fid"), work.table.prompts[name]
    if work.world.scale != "full" or not isinstance(fid, Frechet):
        return work.metrics
    if about.statistics is None:
        return {metric: value for metric, value in work.metrics.items() if metric != "fid"}
    there = read_reference(about, fid)
    fid.reference = lambda prompts: there
    return work.metrics


def finish(work: Work, row: str, seed: int | None, clock: Clock, training: dict | None, cells: dict, **more) -> None:
    """Write what was found of a run, with which it is done."""
    if processes().is_main_process:
        about = {"row": row, "seed": seed, "settings": settings(work, row, seed), "training": training}
        found = {"evaluation": provenance(clock), "cells": cells, **more}
        write_json(run_path(work.folder, row, seed), about | found)
    processes().wait_for_everyone()


def build_pairs(work: Work) -> None:
    """Once: pairs from the teacher, ranked by the simulated judge, or at full scale by a reward."""
    config = pair_config(work)
    made, note = pair_settings(work), config.out / "settings.json"
    if not (config.out / "pairs.jsonl").exists():
        pair_files.build(pair_files.prepare(config, utility=work.world.utility))
        if processes().is_main_process:
            write_json(note, made)
        processes().wait_for_everyone()
    elif work.world.scale == "full" and not note.exists():
        return  # brought along, such as Pick-a-Pic's
    elif not note.exists() or json.loads(note.read_text()) != made:
        raise ValueError(f"{config.out} was built with other settings or weights: remove it, or choose another --work")
