"""Write files whole or not at all, remove those that were written, and hold a folder for one command at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def writable_folder(folder: Path) -> None:
    """Make the folder, and write to it once, so that a folder that refuses is known before any compute.

    Raises:
        PermissionError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write to {folder} ({error.strerror}): choose another --out") from None


CLAIMS: dict[Path, IO[str]] = {}  # the locks' files that this process holds


def lock_of(held: Path) -> Path:
    """Return the file that says who holds a folder or a file: it is hidden, in the folder or beside the file."""
    held = held.resolve()
    return held / ".lock" if held.is_dir() else held.with_name(f".{held.name}.lock")


def claim(held: Path) -> None:
    """Hold a folder or a file until `release`, or until this process ends, however it ends: the lock is the system's.

    Of several processes that a launcher began, the first holds it for all. On a disk without locks there is none.

    Args:
        held: a folder that is there, or a file that is or will be there.

    Raises:
        BlockingIOError: another process holds it; that process is named.
    """
    lock = lock_of(held)
    if int(os.environ.get("RANK", "0")) or lock in CLAIMS:
        return
    file = lock.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())):
            file.close()
            return claim(held)  # whoever held it has let go of it, and of the lock's file, since this was opened
    except BlockingIOError:
        file.seek(0)
        first = " ".join(file.read().split()) or "another process"
        file.close()
        raise BlockingIOError(f"{held} is in use by {first}: wait until it ends, or choose another --out") from None
    except OSError:
        file.close()
        return
    file.truncate(0)
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {began} ({' '.join(sys.argv)})\n")
    file.flush()
    CLAIMS[lock] = file


def release(held: Path) -> None:
    """Let go of a folder or a file that this process holds, and remove the lock's file."""
    lock = lock_of(held)
    if file := CLAIMS.pop(lock, None):
        lock.unlink(missing_ok=True)
        file.close()


def remove_written(folder: Path, *written: str) -> None:
    """Remove files and folders of these names from a folder, and the folder itself if nothing else lies in it."""
    for name in written:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
        else:
            (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


PART = re.compile(r"\.?(\d+\.(safetensors|json)|settings\.json)(\.\d+)?")  # and what a killed process left of one


def remove_parts(folder: Path) -> None:
    """Remove the parts of some work from a folder and the folders in it, and each of these if nothing else is there."""
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:  # what lies within a folder comes before it
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif path.is_file() and PART.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Write a safetensors file, with `about` in its header, as `write_bytes` does."""
    import safetensors.torch

    write_bytes(path, safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, about))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: a killed run or a full disk leaves the last whole file.

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
    """Write indented JSON, with each list of numbers on a line of its own, as `write_bytes` does."""
    text = json.dumps(content, indent=1)
    write_text(path, re.sub(r"\[\n[^][{}\"]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")


def stamp(path: Path) -> list[int]:
    """Return what tells that a file may have changed, without reading it: size, times of content and of its entry."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def sha256(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(values: Any) -> str:
    """Return twelve hex digits of a SHA-256 of a value, others than JSON has by their texts."""
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:12]


def plain(config: Any) -> dict[str, Any]:
    """Turn a configuration into values that JSON has; others become their texts."""
    return json.loads(json.dumps(asdict(config), default=str))


def last_checkpoint(out: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, or None."""
    whole = [p for p in (out / "checkpoints").glob("*") if re.fullmatch(r"\d+", p.name) and (p / "state.json").exists()]
    return max(whole, key=lambda p: int(p.name), default=None)
