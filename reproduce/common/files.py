"""Write files whole or not at all."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor


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


def last_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = [p for p in (out / "checkpoints").glob("*") if re.fullmatch(r"\d+", p.name)]
    return max(found, key=lambda p: int(p.name), default=None)
