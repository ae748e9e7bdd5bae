"""Each table's script ends under two processes as under one, and goes on where both were killed."""

import importlib
import json
import random
import shutil
import time

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from reproduce.common.cli import processes
from reproduce.evaluation.cost import COSTS
from reproduce.harness import rows
from reproduce.harness.command import command
from reproduce.training.run import Run
from tests import table_worker as worker
from tests.launched import launch, start

# Rows of each table, at training seed 0: the model as it is, and one of each kind that is trained.
SOME = {
    "pso_table1": ("teacher", "dpo", "dpo-lora", "sft", "base", "online"),
    "pso_table2": ("base", "offline", "online"),
    "pso_table3": ("base", "teacher-lora", "dpo-lora", "offline"),
    "pso_table4": ("base", "teacher", "dreambooth", "pso-prior", "pso"),
    "pso_ablations": ("base", "paper", "inside"),
    "pso_style": ("base", "sft", "pso", "pso-exact"),
    "sdpo_table1": ("base", "sdpo-aesthetic", "rebel-aesthetic"),
    "sdpo_table3": (),
    "sdpo_curves": ("base", "sdpo-aesthetic"),
    "sdpo_lcm": ("base", "ddpo", "rebel", "sdpo"),
    "sdpo_instability": ("base", "d3po-2", "ddpo-mixed"),
    "sdpo_ablations": ("base", "sdpo", "global"),
    "dipp_table1": ("teacher", "pretrained", "cfg1-reward1", "cfg4.5-reward1"),
    "distar_table1": ("teacher", "base", "sim", "distar"),
    "distar_table2": ("base", "kl-unguided", "distar"),
    "distar_table3": ("base", "diff-instruct", "distar"),
    "distar_pareto": ("base", "dipp-10", "distar"),
}
FIRST = {"sdpo_curves": ("sdpo_table1", "sdpo-aesthetic")}  # whose runs a table reads
QUICK = {"pso_table2": ("offline", "online"), "distar_table1": ("distar",)}  # a row of each loop
KILLED = {  # a table of each loop, and SDPO's and DI++'s
    "pso_table2": ("base", "offline", "online"),
    "sdpo_lcm": ("base", "sdpo"),
    "dipp_table1": ("pretrained", "cfg1-reward1"),
    "distar_table1": ("base", "distar"),
}

WITHIN = 1e-6  # weights are equal to the bit (see Run.micro_batches)


def call(name, out, only):
    return [*(["--only", *only, "--seeds", "0"] if only else []), "--out", str(out)]


def run(name, out, only, processes):
    first = FIRST.get(name)
    if first:
        run(first[0], out, first[1:], processes)
    assert launch(worker.table, [(name, call(name, out, only))] * processes) == [0] * processes


def evaluations(name, out):
    """What each run of the table was scored, with the points of its curve."""
    found = {path.name: json.loads(path.read_text()) for path in (out / "runs" / f"{name}-full").glob("*.json")}
    scored = {}
    for key, each in found.items():
        points = each.get("curve", [])
        for cells in (each["cells"], *(point["cells"] for point in points)):
            for cell in cells.values():
                for cost in COSTS:  # seconds and memory, as measured
                    cell["means"].pop(cost, None)
        scored[key] = each["cells"], [(point["kl"], point["cells"]) for point in points]
    return scored


def assert_same(found, expected, where="", within=WITHIN):
    """Through nested lists and dictionaries."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}/{key}", within)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for place, both in enumerate(zip(found, expected, strict=True)):
            assert_same(*both, f"{where}/{place}", within)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=within, rel=0), where
    else:
        assert found == expected, where


def stamps(out):
    """When each result, checkpoint and evaluation was written."""
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*.json") if "twins" not in path.parts}


def check_processes(name, only, folder):
    one, two = folder / "one", folder / "two"
    run(name, one, only, 1)
    run(name, two, only, 2)
    found, expected = evaluations(name, two), evaluations(name, one)
    assert found.keys() == expected.keys() and len(expected) >= max(len(only), 1)
    for run_, scores in expected.items():
        assert_same(found[run_], scores, run_)
    for path in (one / "runs").rglob("*.*"):
        other = two / path.relative_to(one)
        if path.suffix == ".png":
            assert other.read_bytes() == path.read_bytes(), path
        elif path.suffix == ".safetensors" and path.stem in ("trained", "second"):
            for weight, tensor in load_file(path).items():
                assert torch.equal(load_file(other)[weight], tensor), f"{weight} of {path}"
    # Another process, which trains nothing, gives the same scores to the last bit.
    for path in (two / "runs" / f"{name}-full").glob("*-0.json"):
        path.unlink()
    for path in (two / "runs" / f"{name}-full").glob("*/points"):
        shutil.rmtree(path)
    run(name, two, only, 1)
    assert_same(evaluations(name, two), found, within=0)


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_make_what_one_makes(name, tmp_path):
    check_processes(name, QUICK[name], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", SOME)
def test_each_table_goes_from_start_to_page_under_two_processes(name, tmp_path):
    check_processes(name, SOME[name], tmp_path)
    two, before = tmp_path / "two", stamps(tmp_path / "two")
    if SOME[name]:
        run(name, two, SOME[name], 2)
        assert stamps(two) == before, "what was made is found, and not made anew"
        assert launch(worker.table, [(name, ["--table-only", "--out", str(two)])] * 2) == [0, 0]
    assert "A smoke run" in (two / f"{name}-full.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize("name", KILLED)
def test_killed_together_and_launched_again_the_scores_are_those_of_one_process(name, tmp_path):
    one, killed, only = tmp_path / "one", tmp_path / "killed", KILLED[name]
    seed = random.SystemRandom().randrange(2**32)
    print(f"moments of {name}'s kills: seed {seed}")  # which pytest shows of a test that fails
    assert launch(worker.table, [(name, ["--help"])]) == [0]  # the server has imported everything
    began = time.time()
    run(name, one, only, 1)
    whole, kills, delays = time.time() - began, 0, random.Random(seed)
    while kills < 3:
        both = start(worker.table, [(name, call(name, killed, only))] * 2)
        both[0].join(delays.uniform(0.1, 0.8) * whole)
        ended = both[0].exitcode is not None
        for process in both:
            process.kill()
        for process in both:
            process.join()
        if ended:
            break
        kills += 1
    assert kills >= 1
    run(name, killed, only, 2)
    assert_same(evaluations(name, killed), evaluations(name, one))


# Of each loop, rows as they are and trained, in networks and under autocast of several precisions.
PRECISIONS = {"distar_table1": ("teacher", "base", "distar")}
SLOWER = {"pso_table1": ("teacher", "dpo", "base", "offline"), "pso_table2": ("base", "online")}


@pytest.mark.parametrize(
    "name,only", [*PRECISIONS.items(), *(pytest.param(*each, marks=pytest.mark.long) for each in SLOWER.items())]
)
def test_one_checkpoint_has_one_score_and_all_rows_one_precision(name, only, tmp_path, monkeypatch):
    """Trained just now, or loaded; in whatever precision a row was trained, as its result says."""
    monkeypatch.setenv("FSALIGN_HUB", str(tmp_path))  # which the script sets: so that it is undone
    measured, trained, evaluate, step = [], [], rows.evaluate, Run.step

    def spy(model, *args, **kwargs):
        how = {"wrapped": model.network is not model.unet or hasattr(model.unet, "_original_forward")}
        how |= {"dtype": model.dtype, "networks": {part.dtype for part in (model.unet, model.vae)}}
        measured.append(how | {"text": {part.dtype for part in model.text.modules}})
        return evaluate(model, *args, **kwargs)

    def watched(run):
        weights = {str(p.dtype) for p in run.parameters}
        how = str(run.model.dtype).removeprefix("torch."), run.accelerator.mixed_precision
        trained.append((run.config.out.name, *how, weights))
        return step(run)

    monkeypatch.setattr(rows, "evaluate", spy)
    monkeypatch.setattr(Run, "step", watched)
    argv = ["--scale", "full", "--models", "tiny", *call(name, tmp_path, only)]
    table = importlib.import_module(f"reproduce.{name}").TABLE
    command(table, None, argv)
    folder = tmp_path / "runs" / f"{name}-full"
    results = {path: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert len(results) == len(only)
    assert {each["evaluation"]["precision"] for each in results.values()} == {"float16"}
    assert len(measured) >= len(only) and all(how == measured[0] for how in measured) and not measured[0]["wrapped"]
    for path, each in results.items():
        if each["training"]:
            told = each["training"]["config"]
            (how,) = {how[1:3] for how in trained if how[0] == path.stem}
            assert how == (told["dtype"], told["mixed_precision"])
    assert all(how[3] == {"torch.float32"} for how in trained)

    just_now, updates = evaluations(name, tmp_path), len(trained)
    for path, each in results.items():
        if each["training"]:
            path.unlink()
    command(table, None, argv)
    assert_same(evaluations(name, tmp_path), just_now, within=0)
    assert len(trained) == updates


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_sampled(tmp_path, monkeypatch, capsys):
    processes()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 4)
    argv = ["--smoke", "--out", str(tmp_path), "--only", "base", "offline"]
    from reproduce import pso_table2

    with pytest.raises(SystemExit):
        command(pso_table2.TABLE, None, argv)
    assert "row offline: batch = 2 does not divide among 4 processes" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.png"))
