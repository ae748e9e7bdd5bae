"""What a training run takes of a device: bytes in each phase, FLOPs in each round, counted on the meta device.

The phases are those of the loops. `train_online`: sample a round's pairs (rollout, decode and reward), the reference's
log-probs, before the first update a look at the ratio, the update by micro-batches, the optimizer's step.
`train_offline`: encode the pairs' pictures, the update with the reference's forward inside it, the optimizer's step.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from fsalign_lib.kernels import Kernel
from fsalign_lib.models.conditioning import Cond
from fsalign_lib.models.latent_model import LatentModel
from reproduce.data.latents import BATCHES
from reproduce.planner.counting import Trace, size, trace, trace_backward
from reproduce.train_offline import OfflineConfig
from reproduce.train_online import STEPS_AT_ONCE, OnlineConfig
from reproduce.training.config import KEPT_PROMPTS, TrainConfig
from reproduce.training.methods import METHODS, sums_steps
from reproduce.training.run import training_kernel

AUTOCAST = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
Flops = dict[str, float]  # dtype -> FLOPs


class Networks:
    """The networks of a run, and what a call of each takes; several runs may share them.

    Args:
        model: on the meta device, in the precision of the run; it is made trainable here.
        reward: what scores pictures, on the meta device; None: none, or one that takes no memory worth counting.
    """

    def __init__(self, model: LatentModel, reward: Callable | None, config: TrainConfig):
        self.model, self.reward = model, reward
        self.autocast = AUTOCAST[config.mixed_precision]
        self.bytes = {"UNet": weights(model.unet), "VAE": weights(model.vae)}
        self.bytes["text encoders"] = sum(map(weights, model.text.modules))
        if isinstance(reward, nn.Module):
            self.bytes["reward"] = weights(reward)
        if config.training == "lora":
            with torch.device("meta"):
                model.add_lora(config.rank, config.alpha)
        else:
            model.train_all_weights()
            self.bytes["reference copy"] = self.bytes["UNet"]
        if isinstance(config, OfflineConfig) and not model.embeds_guidance:
            model.guidance_scale = 1.0  # as train_offline has it
        if model.guidance_scale != 1 and not model.embeds_guidance:
            model.null(1)  # encoded once in a run, so in no trace
        self.trained = list(model.trained_parameters().values())
        if config.training == "lora":
            self.bytes["adapters"] = size(self.trained)
        self.cond: Cond = model.encode_prompts(["a prompt"])
        parts = (model.unet, model.vae, *model.text.modules, model.frozen_copy, reward)
        modules = [part for part in parts if isinstance(part, nn.Module)]
        self.known = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self.known += tensors(self.cond)
        # A trace takes a second or more, so each is made when it is asked for, and once.
        self.forward, self.update = cache(self._forward), cache(self._update)
        self.decode, self.encode, self.score = cache(self._decode), cache(self._encode), cache(self._score)

    def _predict(self, rows: int) -> Tensor:
        x = torch.empty(rows, *self.model.latent_shape, device="meta")
        t = torch.empty(rows, dtype=torch.long, device="meta")
        return self.model.predict_eps(x, t, self.cond.repeat_interleave(rows, 0))

    def _forward(self) -> Trace:
        """Without gradient; the reference is taken to be the policy's equal, though it lacks the adapters' products."""
        with torch.no_grad():
            return trace(self._predict, self.known, self.autocast)

    def _update(self, checkpointing: bool) -> tuple[Trace, Trace]:
        """Forward and backward, in a minibatch's first micro-batch and in a later one."""
        unet = self.model.unet
        unet.enable_gradient_checkpointing() if checkpointing else unet.disable_gradient_checkpointing()
        return trace_backward(lambda rows: self._predict(rows).square().mean(), self.trained, self.known, self.autocast)

    def _decode(self) -> Trace:
        def call(rows: int) -> Tensor:
            return self.model.decode(torch.empty(rows, *self.model.latent_shape, device="meta"))

        with torch.no_grad():
            return trace(call, self.known)

    def _pictures(self, rows: int) -> Tensor:
        return torch.empty(rows, 3, self.model.image_size, self.model.image_size, device="meta")

    def _encode(self) -> Trace:
        return trace(lambda rows: self.model.encode(self._pictures(rows)), self.known)

    def _score(self) -> Trace:
        def call(rows: int) -> Tensor:
            prompts = [f"{rows} rows, prompt {i // 2}" for i in range(rows)]  # the two of a pair share theirs
            return self.reward(self._pictures(rows), prompts)

        with torch.no_grad():
            return trace(call, self.known)


class Footprint:
    """A configuration on one of `processes` devices.

    Args:
        prompts: whose embeddings stay on the device; offline, pairs, whose prompts do.
        cuda: AdamW works on all weights at once there, and on one after the other on a CPU.

    Attributes:
        fixed: part -> bytes that are there all the time. kernel: the sampler.
    """

    def __init__(
        self, config: TrainConfig, networks: Networks, prompts: int = 4000, processes: int = 1, cuda: bool = True
    ):
        self.config, self.networks, self.cuda = config, networks, cuda
        self.needs = METHODS[config.method].needs
        self.kernel: Kernel = training_kernel(config, networks.model)
        self.gradients = size(networks.trained)
        self.latent = 4 * torch.Size(networks.model.latent_shape).numel()
        self.fixed = {part: n for part, n in networks.bytes.items() if part != "reward" or self.online}
        self.fixed["optimizer"] = moments(networks.trained, config.optimizer)
        if processes > 1:
            self.fixed["gradient buckets"] = self.gradients
        embedding = size(tensors(networks.cond))
        if self.online or prompts <= KEPT_PROMPTS:
            self.fixed["prompts"] = prompts * 2 * embedding  # the cache of them, and the batch of all
        if self.online:
            states = 2 * (config.steps + 1) * self.latent
            self.fixed["a round's pairs"] = config.pairs * (states + embedding)

    @property
    def online(self) -> bool:
        return isinstance(self.config, OnlineConfig)

    @property
    def steps(self) -> int:
        """The sampler's steps that have a density, and so enter the loss."""
        return len(self.kernel.stochastic_steps)

    @property
    def _together(self) -> int:
        """Steps of a pair that enter one update."""
        return self.steps if self.config.updates == "accumulated" else 1

    @property
    def batch(self) -> int:
        """What an update has, on all processes, and `micro_batch` counts: pairs, or online steps of pairs."""
        if not self.online:
            return self.config.batch
        return self.config.minibatch * (1 if sums_steps(self.config) else self._together)

    @property
    def rows(self) -> int:
        """Network rows for each of these."""
        if self.online:
            return 2 * (self._together if sums_steps(self.config) else 1)
        sampled = self.steps if "own samples" in self.needs else 0
        return self._times * (self._pictures + (self.config.prior is not None)) + sampled

    @property
    def _pictures(self) -> int:
        """Of a pair, offline, that the reference looks at too."""
        return 2 if "losers" in self.needs else 1

    @property
    def _times(self) -> int:
        """That a picture is noised to."""
        return self.steps if self.config.times == "grid" else 1

    @property
    def queries(self) -> int:
        """Pictures of a pair that are scored; a first prediction that its two trajectories share is scored once."""
        c = self.config
        each = {"final": 1, "copy": 1, "similarity": 2, "interpolation": 2, "all": c.steps}.get(c.queries, 3)
        each = min(each, c.steps)
        return 2 * each - (c.shared_start and each > 1)

    def peaks(self, micro: int, rollout: int = 1, checkpointing: bool = False, share: int | None = None):
        """Phase -> peak bytes, the fixed ones with them.

        Args:
            micro: of `batch`, what is in a forward and backward. rollout: pairs sampled at a time.
            share: of `batch`, what falls to this process; None: one micro-batch.
        """
        nets, rows = self.networks, micro * self.rows
        first, later = nets.update(checkpointing)
        update = later if micro < (share or micro) else first
        phases = {"update": update.peak(rows), "optimizer step": self.gradients + self._step()}
        if self.with_reference and not self.online:  # while the policy waits for its backward
            phases["reference"] = update.kept(rows) + nets.forward().peak(rows)
        if self.online:
            phases |= self._sampling(2 * rollout)
        fixed = sum(self.fixed.values())
        peaks = {name: fixed + more for name, more in phases.items()}
        if not self.online:  # before there is an optimizer; the latents go to the CPU
            started = self.fixed["optimizer"] + self.fixed.get("prompts", 0)
            pictures = next(number for limit, number in BATCHES if nets.model.image_size <= limit)
            encode = nets.encode().peak(1 if self.config.vae_slicing else pictures)
            peaks["encode"] = fixed - started + encode + 2 * pictures * self._picture()
        return peaks

    def _sampling(self, samples: int) -> dict[str, int]:
        """Phases without gradient of a round, that many samples at a time."""
        nets, c, scored = self.networks, self.config, samples * self.queries // 2
        pictures = scored * self._picture()
        trajectory = samples * (3 * c.steps + 2) * self.latent  # states, predictions and noise
        sliced = nets.decode().peak(1) + 3 * pictures
        phases = {
            "rollout": trajectory + nets.forward().peak(samples),
            "decode": trajectory + (sliced if c.vae_slicing else nets.decode().peak(scored)),
            "ranking": 2 * self.fixed["a round's pairs"],
        }
        if self.with_reference:
            phases["reference"] = self._log_probs(samples)
        if c.clip or c.clamp:
            phases["ratio check"] = self._log_probs(2 * min(2, c.pairs))
        if nets.reward:
            phases["reward"] = trajectory + pictures + nets.score().peak(scored)
        return phases

    def _log_probs(self, samples: int) -> int:
        """Without gradient, some steps at a time."""
        rows = samples * min(self.steps, STEPS_AT_ONCE)
        return 3 * rows * self.latent + self.networks.forward().peak(rows)

    def _picture(self) -> int:
        return 3 * 4 * self.networks.model.image_size**2

    def flops(self, checkpointing: bool = False) -> dict[str, Flops]:
        """Phase -> FLOPs of a round (offline: of an update), on all processes together."""
        c, nets = self.config, self.networks
        update, forward = nets.update(checkpointing)[0].flops_per_row, nets.forward().flops_per_row
        if not self.online:
            phases, compared = {"update": scaled(update, self.rows * c.batch)}, self._times * self._pictures
            if "own samples" in self.needs:
                phases["rollout"] = scaled(forward, c.steps * c.batch)
                compared += self.steps
            return phases | ({"reference": scaled(forward, compared * c.batch)} if self.with_reference else {})
        pictures = c.pairs * self.queries
        phases = {
            "rollout": scaled(forward, c.pairs * (2 * c.steps - c.shared_start)),
            "decode": scaled(nets.decode().flops_per_row, pictures),
            "update": scaled(update, 2 * self.steps * c.pairs * c.epochs),
        }
        if self.with_reference:
            phases["reference"] = scaled(forward, 2 * self.steps * c.pairs)
        if nets.reward:
            phases["reward"] = scaled(nets.score().flops_per_row, pictures)
        return phases

    def _step(self) -> int:
        """What the optimizer's step holds beside gradients and moments: on a GPU a root of each second moment."""
        if self.config.optimizer == "adamw8bit":
            return 0
        return self.gradients if self.cuda else 2 * max(p.numel() * p.element_size() for p in self.networks.trained)

    @property
    def with_reference(self) -> bool:
        """Whether the reference is called: offline in each update, online once a round."""
        return "reference" in self.needs

    @property
    def rounds(self) -> int:
        """How often the FLOPs are spent."""
        return self.config.rounds if self.online else self.config.updates


def weights(network: nn.Module) -> int:
    return size((*network.parameters(), *network.buffers()))


def tensors(cond: Cond) -> list[Tensor]:
    return [cond] if isinstance(cond, Tensor) else [cond.text, *cond.extra.values()]


def moments(parameters: list[nn.Parameter], optimizer: str) -> int:
    """Bytes of AdamW's two moments. bitsandbytes keeps small weights' in float32, and for each block of 256 a scale."""
    if optimizer == "adamw":
        return sum(8 * p.numel() for p in parameters)
    return sum(8 * p.numel() if p.numel() < 4096 else 2 * p.numel() + 8 * -(-p.numel() // 256) for p in parameters)


def scaled(flops: Flops, times: float) -> Flops:
    return {dtype: value * times for dtype, value in flops.items()}
