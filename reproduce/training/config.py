"""Declare the settings that all training loops share, and read a loop's settings from the command line."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from torch import Tensor

from fsalign_lib.kernels import Reduction
from fsalign_lib.losses.common import Steps
from fsalign_lib.models.latent_model import Training
from reproduce.recipes import make_config

KEPT_PROMPTS = 8192  # prompts whose embeddings are kept: 2.6 GB for SDXL in half precision; more are encoded anew
RewardFunction = Callable[[Tensor, Sequence[str]], Tensor]  # pictures (B, 3, H, W) in [0, 1], B prompts -> (B,)


@dataclass(kw_only=True)
class TrainConfig:
    """Set what the training loops share. Defaults come from the method's recipe (see reproduce/recipes)."""

    method: str
    """Which objective."""
    scale: str
    """Whose recipe: pocket or full."""
    model: str
    """A preset of fsalign_lib.models.presets, or a pipeline folder."""
    out: Path
    """Folder of the run: configuration, checkpoints, result."""
    seed: int
    """Seed of all random numbers of the run."""
    training: Training
    """LoRA, or all weights."""
    rank: int
    """LoRA rank."""
    alpha: int | None
    """LoRA scale is alpha / rank; None: alpha = rank."""
    lr: float
    """AdamW's learning rate."""
    weight_decay: float
    """AdamW's weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's moments."""
    grad_clip: float
    """Largest gradient norm."""
    beta: float = 1.0
    """PSO, DPO: weight of the preference against the reference model."""
    reduction: Reduction
    """Mean or sum over latent dimensions."""
    sum_steps: Steps = "outside"
    """PSO, REBEL: sum over steps inside the sigmoid or square; or one for each step: PSO's mean, REBEL's sum."""
    kernel: str | None
    """Sampler; None: the model's own."""
    steps: int
    """Sampling steps."""
    micro_batch: int | None = None
    """Rows of a minibatch in one forward and backward, on each process; None: all. Less memory, the same update. A row
    is a pair, or online one step of a pair, unless the loss sums over the steps of a pair."""
    save_every: int = 50
    """Updates or rounds between checkpoints."""
    snapshot_every: int | None = None
    """Updates or rounds between copies of the trained weights that are kept, in snapshots/; None: none."""
    resume: bool = False
    """Go on from the last checkpoint in `out`, if there is one."""
    tracker: str | None = None
    """A tracker of accelerate, such as tensorboard (written into `out`)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen networks. What is trained is float32 in any case, and so are log-probs."""
    frozen_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of VAE, text encoders and reward, which no method trains; None: the first two as `dtype`, the reward in
    float32. How far scores in half precision may be from those in float32: fsalign_lib.rewards.HALF_AGREES."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision that the network computes in; its trained weights stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward: less memory, about a third more time."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit: moments in 8 bits, by bitsandbytes, on a GPU."""
    vae_slicing: bool = False
    """Decode and encode a picture at a time: less memory."""
    threads: int | None = None
    """CPU threads of torch."""


def parse_training(config_type: type, default_method: str, description: str | None):
    """Return a parser of the command line, whose defaults are those of the recipe that --method and --scale name."""

    def parse(argv: Sequence[str] | None = None):
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--method", default=default_method)
        first.add_argument("--scale", default="pocket")
        named, _ = first.parse_known_args(argv)
        return tyro.cli(
            config_type,
            default=make_config(config_type, named.method, named.scale),
            description=description,
            args=argv,
        )

    return parse
