"""What commands share: an error ends one in one line, and only an error that its user can mend."""

import os

import pytest
import torch

from reproduce import pso_table2, train_online
from reproduce.common import cli
from reproduce.common.cli import failures, generator, processes, refusals
from reproduce.common.provenance import Clock, provenance
from reproduce.harness.command import command


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


def test_processes_that_see_no_others_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    """As accelerate leaves them on a machine without a GPU: each would do all the work, in the same folder."""
    processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "run"
    for main in (
        lambda: train_online.main(["--out", str(out)]),
        lambda: command(pso_table2.TABLE, None, ["--smoke", "--out", str(out)]),
    ):
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and told.count("\n") == 1
        assert told.startswith("error: 2 processes were launched (WORLD_SIZE), and this one sees 1: ")
        assert "put ACCELERATE_USE_CPU=true before the command" in told and not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocators_setting_is_the_environments_if_it_has_one(name, monkeypatch):
    """torch reads the second name first, so that there what is set here goes for nothing."""
    for each in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:128")
    cli.set_up_machine()
    assert os.environ[name] == "max_split_size_mb:128"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    cli.set_up_machine()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


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
