"""Count what it takes to draw, decode and score pictures, without gradient: evaluations, and pairs for offline rows."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from fsalign_lib.models.latent_model import LatentModel
from reproduce.evaluation.scores import at_once
from reproduce.planner.counting import Meter, accelerated, size
from reproduce.planner.footprint import encoding, held, tensors, text_flops, weights

# Metrics that are networks, by the reward whose network they have; others take next to nothing.
OF_REWARD = {name: name for name in ("pickscore", "clipscore", "hps", "hps-2.1", "imagereward", "aesthetic")}
OF_REWARD |= {"imagereward-raw": "imagereward", "diversity": "aesthetic", "vendi": "aesthetic"}
OF_REWARD |= {"clip-t": "clipscore", "clip-i": "clipscore"}


@dataclass(frozen=True)
class Sampling:
    """Name pictures that are drawn, decoded and scored.

    Attributes:
        prompts: each is encoded once.
        steps: numbers of sampling steps; the pictures are drawn in each of them.
        scored: metrics, or rewards.
        looks: pictures that are decoded and scored along a trajectory.
        encoded: pictures that are encoded again afterwards, for offline methods.
        trained: "full": beside the network its reference lies as a copy, as where trained weights are loaded.
        stored: prompts are read from the disk, and the text encoders have left the device.
    """

    model: str
    dtype: str
    prompts: int
    pictures: int
    steps: tuple[int, ...]
    guidance: float | None = None  # None: the model's own
    scored: tuple[str, ...] = ()
    looks: int = 1
    encoded: int = 0
    trained: str | None = None
    stored: bool = False


@dataclass
class Taken:
    """Hold what pictures take: part -> dtype -> FLOPs; part -> bytes that are held; and the bytes at the peak."""

    flops: dict[str, Counter] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    peak: int = 0


class Pictures:
    """Count pictures of one model; a count of one number of steps gives any other.

    Args:
        model: on the meta device. scorer: makes the network of a reward.
    """

    def __init__(self, model: LatentModel, scorer: Callable[[str], nn.Module]):
        self.model, self.scorer, self.batch = model, scorer, at_once(model)
        with Meter():
            self.cond, self.null = model.encode_prompts(["a prompt"]), model.null(1)
        self.found: dict[tuple, tuple[Counter, int]] = {}

    @functools.cached_property
    def encoding(self) -> int:
        """Return the bytes of the text encoders at work."""
        return encoding(self.model)

    def part(self, name: str, guidance: float) -> tuple[Counter, int]:
        """Return what a part takes: FLOPs by dtype, for a picture; and its peak of bytes, for a batch.

        Args:
            name: sample (one step), decode, encode, or a reward.
        """
        key = name, guidance if name == "sample" else None
        if key not in self.found:
            self.found[key] = self._count(name, guidance)
        return self.found[key]

    def _count(self, name: str, guidance: float) -> tuple[Counter, int]:
        model, n = self.model, self.batch
        model.guidance_scale = guidance
        x, cond = torch.empty(n, *model.latent_shape, device="meta"), self.cond.repeat_interleave(n, 0)
        images = torch.empty(n, 3, model.image_size, model.image_size, device="meta")
        known = [*held(model.unet), *held(model.vae), x, images, *tensors(cond), *tensors(self.null)]
        calls = {
            "sample": lambda: model.predict_x0(x, 999, cond),
            "decode": lambda: model.decode(x),
            "encode": lambda: model.encode(images),
        }
        if name not in calls:
            network, prompts = self.scorer(name), [f"prompt {i}" for i in range(n)]
            known += held(network)
            calls[name] = lambda: network(images, prompts)
        with torch.no_grad(), accelerated(), Meter(known) as meter:
            calls[name]()
        flops = Counter()
        for (_, dtype), number in meter.flops.items():
            flops[dtype] += number / n
        return flops, max(meter.trace)

    def take(self, job: Sampling) -> Taken:
        """Return what a job takes on all processes together, and its bytes on one."""
        model, found, guidance = self.model, Taken(), job.guidance
        guidance = model.guidance_scale if guidance is None else guidance
        passes = {"sample": sum(job.steps) * job.pictures, "decode": len(job.steps) * job.looks * job.pictures}
        passes["encode"] = job.encoded
        scored = dict.fromkeys(OF_REWARD[name] for name in job.scored if name in OF_REWARD)
        for name in scored:
            passes[name] = passes["decode"]
        passes, peaks = {name: times for name, times in passes.items() if times}, []
        for name, times in passes.items():
            flops, peak = self.part(name, guidance)
            part = "score" if name in scored else name
            found.flops.setdefault(part, Counter()).update({dtype: times * n for dtype, n in flops.items()})
            peaks.append(peak)
        found.flops["prompts"] = text_flops(model, self.cond, job.prompts)
        found.held = {"networks": weights(model.unet) * (2 if job.trained == "full" else 1), "VAE": weights(model.vae)}
        found.held["metrics"] = sum(weights(self.scorer(name)) for name in scored)
        pictures = self.batch * 3 * 4 * model.image_size**2 + size(tensors(self.cond)) * self.batch
        states = self.batch * (2 * max(job.steps) + 2) * 4 * model.latent_shape[0] * model.latent_shape[1] ** 2
        found.peak = max(peaks) + 2 * pictures + states
        if job.stored:
            found.peak = max(found.peak, self.encoding)
        else:
            found.held["text encoders"] = sum(map(weights, model.text.modules))
        found.peak += sum(found.held.values())
        return found
