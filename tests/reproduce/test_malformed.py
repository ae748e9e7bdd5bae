"""200 malformed inputs over all commands: each gives one line, exit 2, no traceback, and nothing outside --out."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest

from reproduce.common.provenance import ROOT
from reproduce.harness.command import command as run_table
from reproduce.plan import TABLES
from tests import malformed

CASES = malformed.plans(200)
QUICK = 10  # each so many-eth is among the quick tests
PROGRESS = re.compile(r"\d%\|| \[\d\d:\d\d")  # a picture that is cut off is found when it is read, under a bar
BENCHMARKS = ("step_cost", "adapter_memory", "rollout_memory", "full_size", "kill_and_resume")
COMPUTE = (  # what no refused call gets to
    (diffusers.UNet2DConditionModel, "forward"),
    *((diffusers.AutoencoderKL, name) for name in ("encode", "decode")),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return malformed.build_world(tmp_path_factory.mktemp("malformed"))


def run(case):
    if case.command in TABLES:
        return run_table(TABLES[case.command], None, case.argv)
    place = "reproduce." + "benchmarks." * (case.command in BENCHMARKS)
    module = importlib.import_module(case.command if "." in case.command else place + case.command)
    module.main(case.argv)


def files(*folders: Path) -> dict[str, tuple[int, int]]:
    """What lies in some folders, and when it was written."""
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def marked(number, about):
    marks = pytest.mark.slow if number % QUICK else ()
    return pytest.param(about, id=f"{number}-{about[0]}-{about[1]}", marks=marks)


@pytest.mark.parametrize("about", [marked(*each) for each in enumerate(CASES)])
def test_each_is_refused_in_one_line(about, world, tmp_path, monkeypatch, capfd):
    case = malformed.make(world, tmp_path, *about)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("FSALIGN_DATA", str(tmp_path / "no-data"))
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    for kind, method in COMPUTE:
        monkeypatch.setattr(kind, method, lambda *args, **kwargs: pytest.fail(f"{case}: a network was called"))
    places = world.root, tmp_path / "in", tmp_path / "here", ROOT / "reproduce", ROOT / "fsalign_lib"
    before = files(*places)
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(case)
    said = [line for line in capfd.readouterr().err.splitlines() if line and not PROGRESS.search(line)]
    assert stopped.value.code == 2, (case, said)
    assert len(said) == 1 and said[0].startswith("error: ") and case.named in said[0], (case, said)
    assert files(*places) == before, "nothing is written outside --out"


SCRIPTS = ("train_online", "evaluate", "export", "sdpo_table3", "fsalign_lib.pocket.report")


@pytest.mark.slow
@pytest.mark.parametrize("command", SCRIPTS)
def test_a_process_of_its_own_says_the_same(command, world, tmp_path):
    """The first case of a command, from its command line."""
    case = malformed.make(world, tmp_path, *next(about for about in CASES if about[0] == command))
    script = ["-m", command] if "." in command else [ROOT / "reproduce" / f"{command}.py"]
    environment = os.environ | case.environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = files(world.root, tmp_path / "in")
    told = subprocess.run(
        [sys.executable, *script, *case.argv], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert told.returncode == 2 and "Traceback" not in told.stderr, told.stderr
    assert told.stderr.splitlines()[-1].startswith("error: ") and case.named in told.stderr.splitlines()[-1]
    assert files(world.root, tmp_path / "in") == before and {path.name for path in tmp_path.iterdir()} <= {"in", "out"}


def test_every_command_is_among_them():
    """Of those that a README names: scripts of reproduce/, benchmarks, and what builds the pocket world."""
    scripts = {path.stem for folder in ("", "benchmarks") for path in (ROOT / "reproduce" / folder).glob("*.py")}
    modules = {f"fsalign_lib.pocket.{name}" for name in ("build", "report", "one_step")}
    assert {command for command, *_ in CASES} == scripts - {"__init__"} | modules
    assert {kind for _, kind, _ in CASES} == set(malformed.KINDS) and len(CASES) == 200
