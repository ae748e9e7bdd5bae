"""What every script shares: one-line errors, seeds, atomic files, and where a result came from."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor


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
