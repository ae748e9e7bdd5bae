"""Networks in parts (FSDP 2), on two processes, train, are saved and go on as whole ones do on one process."""

import json

import pytest
import torch
from safetensors.torch import load_file

from reproduce import train_distill
from reproduce.common.files import last_checkpoint
from reproduce.data import sampled_pairs as pair_files
from tests import tiny
from tests import training_worker as worker
from tests.launched import launch

UPDATES, STOP = 5, 3
DI_STAR = ["--method", "distar", "--reward", None, "--reward-scale", 0]
DI_PP = ["--method", "dipp", "--reward", "pickscore", "--reward-scale", 10]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tiny models, prompts and pairs; the student starts from another network than the teacher."""
    folder = tmp_path_factory.mktemp("world")
    tiny.build(folder / "teacher")
    tiny.build(folder / "model")
    (folder / "prompts.txt").write_text("\n".join(tiny.PROMPTS))
    return folder


def distill(world, out, method, *more, updates=UPDATES):
    argv = [*method, "--model", world / "model", "--teacher", world / "teacher", "--prompts", world / "prompts.txt"]
    argv += ["--batch", 4, "--micro-batch", 1, "--updates", updates, "--save-every", STOP, "--training", "full"]
    argv += ["--start", None, "--time", 399, "--lr", "1e-5", "--assistant-lr", "1e-5", "--warmup", 1]
    argv += ["--assistant-updates", 1, "--ema", 0.5, "--grad-clip", 1, "--threads", 1, "--out", out, *more]
    return [str(part) for part in argv]


def assert_same(one, two, start=None, within=1e-5):
    """Both left the same files, of the same tensors."""
    one, two = last_checkpoint(one), last_checkpoint(two)
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    moved = 0.0
    for path in one.glob("*.safetensors"):
        expected, found = load_file(path), load_file(two / path.name)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=within, rtol=0)
            if start:
                moved = max(moved, (tensor - start[name]).abs().max().item())
    assert not start or moved > 2e-5, "it did train"
    for path in one.glob("*.pt"):
        expected, found = (torch.load(folder / path.name, weights_only=True) for folder in (one, two))
        assert found["param_groups"] == expected["param_groups"]
        for place, moments in expected["state"].items():
            for name, value in moments.items():
                torch.testing.assert_close(found["state"][place][name], value, atol=1e-4, rtol=1e-3)
    histories = [json.loads((folder / "state.json").read_text())["history"] for folder in (one, two)]
    for a, b in zip(*histories, strict=True):
        assert {k: v for k, v in a.items() if k != "accuracy"} == pytest.approx(
            {k: v for k, v in b.items() if k != "accuracy"}, rel=1e-3, abs=1e-4
        )


def weights(world):
    return load_file(world / "model" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_distar_in_parts_stopped_and_gone_on_with_is_that_of_one_process(world, tmp_path):
    argv = distill(world, tmp_path / "two", DI_STAR)
    assert launch(worker.sharded, [("distill", argv, STOP, False)] * 2) == [0, 0]
    worker.whole("distill", distill(world, tmp_path / "one", DI_STAR))
    assert_same(tmp_path / "one", tmp_path / "two", weights(world))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--gradient-checkpointing",)], ids=["", "checkpointed"])
@pytest.mark.parametrize("method", [DI_PP, DI_STAR], ids=["dipp", "distar"])
def test_distillations_in_parts_are_those_of_one_process(world, tmp_path, method, more):
    assert launch(worker.sharded, [("distill", distill(world, tmp_path / "two", method, *more), None)] * 2) == [0, 0]
    worker.whole("distill", distill(world, tmp_path / "one", method))
    assert_same(tmp_path / "one", tmp_path / "two", weights(world))


@pytest.mark.slow
def test_another_number_of_processes_goes_on_from_a_checkpoint(world, tmp_path):
    """Two sharded processes from one's, and one from two's."""
    for first in (1, 2):
        out = tmp_path / f"{first}-first"
        for processes, updates in ((first, STOP), (3 - first, UPDATES)):
            argv = distill(world, out, DI_STAR, "--resume", updates=updates)
            if processes == 1:
                worker.whole("distill", argv)
            else:
                assert launch(worker.sharded, [("distill", argv, None)] * 2) == [0, 0]
    assert_same(tmp_path / "1-first", tmp_path / "2-first", weights(world))


@pytest.mark.slow
def test_in_bf16_layers_compute_in_half_and_gradients_add_up_in_float32(world, tmp_path):
    """The weights move as those of one process under autocast do, but for rounding."""
    more = ("--mixed-precision", "bf16")
    assert launch(worker.sharded, [("distill", distill(world, tmp_path / "two", DI_STAR, *more), None)] * 2) == [0, 0]
    assert launch(worker.whole, [("distill", distill(world, tmp_path / "one", DI_STAR, *more))]) == [0]
    found, expected = (load_file(last_checkpoint(tmp_path / out) / "kept.safetensors") for out in ("two", "one"))
    start = weights(world)
    moved = [torch.cat([(some[name] - start[name]).flatten() for name in start]) for some in (found, expected)]
    assert torch.cosine_similarity(*moved, dim=0) > 0.9 and all(some.dtype == torch.float32 for some in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("training", ["full", "lora"])
@pytest.mark.parametrize("loop", ["online", "offline"])
def test_other_loops_in_parts_are_those_of_one_process(world, tmp_path, loop, training):
    """Stopped and gone on with; the frozen reference, too, is in parts."""

    def argv(out):
        own = {
            "online": ["--prompts", world / "prompts.txt", "--pairs", 4, "--minibatch", 2, "--rounds", 3]
            + ["--reward", "jpeg-incompressibility", "--save-every", 1],
            "offline": ["--pairs", pairs, "--batch", 4, "--updates", UPDATES, "--save-every", STOP],
        }[loop]
        shared = ["--model", world / "model", "--lr", "1e-5", "--training", training, "--rank", 2, "--threads", 1]
        return [str(part) for part in (*own, *shared, "--out", out)]

    pairs = world / "pairs"
    if loop == "offline" and not pairs.exists():
        given = {"model": str(world / "model"), "prompts": str(world / "prompts.txt")}
        config = pair_files.PairConfig(out=pairs, count=8, batch=4, steps=2, tie=0, **given)
        pair_files.build(pair_files.prepare(config, utility=tiny.brightness))
    stop = {"online": 2, "offline": STOP}[loop]
    assert launch(worker.sharded, [(loop, argv(tmp_path / "two"), stop)] * 2) == [0, 0]
    worker.whole(loop, argv(tmp_path / "one"))
    assert_same(tmp_path / "one", tmp_path / "two", weights(world) if training == "full" else None)


@pytest.mark.parametrize(
    "environment,more,told",
    [
        ({"FSDP_VERSION": "1"}, (), "use fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, (), "fsdp_offload_params: true keeps averages and moments"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, (), "set false, use --gradient-checkpointing"),
        ({}, ("--training", "lora"), "adapters on one network are not sharded; launch with"),
        ({}, (), "ACCELERATE_USE_CPU=true before the command"),
    ],
)
def test_what_cannot_train_in_parts_is_refused_in_a_line(world, tmp_path, monkeypatch, capsys, environment, more, told):
    for name, value in (worker.FSDP | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        train_distill.main(distill(world, tmp_path / "run", DI_STAR, *more))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and told in lines[0]
    assert not last_checkpoint(tmp_path / "run")
