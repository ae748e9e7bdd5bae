"""Split work into chunks that any number of processes shares, and that goes on where it was killed.

A chunk's file appears whole or not at all. Its content depends on the chunk alone, not on who computed it or when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reproduce.common.cli import processes, refusals
from reproduce.common.files import write_tensors

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """Name the files of `count` chunks, 000000.safetensors and on, in a folder that all processes see."""

    folder: Path
    count: int

    def path(self, index: int) -> Path:
        """Return where a chunk's tensors lie."""
        return self.folder / f"{index:06d}.safetensors"

    def fill(
        self, compute: Callable[[int], dict[str, Tensor]], state: PartialState, title: str, offset: int = 0
    ) -> None:
        """Compute and write this process's share of the chunks that are not there yet.

        Args:
            compute: index -> tensors.
            state: the processes that share the chunks, each taking every n-th.
            title: of the progress bar.
            offset: shifts whose turn it is, so that the chunks left over do not always fall to the same process.
        """
        from tqdm import tqdm

        self.folder.mkdir(parents=True, exist_ok=True)
        mine = [i for i in range(self.count) if (i + offset) % state.num_processes == state.process_index]
        with tqdm(mine, desc=title, disable=not state.is_main_process) as bar:  # an error stands below it
            for index in bar:
                if not self.path(index).exists():
                    write_tensors(self.path(index), compute(index))

    def read(self) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of all chunks in their order.

        Raises:
            FileNotFoundError: one is missing, as where machines do not share the folder.
        """
        from fsalign_lib.models.tensor_files import read_tensors

        for index in range(self.count):
            if not self.path(index).exists():
                raise FileNotFoundError(f"{self.path(index)} is missing: all processes must write to one shared folder")
            with refusals():  # of one that was damaged since
                tensors = read_tensors(self.path(index))
            yield tensors


def in_chunks(
    compute: Callable[[int], dict[str, Tensor]], count: int, folder: Path | None, title: str | None
) -> Iterable[dict[str, Tensor]]:
    """Yield the tensors of `compute(0)`, ..., `compute(count - 1)`, in this order.

    Args:
        folder: of the chunks, which all processes share and which stay; None: this process computes all.
        title: of the progress bar; None: there is none without a folder.
    """
    if folder is None:
        return _here(compute, count, title)
    chunks, state = Chunks(folder, count), processes()
    chunks.fill(compute, state, title)
    state.wait_for_everyone()
    return chunks.read()


def _here(compute: Callable[[int], dict[str, Tensor]], count: int, title: str | None) -> Iterator[dict[str, Tensor]]:
    """Compute all chunks in this process, and keep none."""
    from tqdm import tqdm

    with tqdm(range(count), desc=title, disable=title is None) as bar:
        yield from map(compute, bar)
