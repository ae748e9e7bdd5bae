"""The third part of the registry (see recipes.py): losses of `train_distill.py`, and their settings at each scale."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fsalign_lib.losses.distribution_matching import (
    diff_instruct,
    edm_weight,
    guidance_reward,
    inverse_gap_weight,
    reward_term,
    sim,
)


@dataclass
class Matched:
    """What the student's losses see of B of its samples, noised to x = x_0 + sigma eps (EDM's form)."""

    x0: Tensor  # (B, ...) with the student's graph
    x: Tensor  # (B, ...) likewise
    sigma: Tensor  # (B,)
    assistant: Tensor  # (B, ...) d_psi(x); with the graph to x for methods of THROUGH_INPUTS
    reference: Tensor  # (B, ...) d_ref(x), guided if guidance is in the reference; likewise
    unconditional: Tensor | None  # (B, ...) d_ref(x) without the prompt, if guidance is a reward
    reward: Tensor | None  # (B,) with the graph to the student

    def scores(self, denoised: Tensor) -> Tensor:
        """DI++ Eq. C.3: (d - x) / sigma^2.  # (B, ...)"""
        return (denoised - self.x) / self._sigma**2

    @property
    def _sigma(self) -> Tensor:
        return self.sigma.view(-1, *[1] * (self.x.ndim - 1))

    def distance_to_reference(self) -> Tensor:
        """The mean of |x_0 - d_ref(x)|, which DMD2 divides by.  # (B,)"""
        return (self.x0 - self.reference).detach().abs().flatten(1).mean(1).clamp_min(1e-6)


KL_WEIGHTS: dict[str, Callable[[Matched], float | Tensor]] = {  # on denoisers
    "denoiser": lambda data: 1.0,
    "score": lambda data: data.sigma**-2,
    "inverse-gap": lambda data: inverse_gap_weight(data.assistant, data.reference),
    "dmd2": lambda data: 1 / data.distance_to_reference(),
}
SCORE_WEIGHTS = ("denoiser", "score")  # those that make sense for a distance, which has its own normaliser
ASSISTANT_WEIGHTS: dict[str, Callable[[Tensor], float | Tensor]] = {  # of sigma, on denoisers
    "eps": lambda sigma: sigma**-2,
    "edm": edm_weight,
    "denoiser": lambda sigma: 1.0,
}


def kl(data: Matched, c: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Diff-Instruct and DI++."""
    weight = KL_WEIGHTS[c.weighting](data)
    loss, found = diff_instruct(data.assistant, data.reference, data.x, weight, c.reduction)
    return _with_rewards(loss, found, data, c, weight)


def score_divergence(data: Matched, c: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """SIM and DI*."""
    parts, weight = (data.assistant, data.reference, data.x0), 1.0
    if c.weighting == "score":
        parts, weight = tuple(map(data.scores, parts)), data.sigma**-2
    loss, found = sim(*parts, 1.0, c.distance, c.c, c.reduction)
    if c.distance == "pseudo-huber" and data.unconditional is not None:
        # The paper leaves this reward's w(t) open. The divergence is normalised, so this is: with w = 1 it pulled 27
        # times as hard at a guidance of 2.5 (mean norms per sample, the pocket's one-step generator).
        weight = weight * inverse_gap_weight(data.reference, data.unconditional)
    return _with_rewards(loss, found, data, c, weight)


def _with_rewards(loss: Tensor, found: dict, data: Matched, c: Any, weight) -> tuple[Tensor, dict[str, Tensor]]:
    """The reward, and guidance as a reward, beside a reduced loss."""
    if data.unconditional is not None:
        loss = loss + c.guidance * guidance_reward(data.reference, data.unconditional, data.x, weight, c.reduction)
    if data.reward is not None:
        loss = loss + reward_term(data.reward, c.reward_scale)
        found = found | {"reward": data.reward.detach().mean()}
    return loss, found


DISTILL = {"diff-instruct": kl, "dipp": kl, "sim": score_divergence, "distar": score_divergence}
THROUGH_INPUTS = ("sim", "distar")  # their gradient flows through the inputs of teacher and assistant
WITH_REWARD = ("dipp", "distar")


def cost(config: Mapping[str, Any]) -> dict[str, int]:
    """What a run with these settings asks of its networks: samples through one of them, forward and backward.

    An update of the assistant: a sample of the student, forward alone, and the assistant, both ways. Of the student:
    itself both ways, the assistant, and the teacher, twice where there is guidance; with SIM and DI* backward too.
    """
    c, through = config, config["method"] in THROUGH_INPUTS
    in_reference = c["guidance_by"] == "reference"
    guided = c["guidance"] != (1 if in_reference else 0)
    followed = c["updates"] * c["assistant_updates"] + c["warmup"]
    forward = 2 * followed + c["updates"] * (3 + guided)
    backward = followed + c["updates"] * (1 + through * (2 + (guided and in_reference)))
    reward = c["updates"] * c["batch"] if c["reward"] and c["reward_scale"] else 0
    calls = {"forward": forward * c["batch"], "backward": backward * c["batch"], "reward": reward}
    return {"updates": c["updates"], "batch": c["batch"]} | calls


OURS, TRIAL = "own choice", "own tuning at pocket scale"
BUILD = "as the pocket's own distillation (fsalign_lib/pocket/student.py)"
DIPP, DIPP_C, DI_CODE = "DI++ Table 2", "DI++ App. C.1", "published Diff-Instruct code"
DMD2, DISTAR = "published DMD2 code", "DI* Sec. 5"
SILENT = "not published; " + OURS

# field -> (value, where it comes from)
COMMON = {
    "kernel": (None, "of the generator: renoise with a time, Euler ancestral with a sigma_init"),
    "steps": (1, "one-step generators"),
    "reduction": ("sum", "printed, and " + DI_CODE),
    "seed": (0, OURS),
    "rank": (64, OURS + ", for --training lora: the papers train all weights"),
    "alpha": (None, OURS + ": alpha = rank"),
    "weight_decay": (0.0, DIPP_C + ": Adam"),
    "betas": ((0.0, 0.999), DIPP + " and " + DI_CODE),
    "through_clamp": (True, OURS + ": a saturated value has no gradient through the clamp"),
}
PRETRAIN = {"start": (None, "DI++ App. A.2: from the teacher"), "reward": (None, "none"), "reward_scale": (0.0, "none")}
POCKET = COMMON | {
    "model": ("pocket-teacher", OURS),
    "teacher": ("pocket-teacher", OURS),
    "prompts": ("train", OURS),
    "training": ("full", OURS),
    "updates": (400, OURS),
    "batch": (16, TRIAL + ": half of the build's, for time"),
    "lr": (1e-4, BUILD),
    "assistant_lr": (2e-4, BUILD),
    "assistant_updates": (3, BUILD),
    "warmup": (0, "DI++ Alg. 1 has none"),
    "grad_clip": (1024.0, BUILD + ": 1 on means over D = 1024"),
    "times": ("uniform", DMD2),
    "time_range": ((20, 980), DMD2),
    "log_sigma": ((-2.0, 2.0), DIPP_C),
    "assistant_weighting": ("eps", DMD2),
    "guidance": (2.5, BUILD),
    "guidance_by": ("reference", "DI++ Alg. 2; DI* choice 2"),
    "ema": (0.95, "DI++ App. A.2"),
    "ema_ramp": (None, "DI++ App. A.2: a fixed rate"),
}
ALIGN_POCKET = POCKET | {
    "model": ("pocket-one-step", "DI++ App. A.2: pre-trained by Diff-Instruct"),
    "start": (None, "the model itself"),
    "time": (None, "as the model"),
    "sigma_init": (None, "as the model"),
    "updates": (60, TRIAL + ": of one trial of DI++ at guidance 4.5 and reward 10, whose scores moved within 20"),
    "lr": (5e-5, TRIAL + ", the same trial; no other was tried"),
    "warmup": (30, OURS + ": the assistant starts as the teacher, and has to find the student first"),
}
# w(t) and c stand for a denoiser of the latent; c grows with the root of the dimension, as a norm does.
POCKET_SCORE = {
    "weighting": ("denoiser", SILENT),
    "distance": ("pseudo-huber", "DI* Eq. 3.8"),
    "c": (0.00054 * math.sqrt(1024), "not published; 0.00054 sqrt(D), that of improved consistency training"),
}
FULL_SCORE = POCKET_SCORE | {"c": (0.00054 * math.sqrt(65536), POCKET_SCORE["c"][1])}
DIPP_FULL = COMMON | {
    "model": ("pixart-alpha", DIPP_C),
    "teacher": ("pixart-alpha", DIPP_C),
    "prompts": ("sam-llava", DIPP_C),
    "training": ("full", DIPP_C),
    "mixed_precision": ("bf16", DIPP_C),
    "lr": (5e-6, DIPP),
    "assistant_lr": (5e-6, DIPP),
    "assistant_updates": (1, "K_TA is not published; " + DI_CODE + ": 1"),
    "warmup": (0, "DI++ Alg. 1 has none"),
    "grad_clip": (math.inf, "not published; " + DI_CODE + " has none"),
    "micro_batch": (8, OURS),
    "times": ("log-normal", "DI++ Eqs. C.5, C.6"),
    "time_range": ((0, 999), "not used: log-normal times"),
    "log_sigma": ((-2.0, 2.0), "DI++ Eq. C.6"),
    "weighting": ("denoiser", DIPP_C + ": constant 1; Eq. C.8 has inverse-gap"),
    "assistant_weighting": ("edm", DIPP + " and Eq. C.7; the text of C.1 has constant 1"),
    "guidance": (4.5, "DI++ App. A.2"),
    "guidance_by": ("reference", "DI++ Alg. 2"),
}
DISTAR_FULL = COMMON | {
    "model": ("sdxl-dmd2-1step", DISTAR),
    "teacher": ("sdxl", DISTAR),
    "prompts": ("laion-aesthetics", DISTAR + ": aesthetic score above 6.25"),
    "training": ("full", "the released weights are a whole UNet"),
    "mixed_precision": ("bf16", SILENT),
    "start": (None, DISTAR + ": the DMD2 1-step weights themselves"),
    "time": (None, "the model's own, t = 399: published DMD2 code"),
    "sigma_init": (None, "the model has its own time"),
    "updates": (10_000, SILENT),
    "batch": (256, "not published; DI++ Table 2"),
    "micro_batch": (1, OURS),
    "lr": (5e-6, "not published; DI++ Table 2"),
    "assistant_lr": (5e-6, "not published; DI++ Table 2"),
    "assistant_updates": (1, SILENT),
    "warmup": (0, "DI* Alg. 1 has none"),
    "grad_clip": (1.0, SILENT),
    "times": ("uniform", SILENT),
    "time_range": ((20, 980), "not published; " + DMD2),
    "log_sigma": ((-2.0, 2.0), "not used: uniform times"),
    "weighting": ("denoiser", SILENT),
    "assistant_weighting": ("eps", "not published; " + DMD2),
    "guidance": (7.5, "DI* Sec. 5"),
    "guidance_by": ("reference", "DI* Sec. 5: inner guidance, choice 2"),
    "ema": (0.95, "not published; DI++ App. A.2"),
    "ema_ramp": (None, SILENT),
}
NO_REWARD = {"reward": (None, "none"), "reward_scale": (0.0, "none")}
EDM_EMA = {
    "ema": (0.5 ** (1024 / 500_000), "DI++ App. A.2: as EDM, whose half-life is 500,000 samples"),
    "ema_ramp": (0.05, "DI++ App. A.2: as EDM"),
}

DISTILL_RECIPES: dict[tuple[str, str], dict[str, tuple[Any, str]]] = {
    ("diff-instruct", "pocket"): POCKET
    | PRETRAIN
    | {
        "time": (None, "sigma_init in its place"),
        "sigma_init": (2.5, "DI++ App. C and " + DI_CODE),
        "weighting": ("dmd2", BUILD),
        "ema": (0.99, BUILD),
        "ema_ramp": (0.05, "DI++ App. A.2: as EDM"),
    },
    ("diff-instruct", "full"): DIPP_FULL
    | PRETRAIN
    | EDM_EMA
    | {
        "time": (None, "sigma_init in its place"),
        "sigma_init": (2.5, DIPP),
        "updates": (16_000, DIPP_C),
        "batch": (1024, DIPP),
    },
    ("dipp", "pocket"): ALIGN_POCKET
    | {
        "weighting": ("inverse-gap", "DI++ Eq. C.8"),
        "reward": ("imagereward", "DI++ App. A.2"),
        "reward_scale": (1.0, "DI++ App. A.2"),
    },
    ("dipp", "full"): DIPP_FULL
    | {
        "start": (Path("reproduce/runs/diff-instruct-full"), "DI++ App. A.2: pre-trained by Diff-Instruct"),
        "time": (None, "as the start"),
        "sigma_init": (None, "as the start"),
        "updates": (4_000, SILENT),
        "batch": (256, DIPP),
        "ema": (0.95, "DI++ App. A.2"),
        "ema_ramp": (None, "DI++ App. A.2: a fixed rate"),
        "reward": ("imagereward", "DI++ App. A.2"),
        "reward_scale": (1.0, "DI++ App. A.2: 0, 1 and 10"),
    },
    ("sim", "pocket"): ALIGN_POCKET | POCKET_SCORE | NO_REWARD,
    ("sim", "full"): DISTAR_FULL | FULL_SCORE | NO_REWARD,
    ("distar", "pocket"): ALIGN_POCKET
    | POCKET_SCORE
    | {"reward": ("pickscore", DISTAR), "reward_scale": (100.0, DISTAR)},
    ("distar", "full"): DISTAR_FULL
    | FULL_SCORE
    | {
        "reward": ("pickscore", DISTAR),
        "reward_scale": (100.0, DISTAR + ": 0, 1, 10, 100; that it multiplies the cosine is inferred"),
    },
}
