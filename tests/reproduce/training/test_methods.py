"""The registry of methods: what a record may say, what it spares the loop, and the example of CONTRIBUTING."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reproduce.recipes import make_config
from reproduce.train_distill import DistillConfig, check_settings
from reproduce.training.methods import METHODS, NEEDS, Matched, Method, Rollouts, find
from tests import tiny

ROOT = Path(__file__).parents[3]


def nothing(data, config):
    return ()


@pytest.mark.parametrize(
    "loop,needs,told",
    [
        ("onlin", (), "unknown loop 'onlin': choose from online, offline, distill"),
        ("online", ("losers",), "unknown need 'losers' of an online method: choose from reference, advantages"),
        ("offline", ("reference", "looser"), "unknown need 'looser' of an offline method"),
    ],
)
def test_a_record_that_no_loop_understands_is_refused(loop, needs, told):
    with pytest.raises(ValueError, match=told):
        Method(loop, nothing, nothing, needs)


def test_every_need_is_some_method_s():
    for loop, needs in NEEDS.items():
        assert set(needs) == {need for method in METHODS.values() if method.loop == loop for need in method.needs}


def test_a_method_is_found_in_its_own_loop_alone():
    assert find("sdpo", "online") is METHODS["sdpo"]
    with pytest.raises(ValueError, match="unknown method 'sdpo': choose from pso-offline, diffusion-dpo, sft, pso, "):
        find("sdpo", "offline")


def test_losses_are_called_as_they_are():
    """So that what stands on the stack above a loss is the loop."""
    from fsalign_lib.losses import (
        distribution_matching,
        policy_gradient,
        preference,
        reward_difference,
        reward_gradient,
    )

    library = (distribution_matching, policy_gradient, preference, reward_difference, reward_gradient)
    for name, method in METHODS.items():
        if name not in ("sft", "dreambooth"):
            assert any(getattr(module, method.loss.__name__, None) is method.loss for module in library), name


def test_of_a_tie_neither_won():
    generator = torch.Generator().manual_seed(0)
    logp, logp_ref = (torch.randn(2, 2, 3, generator=generator).requires_grad_() for _ in range(2))
    data = Rollouts(logp, logp_ref, logp_ref, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), None, torch.ones(2, 3))
    winner, winner_ref, loser, loser_ref = data.winner_loser()
    assert torch.equal(winner[0], logp[0, 0]) and torch.equal(loser[0], logp[0, 1])
    assert torch.equal(winner[1], winner_ref[1]) and torch.equal(loser[1], loser_ref[1])
    (gradient,) = torch.autograd.grad((winner - loser).sum(), logp)
    assert gradient[0].any() and not gradient[1].any()


def test_scores_are_denoisers_less_x_over_sigma_squared():
    x0, x, assistant, reference = torch.randn(4, 2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    data = Matched(x0, x, torch.tensor([0.5, 2.0]), assistant, reference)
    assert all(a is b for a, b in zip(data.in_form("denoiser"), (assistant, reference, x0), strict=True))
    torch.testing.assert_close(data.in_form("score")[2][1], (x0[1] - x[1]) / 4)


def test_a_method_without_a_reward_needs_no_other_that_has_one(monkeypatch):
    """Its settings name one all the same: it is told so, whatever other methods there are."""
    monkeypatch.setitem(METHODS, "plain", Method("distill", lambda x: (x.mean(), {}), lambda data, c: (data.x,)))
    config = make_config(DistillConfig, "diff-instruct")
    config.method, config.reward, config.reward_scale = "plain", "pickscore", 1.0
    with pytest.raises(ValueError, match="plain has no reward: leave out reward and reward_scale$"):
        check_settings(config)


def example() -> dict[str, str]:
    """The code blocks of CONTRIBUTING's example, by the file at whose end each is to stand."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"[Aa]t the end of `([^`]+)`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2, "two files of the project"
    return dict(blocks)


@pytest.mark.slow
def test_the_example_of_contributing_trains(tmp_path, prompts_file):
    """Two files change, and the command line trains the new method; the reward needs no weights."""
    copy, out = tmp_path / "project", tmp_path / "run"
    ignored = shutil.ignore_patterns("__pycache__", "results", "runs", "*.png")
    shutil.copytree(ROOT / "reproduce", copy / "reproduce", ignore=ignored)
    (copy / "fsalign_lib").symlink_to(ROOT / "fsalign_lib")
    for name, code in example().items():
        with (copy / name).open("a") as file:
            file.write("\n\n" + code)
    argv = ["--method", "raft", "--model", tiny.build(tmp_path / "model"), "--prompts", prompts_file, "--out", out]
    argv += ["--reward", "jpeg-incompressibility", "--rounds", 2, "--pairs", 2, "--minibatch", 2, "--rank", 2]
    done = subprocess.run(
        [sys.executable, copy / "reproduce" / "train_online.py", *map(str, argv)],
        env=os.environ | {"PYTHONPATH": str(copy), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    history = json.loads((out / "result.json").read_text())["history"]
    assert [set(record) for record in history] == [
        {"reward", "ties", "queries", "loss", "gradient", "log_prob", "drift"}
    ] * 2
    assert all(record["loss"] == -record["log_prob"] and record["gradient"] > 0 for record in history)
    trained = load_file(out / "checkpoints" / "000002" / "trained.safetensors")
    assert max(tensor.abs().max() for name, tensor in trained.items() if "lora_B" in name) > 0, "it did train"
