"""Match distributions with a one-step generator: Diff-Instruct, DI++, SIM, DI*.

python reproduce/train_distill.py --method diff-instruct             # a one-step student out of the teacher
python reproduce/train_distill.py --method dipp                      # aligned with a reward
python reproduce/evaluate.py --model pocket-teacher --checkpoint reproduce/runs/dipp-pocket --steps 1

An update [DI++ Alg. 1], in `train`:

1. The assistant learns, some times, to denoise samples of the student.
2. The student moves by what assistant and teacher predict on its noised samples, and by the reward of its decoded ones.
3. The average of the student's weights, which is what stays, follows; the update is recorded.

Each of these updates has prompts, noise and times of its own. Samples are noised in EDM's form, x = x_0 + sigma eps, in
which a VP network is called at the nearest of its levels (see `fsalign_lib.models.edm`); a uniform time t is sigma_t.
The three networks are those of `fsalign_lib.models.student_teacher`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from accelerate import DistributedType
from torch import Tensor
from tqdm import tqdm

from fsalign_lib.devices import send
from fsalign_lib.kernels import Kernel
from fsalign_lib.losses.common import Diagnostics
from fsalign_lib.losses.distribution_matching import (
    Distance,
    assistant_loss,
    edm_weight,
    guidance_reward,
    guided,
    inverse_gap_weight,
    reward_term,
)
from fsalign_lib.models.conditioning import Cond, cat
from fsalign_lib.models.edm import denoise
from fsalign_lib.models.latent_model import LatentModel, fingerprint
from fsalign_lib.models.student_teacher import Trio, build_trio
from fsalign_lib.rewards import load_reward
from fsalign_lib.rewards.jpeg import JPEGReward
from fsalign_lib.rollout import seeded_noise
from reproduce.common.cli import check_finite, command_line, generator, positive
from reproduce.common.files import digest, last_checkpoint
from reproduce.data.encoded_prompts import store_prompts
from reproduce.data.prompt_sets import read_prompts, warn_of_cut
from reproduce.training.config import KEPT_PROMPTS, RewardFunction, TrainConfig, parse_training
from reproduce.training.ema import Average
from reproduce.training.methods import METHODS, Matched, find
from reproduce.training.run import Run, check_divides, check_training, epoch_rows, fsdp_asked, kept, load_model

STUDENT, ASSISTANT = 0, 1  # of the run's two learners

# w(t) of the student's loss, on denoisers
WEIGHTS: dict[str, Callable[[Matched], float | Tensor]] = {
    "denoiser": lambda data: 1.0,
    "score": lambda data: data.sigma**-2,
    "inverse-gap": lambda data: inverse_gap_weight(data.assistant, data.reference),
    "dmd2": lambda data: 1 / (data.x0 - data.reference).detach().abs().flatten(1).mean(1).clamp_min(1e-6),
}
SCORE_WEIGHTS = ("denoiser", "score")  # those that make sense for a distance, which has its own normaliser
# lambda(t) of the assistant's loss, on denoisers
ASSISTANT_WEIGHTS: dict[str, Callable[[Tensor], float | Tensor]] = {
    "eps": lambda sigma: sigma**-2,
    "edm": edm_weight,
    "denoiser": lambda sigma: 1.0,
}


@dataclass(kw_only=True)
class DistillConfig(TrainConfig):
    """Train a one-step generator against a frozen diffusion model, with a reward or without."""

    loop: ClassVar = "distill"

    teacher: str
    """The reference, and where the assistant starts: a preset of fsalign_lib.models.presets, or a pipeline folder."""
    start: Path | None
    """Folder of an earlier run on the same model, or a checkpoint: the student goes on from its weights."""
    time: int | None
    """The student is the network at this time, fed N(0, I) as x_t (DMD2); None: the start's or the model's own."""
    sigma_init: float | None
    """Or it is the network at the time of the nearest noise level, fed N(0, sigma^2) in EDM's form (DI++ Eq. C.11)."""
    prompts: str
    """A prompt set (see reproduce/data/prompt_sets.py), or a file with a prompt a line."""
    updates: int
    """Updates of the student."""
    batch: int
    """Samples an update, of the student and of the assistant."""
    assistant_updates: int
    """K_TA: updates of the assistant before each of the student."""
    warmup: int
    """Further updates of the assistant before the student's first."""
    assistant_lr: float
    """The assistant's learning rate; `lr` is the student's."""
    times: Literal["uniform", "log-normal"]
    """Noise at a uniform time t, or at ln sigma ~ N(mean, std^2) truncated to the teacher's levels (DI++ Eq. C.6)."""
    time_range: tuple[int, int]
    """First and last of the uniform times for the student's loss; the assistant learns at all."""
    log_sigma: tuple[float, float]
    """Mean and std of ln sigma, for student and assistant, where times are log-normal."""
    weighting: Literal["denoiser", "score", "inverse-gap", "dmd2"]
    """w(t): 1 on denoisers, 1 on scores, 1 / ||d_psi - d_ref|| (DI++ Eq. C.8), 1 / mean |x_0 - d_ref| (DMD2)."""
    assistant_weighting: Literal["eps", "edm", "denoiser"]
    """lambda(t): 1 on noise predictions, EDM's (DI++ Eq. C.7), 1 on denoisers."""
    distance: Distance = "pseudo-huber"
    """SIM, DI*: d(y) of the score divergence."""
    c: float | None = None
    """c of the pseudo-Huber distance, in the form that `weighting` names."""
    guidance: float
    """alpha_cfg: 1 is no guidance in the reference, 0 is none as a reward."""
    guidance_by: Literal["reference", "reward"]
    """Guidance on the teacher's prediction (DI* choice 2), or as a reward beside it (DI* choice 1)."""
    reward: str | None
    """Reward that scores the pictures (see fsalign_lib.rewards), with a gradient; None: no reward."""
    reward_scale: float
    """alpha_rew, beside a loss reduced as `reduction` says."""
    through_clamp: bool
    """Pictures are clamped to [0, 1]; the reward's gradient passes that as if it were not there."""
    ema: float
    """Decay of the average of the student's weights; 0: the weights themselves."""
    ema_ramp: float | None
    """The average's half-life is at most so many times the updates done (EDM); None: `ema` throughout."""


@dataclass
class Setup:
    """Hold everything that a run needs, checked."""

    config: DistillConfig
    trio: Trio
    reward: RewardFunction | None
    prompts: list[str]
    cond: Cond | None  # len(prompts); None where they are too many to keep
    kernel: Kernel  # of the student
    run: Run
    average: Average

    @property
    def model(self) -> LatentModel:
        """Return the student, whose weights the run leaves."""
        return self.trio.student


@dataclass
class Batch:
    """Hold what a batch is made of, the same on all processes. A row is a place in it."""

    number: int
    prompts: Tensor  # (B,) long
    sigma: Tensor  # (B,) float64


@dataclass
class Samples:
    """Hold rows of a batch: samples of the student, with or without its graph, and noised ones."""

    prompts: list[str]
    cond: Cond
    x0: Tensor  # (b, C, h, w)
    x: Tensor  # x_0 + sigma eps
    sigma: Tensor  # (b,) float64


def prepare(
    config: DistillConfig,
    model: LatentModel | None = None,
    teacher: LatentModel | None = None,
    reward: RewardFunction | None = None,
) -> Setup:
    """Check the settings, and load what they name.

    Args:
        model, teacher, reward: taken in place of the named ones; the model is where the student starts.

    Raises:
        ValueError: a setting is wrong, or does not go with the others; before anything is sampled.
    """
    find(config.method, "distill")
    check_settings(config)
    check_training(config)
    check_divides(config)
    if config.training == "lora" and fsdp_asked():
        raise ValueError(
            "training lora: adapters on one network are not sharded; launch with reproduce/launch/eight_gpus.yaml, or "
            "use --training full"
        )
    prompts = read_prompts(config.prompts)
    if config.threads:
        torch.set_num_threads(config.threads)
    teacher = teacher or load_model(config, config.teacher)
    if model is None:
        model = teacher if config.model == config.teacher else load_model(config)
    trio = build_trio(model, teacher, config.training, config.rank, config.alpha, config.seed)
    warn_of_cut(trio.student, prompts)
    kernel = one_step(config, trio.student)
    if config.reward is not None and reward is None:
        dtype = getattr(torch, config.frozen_dtype or "float32")
        reward = load_reward(config.reward, scale=config.scale, dtype=dtype)
    if isinstance(reward, JPEGReward):
        raise ValueError(f"reward {config.reward} has no gradient: choose another, or train_online.py")
    run = Run(config, trio.student, trio.assistant, config.assistant_lr)
    if run.accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError("distillation trains two networks, and DeepSpeed takes one: use reproduce/launch/fsdp.yaml")
    if config.gradient_checkpointing:
        teacher.checkpoint_gradients()
    if teacher.unet not in (trio.student.unet, trio.assistant.unet):
        teacher.network = run.prepare_frozen(teacher.unet)
    teacher.to(run.accelerator.device)
    average = run.trained = Average(trio.student, config.ema, config.ema_ramp)
    run.keep(average)
    run.same_inputs(prompts=f"{len(prompts)} with digest {digest(prompts)}", teacher=teacher.fingerprint[:12])
    if isinstance(reward, torch.nn.Module):
        run.same_inputs(reward=fingerprint(reward)[:12])
        reward.to(teacher.device)
    if config.scale == "full":
        draws = config.batch * (config.updates * (config.assistant_updates + 1) + config.warmup)
        store_prompts([trio.student, trio.assistant, trio.teacher], prompts, config.out.parent, draws)
    cond = trio.student.encode_prompts(prompts) if len(set(prompts)) <= KEPT_PROMPTS else None
    return Setup(config, trio, reward, prompts, cond, kernel, run, average)


def check_settings(config: DistillConfig) -> None:
    """Raise a ValueError for what does not go together, before anything is loaded."""
    c, needs = config, METHODS[config.method].needs
    positive(c, "updates", "batch", "assistant_updates", "assistant_lr")
    kinds = {"times": ("uniform", "log-normal"), "guidance_by": ("reference", "reward"), "distance": get_args(Distance)}
    kinds |= {"weighting": tuple(WEIGHTS), "assistant_weighting": tuple(ASSISTANT_WEIGHTS)}
    if "distance" in needs:
        kinds["weighting"] = SCORE_WEIGHTS
    for name, kind in kinds.items():
        if getattr(c, name) not in kind:
            raise ValueError(f"{name} = {getattr(c, name)!r} with {c.method}: choose from {', '.join(kind)}")
    if c.steps != 1 or c.kernel is not None:
        raise ValueError(
            f"steps = {c.steps}, kernel = {c.kernel}: a one-step generator has 1, and its sampler follows from time "
            "or sigma_init; leave both out"
        )
    if c.time is not None and c.sigma_init is not None:
        raise ValueError(f"time = {c.time} and sigma_init = {c.sigma_init}: give one, and None for the other")
    if not 0 <= c.ema < 1:
        raise ValueError(f"ema = {c.ema}: expected 0 to less than 1")
    if c.ema_ramp is not None:
        positive(c, "ema_ramp")
    if c.warmup < 0:
        raise ValueError(f"warmup = {c.warmup}: expected 0 or more")
    if not 0 <= c.time_range[0] <= c.time_range[1]:
        raise ValueError(f"time_range = {c.time_range}: expected a first time, and a last one that is not before it")
    if not (math.isfinite(c.log_sigma[0]) and c.log_sigma[1] > 0):
        raise ValueError(f"log_sigma = {c.log_sigma}: expected a mean and a positive std")
    if "distance" in needs and c.distance == "pseudo-huber" and not (c.c is not None and c.c > 0):
        raise ValueError(f"c = {c.c}: the pseudo-Huber distance needs a positive number")
    if not (math.isfinite(c.guidance) and c.guidance >= 0):
        raise ValueError(f"guidance = {c.guidance}: expected 0 or more")
    check_reward(c)


def check_reward(c: DistillConfig) -> None:
    """Raise a ValueError unless reward and scale go with each other and with the method."""
    if not (math.isfinite(c.reward_scale) and c.reward_scale >= 0):
        raise ValueError(f"reward_scale = {c.reward_scale}: expected 0 or more")
    method = METHODS[c.method]
    if "reward" not in method.needs and (c.reward is not None or c.reward_scale):
        aligned = [name for name, other in METHODS.items() if other.loss is method.loss and "reward" in other.needs]
        instead = f", or use --method {aligned[0]}" if aligned else ""
        raise ValueError(f"{c.method} has no reward: leave out reward and reward_scale{instead}")
    if c.reward is None and c.reward_scale:
        raise ValueError(f"reward_scale = {c.reward_scale} without a reward: name one, or use --reward-scale 0")


def one_step(config: DistillConfig, student: LatentModel) -> Kernel:
    """Return the student's sampler, from the settings, the checkpoint that it starts from, or the model itself.

    Raises:
        ValueError: none of them names a time, two of them name different ones, or it is outside the noise schedule.
        FileNotFoundError: no checkpoint to start from.
    """
    levels = student.schedule
    if config.time_range[1] >= levels.num_train_timesteps:
        raise ValueError(f"time_range = {config.time_range}: {student.name} has times 0 to {len(levels.alpha_bar) - 1}")
    if config.start is not None:
        student.load_adapter(last_checkpoint(config.start) or config.start)
    own = None if student.timesteps is None else (student.kernel, student.timesteps)
    asked = own
    if config.time is not None:
        asked = ("renoise", (config.time,))
    elif config.sigma_init is not None:
        low, high = levels.sigma(0), levels.sigma(levels.num_train_timesteps - 1)
        if not low <= config.sigma_init <= high:
            raise ValueError(f"sigma_init = {config.sigma_init}: {student.name} has levels {low:.3g} to {high:.3g}")
        asked = ("euler-ancestral", (int(levels.nearest_t(config.sigma_init)),))
    if asked is None:
        raise ValueError(f"{student.name} is no one-step generator yet: give --time, or --sigma-init, or --start")
    if own is not None and asked != own:
        raise ValueError(f"the student starts as {own[0]} at t = {own[1][0]}, not {asked[0]} at t = {asked[1][0]}")
    student.kernel, student.timesteps = asked
    return student.sampler(1)


def draw_sigma(config: DistillConfig, model: LatentModel, number: int, first: int, last: int) -> Tensor:
    """Draw the noise levels of a batch; uniform times go from `first` to `last`.  # (B,) float64"""
    c, levels = config, model.schedule
    uniform = torch.rand(c.batch, generator=generator("sigma", c.seed, number), dtype=torch.float64)
    if c.times == "uniform":
        return levels.sigma((first + uniform * (last - first + 1)).long())
    # Truncated by the quantile function, not by clamping, which would heap the tails upon the two ends.
    mean, std = c.log_sigma
    ends = torch.tensor([levels.sigma(0), levels.sigma(levels.num_train_timesteps - 1)], dtype=torch.float64).log()
    low, high = torch.special.ndtr((ends - mean) / std)
    return (mean + std * torch.special.ndtri(low + uniform * (high - low))).clamp(*ends.tolist()).exp()


def draw_batch(setup: Setup, number: int, which: int) -> Batch:
    """Draw the prompts and noise levels of a batch.

    Args:
        number: of the batch; it names prompts and noise.
        which: STUDENT or ASSISTANT, which learns at all noise levels.
    """
    c, model = setup.config, setup.model
    first, last = c.time_range if which == STUDENT else (0, model.schedule.num_train_timesteps - 1)
    prompts = epoch_rows("prompts", c.seed, number, len(setup.prompts), c.batch)
    return Batch(number, prompts, draw_sigma(c, model, number, first, last))


def sample_rows(setup: Setup, batch: Batch, rows: Tensor) -> Samples:
    """Sample some rows of a batch from the student, with its graph.

    Noise depends on (seed, batch, prompt, place) alone.

    Args:
        rows: places in the batch  # (b,) long
    """
    c, model = setup.config, setup.model
    chosen = batch.prompts[rows]
    # A prompt that comes twice in a batch must not get the same noise twice, so the place counts.
    ids = rows * len(setup.prompts) + chosen
    z, eps = send(seeded_noise(c.seed, batch.number, ids, model.latent_shape, 2), model.device).unbind(1)
    names = [setup.prompts[i] for i in chosen]
    with torch.no_grad():
        cond = model.text.encode(names) if setup.cond is None else setup.cond[send(chosen, model.device)]
    return generate(setup, names, cond, z, eps, send(batch.sigma[rows], model.device))


def generate(setup: Setup, prompts: list[str], cond: Cond, z: Tensor, eps: Tensor, sigma: Tensor) -> Samples:
    """Call the student once on z, and noise its samples by sigma eps.

    Args:
        z, eps: standard normal  # (b, C, h, w)
        sigma: noise levels  # (b,)
    """
    kernel = setup.kernel
    x0 = setup.model.predict_x0(kernel.model_input(kernel.initial(z), 0), int(kernel.timesteps[0]), cond)
    return Samples(prompts, cond, x0, x0 + sigma.to(x0.dtype).view(-1, 1, 1, 1) * eps, sigma)


def assistant_minibatch_loss(setup: Setup, samples: Samples) -> tuple[Tensor, Diagnostics]:
    """Return the assistant's denoising loss (DI++ Alg. 1) on samples without the student's graph."""
    denoised = denoise(setup.trio.assistant, samples.x, samples.sigma, samples.cond)
    weight = ASSISTANT_WEIGHTS[setup.config.assistant_weighting](samples.sigma)
    return assistant_loss(denoised, samples.x0, weight, setup.config.reduction), {}


def teacher_predictions(setup: Setup, samples: Samples, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the teacher's d_ref(x), and where guidance is a reward also that without a prompt (detached).

    Args:
        x: the samples' x, with or without its graph.  # (b, C, h, w)
    """
    c, teacher = setup.config, setup.trio.teacher
    null, scale = teacher.null(len(x)), c.guidance
    if c.guidance_by == "reference" and scale != 1:  # both halves in one call
        twice = torch.cat([x, x]), torch.cat([samples.sigma, samples.sigma]), cat([null, samples.cond])
        unconditional, conditional = denoise(teacher, *twice).chunk(2)
        return guided(conditional, unconditional, scale), None
    conditional = denoise(teacher, x, samples.sigma, samples.cond)
    if c.guidance_by == "reference" or scale == 0:
        return conditional, None
    with torch.no_grad():
        return conditional, denoise(teacher, x, samples.sigma, null)


def student_minibatch_loss(setup: Setup, samples: Samples, number: int) -> tuple[Tensor, Diagnostics]:
    """Return the method's loss on samples with the student's graph, and diagnostics.

    Guidance as a reward, and the reward, are added where the settings ask for them.

    Args:
        number: of the batch, for errors.

    Raises:
        FloatingPointError: the teacher's prediction or a reward is not finite.
    """
    c, method = setup.config, METHODS[setup.config.method]

    # A KL needs values at x alone; a divergence of scores needs the graph through the inputs of both networks.
    through = "input gradients" in method.needs
    x = samples.x if through else samples.x.detach()
    with torch.set_grad_enabled(through):
        assistant = denoise(setup.trio.assistant, x, samples.sigma, samples.cond)
        teacher, unconditional = teacher_predictions(setup, samples, x)
    check_finite("the teacher's prediction", teacher, samples.prompts, c.seed, number)

    data = Matched(samples.x0, samples.x, samples.sigma.to(samples.x.dtype), assistant, teacher)
    data.weight = WEIGHTS[c.weighting](data)
    loss, diagnostics = method.loss(*method.inputs(data, c))

    if unconditional is not None:
        weight = data.weight
        if "distance" in method.needs and c.distance == "pseudo-huber":
            # The paper leaves this reward's w(t) open. The divergence is normalised, so this is: with w = 1 it pulled
            # 27 times as hard at a guidance of 2.5 (mean norms per sample, the pocket's one-step generator).
            weight = weight * inverse_gap_weight(teacher, unconditional)
        loss = loss + c.guidance * guidance_reward(teacher, unconditional, samples.x, weight, c.reduction)

    if setup.reward is not None and c.reward_scale:
        pictures = setup.model.decode(samples.x0, c.through_clamp)
        reward = setup.reward(pictures, samples.prompts).float()
        check_finite(f"reward {c.reward}", reward, samples.prompts, c.seed, number)
        loss = loss + reward_term(reward, c.reward_scale)
        diagnostics = diagnostics | {"reward": reward.detach().mean()}
    return loss, diagnostics


def assistant_update(setup: Setup, number: int) -> dict[str, Tensor]:
    """Take one step of the assistant's optimizer, on batch `number`; return its record."""
    run, batch = setup.run, draw_batch(setup, number, ASSISTANT)
    for rows in run.micro_batches([setup.prompts[i] for i in batch.prompts], number, ASSISTANT):
        with torch.no_grad():
            samples = sample_rows(setup, batch, rows)
        loss, diagnostics = assistant_minibatch_loss(setup, samples)
        run.backward(loss, diagnostics, rows)
    return run.step()


def student_update(setup: Setup, number: int) -> dict[str, Tensor]:
    """Take one step of the student's optimizer, on batch `number`; return its record."""
    run, batch = setup.run, draw_batch(setup, number, STUDENT)
    for rows in run.micro_batches([setup.prompts[i] for i in batch.prompts], number, STUDENT):
        samples = sample_rows(setup, batch, rows)
        loss, diagnostics = student_minibatch_loss(setup, samples, number)
        run.backward(loss, diagnostics, rows)
    return run.step()


def train(setup: Setup) -> Iterator[dict[str, float]]:
    """Train, and yield each update's record.

    A record has, of the student, its loss, gradient norm, gap (mean ||d_psi - d_ref||, or of scores), divergence and
    reward; of the assistant, the means of its losses and gradient norms.
    """
    c, run = setup.config, setup.run
    for update in range(run.start, c.updates):
        first = update * (c.assistant_updates + 1)

        # The assistant follows the student, so that its score is that of the student's samples; at the start it is
        # the teacher, and has further to go.
        numbers = [*range(-c.warmup, 0)] if update == 0 else []
        numbers += range(first, first + c.assistant_updates)
        followed = [assistant_update(setup, number) for number in numbers]

        # The student moves, on a batch that the assistant has not seen; its average follows.
        record = student_update(setup, first + c.assistant_updates)
        setup.average.update(update)

        # Record, and save when it is time.
        for name in ("loss", "gradient"):
            record[f"assistant_{name}"] = torch.stack([one[name] for one in followed]).mean()
        yield run.record(update, c.updates, record)
    setup.average.finish()


def run(setup: Setup) -> None:
    """Train to the end, with a progress bar, and write the result."""
    total = setup.config.updates
    bar = tqdm(train(setup), initial=setup.run.start, total=total, desc=setup.config.method, unit="update")
    for record in bar:
        bar.set_postfix({k: f"{record[k]:.3g}" for k in ("gap", "reward", "assistant_loss") if k in record})
    setup.run.finish()


def network_calls(config: Mapping[str, Any]) -> dict[str, int]:
    """Count what a run with these settings asks of its networks.

    An update of the assistant takes a sample of the student, forward alone, and the assistant, both ways. One of the
    student takes itself both ways, the assistant, and the teacher, twice where there is guidance; where the method
    needs input gradients, these backward too.

    Args:
        config: a DistillConfig as JSON.

    Returns:
        "updates" and "batch"; "forward" and "backward", samples through one network; "reward", pictures scored.
    """
    c, through = config, "input gradients" in METHODS[config["method"]].needs
    in_reference = c["guidance_by"] == "reference"
    both_halves = c["guidance"] != (1 if in_reference else 0)
    followed = c["updates"] * c["assistant_updates"] + c["warmup"]
    forward = 2 * followed + c["updates"] * (3 + both_halves)
    backward = followed + c["updates"] * (1 + through * (2 + (both_halves and in_reference)))
    reward = c["updates"] * c["batch"] if c["reward"] and c["reward_scale"] else 0
    calls = {"forward": forward * c["batch"], "backward": backward * c["batch"], "reward": reward}
    return {"updates": c["updates"], "batch": c["batch"]} | calls


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command_line(parse_training(DistillConfig, "diff-instruct", __doc__), prepare, run, argv, kept)


if __name__ == "__main__":
    main()
