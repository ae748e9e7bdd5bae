"""The half of mixed PSO (Eq. 5) that looks at the model's own samples, and what each half does to the gradient."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fsalign_lib.kernels import Kernel, Reduction
from fsalign_lib.models.conditioning import Cond
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.rollout import rollout, step_log_probs

Terms = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # rows -> loss, and what its two halves are computed from


def reference_log_probs(
    model: LatentModel, kernel: Kernel, cond: Cond, noise: Tensor, reduction: Reduction
) -> tuple[Tensor, Tensor]:
    """One trajectory for each prompt, sampled from the model as it is now (PSO Alg. 1), and the log-probs of its
    stochastic transitions: under the model, with gradient, and under the reference, without.  # (P, S) each

    Args:
        noise: N + 1 draws for each  # (P, N+1, C, h, w)
    """
    trajectory = rollout(model, kernel, cond, noise, reduction)
    with torch.no_grad(), model.reference():
        reference = step_log_probs(model, kernel, trajectory, cond, kernel.stochastic_steps, reduction)
    return step_log_probs(model, kernel, trajectory, cond, kernel.stochastic_steps, reduction), reference


def half_gradients(terms: Terms, parts: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """The loss's gradient is a sum of two: through the errors on targets, and through the log-probs of own samples.

    Both hold the same factor -beta sigmoid(-beta h), so their norms are on one scale: that of the update.

    Args:
        parts: the rows of a minibatch, by micro-batches; their gradients are averaged before a norm is taken.

    Returns:
        {"gradient_target", "gradient_reference": norms before clipping, "gradient_cosine": of the two}.
    """
    sums: list[Tensor | float] = [0.0, 0.0]
    for part in parts:
        loss, *inputs = terms(part)
        outward = torch.autograd.grad(loss, inputs, retain_graph=True)
        for i, (value, gradient) in enumerate(zip(inputs, outward, strict=True)):
            found = torch.autograd.grad(value, parameters, gradient, retain_graph=i == 0)
            share = len(part) / sum(map(len, parts))
            sums[i] = sums[i] + share * torch.cat([g.flatten() for g in found])
    target, reference = sums
    return {
        "gradient_target": target.norm(),
        "gradient_reference": reference.norm(),
        "gradient_cosine": torch.nn.functional.cosine_similarity(target, reference, dim=0),
    }
