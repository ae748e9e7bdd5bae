"""What commands share: an error ends one in one line, and only an error that its user can mend."""

import pytest
import torch

from reproduce.common import cli
from reproduce.common.cli import failures, generator, processes, refusals
from reproduce.common.provenance import Clock, provenance


@pytest.mark.parametrize(
    ("block", "error", "ends"),
    [
        (refusals, ValueError("steps = 0:\nexpected more"), True),
        (refusals, FileNotFoundError("no such file"), True),
        (refusals, FloatingPointError("nan"), False),
        (failures, FloatingPointError("loss is\nnan"), True),
        (failures, OSError("disk full"), True),
        (failures, ValueError("a fault of ours"), False),
    ],
)
def test_an_error_that_can_be_mended_is_one_line(block, error, ends, capsys):
    with pytest.raises(SystemExit if ends else type(error)) as stopped, block():
        raise error
    message = capsys.readouterr().err
    if ends:
        assert stopped.value.code == 2 and message == f"error: {' '.join(str(error).split())}\n"
    else:
        assert message == "", "the traceback is left to Python"


def test_random_numbers_depend_on_the_key_alone():
    first = torch.randn(3, generator=generator("pairs", 0, 1))
    torch.randn(1)
    assert torch.equal(first, torch.randn(3, generator=generator("pairs", 0, 1)))
    assert not torch.equal(first, torch.randn(3, generator=generator("pairs", 0, 2)))
    assert not torch.equal(first, torch.randn(3, generator=generator("pairs", 1, 1)))


def test_one_process_is_the_main_one():
    state = processes()
    assert state.is_main_process and state.num_processes == 1 and state.device.type in ("cpu", "cuda")


def test_float32_matrices_are_in_tf32_on_a_gpu_alone_and_the_result_says_so(monkeypatch):
    before = torch.get_float32_matmul_precision()
    try:
        cli.set_up_machine()
        assert torch.get_float32_matmul_precision() == before == "highest", "the pocket world's numbers stay"
        assert "float32_products" not in provenance(Clock())
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        cli.set_up_machine()
        assert provenance(Clock())["float32_products"] == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
