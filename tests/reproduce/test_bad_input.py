"""Bad input at the command lines: one line that names the value and the remedy, exit code 2, before any compute."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from fsalign_lib import rewards
from fsalign_lib.models import presets
from reproduce import build_pairs as pair_command
from reproduce import demo, evaluate, pso_table2, train_offline, train_online
from reproduce.benchmarks import step_cost
from reproduce.data import sampled_pairs as pair_files
from reproduce.harness.command import command
from reproduce.training.methods import METHODS, Method
from tests import tiny

LOAD_REWARD, POCKET_UTILITY = rewards.load_reward, pair_files.pocket_utility


def table_main(argv):
    """Call a table's command line."""
    command(pso_table2.TABLE, None, argv)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model of the same shape with other weights."""
    return tiny.build(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(tiny.PROMPTS))
    return path


@pytest.fixture
def pair_folder(tmp_path):
    out = tmp_path / "pairs"
    out.mkdir()
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("RGB", (32, 32), (80 * i, 0, 0)).save(out / name)
    write_pairs(out, {"winner": "a.png", "loser": "b.png"}, {"winner": "c.png", "loser": "a.png"})
    return out


def write_pairs(out, *rows):
    (out / "pairs.jsonl").write_text("\n".join(json.dumps({"prompt": "a cat"} | row) for row in rows))


@pytest.fixture
def calls(monkeypatch):
    """The network calls that were made: of the UNet, and of the autoencoder."""
    made = []
    for network, method in (
        (diffusers.UNet2DConditionModel, "forward"),
        (diffusers.AutoencoderKL, "encode"),
        (diffusers.AutoencoderKL, "decode"),
    ):
        original = getattr(network, method)

        def counted(self, *args, _original=original, **kwargs):
            made.append(type(self).__name__)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(network, method, counted)
    return made


@pytest.fixture
def bright(monkeypatch):
    """Every reward loads, and is the brightness: no weights are needed."""
    for module in (rewards, train_online):
        monkeypatch.setattr(module, "load_reward", lambda name, **_: tiny.brightness)


@pytest.fixture
def refused(capsys, calls):
    """Runs a command line that must be refused; returns what it said."""

    def run(main, *argv, before_compute=True):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in argv])
        err = capsys.readouterr().err
        assert stop.value.code == 2, err
        assert "Traceback" not in err
        told = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and err.rstrip().endswith(told[0]), err
        if before_compute:
            assert err.strip() == told[0], "nothing but the one line"
            assert calls == [], "no network was called"
        return told[0]

    return run


@pytest.fixture
def online(refused, folder, prompts, tmp_path, bright):
    def run(*argv, **kwargs):
        usual = {"--model": folder, "--prompts": prompts, "--out": tmp_path / "run", "--rounds": 2, "--pairs": 2}
        return refused(train_online.main, *merge(usual, argv), **kwargs)

    return run


@pytest.fixture
def offline(refused, folder, pair_folder, tmp_path):
    def run(*argv, **kwargs):
        usual = {"--model": folder, "--pairs": pair_folder, "--out": tmp_path / "run", "--updates": 2, "--batch": 2}
        return refused(train_offline.main, *merge(usual, argv), **kwargs)

    return run


@pytest.fixture
def build_pairs(refused, folder, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_files, "pocket_utility", lambda taste: tiny.brightness)

    def run(*argv, **kwargs):
        usual = {"--model": folder, "--prompts": prompts, "--out": tmp_path / "new-pairs", "--count": 2}
        return refused(pair_command.main, *merge(usual, argv), **kwargs)

    return run


@pytest.fixture
def evaluation(refused, folder, prompts, tmp_path):
    def run(*argv, **kwargs):
        usual = {"--model": folder, "--prompts": prompts, "--out": tmp_path / "run" / "scores.json"}
        usual |= {"--metrics": "sharpness", "--steps": 2, "--seeds": 2}
        return refused(evaluate.main, *merge(usual, argv), **kwargs)

    return run


def merge(usual, argv):
    """The usual options, with those given in place of the same ones."""
    options = usual | dict(zip(argv[::2], argv[1::2], strict=True))
    return [part for option in options.items() for part in option]


@pytest.fixture(params=["online", "offline", "build_pairs", "evaluation"])
def script(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["online", "offline"])
def training(request):
    return request.getfixturevalue(request.param)


# models, methods, rewards


def test_unknown_model(script):
    assert "unknown model 'sd-trubo': choose from pocket-turbo, pocket-teacher" in script("--model", "sd-trubo")


def test_model_folder_without_its_parts(script, tmp_path):
    (tmp_path / "empty").mkdir()
    told = script("--model", tmp_path / "empty")
    assert f"{tmp_path / 'empty'}" in told and "has no scheduler/: expected scheduler, text_encoder" in told


def test_unknown_method(training):
    assert "unknown method 'pso-onlin': choose from" in training("--method", "pso-onlin")


def test_unknown_scale(training):
    assert "unknown scale 'poket': choose from pocket, full" in training("--scale", "poket")


def test_unknown_reward(online, monkeypatch):
    monkeypatch.setattr(train_online, "load_reward", LOAD_REWARD)
    assert "unknown reward 'picscore'; choose one of pickscore, clipscore" in online("--reward", "picscore")


def test_unknown_taste(build_pairs, monkeypatch):
    monkeypatch.setattr(pair_files, "pocket_utility", POCKET_UTILITY)
    assert "unknown taste 'sweet': choose from pickscore" in build_pairs("--taste", "sweet")


@pytest.fixture(params=["online", "offline", "evaluation"])
def takes_a_kernel(request):
    return request.getfixturevalue(request.param)


def test_unknown_kernel(takes_a_kernel):
    assert "unknown kernel 'heun': expected one of renoise, euler-ancestral" in takes_a_kernel("--kernel", "heun")


def test_unknown_metric(evaluation):
    assert "unknown metric 'fd': choose from pickscore, clipscore" in evaluation("--metrics", "fd")
    told = evaluation("--metrics", "hps-2.1")
    assert "metric 'hps-2.1' is of full scale only: choose from pickscore, clipscore" in told
    told = evaluation("--metrics", "accuracy", "--scale", "full")
    assert "metric 'accuracy' is of pocket scale only: choose from pickscore, clipscore" in told


def test_unknown_scale_of_an_evaluation(evaluation):
    assert "unknown scale 'poket': choose from pocket, full" in evaluation("--scale", "poket")


def test_references_that_cannot_be_had(evaluation, tmp_path):
    assert "fid at full scale needs --reference: a folder" in evaluation("--metrics", "fid", "--scale", "full")
    told = evaluation("--reference", tmp_path)
    assert "--reference is for the metric fid: add fid to --metrics, or leave --reference out" in told
    for name in ("none", "none.npz"):
        told = evaluation("--metrics", "fid", "--reference", tmp_path / name)
        assert f"reference '{tmp_path / name}' does not exist: give statistics or a folder of pictures" in told
    (tmp_path / "few").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "few" / "a.png")
    told = evaluation("--metrics", "fid", "--reference", tmp_path / "few")
    assert f"reference '{tmp_path / 'few'}' has 1 pictures: expected 2 or more" in told
    statistics = tmp_path / "few" / "other.npz"
    np.savez(statistics, mu=np.zeros(3), sigma=np.eye(3))
    told = evaluation("--metrics", "fid", "--reference", statistics)
    assert f"reference '{statistics}' has a mean of shape (3,)" in told and "expected (192,) and (192, 192)" in told


def test_an_evaluation_that_is_no_json_file(evaluation, tmp_path):
    assert "expected a file that ends in .json" in evaluation("--out", tmp_path / "run" / "scores.html")


def test_metrics_that_cannot_be_had(evaluation, prompts):
    assert "diversity needs 2 seeds or more" in evaluation("--metrics", "diversity", "--seeds", 1)
    prompts.write_text("a cat\na cat that reads a newspaper")
    told = evaluation("--metrics", "accuracy")
    assert "prompt 'a cat that reads a newspaper' is not in the pocket world's grammar; write it like" in told


def test_weights_that_are_not_there(refused, tmp_path, monkeypatch):
    preset = presets.Preset(tmp_path, branch="student", kernel="euler-ancestral")
    monkeypatch.setattr(presets, "POCKET", tmp_path)
    monkeypatch.setitem(presets.PRESETS, "pocket-turbo", preset)
    for main, argv in ((demo.main, ["--out", tmp_path / "out"]), (step_cost.main, [])):
        told = refused(main, *argv)
        assert "model 'pocket-turbo': its weights are not in" in told and "python -m fsalign_lib.pocket.build" in told


# steps and other numbers


@pytest.mark.parametrize("steps", [0, 2000])
def test_step_count_that_no_kernel_has(script, steps):
    told = script("--steps", steps)
    assert f"num_steps = {steps}" in told and "expected an integer from 1 to 1000" in told


def test_one_step_has_nothing_to_train(training):
    told = training("--steps", 1)
    assert "num_steps = 1 has no stochastic step" in told and "use 2 steps or more to train" in told


@pytest.mark.parametrize("name,value", [("--pairs", 0), ("--rounds", -1), ("--lr", 0), ("--beta", -5)])
def test_numbers_that_must_be_positive(online, name, value):
    told = online(name, value)
    assert name[2:] in told and str(value) in told and "expected more than 0" in told


@pytest.mark.parametrize("name,value", [("--rounds", 0), ("--pairs", -3), ("--lr", 0)])
def test_numbers_of_the_demo(refused, tmp_path, name, value):
    told = refused(demo.main, name, value, "--out", tmp_path / "out")
    assert told.startswith(f"error: {name[2:]} = {value}") and "expected more than 0" in told


def test_numbers_of_the_benchmark(refused):
    assert "repetitions = 0: expected more than 0" in refused(step_cost.main, "--repetitions", 0)


def test_seeds_that_the_table_lacks(refused, tmp_path):
    assert "seeds [99]: the table has the training seeds" in refused(table_main, "--seeds", 99, "--out", tmp_path)


# prompts


@pytest.fixture(params=["online", "build_pairs", "evaluation"])
def reads_prompts(request):
    return request.getfixturevalue(request.param)


def test_prompts_that_cannot_be_read(reads_prompts, tmp_path):
    path = tmp_path / "some.txt"
    assert f"prompts file '{path}' does not exist: give a text file" in reads_prompts("--prompts", path)
    path.write_text(" \n\n")
    assert f"prompts file '{path}' is empty: write a prompt a line" in reads_prompts("--prompts", path)
    path.write_bytes(b"\xff\xfe\x00")
    told = reads_prompts("--prompts", path)
    assert f"{path} is not UTF-8 text (byte 0xff): save it as UTF-8, or give another file" in told
    assert f"{tmp_path}" in reads_prompts("--prompts", tmp_path)
    assert "unknown prompt set 'trian'; choose one of animals, train" in reads_prompts("--prompts", "trian")


def test_prompts_without_permission_to_read(reads_prompts, prompts, monkeypatch):
    """As for a user who is not root."""
    opened = Path.open

    def locked(path, *args, **kwargs):
        if path == prompts:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", locked)
    told = reads_prompts()
    assert f"prompts file '{prompts}' cannot be read (Permission denied)" in told


def test_prompts_that_the_judge_cannot_judge(build_pairs, prompts):
    prompts.write_text("a cat\na cat that reads a newspaper")
    told = build_pairs()
    assert "prompt 'a cat that reads a newspaper' is not in the pocket world's grammar; write it like" in told


# pairs


def test_no_pairs(offline, tmp_path):
    told = offline("--pairs", tmp_path / "nowhere")
    assert f"no pairs in {tmp_path / 'nowhere'}" in told and "reproduce/build_pairs.py" in told


def test_pairs_that_cannot_be_used(offline, pair_folder):
    write_pairs(pair_folder, {"winner": "a.png", "loser": "b.png"}, {"winner": "a.png", "loser": "d.png"})
    assert "pairs.jsonl line 2: picture 'd.png' is missing: restore it or drop the line" in offline()
    write_pairs(pair_folder, {"winner": "a.png", "loser": "b.png", "label": 0.5})
    assert "pairs.jsonl line 1: a tie (label 0.5, 'a cat'): remove ties" in offline()
    write_pairs(pair_folder, {"winner": "a.png"})
    assert 'pairs.jsonl line 1: expected {"prompt": ..., "winner": ..., "loser": ...}' in offline()
    write_pairs(pair_folder)
    assert "pairs.jsonl is empty: write a pair a line" in offline()


def test_pictures_of_mixed_sizes(offline, pair_folder):
    Image.new("RGB", (48, 32)).save(pair_folder / "c.png")
    told = offline()
    assert f"{pair_folder / 'c.png'} is 48x32: the model draws 32x32: resize it or drop its pair" in told


def test_a_picture_that_is_none(offline, pair_folder):
    (pair_folder / "b.png").write_text("no picture")
    assert f"{pair_folder / 'b.png'} is not a picture: replace it or drop its pair" in offline()
    Image.new("RGB", (32, 32), (1, 2, 3)).save(pair_folder / "b.png")
    whole = (pair_folder / "b.png").read_bytes()
    (pair_folder / "b.png").write_bytes(whole[: len(whole) // 2])
    assert f"{pair_folder / 'b.png'} is not a picture: replace it or drop its pair" in offline()


# folders and checkpoints


def test_no_permission_to_write(script, tmp_path):
    """A folder below a file: nobody can make it, not even root."""
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    told = script("--out", out)
    assert f"cannot write to {tmp_path / 'file'}" in told and "choose another --out" in told


@pytest.mark.parametrize("main", [demo.main, table_main])
def test_no_permission_to_write_whole_tables(refused, tmp_path, main):
    (tmp_path / "file").write_text("")
    told = refused(main, "--out", tmp_path / "file" / "out")
    assert f"cannot write to {tmp_path / 'file' / 'out'}" in told and "choose another --out" in told


def test_a_folder_where_a_file_is_written(evaluation, tmp_path):
    told = evaluation("--out", tmp_path)
    assert f"{tmp_path} is a folder" in told and "name a file with --out" in told


def test_a_folder_that_holds_something_already(online, build_pairs, pair_folder, tmp_path, folder, prompts):
    checkpoint = tmp_path / "run" / "checkpoints" / "000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    assert f"{tmp_path / 'run'} holds a run already: pass --resume" in online()
    assert f"{pair_folder} holds pairs already: choose another --out" in build_pairs("--out", pair_folder)


def test_resuming_the_run_of_another_model(refused, folder, other, prompts, tmp_path, bright, calls):
    argv = ["--prompts", prompts, "--out", tmp_path / "run", "--pairs", 1, "--minibatch", 1, "--rounds", 1]
    train_online.main([str(a) for a in ["--model", folder, *argv]])
    calls.clear()
    told = refused(train_online.main, "--model", other, *argv, "--resume")
    assert f"was run with model = '{folder}' (now '{other}')" in told and "another --out" in told
    moved = tmp_path / "here"
    moved.symlink_to(folder)
    state = next((tmp_path / "run" / "checkpoints").glob("*/state.json"))
    state.write_text(state.read_text().replace(str(folder), str(moved)))
    moved.unlink()
    moved.symlink_to(other)  # the name is the same, the weights are not
    told = refused(train_online.main, "--model", moved, *argv, "--resume")
    assert "was trained from" in told and "load the model that it belongs to" in told


def test_a_checkpoint_of_another_model(evaluation, other, folder, prompts, tmp_path, bright, calls):
    argv = ["--model", folder, "--prompts", prompts, "--pairs", 1, "--minibatch", 1, "--rounds", 1]
    train_online.main([str(a) for a in [*argv, "--out", tmp_path / "trained"]])
    assert {"UNet2DConditionModel", "AutoencoderKL"} <= set(calls), "network calls are seen when there are any"
    calls.clear()
    told = evaluation("--model", other, "--checkpoint", tmp_path / "trained")
    assert f"was trained from '{folder}'" in told and f"and not from '{other}'" in told
    assert "load the model that it belongs to" in told
    told = evaluation("--checkpoint", tmp_path / "nowhere")
    assert f"no trained weights in {tmp_path / 'nowhere'}: expected trained.json" in told


# values that are not finite: known only once they are there


def test_reward_that_is_not_finite(online, monkeypatch):
    def broken(images, prompts):
        return torch.tensor([float("inf") if p == "a dog" else 1.0 for p in prompts])

    monkeypatch.setattr(train_online, "load_reward", lambda name, **_: broken)
    told = online("--pairs", len(tiny.PROMPTS), "--seed", 7, before_compute=False)
    assert "reward pickscore is not finite for prompt 'a dog' (seed 7, step 0): lower lr" in told


def test_training_that_goes_out_of_bounds(training):
    """An absurd step leaves weights that are not finite: the next round or update says so."""
    told = training("--lr", "1e30", before_compute=False)
    assert "not finite for prompt '" in told and "(seed 0, step 1): lower lr" in told


def test_a_loss_that_is_not_finite(online, monkeypatch):
    broken = Method("online", lambda logp: (logp.sum() * float("nan"), {}), lambda data, c: (data.logp,))
    monkeypatch.setitem(METHODS, "pso-online", broken)
    told = online(before_compute=False)
    assert "the loss is nan (seed 0, step 0, prompts 'a " in told and "lower lr" in told
