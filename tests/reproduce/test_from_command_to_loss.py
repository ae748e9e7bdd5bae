"""Between `python reproduce/pso_table2.py` and the loss lie few files and few calls; --help loads next to nothing."""

import json
import os
import subprocess
import sys

import pytest

from fsalign_lib.pocket.weights import WEIGHTS
from reproduce.common.provenance import ROOT
from reproduce.harness.claims import PAPERS
from reproduce.harness.rows import NETWORKS

HEAVY = ("diffusers", "peft", "transformers", "scipy", "matplotlib", "accelerate", "torch")
# Runs a script of the project until a function is first called; prints its stack, and the files of reproduce/ in which
# a function was entered until then. Bodies of modules and classes are no functions.
COUNT = """
import inspect, json, os, runpy, sys
root, path, name, *argv = sys.argv[1:]
entered, ours = set(), tuple(os.path.join(root, name) + os.sep for name in ("fsalign_lib", "reproduce"))

def look(frame, event, _):
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(ours):
        return
    if code.co_filename.startswith(os.path.join(root, "reproduce")) and code.co_flags & inspect.CO_OPTIMIZED:
        entered.add(os.path.relpath(code.co_filename, root))
    if code.co_name == name:
        sys.setprofile(None)
        stack = []
        while frame:
            if frame.f_code.co_filename.startswith(ours):
                stack.append(os.path.relpath(frame.f_code.co_filename, root))
            frame = frame.f_back
        print("found", json.dumps([sorted(entered), stack]), flush=True)
        os._exit(0)

sys.argv = [path, *argv]
sys.setprofile(look)
runpy.run_path(path, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(not all((WEIGHTS / name).is_dir() for name in NETWORKS), reason="the pocket world is not built")
def test_few_files_and_calls_lie_between_the_command_and_the_loss(tmp_path):
    script = ROOT / "reproduce" / "pso_table2.py"
    argv = [ROOT, script, "pso_online", "--smoke", "--only", "online", "--out", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    told = subprocess.run([sys.executable, "-c", COUNT, *argv], env=environment, capture_output=True, text=True)
    found = [line for line in told.stdout.splitlines() if line.startswith("found ")]
    assert found, told.stderr
    entered, stack = json.loads(found[0].removeprefix("found "))
    assert len(entered) <= 10, entered
    assert len(stack) <= 9 and len(set(stack)) <= 5, stack
    assert stack[0] == "fsalign_lib/losses/preference.py" and stack[-1] == "reproduce/pso_table2.py"


@pytest.mark.parametrize("name", PAPERS)
def test_help_loads_nothing_heavy(name):
    code = f"""
import sys
sys.argv = ["{name}.py", "--help"]
try:
    import runpy
    runpy.run_path("{ROOT}/reproduce/{name}.py", run_name="__main__")
except SystemExit as stopped:
    assert not stopped.code
print("loaded", *(module for module in {HEAVY} if module in sys.modules))
"""
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert told.stdout.splitlines()[-1].split() == ["loaded"], told.stdout + told.stderr
    assert "--dry-run" in told.stdout
