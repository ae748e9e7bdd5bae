"""What belongs to others stays: foreign files are left where they lie, and a folder serves one command at a time."""

import json
import os
import signal
import subprocess
import sys

import pytest

from reproduce import demo, train_online
from reproduce.common import files
from reproduce.common.files import claim, last_checkpoint, release, remove_parts, remove_written
from reproduce.training import checkpoints

HOLD = (
    "import sys, time; from reproduce.common.files import claim; from pathlib import Path; claim(Path(sys.argv[1])); "
)
HOLD += "print('held', flush=True); time.sleep(60)"


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of a folder."""
    held = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert held.stdout.readline() == "held\n"
    yield held
    held.kill()
    held.wait()


def test_a_second_process_is_refused_and_told_of_the_first(other, tmp_path):
    with pytest.raises(
        BlockingIOError, match=rf"{tmp_path} is in use by process {other.pid} on .* since 20\d\d-.*: wait"
    ):
        claim(tmp_path)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    claim(tmp_path)  # a killed process leaves no lock
    claim(tmp_path)  # which is this process's own now
    assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    release(tmp_path)
    assert not files.CLAIMS


def test_a_launchers_first_process_holds_the_folder_for_all(other, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    claim(tmp_path)


def test_a_run_holds_its_folder_until_it_ends(online, tmp_path):
    setup = online(rounds=1)
    assert (setup.config.out / ".lock").resolve() in files.CLAIMS
    train_online.run(setup)
    assert (setup.config.out / ".lock").resolve() not in files.CLAIMS


def test_foreign_files_are_left_and_stop_nothing(online, tmp_path):
    setup = online(rounds=3, save_every=1, snapshot_every=1)
    folder = setup.config.out / "checkpoints"
    foreign = [folder / "best" / "trained.safetensors", folder / ".DS_Store", folder / "000001" / "notes.txt"]
    foreign += [folder / "unfinished" / "mine.txt", setup.config.out / "snapshots" / "000002" / "notes.txt"]
    training = train_online.train(setup)
    next(training)
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    list(training)
    moved = folder / "000002" / "mine.txt"  # what lay in the folder that became the next checkpoint went with it
    assert all(path.read_text() == "mine" for path in [*foreign[:3], foreign[4], moved])
    assert last_checkpoint(setup.config.out).name == "000003"
    assert sorted(path.name for path in (folder / "000001").iterdir()) == ["notes.txt"]
    assert (setup.config.out / "snapshots" / "000002" / "trained.json").exists()
    resumed = online(rounds=3, save_every=1, snapshot_every=1, resume=True)
    assert resumed.run.start == 3


def test_a_folder_with_a_number_that_is_no_checkpoint_is_not_taken_for_one(online):
    setup = online(rounds=1)
    (setup.config.out / "checkpoints" / "999999").mkdir(parents=True)
    list(train_online.train(setup))
    assert last_checkpoint(setup.config.out).name == "000001"


def test_parts_are_removed_and_nothing_else(tmp_path):
    for name in ("settings.json", "kl/000001.safetensors", "kl/.000002.safetensors.4711", "mine/notes.txt", "a.json"):
        (tmp_path / "x.parts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x.parts" / name).write_text("")
    remove_parts(tmp_path / "x.parts")
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["x.parts/a.json", "x.parts/mine/notes.txt"]
    (tmp_path / "y.parts" / "kl").mkdir(parents=True)
    (tmp_path / "y.parts" / "kl" / "000000.safetensors").write_text("")
    remove_parts(tmp_path / "y.parts")
    remove_parts(tmp_path / "nowhere.parts")
    assert not (tmp_path / "y.parts").exists()


def test_a_name_that_was_written_is_removed_whatever_it_is(tmp_path):
    (tmp_path / "a" / "deepspeed").mkdir(parents=True)
    (tmp_path / "a" / "state.json").write_text("{}")
    remove_written(tmp_path / "a", *checkpoints.WRITTEN)
    assert not (tmp_path / "a").exists()


def test_the_demo_leaves_another_runs_folder_alone(online, tmp_path):
    setup = online("mine/run", rounds=1)
    list(train_online.train(setup))
    weights = (last_checkpoint(setup.config.out) / "trained.safetensors").read_bytes()
    for note in (None, {"config": {"rounds": 1, "pairs": 4, "lr": 0.5, "seed": 0}}):
        if note:
            (tmp_path / "mine" / "demo.json").write_text(json.dumps(note))
        with pytest.raises(ValueError, match="mine/run holds a run that is not this demo's: choose another --out"):
            demo.prepare(
                demo.DemoConfig(out=tmp_path / "mine"), setup.model, setup.reward, {"brightness": setup.reward}
            )
    assert (last_checkpoint(setup.config.out) / "trained.safetensors").read_bytes() == weights
