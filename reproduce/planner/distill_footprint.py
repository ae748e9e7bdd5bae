"""What a run of train_distill.py takes of a device, counted on the meta device as footprint.py does it for the others.

The loop's own losses are traced, `assistant_minibatch_loss` and `student_minibatch_loss`, so that what is kept for
the backward of three networks, of the decoder and of the reward is what the loop keeps. The phases are an update of the
assistant, one of the student, and their optimizers' steps.
"""

from functools import cache, partial

import torch
from torch import nn

from fsalign_lib.models.conditioning import Cond
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.models.student_teacher import Trio, build_trio
from reproduce import train_distill
from reproduce.planner.counting import Trace, size, trace, trace_backward
from reproduce.planner.footprint import AUTOCAST, Flops, moments, scaled, tensors, weights
from reproduce.train_distill import DistillConfig
from reproduce.training.config import KEPT_PROMPTS

START = ("renoise", (399,))  # of a generator whose start is not at hand; its time does not matter for what it takes


class DistillNetworks:
    """Student, assistant and teacher of a run on the meta device, and what a call of each loss takes.

    Args:
        student, teacher: on the meta device; the same object where the student starts from the teacher's weights.
        reward: likewise; None: none, or one that takes no memory worth counting.
    """

    def __init__(self, student: LatentModel, teacher: LatentModel, reward: nn.Module | None, config: DistillConfig):
        self.config, self.reward, self.autocast = config, reward, AUTOCAST[config.mixed_precision]
        # On the meta device networks of one shape have one fingerprint, whatever their weights: names tell them apart.
        student.fingerprint = student.name
        teacher.fingerprint = teacher.name
        with torch.device("meta"):
            self.trio: Trio = build_trio(student, teacher, config.training, config.rank, config.alpha, config.seed)
        self.model = self.trio.student
        if self.model.timesteps is None:
            self.model.kernel, self.model.timesteps = START
        self.kernel = self.model.sampler(1)
        self.trained = list(self.model.trained_parameters().values())
        self.followed = list(self.trio.assistant.trained_parameters().values())
        adapters = size((*self.trained, *self.followed)) if config.training == "lora" else 0
        self.bytes = {"networks": sum(map(weights, self.trio.networks())) - adapters}
        self.bytes |= {"VAE": weights(self.model.vae), "text encoders": sum(map(weights, self.model.text.modules))}
        if reward is not None:
            self.bytes["reward"] = weights(reward)
        if adapters:
            self.bytes["adapters"] = adapters
        self.cond: Cond = self.model.encode_prompts(["a prompt"])
        self.null: Cond = self.trio.teacher.null(1)  # encoded here, so that no trace holds it
        for model in (self.model, self.trio.teacher):
            model.schedule.nearest_t(1.0)  # levels that a schedule computes once, likewise
        parts = (*self.trio.networks(), self.model.vae, *self.model.text.modules, reward)
        modules = [part for part in parts if isinstance(part, nn.Module)]
        self.known = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self.known += [*tensors(self.cond), *tensors(self.null)]
        self.forward = cache(self._forward)
        self.student_update = cache(partial(self._update, train_distill.STUDENT))
        self.assistant_update = cache(partial(self._update, train_distill.ASSISTANT))

    def _setup(self) -> train_distill.Setup:
        """As `train_distill.prepare` makes it, but for what has values."""
        return train_distill.Setup(self.config, self.trio, self.reward, [], self.cond, self.kernel, None, None)

    def _generate(self, rows: int) -> train_distill.Samples:
        names = [f"{rows} rows, prompt {i}" for i in range(rows)]  # which the reward has not encoded before
        z, eps = (torch.empty(rows, *self.model.latent_shape, device="meta") for _ in range(2))
        sigma = torch.empty(rows, dtype=torch.float64, device="meta")
        return train_distill.generate(self._setup(), names, self.cond.repeat_interleave(rows, 0), z, eps, sigma)

    def _forward(self) -> Trace:
        """The student alone, without gradient: a picture's latent."""
        with torch.no_grad():
            return trace(lambda rows: self._generate(rows).x0, self.known, self.autocast, self.trio.networks())

    def _update(self, which: int, checkpointing: bool) -> tuple[Trace, Trace]:
        """Forward and backward, in a batch's first micro-batch and in a later one, the other network frozen."""
        for network in (*self.trio.networks(), self.model.vae):
            network.disable_gradient_checkpointing()
        if checkpointing:
            for model in (self.trio.student, self.trio.assistant, self.trio.teacher):
                model.checkpoint_gradients()

        def assistant_loss(rows: int):
            with torch.no_grad():
                some = self._generate(rows)
            return train_distill.assistant_minibatch_loss(self._setup(), some)[0]

        def student_loss(rows: int):
            return train_distill.student_minibatch_loss(self._setup(), self._generate(rows), 0)[0]

        learns, waits = (self.trained, self.followed), (self.followed, self.trained)
        for p in waits[which]:
            p.requires_grad_(False)
        try:
            loss = (student_loss, assistant_loss)[which]
            return trace_backward(loss, learns[which], self.known, self.autocast, self.trio.networks())
        finally:
            for p in waits[which]:
                p.requires_grad_(True)


class DistillFootprint:
    """A distillation on one of `processes` devices; used as `footprint.Footprint` is.

    Args:
        prompts: whose embeddings stay on the device, twice: the model's own of each, and the batch of all.
        cuda: AdamW works on all weights at once there, and on one after the other on a CPU.
    """

    online = False
    rows = 1  # of the student, a sample

    def __init__(
        self,
        config: DistillConfig,
        networks: DistillNetworks,
        prompts: int = 4000,
        processes: int = 1,
        cuda: bool = True,
    ):
        self.config, self.networks, self.cuda = config, networks, cuda
        self.learners = {"student": networks.trained, "assistant": networks.followed}
        self.fixed = dict(networks.bytes)
        both = [p for learner in self.learners.values() for p in learner]
        self.fixed["optimizers"] = moments(both, config.optimizer)
        self.fixed["average"] = size(networks.trained)
        if processes > 1:
            self.fixed["gradient buckets"] = size(both)
        if prompts <= KEPT_PROMPTS:
            self.fixed["prompts"] = prompts * 2 * size(tensors(networks.cond))

    @property
    def batch(self) -> int:
        return self.config.batch

    @property
    def rounds(self) -> int:
        return self.config.updates

    def peaks(self, micro: int, rollout: int = 1, checkpointing: bool = False, share: int | None = None):
        """Phase -> peak bytes, the fixed ones with them.

        Args:
            micro: samples in a forward and backward. share: of the batch, what falls to this process.
        """
        updates = {"student": self.networks.student_update, "assistant": self.networks.assistant_update}
        phases = {}
        for name, parameters in self.learners.items():
            first, later = updates[name](checkpointing)
            phases[f"{name} update"] = (later if micro < (share or micro) else first).peak(micro)
            phases[f"{name} step"] = size(parameters) + self._step(parameters)
        fixed = sum(self.fixed.values())
        return {phase: fixed + more for phase, more in phases.items()}

    def _step(self, parameters: list[nn.Parameter]) -> int:
        """As `footprint.Footprint._step`."""
        if self.config.optimizer == "adamw8bit":
            return 0
        return size(parameters) if self.cuda else 2 * max(p.numel() * p.element_size() for p in parameters)

    def flops(self, checkpointing: bool = False) -> dict[str, Flops]:
        """Phase -> FLOPs of an update of the student, with the assistant's that go with it, on all processes."""
        c, nets = self.config, self.networks
        followed = c.assistant_updates + c.warmup / c.updates
        return {
            "student update": scaled(nets.student_update(checkpointing)[0].flops_per_row, c.batch),
            "assistant updates": scaled(nets.assistant_update(checkpointing)[0].flops_per_row, c.batch * followed),
        }


def with_null(config: DistillConfig) -> bool:
    """Whether the teacher is asked for both halves of guidance."""
    return config.guidance != (1 if config.guidance_by == "reference" else 0)


def key(config: DistillConfig) -> tuple:
    """What the traces of a run depend on; those that are alike share them."""
    networks = (config.model, config.teacher, config.training, config.rank, config.alpha, config.dtype)
    losses = (config.method, config.guidance_by, with_null(config), config.reward if config.reward_scale else None)
    return (*networks, config.mixed_precision, *losses, config.distance, config.weighting, config.start is None)
