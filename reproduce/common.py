"""What every script shares: one-line errors, seeds, atomic files, and where a result came from."""

import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]


def command_line(
    parse: Callable[[Sequence[str] | None], Any],
    prepare: Callable[[Any], Any],
    run: Callable[[Any], Any],
    argv: Sequence[str] | None = None,
) -> None:
    """Parse, prepare, run. What is wrong with the input is known after `prepare`, and said in one line."""
    transformers.utils.logging.disable_progress_bar()  # a bar for each small file that is loaded says nothing
    try:
        ready = prepare(parse(argv))
    except (ValueError, OSError) as error:
        fail(error)
    try:
        run(ready)
    except (FloatingPointError, OSError) as error:  # values that are not finite, a full disk
        fail(error)


def fail(error: Exception) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2)


def generator(*key: int | str) -> torch.Generator:
    """Random numbers that depend on the key alone."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def writable_folder(folder: Path) -> None:
    """Make the folder, and write to it once, before any compute."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write to {folder} ({error.strerror}): choose another --out") from None


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """As `write_bytes`, a safetensors file."""
    write_bytes(path, safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def write_bytes(path: Path, content: bytes) -> None:
    """Atomic: a killed run leaves the last whole file, a full disk too.

    Raises:
        OSError: it could not be written, with the path and what to do.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path} ({error.strerror}): free some space, and run again") from error


def write_json(path: Path, content: Any) -> None:
    """Atomic, indented, with lists of numbers on one line each."""
    text = json.dumps(content, indent=1)
    write_text(path, re.sub(r"\[\n[^][{}\"]*\]", lambda found: " ".join(found[0].split()), text) + "\n")


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON."""
    return json.loads(json.dumps(asdict(config), default=str))


def positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} = {getattr(config, name)}: expected more than 0")


def check_finite(what: str, values: Tensor, prompts: Sequence[str], seed: int, step: int) -> None:
    """Raise a FloatingPointError that names the first prompt whose value (B, ...) is not finite."""
    bad = ~values.detach().flatten(1).isfinite().all(1) if values.ndim > 1 else ~values.detach().isfinite()
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise FloatingPointError(
            f"{what} is not finite for prompt {prompts[row]!r} (seed {seed}, step {step}): "
            "lower lr, or look at this prompt's picture"
        )


@dataclass(frozen=True)
class Clock:
    """When some work began, on the wall and in CPU time of this process, which adds up over its threads and hardly
    depends on what else the machine does."""

    wall: float = field(default_factory=time.time)
    cpu: float = field(default_factory=time.process_time)

    def spent(self) -> dict[str, float]:
        wall, cpu = time.time() - self.wall, time.process_time() - self.cpu
        return {"wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)}

    def after(self, *parts: dict[str, Any]) -> "Clock":
        """As if it had begun earlier by what was spent on parts, written down by `spent`; without CPU time by versions
        before there was one, for which one thread stands in."""
        cpu = sum(part.get("cpu_seconds", part["wall_seconds"]) for part in parts)
        return Clock(self.wall - sum(part["wall_seconds"] for part in parts), self.cpu - cpu)


def core_seconds(part: dict[str, Any]) -> float:
    """What a part of a result took: CPU time on a CPU (or wall time by threads, if it was written before there was
    one), else wall time."""
    if not part["device"].startswith("CPU"):
        return part["wall_seconds"]
    return part.get("cpu_seconds", part["wall_seconds"] * part["threads"])


def provenance(clock: Clock) -> dict[str, Any]:
    """Command, versions, device, wall and CPU time, peak memory and commit."""
    import accelerate
    import diffusers
    import peft

    packages = (torch, diffusers, transformers, peft, accelerate)
    script = os.path.relpath(sys.argv[0]) if sys.argv[0] else "python"
    cuda = torch.cuda.is_available()
    memory = torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_memory()
    return {
        "command": " ".join(["python", script, *sys.argv[1:]]),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {p.__name__: p.__version__ for p in packages},
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})",
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
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
