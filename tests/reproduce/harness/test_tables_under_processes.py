"""Each table's script ends under two processes as under one, and goes on where both were killed."""

import json
import random
import time

import pytest
import torch
from safetensors.torch import load_file

from reproduce import distar_table1
from reproduce.evaluation.cost import COSTS
from reproduce.harness import rows
from reproduce.harness.command import at_scale, command
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
QUICK = {
    "pso_table2": ("base", "offline", "online"),
    "distar_table1": ("base", "distar"),
}  # a table, or two, of each loop
KILLED = {
    "pso_table2": ("base", "offline", "online"),
    "sdpo_lcm": ("base", "sdpo"),
    "dipp_table1": ("pretrained", "cfg1-reward1"),
    "distar_table1": ("base", "distar"),
}

WITHIN = 1e-6 + 1e-5  # scores are written with five decimals, of which the last may be another
# Of weights that differ by rounding, some pictures of the random twins differ by a byte, and their scores by this.
OF_ROUNDED = 5e-3


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
        trained = run_.endswith("-0.json")  # its training seed
        assert_same(found[run_], scores, run_, OF_ROUNDED if trained else WITHIN)
    for path in (one / "runs").rglob("trained.safetensors"):
        other = load_file(two / path.relative_to(one))
        for weight, tensor in load_file(path).items():
            torch.testing.assert_close(other[weight], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_make_what_one_makes(name, tmp_path):
    check_processes(name, QUICK[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_each_table_goes_from_start_to_page_under_two_processes(name, tmp_path):
    check_processes(name, SOME[name], tmp_path)
    two, before = tmp_path / "two", stamps(tmp_path / "two")
    if SOME[name]:
        run(name, two, SOME[name], 2)
        assert stamps(two) == before, "what was made is found, and not made anew"
        assert launch(worker.table, [(name, ["--table-only", "--out", str(two)])] * 2) == [0, 0]
    assert "A smoke run" in (two / f"{name}-full.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_killed_together_and_launched_again_the_scores_are_the_same(name, tmp_path):
    peace, killed, only = tmp_path / "peace", tmp_path / "killed", KILLED[name]
    assert launch(worker.table, [(name, ["--help"])]) == [0]  # the server has imported everything
    began = time.time()
    run(name, peace, only, 2)
    whole, kills, delays = time.time() - began, 0, random.Random(name)
    while kills < 3:
        both = start(worker.table, [(name, call(name, killed, only))] * 2)
        both[0].join(delays.uniform(0.2, 0.8) * whole)
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
    assert_same(evaluations(name, killed), evaluations(name, peace))


def test_one_checkpoint_has_one_score_and_all_rows_one_precision(tmp_path, monkeypatch, fresh_accelerate):
    """Trained just now, or loaded; the recipe trains under bf16 autocast, and nothing is evaluated so."""
    monkeypatch.setenv("FSALIGN_HUB", str(tmp_path))  # which the script sets: so that it is undone
    measured, evaluate = [], rows.evaluate

    def spy(model, *args, **kwargs):
        how = {"wrapped": model.network is not model.unet or hasattr(model.unet, "_original_forward")}
        how |= {"dtype": model.dtype, "networks": {part.dtype for part in (model.unet, model.vae)}}
        measured.append(how)
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr(rows, "evaluate", spy)
    only = ("teacher", "base", "distar")
    argv = ["--scale", "full", "--models", "tiny", *call("distar_table1", tmp_path, only)]
    command(distar_table1.TABLE, None, argv)
    table, folder = at_scale(distar_table1.TABLE, "full"), tmp_path / "runs" / "distar_table1-full"
    paths = [rows.run_path(folder, row, rows.row_seeds(table, row)[0]) for row in only]
    assert {json.loads(path.read_text())["evaluation"]["precision"] for path in paths} == {"float32"}
    training = json.loads(paths[-1].read_text())["training"]["config"]
    assert training["mixed_precision"] == "bf16"
    assert len(measured) >= len(only) and all(how == measured[0] for how in measured) and not measured[0]["wrapped"]

    just_now = evaluations("distar_table1", tmp_path)
    paths[-1].unlink()
    command(distar_table1.TABLE, None, argv)
    assert_same(evaluations("distar_table1", tmp_path), just_now, within=0)


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_sampled(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    argv = ["--smoke", "--out", str(tmp_path), "--only", "base", "offline"]
    from reproduce import pso_table2

    with pytest.raises(SystemExit):
        command(pso_table2.TABLE, None, argv)
    assert "row offline: batch = 2 does not divide among 4 processes" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.png"))
