"""Shard networks over processes by FSDP 2, as accelerate does it: for several networks, and on CPUs for a rehearsal.

`accelerate launch --use_fsdp`, or --config_file reproduce/launch/fsdp.yaml, asks for it. Each process then holds a part
of weights, gradients and moments. A layer's weights are gathered for its forward and backward alone.
"""

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, OffloadPolicy

from reproduce.training.config import TrainConfig

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def read_plugin(config: TrainConfig) -> FullyShardedDataParallelPlugin:
    """Return what the launcher asked for, with the precision of the settings.

    In half precision a layer computes in it, and gradients are added up in float32.

    Raises:
        ValueError: something that does not train here, with what to set in its place.
    """
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError("fsdp_version 1 cannot clip the gradient of adapters: use fsdp_version: 2")
    if type(plugin.cpu_offload) is not OffloadPolicy:
        raise ValueError("fsdp_offload_params: true keeps averages and moments where they cannot be added: set false")
    if plugin.activation_checkpointing:
        raise ValueError("fsdp_activation_checkpointing: true renames layers: set false, use --gradient-checkpointing")
    if config.optimizer != "adamw":
        raise ValueError(f"optimizer {config.optimizer} takes no sharded weights: use adamw, or no FSDP")
    if config.mixed_precision != "no":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(HALF[config.mixed_precision], torch.float32)
    return plugin


def make_accelerator(config: TrainConfig, **kwargs) -> Accelerator:
    """Return an accelerator that shards, on CPUs too, where by itself it takes DDP in place of FSDP without a word.

    Raises:
        ValueError: something that does not train sharded, or a process that sees no others.
    """
    plugin, state = read_plugin(config), PartialState()
    if state.distributed_type == DistributedType.FSDP:  # of an earlier run: back to what the launcher began
        on_cpu = state.device.type == "cpu"
        state.distributed_type = DistributedType.MULTI_CPU if on_cpu else DistributedType.MULTI_GPU
    accelerator = Accelerator(fsdp_plugin=plugin, **kwargs)
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.fsdp_plugin = plugin
        accelerator.state.distributed_type = state.distributed_type = DistributedType.FSDP
    if accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            "FSDP is asked for, and there is no GPU: on CPUs, put ACCELERATE_USE_CPU=true before the command"
        )
    return accelerator


def shard(accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer | None = None):
    """Shard a network in place; return it, and its optimizer as accelerate prepares it.

    Args:
        optimizer: of its weights; None: the network is frozen.
    """
    if optimizer is None:
        network = fsdp2_prepare_model(accelerator, network)
    else:
        network, optimizer = accelerator.prepare(network, optimizer)
    # Else the outermost layers stay whole after a call without a backward: between calls, weights are sharded.
    network.set_reshard_after_forward(True)
    # At its first call a network fixes the precision that gradients travel in, by what is trainable then. A network
    # that is frozen for that call, as those of a distillation are in turn, would have none.
    network._get_fsdp_state()._lazy_init()
    return network, optimizer


def is_sharded(network: nn.Module) -> bool:
    """Tell whether the network's weights are in parts."""
    return isinstance(network, FSDPModule)
