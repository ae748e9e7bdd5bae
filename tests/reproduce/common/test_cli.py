"""What commands share: an error ends one in one line, and only an error that its user can mend."""

import pytest
import torch

from reproduce.common.cli import failures, generator, processes, refusals


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
