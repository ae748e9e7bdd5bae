"""Check the inputs that every loss takes."""

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from fsalign_lib.kernels import Reduction, at_least_float32, reduce_dims


def check_rows(**inputs: Tensor) -> None:
    """Raise a ValueError unless all are floating (B, S) tensors of one shape, not empty."""
    _check_alike("(B, S)", inputs, lambda x: x.ndim == 2)


def check_samples(**inputs: Tensor) -> None:
    """Raise a ValueError unless all are floating (B, ...) tensors of one shape, not empty."""
    _check_alike("(B, ...)", inputs, lambda x: x.ndim >= 2)


def _check_alike(layout: str, inputs: dict[str, Tensor], fits: Callable[[Tensor], bool]) -> None:
    (first, expected), *_ = inputs.items()
    for name, x in inputs.items():
        if not fits(x) or not x.is_floating_point() or x.numel() == 0:
            raise ValueError(f"{name} is {x.dtype} of shape {tuple(x.shape)}: expected floats {layout}, not empty")
        if x.shape != expected.shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)} and {first} {tuple(expected.shape)}: pass matching tensors"
            )


def check_positive(name: str, value: float) -> None:
    """Raise a ValueError unless the value is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} = {value}: expected a finite positive number")


def for_each_step(name: str, values: Tensor, rows: Tensor) -> Tensor:
    """Detach `values` (B,), one a trajectory, or (B, S), one a step, in a shape that broadcasts to `rows` (B, S).

    Raises:
        ValueError: another shape, or not floats.
    """
    if not values.is_floating_point() or values.shape not in (rows.shape, rows.shape[:1]):
        raise ValueError(
            f"{name} is {values.dtype} of shape {tuple(values.shape)}: expected floats ({len(rows)},), one a "
            f"trajectory, or {tuple(rows.shape)}, one a step"
        )
    values = values.detach()
    return values[:, None] if values.ndim == 1 else values


Steps = Literal["inside", "outside"]


Diagnostics = dict[str, Tensor]


def squared_error(a: Tensor, b: Tensor, reduction: Reduction = "mean", batch_dims: int = 1) -> Tensor:
    r"""Return $\|a - b\|^2$ in float32: the "sum" over all but the first `batch_dims`, or the "mean" (over D).

    Returns (B,), or (B, S) for `batch_dims=2`.
    """
    return reduce_dims((at_least_float32(a) - at_least_float32(b)) ** 2, reduction, batch_dims)
