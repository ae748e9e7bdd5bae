r"""Distil the teacher into a latent consistency model, as a LoRA on it [LCM, arXiv 2310.04378; LCM-LoRA, 2311.05556].

The consistency function $f(x, t) = c_{skip}(t)\, x + c_{out}(t)\, \hat x_0(x, t)$ is to give one picture all along a
path of the teacher's probability-flow ODE. So at a noised training latent it is moved to what its own average gives one
solver step nearer to the picture: a DDIM step of the guided teacher along the grid that the student is sampled on, 20
training times at once. The guidance weight is one and the same throughout, and the student needs no guidance.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from fsalign_lib.kernels import DDIM
from fsalign_lib.models.consistency import boundary_scalings
from fsalign_lib.pocket import networks
from fsalign_lib.pocket.fit import fit
from fsalign_lib.pocket.student import guided_x0, predict_x0
from fsalign_lib.schedules import NoiseSchedule, lcm_timesteps

STEPS = 400
BATCH = 32
LEARNING_RATE = 1e-3
EMA_DECAY = 0.95  # LCM's
ORIGIN_STEPS = 50  # as presets.LCM_SCHEDULER
TIMESTEP_SCALING = 10.0  # diffusers' LCMScheduler's
HUBER = 0.001


def consistency(unet: nn.Module, schedule: NoiseSchedule, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """Evaluate the consistency function f(x_t, t) of a noise-predicting network; at t = 0 it is x_t.  # (B, ...)"""
    c_skip, c_out = boundary_scalings(t, TIMESTEP_SCALING, x_t)
    return c_skip * x_t + c_out * predict_x0(unet, schedule, x_t, t, cond)


@torch.no_grad()
def target(teacher: nn.Module, average: nn.Module, solver: DDIM, x_t: Tensor, n: Tensor, cond: Tensor, empty: Tensor):
    """Return what f is moved to at step n (B,) of the solver's grid: the EMA's f after a step of the guided teacher."""
    x0 = guided_x0(teacher, solver.schedule, x_t, solver.timesteps[n], cond, empty)
    after = torch.cat([solver.timesteps[1:], torch.zeros(1, dtype=torch.long)])[n]
    return consistency(average, solver.schedule, solver.mean(x_t, x0, n), after, cond)


def train(teacher: nn.Module, text_encoder: nn.Module, latents: Tensor, ids: Tensor, empty: Tensor, folder: Path, seed):
    """Train the LoRA, and return the teacher with it, averaged over its training (EMA).

    Args:
        latents: scaled latents (N, 4, 16, 16).
        ids: caption tokens (N, 16). empty: tokens of the empty caption (16,).
    """
    torch.manual_seed(seed)
    solver = DDIM(NoiseSchedule.scaled_linear(), lcm_timesteps(ORIGIN_STEPS, ORIGIN_STEPS), eta=0.0)
    student = networks.with_lora(teacher)
    average = copy.deepcopy(student).requires_grad_(False)
    with torch.no_grad():
        null = text_encoder(empty[None]).last_hidden_state

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (BATCH,), generator=generator)
        n = torch.randint(ORIGIN_STEPS, (BATCH,), generator=generator)
        t, eps = solver.timesteps[n], torch.randn(latents[index].shape, generator=generator)
        x_t = solver.schedule.add_noise(latents[index], eps, t)
        with torch.no_grad():
            cond = text_encoder(ids[index]).last_hidden_state
        goal = target(teacher, average, solver, x_t, n, cond, null)
        return pseudo_huber(consistency(student, solver.schedule, x_t, t, cond) - goal, HUBER).mean()

    fit(
        "lcm",
        student,
        loss,
        folder,
        steps=STEPS,
        lr=LEARNING_RATE,
        seed=seed,
        ema=average,
        ema_decay=EMA_DECAY,
        weight_decay=0.0,
    )
    return average.eval()


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    r"""Return $\sqrt{d^2 + c^2} - c$ of every element d: quadratic near 0, |d| far from it.  # of difference's shape"""
    return (difference**2 + c**2).sqrt() - c
