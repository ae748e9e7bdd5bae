"""What is known exactly: a network for Gaussian data, the KL between cells, the Gaussian fitted to samples."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from fsalign_lib.metrics.frechet import Gaussian, Moments
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.schedules import NoiseSchedule


class GaussianNetwork(nn.Module):
    """The posterior mean of the noise for data N(mean, exp(log_std)^2), whatever the prompt; both are trained."""

    def __init__(self, mean: float, std: float, channels: int = 4):
        super().__init__()
        self.config = SimpleNamespace(in_channels=channels)
        self.mean = nn.Parameter(torch.tensor(float(mean)))
        self.log_std = nn.Parameter(torch.tensor(std).log())
        self.alpha_bar = NoiseSchedule.scaled_linear().alpha_bar.float()

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def forward(self, x_t: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        ab = self.alpha_bar[timestep].view(-1, 1, 1, 1)
        variance = ab * (2 * self.log_std).exp() + 1 - ab
        return ((1 - ab).sqrt() * (x_t - ab.sqrt() * self.mean) / variance,)

    def generated(self, t: int) -> tuple[Tensor, Tensor]:
        """Mean and std of its one-step samples, from x_t ~ N(0, I): they are Gaussian too."""
        ab, data = self.alpha_bar[t], (2 * self.log_std).exp()
        variance = ab * data + 1 - ab
        return self.mean * (1 - ab) / variance, ab.sqrt() * data / variance


def gaussian(model: LatentModel, mean: float, std: float) -> LatentModel:
    """The model with that network in the place of its own."""
    return model.with_network(GaussianNetwork(mean, std))


def kl(mean: Tensor, std: Tensor, mean_ref: float, std_ref: float) -> float:
    """KL of N(mean, std^2) to the reference, of one value."""
    mean, std = mean.detach(), std.detach()
    ratio = std / std_ref
    return float(0.5 * (ratio**2 + ((mean - mean_ref) / std_ref) ** 2 - 1) - ratio.log())


def discrete_kl(p, q) -> float:
    """The sum of p_i log(p_i / q_i) between probabilities."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0).sum())


def fitted(features) -> Gaussian:
    """The Gaussian with the mean and the unbiased covariance of feature rows."""
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments.gaussian()
