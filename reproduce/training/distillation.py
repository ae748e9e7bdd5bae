"""Weights of the losses of `train_distill.py`, and what a run asks of its networks."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fsalign_lib.losses.distribution_matching import edm_weight, inverse_gap_weight
from reproduce.training.methods import METHODS, Matched

KL_WEIGHTS: dict[str, Callable[[Matched], float | Tensor]] = {  # on denoisers
    "denoiser": lambda data: 1.0,
    "score": lambda data: data.sigma**-2,
    "inverse-gap": lambda data: inverse_gap_weight(data.assistant, data.reference),
    # The mean of |x_0 - d_ref(x)|, which DMD2 divides by.
    "dmd2": lambda data: 1 / (data.x0 - data.reference).detach().abs().flatten(1).mean(1).clamp_min(1e-6),
}
SCORE_WEIGHTS = ("denoiser", "score")  # those that make sense for a distance, which has its own normaliser
ASSISTANT_WEIGHTS: dict[str, Callable[[Tensor], float | Tensor]] = {  # of sigma, on denoisers
    "eps": lambda sigma: sigma**-2,
    "edm": edm_weight,
    "denoiser": lambda sigma: 1.0,
}


def cost(config: Mapping[str, Any]) -> dict[str, int]:
    """What a run with these settings asks of its networks: samples through one of them, forward and backward.

    An update of the assistant: a sample of the student, forward alone, and the assistant, both ways. Of the student:
    itself both ways, the assistant, and the teacher, twice where there is guidance; with SIM and DI* backward too.
    """
    c, through = config, "input gradients" in METHODS[config["method"]].needs
    in_reference = c["guidance_by"] == "reference"
    guided = c["guidance"] != (1 if in_reference else 0)
    followed = c["updates"] * c["assistant_updates"] + c["warmup"]
    forward = 2 * followed + c["updates"] * (3 + guided)
    backward = followed + c["updates"] * (1 + through * (2 + (guided and in_reference)))
    reward = c["updates"] * c["batch"] if c["reward"] and c["reward_scale"] else 0
    calls = {"forward": forward * c["batch"], "backward": backward * c["batch"], "reward": reward}
    return {"updates": c["updates"], "batch": c["batch"]} | calls
