"""Answer a reader: compare a function with a formula and with its usual mistakes, a guess with what was computed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NOT_ATTEMPTED = "not attempted yet. Put your code in place of the dots, return the result, and run the cell again."


def draw(seed: int, *shape: int) -> Tensor:
    """Draw N(0, 1) numbers in float64, the same in every session."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Exercise:
    """Hold a formula that the reader writes as a function, and tell from a function which mistake was made in it.

    Calling it with the reader's function prints one line: right, not attempted, or what is wrong. An answer is compared
    by its values and, where an input carries a gradient, by its gradient in that input.
    """

    name: str  # of the function
    right: Callable[..., Tensor]
    mistakes: dict[str, Callable[..., Tensor]]  # the formula with a mistake in it, by what is wrong, in plain words
    cases: Callable[[], list[tuple]]  # the arguments of one call or several, made anew each time
    returns: str  # "(B,), one log-prob a sample"

    def __call__(self, answer: Callable[..., Tensor]) -> None:
        """Print what `verdict` says."""
        print(f"{self.name}: {self.verdict(answer)}")

    def verdict(self, answer: Any) -> str:
        """Say in one line what an answer is: right, not attempted, or how it differs from the formula."""
        if not callable(answer):
            return f"got {type(answer).__name__}: pass the function itself, without calling it."
        try:
            values = [answer(*inputs) for inputs in self.cases()]
        except NotImplementedError:
            return NOT_ATTEMPTED
        except Exception as error:  # whatever the reader's code raises
            return f"your code stopped with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if any(value is None or value is ... for value in values):
            return NOT_ATTEMPTED
        truth = _outcome(self.right, self.cases())
        for value, exact in zip(values, truth, strict=False):
            if not isinstance(value, Tensor) and not (exact.ndim == 0 and isinstance(value, float | int)):
                return f"it returned {type(value).__name__}: expected a tensor {self.returns}."
        found = _outcome(answer, self.cases())
        if _alike(found, truth):
            return "right."
        for words, mistake in self.mistakes.items():
            if _alike(found, _outcome(mistake, self.cases())):
                return words
        return _describe(found, truth, len(values), self.returns)


def _outcome(function: Callable[..., Tensor], cases: list[tuple]) -> list[Tensor]:
    """Return the values of all cases, then the gradients of their sums in every input that requires one."""
    values, gradients = [], []
    for inputs in cases:
        value = torch.as_tensor(function(*inputs))
        leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        if leaves and value.requires_grad:
            some = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        else:
            some = [None] * len(leaves)
        gradients += [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, some, strict=True)]
        values.append(value.detach())
    return values + gradients


def _alike(found: list[Tensor], other: list[Tensor]) -> bool:
    """Say whether all values and gradients agree, to 1e-4 of each entry, in shape and in kind."""
    for a, b in zip(found, other, strict=True):
        if a.shape != b.shape or a.is_floating_point() != b.is_floating_point():
            return False
        a, b = a.double(), b.double()
        if not ((a - b).abs() <= 1e-4 * b.abs() + 1e-6 * b.abs().max()).all():  # nan is not alike
            return False
    return True


def _describe(found: list[Tensor], truth: list[Tensor], cases: int, returns: str) -> str:
    """Say how an answer differs that is none of the known mistakes."""
    for value, exact in zip(found[:cases], truth, strict=False):
        if value.shape != exact.shape:
            return f"it returned shape {tuple(value.shape)}: expected {returns}, here {tuple(exact.shape)}."
        if value.is_floating_point() != exact.is_floating_point():
            return f"it returned {value.dtype}: expected {exact.dtype}, {returns}."
        if not value.isfinite().all():
            return (
                "it returned a value that is not finite: look for a division by zero or the log of a negative number."
            )
    if _alike(found[:cases], truth[:cases]):
        if not any(g.any() for g in found[cases:]):
            return "the value is right, but it carries no gradient: something on the way was detached."
        return "the value is right, the gradient is not: look at what is detached, and at what should be."
    a, b = (torch.cat([x.double().flatten() for x in outcome]) for outcome in (found, truth))
    factor = (a @ b / (b @ b)).item()
    if len(a) > 1 and _alike([a], [factor * b]):
        return f"it is {factor:.3g} times the formula: a factor is missing or too many."
    a, b = (outcome[0].double().flatten() for outcome in (found, truth))
    return f"not the formula, and none of the usual mistakes: its first value is {a[0]:.4g}, the formula's {b[0]:.4g}."


@dataclass(frozen=True)
class Prediction:
    """Hold a reader's guess, to be compared with what is computed after it."""

    answer: Any  # ... for none
    options: tuple  # empty: the answer is a number

    def compare(self, found: Any, within: float = 0.0) -> None:
        """Print what was found, and whether it was predicted; numbers may differ by `within`."""
        if self.options and found not in self.options:
            raise ValueError(f"found {found!r}: expected one of {self.options}")
        if self.answer is ...:
            print(f"It is {_shown(found)}. No prediction was made.")
        elif self.answer == found or (not self.options and abs(self.answer - found) <= within):
            print(f"It is {_shown(found)}. You predicted {_shown(self.answer)}: right.")
        else:
            print(f"It is {_shown(found)}. You predicted {_shown(self.answer)}: what made the difference?")


def predict(answer: Any, *options: Any) -> Prediction:
    """Take a reader's guess: one of the options, or a number if there are none; dots stand for no guess yet."""
    choice = "one of " + ", ".join(map(_shown, options)) if options else "a number"
    if answer is ...:
        print(f"No prediction yet: put {choice} in place of the dots.")
    elif options and answer not in options:
        print(f"{_shown(answer)} is not among the answers: put {choice}.")
        answer = ...
    elif not options and not isinstance(answer, float | int):
        print(f"{_shown(answer)} is not a number: put one in its place.")
        answer = ...
    return Prediction(answer, options)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f'"{value}"' if isinstance(value, str) else str(value)
