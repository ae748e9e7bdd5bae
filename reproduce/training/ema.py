"""Average trained weights over updates (EMA): a distillation leaves the average, and its checkpoints hold it."""

import torch
from torch import Tensor

from fsalign_lib.models.latent_model import LatentModel, share_of, whole


class Average:
    r"""Average a model's trained weights: $\bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta$ after each update.

    Args:
        decay: d; 0 keeps the weights themselves.
        ramp: EDM's warm-up: after u updates the half-life is at most ramp * u updates, so that a young average does
            not lag behind; None: d throughout.
    """

    def __init__(self, model: LatentModel, decay: float, ramp: float | None = None):
        self.model, self.decay, self.ramp = model, decay, ramp
        self.weights = {name: p.detach().clone() for name, p in model.trained_parameters().items()}

    def decay_at(self, update: int) -> float:
        """Return d after update number `update`, 0 the first."""
        if self.ramp is None:
            return self.decay
        return min(self.decay, 0.5 ** (1 / (self.ramp * update))) if update else 0.0

    @torch.no_grad()
    def update(self, update: int) -> None:
        """Move the average towards the weights, after update number `update`, 0 the first."""
        weights = list(self.model.trained_parameters().values())
        torch._foreach_lerp_(list(self.weights.values()), weights, 1 - self.decay_at(update))

    @torch.no_grad()
    def finish(self) -> None:
        """Put the average in the place of the model's weights."""
        for name, p in self.model.trained_parameters().items():
            p.copy_(self.weights[name])

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return the average, `whole` each. Under FSDP each process holds a share: all must call it."""
        return {name: whole(w) for name, w in self.weights.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights themselves: a resumed run has loaded the average in their place."""
        return self.model.trained_tensors()

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put the weights back into the model; the average stays as it was loaded."""
        for name, p in self.model.trained_parameters().items():
            p.copy_(share_of(state[name], p))
