"""Exercises that answer: each formula passes, each usual mistake is told in words of its own, nothing else passes."""

import importlib
import pkgutil

import pytest
import torch

from fsalign_lib import lesson
from fsalign_lib.lesson.exercise import NOT_ATTEMPTED, Exercise, predict

EXERCISES = {
    exercise.name: exercise
    for module in pkgutil.iter_modules(lesson.__path__)
    for name, exercise in vars(importlib.import_module(f"fsalign_lib.lesson.{module.name}")).items()
    if isinstance(exercise, Exercise) and name == f"check_{exercise.name}"
}
every = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES.keys())


@every
def test_the_formula_passes_and_mistakes_are_told_apart(exercise):
    assert exercise.verdict(exercise.right) == "right."
    assert len(exercise.mistakes) >= 3
    for words, mistake in exercise.mistakes.items():
        assert exercise.verdict(mistake) == words and words.endswith(".")


@every
def test_what_no_one_foresaw_does_not_pass(exercise):
    known = {"right.", *exercise.mistakes}
    floats = exercise.right(*exercise.cases()[0]).is_floating_point()
    wrong = [lambda *x: exercise.right(*x) * (1.01 if floats else 2), lambda *x: exercise.right(*x)[None]]
    wrong += [lambda *x: 0.01 * exercise.right(*x).abs().max() + exercise.right(*x).float()] * floats
    assert not any(exercise.verdict(answer) in known for answer in wrong)
    assert exercise.verdict(lambda *x: exercise.right(*x) * float("nan")) not in known


@every
def test_no_answer_is_no_mistake(exercise):
    def raises(*_):
        raise NotImplementedError

    for answer in (lambda *_: None, lambda *_: ..., raises):
        assert exercise.verdict(answer) == NOT_ATTEMPTED


TWICE = Exercise("twice", lambda x: 2 * x, {}, lambda: [(torch.arange(1.0, 4.0),)], "(n,), each number twice")
GRADIENT = Exercise("g", lambda x: x.square().sum(), {}, lambda: [(torch.ones(3, requires_grad=True),)], "a scalar")


@pytest.mark.parametrize(
    "answer, words",
    [
        (3.0, "got float: pass the function itself"),
        (lambda x: x / [], "your code stopped with TypeError"),
        (lambda x: x.tolist(), "it returned list: expected a tensor (n,), each number twice."),
        (lambda x: 1.0, "it returned float: expected a tensor"),
        (lambda x: 2 * x[:, None], "it returned shape (3, 1): expected (n,), each number twice, here (3,)."),
        (lambda x: (2 * x).long(), "it returned torch.int64: expected torch.float32"),
        (lambda x: 2 * x / 0, "not finite"),
        (lambda x: 6 * x, "it is 3 times the formula"),
        (lambda x: -2 * x, "it is -1 times the formula"),
        (lambda x: x**2, "its first value is 1, the formula's 2."),
        (lambda x: 2 * x.double(), "right."),
    ],
)
def test_other_answers_are_described(answer, words):
    assert words in TWICE.verdict(answer)


def test_gradients_are_compared():
    assert "carries no gradient" in GRADIENT.verdict(lambda x: x.detach().square().sum())
    assert "the gradient is not" in GRADIENT.verdict(lambda x: (x * x.detach()).sum())
    assert GRADIENT.verdict(lambda x: x @ x) == "right."


def test_an_answer_may_write_into_its_inputs():
    assert TWICE.verdict(lambda x: x.mul_(2)) == "right."


def test_predictions(capsys):
    predict(..., "one", "four").compare("one")
    predict("one", "one", "four").compare("one")
    predict("four", "one", "four").compare("one")
    predict("five", "one", "four").compare("one")
    predict(0.9).compare(0.95, within=0.1)
    predict(0.5).compare(0.95, within=0.1)
    predict("half").compare(0.95)
    assert capsys.readouterr().out.splitlines() == [
        'No prediction yet: put one of "one", "four" in place of the dots.',
        'It is "one". No prediction was made.',
        'It is "one". You predicted "one": right.',
        'It is "one". You predicted "four": what made the difference?',
        '"five" is not among the answers: put one of "one", "four".',
        'It is "one". No prediction was made.',
        "It is 0.95. You predicted 0.9: right.",
        "It is 0.95. You predicted 0.5: what made the difference?",
        '"half" is not a number: put one in its place.',
        "It is 0.95. No prediction was made.",
    ]
    with pytest.raises(ValueError, match="expected one of"):
        predict(..., "one", "four").compare("two")
