"""Count what it takes to draw, decode and score pictures, without gradient: evaluations, and pairs for offline rows."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fsalign_lib.models.latent_model import LatentModel
from reproduce.planner.counting import Meter, accelerated, size
from reproduce.planner.footprint import held, tensors, text_flops, weights

# Metrics that are networks, by the reward whose network they have; others take next to nothing.
OF_REWARD = {name: name for name in ("pickscore", "clipscore", "hps", "hps-2.1", "imagereward", "aesthetic")}
OF_REWARD |= {"imagereward-raw": "imagereward", "diversity": "aesthetic", "vendi": "aesthetic"}
OF_REWARD |= {"clip-t": "clipscore", "clip-i": "clipscore"}
MOST = 64  # pictures at a time, as reproduce.evaluation.scores has it


@dataclass(frozen=True)
class Sampling:
    """Name pictures that are drawn, decoded and scored.

    Attributes:
        steps: numbers of sampling steps; the pictures are drawn in each of them.
        scored: metrics, or rewards.
        looks: pictures that are decoded and scored along a trajectory.
        encoded: pictures that are encoded again afterwards, for offline methods.
        trained: "full": beside the network its reference lies as a copy, as where trained weights are loaded.
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


@dataclass
class Taken:
    """Hold what pictures take: part -> dtype -> FLOPs; part -> bytes that are held; and the bytes at the peak."""

    flops: dict[str, Counter] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    peak: int = 0


class Pictures:
    """Count pictures of one model and its scorers; a count of one number of steps gives any other.

    Args:
        model: on the meta device. scorers: name -> network of each reward.
    """

    def __init__(self, model: LatentModel, scorers: dict[str, torch.nn.Module]):
        self.model, self.scorers = model, scorers
        self.cond, self.null = model.encode_prompts(["a prompt"]), model.null(1)
        self.batch = min(MOST, model.pictures_at_once)
        self.found: dict[float, dict[str, tuple[Counter, int]]] = {}

    def parts(self, guidance: float) -> dict[str, tuple[Counter, int]]:
        """Return part -> its FLOPs by dtype, for a picture, and its peak of bytes, for a batch."""
        if guidance in self.found:
            return self.found[guidance]
        model, n = self.model, self.batch
        model.guidance_scale = guidance
        x, cond = torch.empty(n, *model.latent_shape, device="meta"), self.cond.repeat_interleave(n, 0)
        images = torch.empty(n, 3, model.image_size, model.image_size, device="meta")
        names = [f"prompt {i}" for i in range(n)]
        known = [*held(model.unet), *held(model.vae), x, images, *tensors(cond), *tensors(self.null)]
        parts = {
            "sample": self.count(known, lambda: model.predict_x0(x, 999, cond)),
            "decode": self.count(known, lambda: model.decode(x)),
            "encode": self.count(known, lambda: model.encode(images)),
        }
        for name, network in self.scorers.items():
            parts[name] = self.count([*known, *held(network)], lambda network=network: network(images, names))
        self.found[guidance] = parts
        return parts

    def count(self, known: list[torch.Tensor], call: Callable) -> tuple[Counter, int]:
        """Run a call on a batch; return FLOPs of one picture by dtype, and the peak of bytes."""
        with torch.no_grad(), accelerated(), Meter(known) as meter:
            call()
        flops = Counter()
        for (_, dtype), n in meter.flops.items():
            flops[dtype] += n / self.batch
        return flops, max(meter.trace)

    def take(self, job: Sampling) -> Taken:
        """Return what a job takes on all processes together, and its bytes on one."""
        model, found = self.model, Taken()
        parts = self.parts(model.guidance_scale if job.guidance is None else job.guidance)
        passes = {"sample": sum(job.steps) * job.pictures, "decode": len(job.steps) * job.looks * job.pictures}
        passes["encode"] = job.encoded
        scored = dict.fromkeys(OF_REWARD[name] for name in job.scored if name in OF_REWARD)
        for name in scored:
            passes[name] = passes["decode"]
        for name, times in passes.items():
            part = "score" if name in scored else name
            more = Counter({dtype: times * n for dtype, n in parts[name][0].items()})
            found.flops[part] = found.flops.get(part, Counter()) + more
        found.flops["prompts"] = text_flops(model, self.cond, job.prompts * len(job.steps))
        found.held = {"networks": weights(model.unet) * (2 if job.trained == "full" else 1), "VAE": weights(model.vae)}
        found.held["text encoders"] = sum(map(weights, model.text.modules))
        found.held["metrics"] = sum(weights(self.scorers[name]) for name in scored)
        pictures = self.batch * 3 * 4 * model.image_size**2 + size(tensors(self.cond)) * self.batch
        states = self.batch * (2 * max(job.steps) + 2) * 4 * model.latent_shape[0] * model.latent_shape[1] ** 2
        found.peak = max(parts[name][1] for name, times in passes.items() if times) + 2 * pictures + states
        found.peak += sum(found.held.values())
        return found
