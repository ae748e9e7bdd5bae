"""Distribution matching of a one-step generator: Diff-Instruct, DI++, SIM, DI*.

python reproduce/train_distill.py --method diff-instruct             # a one-step student out of the teacher
python reproduce/train_distill.py --method dipp                      # aligned with a reward
python reproduce/evaluate.py --model pocket-teacher --checkpoint reproduce/runs/dipp-pocket --steps 1

One update [DI++ Alg. 1]: the assistant learns, some times, to denoise samples of the student; then the student moves
by what assistant and teacher predict on its noised samples, and by the reward of its decoded ones. Each of these has
prompts, noise and times of its own. Samples are noised in EDM's form, x = x_0 + sigma eps, in which a VP network is
called at the nearest of its levels (see `fsalign_lib.edm`); a uniform time t is sigma_t. What stays is the average of
the student's weights. The three networks are `fsalign_lib.trio`'s.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import DistributedType
from torch import Tensor
from tqdm import tqdm

from fsalign_lib.kernels import Kernel
from fsalign_lib.losses.distribution_matching import (
    assistant_loss,
    guidance_reward,
    guided,
    inverse_gap_weight,
    reward_term,
)
from fsalign_lib.models.conditioning import Cond, cat
from fsalign_lib.models.edm import denoise
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.models.load import load
from fsalign_lib.models.student_teacher import Trio, build_trio
from fsalign_lib.rewards.jpeg import JPEGReward
from fsalign_lib.rollout import seeded_noise
from reproduce.common.cli import check_finite, command_line, generator
from reproduce.data.prompt_sets import read_prompts
from reproduce.train_offline import KEPT_PROMPTS
from reproduce.training.distill_config import DistillConfig, check_settings, one_step
from reproduce.training.distillation import ASSISTANT_WEIGHTS, KL_WEIGHTS
from reproduce.training.ema import Average
from reproduce.training.methods import METHODS, Matched, find
from reproduce.training.run import Losses, Run, check, divides, load_model, parse_training
from reproduce.training.sampling import Reward, round_rows

STUDENT, ASSISTANT = 0, 1  # of the run's two learners


@dataclass
class Setup:
    """Everything a run needs, checked."""

    config: DistillConfig
    trio: Trio
    reward: Reward | None
    prompts: list[str]
    cond: Cond | None  # len(prompts); None: there are too many to be kept
    kernel: Kernel  # of the student
    run: Run
    average: Average

    @property
    def model(self) -> LatentModel:
        return self.trio.student


@dataclass
class Batch:
    """What a batch is made of: the same on all processes. A row is a place in it."""

    number: int
    prompts: Tensor  # (B,) long
    sigma: Tensor  # (B,) float64


def prepare(
    config: DistillConfig,
    model: LatentModel | None = None,
    teacher: LatentModel | None = None,
    reward: Reward | None = None,
) -> Setup:
    """Check the settings, load what they name. What is given is taken in place of the named."""
    find(config.method, "distill")
    check_settings(config)
    check(config)
    divides(config, "batch")
    prompts = read_prompts(config.prompts)
    if config.threads:
        torch.set_num_threads(config.threads)
    dtype = getattr(torch, config.dtype)
    teacher = teacher or load(config.teacher, dtype)
    if model is None:
        model = teacher if config.model == config.teacher else load_model(config)
    trio = build_trio(model, teacher, config.training, config.rank, config.alpha, config.seed)
    kernel = one_step(config, trio.student)
    if config.reward is not None and reward is None:
        from fsalign_lib.rewards import load_reward

        reward = load_reward(config.reward, scale=config.scale)
    if isinstance(reward, JPEGReward):
        raise ValueError(f"reward {config.reward} has no gradient: choose another, or train_online.py")
    run = Run(config, trio.student, trio.assistant, config.assistant_lr)
    if run.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError("distillation trains two networks: launch it with several processes, not FSDP or DeepSpeed")
    teacher.to(run.accelerator.device)
    if config.gradient_checkpointing:
        teacher.checkpoint_gradients()
    if teacher.unet not in (trio.student.unet, trio.assistant.unet):
        teacher.network = run.accelerator.prepare_model(teacher.unet, evaluation_mode=True)
    average = run.trained = Average(trio.student, config.ema, config.ema_ramp)
    run.keep(average)
    if isinstance(reward, torch.nn.Module):
        reward.to(teacher.device)
    cond = trio.student.encode_prompts(prompts) if len(set(prompts)) <= KEPT_PROMPTS else None
    return Setup(config, trio, reward, prompts, cond, kernel, run, average)


def draw_sigma(config: DistillConfig, model: LatentModel, number: int, first: int, last: int) -> Tensor:
    """The noise levels of a batch.  # (B,) float64"""
    c, levels = config, model.schedule
    uniform = torch.rand(c.batch, generator=generator("sigma", c.seed, number), dtype=torch.float64)
    if c.times == "uniform":
        return levels.sigma((first + uniform * (last - first + 1)).long())
    # Truncated by the quantile function, not by clamping, which would heap the tails upon the two ends.
    mean, std = c.log_sigma
    ends = torch.tensor([levels.sigma(0), levels.sigma(levels.num_train_timesteps - 1)], dtype=torch.float64).log()
    low, high = torch.special.ndtr((ends - mean) / std)
    return (mean + std * torch.special.ndtri(low + uniform * (high - low))).clamp(*ends.tolist()).exp()


def batch(setup: Setup, number: int, of: int) -> Batch:
    """The batch of that number, for the student or for the assistant."""
    c, model = setup.config, setup.model
    first, last = c.time_range if of == STUDENT else (0, model.schedule.num_train_timesteps - 1)
    prompts = round_rows(c.seed, number, len(setup.prompts), c.batch)
    return Batch(number, prompts, draw_sigma(c, model, number, first, last))


@dataclass
class Samples:
    """Rows of a batch: samples of the student, with or without its graph, and noised ones."""

    prompts: list[str]
    cond: Cond
    x0: Tensor  # (b, C, h, w)
    x: Tensor  # x_0 + sigma eps
    sigma: Tensor  # (b,) float64


def samples(setup: Setup, batch: Batch, rows: Tensor) -> Samples:
    """Of the rows of a batch. Noise depends on (seed, batch, prompt, place) alone."""
    c, model = setup.config, setup.model
    chosen = batch.prompts[rows]
    # A prompt that comes twice in a batch must not get the same noise twice, so the place counts.
    ids = rows * len(setup.prompts) + chosen
    z, eps = seeded_noise(c.seed, batch.number, ids, model.latent_shape, 2).to(model.device).unbind(1)
    names = [setup.prompts[i] for i in chosen]
    with torch.no_grad():
        cond = model.text.encode(names) if setup.cond is None else setup.cond[chosen]
    return generate(setup, names, cond, z, eps, batch.sigma[rows].to(model.device))


def generate(setup: Setup, prompts: list[str], cond: Cond, z: Tensor, eps: Tensor, sigma: Tensor) -> Samples:
    """One network call of the student on z, noised by sigma eps."""
    kernel = setup.kernel
    x0 = setup.model.predict_x0(kernel.model_input(kernel.initial(z), 0), int(kernel.timesteps[0]), cond)
    return Samples(prompts, cond, x0, x0 + sigma.to(x0.dtype).view(-1, 1, 1, 1) * eps, sigma)


def assistant_part(setup: Setup, batch: Batch, rows: Tensor) -> Losses:
    """The assistant's loss on some rows."""
    with torch.no_grad():
        some = samples(setup, batch, rows)
    return follow(setup, some)


def follow(setup: Setup, some: Samples) -> Losses:
    """DI++ Alg. 1, the assistant's denoising loss."""
    denoised = denoise(setup.trio.assistant, some.x, some.sigma, some.cond)
    weight = ASSISTANT_WEIGHTS[setup.config.assistant_weighting](some.sigma)
    return assistant_loss(denoised, some.x0, weight, setup.config.reduction), {}


def reference(setup: Setup, some: Samples, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The teacher's d_ref(x), and that without a prompt where guidance is a reward."""
    c, teacher = setup.config, setup.trio.teacher
    null, scale = teacher.null(len(x)), c.guidance
    if c.guidance_by == "reference" and scale != 1:  # both halves in one call
        twice = torch.cat([x, x]), torch.cat([some.sigma, some.sigma]), cat([null, some.cond])
        unconditional, conditional = denoise(teacher, *twice).chunk(2)
        return guided(conditional, unconditional, scale), None
    conditional = denoise(teacher, x, some.sigma, some.cond)
    if c.guidance_by == "reference" or scale == 0:
        return conditional, None
    with torch.no_grad():
        return conditional, denoise(teacher, x, some.sigma, null)


def student_part(setup: Setup, batch: Batch, rows: Tensor) -> Losses:
    """The student's loss on some rows, and what is worth watching."""
    return match(setup, samples(setup, batch, rows), batch.number)


def match(setup: Setup, some: Samples, number: int) -> Losses:
    """The method's loss; `number` is the batch's, for messages."""
    c = setup.config
    method = METHODS[c.method]
    through = "input gradients" in method.needs
    x = some.x if through else some.x.detach()
    with torch.set_grad_enabled(through):
        assistant = denoise(setup.trio.assistant, x, some.sigma, some.cond)
        teacher, unconditional = reference(setup, some, x)
    check_finite("the teacher's prediction", teacher, some.prompts, c.seed, number)
    reward = None
    if setup.reward is not None and c.reward_scale:
        pictures = setup.model.decode(some.x0, c.through_clamp)
        reward = setup.reward(pictures, some.prompts).float()
        check_finite(f"reward {c.reward}", reward, some.prompts, c.seed, number)
    data = Matched(some.x0, some.x, some.sigma.to(some.x.dtype), assistant, teacher)
    data.weight = KL_WEIGHTS[c.weighting](data)
    loss, diagnostics = method.loss(*method.inputs(data, c))
    if unconditional is not None:
        weight = data.weight
        if through and c.distance == "pseudo-huber":
            # The paper leaves this reward's w(t) open. The divergence is normalised, so this is: with w = 1 it pulled
            # 27 times as hard at a guidance of 2.5 (mean norms per sample, the pocket's one-step generator).
            weight = weight * inverse_gap_weight(teacher, unconditional)
        loss = loss + c.guidance * guidance_reward(teacher, unconditional, some.x, weight, c.reduction)
    if reward is not None:
        loss = loss + reward_term(reward, c.reward_scale)
        diagnostics = diagnostics | {"reward": reward.detach().mean()}
    return loss, diagnostics


def assistant_update(setup: Setup, number: int) -> dict[str, Tensor]:
    """One step of the assistant's optimizer, on batch `number`."""
    return _update(setup, batch(setup, number, ASSISTANT), assistant_part, ASSISTANT)


def student_update(setup: Setup, number: int) -> dict[str, Tensor]:
    """One step of the student's optimizer, on batch `number`."""
    return _update(setup, batch(setup, number, STUDENT), student_part, STUDENT)


def _update(setup: Setup, drawn: Batch, part, which: int) -> dict[str, Tensor]:
    names = [setup.prompts[i] for i in drawn.prompts]
    return setup.run.update(torch.arange(len(names)), partial(part, setup, drawn), names, drawn.number, which)


def train(setup: Setup) -> Iterator[dict[str, float]]:
    """Yield each update's record: of the student its loss, gradient norm, gap (mean ||d_psi - d_ref||, or of scores),
    divergence and reward; of the assistant the mean of its losses and gradient norms."""
    c, run = setup.config, setup.run
    for update in range(run.start, c.updates):
        first = update * (c.assistant_updates + 1)
        numbers = list(range(first, first + c.assistant_updates))
        if update == 0:
            numbers = [*range(-c.warmup, 0), *numbers]
        followed = [assistant_update(setup, number) for number in numbers]
        record = student_update(setup, first + c.assistant_updates)
        setup.average.update(update)
        for name in ("loss", "gradient"):
            record[f"assistant_{name}"] = torch.stack([r[name] for r in followed]).mean()
        yield run.record(update, c.updates, record)
    setup.average.finish()


def run(setup: Setup) -> None:
    total = setup.config.updates
    bar = tqdm(train(setup), initial=setup.run.start, total=total, desc=setup.config.method, unit="update")
    for record in bar:
        bar.set_postfix({k: f"{record[k]:.3g}" for k in ("gap", "reward", "assistant_loss") if k in record})
    setup.run.finish()


def main(argv: Sequence[str] | None = None) -> None:
    command_line(parse_training(DistillConfig, "diff-instruct", __doc__), prepare, run, argv)


if __name__ == "__main__":
    main()
