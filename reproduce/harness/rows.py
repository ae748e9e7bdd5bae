"""Run the rows of a table: train a row at a seed, or find it trained; evaluate it; write down what was found.

A run is one row at one training seed. Its folders, below a root such as reproduce/runs:

| where | what |
| --- | --- |
| <table>/<row>-<seed>.json | the evaluation, with all that it depends on; where it is, the run is done |
| <table>/<row>-<seed>/ | the training: settings.json, checkpoints, result.json at its end |
| <Row.runs>/<row>-<seed>/ | the training of a row that tables share |
| pairs/ | the pairs that offline methods train on, the same for all tables |

At full scale each folder's name ends in -full. Settings are written down when a training begins, and again with the
evaluation; what lies there from before is taken only if they are the same.
"""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fsalign_lib.json_files import check_object, read_json
from fsalign_lib.metrics.frechet import Gaussian, read_statistics
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.models.load import load
from fsalign_lib.models.presets import PRESETS
from fsalign_lib.pocket import judge
from fsalign_lib.pocket.weights import WEIGHTS
from reproduce import train_distill, train_offline, train_online
from reproduce.common.cli import processes, refusals, seen
from reproduce.common.files import (
    claim,
    last_checkpoint,
    plain,
    release,
    remove_parts,
    sha256,
    writable_folder,
    write_json,
)
from reproduce.common.provenance import Clock, provenance
from reproduce.data import sampled_pairs
from reproduce.data.encoded_prompts import store_prompts
from reproduce.data.prompt_sets import SUBJECT_PROMPTS, data_folder, read_prompts, warn_of_cut
from reproduce.data.sampled_pairs import FullPairConfig, PairConfig
from reproduce.evaluation.cost import COSTS, sampling_cost
from reproduce.evaluation.likeness import LIKENESS, load_likeness
from reproduce.evaluation.metrics import METRICS, WITHIN_PROMPTS, Frechet, Metric, load_metrics
from reproduce.evaluation.scores import array, evaluate
from reproduce.harness import targets
from reproduce.harness.declare import Prompts, Row, Sampled, Table, World
from reproduce.harness.protocol import margin
from reproduce.recipes import make_config, values
from reproduce.train_distill import DistillConfig
from reproduce.train_offline import OfflineConfig
from reproduce.train_online import OnlineConfig
from reproduce.training.config import TrainConfig
from reproduce.training.methods import METHODS
from reproduce.training.run import Run, check_divides, defaults

# Networks of the pocket world that the numbers of every table may depend on; `prepare` adds those of a few tables.
NETWORKS = (
    *("teacher", "student", "vae", "text_encoder", "eye", "classifier"),
    *("clip", "pickscore", "imagereward", "aesthetic"),
)
JUDGING = ("teacher", "vae", "text_encoder", "eye")  # networks that draw the pairs and judge them
# The one precision that all rows of a table are evaluated in, whatever each was trained in. float16 costs what bfloat16
# does and loses a tenth: near t = 999 a prediction is x0 = (x - sqrt(1 - abar) eps) / sqrt(abar), which multiplies the
# rounding of eps by 15 (RMS error of x0 on the pocket's student: 0.007, and 0.066 in bfloat16).
EVALUATION = {"pocket": torch.float32, "full": torch.float16}
AGAIN = (100, 4)  # prompts and pictures of each that a margin is measured on, where a table has one picture a prompt
LOOPS = {"online": train_online, "offline": train_offline, "distill": train_distill}
CONFIGS = {"online": OnlineConfig, "offline": OfflineConfig, "distill": DistillConfig}


@dataclass
class Work:
    """Hold a table being made: its folder, and the parts that its runs share."""

    table: Table  # as it is at the world's scale
    world: World
    folder: Path
    threads: int | None
    model: LatentModel
    metrics: Mapping[str, Metric | Frechet]
    prompts: dict[str, list[str]]
    weights: dict[str, str]  # a digest of each network that the pocket world brings

    @property
    def pictures(self) -> int:
        """Return how many pictures of each prompt are evaluated."""
        return self.world.pictures or self.table.pictures[self.world.scale]


# preparing a table


def prepare(table: Table, world: World, folder: Path, threads: int | None) -> Work:
    """Load what all runs share, and see that what lies in the folders was made with the same settings.

    Raises:
        ValueError: other settings or weights, or an unknown metric or prompt set. FileNotFoundError: missing weights.
    """
    if threads:
        torch.set_num_threads(threads)
    writable_folder(folder)
    if world.twins:
        from reproduce.harness.tiny_models import make_twins

        make_twins(table, set(scored_names(table, "full", pictures=2)), folder / "twins")
    model = load(table.models[world.scale], EVALUATION[world.scale])
    names = scored_names(table, world.scale, world.pictures or table.pictures[world.scale])
    sets = {name: prompt_set(some, world) for name, some in table.prompts.items()}
    prompts = {name: read_prompts(some)[: world.prompts] for name, some in sets.items()}
    for some in prompts.values():
        warn_of_cut(model, some)
    metrics = load_table_metrics(table, world, folder, names, model)
    weights = {}
    if world.scale == "pocket":
        more = {"hps"} & set(names) | ({"selfsup"} if "dino" in names else set())
        weights = {name: digest(WEIGHTS / name) for name in (*NETWORKS, *sorted(more))}
    elif "fid" in metrics:
        given = {name: some.statistics for name, some in table.prompts.items() if some.statistics}
        weights = {f"fid of {name}": sha256(data_folder() / path)[:12] for name, path in given.items()}
    work = Work(table, world, folder, threads, model, metrics, prompts, weights)
    for row in table.rows:
        for seed in row_seeds(table, row):
            check_same(work, row, seed)
    return work


def prompt_set(some: Prompts, world: World) -> str:
    """Name the prompt set that a table is compared on: of a subject's prompts, those of the subject asked for."""
    name = getattr(some, "pocket" if world.twins else world.scale)
    subject = world.settings.get("targets", {}).get("subject")
    return f"{SUBJECT_PROMPTS}{subject}" if subject and f"{name}-" == SUBJECT_PROMPTS else name


def scored_names(table: Table, scale: str, pictures: int) -> tuple[str, ...]:
    """Name what pictures are scored by: what can be had here, and is not derived from other scores (see curves)."""
    names = dict.fromkeys(table.own.scored or (*table.metrics, *table.beside))
    known = METRICS[scale] + LIKENESS[scale]
    return tuple(name for name in names if name in known and (name not in WITHIN_PROMPTS or pictures > 1))


def load_table_metrics(
    table: Table, world: World, folder: Path, names: Sequence[str], model: LatentModel
) -> dict[str, Metric | Frechet]:
    """Load the metrics of pictures alone, and those that hold them to the table's targets, in the order of names.

    At full scale "fid" is against statistics that must be there; they are read here, before any compute.
    """
    full = world.scale == "full"
    device = processes().device if full else model.device
    if world.twins:  # there is none of FID's network
        names = tuple(name for name in names if name != "fid")
    like = [name for name in names if name in LIKENESS[world.scale]]
    others = [name for name in names if name not in like]
    reference = {"reference": lambda prompts: None} if full and "fid" in others else {}
    found = dict(load_metrics(others, device, world.scale, **reference))
    if reference:
        for prompts in table.prompts.values():
            if prompts.statistics:
                read_reference(prompts, found["fid"])
    if like:
        pictures = None
        if table.own.targets:
            there = targets.table_targets(table, world, folder)
            pictures = targets.read_targets(there, model.image_size, spare=folder / "targets")
        found |= load_likeness(like, pictures, device, world.scale)
    return {name: found[name] for name in names}


def read_reference(prompts: Prompts, fid: Frechet) -> Gaussian:
    """Read the statistics of the pictures that a set's captions are of.

    Raises:
        ValueError: no data folder, or other statistics. FileNotFoundError: there are none.
    """
    if data_folder() is None:
        raise ValueError(
            f"fid needs {prompts.statistics}: make it with reproduce/fid_reference.py, and set FSALIGN_DATA to its "
            "folder"
        )
    return read_statistics(data_folder() / prompts.statistics, fid.extractor, fid.dimensions)


def digest(folder: Path) -> str:
    """Return a hash of the weight files in a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


# where a run lies, and what it is made with


def row_seeds(table: Table, row: str) -> tuple[int | None, ...]:
    """Return a row's training seeds; one None where nothing is trained, none where nothing is run."""
    about = row_of(table, row)
    if about.elsewhere:
        return ()
    return (about.seeds or table.seeds) if about.method or about.composed else (None,)


def row_of(table: Table, row: str) -> Row:
    """Return a row of the table, or one that its rows start from."""
    return table.rows[row] if row in table.rows else table.own.starts[row]


def start_of(table: Table, row: str, seed: int) -> tuple[str, int] | None:
    """Return the run, (row, seed), whose weights a run goes on from: of its own seed, or the only one that there is."""
    start = row_of(table, row).start
    if start is None or row_of(table, start).method is None:
        return None
    seeds = row_seeds(table, start)
    return start, seed if seed in seeds else seeds[0]


def trained_here(table: Table, row: Row) -> bool:
    """Say whether a row is trained, and by this table: its runs do not lie in the folder of another one."""
    return row.method is not None and row.runs in (None, table.name, table.name.partition("_")[0])


def uses_pairs(table: Table) -> bool:
    """Say whether offline methods learn from the pairs that tables share."""
    return not table.own.targets and any(
        row.method and METHODS[row.method].loop == "offline" for row in table.rows.values()
    )


def run_path(folder: Path, row: str, seed: int | None) -> Path:
    """Return the file of an evaluation in a table's folder."""
    return folder / (f"{row}.json" if seed is None else f"{row}-{seed}.json")


def shared_folder(folder: Path, name: str, scale: str) -> Path:
    """Return a folder beside a table's, which other tables read too."""
    return folder.parent / (f"{name}-full" if scale == "full" else name)


def training_folder(work: Work, row: str, seed: int) -> Path:
    """Return the folder of a training."""
    runs, folder = row_of(work.table, row).runs, work.folder
    if runs not in (None, work.table.name):
        folder = shared_folder(work.folder, runs, work.world.scale)
    return folder / f"{row}-{seed}"


def model_name(work: Work, row: str) -> str:
    """Name the model that a row is, or that its method trains."""
    about = row_of(work.table, row)
    own = about.settings.get("model", (None,))[0]
    return own or (about.sampled.models if about.sampled else work.table.models)[work.world.scale]


def training_config(work: Work, row: str, seed: int) -> TrainConfig:
    """Return the recipe of the row's method at this scale, with the row's own settings and the world's."""
    table, world, about = work.table, work.world, row_of(work.table, row)
    loop = METHODS[about.method].loop
    given = {"out": training_folder(work, row, seed), "seed": seed, "resume": True, "model": model_name(work, row)}
    if loop == "offline":
        folders = targets.folders(work, row, given["model"]) if table.own.targets else {}
        given |= folders or {"pairs": pair_config(work).out}
    if loop == "distill":
        given["teacher"] = table.teachers[world.scale]
        start = start_of(table, row, seed)
        given["start"] = training_folder(work, *start) if start else None
    given |= values(about.settings) | world.settings.get(about.method, {}) | {"threads": work.threads}
    if world.training_prompts and loop != "offline":
        given["prompts"] = world.training_prompts
    given |= world.given.get(row, {})
    return make_config(CONFIGS[loop], about.method, world.scale, **given)


def pair_config(work: Work) -> PairConfig | FullPairConfig:
    """Return the settings of the pairs that offline methods train on.

    They are ranked by the simulated judge, or at full scale by a reward. Pick-a-Pic's own pairs take their place in a
    folder that `build_pairs.py --from pickapic` made.
    """
    kind = FullPairConfig if work.world.scale == "full" else PairConfig
    given = {"out": shared_folder(work.folder, "pairs", work.world.scale), "threads": work.threads}
    given["model"] = work.table.teachers[work.world.scale]
    if work.world.training_prompts:
        given["prompts"] = work.world.training_prompts
    return kind(**given | work.world.settings.get("pairs", {}))


def pair_settings(work: Work) -> dict:
    """Return all that the pairs depend on."""
    config = pair_config(work)
    kept = {key: value for key, value in plain(config).items() if key not in ("out", "threads")}
    if work.world.scale == "full":
        return kept
    return kept | {"judge": asdict(judge.TASTES[config.taste]), "weights": {k: work.weights.get(k) for k in JUDGING}}


def settings(work: Work, row: str, seed: int | None) -> dict:
    """Return all that a run's numbers depend on."""
    about = row_of(work.table, row)
    # A row that trains another model names it; another table that takes its run has a model of its own.
    own = {} if about.method and about.sampled else {"model": work.model.fingerprint}
    found = {"weights": own | work.weights, "pictures": work.pictures, "prompts": work.prompts}
    if about.sampled:
        found["sampled"] = plain(about.sampled)
    if about.composed:
        found["composed"] = lora_source(work, row)
        found["start"] = training_settings(work, *start_of(work.table, row, seed))["training"]
    return found | (training_settings(work, row, seed) if about.method else {})


def training_settings(work: Work, row: str, seed: int) -> dict:
    """Return all that a training depends on, but for weights."""
    config, method = training_config(work, row, seed), row_of(work.table, row).method
    free = free_settings()
    found = {"training": {key: value for key, value in plain(config).items() if key not in free}}
    if METHODS[method].loop == "offline":
        found["pairs"] = targets.settings(work) if work.table.own.targets else pair_settings(work)
    if start := start_of(work.table, row, seed):
        found["start"] = training_settings(work, *start)["training"]
    return found


def training_note(work: Work, row: str, seed: int) -> dict:
    """Return all that a training depends on, weights too, which stands in its settings.json."""
    found = training_settings(work, row, seed)
    about, scored = row_of(work.table, row), found["training"].get("reward")
    own = {} if about.sampled else {"model": work.model.fingerprint}
    return {"weights": own | {k: v for k, v in work.weights.items() if k in NETWORKS or k == scored}} | found


def free_settings() -> set[str]:
    """Name the settings that numbers do not depend on; how long a run is belongs to its numbers here."""
    folders = {"pairs", "prior", "start"}  # what lies in them has settings of its own
    return {name for name in Run.FREE if name not in ("rounds", "updates")} | folders


def lora_source(work: Work, row: str) -> dict[str, str | None]:
    """Return the preset whose LoRA a composed row takes, and a digest of the file where the package brings it."""
    name = work.table.rows[row].composed[work.world.scale]
    lora = PRESETS[name].lora if name in PRESETS else None
    return {"preset": name, "digest": digest(lora.parent) if isinstance(lora, Path) else None}


def check_same(work: Work, row: str, seed: int | None) -> None:
    """See that a run was done, and its training begun, with the settings that it has now.

    Raises:
        ValueError: it was not, with the file that says so.
    """
    path = run_path(work.folder, row, seed)
    if path.exists() and known_settings(work, row, seed, path) != settings(work, row, seed):
        raise ValueError(f"{path} has other settings or weights: remove {work.folder}, or choose another --work")
    own = (row, seed) if row_of(work.table, row).method else None
    for name, number in filter(None, (own, start_of(work.table, row, seed))):
        note = training_folder(work, name, number) / "settings.json"
        if not note.exists():
            continue
        now = training_note(work, name, number)
        # Notes of older versions hold all that the evaluation depends on.
        before = {key: value for key, value in known_settings(work, name, number, note).items() if key in now}
        before["weights"] = {key: value for key, value in before["weights"].items() if key in now["weights"]}
        if before != now:
            raise ValueError(f"{note} has other settings or weights: remove {note.parent}, or choose another --work")


def check_batches(work: Work, runs: Sequence[tuple[str, int | None]]) -> None:
    """See that the batches of all runs that are to be trained divide among the processes, before the first begins.

    Raises:
        ValueError: one does not, with its row.
    """
    todo = [(row, seed) for row, seed in runs if not run_path(work.folder, row, seed).exists()]
    todo += [start for run in todo if (start := start_of(work.table, *run))]
    for row, seed in todo:
        if row_of(work.table, row).method is None:
            continue
        try:
            check_divides(training_config(work, row, seed))
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from None


def known_settings(work: Work, row: str, seed: int | None, path: Path) -> dict:
    """Read settings as they were written down, of those that matter now; what was not known then had its default."""
    before = read_json(path, settings=dict)["settings"]
    if "training" not in before:
        return before
    check_object(f"settings in {path}", before, weights=dict, training=dict)
    known, free = defaults(type(training_config(work, row, seed))) | before["training"], free_settings()
    return before | {"training": {key: value for key, value in known.items() if key not in free}}


# running a row


def do_run(work: Work, row: str, seed: int | None) -> None:
    """Train and evaluate one row at one seed, unless that is done; all processes of the launcher take part."""
    path, about, training = run_path(work.folder, row, seed), work.table.rows[row], None
    parts = work.folder / f"{path.stem}.parts"
    if seen(path):
        if processes().is_main_process:
            print(f"{path.stem} is done")
        return
    claim(path)
    if about.method:
        if not finished(work, row, seed):
            if processes().is_main_process:  # of a training that was removed since
                remove_parts(parts)
            train(work, row, seed)
        training = read_json(training_folder(work, row, seed) / "result.json")
    # The weights come from the last checkpoint, whether they were trained now, before, or by another table.
    model, clock = row_model(work, row, seed), Clock()
    # The table's model may hold the weights of a row that was evaluated before.
    as_it_is = not (about.method or about.composed or about.sampled)
    begun_from = any(other.method and other.start == row for other in work.table.rows.values())
    untrained = begun_from or not (about.method or about.composed)
    with model.reference() if as_it_is else contextlib.nullcontext():
        cells = evaluate_cells(work, model, path.stem, parts, about.sampled, untrained)
    finish(work, row, seed, clock, training, cells)
    if processes().is_main_process:
        remove_parts(parts)
    release(path)


def finished(work: Work, row: str, seed: int) -> bool:
    """Say whether a row is trained to its end, whichever table trained it."""
    return seen(training_folder(work, row, seed) / "result.json")


def train(work: Work, row: str, seed: int) -> None:
    """Train to the end, from where it was stopped; first what the row starts from, unless that is there."""
    start = start_of(work.table, row, seed)
    if start and not finished(work, *start):
        train(work, *start)
    config = training_config(work, row, seed)
    if processes().is_main_process:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / "settings.json", {"settings": training_note(work, row, seed)})
    if isinstance(config, OfflineConfig) and work.table.own.targets:
        folders = {"pairs": config.pairs, "prior": config.prior}
        targets.build_samples(work, row, untrained_model(work, row), folders)
    work.model.to(torch.device("cpu"))  # makes room for the training; an evaluation takes it back
    loop = LOOPS[METHODS[config.method].loop]
    with refusals():  # of pairs or pictures that somebody brought
        if isinstance(config, OfflineConfig) and not work.table.own.targets:
            make_pairs(work)
        setup = loop.prepare(config)
    loop.run(setup)


def make_pairs(work: Work) -> None:
    """Build the pairs, unless they are there.

    Raises:
        ValueError: they were built with other settings or weights.
    """
    config, made = pair_config(work), pair_settings(work)
    note = config.out / "settings.json"
    if not seen(config.out / "pairs.jsonl"):
        sampled_pairs.build(sampled_pairs.prepare(config))
        if processes().is_main_process:
            write_json(note, made)
        processes().wait_for_everyone()
        return
    if note.exists():
        same = read_json(note) == made
    elif work.world.scale == "full":  # brought along, such as Pick-a-Pic's own
        same = True
    else:  # by build_pairs.py
        before = read_json(config.out / "about.json", config=dict)["config"]
        asked = {key: value for key, value in plain(config).items() if key not in ("out", "threads")}
        same = all(before.get(key) == value for key, value in asked.items())
    if not same:
        raise ValueError(f"{config.out} was built with other settings or weights: remove it, or choose another --work")


# the model of a row


def row_model(work: Work, row: str, seed: int | None) -> LatentModel:
    """Return the model to evaluate, on the device that it is evaluated on."""
    about = work.table.rows[row]
    if about.composed:
        return composed_model(work, row, seed)
    return trained_model(work, row, seed) if about.method else untrained_model(work, row)


def untrained_model(work: Work, row: str) -> LatentModel:
    """Return the table's model, or the one that the row samples or trains, in the precision of evaluation."""
    model, sampled, name = work.model, row_of(work.table, row).sampled, model_name(work, row)
    if sampled or name != work.table.models[work.world.scale]:
        model = load(name, EVALUATION[work.world.scale])
    if sampled:
        model.guidance_scale = sampled.guidance[work.world.scale]
    return model.to(processes().device) if work.world.scale == "full" else model


def trained_model(work: Work, row: str, seed: int) -> LatentModel:
    """Return the model with the weights that a finished training left."""
    model = untrained_model(work, row)
    model.load_adapter(last_checkpoint(training_folder(work, row, seed)), any_precision=True)
    return model


def composed_model(work: Work, row: str, seed: int) -> LatentModel:
    """Return the row's LoRA on what the row that it starts from trained, which is trained now if it was not."""
    start = start_of(work.table, row, seed)
    if not finished(work, *start):
        train(work, *start)
    network = trained_model(work, *start).merged_network()
    model = load(lora_source(work, row)["preset"], EVALUATION[work.world.scale], network=network)
    return model.to(processes().device) if work.world.scale == "full" else model


# evaluating it


def evaluate_cells(
    work: Work, model: LatentModel, title: str, parts: Path, sampled: Sampled | None = None, untrained: bool = False
) -> dict[str, dict]:
    """Evaluate a model on each prompt set at each number of steps; at full scale what is done is kept in `parts`.

    Args:
        untrained: rows are held to this model. Where a prompt has a single picture, some are sampled several times, to
            tell how much the pictures of a prompt differ: a quarter of that is the margin of claims.

    Returns:
        "<prompt set>-<steps>" -> scores, means, and where they were measured apart "margins".
    """
    table, cells, how = work.table, {}, {"eta": sampled.eta} if sampled else {}
    kernel, columns = (sampled.kernel, (sampled.steps,)) if sampled else (table.kernel, table.steps)
    costs = {}
    if set(COSTS) & {*table.metrics, *table.beside}:
        some = next(iter(work.prompts.values()))
        costs = {steps: sampling_cost(model, kernel, steps, some, **how) for steps in columns}
    if work.world.scale == "full":  # another row, or what the table samples, may have other prompts
        every = [prompt for prompts in work.prompts.values() for prompt in prompts]
        store_prompts([model], every, work.folder, keep=True)
    for name, prompts in work.prompts.items():
        metrics = metrics_of(work, name)
        for steps in columns:
            kept = {"progress": f"{title}: {name}, {steps} steps"}
            kept["folder"] = parts / f"{name}-{steps}" if work.world.scale == "full" else None
            found = evaluate(model, kernel, steps, prompts, range(work.pictures), metrics, **kept, **how)
            found["means"] |= costs.get(steps, {})
            cells[f"{name}-{steps}"] = {key: value for key, value in found.items() if key != "prompts"}
            if untrained and work.pictures == 1:
                some = {key: metric for key, metric in metrics.items() if not isinstance(metric, Frechet)}
                kept["folder"] = parts / f"{name}-{steps}-margins" if work.world.scale == "full" else None
                again = evaluate(model, kernel, steps, prompts[: AGAIN[0]], range(AGAIN[1]), some, **kept, **how)
                margins = {key: margin(array(scores)) for key, scores in again["scores"].items()}
                cells[f"{name}-{steps}"]["margins"] = margins
    return cells


def metrics_of(work: Work, name: str) -> Mapping[str, Metric | Frechet]:
    """Return the metrics of a prompt set, with its own reference of "fid"."""
    fid, about = work.metrics.get("fid"), work.table.prompts[name]
    if work.world.scale != "full" or not isinstance(fid, Frechet):
        return work.metrics
    if about.statistics is None:
        return {metric: value for metric, value in work.metrics.items() if metric != "fid"}
    there = read_reference(about, fid)
    fid.reference = lambda prompts: there
    return work.metrics


def measure(work: Work) -> None:
    """Run all rows of a table that measures in a way of its own, unless that is done."""
    rows, parts = work.table.rows, work.folder / "measured.parts"
    if all([seen(run_path(work.folder, row, None)) for row in rows]):
        return
    clock, cells = Clock(), work.table.own.measure(work, parts)
    for row in rows:
        finish(work, row, None, clock, None, cells[row], rows=len(rows))
    if processes().is_main_process:
        remove_parts(parts)


def finish(
    work: Work,
    row: str,
    seed: int | None,
    clock: Clock,
    training: dict | None,
    cells: dict,
    rows: int = 1,
    **more,
) -> None:
    """Write what was found of a run, with which it is done.

    Args:
        rows: how many were measured together, and share the time since the clock.
    """
    if processes().is_main_process:
        # All rows are evaluated as the networks are loaded, without autocast: a row that was trained just now, too.
        made = provenance(clock) | {"precision": str(work.model.dtype).removeprefix("torch.")}
        for name in ("wall_seconds", "cpu_seconds"):
            made[name] = round(made[name] / rows, 1)
        about = {"row": row, "seed": seed, "settings": settings(work, row, seed), "training": training}
        kept = {name: some for name, some in work.world.given.items() if name in (row, "pairs", "targets")}
        about |= {"given": kept} if kept else {}
        write_json(run_path(work.folder, row, seed), about | {"evaluation": made, "cells": cells, **more})
    processes().wait_for_everyone()
