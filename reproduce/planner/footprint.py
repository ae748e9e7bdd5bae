"""Count what a training run takes of a device: bytes in each phase, FLOPs in each round.

The loop's own round runs on the meta device, on a stand-in for its run that marks where the work on some rows begins
and ends. It runs at two batch sizes. Its operations are the same at both, and each allocates a + b * rows bytes, which
gives the trace, and its peak, at any batch size.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fsalign_lib.devices import table_on
from fsalign_lib.losses.preference import pso_weights
from fsalign_lib.models.conditioning import CHUNK, Cond
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.models.student_teacher import build_trio
from reproduce import train_distill, train_offline, train_online
from reproduce.data.encoded_prompts import SHARD
from reproduce.data.latents import BATCHES
from reproduce.planner.counting import Meter, accelerated, size
from reproduce.training.config import KEPT_PROMPTS, TrainConfig
from reproduce.training.ema import Average
from reproduce.training.methods import METHODS
from reproduce.training.run import training_kernel

AUTOCAST = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
ROWS = 2, 4  # not 1: at batch size 1 some copies are left out
START = "renoise", (399,)  # of a generator whose start is not at hand; its time does not matter for what it takes
# Settings that a round's operations do not depend on, or only by their numbers; batch sizes are those of ROWS.
ALIKE = {"out": Path(), "seed": 0, "rounds": 9, "updates": 9, "micro_batch": None, "rollout_batch": None, "warmup": 0}
ALIKE |= {"mixed_steps": (), "halves_every": None}


class MetaRun(Meter):
    """Stand in for `reproduce.training.run.Run` in one round, of which each learner's first update is traced, whole.

    Attributes:
        spans: (operation, live bytes, what) in order: from there on bytes grow with the rows of "share", a learner's
            micro-batch, or the "whole" batch. asked: learner -> rows of all its updates; first: of the traced one.
        births: (operation, bytes) of gradients.
        decoding: (operation, pictures) where pictures are decoded without gradient, of which the trace has no bytes.
    """

    start = 1  # not 0, whose warm-up is no part of other rounds

    def __init__(self, learners: dict[str, list[nn.Parameter]], *args):
        super().__init__(*args)
        self.learners, self.spans, self.births = learners, [(0, 0, "whole")], []
        self.asked, self.first, self.decoding = Counter(), {}, []

    def _enter(self, what: str) -> None:
        self.spans.append((len(self.trace), self.now, what))

    def share(self, rows: Tensor) -> Tensor:
        self._enter("share")
        return rows

    def gather(self, values: Tensor) -> Tensor:
        self._enter("whole")
        return values

    def micro_batches(self, prompts: Sequence[str], number: int, which: int = 0) -> Iterator[Tensor]:
        name = [*self.learners][which]
        self.asked[name] += len(prompts)
        if name in self.first:
            return
        self.first[name], self.part = len(prompts), name
        for p in chain(*self.learners.values()):
            p.requires_grad_(any(p is q for q in self.learners[name]))
        self._enter(name)
        yield torch.arange(len(prompts))
        self.births += [self.born(p.grad)[::-1] for p in self.learners[name]]
        self._enter("whole")

    def backward(self, loss: Tensor, diagnostics: dict[str, Tensor], rows: Tensor) -> None:
        loss.backward()
        self.means = {"loss": loss.detach(), "gradient": loss.detach()} | diagnostics

    def step(self) -> dict[str, Tensor]:
        for p in chain(*self.learners.values()):
            p.grad = None
        return dict(self.means)

    def record(self, *_) -> None:
        pass


class Networks:
    """Hold a run's networks on the meta device, and traces of rounds; runs that train them alike may share them.

    Args:
        model: in the precision of the run; it is made trainable here.
        teacher: of a distillation; the model itself, where the student starts from the teacher's weights.

    Attributes:
        learners: what learns -> its parameters. bytes: what is held -> its bytes. cond: of one prompt.
    """

    def __init__(self, config: TrainConfig, model: LatentModel, teacher: LatentModel | None = None):
        c, self.learners = config, {}
        self.memory, self.rounds, self.runs = {}, {}, 0
        with torch.device("meta"):
            if teacher is not None:  # on the meta device networks of one shape have one fingerprint: names tell them
                model.fingerprint, teacher.fingerprint = model.name, teacher.name
                self.trio = build_trio(model, teacher, c.training, c.rank, c.alpha, c.seed)
                model = self.trio.student
                model.kernel, model.timesteps = (model.kernel, model.timesteps) if model.timesteps else START
            elif c.training == "lora":
                model.add_lora(c.rank, c.alpha)
            else:
                model.train_all_weights()
        if c.loop == "offline" and not model.embeds_guidance:
            model.guidance_scale = 1.0
        self.model, self.models = model, [model]
        self.learners = {"update": [*model.trained_parameters().values()]}
        if teacher is not None:
            self.models, names = [model, self.trio.assistant, self.trio.teacher], ("student update", "assistant update")
            self.learners = {n: [*m.trained_parameters().values()] for n, m in zip(names, self.models, strict=False)}
        self.networks = [*{id(m.unet): m.unet for m in self.models}.values()]
        modules = [*self.networks, model.vae, *model.text.modules]
        trained = size(chain(*self.learners.values()))
        self.bytes = {"adapters": trained} if c.training == "lora" else {}
        if model.frozen_copy is not None:
            self.bytes["reference copy"] = weights(model.frozen_copy)
        self.bytes["networks"] = sum(map(weights, self.networks)) - self.bytes.get("adapters", 0)
        self.bytes |= {"VAE": weights(model.vae), "text encoders": sum(map(weights, model.text.modules))}
        with Meter():
            self.cond: Cond = model.encode_prompts(["a prompt"])
            null = self.models[-1].null(1)
        for m in self.models:
            m.schedule.nearest_t(1.0)  # levels that a schedule computes once, so in no trace
            m.network = partial(self._network, m, m.unet)
            m.frozen_copy = m.frozen_copy and partial(self._network, m, m.frozen_copy)
        self.known = [*chain(*map(held, modules)), *tensors(self.cond), *tensors(null)]
        model.decode = partial(self._decode, model.decode)
        model.vae._decode, model.vae._encode = (partial(self._slice, f) for f in (model.vae._decode, model.vae._encode))

    def _part(self, name: str, key: object, function: Callable, *args, **kwargs):
        """Call a part of the networks; outside of updates its FLOPs go by its name."""
        if self.run.part not in self.learners:
            self.run.part = name
        return self.run.call((name, key), function, *args, **kwargs)

    def _network(self, model: LatentModel, network: nn.Module, *args, **kwargs):
        part = "reference" if model._in_reference else "rollout"
        return self._part(part, (id(network), model.adapters.active), network, *args, **kwargs)

    def _decode(self, decode: Callable, latents: Tensor, *args, **kwargs):
        """Decode. Without a gradient that is a few pictures at a time, which no line between two batch sizes tells."""
        start, before = len(self.run.trace), self.run.now
        out = self._part("decode", None, decode, latents, *args, **kwargs)
        if not (torch.is_grad_enabled() and latents.requires_grad):
            del self.run.trace[start:]
            self.run.trace.append(before)  # the decoder's peak comes before there are its pictures
            self.run.decoding.append((start, len(latents)))
        return out

    @functools.cached_property
    def decoded(self) -> int:
        """Return the bytes that one picture takes in the decoder, where nothing is kept for a backward."""
        self.run, self.sliced = Meter(self.known), set()
        with torch.no_grad(), accelerated(), self.run:
            self.model.vae.decode(torch.empty(1, *self.model.latent_shape, dtype=self.model.vae.dtype, device="meta"))
        return max(self.run.trace)

    @functools.cached_property
    def encoding(self) -> int:
        """Return the bytes of the text encoders at work."""
        return encoding(self.model)

    def _slice(self, function: Callable, pictures: Tensor, **kwargs):
        """Encode or decode; the slices after the first leave no mark in the trace, which must not grow with them."""
        key, start = (function, pictures.shape, torch.is_grad_enabled()), len(self.run.trace)
        out = self.run.call(key, function, pictures, **kwargs)
        if self.model.vae.use_slicing and key in self.sliced:
            del self.run.trace[start:]
        self.sliced.add(key)
        return out

    def round(self, config: TrainConfig, reward: nn.Module | None, many_prompts: bool, checkpointing: bool):
        """Trace a round at both batch sizes, once for all settings that differ in numbers alone."""
        alike = {k: v for k, v in ALIKE.items() if not isinstance(getattr(config, k, ""), str)}
        config = replace(config, gradient_checkpointing=checkpointing, **alike)
        kinds = {k: v if v in (0, 1) or not isinstance(v, (float, Path)) else type(v) for k, v in vars(config).items()}
        key = repr((kinds, many_prompts, id(reward)))
        if key not in self.rounds:
            self.rounds[key] = Round(*(self._trace(config, reward, many_prompts, rows) for rows in ROWS))
        return self.rounds[key]

    def _trace(self, config: TrainConfig, reward: nn.Module | None, many_prompts: bool, rows: int) -> MetaRun:
        """Run a round of so many pairs, or rows of a batch, set up as the loop's `prepare` does it."""
        for network in (*self.networks, self.model.vae):
            network.disable_gradient_checkpointing()
        for model in self.models if config.gradient_checkpointing else ():
            model.checkpoint_gradients()
        table_on.cache_clear()  # constants that a run copies once: each trace has them
        sizes = ("pairs", "minibatch") if config.loop == "online" else ("batch",)
        c, cond = replace(config, **dict.fromkeys(sizes, rows)), self.cond.repeat_interleave(rows, 0)
        known = (*self.known, *tensors(cond), *(held(reward) if reward else ()))
        self.run = run = MetaRun(self.learners, known, self.memory)
        self.sliced = set()
        self.runs += 1  # a reward encodes each prompt once
        prompts, kept = [f"prompt {i} of run {self.runs}" for i in range(rows)], None if many_prompts else cond
        with_graph = c.loop == "distill" or "reward gradient" in METHODS[c.method].needs
        self.model.vae.use_slicing = c.vae_slicing and not with_graph  # with a graph it saves next to nothing

        def score(pictures: Tensor, prompts: list[str]) -> Tensor:
            if reward is None:
                return pictures[:, 0, 0, 0]
            return self._part("reward", (id(reward), len(prompts)), lambda some: reward(some, prompts), pictures)

        kernel = training_kernel(c, self.model) if c.loop != "distill" else self.model.sampler(1)
        if c.loop == "online":
            advantages = (lambda returns, _: returns) if c.normalize else None
            setup = train_online.Setup(c, self.model, score, prompts, kept, kernel, run, advantages)
            rounds = train_online.train(setup)
        elif c.loop == "offline":
            needs, shape = METHODS[c.method].needs, self.model.latent_shape
            latents, prior = torch.empty(rows, 1 + ("losers" in needs), *shape), torch.empty(rows, 1, *shape)
            weight = pso_weights(kernel, c.eq5_weights) if "own samples" in needs else None
            more = weight, (prior, cond) if c.prior else None
            rounds = train_offline.train(train_offline.Setup(c, self.model, prompts, latents, kept, kernel, run, *more))
        else:
            average = Average(self.model, c.ema, c.ema_ramp)
            scored = score if c.reward and c.reward_scale else None
            setup = train_distill.Setup(c, self.trio, scored, prompts, kept, kernel, run, average)
            rounds = train_distill.train(setup)
        with accelerated(AUTOCAST[c.mixed_precision], self.networks), run:
            next(rounds)
        return run

    def encode(self, pictures: int, slicing: bool) -> int:
        """Return the peak of bytes while so many pictures are encoded."""
        self.run, self.sliced, self.model.vae.use_slicing = Meter(self.known), set(), slicing
        with accelerated(), self.run:
            self.model.encode(torch.empty(pictures, 3, *[self.model.image_size] * 2, device="meta"))
        return max(self.run.trace)


class Round:
    """Hold a round at any batch size, from traces at two; sizes are pairs, offline and in distillation rows of a batch.

    Attributes:
        rows: learner -> rows of an update for each pair. updates: learner -> how many times these are updated.
        flops: (part, dtype) -> FLOPs for each pair.
    """

    def __init__(self, low: MetaRun, high: MetaRun):
        if len(low.trace) != len(high.trace):
            raise RuntimeError(
                f"a round has {len(low.trace)} operations, a larger {len(high.trace)}: it cannot be planned"
            )
        self.bytes = line(torch.tensor(low.trace, dtype=torch.float64), torch.tensor(high.trace, dtype=torch.float64))
        self.rows = {learner: n / ROWS[0] for learner, n in low.first.items()}
        self.updates = {learner: n / low.first[learner] for learner, n in low.asked.items()}
        self.flops = {key: line(low.flops[key], n)[1] for key, n in high.flops.items()}
        both = zip(low.decoding, high.decoding, strict=True)
        self.decoding = [(at, line(few, more)) for (at, few), (_, more) in both]
        # With all gradients there before: one that is added to another is freed at once.
        self.there = torch.zeros(len(low.trace) + 1, dtype=torch.float64)
        for operation, n in low.births:
            self.there[operation + 1] += n
        ends = [(len(run.trace), run.now, "") for run in (low, high)]
        both = zip((*low.spans, ends[0]), (*high.spans, ends[1]), strict=True)
        self.spans = [
            (slice(a, b), what, line(live, live_high), line(after - live, after_high - live_high)[1])
            for ((a, live, what), (_, live_high, _)), ((b, after, _), (_, after_high, _)) in pairwise(both)
            if a < b
        ]

    def peaks(
        self,
        micro: float,
        rollout: int,
        pairs: int,
        share: int,
        later: bool,
        decoder: Callable[[float], float],
        parts: int = 1,
    ) -> dict[str, int]:
        """Return phase -> peak of bytes, without those that are there all the time.

        Args:
            micro: rows of an update in a forward and backward. later: another micro-batch made gradients before it.
            rollout: pairs sampled at a time. pairs: of the round, on all processes; share: on this one.
            decoder: pictures -> bytes that decoding them takes, without gradient.
            parts: in which gradients are held, each on another process.
        """
        found: dict[str, int] = {}
        for span, what, live, grown in self.spans:
            rows = {"whole": pairs, "share": rollout}.get(what) or micro / self.rows[what]
            base = live[0] + live[1] * pairs - (live[0] + live[1] * rows)
            if what == "share":
                base += max(0, grown) * (share - rollout)  # what came of those sampled before
            there = self.bytes[0][span] + self.bytes[1][span] * rows + base
            made = self.there[span].cumsum(0)
            if what in self.rows:
                there = there - made + (made[-1] if later else made) / parts
            for at, (fixed, each) in self.decoding:
                if span.start <= at < span.stop:
                    there[at - span.start] += decoder(fixed + each * rows)
            name = what if what in self.rows else "sampling"
            found[name] = max(found.get(name, 0), int(there.max()))
        return found


class Footprint:
    """Count a configuration on one of `processes` devices.

    Args:
        reward: what scores pictures; None: none, or one that takes no memory worth counting.
        prompts: whose embeddings stay on the device; offline, pairs, whose prompts do.
        cuda: AdamW works on all weights at once there, and on one after the other on a CPU.
        sharded: FSDP holds weights, gradients and moments in parts, where all weights are trained.
        beside: what else lies on the device -> its bytes.
        stored: prompts are read from the disk, and the text encoders leave the device before the first round.

    Attributes:
        fixed: part -> bytes that are there all the time. batch: rows of an update, on all processes.
        rounds: how often the FLOPs are spent.
    """

    def __init__(
        self,
        config: TrainConfig,
        networks: Networks,
        reward: nn.Module | None = None,
        prompts: int = 4000,
        processes: int = 1,
        cuda: bool = True,
        sharded: bool = False,
        beside: Mapping[str, int] = MappingProxyType({}),
        stored: bool = False,
    ):
        self.config, self.networks, self.reward, self.processes, self.cuda = config, networks, reward, processes, cuda
        online, trained = config.loop == "online", [*chain(*networks.learners.values())]
        self.pairs, self.rounds = (config.pairs, config.rounds) if online else (config.batch, config.updates)
        self.many_prompts = not online and prompts > KEPT_PROMPTS
        self.fixed = networks.bytes | {"reward": weights(reward)} if reward else dict(networks.bytes)
        self.fixed["optimizer"] = sum(moments(p, config.optimizer) for p in trained)
        if config.loop == "distill":
            self.fixed["average"] = size(networks.learners["student update"])
        self.parts = processes if sharded and config.training == "full" else 1
        for part in ("networks", "reference copy", "optimizer", "average"):
            if self.parts > 1 and part in self.fixed:
                self.fixed[part] //= self.parts
        if self.parts > 1:
            self.fixed["gathered layers"] = gathered(networks.model.unet)
        elif processes > 1:
            self.fixed["gradient buckets"] = size(trained)
        self.fixed |= beside
        self.stored, self.encoders = stored, self.fixed.pop("text encoders") if stored else 0
        if not self.many_prompts:  # the cache of them, and the batch of all
            self.fixed["prompts"] = prompts * 2 * size(tensors(networks.cond))
        self.batch = round(
            [*self.round(config.gradient_checkpointing).rows.values()][-1]
            * (config.minibatch if online else config.batch)
        )

    def round(self, checkpointing: bool) -> Round:
        return self.networks.round(self.config, self.reward, self.many_prompts, checkpointing)

    def peaks(self, micro: float, rollout: int = 1, checkpointing: bool = False) -> dict[str, int]:
        """Return phase -> peak of bytes, the fixed ones with them; see `Round.peaks`."""
        share, later = self.pairs // self.processes, micro < self.batch // self.processes
        phases = self.round(checkpointing).peaks(
            micro, min(rollout, share), self.pairs, share, later, self._decoder, self.parts
        )
        for learner, parameters in self.networks.learners.items():  # on a GPU a root of each second moment
            small = 2 * max(p.numel() * p.element_size() for p in parameters)
            more = 0 if self.config.optimizer == "adamw8bit" else size(parameters) if self.cuda else small
            phases[learner.replace("update", "step")] = (size(parameters) + more) // self.parts
        if self.config.loop == "offline":  # before there is an optimizer; the latents go to the CPU
            side = self.networks.model.image_size
            pictures = next(number for limit, number in BATCHES if side <= limit)
            encode = self.networks.encode(pictures, self.config.vae_slicing) + 2 * pictures * 3 * 4 * side**2
            phases["encode"] = encode + self.encoders - self.fixed["optimizer"] - self.fixed.get("prompts", 0)
        if self.stored:
            phases["prompts"] = self.networks.encoding
        return {phase: sum(self.fixed.values()) + more for phase, more in phases.items()}

    def as_run(self) -> dict[str, int]:
        """Return phase -> peak of bytes with the settings' own micro-batch, rollout batch and checkpointing."""
        c, micro = self.config, self.config.micro_batch or math.inf
        rollout = getattr(c, "rollout_batch", None) or self.pairs
        share = max(1, self.batch // self.processes)
        return self.peaks(
            min(micro, share), max(1, min(rollout, self.pairs // self.processes)), c.gradient_checkpointing
        )

    def _decoder(self, pictures: float) -> float:
        model, side = self.networks.model, self.networks.model.image_size
        part = min(pictures, model.pictures_at_once)
        done = (pictures - part) * 3 * 4 * side**2
        return self.networks.decoded * (1 if self.config.vae_slicing else part) + done

    def flops(self, checkpointing: bool = False) -> dict[str, dict[str, float]]:
        """Return part -> dtype -> FLOPs of a round (offline: of an update), on all processes together."""
        found, traced = {}, self.round(checkpointing)
        for (part, dtype), n in traced.flops.items():
            more = self.config.warmup / self.config.updates if part == "assistant update" else 0
            found.setdefault(part, {})[dtype] = n * (traced.updates.get(part, 1) + more) * self.pairs
        return found


def line(low, high) -> tuple:
    """Return value at 0 and slope of what is `low` and `high` at the two sizes."""
    slope = (high - low) / (ROWS[1] - ROWS[0])
    return low - slope * ROWS[0], slope


def held(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def weights(network: nn.Module) -> int:
    return size(held(network))


def tensors(cond: Cond) -> list[Tensor]:
    return [cond] if isinstance(cond, Tensor) else [cond.text, *cond.extra.values()]


def text_flops(model: LatentModel, cond: Cond, prompts: float) -> Counter:
    """Return dtype -> FLOPs of encoding prompts: two for each weight, but for tables of words, and each token.

    Args:
        cond: of one prompt.
    """
    found, tokens = Counter(), tensors(cond)[0].shape[1]
    for encoder in model.text.modules:
        tables = sum(
            p.numel() for part in encoder.modules() if isinstance(part, nn.Embedding) for p in part.parameters()
        )
        each = 2 * (sum(p.numel() for p in encoder.parameters()) - tables) * tokens
        found[str(encoder.dtype).removeprefix("torch.")] += each * prompts
    return found


def encoding(model: LatentModel) -> int:
    """Return the bytes of the text encoders and of what they make, while they encode a file of prompts."""
    with torch.no_grad(), accelerated(), Meter(chain(*map(held, model.text.modules))) as meter:
        cond = model.text.encode(["a prompt"] * CHUNK)
    return sum(map(weights, model.text.modules)) + max(meter.trace) + SHARD // CHUNK * size(tensors(cond))


def gathered(network: nn.Module) -> int:
    """Return the bytes of two groups of layers that FSDP holds whole, one in use and one on its way, as the largest.

    By launch/fsdp.yaml a layer of diffusers' `_no_split_modules` is a group, without those within it; what is in none
    is the network's own.
    """
    group = {p: "" for p in network.parameters()}
    for name, layer in network.named_modules():  # outer layers first
        if type(layer).__name__ in network._no_split_modules:
            group |= dict.fromkeys(layer.parameters(), name)
    sizes = Counter()
    for p, name in group.items():
        sizes[name] += p.numel()
    return 2 * 4 * max(sizes.values())


def moments(p: nn.Parameter, optimizer: str) -> int:
    """Return the bytes of AdamW's two; bitsandbytes keeps small weights' in float32, and a scale for 256 of others."""
    return 8 * p.numel() if optimizer == "adamw" or p.numel() < 4096 else 2 * p.numel() + 8 * -(-p.numel() // 256)
