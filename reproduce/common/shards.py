"""Work in chunks that any number of processes shares, and that goes on where it was killed.

A chunk's file appears whole or not at all. What is in it depends on the chunk alone, not on who computed it or when.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from reproduce.common.files import write_tensors


def processes() -> PartialState:
    """Who shares the work, as `accelerate launch` set it up. The fastest waits for the slowest once, at the end."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(days=7))


@dataclass(frozen=True)
class Chunks:
    """Files 000000.safetensors, ... in a folder that all processes see."""

    folder: Path
    count: int

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"

    def fill(
        self, compute: Callable[[int], dict[str, Tensor]], state: PartialState, title: str, offset: int = 0
    ) -> None:
        """This process's share of the chunks that are not there yet.

        Args:
            compute: index -> tensors.
            offset: shifts whose turn it is, so that the chunks left over do not always fall to the same process.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = [i for i in range(self.count) if (i + offset) % state.num_processes == state.process_index]
        for index in tqdm(mine, desc=title, disable=not state.is_main_process):
            if not self.path(index).exists():
                write_tensors(self.path(index), compute(index))

    def read(self) -> Iterator[dict[str, Tensor]]:
        """All chunks in their order.

        Raises:
            FileNotFoundError: one is missing, as where machines do not share the folder.
        """
        for index in range(self.count):
            if not self.path(index).exists():
                raise FileNotFoundError(f"{self.path(index)} is missing: all processes must write to one shared folder")
            yield load_file(self.path(index))


def in_chunks(
    compute: Callable[[int], dict[str, Tensor]], count: int, folder: Path | None, title: str | None
) -> Iterable[dict[str, Tensor]]:
    """What `compute` gives for 0, ..., count - 1, in this order.

    Args:
        folder: of the chunks, which all processes share and which stay; None: this process computes all.
        title: of the progress bar; None: there is none without a folder.
    """
    if folder is None:
        return map(compute, tqdm(range(count), desc=title, disable=title is None))
    chunks, state = Chunks(folder, count), processes()
    chunks.fill(compute, state, title)
    state.wait_for_everyone()
    return chunks.read()
