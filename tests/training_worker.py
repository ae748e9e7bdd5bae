"""Trainings in processes of their own, for test_processes.py and test_sharding.py in tests/reproduce/training."""

import itertools
import os

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from reproduce import train_distill, train_offline, train_online
from reproduce.training.config import parse_training
from tests import tiny

# What `accelerate launch --config_file reproduce/launch/fsdp.yaml` sets.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
LOOPS = {
    "distill": (train_distill, train_distill.DistillConfig, "distar"),
    "online": (train_online, train_online.OnlineConfig, "pso-online"),
    "offline": (train_offline, train_offline.OfflineConfig, "pso-offline"),
}


def each_loop(online: list[list[str]], distill: list[list[str]], offline: list[str]) -> None:
    """Runs, one after the other, each to its end: the process group is the command's."""
    for kind, loop, commands, method in (
        (train_distill.DistillConfig, train_distill, distill, "distar"),
        (train_online.OnlineConfig, train_online, online, "pso-online"),
    ):
        for argv in commands:
            loop.run(loop.prepare(parse_training(kind, method, None)(argv)))
    train_offline.main(offline)


def prepared(name: str, argv: list[str]):
    """A loop, and what it needs for a run; a picture's brightness is the reward of a distillation."""
    loop, kind, method = LOOPS[name]
    config = parse_training(kind, method, None)(argv)
    reward = {"reward": tiny.brightness} if name == "distill" and config.reward else {}
    return loop, loop.prepare(config, **reward)


def whole(name: str, argv: list[str]) -> None:
    """A run on whole networks."""
    loop, setup = prepared(name, argv)
    loop.run(setup)


def sharded(name: str, argv: list[str], stop: int | None, by_layer: bool = True) -> None:
    """A run on networks in parts, stopped after a checkpoint and gone on with.

    Args:
        by_layer: as the launch file has it; else each network is gathered at once, which takes a tenth of the time.
    """
    os.environ.update(FSDP | ({} if by_layer else {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}))
    if stop:
        loop, setup = prepared(name, argv)
        list(itertools.islice(loop.train(setup), stop))
        torch.distributed.barrier()
        argv = [*argv, "--resume"]
    loop, setup = prepared(name, argv)
    assert not stop or setup.run.start == stop
    loop.run(setup)
    trio = [setup.trio.student, setup.trio.assistant, setup.trio.teacher] if name == "distill" else [setup.model]
    frozen = setup.model.frozen_copy
    for unet in [model.unet for model in trio] + ([frozen] if frozen else []):
        assert isinstance(unet, FSDPModule)
        assert all(isinstance(p, DTensor) for p in unet.parameters()), "none is whole between calls"
