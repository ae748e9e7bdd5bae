"""End the pocket world's own commands with one line where their input is wrong."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def refusals() -> Iterator[None]:
    """Exit with status 2, and one line on stderr, where the block raises a ValueError or an OSError."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
