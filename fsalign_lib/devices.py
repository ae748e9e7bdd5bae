"""Bring small tensors to an accelerator without the host waiting for it.

A plain copy from the host's memory waits until the accelerator has done all that it was asked for before, and so does
every value that is read back. In a loop over steps the accelerator would then idle between network calls.
"""

import functools

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """Return x on a device. From the CPU to a GPU it goes by pinned memory, and the host does not wait."""
    if x.device.type != "cpu":
        return x.to(device)
    pinned = x.contiguous().pin_memory() if device.type == "cuda" else x  # an expanded tensor cannot be pinned
    return pinned.to(device, non_blocking=device.type != "mps")


@functools.lru_cache(maxsize=256)
def table_on(table: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a table of constants on a device in a dtype, copied the first time that it is asked for."""
    return send(table.to(dtype), device)
