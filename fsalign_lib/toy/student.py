"""Build the exact teacher of a mixture, and distil a small few-step student from it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fsalign_lib.schedules import NoiseSchedule, renoise_timesteps
from fsalign_lib.toy.mixture import CLASS_NAMES, GaussianMixture, probability_flow, toy_mixture

STUDENT_FILE = Path(__file__).with_name("student.safetensors")


@dataclass(frozen=True)
class ToyTeacher:
    r"""Predict a mixture's $\hat x_0 = E[x_0|x_t, c]$ exactly, guided if `guidance_scale` is not 1."""

    mixture: GaussianMixture = field(default_factory=toy_mixture)
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule.scaled_linear)
    guidance_scale: float = 1.0

    def predict_x0(self, x_t: Tensor, t, cond) -> Tensor:
        r"""Predict x0_hat (B, 2) from x_t (B, 2), t int or (B,), and cond (B,) classes."""
        return self.mixture.guided_posterior_mean(x_t, self.schedule.alpha_bar[t], cond, self.guidance_scale)

    def predict_eps(self, x_t: Tensor, t, cond) -> Tensor:
        """Predict the noise that belongs to `predict_x0`."""
        return self.schedule.eps_from_x0(x_t, self.predict_x0(x_t, t, cond), t)

    def reference(self):
        """Make the model its reference within the block."""
        return contextlib.nullcontext(self)


class ToyStudent(nn.Module):
    r"""Predict by a small network: $\hat x_0 = \sqrt{\bar\alpha_t}\,x_t - \sqrt{1-\bar\alpha_t}\,F_\theta(x_t, t, c)$.

    The network gives a velocity, so that no noise level divides by a small $\sqrt{\bar\alpha_t}$; time and class scale
    and shift its three hidden layers. `reference()` is a context under which predictions come from the weights of the
    last `freeze_reference()`.
    """

    def __init__(self, num_classes: int = len(CLASS_NAMES), width: int = 64, schedule: NoiseSchedule | None = None):
        super().__init__()
        self.schedule = schedule or NoiseSchedule.scaled_linear()
        self.num_classes = num_classes
        self.classes = nn.Embedding(num_classes + 1, 16)  # the last row is "no class"
        self.condition = nn.Linear(16 + 16, 64)
        self.hidden = nn.ModuleList([nn.Linear(size, width) for size in (2, width, width)])
        self.modulation = nn.ModuleList([nn.Linear(64, 2 * width) for _ in self.hidden])
        self.out = nn.Linear(width, 2)
        self._frozen: dict[str, Tensor] | None = None
        self._in_reference = False

    def forward(self, x_t: Tensor, t, cond: Tensor) -> Tensor:
        t = torch.as_tensor(t).expand(len(x_t))
        phase = (math.pi / 2) * torch.arange(1, 9) * (t[:, None] + 1) / self.schedule.num_train_timesteps
        classes = self.classes(torch.where(cond == -1, self.num_classes, cond))
        condition = F.silu(self.condition(torch.cat((phase.sin().to(x_t), phase.cos().to(x_t), classes), dim=1)))
        h = x_t
        for layer, modulation in zip(self.hidden, self.modulation, strict=True):
            scale, shift = modulation(condition).chunk(2, dim=1)
            h = F.silu(layer(h) * (1 + scale) + shift)
        return self.schedule.x0_from_v(x_t, self.out(h), t)

    def predict_x0(self, x_t: Tensor, t, cond: Tensor) -> Tensor:
        r"""Predict x0_hat (B, 2) from x_t (B, 2), t int or (B,), and cond (B,) classes."""
        if self._in_reference:
            return torch.func.functional_call(self, self._frozen, (x_t, t, cond))
        return self(x_t, t, cond)

    def predict_eps(self, x_t: Tensor, t, cond: Tensor) -> Tensor:
        """Predict the noise that belongs to `predict_x0`."""
        return self.schedule.eps_from_x0(x_t, self.predict_x0(x_t, t, cond), t)

    def freeze_reference(self) -> ToyStudent:
        r"""Make the present weights the reference; return the student itself."""
        self._frozen = {name: value.detach().clone() for name, value in self.state_dict().items()}
        return self

    @contextlib.contextmanager
    def reference(self) -> Iterator[ToyStudent]:
        """Make the model its reference within the block."""
        if self._frozen is None:
            raise ValueError("this student has no reference yet: call freeze_reference() before training it")
        self._in_reference = True
        try:
            yield self
        finally:
            self._in_reference = False


def distil(
    teacher: ToyTeacher,
    seed: int = 0,
    steps: int = 6000,
    trajectories: int = 8192,
    batch_size: int = 512,
    learning_rate: float = 8e-3,
) -> ToyStudent:
    r"""Distil a few-step student by regression on the exact ODE: $\min_\theta E\,\|\hat x_0(x_t, t, c) - x_0(x_t)\|^2$,

    where $x_0(x_t)$ is the end of the exact trajectory through $x_t$ (the ideal consistency function), not the
    posterior mean: its few-step samples are therefore sharp. A quarter of the trajectories have no class; each
    is seen at the 40 times that hold the renoise grids of 1, 2, 4, 5, 8, 10, 20 and 40 steps. Deterministic in `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    fine = renoise_timesteps(200)
    sigmas = torch.cat((teacher.schedule.sigma(fine), torch.zeros(1)))
    cond = torch.randint(-1, teacher.mixture.num_classes, (trajectories,), generator=generator)
    start = float(sigmas[0]) * torch.randn(len(cond), 2, generator=generator)
    states = probability_flow(teacher.mixture, start, sigmas, cond, teacher.guidance_scale)
    times, target = fine[::5], states[-1]
    inputs = torch.stack([teacher.schedule.ve_to_vp(x, int(t)) for x, t in zip(states[:-1:5], times, strict=True)])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = ToyStudent(teacher.mixture.num_classes, schedule=teacher.schedule)
    optimizer = torch.optim.Adam(student.parameters(), learning_rate, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        i = torch.randint(len(times), (batch_size,), generator=generator)
        j = torch.randint(len(cond), (batch_size,), generator=generator)
        loss = (student(inputs[i, j], times[i], cond[j]) - target[j]).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return student.freeze_reference()


def load_student(path: str | Path = STUDENT_FILE) -> ToyStudent:
    """Load the shipped student, which `python -m fsalign_lib.toy` distils from `ToyTeacher()`; its own reference."""
    student = ToyStudent()
    student.load_state_dict(load_file(path))
    return student.freeze_reference()
