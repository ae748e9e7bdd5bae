"""What a table script does: train each row at each seed, evaluate it, gather the result and its claims.

A run is one row at one training seed. When it is finished its evaluation stands in <work>/<row>-<seed>.json, and it is
not run again; a run that was stopped goes on from its last checkpoint.
"""

import hashlib
import itertools
import json
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import curves
import distillation
import pairs as pair_files
import recipes
import targets
import train_distill
import train_offline
import train_online
from chunks import processes
from claims import read_claims, status
from common import Clock, plain, provenance, writable_folder, write_json
from data import data_folder, read_prompts
from distill_config import DistillConfig
from evaluate import compare, evaluate
from fsalign_lib.frechet import Gaussian, read_statistics
from fsalign_lib.latent import LatentModel
from fsalign_lib.models import load
from fsalign_lib.pocket import judge
from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.presets import PRESETS
from fsalign_lib.rewards import REWARDS
from fsalign_lib.twins import save_dino_twin, save_reward_twin, save_twin
from likeness import LIKENESS, load_likeness
from measure import sampling_cost
from pairs import FullPairConfig, PairConfig
from runs import Run, TrainConfig, defaults, last_checkpoint, load_model, make_config
from sampling import OnlineConfig
from scoring import Frechet, Metric, load_metrics
from tables import Prompts, Row, Sampled, Table, World
from train_offline import OfflineConfig

NETWORKS = (
    *("teacher", "student", "vae", "text_encoder", "eye", "classifier"),
    *("clip", "pickscore", "imagereward", "aesthetic"),
)
LAST = 5  # rounds or updates that the end of training is the mean of
JUDGING = ("teacher", "vae", "text_encoder", "eye")  # and drawing the pairs


@dataclass
class Work:
    """A table being made: its folders, and the parts that runs share."""

    table: Table
    world: World
    folder: Path
    threads: int | None
    model: LatentModel
    metrics: Mapping[str, Metric]
    prompts: dict[str, list[str]]
    weights: dict[str, str]  # a digest of each network that the pocket world brings

    @property
    def pictures(self) -> int:
        return self.world.pictures or self.table.pictures[self.world.scale]

    @property
    def runs(self) -> Path:
        """Where training runs lie."""
        return self.folder.parent if self.table.pool else self.folder


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
            f"fid needs {prompts.statistics}: make it with reproduce/reference.py, and set FSALIGN_DATA to its folder"
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


def target_set(table: Table, world: World) -> tuple[str, targets.Targets]:
    """The set that a table's rows learn, as large as the world has it; with twins, the pocket world's."""
    name = table.targets["pocket" if world.twins else world.scale]
    return name, replace(targets.SETS[name], **world.settings.get("targets", {}))


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
        if work.table.rows[row].method not in recipes.WITHOUT_LOSERS:
            targets.build_references(folders["pairs"], lessons, work.model, some.prompt, some.references, steps)
    processes().wait_for_everyone()


def lesson_folders(work: Work, row: str) -> dict[str, Path]:
    """What an offline method reads in a table with targets: pictures or pairs, and a subject's prior."""
    name, some = target_set(work.table, work.world)
    method = work.table.rows[row].method
    folder = work.folder / "pairs"
    if method in recipes.WITHOUT_LOSERS:
        folder = targets.picture_folder(name, work.folder / "targets")
    if some.prompt is None:
        return {"pairs": folder}
    return {"pairs": folder, "prior": work.folder / f"prior-{model_name(work, row).replace('/', '-')}"}


def lesson_settings(work: Work, row: str) -> dict:
    """All that they depend on, but for the networks that drew samples, which the run names anyway."""
    name, some = target_set(work.table, work.world)
    return {"targets": name, **asdict(some)}


def model_dtype(table: Table, world: World) -> torch.dtype:
    """The rows' own: the model as it is must be in the precision of those that were trained."""
    methods = [row.method for row in table.rows.values() if row.method]
    found = {recipes.RECIPES[method, world.scale].get("dtype", ("float32", ""))[0] for method in methods}
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
    recipe = recipes.RECIPES[row.method, "full"] if row.method else {}
    return row.own("full").get("reward", recipe.get("reward", (None,))[0])


def samples(config: TrainConfig) -> int:
    """Pictures that a run trains on: its own samples, or those of its pairs."""
    if isinstance(config, DistillConfig):
        return config.batch * (config.updates * (1 + config.assistant_updates) + config.warmup)
    if isinstance(config, OnlineConfig):
        return 2 * config.rounds * config.pairs
    return 2 * config.updates * config.batch


def check_budgets(work: Work) -> None:
    """Raise a ValueError if one method would see more pictures than another, where the table compares at one budget."""
    if work.world.scale not in work.table.equal_budgets:
        return
    budgets = {
        name: samples(training_config(work, name, seed=0)) for name, row in work.table.rows.items() if row.method
    }
    if len(set(budgets.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in budgets.items())
        raise ValueError(
            f"{work.table.name} compares at one budget, and its rows train on other numbers of samples: {told}"
        )


def digest(folder: Path) -> str:
    """Of the weight files in a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def row_seeds(table: Table, row: str) -> tuple[int | None, ...]:
    """Of its training runs; one None where there is nothing to train, none where there is nothing to run."""
    about = table.rows[row]
    if about.elsewhere:
        return ()
    return (about.seeds or table.seeds) if about.method or about.composed else (None,)


def run_path(folder: Path, row: str, seed: int | None) -> Path:
    return folder / (f"{row}.json" if seed is None else f"{row}-{seed}.json")


def note_path(folder: Path, row: str, seed: int | None) -> Path:
    """What a training run was begun with."""
    return folder / f"{row}-{seed}" / "settings.json"


def config_type(method: str) -> type[TrainConfig]:
    if method in distillation.DISTILL:
        return DistillConfig
    return OnlineConfig if method in recipes.ONLINE else OfflineConfig


def training_config(work: Work, row: str, seed: int) -> TrainConfig:
    """The recipe of the row's method at this scale, the row's own settings, and the world's."""
    table, world, method = work.table, work.world, work.table.rows[row].method
    kind = config_type(method)
    fixed = {"out": work.runs / f"{row}-{seed}", "seed": seed, "resume": True}
    fixed["model"] = model_name(work, row)
    if kind is OfflineConfig:
        fixed |= lesson_folders(work, row) if table.targets else {"pairs": pair_config(work).out}
    elif world.training_prompts:
        fixed["prompts"] = world.training_prompts
    if kind is DistillConfig:
        fixed["teacher"] = world.teacher or table.teachers[world.scale]
        start = start_of(table, row, seed)
        fixed["start"] = work.runs / f"{start[0]}-{start[1]}" if start else None
    given = fixed | table.rows[row].own(world.scale) | world.settings.get(method, {})
    return make_config(kind, method, world.scale, **given, threads=work.threads)


def model_name(work: Work, row: str) -> str:
    """The model that a row is, or that its method trains."""
    if sampled := work.table.rows[row].sampled:
        return (work.world.teacher or work.world.model) or sampled.models[work.world.scale]
    return work.world.model or work.table.models[work.world.scale]


def start_of(table: Table, row: str, seed: int) -> tuple[str, int] | None:
    """The run, (row, seed), whose weights a run goes on from: that of its own seed, or the only one that there is."""
    start = table.rows[row].start
    of = table if start is None or start in table.rows else table.shares
    if start is None or of.rows[start].method is None:
        return None
    seeds = row_seeds(of, start)
    return start, seed if seed in seeds else seeds[0]


def shared_work(work: Work) -> Work:
    """The table whose pairs and runs this one takes, in the folder beside this one's; or this one."""
    if work.table.shares is None:
        return work
    table = work.table.shares.at(work.world.scale)
    return replace(work, table=table, folder=shared_folder(work.table, work.folder))


def shared_folder(table: Table, folder: Path) -> Path:
    """Where a table's pairs are: in its own folder, or in that of the table that it shares with."""
    return folder if table.shares is None else folder.with_name(folder.name.replace(table.name, table.shares.name))


def start_work(work: Work, row: str) -> Work:
    """The table that trains what a row goes on from."""
    return work if work.table.rows[row].start in work.table.rows else shared_work(work)


def pair_config(work: Work) -> PairConfig | FullPairConfig:
    """Of the pairs that offline methods train on: ranked by the simulated judge, or at full scale by a reward.

    Pick-a-Pic's own pairs take their place in a folder that `pairs.py --from pickapic` made, <work>/pairs.
    """
    teacher, kind = work.world.teacher or work.table.teachers[work.world.scale], PairConfig
    if work.world.scale == "full":
        kind = FullPairConfig
    config = kind(out=shared_work(work).folder / "pairs", model=teacher, threads=work.threads)
    if work.world.training_prompts:
        config = replace(config, prompts=work.world.training_prompts)
    return replace(config, **work.world.settings.get("pairs", {}))


def pair_settings(work: Work) -> dict:
    """All that the pairs depend on."""
    config = pair_config(work)
    kept = {key: value for key, value in plain(config).items() if key not in ("out", "threads")}
    if work.world.scale == "full":
        return kept
    return kept | {"judge": asdict(judge.TASTES[config.taste]), "weights": {k: work.weights.get(k) for k in JUDGING}}


def settings(work: Work, row: str, seed: int | None) -> dict:
    """All that a run's numbers depend on."""
    this = work.table.rows[row]
    method = this.method
    # A row that trains another model names it; another table that takes its run has a model of its own.
    own = {} if method and this.sampled else {"model": work.model.fingerprint}
    about = {"weights": own | work.weights, "pictures": work.pictures, "prompts": work.prompts}
    if this.sampled:
        about["sampled"] = plain(this.sampled)
    if this.composed:
        about["composed"] = lora_source(work, row)
        about["start"] = settings(start_work(work, row), *start_of(work.table, row, seed))["training"]
    if method is None:
        return about
    config = training_config(work, row, seed)
    about["training"] = {key: value for key, value in plain(config).items() if key not in free_settings(config)}
    if method in recipes.OFFLINE:
        about["pairs"] = lesson_settings(work, row) if work.table.targets else pair_settings(work)
    if start := start_of(work.table, row, seed):
        about["start"] = settings(work, *start)["training"]
    return about


def begun_with(work: Work, row: str, seed: int | None) -> dict:
    """Settings of a training run: where tables share them, those that it depends on itself."""
    about = settings(work, row, seed)
    if not work.table.pool or "training" not in about:
        return about
    weights = {name: value for name, value in about["weights"].items() if name != "hps"}  # some tables score by it
    return {"weights": weights} | {name: about[name] for name in ("training", "start") if name in about}


def lora_source(work: Work, row: str) -> dict[str, str | None]:
    """The preset whose LoRA a composed row takes, and a digest of the file where it ships with the package."""
    name = work.world.model or work.table.rows[row].composed[work.world.scale]
    lora = PRESETS[name].lora if name in PRESETS else None
    return {"preset": name, "digest": digest(lora.parent) if isinstance(lora, Path) else None}


def free_settings(config: TrainConfig) -> tuple[str, ...]:
    """What numbers do not depend on; here how long a run is belongs to its numbers."""
    free = [name for name in Run.FREE if name not in ("rounds", "updates")]
    return (*free, "pairs", "prior", "start")  # folders; what lies in them has settings of its own


def known_settings(work: Work, row: str, seed: int | None, before: dict) -> dict:
    """Settings as they were written down, of those that matter now; what was not known then stood at its default."""
    if "training" not in before or work.table.rows[row].method is None:
        return before
    config = training_config(work, row, seed)
    known = defaults(type(config)) | before["training"]
    return before | {"training": {k: value for k, value in known.items() if k not in free_settings(config)}}


def check_same(work: Work, row: str, seed: int | None) -> None:
    """Raise a ValueError if the run was done, or begun, with other settings."""
    wanted = {
        run_path(work.folder, row, seed): settings(work, row, seed),
        note_path(work.runs, row, seed): begun_with(work, row, seed),
    }
    for path, now in wanted.items():
        if path.exists() and known_settings(work, row, seed, json.loads(path.read_text())["settings"]) != now:
            raise ValueError(f"{path} has other settings or weights: remove {work.folder}, or choose another --work")


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
    """A run that another table trained to its end, or that is trained now."""
    config = training_config(work, row, seed)
    if not (work.table.pool and (config.out / "result.json").exists()):
        return train(work, row, seed)
    model = work.model.to(processes().device) if work.world.scale == "full" else work.model
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
    home, start = start_work(work, row), start_of(work.table, row, seed)
    folder = home.folder / f"{start[0]}-{start[1]}"
    if (folder / "result.json").exists():
        trained = load_model(training_config(home, *start))
        trained.load_adapter(last_checkpoint(folder))
    else:
        _, trained = train(home, *start)
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


def gather(table: Table, folder: Path, clock: Clock, scale: str = "pocket", smoke: bool = False) -> dict:
    """The result of the table: what was run, and the status of each claim."""
    runs = []
    for row in table.rows:
        for seed in row_seeds(table, row):
            path = run_path(folder, row, seed)
            if path.exists():
                runs.append(json.loads(path.read_text()))
    result = {"table": table.name, "scale": scale, "smoke": smoke, **provenance(clock)}
    pairs = shared_folder(table, folder) / "pairs" / "about.json"
    result["pairs"] = json.loads(pairs.read_text()) if pairs.exists() else None
    result["prompts"] = runs[0]["settings"]["prompts"] if runs else None
    result["tuning"] = {name: row.tuning for name, row in table.rows.items() if row.tuning}
    if table.curve:
        curves.summarise(table, runs)
    if table.derive and runs:
        table.derive(runs, result["prompts"])
    for run in runs:
        del run["settings"]["prompts"]
        if run["training"]:
            history = run["training"]["history"]
            run["training"]["queries"] = sum(record.get("queries", 0) for record in history) or None
            end = history[-LAST:]
            run["training"]["end"] = {key: statistics.mean(record[key] for record in end) for key in table.watched}
            run["training"]["series"] = {name: [r[name] for r in history if name in r] for name in table.series}
            run["training"]["history"] = history[-1:]
            if run["training"]["config"]["method"] in distillation.DISTILL:
                run["training"]["cost"] = distillation.cost(run["training"]["config"])
    if table.against:
        result["differences"] = differences(table, runs, result["prompts"])
    return result | {"claims": decide(table, runs, result["prompts"]), "runs": runs}


def differences(table: Table, runs: list[dict], prompts: dict) -> list[dict]:
    """[{"row", "prompts", "steps", "metric", and the interval of (row - table.against)}], of rows that were run."""
    found = []
    for name, some, steps in itertools.product(table.rows, table.prompts, table.steps):
        sides = [row_cells(table, runs, row, some, steps) for row in (name, table.against)]
        if name == table.against or not all(sides):
            continue
        named = [[{**one, "prompts": prompts[some]} for one in side] for side in sides]
        place = {"row": name, "prompts": some, "steps": steps}
        found += [place | {"metric": metric} | compare(*named, metric)._asdict() for metric in table.metrics]
    return found


def row_cells(table: Table, runs: list[dict], row: str, prompts: str, steps: int) -> list[dict] | None:
    """The evaluations of a row, in the order of its training seeds; None while one of them is missing.

    Args:
        steps: of the column; a row that is sampled in a way of its own has the same in each.
    """
    cell = f"{prompts}-{table.rows[row].steps_at(steps)}"
    found = {run["seed"]: run["cells"][cell] for run in runs if run["row"] == row}
    seeds = row_seeds(table, row)
    return [found[seed] for seed in seeds] if set(seeds) <= set(found) else None


def decide(table: Table, runs: list[dict], prompts: dict | None) -> list[dict]:
    """[{"id", "status", and the interval of (above - below) where there is one}]"""
    statuses = []
    for claim in read_claims(table.id):
        where = claim.prompts, claim.steps
        above, below = (row_cells(table, runs, row, *where) for row in (claim.above, claim.below))
        interval = None
        if above and below:
            same = {"prompts": prompts[claim.prompts], "steps": claim.steps}
            above, below = ([{**one, **same} for one in side] for side in (above, below))
            if all(claim.metric in one["scores"] for one in (*above, *below)):  # some are of one scale alone
                interval = compare(above, below, claim.metric)
        statuses.append({"id": claim.id, "status": status(interval)} | (interval._asdict() if interval else {}))
    return statuses
