"""Measure the peak of tensor memory: on a CPU from the allocator's own events, on a GPU from its count."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch._C._profiler import ProfilerActivity, ProfilerConfig, ProfilerState, _ExperimentalConfig

from fsalign_lib.models.latent_model import LatentModel
from reproduce.evaluation.scores import sample


def live_bytes() -> int:
    """Count the bytes of all tensors that Python can reach, each storage once."""
    gc.collect()
    storages = [o.untyped_storage() for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and not o.is_meta]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def peak_bytes(call: Callable[[], object]) -> int:
    """Measure the most bytes that tensors held at once during the call, those from before it included."""
    before = live_bytes()
    return before + increase(call)


def peak_over(call: Callable[[], object], device: torch.device) -> int:
    """Measure the most bytes that tensors held at once during the call, over those that were there before."""
    if device.type != "cuda":
        return increase(call)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def increase(call: Callable[[], object]) -> int:
    """Measure `peak_over` on a CPU."""
    now = peak = 0
    # What torch.profiler does, without its reading of every event, which takes ten times as long as the run.
    config = ProfilerConfig(ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig())
    torch.autograd._prepare_profiler(config, {ProfilerActivity.CPU})
    torch.autograd._enable_profiler(config, {ProfilerActivity.CPU})
    try:
        call()
    finally:
        events = torch.autograd._disable_profiler().events()
    events = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    if not events:
        raise RuntimeError("the profiler saw no allocation: nothing can be said of memory")
    for _, change in sorted(events, key=lambda event: event[0]):
        now += change
        peak = max(peak, now)
    return peak


COSTS = ("seconds", "memory")  # of `sampling_cost`
PICTURES_TIMED = 5


def sampling_cost(
    model: LatentModel, kernel_name: str | None, steps: int, prompts: Sequence[str], eta: float = 1.0
) -> dict[str, float]:
    """Measure seconds and memory of sampling one picture after the other.

    Returns:
        {"seconds": for 10 pictures, 10 times the median of one; "memory": MB of weights and of the most that tensors
        take beside them}. A first picture is a rehearsal, and encodes no-prompt; prompts are encoded beforehand.
    """
    named = [prompts[i % len(prompts)] for i in range(PICTURES_TIMED)]
    model.encode_prompts(named)

    def one(prompt: str) -> None:
        sample(model, kernel_name, steps, [prompt], [0], eta)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    peak, times = peak_over(lambda: one(named[0]), model.device), []
    for prompt in named:
        started = time.perf_counter()
        one(prompt)
        times.append(time.perf_counter() - started)
    text = getattr(model.text, "text", model.text)  # its encoders, too, where their prompts are read from disk
    parts = (model.unet, model.vae, *text.modules)
    weights = sum(p.numel() * p.element_size() for part in parts for p in (*part.parameters(), *part.buffers()))
    return {"seconds": 10 * statistics.median(times), "memory": (weights + peak) / 2**20}
