"""Measure training at full size on one GPU, with random weights, against the plan: in at most eight minutes.

python reproduce/benchmarks/full_size.py                                           # SD-Turbo and SDXL
python reproduce/benchmarks/full_size.py --models tiny --device cpu --out build/try.jsonl  # its logic, on small twins

The networks have the published configurations and random weights, so nothing is downloaded: speed and memory do not
depend on the values. Each measurement runs rounds of a training loop as it stands, with its recipe's settings but for
small batches, and a clock beside it. Timed are the phases of a round:

- `sampling`: the rollout, with decoding and reward (online PSO, SDPO); `reference`: log-probs under the reference;
- `update`: an update of a minibatch, with the optimizer's step;
- `assistant update`, `student update`: those of DI*, whose three networks are adapters on one frozen base.

A line of JSON for each phase is appended to the result as soon as it is known: median seconds of a call; mfu, the FLOPs
that the planner counts (recomputed ones with them) over seconds and the card's peak; torch's own peak of allocated
bytes (so without the CUDA context and the allocator's gaps), and the plan's. What fails says so in a line of its own,
and the next measurement begins.
"""

import contextlib
import gc
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import tyro
from torch import Tensor, nn

from fsalign_lib import twins
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.models.load import load
from fsalign_lib.models.presets import PRESETS
from fsalign_lib.twins import architectures
from reproduce import train_distill, train_online
from reproduce.common.cli import command_line, positive
from reproduce.common.files import plain
from reproduce.common.provenance import Clock, provenance
from reproduce.planner.footprint import Footprint
from reproduce.planner.gpus import GPU, GPUS, named
from reproduce.planner.report import GB, meta_networks, meta_reward
from reproduce.recipes import VARIANTS, make_config, values
from reproduce.training.config import TrainConfig

PROMPTS = ["a cat", "a dog on the moon", "two wolves", "a red rabbit"]
METHODS = ("pso-online", "sdpo", "distar")
# The few-step model that is trained online, and the base of DI*'s adapters.
MODELS = {"sd-turbo": ("sd-turbo", "sd-turbo"), "sdxl": ("sdxl-dmd2", "sdxl"), "tiny": ("sdxl-turbo", "sdxl")}
# Smaller than the recipes' batches; PSO's micro-batch is that of its tables at 1024 px. The clip is wide, for random
# networks may exceed it, and would be refused; the time is DMD2's, which a generator with the teacher's weights lacks.
SMALL = {
    "pso-online": {"pairs": 4, "minibatch": 4, "micro_batch": 2},
    "sdpo": {"steps": 4, "pairs": 2, "minibatch": 2, "clip": 1e9},
    "distar": {"batch": 2, "time": 399},
}
ADAPTERS = values(VARIANTS["adapters"][1])  # DI* as its tables run it with --recipe adapters
FOREVER = 10**6
SAMPLING = ("rollout", "decode", "reward")  # of the planner's parts


@dataclass(kw_only=True)
class FullSizeConfig:
    """Measure training at full size on one GPU."""

    models: tuple[Literal["sd-turbo", "sdxl", "tiny"], ...] = ("sd-turbo", "sdxl")
    """tiny: small twins of SDXL's models, to try the script."""
    methods: tuple[Literal["pso-online", "sdpo", "distar"], ...] = METHODS
    """Loops that are measured."""
    device: Literal["cuda", "cpu"] = "cuda"
    gpu: str | None = None
    """GPU whose peak the utilisation refers to (see reproduce/planner/gpus.py); None: found by the device's name."""
    seconds: float = 20.0
    """For a measurement's rounds, after a first one that warms up; at least one is run where there is time."""
    budget: float = 480.0
    """Seconds of all; a measurement that would begin later is left out."""
    out: Path = Path(__file__).parent / "results" / "full_size.jsonl"


def prepare(config: FullSizeConfig) -> tuple[FullSizeConfig, GPU | None]:
    """Check the settings; raise a ValueError for no GPU, an unknown one, or a result that is there already."""
    positive(config, "seconds", "budget")
    if config.out.exists():
        raise ValueError(f"{config.out} holds measurements already: remove it, or choose another --out")
    if config.device == "cpu":
        if set(config.models) != {"tiny"}:
            raise ValueError("--device cpu is for trying the script: use --models tiny with it")
        return config, None
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device: run this on a machine with a GPU, or try it by --models tiny --device cpu")
    memory = torch.cuda.get_device_properties(0).total_memory / GB
    return config, named(config.gpu or card(torch.cuda.get_device_name(), memory))


def card(device: str, memory: float) -> str:
    """Return the name in GPUS of a device, by its own name and its memory in GB.

    Raises:
        ValueError: it is not among them.
    """
    fitting = [name for name in GPUS if name.split("-")[0] in device.replace(" ", "")]
    if not fitting:
        raise ValueError(f"{device} is not in reproduce/planner/gpus.py: name the GPU whose peak it has by --gpu")
    return min(fitting, key=lambda name: (("PCIe" in name) != ("PCIe" in device), abs(GPUS[name].memory - memory)))


def random_model(name: str, device: str, dtype: torch.dtype) -> LatentModel:
    """Build a published model with random weights on the device. Every prompt becomes the same tokens."""
    model = architectures.meta_model(name, dtype)
    for part in (model.unet, model.vae, *model.text.modules):
        randomise(part, device)
    for part in model.text.components().values():
        if isinstance(part, architectures.BlankTokenizer):
            part.device = device
    return model


def randomise(network: nn.Module, device: str) -> None:
    """Allocate a network that is on the meta device, with small random weights."""
    network.to_empty(device=device)
    for p in network.parameters():
        p.data.normal_(std=0.02)
    for buffer in network.buffers():
        if buffer.dtype == torch.long:  # the positions of CLIP
            buffer.copy_(torch.arange(buffer.numel(), device=device).view_as(buffer))


def random_reward(device: str, prompts: Sequence[str] = PROMPTS) -> nn.Module:
    """Build PickScore's network with random weights, and embeddings for the prompts."""
    reward = architectures.meta_reward("pickscore")
    randomise(reward, device)
    width = reward.model.config.projection_dim
    reward.cache = {prompt: torch.randn(width, device=device) for prompt in prompts}
    return reward


def settings(model: str, method: str, folder: Path) -> TrainConfig:
    """Return the full-size recipe's settings for a model, but for the batches and what SMALL names."""
    few_step, base = MODELS[model]
    if model == "tiny":
        few_step, base = (str(twins.save_twin(name, folder) / PRESETS[name].pipeline) for name in (few_step, base))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    asked = {"reward": "pickscore", "prompts": str(folder / "prompts.txt"), "out": folder / f"{model}-{method}"}
    asked |= {"save_every": FOREVER} | SMALL[method]
    if method == "distar":
        names = {"model": base, "teacher": base, "updates": FOREVER}
        return make_config(train_distill.DistillConfig, method, "full", **asked | names | ADAPTERS)
    names = {"model": few_step, "rounds": FOREVER}
    return make_config(train_online.OnlineConfig, method, "full", **asked | names)


def plan(config: TrainConfig, tiny: bool, cuda: bool) -> Footprint:
    """Count the run as reproduce/plan.py does."""
    reward = None if tiny else meta_reward("pickscore", "full")
    return Footprint(config, meta_networks(config), reward, len(PROMPTS), cuda=cuda)


def build(config: TrainConfig, tiny: bool, device: str) -> train_online.Setup | train_distill.Setup:
    """Make a run ready, as its loop's own `prepare` does it."""
    dtype = getattr(torch, config.dtype)
    model = load(config.model, dtype) if tiny else random_model(config.model, device, dtype)
    reward = (lambda pictures, _: pictures.mean((1, 2, 3))) if tiny else random_reward(device)
    if config.loop == "online":
        return train_online.prepare(config, model, reward)
    return train_distill.prepare(config, model, model, reward)


class Watch:
    """Time the phases of a loop's rounds, and note their peaks of memory; the loop itself is as it stands.

    An update lasts from the call of `run.micro_batches` to the end of `run.step`.

    Attributes:
        seconds: phase -> of each call. peaks: phase -> bytes, on a GPU. names: of the run's learners, as the planner's.
    """

    def __init__(self, setup: train_online.Setup | train_distill.Setup, names: Sequence[str], cuda: bool):
        self.cuda, self.names, self.run = cuda, list(names), setup.run
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peaks: dict[str, int] = defaultdict(int)
        self._micro_batches, self._step = self.run.micro_batches, self.run.step
        self.run.micro_batches, self.run.step = self._begin, self._end

    def start(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._at = time.perf_counter()

    def stop(self, phase: str) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.peaks[phase] = max(self.peaks[phase], torch.cuda.max_memory_allocated())
        self.seconds[phase].append(time.perf_counter() - self._at)

    def _begin(self, prompts: Sequence[str], number: int, which: int = 0) -> Iterator[Tensor]:
        self._learner = self.names[which]
        self.start()
        yield from self._micro_batches(prompts, number, which)

    def _end(self) -> dict[str, Tensor]:
        record = self._step()
        self.stop(self._learner)
        return record

    def timed(self, phase: str, function: Callable) -> Callable:
        def call(*args):
            self.start()
            out = function(*args)
            self.stop(phase)
            return out

        return call

    def rounds(self, setup: train_online.Setup | train_distill.Setup, seconds: float) -> bool:
        """Run rounds of the loop for so many seconds, after one that warms up. Return whether there was time for any.

        Where there was none, the times are those of the first round.
        """
        loop = train_online if setup.config.loop == "online" else train_distill
        phases = {"sample_pairs": "sampling", "reference_log_probs": "reference"} if loop is train_online else {}
        started = time.perf_counter()
        with contextlib.ExitStack() as stack:
            for name, phase in phases.items():
                stack.enter_context(mock.patch.object(loop, name, self.timed(phase, getattr(loop, name))))
            rounds = loop.train(setup)
            next(rounds)
            warm = time.perf_counter() - started < seconds
            if warm:
                self.seconds.clear()
                self.peaks.clear()
            while time.perf_counter() - started < seconds:
                next(rounds)
        return warm


def records(footprint: Footprint, watch: Watch, gpu: GPU | None) -> Iterator[dict[str, Any]]:
    """Yield what is known of each phase: its time, and the plan's count beside it."""
    c = footprint.config
    flops, updates = footprint.flops(c.gradient_checkpointing), footprint.round(c.gradient_checkpointing).updates
    peaks = footprint.as_run()
    for phase, seconds in watch.seconds.items():
        parts = SAMPLING if phase == "sampling" else (phase,)
        spent: dict[str, float] = defaultdict(float)
        for part in parts:
            for dtype, n in flops.get(part, {}).items():
                spent[dtype] += n / updates.get(part, 1)
        if not spent:  # such as a reference that the method does not need
            continue
        planned = max(peaks[name] for name in phases_of(phase))
        record = {"phase": phase, "calls": len(seconds), "seconds": statistics.median(seconds)}
        record |= {"tflop": sum(spent.values()) / 1e12, "planned_gb": planned / GB}
        if gpu is not None:
            record["mfu"] = sum(n / gpu.peak(dtype) for dtype, n in spent.items()) / record["seconds"]
        if watch.peaks[phase]:
            record |= {"peak_gb": watch.peaks[phase] / GB, "planned_over_measured": planned / watch.peaks[phase]}
        yield record


def phases_of(phase: str) -> tuple[str, ...]:
    """Return the planner's phases that a measured one covers."""
    if phase in ("sampling", "reference"):
        return ("sampling",)
    return phase, phase.replace("update", "step")


def measure(config: FullSizeConfig, gpu: GPU | None, model: str, method: str, folder: Path) -> list[dict[str, Any]]:
    """Build, plan and measure one run; return its records."""
    cuda, tiny = config.device == "cuda", model == "tiny"
    about = settings(model, method, folder)
    footprint = plan(about, tiny, cuda)
    setup = build(about, tiny, config.device)
    watch = Watch(setup, footprint.networks.learners, cuda)
    warm = watch.rounds(setup, config.seconds)
    what = {"model": model, "method": method, "preset": about.model, "warm": warm}
    what |= {name: getattr(about, name) for name in ("dtype", "mixed_precision", "gradient_checkpointing")}
    what |= {"batch": footprint.pairs, "micro_batch": about.micro_batch, "steps": about.steps}
    return [what | record for record in records(footprint, watch, gpu)]


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line to the result, on the disk before anything else is begun, and print it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()), flush=True)


def run(ready: tuple[FullSizeConfig, GPU | None]) -> None:
    """Measure every model and method in turn, and write each result as soon as it is known."""
    config, gpu = ready
    started, write = time.perf_counter(), partial(append, config.out)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write({**provenance(Clock()), "config": plain(config), "peak": None if gpu is None else gpu.source})
    for model in config.models:
        for method in config.methods:
            what = {"model": model, "method": method}
            if time.perf_counter() - started > config.budget:
                write(what | {"error": f"left out: {config.budget:g} seconds are over"})
                continue
            with tempfile.TemporaryDirectory(prefix="full-size-") as folder:
                try:
                    for record in measure(config, gpu, model, method, Path(folder)):
                        write(record)
                except Exception as error:  # the next measurement may do
                    write(what | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
            gc.collect()  # a run and its hooks hold each other
            if config.device == "cuda":
                torch.cuda.empty_cache()
    print(f"{config.out}: {time.perf_counter() - started:.0f} seconds")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command_line(lambda args: tyro.cli(FullSizeConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
