"""Rewards: pictures (B, 3, H, W) in [0, 1] and B prompts in, float32 scores (B,) out, differentiable in the pictures.

`load_reward` finds one by name: the pocket world's, or the published ones with `scale="full"`, in the same classes.
What a method is not trained on must be watched beside what it is: see `reproduce/`.
"""

from pathlib import Path

import torch

from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.rewards import full
from fsalign_lib.rewards.aesthetic import AestheticReward
from fsalign_lib.rewards.clip import CLIPReward
from fsalign_lib.rewards.hub import require_folder
from fsalign_lib.rewards.imagereward import ImageReward
from fsalign_lib.rewards.jpeg import JPEGReward
from fsalign_lib.rewards.preprocess import HPS, OPENAI

__all__ = ["AestheticReward", "CLIPReward", "ImageReward", "JPEGReward", "load_reward", "require_folder"]


def _pocket_clip(part: str):
    return lambda folder, dtype: CLIPReward.from_pretrained(folder / part, folder / "tokenizer", dtype=dtype)


JPEG = {
    "jpeg-compressibility": lambda folder, dtype: JPEGReward(sign=-1.0),
    "jpeg-incompressibility": lambda folder, dtype: JPEGReward(sign=1.0),
}
# scale -> name -> how to load it, from a folder, for computation in a dtype
REWARDS = {
    "pocket": {
        "pickscore": _pocket_clip("pickscore"),
        "clipscore": _pocket_clip("clip"),
        "hps": _pocket_clip("hps"),
        "imagereward": lambda folder, dtype: ImageReward.from_pretrained(
            folder / "imagereward", folder / "tokenizer", dtype
        ),
        "aesthetic": lambda folder, dtype: AestheticReward.from_pretrained(folder / "aesthetic", dtype),
        **JPEG,
    },
    "full": {
        "pickscore": full.pickscore,
        "clipscore": full.open_clip_h(full.CLIP_H, OPENAI),
        "hps": full.open_clip_h(full.HPS_V2_0, HPS),  # the version that SDPO reports
        "hps-2.1": full.open_clip_h(full.HPS_V2_1, HPS),
        "imagereward": full.imagereward,
        "aesthetic": full.aesthetic,
        **JPEG,
    },
}


def load_reward(
    name: str, folder: Path | str | None = None, *, scale: str = "pocket", dtype: torch.dtype = torch.float32
):
    """The reward called `name`, frozen.

    Args:
        folder: where its weights are; None: those that ship with the package, or at full scale the hub's cache, which
            is filled on the first call where there is a network.
        scale: "pocket", or "full" for the published weights, each at a pinned revision.
        dtype: of the big networks, torch.float32 or torch.bfloat16. Scores are in float32.

    Raises:
        ValueError: unknown name or scale; weights that do not match.
        FileNotFoundError: weights that are not there; the message says how to get them.
    """
    if scale not in REWARDS:
        raise ValueError(f"unknown scale {scale!r}: choose from {', '.join(REWARDS)}")
    if name not in REWARDS[scale]:
        raise ValueError(f"unknown reward {name!r}; choose one of {', '.join(REWARDS[scale])}")
    if folder is None and scale == "pocket":
        folder = WEIGHTS
    return REWARDS[scale][name](folder and Path(folder), dtype)
