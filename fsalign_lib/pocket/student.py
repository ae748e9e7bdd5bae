"""Distil the teacher into a student of four steps and one.

First the student learns to jump to the end of the teacher's own sampling path (regression on pairs, as DMD's warm-up),
from each of the four noise levels where it will be used. Then distribution matching [DMD2, arXiv 2405.14867] sharpens
it: pictures from the student's own few-step sampler are noised, and moved along the difference between what the
guided teacher and a network fitted to the student's pictures predict.

The student is a network of its own, all of whose weights are trained, or a LoRA on the teacher, as DMD2's: then another
teacher, aligned after this one was distilled, can take the LoRA.
"""

import copy
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsalign_lib.kernels import DDIM, Renoise
from fsalign_lib.pocket import networks
from fsalign_lib.pocket.captions import random_fact
from fsalign_lib.pocket.fit import ema_update, fit, learning_rate, save_atomic, step_generator
from fsalign_lib.pocket.teacher import captions, token_ids
from fsalign_lib.schedules import NoiseSchedule, renoise_timesteps, trailing_timesteps

GUIDANCE = 2.5
PAIRS = 3_072
PAIR_STEPS = 8  # a multiple of 4, so that the path passes the student's own noise levels
BATCH = 32
FAKE_PER_GENERATOR = 3
# The first step alone decides the one-step picture, and the content of the four-step one.
STEP_WEIGHTS = (0.46, 0.18, 0.18, 0.18)
SHAPE = (4, 16, 16)


@dataclass(frozen=True)
class Course:
    """Say what is trained, for how long, at which learning rates."""

    name: str  # of the training states
    lora: bool = False
    regression_steps: int = 700
    regression_lr: float = 3e-4
    matching_steps: int = 1_200
    matching_lr: float = 1e-4


STUDENT = Course("student")
DMD_LORA = Course("dmd-lora", lora=True, regression_steps=200, regression_lr=1e-3, matching_steps=300, matching_lr=5e-4)


class Prompts:
    """Hold text embeddings (N, 16, 64) of random training captions, computed once."""

    def __init__(self, text_encoder, tokenizer, count: int, seed: int):
        rng = random.Random(seed)
        facts = [random_fact(rng) for _ in range(count)]
        with torch.no_grad():
            ids = token_ids(tokenizer, [*captions(facts, seed), ""])
            embeddings = text_encoder(ids).last_hidden_state
        self.cond, self.empty = embeddings[:-1], embeddings[-1:]


def predict_x0(unet, schedule: NoiseSchedule, x_t: Tensor, t: int | Tensor, cond: Tensor) -> Tensor:
    """Predict the clean latent from the noise that the network predicts."""
    times = t if isinstance(t, Tensor) else torch.full((len(x_t),), t)
    return schedule.x0_from_eps(x_t, unet(x_t, times, cond).sample, times)


def guided_x0(unet, schedule: NoiseSchedule, x_t: Tensor, t: Tensor, cond: Tensor, empty: Tensor) -> Tensor:
    """Predict x0 with classifier-free guidance, both halves in one forward."""
    both = unet(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([cond, empty.expand_as(cond)])).sample
    with_text, without = both.chunk(2)
    return schedule.x0_from_eps(x_t, without + GUIDANCE * (with_text - without), t)


@torch.no_grad()
def teacher_paths(teacher, prompts: Prompts, schedule: NoiseSchedule, seed: int, path: Path) -> dict[str, Tensor]:
    """Sample the guided teacher's DDIM paths: states at the student's four noise levels (N, 4, ...), and their ends."""
    if path.exists():
        return load_file(path)
    kernel = DDIM(schedule, trailing_timesteps(PAIR_STEPS), eta=0.0)
    kept, ends, rows = [], [], []
    for step in range(PAIRS // 64):
        generator = step_generator(seed, step)
        row = torch.randint(len(prompts.cond), (64,), generator=generator)
        x, cond, states = torch.randn(64, *SHAPE, generator=generator), prompts.cond[row], []
        for n, t in enumerate(kernel.timesteps.tolist()):
            if n % (PAIR_STEPS // 4) == 0:
                states.append(x)
            x0 = guided_x0(teacher, schedule, x, torch.full((64,), t), cond, prompts.empty)
            x = kernel.mean(x, x0, n)
        kept.append(torch.stack(states, 1))
        ends.append(x0)
        rows.append(row)
        if step % 8 == 7:
            print(f"teacher paths {(step + 1) * 64}/{PAIRS}", flush=True)
    paths = {"states": torch.cat(kept), "ends": torch.cat(ends), "rows": torch.cat(rows)}
    save_file(paths, path)
    return paths


def train(teacher, text_encoder, tokenizer, folder: Path, seed: int, course: Course = STUDENT):
    """Train the student, and return it: a UNet of the teacher's class, averaged over its training (EMA).

    Args:
        seed: of the teacher's paths, too, which are kept in `folder` and serve every course of that seed.
    """
    torch.manual_seed(seed)
    teacher.requires_grad_(False)
    schedule = NoiseSchedule.scaled_linear()
    prompts = Prompts(text_encoder, tokenizer, 20_000, seed)
    paths = teacher_paths(teacher, prompts, schedule, seed, folder / "teacher-paths.safetensors")
    times = renoise_timesteps(4)
    student = networks.with_lora(teacher) if course.lora else copy.deepcopy(teacher).requires_grad_(True)

    def regression(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(PAIRS, (BATCH,), generator=generator)
        level = torch.multinomial(torch.tensor(STEP_WEIGHTS), BATCH, replacement=True, generator=generator)
        x_t, cond = paths["states"][index, level], prompts.cond[paths["rows"][index]]
        return F.smooth_l1_loss(predict_x0(student, schedule, x_t, times[level], cond), paths["ends"][index], beta=0.1)

    steps, lr = course.regression_steps, course.regression_lr
    fit(f"{course.name}-regression", student, regression, folder, steps=steps, lr=lr, seed=seed)
    return match_distributions(student, teacher, prompts, schedule, folder, seed, course)


def match_distributions(
    student, teacher, prompts: Prompts, schedule: NoiseSchedule, folder: Path, seed: int, course: Course
):
    """Train by DMD2 without its discriminator: the fake network at every step, the student at every third."""
    kernel = Renoise(schedule, renoise_timesteps(4))
    alpha_bar = schedule.alpha_bar
    fake, ema = copy.deepcopy(teacher).requires_grad_(True), copy.deepcopy(student).requires_grad_(False)
    trained = [p for p in student.parameters() if p.requires_grad]
    student_optimizer = torch.optim.AdamW(
        trained, lr=course.matching_lr, weight_decay=0.0, betas=(0.0, 0.99), fused=True
    )
    fake_optimizer = torch.optim.AdamW(fake.parameters(), lr=2e-4, weight_decay=0.0, betas=(0.0, 0.99), fused=True)
    parts = {"student": student, "fake": fake, "ema": ema, "so": student_optimizer, "fo": fake_optimizer}
    path, start, steps = folder / f"{course.name}.pt", 0, course.matching_steps
    if path.exists():
        state = torch.load(path, weights_only=True)
        start = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    begun = time.time()
    for step in range(start, steps):
        generator = step_generator(seed + 50, step)
        cond = prompts.cond[torch.randint(len(prompts.cond), (BATCH,), generator=generator)]
        n = int(torch.multinomial(torch.tensor(STEP_WEIGHTS), 1, generator=generator))
        moves = step % FAKE_PER_GENERATOR == 0
        with torch.no_grad():  # backward simulation: the student's own states, as at inference
            x = torch.randn(BATCH, *SHAPE, generator=generator)
            for m in range(n):
                x0 = predict_x0(student, schedule, x, int(kernel.timesteps[m]), cond)
                x = kernel.sample(x, x0, m, torch.randn(x.shape, generator=generator))
        with torch.set_grad_enabled(moves):
            x0 = predict_x0(student, schedule, x, int(kernel.timesteps[n]), cond)
        if moves:
            t = torch.randint(20, 981, (BATCH,), generator=generator)
            with torch.no_grad():
                x_t = schedule.add_noise(x0, torch.randn(x0.shape, generator=generator), t)
                real = guided_x0(teacher, schedule, x_t, t, cond, prompts.empty)
                gradient = predict_x0(fake, schedule, x_t, t, cond) - real
                gradient = gradient / (x0 - real).abs().mean((1, 2, 3), keepdim=True)
            student_loss = 0.5 * F.mse_loss(x0, (x0 - gradient).detach())
            for group in student_optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, course.matching_lr)
            student_optimizer.zero_grad()
            student_loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            student_optimizer.step()
            ema_update(ema, student, 0.99)
        t = torch.randint(len(alpha_bar), (BATCH,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        fake_loss = F.mse_loss(fake(schedule.add_noise(x0.detach(), eps, t), t, cond).sample, eps)
        if not torch.isfinite(fake_loss):
            raise FloatingPointError(f"{course.name}: the fake network's loss is {fake_loss.item()} at step {step}")
        fake_optimizer.zero_grad()
        fake_loss.backward()
        torch.nn.utils.clip_grad_norm_(fake.parameters(), 1.0)
        fake_optimizer.step()
        if (step + 1) % 150 == 0 or step + 1 == steps:
            pace = (time.time() - begun) / (step + 1 - start)
            print(f"{course.name} {step + 1}/{steps} fake {fake_loss.item():.4f} {pace:.2f} s/step", flush=True)
            save_atomic({"step": step + 1} | {name: part.state_dict() for name, part in parts.items()}, path)
    return ema.eval()
