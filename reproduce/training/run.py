"""Run a training: its optimizers, micro-batches, checkpoints that resume to the bit, the tracker, the result.

A loop asks the run for the micro-batches of an update, and gives it the loss of each:

    for rows in run.micro_batches(prompts, number):
        loss, diagnostics = ...  # of these rows of the minibatch
        run.backward(loss, diagnostics, rows)
    record = run.step()

What the launcher set up (one process, DDP, FSDP 2, DeepSpeed) and the precision are settled here and nowhere else.
"""

import contextlib
import functools
import importlib.util
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from fsalign_lib.json_files import NUMBER, read_json
from fsalign_lib.kernels import Kernel, require_stochastic
from fsalign_lib.models.latent_model import LatentModel, fingerprint
from fsalign_lib.models.load import load
from fsalign_lib.models.tensor_files import read_tensors
from reproduce.common.cli import generator, positive, processes
from reproduce.common.files import claim, last_checkpoint, plain, release, writable_folder, write_json
from reproduce.common.provenance import Clock, provenance
from reproduce.training import checkpoints, sharding
from reproduce.training.checkpoints import AGAIN, Kept, Trained
from reproduce.training.config import TrainConfig
from reproduce.training.methods import METHODS

# What accelerate would take from the environment, and what it may say: the mathematics is the settings' alone.
ENVIRONMENT = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "cut batches by --micro-batch, which leaves gradients as they are"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "networks are not compiled here"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "launch with DDP, FSDP 2 or DeepSpeed"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "launch with DDP, FSDP 2 or DeepSpeed"),
}
TAKEN = ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")

FIRST_CHECKPOINT = 60  # seconds of training

# The settings of each loop that say how many rows the processes share.
BATCHES = {"online": ("pairs", "minibatch"), "offline": ("batch",), "distill": ("batch",)}


def check_training(config: TrainConfig) -> None:
    """Refuse what is wrong with the settings that all methods share, before a model is loaded.

    Raises:
        ValueError: a number that must be positive, precisions that do not train, an optimizer that cannot be had, a
            variable of the environment that would change the training.
    """
    positive(config, "lr", "beta", "save_every", "rank")
    if not config.grad_clip > 0:  # it may be infinite
        raise ValueError(f"grad_clip = {config.grad_clip}: expected more than 0")
    if config.threads is not None:
        positive(config, "threads")
    check_environment(config.mixed_precision)
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


def check_environment(mixed_precision: str) -> None:
    """Refuse variables of accelerate that would change the training, behind the back of its settings.

    Raises:
        ValueError: one says something else than the settings.
    """
    for name, (expected, instead) in ENVIRONMENT.items():
        if os.environ.get(name, expected).lower() != expected:
            raise ValueError(f"{name} = {os.environ[name]} in the environment: unset it; {instead}")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # a launcher always says one, and "no" if not asked
    if asked not in ("no", mixed_precision):
        raise ValueError(
            f"ACCELERATE_MIXED_PRECISION = {asked} in the environment, and mixed_precision = {mixed_precision}: "
            "precision is a setting of the script; leave it out of the launch"
        )


def check_divides(config: TrainConfig) -> None:
    """Refuse batches that do not divide among the processes of the launcher.

    Raises:
        ValueError: a batch of the loop does not.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for name in BATCHES[config.loop]:
        value = getattr(config, name)
        if value % world:
            raise ValueError(f"{name} = {value} does not divide among {world} processes: choose a multiple of {world}")


def fsdp_asked() -> bool:
    """Tell whether the launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def load_model(config: TrainConfig, name: str | None = None) -> LatentModel:
    """Load the model that the settings name, or another, in their precision."""
    frozen = getattr(torch, config.frozen_dtype or config.dtype)
    return load(name or config.model, getattr(torch, config.dtype), frozen_dtype=frozen)


def kept(config: TrainConfig) -> tuple[str, str] | None:
    """Return what an interrupted run leaves, and the flag that goes on from there; None: it has no checkpoint."""
    checkpoint = last_checkpoint(config.out)
    return checkpoint and (f"{checkpoint} is kept, and what was trained after it is lost", "--resume")


def training_kernel(config: TrainConfig, model: LatentModel) -> Kernel:
    """Return the sampler that the settings name.

    Raises:
        ValueError: it has no stochastic step, so there is no likelihood to train.
    """
    kernel = model.sampler(config.steps, config.kernel)
    if "reward gradient" not in METHODS[config.method].needs:
        require_stochastic(kernel)
    return kernel


def make_optimizer(
    config: TrainConfig, parameters: list[nn.Parameter], device: torch.device, lr: float | None = None
) -> torch.optim.Optimizer:
    """Return AdamW as the settings have it, or at another learning rate.

    On a GPU its step is one kernel for all weights. On a CPU that would take a quarter of the time, of which the step
    is a few percent; but it rounds in another order, and seeds would no longer give the weights that they gave.

    Args:
        device: where the weights are when the optimizer takes its steps.
    """
    given = {"lr": lr or config.lr, "weight_decay": config.weight_decay, "betas": tuple(config.betas)}
    if config.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **given)
    return torch.optim.AdamW(parameters, fused=device.type == "cuda" or None, **given)


def epoch_rows(key: str, seed: int, number: int, total: int, size: int) -> Tensor:
    """Return which of `total` rows batch `number` holds: permutations of all rows, one after the other.

    Args:
        key: names the permutations: prompts and pairs of one seed are permuted apart.

    Returns:
        long, the same on every process.  # (size,)
    """
    first = number * size
    cycles = range(first // total, (first + size - 1) // total + 1)
    rows = torch.cat([torch.randperm(total, generator=generator(key, seed, cycle)) for cycle in cycles])
    return rows[first % total :][:size]


def defaults(config_type: type) -> dict[str, Any]:
    """Return the settings that have a default, as JSON: an older run that lacks one was run at its default."""
    known = {f.name: f.default for f in fields(config_type) if f.default is not MISSING}
    return json.loads(json.dumps(known, default=str))


@dataclass
class Learner:
    """Hold a network that a run trains, and its optimizer."""

    model: LatentModel
    network: nn.Module  # as the launcher wants it
    optimizer: Any
    parameters: list[nn.Parameter]


@dataclass
class Minibatch:
    """Collect an update, from its first micro-batch to the optimizer's step."""

    learner: Learner
    rows: int  # that this process computes
    where: str  # names it in errors
    means: dict[str, Any] = field(default_factory=dict)  # of loss and diagnostics over the rows done so far


class Run:
    """Train a model, or two in turn, and keep the training on disk.

    Attributes:
        start: the first round or update to do.
        history: a record for each round or update that is done.
        inputs: what the run is made of (see `same_inputs`).
        learners: the model, and the second if there is one.
        parameters, optimizer: the first learner's.
        trained: whose weights checkpoints hold as the trained ones: the model's, or an average's.

    Args:
        config: its folder `out` must be empty, or hold this very run and `resume` be set.
        model: made trainable, unless it is, moved to the device, and wrapped for the launcher.
        second: another model that is trained, in turn with the first, and saved beside it.
        second_lr: its learning rate.

    Raises:
        ValueError: the folder holds a run already, or one with other settings.
        BlockingIOError: another process is training in it.
        PermissionError: the folder cannot be written to.
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
        self.began = self.stepped = time.monotonic()
        writable_folder(config.out)
        claim(config.out)
        checkpoint = self.checkpoint = last_checkpoint(config.out)
        self.saved = checkpoint is not None
        self.inputs: dict[str, str] = {}
        self.kept: Kept | None = None
        self.trained: Trained = model
        self.minibatch: Minibatch | None = None
        if checkpoint is not None and not config.resume:
            raise ValueError(f"{config.out} holds a run already: pass --resume to go on, or choose another --out")
        needed = {"step": int, "config": dict, "history": list, "wall_seconds": NUMBER}
        state = read_json(checkpoint / "state.json", **needed) if checkpoint else None
        if state:
            self._same_settings(state["config"])
            self.inputs = state.get("inputs", {})
        processes()
        # Accelerate keeps the precision of a process's first training for all; here each run has its own.
        AcceleratorState._reset_state()
        make = functools.partial(sharding.make_accelerator, config) if fsdp_asked() else Accelerator
        self.accelerator = make(
            mixed_precision=config.mixed_precision,
            log_with=config.tracker,
            project_dir=config.out,
            # Buffers are constants. Sent in each forward, they would have the processes wait for each other there.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.sharded = self.accelerator.distributed_type == DistributedType.FSDP
        for each in (model, second) if second else (model,):
            self._set_up(each)
        if checkpoint:
            model.load_adapter(checkpoint)
            if second:
                second.set_trained(checkpoint / checkpoints.SECOND)
        self.same_inputs(
            autoencoder=model.vae_fingerprint[:12],
            text_encoders=", ".join(fingerprint(encoder)[:12] for encoder in model.text.modules),
        )
        self.learners = [self._learner(model, config.lr)] + ([self._learner(second, second_lr)] if second else [])
        for learner in self.learners:
            with self.alone(learner):
                learner.network, learner.optimizer = self._prepare(learner.model, learner.optimizer)
                # Under FSDP they are others than before.
                learner.parameters = list(learner.model.trained_parameters().values())
            learner.model.network = learner.network
            if self.sharded:  # the other parts follow; a network goes to the device by layers, while it is sharded
                learner.model.to(self.accelerator.device)
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
            if taken := [f"{name} = {os.environ[name]}" for name in TAKEN if name in os.environ]:
                print(f"From the environment: {', '.join(taken)}; device {self.accelerator.device}.")

    def _same_settings(self, before: dict[str, Any]) -> None:
        now, before = plain(self.config), defaults(type(self.config)) | before
        other = [k for k in now if k not in self.FREE and now[k] != before.get(k)]
        if other:
            told = ", ".join(f"{k} = {before.get(k)!r} (now {now[k]!r})" for k in other)
            raise ValueError(f"{self.config.out} was run with {told}: use the same settings, or another --out")

    def same_inputs(self, **now: str) -> None:
        """Note what the run is made of, and see that it goes on with the same.

        Args:
            now: what each input is, in words that differ where its content does.

        Raises:
            ValueError: an input is another than the one that the run was begun with.
        """
        other = [name for name, what in now.items() if self.inputs.get(name, what) != what]
        if other:
            told = ", ".join(f"{name.replace('_', ' ')}: {self.inputs[name]} (now {now[name]})" for name in other)
            raise ValueError(f"{self.config.out} was run with other {told}: bring them back, or choose another --out")
        self.inputs |= now

    def keep(self, kept: Kept) -> None:
        """Save its state with each checkpoint; where the run goes on from one, load it now."""
        self.kept = kept
        if self.checkpoint is not None:
            path = self.checkpoint / "kept.safetensors"
            try:
                kept.load_state_dict(read_tensors(path))
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(f"{path} does not fit this run ({error}): {AGAIN}") from error

    def _set_up(self, model: LatentModel) -> None:
        """Make the model trainable, unless it is, on the device."""
        config = self.config
        if not self.sharded:
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
        return Learner(
            model, model.unet, make_optimizer(self.config, parameters, self.accelerator.device, lr), parameters
        )

    @contextlib.contextmanager
    def alone(self, learner: Learner) -> Iterator[None]:
        """Freeze the other networks while one learns, until its backward is over.

        They are called without their wrappers for several processes, which would wait for their gradients.
        """
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
        """Return the network and the optimizer as the launcher wants them: one process, DDP, FSDP 2 or DeepSpeed."""
        accelerator = self.accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            # The batch belongs to the loop, so DeepSpeed is told nothing of it; it clips by itself.
            of_engine = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": self.config.grad_clip}
            accelerator.state.deepspeed_plugin.deepspeed_config.update(of_engine)
        if model.frozen_copy is not None:  # the reference, in the precision that the policy computes in
            model.frozen_copy = self.prepare_frozen(model.frozen_copy)
        if self.sharded:
            return sharding.shard(accelerator, model.unet, optimizer)
        with warnings.catch_warnings():  # newer versions of torch have another name for the same
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return accelerator.prepare(model.unet, optimizer)

    def prepare_frozen(self, network: nn.Module) -> nn.Module:
        """Return a network that is never trained as the launcher wants it, in the precision of those that are."""
        if self.sharded:
            return sharding.shard(self.accelerator, network)[0]
        return self.accelerator.prepare_model(network, evaluation_mode=True)

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's share of a batch (B, ...): its part of as many equal ones as there are processes.

        Raises:
            ValueError: the batch does not divide among the processes.
        """
        world = self.accelerator.num_processes
        if len(rows) % world:
            raise ValueError(f"a batch of {len(rows)} does not divide among {world} processes: choose a multiple")
        return rows.chunk(world)[self.accelerator.process_index]

    def gather(self, values: Tensor) -> Tensor:
        """Return the whole batch (B, ...) in its order, of which each process computed its `share`."""
        return self.accelerator.gather(values)

    def micro_batches(self, prompts: Sequence[str], number: int, which: int = 0) -> Iterator[Tensor]:
        """Yield the rows of a minibatch that this process computes, `config.micro_batch` at a time.

        Call `backward` on each, and `step` after the last. Between processes gradients travel with the last one.

        Processes, and the micro-batches of each, take consecutive rows. So two processes with a micro-batch each add up
        the same two gradients as one process with the same two micro-batches. A sum of two has one order, and halves
        are exact: the weights are then equal to the bit, where a network computes each micro-batch alike (CPUs of one
        kind). Of more micro-batches or processes the sum has another order, and weights differ by rounding; so they do
        where micro-batches are cut elsewhere.

        Args:
            prompts: of the minibatch's B rows, the same on every process; the first ones name it in errors.
            number: of the round or update, for errors.
            which: of the learners.

        Yields:
            places in the minibatch, long.  # (b,)
        """
        learner = self.learners[which]
        named = ", ".join(map(repr, prompts[:3]))
        mine = self.share(torch.arange(len(prompts)))
        where = f"(seed {self.config.seed}, step {number}, prompts {named}, ...): lower lr"
        self.minibatch = Minibatch(learner, len(mine), where)
        some = mine.split(self.config.micro_batch or len(mine))
        with self.alone(learner):
            for rows in some:
                last = rows is some[-1]
                self.accelerator.sync_gradients = last
                # Under FSDP gradients travel with each one: put off, they would be whole on every process.
                at_once = last or self.sharded
                with contextlib.nullcontext() if at_once else self.accelerator.no_sync(learner.network):
                    yield rows

    def backward(self, loss: Tensor, diagnostics: dict[str, Tensor], rows: Tensor) -> None:
        """Add a micro-batch's gradient to that of its minibatch.

        Args:
            loss, diagnostics: means over the rows. They are weighted by the number of rows, so that loss, diagnostics
                and gradient are those of the whole minibatch, however it is cut.

        Raises:
            FloatingPointError: the loss is not finite. The weights are as they were before the minibatch.
        """
        update = self.minibatch
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} {update.where}")
        weight = len(rows) / update.rows
        self.accelerator.backward(loss * weight)
        for name, mean in ({"loss": loss.detach(), "gradient": 0.0} | diagnostics).items():
            update.means[name] = update.means.get(name, 0) + weight * mean

    def step(self) -> dict[str, Tensor]:
        """Clip the gradient of the minibatch, and take the optimizer's step.

        Returns:
            {"loss", "gradient": the gradient's norm before clipping, **diagnostics}, detached scalars, the means over
            this process's rows.

        Raises:
            FloatingPointError: the gradient is not finite. The weights are as they were before the minibatch.
        """
        learner, where = self.minibatch.learner, self.minibatch.where
        if self.sharded:
            # accelerate would compare these weights with those of each network, to find out whose they are.
            self.accelerator.unscale_gradients()
            norm = nn.utils.clip_grad_norm_(learner.parameters, self.config.grad_clip).full_tensor()
        else:
            norm = torch.as_tensor(self.accelerator.clip_grad_norm_(learner.parameters, self.config.grad_clip))
        scaler = self.accelerator.scaler  # of fp16: it leaves out steps of too large a scale, and lowers that
        if not torch.isfinite(norm) and (scaler is None or scaler.get_scale() < 1):
            raise FloatingPointError(f"the gradient's norm is {norm.item()} {where}")
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        return self.minibatch.means | {"gradient": norm.detach()}

    def record(self, step: int, total: int, values: dict[str, Tensor]) -> dict[str, float]:
        """Log the means over processes of a round or update, and save when it is time.

        Args:
            step: its number, from 0. total: how many the run has.
            values: detached scalars, the same names on every process.

        Returns:
            the means; `history` gets them too.
        """
        # So that an interruption costs at most about a minute, the first checkpoint does not wait for `save_every`. All
        # processes must think so at once: they share the seconds at which the next step is likely to end.
        now = time.monotonic()
        until, self.stepped = now - self.began + now - self.stepped, now
        numbers = [v.float() for v in values.values()]
        numbers.append(torch.full_like(numbers[0], until))
        *means, until = self.accelerator.reduce(torch.stack(numbers), "mean").tolist()
        early = until > FIRST_CHECKPOINT and not self.saved
        row = dict(zip(values, means, strict=True))
        self.history.append(row)
        if self.config.tracker:
            self.accelerator.log(row, step=step)
        if self.config.snapshot_every and (step + 1) % self.config.snapshot_every == 0:
            checkpoints.snapshot(self.config.out, step + 1, self.accelerator, self._weights())
        if (step + 1) % self.config.save_every == 0 or step + 1 == total or early:
            self.save(step + 1)  # after the snapshot: a run that goes on from here does not make that one again
        return row

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` rounds or updates; every process must call it."""
        state = {"step": step, "config": plain(self.config), "history": self.history, **self.clock.spent()}
        state["inputs"] = self.inputs
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        optimizers = [learner.optimizer for learner in self.learners]
        checkpoints.save(self.config.out, step, self.accelerator, self._weights(), optimizers, state, self.kept)
        self.saved = True

    def _weights(self) -> checkpoints.Weights:
        return checkpoints.Weights(self.model, self.trained, *(learner.model for learner in self.learners[1:]))

    def finish(self) -> None:
        """Write result.json, which all processes may read then, and end the tracker.

        The process group stays: it is the command's, which may have more to do than this run.
        """
        if self.accelerator.is_main_process:
            about = {"config": plain(self.config), **provenance(self.clock), "history": self.history}
            write_json(self.config.out / "result.json", about)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()
        release(self.config.out)
