"""What a run of a table is made with: folders, training settings, pairs, and all that its numbers depend on.

A run is one row at one training seed. Settings are written down when it begins and when it ends, and one that lies in
the folder from before is taken only if they are the same.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.models.presets import PRESETS
from fsalign_lib.pocket import judge
from reproduce.common.files import plain
from reproduce.data import targets
from reproduce.data.sampled_pairs import FullPairConfig, PairConfig
from reproduce.evaluation.metrics import Metric
from reproduce.harness.declare import Table, World
from reproduce.recipes import make_config
from reproduce.train_distill import DistillConfig
from reproduce.train_offline import OfflineConfig
from reproduce.train_online import OnlineConfig
from reproduce.training.config import TrainConfig
from reproduce.training.methods import METHODS
from reproduce.training.run import Run, defaults

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


def target_set(table: Table, world: World) -> tuple[str, targets.Targets]:
    """The set that a table's rows learn, as large as the world has it; with twins, the pocket world's."""
    name = table.targets["pocket" if world.twins else world.scale]
    return name, replace(targets.SETS[name], **world.settings.get("targets", {}))


def lesson_folders(work: Work, row: str) -> dict[str, Path]:
    """What an offline method reads in a table with targets: pictures or pairs, and a subject's prior."""
    name, some = target_set(work.table, work.world)
    method = work.table.rows[row].method
    folder = work.folder / "pairs"
    if "losers" not in METHODS[method].needs:
        folder = targets.picture_folder(name, work.folder / "targets")
    if some.prompt is None:
        return {"pairs": folder}
    return {"pairs": folder, "prior": work.folder / f"prior-{model_name(work, row).replace('/', '-')}"}


def lesson_settings(work: Work, row: str) -> dict:
    """All that they depend on, but for the networks that drew samples, which the run names anyway."""
    name, some = target_set(work.table, work.world)
    return {"targets": name, **asdict(some)}


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
    return {"online": OnlineConfig, "offline": OfflineConfig, "distill": DistillConfig}[METHODS[method].loop]


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

    Pick-a-Pic's own pairs take their place in a folder that `build_pairs.py --from pickapic` made, <work>/pairs.
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
    if METHODS[method].loop == "offline":
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
