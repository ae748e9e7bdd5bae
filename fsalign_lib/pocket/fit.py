"""Fit every network of the pocket world by one loop: seeded by step, resumable to the bit, atomic on disk."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def save_atomic(state: dict, path: Path) -> None:
    """Write a torch file under a temporary name, then rename it: a killed run leaves the last whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    torch.save(state, temporary)
    os.replace(temporary, path)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Seed the random numbers of one step by (seed, step) alone, so that a resumed run repeats them."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))


@torch.no_grad()
def ema_update(ema: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the average towards the module by 1 - decay."""
    for e, p in zip(ema.parameters(), module.parameters(), strict=True):
        e.lerp_(p, 1 - decay)
    for e, b in zip(ema.buffers(), module.buffers(), strict=True):
        e.copy_(b)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, decay: float = 0.25) -> float:
    """Return the rate of a step: linear warm-up, plateau, linear decay to zero over the last quarter."""
    return peak * min((step + 1) / warmup, 1.0, max(steps - step, 1) / (decay * steps))


def fit(
    name: str,
    module: nn.Module,
    loss: Callable[[int, torch.Generator], Tensor],
    folder: Path,
    *,
    steps: int,
    lr: float,
    seed: int = 0,
    ema: nn.Module | None = None,
    ema_decay: float = 0.995,
    weight_decay: float = 0.01,
    every: int = 100,
) -> None:
    """Minimise `loss(step, generator)` over `module` with AdamW for `steps` steps.

    The state is kept in `folder/<name>.pt` every `every` steps; a run that finds it goes on from there. `ema`, a copy
    of the module, follows its weights with `ema_decay`, which warms up so that it never lags a short run.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    path = folder / f"{name}.pt"
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True)
    start = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        start = state["step"]
        module.load_state_dict(state["module"])
        if ema is not None:
            ema.load_state_dict(state["ema"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
    module.train()
    begun, total = time.time(), 0.0
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        value = loss(step, step_generator(seed, step))
        if not torch.isfinite(value):
            raise FloatingPointError(f"{name}: loss is {value.item()} at step {step}; lower lr (now {lr})")
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if ema is not None:
            ema_update(ema, module, min(ema_decay, (1 + step) / (10 + step)))
        total += value.item()
        done = step + 1
        if done % every == 0 or done == steps:
            pace = (time.time() - begun) / (done - start)
            print(f"{name} {done}/{steps} loss {total / ((done - 1) % every + 1):.4f} {pace:.2f} s/step", flush=True)
            total = 0.0
            state = {"step": done, "module": module.state_dict()}
            if ema is not None:
                state["ema"] = ema.state_dict()
            if done < steps:
                state["optimizer"] = optimizer.state_dict()
            save_atomic(state, path)
    module.eval()
