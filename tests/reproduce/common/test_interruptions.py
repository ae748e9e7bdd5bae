"""Ctrl-C ends in two lines, what is kept and the command that goes on; a first checkpoint comes within a minute."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from fsalign_lib.pocket.weights import WEIGHTS
from reproduce import pso_table2, train_online
from reproduce.common import cli
from reproduce.common.files import last_checkpoint
from reproduce.common.provenance import ROOT
from reproduce.harness import command, rows
from reproduce.training import run as running


def interrupted(work, capsys):
    """Stop the work by Ctrl-C, and return the lines on stderr that name no progress."""
    with pytest.raises(SystemExit) as stopped:
        work()
    assert stopped.value.code == 130
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(("interrupted", "to "))]


def stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_loop_says_what_is_kept_and_how_to_go_on(online, capsys, monkeypatch):
    setup = online(rounds=3, save_every=1)
    monkeypatch.setattr("sys.argv", ["reproduce/train_online.py"])
    argv = ["--out", str(setup.config.out)]

    def loop(ready):
        cli.command_line(lambda _: setup.config, lambda _: setup, ready, argv, running.kept)

    told = interrupted(lambda: loop(stop), capsys)
    again = f"python reproduce/train_online.py --out {setup.config.out}"
    assert told == ["interrupted: nothing is kept", f"to begin again: {again}"]

    def two_rounds(setup):
        training = train_online.train(setup)
        next(training), next(training)
        stop()

    told = interrupted(lambda: loop(two_rounds), capsys)
    kept = setup.config.out / "checkpoints" / "000002"
    assert told == [
        f"interrupted: {kept} is kept, and what was trained after it is lost",
        f"to go on: {again} --resume",
    ]
    argv.append("--resume")
    assert interrupted(lambda: loop(stop), capsys)[1] == f"to go on: {again} --resume"


def test_several_processes_say_it_once(capsys, monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(SystemExit), cli.interruptions(lambda: ("a checkpoint is kept", "--resume"), []):
            stop()
    assert capsys.readouterr().err.splitlines() == [
        "interrupted: a checkpoint is kept",
        "to go on: the same launch with --resume",
    ]


def test_a_table_goes_on_by_the_same_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rows, "prepare", stop)
    monkeypatch.setattr("sys.argv", ["reproduce/pso_table2.py"])
    argv = ["--smoke", "--out", str(tmp_path)]
    told = interrupted(lambda: command.command(pso_table2.TABLE, None, argv), capsys)
    assert told[0].startswith(
        "interrupted: finished rows, and the last checkpoint of the one in training, are kept in "
    )
    assert told[1] == f"to go on: python reproduce/pso_table2.py --smoke --out {tmp_path}"


@pytest.mark.slow
@pytest.mark.skipif(not (WEIGHTS / "eye").is_dir(), reason="the pocket world is not built")
@pytest.mark.parametrize("row,at", [("base", ".base.json.lock"), ("online", "base.json")])
def test_ctrl_c_to_a_tables_script(row, at, tmp_path):
    """A real SIGINT to a real process, while a row is evaluated, and while one is trained after it."""
    argv = ["reproduce/pso_table2.py", "--smoke", "--only", "base", "online", "--seeds", "0", "--out", str(tmp_path)]
    kept, environment = tmp_path / "runs" / "pso_table2", os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    where = {"cwd": ROOT, "env": environment, "text": True}
    outputs = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    # Tests that were begun in the background ignore the signal, and what they begin would, too.
    heeded = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen([sys.executable, *argv], **outputs, **where, **heeded)
    while not (kept / at).exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told = [line for line in process.communicate()[1].splitlines() if line and not re.search(r"\d%\|", line)]
    assert process.returncode == 130 and told == [
        f"interrupted: finished rows, and the last checkpoint of the one in training, are kept in {kept}",
        f"to go on: {shlex.join(['python', *argv])}",
    ]
    again = shlex.split(told[1].removeprefix("to go on: python "))
    ended = subprocess.run([sys.executable, *again], capture_output=True, **where)
    assert ended.returncode == 0 and ("base is done" in ended.stdout) == (row == "online"), ended.stderr
    assert sorted(path.name for path in kept.glob("*.json")) == ["base.json", "online-0.json"]


def test_the_first_checkpoint_comes_within_a_minute_of_training(online, monkeypatch):
    """At 25 seconds a round, after the second: the third would end too late. Those that follow keep to `save_every`."""
    setup, now = online(rounds=7, save_every=5), [time.monotonic()]
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    setup.run.began = setup.run.stepped = now[0]
    saved, save = [], setup.run.save
    monkeypatch.setattr(setup.run, "save", lambda step: saved.append(step) or save(step))
    training = train_online.train(setup)
    for _ in range(7):
        now[0] += 25
        next(training)
    assert saved == [2, 5, 7] and last_checkpoint(setup.config.out).name == "000007"
