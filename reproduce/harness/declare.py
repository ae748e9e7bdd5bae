"""Declare what a table of a paper compares: its rows, prompts, metrics and models, and the world that it is made in.

Nothing here loads or computes: a table's script imports this module alone, so that its `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GIVEN = "--set"  # the source of a setting that the command line gave (see overrides.py)


@dataclass(frozen=True)
class Column:
    """Name a metric as the page prints it."""

    title: str
    decimals: int
    lower: bool = False  # less is better
    scale: str | None = None  # the only scale that has it; None: both


@dataclass(frozen=True)
class Prompts:
    """Name a prompt set of a table: the paper's name for it, and ours at each scale (see data/prompt_sets.py)."""

    title: str
    pocket: str
    full: str
    statistics: str | None = None  # for fid at full scale, a file of the data folder; None: the set has no fid there


@dataclass(frozen=True)
class Sampled:
    """Sample a row from another model than the table's, in a way of its own: the teacher of a few-step generator."""

    models: dict[str, str]  # scale -> the model
    steps: int | dict[str, int]  # scale -> sampling steps; one number: at both
    guidance: dict[str, float]  # scale -> classifier-free guidance
    kernel: str = "ddim"
    eta: float = 0.0  # of DDIM


@dataclass(frozen=True)
class Row:
    """Declare a line of the table: the model as it is (method None), or trained by a method."""

    title: str
    method: str | None = None
    # In the place of the recipe's, each with its source, such as {"reward": ("hps", "SDPO Sec. 4.1")}.
    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    full: dict[str, tuple[Any, str]] = field(default_factory=dict)  # likewise, at full scale alone
    pocket: dict[str, tuple[Any, str]] = field(default_factory=dict)  # likewise, at pocket scale alone
    metrics: tuple[str, ...] | None = None  # of the table, those that this row is compared in; None: all
    group: str | None = None  # rows that are compared with each other alone; None: with those of all groups
    tuning: str = ""  # what was tried before the settings were fixed; the result carries it
    start: str | None = None  # the row whose trained weights this one goes on from; None: the table's model
    seeds: tuple[int, ...] | None = None  # training seeds; None: the table's
    sampled: Sampled | None = None  # None: the table's model
    composed: dict[str, str] | None = None  # scale -> the preset whose LoRA is put on what `start` trained
    elsewhere: bool = False  # a model that is not part of this project: the paper's number alone
    # The folder of its training runs beside the table's. None: the table's own. The name of the paper: the tables of
    # the paper share them, and the first that needs a run trains it. Another table: that table trains them.
    runs: str | None = None


@dataclass(frozen=True)
class Drawing:
    """Declare a PNG of pictures beside the page: `draw(work, path)` writes it when the first seeds are finished."""

    caption: str
    draw: Callable[[Any, Path], None]


@dataclass(frozen=True)
class Own:
    """Hold what one table, or a few, have beside what all tables have."""

    curve: bool = False  # evaluate each snapshot of a run, not its end alone; row "base" is where all curves start
    targets: dict[str, str] | None = None  # scale -> what offline methods learn in place of pairs (harness/targets.py)
    starts: dict[str, Row | dict[str, Row]] = field(default_factory=dict)  # rows to start from, not compared here
    scored: tuple[str, ...] | None = None  # what pictures are scored by; None: `metrics` and `beside`
    # (work, folder for parts that are done) -> row -> cells: samples and scores all rows in a way of the table's own.
    measure: Callable[[Any, Path], dict[str, dict[str, dict]]] | None = None
    # (table, runs, prompts of each set): add to the runs what follows from their scores and their whole histories;
    # what it returns stands in the result.
    derive: Callable[[Table, list[dict], dict[str, list[str]]], dict[str, Any]] | None = None
    figures: Callable[[dict], dict[str, Any]] | None = None  # result -> name -> Sheet (see sheets.py)
    drawings: dict[str, Drawing] = field(default_factory=dict)
    sections: Callable[[Table, dict | None], list[str]] | None = None  # (table, result) -> Markdown for the page


PICTURES = {"pocket": 4, "full": 1}
SEEDS = tuple(range(6))  # training seeds of a table
MOST_SEEDS = 10  # with those that the rule of harness/protocol.py adds


@dataclass(frozen=True)
class Table:
    """Declare what a paper's table compares. A row that is another at full scale stands as {"pocket": .., "full": ..},
    and one that a scale lacks is missing there."""

    name: str  # of its script
    title: str
    rows: dict[str, Row | dict[str, Row]]
    prompts: dict[str, Prompts]
    steps: tuple[int, ...]
    metrics: dict[str, Column]
    beside: dict[str, Column]  # metrics that the paper does not have
    models: dict[str, str]  # scale -> the model that the rows start from
    teachers: dict[str, str]  # scale -> what samples the pairs of offline methods, or teaches one-step generators
    kernel: str | None = None  # for evaluation; None: the model's own sampler
    pictures: dict[str, int] = field(default_factory=PICTURES.copy)  # scale -> of each prompt
    seeds: tuple[int, ...] = SEEDS
    note: str = ""  # for the page: what its metrics mean
    own: Own = Own()


@dataclass(frozen=True)
class World:
    """Say what the rows are made from, and how much of it: by default the pocket world, in full."""

    scale: str = "pocket"
    twins: bool = False  # small random networks in the published formats in place of the published weights
    pictures: int | None = None  # of each prompt; None: the table's number
    prompts: int | None = None  # of each set; None: all
    training_prompts: str | None = None  # None: the recipe's
    settings: dict[str, dict] = field(default_factory=dict)  # method, "pairs" or "targets" -> settings that go first
    given: dict[str, dict] = field(default_factory=dict)  # row, "pairs" or "targets" -> settings that --set gave


ONLINE, OFFLINE = {"rounds": 2, "pairs": 2, "minibatch": 2}, {"updates": 2, "batch": 2}
DISTILL = {"updates": 1, "batch": 2, "assistant_updates": 1, "warmup": 1, "micro_batch": 2, "save_every": 1}
EACH = {"snapshot_every": 1}
# What --smoke makes of every table: next to no prompts, pairs and updates.
SMOKE = World(
    pictures=2,
    prompts=3,
    settings={
        "pairs": {"count": 4, "batch": 4, "steps": 2, "tie": 0.0},
        "targets": {"count": 4, "references": 2, "prior": 2},
        "pso-online": ONLINE,
        **dict.fromkeys(("d3po", "ddpo", "rebel", "draft"), ONLINE | EACH),
        "sdpo": ONLINE | EACH | {"steps": 4},
        **dict.fromkeys(("pso-offline", "diffusion-dpo", "dreambooth", "pso-customize"), OFFLINE),
        **dict.fromkeys(("sft", "pso"), OFFLINE | EACH),
        **dict.fromkeys(("diff-instruct", "dipp", "sim", "distar"), DISTILL),
    },
)
