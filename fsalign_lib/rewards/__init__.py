"""Rewards: pictures (B, 3, H, W) in [0, 1] and B prompts in, float32 scores (B,) out, differentiable in the pictures.

`load_reward` finds one by name. What a method is not trained on must be watched beside what it is: see `reproduce/`.
"""

from pathlib import Path

from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.rewards.aesthetic import AestheticReward
from fsalign_lib.rewards.clip import CLIPReward
from fsalign_lib.rewards.imagereward import ImageReward
from fsalign_lib.rewards.jpeg import JPEGReward

# name -> how to load it from a folder of weights in the pocket world's layout
REWARDS = {
    "pickscore": lambda folder: CLIPReward.from_pretrained(folder / "pickscore", folder / "tokenizer"),
    "clipscore": lambda folder: CLIPReward.from_pretrained(folder / "clip", folder / "tokenizer"),
    "hps": lambda folder: CLIPReward.from_pretrained(folder / "hps", folder / "tokenizer"),
    "imagereward": lambda folder: ImageReward.from_pretrained(folder / "imagereward", folder / "tokenizer"),
    "aesthetic": lambda folder: AestheticReward.from_pretrained(folder / "aesthetic"),
    "jpeg-compressibility": lambda folder: JPEGReward(sign=-1.0),
    "jpeg-incompressibility": lambda folder: JPEGReward(sign=1.0),
}


def load_reward(name: str, folder: Path | str = WEIGHTS):
    """The reward called `name`, with weights from `folder`, frozen.

    Raises:
        ValueError: unknown name. FileNotFoundError: the folder has no weights for it.
    """
    if name not in REWARDS:
        raise ValueError(f"unknown reward {name!r}; choose one of {', '.join(REWARDS)}")
    return REWARDS[name](Path(folder))


def require_folder(folder: Path) -> Path:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no reward weights at {folder}; build them with `python -m fsalign_lib.pocket.build`")
    return Path(folder)
