"""Measure online PSO at full size on a GPU: seconds, utilisation and memory, against reproduce/plan.py.

python reproduce/benchmarks/full_size_gpu.py                                   # SD-Turbo and SDXL-Turbo, random weights
python reproduce/benchmarks/full_size_gpu.py --models tiny --device cpu --out build/try.json  # its logic

The networks have the published configurations and random weights, in bfloat16 with a LoRA of rank 16, so nothing is
downloaded; speed and memory do not depend on the values. Measured, with and without gradient checkpointing:

- `step`: forward and backward of the UNet alone, at several numbers of rows;
- `update`: an update of `train_online`, a minibatch of pairs in micro-batches, with the optimizer's step;
- `round`: sampling, reward, reference and updates.

mfu is the FLOPs that plan.py counts (recomputed ones with them) over seconds and the card's peak; memory is torch's own
peak of allocated bytes, so without the CUDA context and the allocator's gaps.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from fsalign_lib import twins
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.models.load import load
from fsalign_lib.twins import architectures
from reproduce import train_online
from reproduce.common.cli import command_line, positive
from reproduce.common.files import plain, write_json
from reproduce.common.provenance import Clock, provenance
from reproduce.planner.footprint import Footprint
from reproduce.planner.gpus import GPU, GPUS, named
from reproduce.planner.report import GB, meta_networks, meta_reward
from reproduce.recipes import make_config

PROMPTS = ["a cat", "a dog on the moon", "two wolves", "a red rabbit"]


@dataclass(kw_only=True)
class GPUConfig:
    """Measure online PSO at full size."""

    models: tuple[Literal["sd-turbo", "sdxl-turbo", "tiny"], ...] = ("sd-turbo", "sdxl-turbo")
    """tiny: a small twin of SDXL-Turbo, to try the script."""
    device: Literal["cuda", "cpu"] = "cuda"
    gpu: str | None = None
    """GPU whose peak the utilisation refers to (see reproduce/planner/gpus.py); None: found by the device's name."""
    rows: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Batch of the UNet step alone."""
    micro_batches: tuple[int, ...] = (2, 6, 12)
    """Steps of pairs; a pair has 3."""
    pairs: int = 8
    """Pairs of a round, and of its one update."""
    repetitions: int = 5
    out: Path = Path(__file__).parent / "results" / "full_size_gpu.json"


def prepare(config: GPUConfig) -> tuple[GPUConfig, GPU | None]:
    """Check the settings; raise a ValueError for no GPU, an unknown one, or numbers that are not positive."""
    positive(config, "repetitions", "pairs")
    for name in ("rows", "micro_batches"):
        if not getattr(config, name) or min(getattr(config, name)) < 1:
            raise ValueError(f"{name} = {getattr(config, name)}: expected numbers above 0")
    if config.device == "cpu":
        if set(config.models) != {"tiny"}:
            raise ValueError("--device cpu is for trying the script: use --models tiny with it")
        return config, None
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device: run this on a machine with a GPU, or try it by --models tiny --device cpu")
    if config.gpu is None:
        device = torch.cuda.get_device_name().replace(" ", "")
        found = [name for name in GPUS if name.split("-")[0] in device]
        if not found:
            raise ValueError(f"{device} is not in reproduce/planner/gpus.py: name the GPU whose peak it has by --gpu")
        return config, GPUS[found[-1]]
    return config, named(config.gpu)


def random_model(name: str, device: str, prompts: Sequence[str]) -> LatentModel:
    """Build a published model with random weights and embeddings, on the device, in bfloat16."""
    model = architectures.meta_model(name, torch.bfloat16)
    rows = model.encode_prompts(prompts)
    for part in (model.unet, model.vae, *model.text.modules):
        randomise(part, device)
    filled = _filled(rows, device)
    model._embeddings = {prompt: filled[i] for i, prompt in enumerate(prompts)}  # there is no tokenizer
    return model


def _filled(cond, device: str):
    def fill(x: Tensor) -> Tensor:
        return torch.randn(x.shape, device=device).to(x.dtype)

    return fill(cond) if isinstance(cond, Tensor) else cond._map(fill)


def randomise(network: nn.Module, device: str) -> None:
    """Allocate a network that is on the meta device, with small random weights."""
    network.to_empty(device=device)
    for p in network.parameters():
        p.data.normal_(std=0.02)
    for buffer in network.buffers():
        if buffer.dtype == torch.long:  # the positions of CLIP
            buffer.copy_(torch.arange(buffer.numel(), device=device).view_as(buffer))


def random_reward(device: str, prompts: Sequence[str]) -> nn.Module:
    """Build PickScore's network with random weights, and embeddings for the prompts."""
    reward = architectures.meta_reward("pickscore")
    randomise(reward, device)
    width = reward.model.config.projection_dim
    reward.cache = {prompt: torch.randn(width, device=device) for prompt in prompts}
    return reward


@dataclass
class Bench:
    """Hold one model, ready to train, and what the planner says of it."""

    name: str
    setup: train_online.Setup
    footprint: Footprint


def build(config: GPUConfig, name: str, folder: Path) -> Bench:
    """Build a run of online PSO as the full-size recipe has it, but for the batches."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    preset = name
    if name == "tiny":
        twins.save_twin("sdxl-turbo", folder)
        preset = str(folder / "stabilityai" / "sdxl-turbo")
    run = make_config(
        train_online.OnlineConfig,
        "pso-online",
        "full",
        model=preset,
        prompts=str(prompts),
        out=folder / name,
        dtype="bfloat16",
        rounds=10**6,
        save_every=10**6,
        pairs=config.pairs,
        minibatch=config.pairs,
        rollout_batch=1,
        vae_slicing=True,
    )
    if name == "tiny":
        model, reward, planned = load(preset, torch.bfloat16), lambda images, _: images.mean((1, 2, 3)), None
    else:
        model, reward = random_model(name, config.device, PROMPTS), random_reward(config.device, PROMPTS)
        planned = meta_reward(run.reward, "full")
    setup = train_online.prepare(run, model, reward)
    counted = Footprint(run, meta_networks(run), planned, len(PROMPTS), cuda=config.device == "cuda")
    return Bench(name, setup, counted)


def measure(call: Callable[[], Any], repetitions: int, cuda: bool) -> tuple[float, float | None]:
    """Measure median seconds, and peak GB; a first call is a rehearsal."""
    call()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times), torch.cuda.max_memory_allocated() / GB if cuda else None


def step(bench: Bench, rows: int) -> None:
    """Run forward and backward of the UNet alone."""
    model = bench.setup.model
    x = torch.randn(rows, *model.latent_shape, device=model.device)
    t = torch.full((rows,), 499, device=model.device)
    model.predict_eps(x, t, bench.setup.cond[[0]].repeat_interleave(rows, 0)).square().mean().backward()
    bench.setup.run.optimizer.zero_grad()


def cases(config: GPUConfig, bench: Bench, checkpointing: bool) -> list[tuple[str, int, Callable, dict, int]]:
    """Yield what is measured: its name, its size, the call, its FLOPs by dtype, and the planner's peak in bytes."""
    setup, footprint, found = bench.setup, bench.footprint, []
    flops = footprint.flops(checkpointing)
    for rows in config.rows:  # of the network: a step of a pair has two
        share = rows / (2 * footprint.batch)
        some = {dtype: share * value for dtype, value in flops["update"].items()}
        planned = footprint.peaks(rows / 2, 1, checkpointing)["update"]
        found.append(("step", rows, partial(step, bench, rows), some, planned))
    pairs = train_online.sample_pairs(setup, 0)
    logp_ref = train_online.reference_log_probs(setup, pairs)
    which, steps = next(train_online.minibatches(setup, pairs, 0))
    for micro in config.micro_batches:

        def one_update(micro: int = micro) -> None:
            setup.config.micro_batch = micro
            for rows in setup.run.micro_batches([pairs.prompts[i] for i in which], pairs.number):
                loss, diagnostics = train_online.minibatch_loss(setup, pairs, logp_ref, which[rows], steps[rows])
                setup.run.backward(loss, diagnostics, rows)
            setup.run.step()

        peaks = footprint.peaks(micro, 1, checkpointing)
        peak = max(peaks["update"], peaks["step"])
        found.append(("update", micro, one_update, flops["update"], peak))
    rounds = train_online.train(setup)
    whole: dict[str, float] = {}
    for phase in flops.values():
        for dtype, value in phase.items():
            whole[dtype] = whole.get(dtype, 0) + value
    found.append(("round", config.micro_batches[-1], lambda: next(rounds), whole, max(peaks.values())))
    return found


def benchmark(config: GPUConfig, gpu: GPU | None, bench: Bench) -> list[dict[str, Any]]:
    """Yield a record for each case. One that the card cannot hold says so."""
    unet, records, cuda = bench.setup.model.unet, [], config.device == "cuda"
    for checkpointing in (False, True):
        unet.enable_gradient_checkpointing() if checkpointing else unet.disable_gradient_checkpointing()
        for what, batch, call, flops, planned in cases(config, bench, checkpointing):
            record = {"model": bench.name, "what": what, "batch": batch, "gradient_checkpointing": checkpointing}
            record |= {"tflop": sum(flops.values()) / 1e12, "planned_gb": planned / GB}
            try:
                seconds, peak = measure(call, config.repetitions, cuda)
            except torch.OutOfMemoryError:
                records.append(record | {"error": "out of memory"})
                bench.setup.run.optimizer.zero_grad()
                torch.cuda.empty_cache()
                continue
            record["seconds"] = seconds
            if gpu is not None:
                record["mfu"] = sum(value / gpu.peak(dtype) for dtype, value in flops.items()) / seconds
            if peak is not None:
                record |= {"peak_gb": peak, "planned_over_measured": planned / GB / peak}
            records.append(record)
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items()))
    return records


def run(ready: tuple[GPUConfig, GPU | None]) -> None:
    """Measure every model, and write the result."""
    config, gpu = ready
    clock, records = Clock(), []
    for name in config.models:
        with tempfile.TemporaryDirectory(prefix="full-size-") as folder:
            records += benchmark(config, gpu, build(config, name, Path(folder)))
        if config.device == "cuda":
            torch.cuda.empty_cache()
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.out, {**provenance(clock), "config": plain(config), "records": records})
    print(config.out)


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(GPUConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
