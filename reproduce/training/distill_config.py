"""Settings of `train_distill.py`, what can be wrong with them, and the one-step generator that they name."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from fsalign_lib.kernels import Kernel
from fsalign_lib.losses.distribution_matching import Distance
from fsalign_lib.models.latent_model import LatentModel
from reproduce.common.cli import positive
from reproduce.common.files import last_checkpoint
from reproduce.training.distillation import ASSISTANT_WEIGHTS, KL_WEIGHTS, SCORE_WEIGHTS
from reproduce.training.methods import METHODS
from reproduce.training.run import TrainConfig


@dataclass(kw_only=True)
class DistillConfig(TrainConfig):
    """Train a one-step generator against a frozen diffusion model, with a reward or without."""

    loop: ClassVar = "distill"

    teacher: str
    """The reference, and where the assistant starts: a preset of fsalign_lib.presets, or a pipeline folder."""
    start: Path | None
    """Folder of an earlier run on the same model, or a checkpoint: the student goes on from its weights."""
    time: int | None
    """The student is the network at this time, fed N(0, I) as x_t (DMD2); None: the start's or the model's own."""
    sigma_init: float | None
    """Or at the time of the nearest noise level, fed N(0, sigma^2) in EDM's form (DI++ Eq. C.11)."""
    prompts: str
    """A prompt set (see data.py), or a file with a prompt a line."""
    updates: int
    """Of the student."""
    batch: int
    """Samples an update, of the student and of the assistant."""
    assistant_updates: int
    """K_TA: updates of the assistant before each of the student."""
    warmup: int
    """More of them before the student's first."""
    assistant_lr: float
    times: Literal["uniform", "log-normal"]
    """Noise at a uniform time t, or at ln sigma ~ N(mean, std^2) truncated to the teacher's levels (DI++ Eq. C.6)."""
    time_range: tuple[int, int]
    """First and last of the uniform times for the student's loss; the assistant learns at all."""
    log_sigma: tuple[float, float]
    """Mean and std of the log-normal ones, for both."""
    weighting: Literal["denoiser", "score", "inverse-gap", "dmd2"]
    """w(t): 1 on denoisers, 1 on scores, 1 / ||d_psi - d_ref|| (DI++ Eq. C.8), 1 / mean |x_0 - d_ref| (DMD2)."""
    assistant_weighting: Literal["eps", "edm", "denoiser"]
    """lambda(t): 1 on noise predictions, EDM's (DI++ Eq. C.7), 1 on denoisers."""
    distance: Distance = "pseudo-huber"
    """SIM, DI*: d(y) of the score divergence."""
    c: float | None = None
    """Of the pseudo-Huber distance, in the form that `weighting` names."""
    guidance: float
    """alpha_cfg. In the reference 1 is none, as a reward 0."""
    guidance_by: Literal["reference", "reward"]
    """Guidance on the teacher's prediction (DI* choice 2), or as a reward beside it (DI* choice 1)."""
    reward: str | None
    """What scores the pictures (see fsalign_lib.rewards), with a gradient; None: nothing."""
    reward_scale: float
    """alpha_rew, beside a loss reduced as `reduction` says."""
    through_clamp: bool
    """Pictures are clamped to [0, 1]; the reward's gradient passes that as if it were not there."""
    ema: float
    """Decay of the average of the student's weights; 0: the weights themselves."""
    ema_ramp: float | None
    """The average's half-life is at most so many times the updates done (EDM); None: `ema` throughout."""


def check_settings(config: DistillConfig) -> None:
    """Raise a ValueError for what does not go together, before anything is loaded."""
    c = config
    positive(c, "updates", "batch", "assistant_updates", "assistant_lr")
    kinds = {"times": ("uniform", "log-normal"), "guidance_by": ("reference", "reward"), "distance": get_args(Distance)}
    kinds |= {"weighting": tuple(KL_WEIGHTS), "assistant_weighting": tuple(ASSISTANT_WEIGHTS)}
    if "input gradients" in METHODS[c.method].needs:
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
    if (
        "input gradients" in METHODS[c.method].needs
        and c.distance == "pseudo-huber"
        and not (c.c is not None and c.c > 0)
    ):
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
    """The student's sampler, from the settings, the checkpoint that it starts from, or the model itself.

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
