"""Two processes train as one does; a training that is killed again and again ends as one that was left in peace."""

import json

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from fsalign_lib.models.load import load
from reproduce import train_distill, train_offline, train_online
from reproduce.benchmarks import kill_and_resume
from reproduce.common.cli import processes
from reproduce.common.files import last_checkpoint
from reproduce.data import sampled_pairs as pair_files
from tests import tiny
from tests import training_worker as worker
from tests.launched import launch


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, prompts and pairs."""
    folder = tmp_path_factory.mktemp("world")
    model = tiny.build(folder / "model")
    (folder / "prompts.txt").write_text("\n".join(tiny.PROMPTS))
    config = pair_files.PairConfig(
        out=folder / "pairs", model=str(model), prompts=str(folder / "prompts.txt"), count=8, batch=4, steps=2, tie=0
    )
    pair_files.build(pair_files.prepare(config, utility=tiny.brightness))
    return folder


def commands(world, out):
    """Five updates or more of each loop, by command line; online ones in two rounds of three minibatches, each of one
    update for PSO and of four for SDPO."""
    shared = ["--model", world / "model", "--lr", "1e-5", "--threads", 1]
    online = [
        *shared,
        "--prompts",
        world / "prompts.txt",
        "--reward",
        "jpeg-incompressibility",
        "--out",
        out / "online",
    ]
    online += ["--pairs", 6, "--minibatch", 2, "--rounds", 2, "--training", "lora", "--rank", 2]
    offline = [*shared, "--pairs", world / "pairs", "--batch", 4, "--updates", 5, "--out", out / "offline"]
    at = online.index("--out") + 1
    sdpo = [*online[:at], out / "sdpo", *online[at + 1 :], "--method", "sdpo", "--steps", 4, "--min-count", 2]
    distill = [*shared, "--method", "distar", "--teacher", world / "model", "--prompts", world / "prompts.txt"]
    distill += ["--batch", 4, "--updates", 5, "--start", None, "--time", 399, "--assistant-lr", "1e-5", "--warmup", 2]
    distill += ["--assistant-updates", 1, "--reward", None, "--reward-scale", 0, "--micro-batch", 1, "--ema", 0.5]
    copies, adapters = [
        [*distill, "--out", out / f"distill-{training}", "--training", training, "--rank", 2]
        for training in ("full", "lora")
    ]
    return [[str(part) for part in argv] for argv in (online, sdpo, copies, adapters, offline)]


KINDS = ["online", "sdpo", "distill-full", "distill-lora", "offline"]


@pytest.fixture(scope="module")
def by_two(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    *online, copies, adapters, offline = commands(world, out)
    assert launch(worker.each_loop, [(online, [copies, adapters], offline)] * 2) == [0, 0]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(world, by_two, tmp_path, kind):
    loops = {"offline": train_offline, "distill": train_distill}
    loops.get(kind.split("-")[0], train_online).main(commands(world, tmp_path)[KINDS.index(kind)])
    one, two = (last_checkpoint(out / kind) for out in (tmp_path, by_two))
    assert one.name == two.name
    start = load(world / "model")
    for path in sorted(one.glob("*.safetensors")):
        if kind == "sdpo" and path.name == "kept.safetensors":
            continue  # rewards
        expected, found = (load_file(folder / path.name) for folder in (one, two))
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0)
        lora = [n for n in expected if "lora_B" in n]
        moved = {n: 0 for n in lora} if lora else start.unet.state_dict()
        assert max((expected[n] - w).abs().max() for n, w in moved.items() if n in expected) > 2e-5, "it did train"
    histories = [json.loads((folder / "state.json").read_text())["history"] for folder in (one, two)]
    for a, b in zip(*histories, strict=True):
        for record in (a, b):
            record.pop("accuracy", None)  # it counts signs of margins, which are rounding errors at the start
        assert a == pytest.approx(b, abs=1e-4)


def test_a_batch_must_divide_among_the_processes(world, tmp_path, monkeypatch, capsys):
    processes()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 4)
    online, *_, distill, offline = commands(world, tmp_path)
    for main, argv, told in (
        (train_online.main, online, "pairs = 6 does not divide among 4 processes: choose a multiple of 4"),
        (train_online.main, [*online, "--pairs", "4"], "minibatch = 2 does not divide among 4 processes"),
        (train_offline.main, [*offline, "--batch", "3"], "batch = 3 does not divide among 4 processes"),
        (train_distill.main, [*distill, "--batch", "3"], "batch = 3 does not divide among 4 processes"),
    ):
        with pytest.raises(SystemExit):
            main(argv)
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_killed_again_and_again_the_weights_are_the_same(tmp_path):
    argv = ["--kills", "2", "--updates", "6", "--out", str(tmp_path / "kills.json")]
    assert launch(kill_and_resume.main, [(argv,)]) == [0]
    loops = json.loads((tmp_path / "kills.json").read_text())["loops"]
    for found in loops.values():
        assert found["kills"] == 2 and all(all(same.values()) for same in found["runs"])
    assert all("scores" in run for run in loops["table"]["runs"])
