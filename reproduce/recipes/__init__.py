"""The registry: a method's name -> its loss, and its settings at each scale with their source.

Adding a method is adding a loss here and a recipe for each scale; the loops do not change. Those of distribution
matching stand in distillation.py, settings of those that teach new pictures in customization.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsalign_lib.losses.policy_gradient import ddpo_clipped
from fsalign_lib.losses.preference import d3po, diffusion_dpo, pso, pso_offline, pso_online, pso_without_reference
from fsalign_lib.losses.reward_difference import rebel, sdpo
from reproduce.recipes.customization import CUSTOM_RECIPES
from reproduce.training.distillation import DISTILL_RECIPES

SCALES = ("pocket", "full")


@dataclass
class Rollouts:
    """What online losses see of M pairs of trajectories, that of the higher reward at index 0, at s steps each."""

    logp: Tensor  # (M, 2, s) under the policy as it is now, with gradient
    logp_ref: Tensor | None  # (M, 2, s) under the reference, for methods of WITH_REFERENCE
    logp_old: Tensor  # (M, 2, s) under the policy that sampled
    reward: Tensor  # (M, 2)
    advantage: Tensor | None  # (M, 2, s), where rewards are standardised
    weight: Tensor  # (M, s), of the steps

    def winner_loser(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(M, s) each. Of a tie neither won: the policy stands in as its own reference, without gradient."""
        tie = (self.reward[:, 0] == self.reward[:, 1])[:, None, None]
        logp = torch.where(tie, self.logp_ref, self.logp)
        return logp[:, 0], self.logp_ref[:, 0], logp[:, 1], self.logp_ref[:, 1]

    def branches(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(M, s) each."""
        return self.logp[:, 0], self.logp_old[:, 0], self.logp[:, 1], self.logp_old[:, 1]


@dataclass
class Errors:
    """What offline losses see of P pairs: squared noise errors at S times, the winner at index 0."""

    error: Tensor  # (P, 2, S) under the policy, with gradient; (P, 1, S), winners alone, for methods WITHOUT_LOSERS
    error_ref: Tensor | None  # likewise under the reference
    logp: Tensor | None = None  # (P, S) of own samples' transitions, with gradient, for methods that SAMPLE
    logp_ref: Tensor | None = None  # likewise under the reference
    weight: Tensor | None = None  # (S,) of the errors against the log-probs

    def winner_loser(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.error[:, 0], self.error_ref[:, 0], self.error[:, 1], self.error_ref[:, 1]


Loss = Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]]  # (data, config) -> loss, diagnostics

ONLINE: dict[str, Loss] = {
    "pso-online": lambda data, c: pso_online(*data.winner_loser(), c.beta, c.clamp, c.sum_steps),
    "d3po": lambda data, c: d3po(*data.winner_loser(), c.beta, c.clamp),
    "ddpo": lambda data, c: ddpo_clipped(
        data.logp.flatten(0, 1), data.logp_old.flatten(0, 1), data.advantage.flatten(0, 1), c.clip, "mean"
    ),
    "rebel": lambda data, c: rebel(
        *data.branches(), data.advantage[:, 0, 0], data.advantage[:, 1, 0], c.eta, c.sum_steps
    ),
    "sdpo": lambda data, c: sdpo(*data.branches(), data.advantage[:, 0], data.advantage[:, 1], data.weight, c.clip),
}
WITH_REFERENCE = ("pso-online", "d3po")
WITH_ADVANTAGES = ("ddpo", "rebel", "sdpo")
OFFLINE: dict[str, Loss] = {
    "pso-offline": lambda data, c: pso_offline(*data.winner_loser(), c.beta, c.sum_steps),
    "diffusion-dpo": lambda data, c: diffusion_dpo(*data.winner_loser(), c.beta),
    "sft": lambda data, c: (data.error.mean(), {}),
    "pso": lambda data, c: pso(
        data.error[:, 0], data.error_ref[:, 0], data.logp, data.logp_ref, c.beta, data.weight, c.sum_steps
    ),
    "dreambooth": lambda data, c: (data.error.mean(), {}),
    "pso-customize": lambda data, c: pso_without_reference(data.error[:, 0], data.error[:, 1], c.beta),
}
WITHOUT_LOSERS = ("sft", "pso", "dreambooth")
WITHOUT_REFERENCE = ("sft", "dreambooth", "pso-customize")
SAMPLE = ("pso",)


def sums_steps(config: Any) -> bool:
    """Whether the online loss needs all steps of a pair at once; else it is a mean over steps."""
    return config.method in ("pso-online", "rebel") and config.sum_steps == "inside"


PAPER, CODE, OURS = "PSO App. B.1", "published PSO code", "own choice"
TRIAL = "own tuning at pocket scale"

# field -> (value, where it comes from)
COMMON = {
    "kernel": (None, "the model's own sampler"),
    "steps": (4, PAPER + ": N = 4"),
    "grad_clip": (1.0, CODE),
    "reduction": ("mean", CODE + "; the paper prints sums"),
    "seed": (0, OURS),
}
POCKET = COMMON | {
    "model": ("pocket-turbo", OURS),
    "training": ("full", TRIAL),
    "rank": (16, PAPER),
    "alpha": (None, CODE + ": alpha = rank"),
    "lr": (1e-5, TRIAL),
    "weight_decay": (1e-6, CODE),
    "beta": (50.0, CODE),
    "sum_steps": ("outside", CODE + "; the paper prints the sum inside"),
}
FULL = COMMON | {
    "model": ("sdxl-turbo", "PSO Sec. 3.1"),
    "dtype": ("bfloat16", OURS + ": of the frozen networks; " + CODE + ": float16"),
    "gradient_checkpointing": (True, OURS + ": memory for time"),
    "training": ("lora", PAPER),
    "rank": (16, PAPER + "; published code for Turbo: 32"),
    "alpha": (None, CODE + ": alpha = rank"),
    "lr": (1e-5, PAPER),
    "weight_decay": (1e-6, CODE),
}
ONLINE_POCKET = POCKET | {
    "reward": ("pickscore", PAPER),
    "prompts": ("train", OURS),
    "rounds": (60, TRIAL),
    "pairs": (32, TRIAL),
    "minibatch": (32, PAPER),
    "epochs": (1, PAPER),
    "clamp": (0.1, CODE + "; not in the paper"),
}
ONLINE_FULL = FULL | {
    "reward": ("pickscore", PAPER),
    "prompts": ("pickapic-4k", PAPER + ": 4K of Pick-a-Pic's training prompts; which, is not published"),
    "rounds": (5000, PAPER + ": 20k steps, 4 a round"),
    "pairs": (128, PAPER),
    "minibatch": (32, PAPER),
    "epochs": (1, PAPER),
    "beta": (5.0, PAPER + "; published code: 50"),
    "clamp": (0.1, CODE + "; not in the paper"),
    "sum_steps": ("outside", CODE + "; the paper prints the sum inside"),
}


def of_lr(tried: str = "3e-3, 5e-3, 1e-2, 3e-2") -> str:
    return f"{TRIAL}: of {tried} on Aesthetic, the largest that kept the animals recognised"


SDPO_PAPER, SDPO_CODE = "SDPO Table 2", "published SDPO code"
DDPO_CODE, D3PO_CODE = "published DDPO code", "published D3PO code"
STEPWISE = ("d3po", "ddpo", "rebel", "sdpo")
# What these four, of SDPO's comparison, share at each scale (SDPO App. A.1).
STEPWISE_POCKET = {
    "model": ("pocket-turbo", OURS),
    "kernel": ("ddim", "SDPO Sec. 4.1; eta = 1: " + SDPO_CODE),
    "steps": (20, OURS + ": 50 in SDPO Table 2"),
    "training": ("lora", "SDPO Sec. 4.1"),
    "rank": (4, SDPO_CODE),
    "alpha": (None, SDPO_CODE + ": alpha = rank"),
    "weight_decay": (1e-4, SDPO_PAPER),
    "grad_clip": (1.0, SDPO_PAPER),
    "reduction": ("mean", SDPO_CODE + "; the paper prints sums"),
    "seed": (0, OURS),
    "reward": ("aesthetic", "SDPO Sec. 4.3"),
    "prompts": ("animals", "SDPO App. A.1: 45 animals"),
    "rounds": (32, TRIAL),
    "pairs": (16, TRIAL),
    "minibatch": (16, SDPO_CODE + ": an update over the round's pairs, for ImageReward and HPS"),
    "epochs": (1, SDPO_CODE),
    "micro_batch": (32, OURS),
    "save_every": (8, OURS),
}
STEPWISE_FULL = STEPWISE_POCKET | {
    "model": ("sd-turbo", "SDPO Sec. 4.1"),
    "prompts": ("sdpo-animals", "SDPO App. A.1: 45 animals"),
    "steps": (50, SDPO_PAPER),
    "dtype": (
        "float32",
        OURS + ": half precision moves log-probs by as much as the clip of 1e-4; the code has float16",
    ),
    "gradient_checkpointing": (True, OURS + ": memory for time"),
    "seed": (42, SDPO_PAPER),
    "rounds": (100, SDPO_CODE + ": 100 for Aesthetic, 200 for the other rewards"),
    "pairs": (128, SDPO_PAPER + ": 4 batches of 8 on 4 GPUs"),
    "minibatch": (64, SDPO_PAPER + ": 2 x 8 on 4 GPUs; 128 for ImageReward and HPS"),
    "micro_batch": (8, OURS),
    "save_every": (10, OURS + "; published code: each round"),
}
STATISTICS = {
    "buffer": (32, SDPO_PAPER),
    "advantage_clip": (5.0, SDPO_CODE + " and " + DDPO_CODE + "; not in the papers"),
}
STATISTICS_POCKET = STATISTICS | {
    "min_count": (4, OURS + ": 16 in SDPO Table 2, which 45 prompts reach in 3 of its rounds and in 23 of these")
}
STATISTICS_FULL = STATISTICS | {"min_count": (16, SDPO_PAPER)}
# 1e-4 of SD-Turbo's 16,384 dimensions bounds a step's ratio by e^1.6; the pocket's latents have 1,024.
CLIP_POCKET = {"clip": (1.6e-3, OURS + ": the published 1e-4 in nats a step, on a sixteenth of the dimensions")}
CLIP = {"clip": (1e-4, SDPO_PAPER + " and " + DDPO_CODE)}
SDPO = CLIP | {
    "shared_start": (True, "SDPO Fig. 2: one prompt and one x_T"),
    "updates": ("shuffled", "SDPO Eq. 16"),
    "queries": ("adaptive", "SDPO Eqs. 9-11"),
    "gamma": (0.99, SDPO_PAPER),
    "normalize": ("step-prompt", "SDPO Sec. 3.3"),
    "eta": (1.0, SDPO_PAPER),
    "decay": (0.99, SDPO_PAPER),
}
DDPO = CLIP | {"normalize": ("prompt", DDPO_CODE)}
REBEL = {
    "shared_start": (False, "SDPO Sec. 2.2: two independent trajectories; published RLCM code: a start each"),
    "normalize": ("prompt", "SDPO App. A.1: running statistics as DDPO"),
    "sum_steps": ("inside", "REBEL; SDPO Eq. 7 prints it outside"),
    "eta": (1.0, OURS),
}
REBEL_POCKET = REBEL | {
    "shared_start": (True, OURS + ": the normaliser of REBEL's optimum cancels in pairs of one start alone; paper: two")
}
D3PO = {
    "shared_start": (True, D3PO_CODE),
    "beta": (0.1, D3PO_CODE),
    "clamp": (0.1, D3PO_CODE),
}
OFFLINE_POCKET = POCKET | {
    "pairs": (Path("reproduce/runs/pairs"), OURS),
    "updates": (60, OURS + ": as many as online PSO, on as many pairs"),
    "batch": (32, OURS + ": as online PSO"),
}
OFFLINE_FULL = FULL | {
    "pairs": (Path("pairs"), PAPER + ": Pick-a-Pic v2 without ties; no longer published, so build or bring pairs"),
    "updates": (5000, PAPER),
    "batch": (64, PAPER),
    "beta": (50.0, PAPER),
    "sum_steps": ("inside", "PSO Eq. 6"),
    "resize": (True, "published Diffusion-DPO code"),
}
DPO = {
    "times": ("uniform", "Diffusion-DPO Eq. 14: t ~ U{0..999}"),
    "shared_noise": (True, "published Diffusion-DPO code"),
    "beta": (2500.0, "published Diffusion-DPO code: beta_dpo / 2 with beta_dpo = 5000"),
}
GRID = {
    "times": ("grid", "PSO Alg. 3: the distilled times n = 2..N"),
    "shared_noise": (False, "PSO Eq. 6: a noise each"),
}
NOISE = {
    "times": ("uniform", "the diffusion loss: t ~ U{0..999}"),
    "shared_noise": (False, "no losers to share with"),
}

RECIPES: dict[tuple[str, str], dict[str, tuple[Any, str]]] = (
    {
        ("pso-online", "pocket"): ONLINE_POCKET,
        ("pso-online", "full"): ONLINE_FULL,
        ("sdpo", "pocket"): STEPWISE_POCKET
        | STATISTICS_POCKET
        | SDPO
        | CLIP_POCKET
        | {"lr": (1e-3, of_lr("1e-3, 2e-3, 3e-3"))},
        ("sdpo", "full"): STEPWISE_FULL
        | STATISTICS_FULL
        | SDPO
        | {"lr": (1e-4, SDPO_PAPER + ", Aesthetic; 5e-5 for ImageReward and HPS, 6e-5 for PickScore")},
        ("ddpo", "pocket"): STEPWISE_POCKET | STATISTICS_POCKET | DDPO | CLIP_POCKET | {"lr": (5e-3, of_lr())},
        ("ddpo", "full"): STEPWISE_FULL | STATISTICS_FULL | DDPO | {"lr": (3e-4, DDPO_CODE)},
        ("rebel", "pocket"): STEPWISE_POCKET | STATISTICS_POCKET | REBEL_POCKET | {"lr": (5e-3, of_lr())},
        ("rebel", "full"): STEPWISE_FULL
        | STATISTICS_FULL
        | REBEL
        | {
            "lr": (3e-4, "SDPO App. A.1: as DDPO"),
            "micro_batch": (1, OURS + ": a row is a whole pair, 100 pictures at T = 50"),
        },
        ("d3po", "pocket"): STEPWISE_POCKET | D3PO | {"lr": (5e-3, of_lr())},
        ("d3po", "full"): STEPWISE_FULL | D3PO | {"lr": (3e-4, "SDPO App. A.1: as DDPO")},
        ("pso-offline", "pocket"): OFFLINE_POCKET | GRID,
        ("pso-offline", "full"): OFFLINE_FULL | GRID,
        ("diffusion-dpo", "pocket"): OFFLINE_POCKET | DPO,
        ("diffusion-dpo", "full"): OFFLINE_FULL | DPO,
        ("sft", "pocket"): OFFLINE_POCKET | NOISE,
        ("sft", "full"): OFFLINE_FULL | NOISE,
    }
    | DISTILL_RECIPES
    | CUSTOM_RECIPES
)


def recipe(method: str, scale: str, methods: dict[str, Loss]) -> dict[str, tuple[Any, str]]:
    """The settings of a method, each with its source.

    Raises:
        ValueError: a method that is not one of `methods`, or an unknown scale.
    """
    if method not in methods:
        raise ValueError(f"unknown method {method!r}: choose from {', '.join(methods)}")
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose from {', '.join(SCALES)}")
    return RECIPES[method, scale]


def describe(method: str, scale: str, settings: dict[str, Any] | None = None) -> str:
    """The recipe as lines "field = value  # source", with a table's own settings in their places."""
    own = {name: (value, "this row") for name, value in (settings or {}).items()}
    return "\n".join(
        f"  {name} = {value!r}  # {source}" for name, (value, source) in (RECIPES[method, scale] | own).items()
    )
