"""Measure models for `evaluate.py` and the tables: pictures under fixed noise, scores, paired comparisons."""

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fsalign_lib.devices import send
from fsalign_lib.metrics.frechet import Moments, gaussian_frechet
from fsalign_lib.metrics.precision_recall import K
from fsalign_lib.metrics.statistics import Interval, crossed_interval
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.pocket.captions import parse
from fsalign_lib.rollout import rollout, seeded_noise
from reproduce.common.shards import in_chunks
from reproduce.evaluation.diversity import PrecisionRecall
from reproduce.evaluation.metrics import (
    DEFAULT_METRICS,
    SOMETIMES,
    WITHIN_PROMPTS,
    Frechet,
    Metric,
    RewardMetric,
    load_metrics,
)

Metrics = Mapping[str, Metric | Frechet | PrecisionRecall]

MOST = 64  # pictures that are sampled and scored together, at most
EVALUATION = -1  # in the place of the training round in `seeded_noise`


def picture_noise(prompts: Sequence[str], seeds: Sequence[int], shape: tuple[int, ...], count: int) -> Tensor:
    """Draw noise by the prompt's text and the seed.  # (len(prompts), len(seeds), count, *shape)"""
    ids = [zlib.crc32(prompt.encode()) for prompt in prompts]
    return torch.stack([seeded_noise(seed, EVALUATION, ids, shape, count) for seed in seeds], 1)


@torch.no_grad()
def sample(
    model: LatentModel,
    kernel_name: str | None,
    steps: int,
    prompts: Sequence[str],
    seeds: Sequence[int],
    eta: float = 1.0,
) -> Tensor:
    """Sample pictures in [0, 1] of each prompt and seed.  # (len(prompts), len(seeds), 3, H, W)"""
    kernel = model.sampler(steps, kernel_name, eta)
    noise = send(picture_noise(prompts, seeds, model.latent_shape, steps + 1).flatten(0, 1), model.device)
    cond = model.encode_prompts(prompts).repeat_interleave(len(seeds), 0)
    return model.decode(rollout(model, kernel, cond, noise).final).unflatten(0, (-1, len(seeds)))


def save_pictures(folder: Path, first: int, images: Tensor, suffix: str) -> None:
    """Save <prompt's number>-<seed>.png, the prompts numbered from `first` on.  # images (P, E, 3, H, W)"""
    folder.mkdir(parents=True, exist_ok=True)
    values = (images * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    for number, row in enumerate(values, first):
        for seed, picture in enumerate(row):
            path = folder / f"{number:05d}-{seed}.{suffix}"
            temporary = path.with_suffix(".part")
            Image.fromarray(picture).save(temporary, format=suffix, **({"quality": 95} if suffix == "jpeg" else {}))
            os.replace(temporary, path)


def at_once(model: LatentModel) -> int:
    """Return how many pictures are sampled, decoded and scored together: as many as the decoder takes, at most 64."""
    return min(MOST, model.pictures_at_once)


def forget(model: LatentModel, metrics: Metrics) -> None:
    """Drop the prompts that model and metrics have encoded, so that a chunk's numbers depend on the chunk alone.

    A prompt that was encoded with other prompts beside it may differ in the last bit.
    """
    model.forget_prompts()
    for metric in metrics.values():
        if isinstance(metric, RewardMetric):
            metric.forget()


def check(prompts: Sequence[str], seeds: Sequence[int], metrics: Sequence[str] | Metrics) -> None:
    """Raise a ValueError where there is nothing to score, or a metric cannot be had from it."""
    if not prompts or not seeds:
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give at least one of each")
    for name in WITHIN_PROMPTS:
        if name in metrics and len(seeds) < 2:
            raise ValueError(f"{name} needs 2 seeds or more for each prompt: give more seeds, or leave the metric out")
    if {"precision", "recall"} & set(metrics) and len(prompts) * len(seeds) <= K:
        raise ValueError(f"precision and recall need more than {K} pictures: give more prompts or seeds")
    if "fid" in metrics and len(prompts) * len(seeds) < 2:
        raise ValueError("fid needs 2 pictures or more, and thousands to mean something: give more prompts or seeds")
    if {"accuracy", "modes", "precision", "recall"} & set(metrics):
        for prompt in prompts:
            parse(prompt)


def score(images: Tensor, prompts: Sequence[str], seeds: Sequence[int], metrics: Metrics) -> dict[str, Tensor]:
    """Return {metric: scores (P, E), or the features (P * E, D) of a metric of all pictures}, on the CPU.

    Args:
        images: # (P, E, 3, H, W)

    Raises:
        FloatingPointError: a score that is not finite, with its prompt.
    """
    images, names, scores = images.flatten(0, 1), [prompt for prompt in prompts for _ in seeds], {}
    for name, metric in metrics.items():
        of_all = isinstance(metric, (Frechet, PrecisionRecall))
        with torch.no_grad():
            values = metric.features(images) if of_all else metric(images, names).float().cpu()
        bad = ~values.reshape(len(values), -1).isfinite().all(1)
        if name not in SOMETIMES and bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            where = f"prompt {names[row]!r} (seed {seeds[row % len(seeds)]})"
            raise FloatingPointError(f"metric {name} is {values[row].sum().item()} for {where}: look at its picture")
        scores[name] = values if of_all else values.unflatten(0, (-1, len(seeds)))
    return scores


def gather(
    parts: Iterable[dict[str, Tensor]],
    kernel: str,
    steps: int,
    prompts: Sequence[str],
    seeds: Sequence[int],
    metrics: Metrics,
) -> dict:
    """Build the result of `evaluate` from what `score` gave for its prompts, some at a time, in their order."""
    moments = {name: Moments(metric.dimensions) for name, metric in metrics.items() if isinstance(metric, Frechet)}
    kept: dict[str, list[Tensor]] = {
        name: [] for name, metric in metrics.items() if isinstance(metric, PrecisionRecall)
    }
    scores: dict[str, list] = {name: [] for name in metrics if name not in moments}
    for part in parts:
        for name in scores.keys() - kept.keys():
            scores[name] += rounded(part[name])
        for name in moments:
            moments[name].add(part[name])
        for name in kept:
            kept[name].append(part[name])
    for name, features in kept.items():
        scores[name] = rounded(metrics[name].scores(torch.cat(features), prompts, len(seeds)))
    result = {
        "kernel": kernel,
        "steps": steps,
        "seeds": list(seeds),
        "prompts": list(prompts),
        "scores": scores,
        "means": {name: mean(scores[name]) for name in scores},
    }
    for name, sums in moments.items():
        here, there = sums.gaussian(), metrics[name].reference(tuple(prompts))
        result["means"][name] = gaussian_frechet(here, there)
        result[name] = {"pictures": here.count, "reference": there.count, "dimensions": len(here.mean)}
    return result


def rounded(scores: Tensor) -> list[list[float | None]]:
    """Round scores (P, E) to five decimals, as lists with None for nan."""
    return [[None if v != v else round(v, 5) for v in row] for row in scores.tolist()]


def evaluate(
    model: LatentModel,
    kernel_name: str | None,
    steps: int,
    prompts: Sequence[str],
    seeds: Sequence[int],
    metrics: Sequence[str] | Metrics = DEFAULT_METRICS,
    batch: int | None = None,
    progress: str | None = None,
    folder: Path | None = None,
    eta: float = 1.0,
) -> dict:
    """Score a picture for each prompt and seed.

    Args:
        kernel_name: None for the model's own sampler.
        metrics: names of METRICS, or what `load_metrics` returned (to load them once), or functions of your own.
        batch: pictures at a time, about; None: `at_once`.
        progress: title of a progress bar.
        folder: where to keep what is done: all processes of the launcher share the work, and it goes on where it was
            stopped. Remove it when the result is written.
        eta: of DDIM.

    Returns:
        {"kernel", "steps", "seeds", "prompts", "scores": {metric: a list for each prompt, a number for each seed,
        None where the metric says nothing}, "means": {metric: mean}}; a metric of all pictures ("fid") is in "means"
        alone, and "fid": {"pictures", "reference", "dimensions"} says how many samples it is from.

    Raises:
        ValueError: no prompt or seed, an unknown metric, a prompt outside the grammar for "accuracy".
        FloatingPointError: a score that is not finite, with its prompt.
    """
    check(prompts, seeds, metrics)
    if not isinstance(metrics, Mapping):
        metrics = load_metrics(metrics, model.device)
    size = max(1, (batch or at_once(model)) // len(seeds))  # prompts a chunk
    count = -(-len(prompts) // size)

    def part(index: int) -> dict[str, Tensor]:
        own = list(prompts[index * size : (index + 1) * size])
        if folder:
            forget(model, metrics)
        return score(sample(model, kernel_name, steps, own, seeds, eta), own, seeds, metrics)

    return gather(in_chunks(part, count, folder, progress), kernel_name or model.kernel, steps, prompts, seeds, metrics)


def array(scores: Sequence) -> np.ndarray:
    """Return scores as a matrix without the prompts that have none.  # (P, E)"""
    values = np.array(scores, dtype=float)
    return values[~np.isnan(values).any(1)]


def mean(scores: Sequence) -> float | None:
    """Return the mean over prompts that have scores; None where none has."""
    values = array(scores)
    return float(values.mean()) if values.size else None


def interval(scores: Sequence) -> Interval | None:
    """Return the mean's 95% interval over prompts; None below 2 prompts with a score."""
    values = array(scores)
    return crossed_interval(values[None]) if len(values) > 1 else None


def differences(after: dict | Sequence[dict], before: dict | Sequence[dict], metric: str) -> np.ndarray:
    """Return `after - before` picture by picture, without the prompts that have no score.  # (T, P, E)

    Each side is one result of `evaluate`, or a list with one for each of T training seeds; a single result stands
    against each of a list.

    Raises:
        ValueError: other prompts, seeds or steps on the two sides, or lists of different length.
    """
    after, before = ([side] if isinstance(side, dict) else list(side) for side in (after, before))
    runs = max(len(after), len(before))
    after, before = (side * runs if len(side) == 1 else side for side in (after, before))
    if len(after) != len(before):
        raise ValueError(f"{len(after)} runs against {len(before)}: compare the same training seeds")
    for a, b in zip(after, before, strict=True):
        other = [key for key in ("prompts", "seeds", "steps") if a[key] != b[key]]
        if other:
            raise ValueError(f"the two results have other {' and '.join(other)}: evaluate both alike to compare them")
    pairs = zip(after, before, strict=True)
    return np.stack([array(a["scores"][metric]) - array(b["scores"][metric]) for a, b in pairs])


def compare(after: dict | Sequence[dict], before: dict | Sequence[dict], metric: str) -> Interval:
    """Compare a metric of two results of `evaluate` with its 95% interval; see `differences` for sides and errors."""
    return crossed_interval(differences(after, before, metric))
