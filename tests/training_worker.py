"""Trainings in processes of their own, for tests/reproduce/training/test_processes.py."""

import dataclasses
import itertools

import torch
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from reproduce import train_distill, train_offline, train_online
from reproduce.training.config import parse_training
from reproduce.training.run import Run, make_optimizer


def each_loop(online: list[list[str]], distill: list[list[str]], offline: list[str]) -> None:
    """Runs, one after the other, each to its end: the process group is the command's."""
    for kind, loop, commands, method in (
        (train_distill.DistillConfig, train_distill, distill, "distar"),
        (train_online.OnlineConfig, train_online, online, "pso-online"),
    ):
        for argv in commands:
            loop.run(loop.prepare(parse_training(kind, method, None)(argv)))
    train_offline.main(offline)


class ShardedRun(Run):
    """On tensors that torch's FSDP 2 shards: accelerate does that on GPUs alone, so the network is wrapped here."""

    def _prepare(self, model, optimizer):
        mesh = init_device_mesh("cpu", (self.accelerator.num_processes,))
        fully_shard(model.unet.mid_block, mesh=mesh)
        fully_shard(model.unet, mesh=mesh)
        parameters = list(model.trained_parameters().values())
        assert all(isinstance(p, DTensor) for p in parameters)
        return model.unet, self.accelerator.prepare(make_optimizer(self.config, parameters))


def sharded(argv: list[str]) -> None:
    """Offline training, stopped after a checkpoint and gone on with."""
    train_offline.Run = ShardedRun
    config = parse_training(train_offline.OfflineConfig, "pso-offline", None)(argv)
    list(itertools.islice(train_offline.train(train_offline.prepare(config)), 3))
    torch.distributed.barrier()
    setup = train_offline.prepare(dataclasses.replace(config, resume=True))
    assert setup.run.start == 3
    train_offline.run(setup)
