"""Define the metrics of `evaluate.py`: functions of pictures (B, 3, H, W) in [0, 1] and B prompts, scores (B,).

| metric | of one picture |
| --- | --- |
| pickscore | 100 cos(picture, prompt) in the preference CLIP, the scale of the papers' tables |
| clipscore | cos(picture, prompt) in the contrastive CLIP |
| hps, hps-2.1 (full scale) | 100 cos(picture, prompt) in HPS's CLIP, likewise |
| imagereward, aesthetic | as `fsalign_lib.rewards` gives them |
| imagereward-raw (full scale) | ImageReward's output before its normalisation, 1.033 times imagereward + 0.167 |
| jpeg-incompressibility, jpeg-compressibility | plus or minus the kB of the picture as a JPEG |
| accuracy (pocket scale) | 1 if the held-out classifier names the animal asked for, else 0; with two animals none |
| diversity | mean distance to the prompt's other pictures, between unit features (below) |
| vendi | Vendi score of the prompt's pictures, cosine kernel of features (below): an effective number of pictures |
| modes (pocket scale) | backgrounds, of 8, behind the animal asked for among the prompt's pictures (diversity.py) |
| precision, recall (pocket scale) | 1 if it lies in the manifold of rendered scenes; for recall, a scene in theirs |
| sharpness | mean squared difference of horizontal neighbours |

and "fid", of all pictures together: the Frechet distance of their features to those of a reference set. At pocket scale
the features are the held-out classifier's, and the reference is renders of the same prompts unless one is given; at
full scale they are those of FID's own network, and the reference must be given.

Diversity is between features of the held-out classifier at pocket scale, of the aesthetic reward's CLIP ViT-L/14 at
full scale; so is vendi. Precision and recall are of all pictures together, beside as many renders of the same prompts,
between unit features of the classifier. Rewards are in float32 at both scales. Networks that several metrics use are
loaded once.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsalign_lib.metrics import inception
from fsalign_lib.metrics.features import sharpness
from fsalign_lib.metrics.frechet import Gaussian, Moments
from fsalign_lib.pocket.captions import ANIMALS, parse
from fsalign_lib.pocket.classifiers import classify
from fsalign_lib.pocket.judge import normalize
from fsalign_lib.pocket.networks import load_classifier
from fsalign_lib.pocket.render import render
from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.rewards import load_reward, require_folder
from reproduce.evaluation.diversity import PrecisionRecall, modes, vendi

Metric = Callable[[Tensor, Sequence[str]], Tensor]  # pictures, prompts -> (B,)
Features = Callable[[Tensor], Tensor]  # pictures -> (B, D)
Reference = Callable[[Sequence[str]], Gaussian]  # prompts -> what their pictures are held to

JPEG = {"jpeg-compressibility": 1.0, "jpeg-incompressibility": 1.0}
# name -> factor
REWARDS = {"pickscore": 100.0, "clipscore": 1.0, "imagereward": 1.0, "aesthetic": 1.0, "hps": 100.0, **JPEG}
HELD_OUT = ("accuracy", "diversity", "sharpness")  # what no method here is trained on
WITHIN_PROMPTS = ("diversity", "vendi", "modes")  # these compare a prompt's pictures, so it needs 2 or more
SOMETIMES = ("accuracy", "modes")  # these say nothing of some prompts
METRICS = {
    "pocket": (*REWARDS, *HELD_OUT, "vendi", "modes", "precision", "recall", "fid"),
    "full": (*REWARDS, "imagereward-raw", "hps-2.1", "diversity", "vendi", "sharpness", "fid"),
}
DEFAULT_METRICS = ("pickscore", "clipscore", "imagereward", "aesthetic", *HELD_OUT)
DEFAULTS = {"pocket": DEFAULT_METRICS, "full": tuple(name for name in DEFAULT_METRICS if name != "accuracy")}
RENDERS = 2048  # of the reference at pocket scale, about


class RewardMetric:
    """Use a reward as a metric; `forget` drops the prompts that it has encoded."""

    def __init__(self, reward: nn.Module, factor: float):
        self.reward, self.factor = reward, factor

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.factor * self.reward(images, list(prompts))

    def forget(self) -> None:
        """Drop the prompts that the reward has encoded."""
        getattr(self.reward, "cache", {}).clear()


class Frechet:
    """Measure all pictures together: the distance of their features to a reference set's.

    Attributes: extractor, the name of the network; dimensions, of its features; size, of the pictures that it reads.
    """

    def __init__(self, extractor: str, network: Features, dimensions: int, size: int, reference: Reference):
        self.extractor, self.network, self.dimensions, self.size = extractor, network, dimensions, size
        self.reference = reference

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return (B, D) of pictures in [0, 1], as if they were read from a PNG: in whole bytes, stretched to `size`."""
        images = (images.float() * 255).round() / 255
        shape = (self.size, self.size)
        return self.network(F.interpolate(images, shape, mode="bilinear", align_corners=False)).float().cpu()


def few_pictures(given: int | None, dimensions: int, side: str) -> list[str]:
    """Warn in one line, or none, where a Frechet distance has too few pictures for a covariance of full rank.

    Args:
        given: how many there are, if that is known.
        side: "pictures" for those scored, "reference" for those that they are held to.
    """
    if given is None or given > dimensions:
        return []
    return [
        f"fid: {given} {'pictures' if side == 'pictures' else 'pictures of the reference'} for {dimensions} feature "
        "dimensions: the covariance is rank-deficient and the distance too large: compare equal numbers only"
    ]


def check_scale(scale: str) -> None:
    """Raise a ValueError for an unknown scale."""
    if scale not in METRICS:
        raise ValueError(f"unknown scale {scale!r}: choose from {', '.join(METRICS)}")


def check_names(names: Sequence[str], scale: str, reference: bool) -> None:
    """Raise a ValueError for an unknown scale or metric, or one that this scale lacks.

    Args:
        reference: whether one is given.
    """
    check_scale(scale)
    for name in names:
        if name not in METRICS[scale]:
            other = [s for s in METRICS if name in METRICS[s]]
            what = f"metric {name!r} is of {other[0]} scale only" if other else f"unknown metric {name!r}"
            raise ValueError(f"{what}: choose from {', '.join(METRICS[scale])}")
    if "fid" in names and scale == "full" and not reference:
        raise ValueError(
            "fid at full scale needs --reference: a folder of pictures, an .npz of pytorch-fid, or a .safetensors of "
            "reproduce/fid_reference.py"
        )
    if reference and "fid" not in names:
        raise ValueError("--reference is for the metric fid: add fid to --metrics, or leave --reference out")


def load_metrics(
    names: Sequence[str],
    device: torch.device | str = "cpu",
    scale: str = "pocket",
    reference: Reference | None = None,
) -> dict[str, Metric | Frechet]:
    """Load the named metrics, with the pocket world's weights or the published ones.

    Args:
        reference: for "fid"; None at pocket scale: renders of the prompts.

    Raises:
        ValueError: see `check_names`. FileNotFoundError: weights are missing.
    """
    check_names(names, scale, reference is not None)
    loaded: dict[str, Metric | Frechet] = {
        name: RewardMetric(load_reward(name, scale=scale).to(device), REWARDS[name.removesuffix("-2.1")])
        for name in names
        if name in REWARDS or name == "hps-2.1"
    }
    if "sharpness" in names:
        loaded["sharpness"] = lambda images, prompts: torch.from_numpy(sharpness(images))
    load_others = _pocket_metrics if scale == "pocket" else _full_metrics
    loaded |= load_others(set(names) - set(loaded), device, loaded, reference)
    return {name: loaded[name] for name in names}


def _pocket_metrics(names: set[str], device, loaded: dict, reference: Reference | None) -> dict:
    """Load the metrics on the held-out classifier."""
    if not names:
        return {}
    require_folder(WEIGHTS / "classifier")
    classifier = load_classifier(WEIGHTS, "classifier").to(device)
    fid = Frechet("pocket-classifier", lambda x: pooled(classifier, x), classifier.config.hidden_sizes[-1], 64, None)
    fid.reference = reference or functools.cache(lambda prompts: rendered(fid, prompts, device))
    every = {
        "accuracy": lambda images, prompts: accuracy(classifier, images, prompts),
        "diversity": lambda images, prompts: diversity(classifier, images, prompts),
        "vendi": lambda images, prompts: vendi(pooled(classifier, images), prompts),
        "modes": lambda images, prompts: modes(classifier, images, prompts),
        "fid": fid,
    }

    @functools.cache
    def scenes(prompts: tuple[str, ...], count: int) -> Tensor:
        pictures = render([parse(prompt) for prompt in prompts for _ in range(count)], torch.Generator().manual_seed(1))
        return torch.cat([every["recall"].features(batch.to(device) / 255) for batch in pictures.split(256)])

    for kind in ("precision", "recall") if names & {"precision", "recall"} else ():
        every[kind] = PrecisionRecall(kind, lambda x: pooled(classifier, x), scenes)
    return {name: every[name] for name in names}


def _full_metrics(names: set[str], device, loaded: dict, reference: Reference | None) -> dict:
    """Load the metrics on CLIP ViT-L/14, which is the aesthetic reward's, on ImageReward and on FID's network."""
    every = {}
    if names & set(WITHIN_PROMPTS):
        shared = loaded["aesthetic"].reward if "aesthetic" in loaded else None
        tower = shared or load_reward("aesthetic", scale="full").to(device)
        every["diversity"] = lambda images, prompts: spread(tower.image_embeddings(images), prompts)
        every["vendi"] = lambda images, prompts: vendi(tower.image_embeddings(images), prompts)
    if "imagereward-raw" in names:
        scorer = loaded["imagereward"].reward if "imagereward" in loaded else load_reward("imagereward", scale="full")
        scorer.to(device)
        every["imagereward-raw"] = lambda images, prompts: scorer.std * scorer(images, list(prompts)) + scorer.mean
    if "fid" in names:
        network = inception.load_inception().to(device)
        every["fid"] = Frechet(inception.WEIGHTS.name, network, inception.FEATURES, inception.SIZE, reference)
    return every


def accuracy(classifier, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return 1 where the classifier names the prompt's animal, 0 where not, nan where two are asked for.  # (B,)"""
    facts = [parse(prompt) for prompt in prompts]
    label = torch.tensor([ANIMALS.index(fact.animal) for fact in facts])
    right = (classify(classifier, images).cpu() == label).float()
    return right.masked_fill(torch.tensor([fact.second is not None for fact in facts]), float("nan"))


def pooled(classifier, images: Tensor) -> Tensor:
    """Return the classifier's features before its last layer.  # (B, D)"""
    return classifier.resnet(normalize(images)).pooler_output.flatten(1)


def diversity(classifier, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the `spread` of the classifier's features.  # (B,)"""
    return spread(F.normalize(pooled(classifier, images), dim=1), prompts)


def spread(features: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean distance of each picture's unit feature (B, D) to those of the same prompt's other pictures.  # (B,)"""
    names = np.asarray(prompts)
    same = torch.from_numpy((names[:, None] == names[None]) & ~np.eye(len(names), dtype=bool)).to(features.device)
    distances = (features[:, None] - features[None]).norm(dim=-1)
    return (distances * same).sum(1) / same.sum(1)


def rendered(
    fid: Frechet, prompts: Sequence[str], device: torch.device | str = "cpu", count: int = RENDERS
) -> Gaussian:
    """Draw the pocket world's reference: each prompt's scene as often as the others, `count` in all or more.

    Raises:
        ValueError: a prompt outside the grammar.
    """
    generator, moments = torch.Generator().manual_seed(0), Moments(fid.dimensions)
    facts = [parse(prompt) for prompt in prompts] * -(-count // len(prompts))
    for first in range(0, len(facts), 256):
        pictures = render(facts[first : first + 256], generator)
        moments.add(fid.features(pictures.to(device) / 255))
    return moments.gaussian()
