"""Turn errors into one line, check settings, seed random numbers, and say which processes share the work.

torch and accelerate are imported where they are used, so that `--help` of a command answers at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def command_line(
    parse: Callable[[Sequence[str] | None], Any],
    prepare: Callable[[Any], Any],
    run: Callable[[Any], Any],
    argv: Sequence[str] | None = None,
    kept: Callable[[Any], tuple[str, str] | None] = lambda config: None,
) -> None:
    """Parse, prepare and run a command: wrong input ends in `prepare`, with one line.

    Args:
        kept: what is there after an interruption (see `interruptions`), by the configuration.
    """
    with refusals():
        config = parse(argv)
        with interruptions(lambda: kept(config), argv):
            quiet()
            set_up_machine()
            ready = prepare(config)
    with failures(), interruptions(lambda: kept(config), argv):
        run(ready)
    leave()


@contextmanager
def interruptions(kept: Callable[[], tuple[str, str] | None], argv: Sequence[str] | None = None) -> Iterator[None]:
    """End the process with two lines where Ctrl-C stops the block: what is kept, and the command that goes on.

    Args:
        kept: returns what is kept, and what the command needs so as to go on from there; None: nothing is kept.
    """
    try:
        yield
    except KeyboardInterrupt:
        what, more = kept() or ("nothing is kept", "")
        given = sys.argv[1:] if argv is None else [*map(str, argv)]
        again = shlex.join(["python", sys.argv[0], *given, *([more] if more and more not in given else [])])
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            again = " ".join(["the same launch", *(["with", more] if more else [])])
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"interrupted: {what}\nto {'go on' if kept() else 'begin again'}: {again}", file=sys.stderr)
        raise SystemExit(130) from None


@contextmanager
def refusals() -> Iterator[None]:
    """End the process with one line where the input is wrong: a ValueError or an OSError of the block."""
    try:
        yield
    except (ValueError, OSError) as error:
        fail(error)


@contextmanager
def failures() -> Iterator[None]:
    """End the process with one line where values are not finite or a disk is full; a ValueError stays a traceback."""
    try:
        yield
    except (FloatingPointError, OSError) as error:
        fail(error)


def fail(error: Exception) -> None:
    """Print the error on one line of stderr, and exit with status 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(2)


def quiet() -> None:
    """Switch off transformers' progress bars, of which each small file that is loaded would show one."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def set_up_machine() -> None:
    """Set what every command computes with: how memory is kept, on a GPU float32 matrices in TF32, and the processes.

    glibc gives a large block back to the system when it is freed, and soon asks for it again. Kept, rollouts on a CPU
    take 5 to 13% less CPU time (SDPO, 16 pairs, 10 steps), updates a few percent, with the same bits and peak.

    On a GPU torch keeps freed memory in segments of fixed sizes, and a tensor that fits no gap takes a new one. Here
    sampling, updates, decoding and scoring have each their own shapes; segments that can grow leave fewer gaps. What
    the environment says goes first.

    TF32 has the ten bits of mantissa that float16 has. Convolutions of float32 use it by default, so that "float32" was
    half of each; the published SDPO code switches it on for matrices, too. A result on a GPU names it.
    """
    import torch

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(parameter, 2**30) or libc.mallopt(parameter, 2**25)  # the most that older versions take
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # read when CUDA starts
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    processes()


def processes() -> PartialState:
    """Return accelerate's state: the device, and which processes share the work, as `accelerate launch` set it up.

    The time-out is a week, because the fastest process waits for the slowest only once, at the end.

    Raises:
        ValueError: this process sees fewer processes than were launched: each would do all the work, in one folder.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(days=7))
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > state.num_processes:
        raise ValueError(
            f"{launched} processes were launched (WORLD_SIZE), and this one sees {state.num_processes}: without a GPU "
            "accelerate leaves them apart; on CPUs, put ACCELERATE_USE_CPU=true before the command"
        )
    if state.device.type == "cpu":
        # Of several processes it is "cpu:0", for which torch copies what lies on "cpu". The copies are aligned in
        # another way, which changes the last bit of what is computed from them.
        state.device = torch.device("cpu")
    return state


def seen(path: Path) -> bool:
    """Return whether the first process sees a file, on all of them: what they do next must be the same.

    On a shared disk, another machine may see a new file later.
    """
    from accelerate.utils import broadcast_object_list

    processes()
    return broadcast_object_list([path.exists()])[0]


def leave() -> None:
    """End the process group, if the launcher began one: the last that a command does."""
    processes().destroy_process_group()


def generator(*key: int | str) -> torch.Generator:
    """Return a generator on the CPU whose random numbers depend on the key alone."""
    import torch

    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def positive(config: Any, *names: str) -> None:
    """Raise a ValueError that names the first of these settings that is not above 0, or not finite."""
    for name in names:
        if not 0 < getattr(config, name) < float("inf"):
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
