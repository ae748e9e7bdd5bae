"""An evaluation is the same for any number of processes, and goes on where it was killed."""

import json
import os
import random

import pytest

from fsalign_lib.models import load as models
from reproduce import evaluate
from reproduce.evaluation import report
from reproduce.evaluation import scores as measure
from tests import evaluation_worker as worker
from tests import tiny
from tests.launched import launch


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "some prompts.txt"
    path.write_text("\n".join(tiny.PROMPTS))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return models.load(folder)


@pytest.fixture(scope="module")
def whole(folder, prompts, model, tmp_path_factory):
    """The evaluation that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "evaluation.json"
    evaluate.run(evaluate.prepare(worker.config(folder, prompts, out), model, worker.metrics()))
    return out


def test_only_what_is_asked_for_is_left(whole):
    left = sorted(path.name for path in whole.parent.iterdir())
    assert left == ["evaluation.html", "evaluation.json", "evaluation.pictures"]
    assert len(worker.pictures(whole)) == 2 * 6 * 2
    result = json.loads(whole.read_text())["results"][0]
    assert result["steps"] == 2 and result["pictures"]["folder"] == "evaluation.pictures/0-some-prompts-2"


class Killed(BaseException):
    pass


def test_killed_at_any_point_it_goes_on(folder, prompts, model, whole, tmp_path, monkeypatch):
    """At any rename, before or after it: no chunk is computed again once it is there, and the numbers are the same."""
    replace, rng, computed, state = os.replace, random.Random(0), [], {"left": 0}

    def fragile(source, target):
        state["left"] -= 1
        if state["left"] == 0:
            raise Killed
        replace(source, target)
        if state["left"] == -1:
            raise Killed

    monkeypatch.setattr(os, "replace", fragile)
    score = measure.score
    monkeypatch.setattr(
        measure, "score", lambda images, names, *rest: computed.append(names) or score(images, names, *rest)
    )
    out, kills = tmp_path / "evaluation.json", 0
    while not out.exists():
        state["left"] = rng.choice([1, 2, 3, 5, 7, 9])
        before = len(computed)
        try:
            evaluate.run(evaluate.prepare(worker.config(folder, prompts, out), model, worker.metrics()))
        except Killed:
            kills += 1
            there = len(list(evaluate.parts_folder(out).glob("*/*.safetensors")))
            assert len(computed) - before <= there + 1
    assert kills >= 4
    assert worker.results(out) == worker.results(whole) and worker.pictures(out) == worker.pictures(whole)
    # Six chunks; a kill costs at most the one that was being written.
    assert 6 <= len(computed) <= 6 + kills


def test_whole_chunks_are_not_computed_again(folder, prompts, model, whole, tmp_path, monkeypatch):
    out, sampled = tmp_path / "evaluation.json", []
    setup = evaluate.prepare(worker.config(folder, prompts, out), model, worker.metrics())
    monkeypatch.setattr(report, "write", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        evaluate.run(setup)  # everything but the page
    monkeypatch.undo()
    sample = measure.sample
    monkeypatch.setattr(measure, "sample", lambda *args: sampled.append(args) or sample(*args))
    evaluate.run(setup)
    assert sampled == [] and worker.results(out) == worker.results(whole)


def test_going_on_with_other_settings_is_refused(folder, prompts, model, tmp_path, monkeypatch):
    out = tmp_path / "evaluation.json"
    monkeypatch.setattr(report, "write", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        evaluate.run(evaluate.prepare(worker.config(folder, prompts, out), model, worker.metrics()))
    for other in ({"seeds": 3}, {"batch": 2}, {"images": "drop"}):
        name = next(iter(other))
        with pytest.raises(ValueError, match=f"holds a part of an evaluation with other {name}: go on with the same"):
            evaluate.prepare(worker.config(folder, prompts, out, **other), model, worker.metrics())
    less = prompts.with_name("less.txt")
    less.write_text("a cat\na dog")
    with pytest.raises(ValueError, match="other prompts"):
        evaluate.prepare(worker.config(folder, less, out), model, worker.metrics())


# Real processes


@pytest.fixture
def start(folder, prompts):
    return lambda out, *kill_at: launch(worker.work, [(folder, prompts, out, at) for at in kill_at])


@pytest.mark.slow
def test_two_processes_give_what_one_gives(start, whole, tmp_path):
    out = tmp_path / "evaluation.json"
    assert start(out, None, None) == [0, 0]
    assert json.loads(out.read_text())["processes"] == 2
    assert worker.results(out) == worker.results(whole) and worker.pictures(out) == worker.pictures(whole)


@pytest.mark.slow
def test_killed_with_two_processes_it_goes_on_with_one(start, whole, tmp_path):
    out = tmp_path / "evaluation.json"
    assert start(out, 2) == [-9]
    assert start(out, 1, 0) == [-9, -9]
    assert not out.exists()
    assert len(list(evaluate.parts_folder(out).glob("*/*.safetensors"))) == 3
    assert start(out, None) == [0]
    assert worker.results(out) == worker.results(whole) and worker.pictures(out) == worker.pictures(whole)
