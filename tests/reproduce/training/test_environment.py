"""Variables of accelerate do not change the training: what is taken is said, what would change it is refused."""

import pytest
import torch

from reproduce import train_online
from reproduce.data import sampled_pairs
from reproduce.data.pair_settings import PairConfig


@pytest.mark.parametrize(
    "name,value,told",
    [
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "4",
            "= 4 in the environment: unset it; cut batches by --micro-batch",
        ),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "= bf16 in the environment, and mixed_precision = no: precision is a"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "= fp8 in the environment"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "= INDUCTOR in the environment: unset it; networks are not compiled"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "unset it; launch with DDP, FSDP 2 or DeepSpeed"),
    ],
)
def test_what_would_change_the_training_is_refused(online, monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} .*{told}|{told}"):
        online()


def test_what_a_launcher_always_says_is_no_trouble(online, monkeypatch, capsys):
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_USE_CPU": "true",
    }.items():
        monkeypatch.setenv(name, value)
    setup = online(rounds=1)
    assert "From the environment: ACCELERATE_USE_CPU = true; device cpu.\n" in capsys.readouterr().out
    assert setup.run.accelerator.gradient_accumulation_steps == 1
    list(train_online.train(setup))


@pytest.mark.parametrize("threads", [-1, 0])
def test_threads_are_a_number_of_threads(online, tmp_path, threads):
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match=f"threads = {threads}: expected more than 0"):
        online(threads=threads)
    with pytest.raises(ValueError, match=f"threads = {threads}: expected more than 0"):
        sampled_pairs.prepare(PairConfig(out=tmp_path / "pairs", threads=threads))
    assert torch.get_num_threads() == before
