"""What a table of a paper compares, declared: rows, prompts, metrics; and the world that it is made in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from reproduce.data.sampled_pairs import Utility
from reproduce.evaluation.cost import COSTS
from reproduce.evaluation.likeness import LIKENESS
from reproduce.evaluation.metrics import METRICS, WITHIN_PROMPTS, Metric
from reproduce.harness.figures import Sheet
from reproduce.training.config import RewardFunction


@dataclass(frozen=True)
class Sampled:
    """Another model than the table's, sampled in a way of its own: the teacher of a few-step generator."""

    models: dict[str, str]  # scale -> the model
    steps: int
    guidance: dict[str, float]  # scale -> classifier-free guidance
    kernel: str = "ddim"
    eta: float = 0.0  # of DDIM


@dataclass(frozen=True)
class Row:
    """A line of the table: the model as it is (method None), or trained by a method."""

    title: str
    method: str | None = None
    settings: dict = field(default_factory=dict)  # other than the recipe's, such as {"reward": "hps"}
    full: dict = field(default_factory=dict)  # likewise, at full scale only
    metrics: tuple[str, ...] | None = None  # of the table, those that this row is compared in; None: all
    group: str | None = None  # rows that are compared with each other alone; None: with those of all groups
    pocket: dict = field(default_factory=dict)  # settings at pocket scale only
    tuning: str = ""  # what was tried before the settings were fixed; the result carries it
    start: str | None = None  # the row whose trained weights this one goes on from; None: the table's model
    seeds: tuple[int, ...] | None = None  # training seeds; None: the table's
    sampled: Sampled | None = None  # not the table's model: as it is, or as a method trains it
    composed: dict[str, str] | None = None  # scale -> the preset whose LoRA is put on what `start` trained
    elsewhere: bool = False  # a model that is not part of this project: the paper's number alone
    at_full: "Row | None" = None  # in its place at full scale
    scale: str | None = None  # the only scale that has it

    def own(self, scale: str) -> dict:
        return self.settings | (self.full if scale == "full" else self.pocket)

    def steps_at(self, steps: int) -> int:
        """In how many steps it is sampled in a column of the table."""
        return self.sampled.steps if self.sampled else steps


@dataclass(frozen=True)
class Prompts:
    """A prompt set of a table: the paper's name for it, and ours at each scale."""

    title: str
    pocket: str
    full: str
    statistics: str | None = None  # for fid at full scale, in the data folder; without them the set has none


@dataclass(frozen=True)
class Table:
    """What a paper's table compares."""

    name: str  # of its script
    title: str
    rows: dict[str, Row]
    prompts: dict[str, Prompts]
    steps: tuple[int, ...]
    metrics: dict[str, tuple[str, int]]  # name -> (title, decimals printed)
    beside: dict[str, tuple[str, int]]  # metrics that the paper does not have
    models: dict[str, str]  # scale -> the model that the rows start from
    teachers: dict[str, str]  # scale -> what samples the pairs of offline methods
    scored: tuple[str, ...] | None = None  # what pictures are scored by; None: `metrics` and `beside`
    lower: tuple[str, ...] = ()  # metrics of which less is better
    against: str | None = None  # a row from which the page tells the difference of every other, claimed or not
    shares: "Table | None" = None  # whose pairs, and whose runs that rows start from, this table takes
    watched: dict[str, tuple[str, int]] = field(default_factory=dict)  # likewise, of the last rounds of training
    kernel: str | None = None  # for evaluation; None: the model's own sampler
    pictures: dict[str, int] = field(default_factory=lambda: {"pocket": 4, "full": 1})  # scale -> of each prompt
    seeds: tuple[int, ...] = (0, 1, 2)
    equal_budgets: tuple[str, ...] = ("pocket",)  # scales at which all rows must train on as many samples
    curve: bool = False  # evaluate each snapshot of a run, not its end alone; "base" is where all curves start
    note: str = ""  # for the page: what its metrics mean
    reads: str | None = None  # with `curve`: train nothing, take the runs of that table
    pool: str | None = None  # a folder of training runs that lie there for all tables that name it
    scales: dict[str, str] = field(default_factory=dict)  # metric -> the only scale that has it
    # Gives the cells of runs, with the prompts of each set, what follows from their scores.
    derive: Callable[[list[dict], dict[str, list[str]]], None] | None = None
    figures: Callable[[dict], dict[str, "Sheet"]] | None = None  # result -> name -> what to draw
    targets: dict[str, str] | None = None  # scale -> what offline methods learn in place of pairs (see targets.SETS)
    series: tuple[str, ...] = ()  # of a run's records, those that the result keeps over all of training
    drawn: dict[str, str] = field(default_factory=dict)  # name -> caption of pictures that the script itself draws

    @property
    def id(self) -> str:
        return self.name.replace("_", "-")

    def at(self, scale: str) -> "Table":
        """With the rows and metrics that it has at this scale."""
        there = {name: row for name, row in self.rows.items() if row.scale in (None, scale)}
        full = {name: row.at_full or row for name, row in there.items()}
        metrics = {name: about for name, about in self.metrics.items() if self.scales.get(name, scale) == scale}
        return replace(self, rows=full if scale == "full" else there, metrics=metrics)

    def metric_names(self, scale: str, pictures: int) -> tuple[str, ...]:
        """What pictures are scored by: what can be had here, and is not derived from other scores (see curves)."""
        names = dict.fromkeys(self.scored or (*self.metrics, *self.beside))
        known = METRICS[scale] + LIKENESS[scale]
        return tuple(name for name in names if name in known and (name not in WITHIN_PROMPTS or pictures > 1))

    @property
    def timed(self) -> bool:
        """Whether it says what sampling costs."""
        return bool(set(COSTS) & {*self.metrics, *self.beside})


@dataclass(frozen=True)
class World:
    """What the rows are made from, and how much of it: by default the pocket world, in full."""

    scale: str = "pocket"
    model: str | None = None  # in place of the table's
    teacher: str | None = None  # likewise
    reward: RewardFunction | None = None
    utility: Utility | None = None
    metrics: Mapping[str, Metric] | None = None
    twins: bool = False  # small random networks in the published formats in place of the published weights
    pictures: int | None = None  # of each prompt, in place of the table's
    prompts: int | None = None  # of each set; None: all
    training_prompts: str | None = None
    settings: dict[str, dict] = field(default_factory=dict)  # method, or "pairs" -> settings other than the recipe's
