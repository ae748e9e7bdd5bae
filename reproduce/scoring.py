"""The metrics of `evaluate.py`: functions of pictures (B, 3, H, W) in [0, 1] and B prompts, with a score for each.

| metric | of one picture |
| --- | --- |
| pickscore | 100 cos(picture, prompt) in the preference CLIP, the scale of the papers' tables |
| clipscore | cos(picture, prompt) in the contrastive CLIP |
| imagereward, aesthetic, hps | as `fsalign_lib.rewards` gives them |
| accuracy | 1 if the held-out classifier names the animal asked for, else 0; a prompt with two animals has none |
| diversity | mean distance to the prompt's other pictures, between the classifier's unit features |
| sharpness | mean squared difference of horizontal neighbours |
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsalign_lib.metrics import sharpness
from fsalign_lib.pocket.captions import ANIMALS, parse
from fsalign_lib.pocket.judge import normalize
from fsalign_lib.pocket.judges import classify
from fsalign_lib.pocket.networks import load_classifier
from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.rewards import load_reward, require_folder

Metric = Callable[[Tensor, Sequence[str]], Tensor]  # pictures, prompts -> (B,)

REWARDS = {"pickscore": 100.0, "clipscore": 1.0, "imagereward": 1.0, "aesthetic": 1.0, "hps": 1.0}  # name -> factor
HELD_OUT = ("accuracy", "diversity", "sharpness")  # what no method here is trained on
METRICS = (*REWARDS, *HELD_OUT)
DEFAULT_METRICS = ("pickscore", "clipscore", "imagereward", "aesthetic", *HELD_OUT)


def load_metrics(names: Sequence[str], device: torch.device | str = "cpu") -> dict[str, Metric]:
    """The named metrics, with the pocket world's weights.

    Raises:
        ValueError: an unknown name. FileNotFoundError: weights are missing.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
    found, classifier = {}, None
    if {"accuracy", "diversity"} & set(names):
        require_folder(WEIGHTS / "classifier")
        classifier = load_classifier(WEIGHTS, "classifier").to(device)
    for name in names:
        if name in REWARDS:
            found[name] = _reward(name, device)
        elif name == "accuracy":
            found[name] = lambda images, prompts: accuracy(classifier, images, prompts)
        elif name == "diversity":
            found[name] = lambda images, prompts: diversity(classifier, images, prompts)
        else:
            found[name] = lambda images, prompts: torch.from_numpy(sharpness(images))
    return found


def _reward(name: str, device: torch.device | str) -> Metric:
    reward, factor = load_reward(name).to(device), REWARDS[name]
    return lambda images, prompts: factor * reward(images, list(prompts))


def accuracy(classifier, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """1 where the classifier names the animal of the prompt, 0 where not, nan where two are asked for.  # (B,)"""
    facts = [parse(prompt) for prompt in prompts]
    label = torch.tensor([ANIMALS.index(fact.animal) for fact in facts])
    right = (classify(classifier, images).cpu() == label).float()
    return right.masked_fill(torch.tensor([fact.second is not None for fact in facts]), float("nan"))


def diversity(classifier, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean distance of each picture's unit feature to those of the same prompt's other pictures.  # (B,)"""
    features = F.normalize(classifier.resnet(normalize(images)).pooler_output.flatten(1), dim=1)
    names = np.asarray(prompts)
    same = torch.from_numpy((names[:, None] == names[None]) & ~np.eye(len(names), dtype=bool)).to(features.device)
    distances = (features[:, None] - features[None]).norm(dim=-1)
    return (distances * same).sum(1) / same.sum(1)
