"""Score pictures (B, 3, H, W) in [0, 1] for B prompts: float32 rewards (B,), differentiable in the pictures.

`load_reward` finds one by name: the pocket world's, or the published ones with `scale="full"`, in the same classes.
What a method is not trained on must be watched beside what it is: see `reproduce/`.
"""

from pathlib import Path

import torch
from torch import nn

from fsalign_lib.models.hub import Hub
from fsalign_lib.pocket.weights import WEIGHTS, require_folder
from fsalign_lib.rewards import full
from fsalign_lib.rewards.aesthetic import AestheticReward
from fsalign_lib.rewards.clip import CLIPReward
from fsalign_lib.rewards.imagereward import ImageReward
from fsalign_lib.rewards.jpeg import JPEGReward
from fsalign_lib.rewards.preprocess import HPS, OPENAI

__all__ = ["AestheticReward", "CLIPReward", "ImageReward", "JPEGReward", "load_reward", "require_folder"]


def _pocket_clip(part: str):
    return lambda folder, dtype: CLIPReward.from_pretrained(folder / part, folder / "tokenizer", dtype=dtype)


JPEG = {
    "jpeg-compressibility": lambda source, dtype: JPEGReward(sign=-1.0),
    "jpeg-incompressibility": lambda source, dtype: JPEGReward(sign=1.0),
}
# Half precision -> the most by which a score may differ from its float32 one, in standard deviations of the scores of a
# prompt's pictures, which are decoded in the same precision. That is what a method sees of a reward, which compares
# pictures of one prompt. Tests hold the pocket's rewards to it; they were at 0.026 and 0.13.
HALF_AGREES = {torch.float16: 0.05, torch.bfloat16: 0.25}
# scale -> name -> how to load it, from a folder (pocket) or a `Hub` (full), for computation in a dtype
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
        "clipscore": full.open_clip_h(full.CLIP_H, "open_clip_model.safetensors", OPENAI),
        "hps": full.open_clip_h(full.HPS_V2, "HPS_v2_compressed.pt", HPS),  # 2.0, the version that SDPO reports
        "hps-2.1": full.open_clip_h(full.HPS_V2, "HPS_v2.1_compressed.pt", HPS),
        "imagereward": full.imagereward,
        "aesthetic": full.aesthetic,
        **JPEG,
    },
}


def load_reward(
    name: str,
    *,
    scale: str = "pocket",
    dtype: torch.dtype = torch.float32,
    hub: Path | str | None = None,
) -> nn.Module:
    """Load the reward called `name`, frozen.

    Args:
        scale: "pocket" for the weights that ship with the package, "full" for the published ones.
        dtype: of the big networks, torch.float32, or a half precision of HALF_AGREES. Scores are in float32.
        hub: a folder with published files, see `fsalign_lib.models.hub`.

    Raises:
        ValueError: unknown name or scale; weights that do not match, or of another revision.
        FileNotFoundError: weights that are not there; the message says how to get them.
        PermissionError: a repository asks for consent.
    """
    if scale not in REWARDS:
        raise ValueError(f"unknown scale {scale!r}: choose from {', '.join(REWARDS)}")
    if name not in REWARDS[scale]:
        raise ValueError(f"unknown reward {name!r}; choose one of {', '.join(REWARDS[scale])}")
    source = WEIGHTS if scale == "pocket" else Hub.of(f"reward {name!r}", hub)
    return REWARDS[scale][name](source, dtype).eval().requires_grad_(False)
