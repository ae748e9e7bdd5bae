"""Check exercises on measuring and on cutting a training run (notebooks 06 and 18)."""

import torch
from torch import Tensor

from fsalign_lib.lesson.exercise import Exercise, draw


def _with_error(difference: Tensor, error: Tensor) -> Tensor:
    return torch.stack([difference.mean(), error])


check_paired_difference = Exercise(
    "paired_difference",
    right=lambda before, after: _with_error(after - before, (after - before).std() / len(before) ** 0.5),
    mistakes={
        "the error is that of unpaired samples: the same prompt and noise before and after takes their spread out.": (
            lambda before, after: _with_error(after - before, ((after.var() + before.var()) / len(before)).sqrt())
        ),
        "this is the spread of single differences: the error of their mean is smaller by sqrt(n).": (
            lambda before, after: _with_error(after - before, (after - before).std())
        ),
        "you divide by n: the error of a mean falls as 1 / sqrt(n).": lambda before, after: _with_error(
            after - before, (after - before).std() / len(before)
        ),
        "the sign is wrong: a rise is after minus before.": lambda before, after: _with_error(
            before - after, (after - before).std() / len(before) ** 0.5
        ),
        "this is a variance: the error is its root.": lambda before, after: _with_error(
            after - before, (after - before).var() / len(before)
        ),
    },
    cases=lambda: [(3 * draw(150, 12), 3 * draw(150, 12) + 0.4 + 0.5 * draw(151, 12))],
    returns="(2,), the mean difference and its standard error",
)

check_minibatch_loss = Exercise(
    "minibatch_loss",
    right=lambda losses, sizes: (losses * sizes).sum() / sizes.sum(),
    mistakes={
        "the micro-batches count alike: the last one is smaller, so its rows would count more.": lambda losses, sizes: (
            losses.mean()
        ),
        "the losses are added up: each is a mean already.": lambda losses, sizes: losses.sum(),
        "the division by the number of rows is missing.": lambda losses, sizes: (losses * sizes).sum(),
        "you divide by the number of micro-batches: divide by the number of rows.": lambda losses, sizes: (
            losses * sizes
        ).mean(),
        "you divide by the size of the largest one, as if all were full.": lambda losses, sizes: (
            (losses * sizes).sum() / (len(sizes) * sizes.max())
        ),
    },
    cases=lambda: [(draw(152, 3).requires_grad_(), torch.tensor([40, 40, 16]))],
    returns="a scalar, the mean over all rows",
)


def _norm(gradients: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients]).norm()


check_clip_factor = Exercise(
    "clip_factor",
    right=lambda gradients, max_norm: (max_norm / _norm(gradients)).clamp(max=1.0),
    mistakes={
        "a gradient below the limit is scaled up: the factor is at most 1.": lambda gradients, max_norm: (
            max_norm / _norm(gradients)
        ),
        "it is upside down: a larger norm needs a smaller factor.": lambda gradients, max_norm: (
            _norm(gradients) / max_norm
        ).clamp(max=1.0),
        "you take the largest norm of a tensor: the norm is that of all gradients together.": (
            lambda gradients, max_norm: (max_norm / max(g.norm() for g in gradients)).clamp(max=1.0)
        ),
        "you add up the norms of the tensors: their squares add up.": lambda gradients, max_norm: (
            max_norm / sum(g.norm() for g in gradients)
        ).clamp(max=1.0),
        "you take the largest entry: the limit is on the Euclidean norm.": lambda gradients, max_norm: (
            max_norm / max(g.abs().max() for g in gradients)
        ).clamp(max=1.0),
        "this is the squared norm: take its root.": lambda gradients, max_norm: (
            max_norm / _norm(gradients) ** 2
        ).clamp(max=1.0),
    },
    cases=lambda: [
        ([draw(153, 3, 4), draw(154, 5)], 1.0),
        ([0.1 * draw(155, 3, 4), 0.1 * draw(156, 5)], 1.0),
        ([2 * draw(157, 3), draw(158, 2)], 0.5),
    ],
    returns="a scalar between 0 and 1",
)
