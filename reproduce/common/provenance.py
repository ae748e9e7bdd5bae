"""Record where a result came from: command, versions, device, time, memory, commit."""

import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Clock:
    """Remember when some work began, in wall time and in CPU time.

    The CPU time is this process's. It adds up over its threads, and hardly depends on what else the machine does.
    """

    wall: float = field(default_factory=time.time)
    cpu: float = field(default_factory=time.process_time)

    def spent(self) -> dict[str, float]:
        """Return the wall and CPU seconds since then."""
        wall, cpu = time.time() - self.wall, time.process_time() - self.cpu
        return {"wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)}

    def after(self, *earlier: dict[str, Any]) -> "Clock":
        """Return a clock that began earlier, by the seconds that earlier parts of the work took.

        Args:
            earlier: what `spent` returned for each part. A part without CPU time counts with its wall time.
        """
        cpu = sum(part.get("cpu_seconds", part["wall_seconds"]) for part in earlier)
        return Clock(self.wall - sum(part["wall_seconds"] for part in earlier), self.cpu - cpu)


def core_seconds(part: dict[str, Any]) -> float:
    """Return the seconds that a part of a result took: CPU time on a CPU, wall time on a GPU.

    A part that was written without CPU time counts with its wall time on each of its threads.
    """
    if not part["device"].startswith("CPU"):
        return part["wall_seconds"]
    return part.get("cpu_seconds", part["wall_seconds"] * part["threads"])


def provenance(clock: Clock) -> dict[str, Any]:
    """Return command, versions, device, wall and CPU seconds since `clock`, peak memory in MB, and commit.

    On a GPU also the precision in which it multiplies matrices of float32.
    """
    import accelerate
    import diffusers
    import peft
    import torch
    import transformers

    packages = (torch, diffusers, transformers, peft, accelerate)
    script = os.path.relpath(sys.argv[0]) if sys.argv[0] else "python"
    cuda = torch.cuda.is_available()
    memory = torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_memory()
    products = {"highest": "float32", "high": "tf32", "medium": "bfloat16"}[torch.get_float32_matmul_precision()]
    return {
        "command": " ".join(["python", script, *sys.argv[1:]]),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {p.__name__: p.__version__ for p in packages},
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})",
        **({"float32_products": products} if cuda else {}),
        "threads": torch.get_num_threads(),
        **clock.spent(),
        "peak_memory_mb": round(memory),
    }


def _peak_memory() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _commit() -> str | None:
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        # Without a lock, which would stop a commit that somebody makes at the same time.
        ask = ["git", "--no-optional-locks", "status", "--porcelain", "-uno"]
        dirty = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
