"""Processes as `accelerate launch --cpu` starts them, forked from one server that imports everything once."""

import faulthandler
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
WORKERS = [
    *("tests.evaluation_worker", "tests.training_worker", "tests.table_worker"),
    "reproduce.benchmarks.kill_and_resume",
]


def launch(target: Callable, arguments: Sequence[tuple]) -> list[int]:
    """Exit codes of `target(*arguments[rank])`, a process for each."""
    started = start(target, arguments)
    for process in started:
        process.join(600)
        assert process.exitcode is not None, "it hangs"
    return [process.exitcode for process in started]


def start(target: Callable, arguments: Sequence[tuple]) -> list[multiprocessing.Process]:
    """Start what `launch` waits for."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WORKERS)
    started = [
        context.Process(target=_run, args=(environment, target, some))
        for environment, some in zip(_environments(len(arguments)), arguments, strict=True)
    ]
    # The server starts with the first process, and does not get this one's path otherwise.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        for process in started:
            process.start()
    return started


def _environments(number: int) -> list[dict[str, str]]:
    """What the launcher sets; nothing for a single process."""
    if number == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    shared["ACCELERATE_USE_CPU"] = "true"
    ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(number)]
    return [{name: str(value) for name, value in each.items()} for each in ranks]


def _run(environment: dict[str, str], target: Callable, arguments: tuple) -> None:
    faulthandler.enable()  # a process that dies outside Python says where
    os.environ.update(environment)
    torch.set_num_threads(1)
    target(*arguments)
