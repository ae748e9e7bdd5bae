"""Sending tensors to an accelerator, where none is at hand: what CUDA refuses must not reach it."""

import pytest
import torch
from torch import Tensor

from fsalign_lib.devices import send


@pytest.fixture
def cuda(monkeypatch):
    """Stand in for CUDA: pinning refuses a tensor whose elements share memory, as CUDA does; copies stay on the CPU."""

    def pin(x: Tensor) -> Tensor:
        if x.numel() > 1 and 0 in (s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
            raise RuntimeError("more than one element of the written-to tensor refers to a single memory location")
        return x.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", lambda x, device, **_: x)
    return torch.device("cuda")


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.arange(3).expand(4, 3), id="expanded"),
        pytest.param(torch.tensor(7).expand(5), id="a number for all"),
        pytest.param(torch.arange(12).view(3, 4).T, id="transposed"),
    ],
)
def test_expanded_and_transposed_tensors_are_sent(cuda, x):
    torch.testing.assert_close(send(x, cuda), x)


def test_the_stand_in_refuses_what_cuda_refuses(cuda):
    with pytest.raises(RuntimeError, match="single"):
        torch.arange(3).expand(4, 3).pin_memory()
