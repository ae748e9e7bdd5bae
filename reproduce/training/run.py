"""A training run: settings from the registry, optimizers, checkpoints that resume to the bit, a tracker."""

import argparse
import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import tyro
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fsalign_lib.kernels import Kernel, Reduction, require_stochastic
from fsalign_lib.losses.common import Steps
from fsalign_lib.models.latent_model import LatentModel, Training
from fsalign_lib.models.load import load
from reproduce.common.cli import positive
from reproduce.common.files import last_checkpoint, plain, writable_folder, write_json
from reproduce.common.provenance import Clock, provenance
from reproduce.recipes import make_config
from reproduce.training import checkpoints

Losses = tuple[Tensor, dict[str, Tensor]]  # a loss, and diagnostics to record


class Kept(Protocol):
    """Tensors that a run needs to go on, beside its weights and optimizers; the same on all processes."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Trained(Protocol):
    """The model that learns, or an average over its updates."""

    def trained_tensors(self) -> dict[str, Tensor]: ...


@dataclass(kw_only=True)
class TrainConfig:
    """Settings that the training loops share. Defaults come from the recipe of the method (see recipes.py)."""

    method: str
    """Which objective."""
    scale: str
    """Whose recipe: pocket or full."""
    model: str
    """A preset of fsalign_lib.presets, or a pipeline folder."""
    out: Path
    """Folder of the run: configuration, checkpoints, result."""
    seed: int
    training: Training
    """LoRA, or all weights."""
    rank: int
    """LoRA rank."""
    alpha: int | None
    """LoRA scale is alpha / rank; None: alpha = rank."""
    lr: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's moments."""
    grad_clip: float
    """Largest gradient norm."""
    beta: float = 1.0
    """PSO, DPO: weight of the preference against the reference model."""
    reduction: Reduction
    """Mean or sum over latent dimensions."""
    sum_steps: Steps = "outside"
    """PSO, REBEL: sum over steps inside the sigmoid or square, or one for each step."""
    kernel: str | None
    """Sampler; None: the model's own."""
    steps: int
    """Sampling steps."""
    micro_batch: int | None = None
    """Rows of a minibatch in one forward and backward, on each process; None: all. Less memory, the same update. A row
    is a pair, or online one step of a pair, unless the loss sums over the steps of a pair."""
    save_every: int = 50
    """Updates or rounds between checkpoints."""
    snapshot_every: int | None = None
    """Updates or rounds between copies of the trained weights that are kept, in snapshots/; None: none."""
    resume: bool = False
    """Go on from the last checkpoint in `out`, if there is one."""
    tracker: str | None = None
    """A tracker of accelerate, such as tensorboard (written into `out`)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen networks. What is trained is float32 in any case, and so are log-probs."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision that the network computes in; its trained weights stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward: less memory, about a third more time."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit: moments in 8 bits, by bitsandbytes, on a GPU."""
    vae_slicing: bool = False
    """Decode and encode a picture at a time: less memory."""
    threads: int | None = None
    """CPU threads of torch."""


def parse_training(config_type: type, default_method: str, description: str | None):
    """A parser whose defaults are those of the recipe that --method and --scale name."""

    def parse(argv: Sequence[str] | None = None):
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--method", default=default_method)
        first.add_argument("--scale", default="pocket")
        named, _ = first.parse_known_args(argv)
        return tyro.cli(
            config_type,
            default=make_config(config_type, named.method, named.scale),
            description=description,
            args=argv,
        )

    return parse


def training_kernel(config: TrainConfig, model: LatentModel) -> Kernel:
    kernel = model.sampler(config.steps, config.kernel)
    require_stochastic(kernel)
    return kernel


def divides(config: TrainConfig, *names: str) -> None:
    """Batches must divide among the processes of the launcher.

    Raises:
        ValueError: one does not.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for name in names:
        value = getattr(config, name)
        if value % world:
            raise ValueError(f"{name} = {value} does not divide among {world} processes: choose a multiple of {world}")


def check(config: TrainConfig) -> None:
    """What can be wrong with the settings that all methods share, before a model is loaded.

    Raises:
        ValueError: a number that must be positive, precisions that do not train, an optimizer that cannot be had.
    """
    positive(config, "lr", "beta", "grad_clip", "save_every", "rank")
    if not all(0 <= decay < 1 for decay in config.betas):
        raise ValueError(f"betas = {config.betas}: expected two numbers from 0 to less than 1")
    if config.micro_batch is not None:
        positive(config, "micro_batch")
    if config.training == "full" and config.dtype != "float32":
        raise ValueError(
            f"training full with dtype {config.dtype}: steps of lr {config.lr:g} are lost in half precision; "
            "use --dtype float32 --mixed-precision bf16, or --training lora"
        )
    if config.dtype == "float16" and config.mixed_precision != "fp16":
        raise ValueError(
            f"dtype float16 with mixed_precision {config.mixed_precision}: small gradients vanish unless the loss is "
            "scaled; use --mixed-precision fp16, or --dtype bfloat16"
        )
    if config.optimizer == "adamw8bit":
        if not torch.cuda.is_available():
            raise ValueError("optimizer adamw8bit needs a GPU: use --optimizer adamw")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or use --optimizer adamw"
            )


def make_optimizer(
    config: TrainConfig, parameters: list[nn.Parameter], lr: float | None = None
) -> torch.optim.Optimizer:
    """AdamW as the settings have it, or at another learning rate."""
    kind = torch.optim.AdamW
    if config.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as kind
    return kind(parameters, lr=lr or config.lr, weight_decay=config.weight_decay, betas=tuple(config.betas))


def load_model(config: TrainConfig) -> LatentModel:
    """The model that the settings name, in their precision."""
    return load(config.model, getattr(torch, config.dtype))


def defaults(config_type: type) -> dict[str, Any]:
    """Settings with a default, as JSON. What an older run did not know of, it ran at the default."""
    known = {f.name: f.default for f in fields(config_type) if f.default is not MISSING}
    return json.loads(json.dumps(known, default=str))


@dataclass
class Learner:
    """A network that a run trains."""

    model: LatentModel
    network: nn.Module  # as the launcher wants it
    optimizer: Any
    parameters: list[nn.Parameter]


class Run:
    """A training run on disk: the optimizer and its updates, checkpoints to the bit, the tracker, the result.

    Attributes: start, the first step to do; history, one record for each step done.

    Args:
        second: another model that is trained, in turn with the first, and saved beside it; second_lr is its own.
    """

    # A longer run may go on from a shorter one, on any number of threads and however its memory is spared.
    FREE = (
        *("rounds", "updates", "resume", "save_every", "threads", "tracker", "out"),
        *("micro_batch", "gradient_checkpointing", "vae_slicing", "rollout_batch", "snapshot_every"),
    )

    def __init__(
        self,
        config: TrainConfig,
        model: LatentModel,
        second: LatentModel | None = None,
        second_lr: float | None = None,
    ):
        self.config, self.model, self.clock = config, model, Clock()
        self.start, self.history = 0, []
        checkpoint = self.checkpoint = last_checkpoint(config.out)
        self.kept: Kept | None = None
        self.trained: Trained = model  # whose weights checkpoints hold as the trained ones
        if checkpoint is not None and not config.resume:
            raise ValueError(f"{config.out} holds a run already: pass --resume to go on, or choose another --out")
        state = json.loads((checkpoint / "state.json").read_text()) if checkpoint else None
        if state:
            self._same_settings(state["config"])
        writable_folder(config.out)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision, log_with=config.tracker, project_dir=config.out
        )
        for each in (model, second) if second else (model,):
            self._set_up(each)
        if checkpoint:
            model.load_adapter(checkpoint)
            if second:
                second.set_trained(checkpoint / checkpoints.SECOND)
        self.learners = [self._learner(model, config.lr)] + ([self._learner(second, second_lr)] if second else [])
        for learner in self.learners:
            with self.alone(learner):
                learner.network, learner.optimizer = self._prepare(learner.model, learner.optimizer)
                # Under FSDP they are others than before.
                learner.parameters = list(learner.model.trained_parameters().values())
            learner.model.network = learner.network
        self.optimizer, self.parameters = self.learners[0].optimizer, self.learners[0].parameters
        if state:
            optimizers = [learner.optimizer for learner in self.learners]
            checkpoints.load_optimizers(checkpoint, self.accelerator, model, optimizers)
            self.start, self.history, self.clock = state["step"], state["history"], self.clock.after(state)
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        if config.tracker:
            simple = {k: v for k, v in plain(config).items() if isinstance(v, (int, float, str))}
            self.accelerator.init_trackers("run", simple)
        if self.accelerator.is_main_process:
            write_json(config.out / "config.json", plain(config))

    def _same_settings(self, before: dict[str, Any]) -> None:
        now, before = plain(self.config), defaults(type(self.config)) | before
        other = [k for k in now if k not in self.FREE and now[k] != before.get(k)]
        if other:
            told = ", ".join(f"{k} = {before.get(k)!r} (now {now[k]!r})" for k in other)
            raise ValueError(f"{self.config.out} was run with {told}: use the same settings, or another --out")

    def keep(self, kept: Kept) -> None:
        """Save it with each checkpoint; a run that goes on gets its state back now."""
        self.kept = kept
        if self.checkpoint is not None:
            kept.load_state_dict(load_file(self.checkpoint / "kept.safetensors"))

    def _set_up(self, model: LatentModel) -> None:
        """Make the model trainable, unless it is, on the device."""
        config = self.config
        model.to(self.accelerator.device)
        if model.training is None and config.training == "lora":
            model.add_lora(config.rank, config.alpha, seed=config.seed)
        elif model.training is None:
            model.train_all_weights()
        if config.gradient_checkpointing:
            model.checkpoint_gradients()
        if config.vae_slicing:
            model.vae.enable_slicing()

    def _learner(self, model: LatentModel, lr: float | None) -> Learner:
        parameters = list(model.trained_parameters().values())
        return Learner(model, model.unet, make_optimizer(self.config, parameters, lr), parameters)

    @contextlib.contextmanager
    def alone(self, learner: Learner) -> Iterator[None]:
        """While one network learns the other is frozen, through the backward, and called bare: its wrapper for several
        processes would wait for its gradients."""
        others = [other for other in self.learners if other is not learner]
        for other in others:
            other.model.network = other.model.unet
            for p in other.parameters:
                p.requires_grad_(False)
        try:
            yield
        finally:
            for other in others:
                other.model.network = other.network
                for p in other.parameters:
                    p.requires_grad_(True)

    def _prepare(self, model: LatentModel, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The network and the optimizer as the launcher wants them: one process, DDP, FSDP 2 or DeepSpeed."""
        accelerator = self.accelerator
        if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
            raise ValueError("fsdp_version 1 cannot clip the gradient of adapters: use fsdp_version: 2")
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # The batch belongs to the loop, so DeepSpeed is told nothing of it; it clips by itself.
            of_engine = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": self.config.grad_clip}
            accelerator.state.deepspeed_plugin.deepspeed_config.update(of_engine)
        if model.frozen_copy is not None:  # the reference, in the precision that the policy computes in
            model.frozen_copy = accelerator.prepare_model(model.frozen_copy, evaluation_mode=True)
        return accelerator.prepare(model.unet, optimizer)

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch: all of it when there is one process."""
        world = self.accelerator.num_processes
        if len(rows) % world:
            raise ValueError(f"a batch of {len(rows)} does not divide among {world} processes: choose a multiple")
        return rows[self.accelerator.process_index :: world]

    def gather(self, values: Tensor) -> Tensor:
        """The whole batch (B, ...) of which each process computed its `share`, in the batch's order."""
        world = self.accelerator.num_processes
        return self.accelerator.gather(values).unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)

    def update(
        self, rows: Tensor, loss: Callable[[Tensor], Losses], prompts: Sequence[str], step: int, which: int = 0
    ) -> dict[str, Tensor]:
        """One optimizer step on a minibatch, forward and backward in micro-batches of `config.micro_batch` rows.

        Args:
            rows: what the whole minibatch holds (B,), the same on every process; each takes its share.
            loss: rows -> (loss, diagnostics), both means over the rows. It is called once a micro-batch; the means are
                weighted by the micro-batch's size, so loss and gradient are the whole minibatch's.
            prompts: of all rows that there are, to name the minibatch in an error.
            which: of two models that are trained, the first (0) or the second (1) learns.

        Returns:
            {"loss", "gradient": the gradient's norm before clipping, **diagnostics}, detached.

        Raises:
            FloatingPointError: the loss or the gradient is not finite. The weights are then as they were.
        """
        named = ", ".join(repr(prompts[row]) for row in rows[:3].tolist())
        where = f"(seed {self.config.seed}, step {step}, prompts {named}, ...): lower lr"
        learner = self.learners[which]
        with self.alone(learner):
            record = self._backward(learner, rows, loss, where)
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(learner.parameters, self.config.grad_clip))
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        scaler = self.accelerator.scaler  # of fp16: it leaves out steps of too large a scale, and lowers that
        if not torch.isfinite(norm) and (scaler is None or scaler.get_scale() < 1):
            raise FloatingPointError(f"the gradient's norm is {norm.item()} {where}")
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        return record | {"gradient": norm.detach()}

    def _backward(
        self, learner: Learner, rows: Tensor, loss: Callable[[Tensor], Losses], where: str
    ) -> dict[str, Tensor]:
        """The gradient of a minibatch, added up over its micro-batches; returns the means of loss and diagnostics."""
        mine, record = self.share(rows), {}
        parts = mine.split(self.config.micro_batch or len(mine))
        for part in parts:
            last = part is parts[-1]
            self.accelerator.sync_gradients = last
            with contextlib.nullcontext() if last else self.accelerator.no_sync(learner.network):
                value, diagnostics = loss(part)
                if not torch.isfinite(value):
                    raise FloatingPointError(f"the loss is {value.item()} {where}")
                weight = len(part) / len(mine)
                self.accelerator.backward(value * weight)
            for name, mean in ({"loss": value.detach(), "gradient": 0.0} | diagnostics).items():
                record[name] = record.get(name, 0) + weight * mean
        return record

    def record(self, step: int, total: int, values: dict[str, Tensor]) -> dict[str, float]:
        """Log the step's means over processes, and save when it is time."""
        means = self.accelerator.reduce(torch.stack([v.float() for v in values.values()]), "mean").tolist()
        row = dict(zip(values, means, strict=True))
        self.history.append(row)
        if self.config.tracker:
            self.accelerator.log(row, step=step)
        if self.config.snapshot_every and (step + 1) % self.config.snapshot_every == 0:
            checkpoints.snapshot(
                self.config.out, step + 1, self.accelerator, self.model, self.trained.trained_tensors()
            )
        if (step + 1) % self.config.save_every == 0 or step + 1 == total:
            self.save(step + 1)  # after the snapshot: a run that goes on from here does not make that one again
        return row

    def save(self, step: int) -> None:
        state = {"step": step, "config": plain(self.config), "history": self.history, **self.clock.spent()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        kept = self.kept.state_dict() if self.kept is not None else {}
        second = self.learners[1].model.trained_tensors() if len(self.learners) > 1 else None
        optimizers = [learner.optimizer for learner in self.learners]
        weights = checkpoints.Weights(self.model, self.trained.trained_tensors(), second)
        checkpoints.save(self.config.out, step, self.accelerator, weights, optimizers, state, kept)

    def finish(self) -> None:
        if self.accelerator.is_main_process:
            about = {"config": plain(self.config), **provenance(self.clock), "history": self.history}
            write_json(self.config.out / "result.json", about)
        self.accelerator.end_training()
