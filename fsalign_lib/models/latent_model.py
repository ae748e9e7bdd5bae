r"""Put latent diffusion models of diffusers' classes behind the few methods that kernels, losses and loops need.

Whatever a network predicts (noise, v or the clean sample), whatever it is conditioned on (see `conditioning`), and
whatever the guidance, is settled here: callers see `predict_x0` and `predict_eps`. `models.load.load` makes one.

The networks may be in half precision, each in its own (`dtype` is the UNet's); what is computed from their outputs is
in the precision of the state, float32.

The frozen reference of the preference objectives is the same network with its adapter off (LoRA), or a frozen copy
(when all weights are trained): `with model.reference(): ...`.
"""

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fsalign_lib.devices import send, table_on
from fsalign_lib.json_files import NUMBER, OPTIONAL, check_object, read_json
from fsalign_lib.kernels import Kernel, build_kernel
from fsalign_lib.models.adapters import Adapters
from fsalign_lib.models.conditioning import Cond, cat, stack
from fsalign_lib.models.consistency import boundary_scalings, guidance_embedding
from fsalign_lib.models.presets import SAMPLING, SCHEDULERS, Preset
from fsalign_lib.models.tensor_files import read_tensors
from fsalign_lib.schedules import NoiseSchedule, lcm_timesteps

Training = Literal["lora", "full"]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
DECODING = 8 * 2**30  # bytes that pictures may take in the decoder together, where nothing is kept for a backward
DECODED = 10  # elements that are live at its peak, for each pixel and each channel of its last block (counted: 9.5)


class LatentModel:
    """Hold UNet (or transformer), VAE, text encoders and noise schedule as one model (see `models.load.load`).

    Attributes:
        name: what `load` was given. kernel: the name of its usual sampler (see `sampler`).
        guidance_scale: the weight w of classifier-free guidance, eps = eps_null + w (eps_cond - eps_null); 1 is none.
            A UNet with a guidance embedding (LCM) takes w as an input instead.
        network: what is called in place of `unet`: itself, or its wrapper for several processes.
        adapters: those of `unet`, which several models may share; adapter: the one of this model, None for none.
    """

    def __init__(self, name: str, unet, vae, text, scheduler, preset: Preset, image_size: int):
        config = scheduler.config
        if config.beta_schedule not in ("scaled_linear", "linear"):
            raise ValueError(f"{name}: beta_schedule {config.beta_schedule!r}: expected scaled_linear or linear")
        if config.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"{name}: prediction_type {config.prediction_type!r}: expected epsilon, v_prediction, sample"
            )
        self.name, self.scheduler = name, scheduler
        self.unet, self.vae, self.text = unet, vae, text
        for part in (unet, vae, *text.modules):
            part.requires_grad_(False).eval()
        self.network: nn.Module = unet
        self.dtype: torch.dtype = unet.dtype
        betas = getattr(NoiseSchedule, config.beta_schedule)
        self.schedule: NoiseSchedule = betas(config.beta_start, config.beta_end, config.num_train_timesteps)
        self.prediction_type = config.prediction_type
        self.kernel = preset.kernel or SCHEDULERS[type(scheduler).__name__]
        self.timesteps = preset.timesteps
        self.guidance_scale = preset.guidance
        self.embeds_guidance = unet.config.get("time_cond_proj_dim") is not None
        self.image_size = image_size
        self.training: dict | None = None  # what is trained: {"training": "lora", "rank": ...}
        self.frozen_copy: nn.Module | None = None
        self.adapters, self.adapter = Adapters(unet), None
        self._in_reference = False
        self._embeddings: dict[str | None, Cond] = {}  # None: no prompt
        self.fingerprint, self.vae_fingerprint = fingerprint(unet), fingerprint(vae)

    @property
    def device(self) -> torch.device:
        """Return the device of the network."""
        return self.unet.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return the shape of one latent, (C, h, w)."""
        size = self.image_size // vae_factor(self.vae)
        return (self.unet.config.in_channels, size, size)

    @property
    def pictures_at_once(self) -> int:
        """Return how many pictures are decoded, and scored, together: as many as 8 GB hold, and at least 1.

        At 1024 px 3 in half precision, at 512 px 12, or 6 in float32. The number depends on the model alone, and not on
        the card or on what is free there: results must not.
        """
        one = DECODED * self.vae.config.block_out_channels[0] * self.image_size**2 * self.vae.dtype.itemsize
        return max(1, DECODING // one)

    def to(self, device: torch.device) -> "LatentModel":
        """Move all networks, and the encoded prompts, to a device."""
        for part in (self.unet, self.vae, *self.text.modules, self.frozen_copy):
            if part is not None:
                part.to(device)
        self._embeddings = {k: v.to(device) for k, v in self._embeddings.items()}
        return self

    def sampler(self, num_steps: int, kernel: str | None = None, eta: float = 1.0) -> Kernel:
        """Build a kernel on the times that this model was made for.

        Args:
            kernel: another than the model's own; one of `kernels.KERNELS`.

        Raises:
            ValueError: see `build_kernel`; or the model can only be sampled in another number of steps.
        """
        name, grid = kernel or self.kernel, None
        if name == self.kernel and self.timesteps is not None:
            if num_steps != len(self.timesteps):
                raise ValueError(
                    f"num_steps = {num_steps}: {self.name} is sampled at t = {', '.join(map(str, self.timesteps))} "
                    f"only: use num_steps = {len(self.timesteps)}"
                )
            grid = torch.tensor(self.timesteps)
        elif name == "renoise" and "original_inference_steps" in self.scheduler.config:
            grid = lcm_timesteps(num_steps, self.scheduler.config.original_inference_steps)
        return build_kernel(name, self.schedule, num_steps, timesteps=grid, eta=eta)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Cond:
        """Encode prompts as the network is conditioned on them, each once in the model's life.

        Returns:
            text embeddings (B, L, D), or for SDXL a `Conditioning`, in the text encoder's precision.
        """
        new = [p for p in dict.fromkeys(prompts) if p not in self._embeddings]
        if new:
            encoded = self.text.encode(new)
            self._embeddings |= {prompt: encoded[i] for i, prompt in enumerate(new)}
        return stack([self._embeddings[p] for p in prompts])

    def forget_prompts(self) -> None:
        """Drop the encoded prompts: 30,000 of SDXL's are 19 GB in float32."""
        self._embeddings.clear()

    @torch.no_grad()
    def null(self, batch: int) -> Cond:
        """Return the condition of no prompt, `batch` times."""
        if None not in self._embeddings:
            self._embeddings[None] = self.text.null()[0]
        return stack([self._embeddings[None]] * batch)

    def _forward(self, x_t: Tensor, t: int | Tensor, cond: Cond) -> Tensor:
        """Call the network once in its precision; return the output in that of x_t."""
        network = self.frozen_copy if self._in_reference and self.frozen_copy is not None else self.network
        inputs = self.text.inputs(cond.to(self.dtype))
        if self.embeds_guidance:
            embedding = guidance_embedding(self.guidance_scale, self.unet.config.time_cond_proj_dim)
            inputs["timestep_cond"] = table_on(embedding, x_t.device, self.dtype).expand(len(x_t), -1)
        if isinstance(t, Tensor):
            t = send(t, x_t.device).expand(len(x_t))
        else:
            t = torch.full((len(x_t),), t, device=x_t.device)
        with self.adapters.using(None if self._in_reference else self.adapter):
            out = network(x_t.to(self.dtype), timestep=t, **inputs, return_dict=False)[0]
        return out[:, : x_t.shape[1]].to(x_t.dtype)  # PixArt also predicts a variance

    def _predict(self, x_t: Tensor, t: int | Tensor, cond: Cond) -> Tensor:
        """Return the network's own output, with guidance, whose two halves go through the network together."""
        if self.guidance_scale == 1 or self.embeds_guidance:
            return self._forward(x_t, t, cond)
        both_t = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        out = self._forward(torch.cat([x_t, x_t]), both_t, cat([self.null(len(cond)), cond]))
        unconditional, conditional = out.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def predict_x0(self, x_t: Tensor, t: int | Tensor, cond: Cond) -> Tensor:
        r"""Predict the clean latent of a VP sample x_t at time t, an int or a LongTensor (B,).  # (B, C, h, w)

        For a model with an LCMScheduler it is $c_{skip}(t)\, x_t + c_{out}(t)\, \hat x_0$, the consistency function.
        """
        out = self._predict(x_t, t, cond)
        if self.prediction_type == "epsilon":
            out = self.schedule.x0_from_eps(x_t, out, t)
        elif self.prediction_type == "v_prediction":
            out = self.schedule.x0_from_v(x_t, out, t)
        if "timestep_scaling" not in self.scheduler.config:
            return out
        c_skip, c_out = boundary_scalings(t, self.scheduler.config.timestep_scaling, x_t)
        return c_skip * x_t + c_out * out

    def predict_eps(self, x_t: Tensor, t: int | Tensor, cond: Cond) -> Tensor:
        """Predict the noise of a VP sample x_t at time t, an int or a LongTensor (B,).  # (B, C, h, w)"""
        out = self._predict(x_t, t, cond)
        if self.prediction_type == "epsilon":
            return out
        convert = self.schedule.eps_from_x0 if self.prediction_type == "sample" else self.schedule.eps_from_v
        return convert(x_t, out, t)

    def decode(self, latents: Tensor, through_clamp: bool = False) -> Tensor:
        """Decode latents to pictures in [0, 1], differentiably.  # (B, 3, H, W)

        Without a gradient `pictures_at_once` are decoded at a time.

        Args:
            through_clamp: what the decoder gives outside [0, 1] is clamped, and such a value has no gradient; with
                this the gradient passes the clamp as if it were not there. The pictures are the same.
        """
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        graph = torch.is_grad_enabled() and latents.requires_grad
        parts = [latents] if graph else latents.split(self.pictures_at_once)
        pictures = torch.cat([self.vae.decode(part, return_dict=False)[0].float() for part in parts]) / 2 + 0.5
        clamped = pictures.clamp(0, 1)
        return pictures + (clamped - pictures).detach() if through_clamp else clamped

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode pictures in [0, 1] to posterior means, scaled to unit variance.  # (B, C, h, w)"""
        posterior = self.vae.encode((images * 2 - 1).to(self.vae.dtype)).latent_dist
        return posterior.mean.float() * self.vae.config.scaling_factor

    def with_network(self, unet: nn.Module) -> "LatentModel":
        """Return an untrained model with another network, which shares VAE and text encoders with this one.

        Args:
            unet: of this one's class. With this one's own, the two models share the network and its adapters.
        """
        other = copy.copy(self)
        other.unet = other.network = unet
        other.training = other.frozen_copy = other.adapter = None
        other.adapters = self.adapters if unet is self.unet else Adapters(unet)
        return other

    def add_lora(
        self,
        rank: int,
        alpha: int | None = None,
        targets: Sequence[str] = ATTENTION,
        seed: int = 0,
        name: str = "default",
    ) -> None:
        """Train low-rank adapters on the named layers: W + (alpha / rank) B A, with B = 0 at the start.

        They are in float32 whatever the network's precision is: half is too coarse for steps of 1e-5.

        Args:
            alpha: `rank` if None, as in the PSO code.
            name: where several models share the network, one for each.

        Raises:
            ValueError: it is trained already.
        """
        self._start_training()
        config = LoraConfig(
            r=rank, lora_alpha=alpha or rank, init_lora_weights="gaussian", target_modules=list(targets)
        )
        self.adapters.add(name, config, seed)
        self.adapter = name
        self.training = {"training": "lora", "rank": rank, "alpha": alpha or rank, "targets": list(targets)}

    def train_all_weights(self, reference: bool = True) -> None:
        """Train every weight of the UNet; the reference is a frozen copy, unless there is to be none."""
        self._start_training()
        self.frozen_copy = copy.deepcopy(self.unet) if reference else None
        self.unet.requires_grad_(True)
        self.training = {"training": "full"}

    def _start_training(self) -> None:
        if self.training is not None:
            raise ValueError(f"{self.name} is trained already ({self.training}): load it again for another training")

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training changes, by name."""
        if self.adapter is not None:
            return self.adapters.weights(self.adapter)
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    def checkpoint_gradients(self) -> None:
        """Compute activations of network and decoder again in the backward, in place of keeping them."""
        self.unet.enable_gradient_checkpointing(self.adapters.checkpoint)
        self.vae.enable_gradient_checkpointing()  # which a reward's gradient comes back through

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Make the model the frozen reference within the block: the network as it was loaded."""
        self._in_reference = True
        try:
            yield
        finally:
            self._in_reference = False

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return the trained weights, `whole` each. Under FSDP each process holds a share: all must call it."""
        return {name: whole(p) for name, p in self.trained_parameters().items()}

    def save_adapter(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> None:
        """Write the trained weights (adapters, or the whole UNet), and which model they belong to.

        Args:
            tensors: what `trained_tensors` gave; it is called if they are not given.
        """
        save_file(self.trained_tensors() if tensors is None else tensors, folder / "trained.safetensors")
        precision = str(self.dtype).removeprefix("torch.")
        about = {"model": self.name, "fingerprint": self.fingerprint, "dtype": precision, **(self.training or {})}
        if self.timesteps is not None:
            about["sampling"] = self.sampling()
        (folder / "trained.json").write_text(json.dumps(about, indent=2) + "\n")

    def load_adapter(self, folder: Path, any_precision: bool = False) -> None:
        """Take the trained weights that `save_adapter` wrote; training is set up first if it was not.

        Args:
            any_precision: the model may have been trained in another precision than it has now. Whether it is the same
                model is then left to the caller, for rounded weights have another fingerprint.

        Raises:
            FileNotFoundError: no such files.
            ValueError: they belong to another model, or to another kind of training.
        """
        about = trained_about(Path(folder))
        model, fingerprint = about.pop("model"), about.pop("fingerprint")
        sampling = about.pop("sampling", None)
        dtype = getattr(torch, about.pop("dtype"))
        rounded = dtype != self.dtype
        if rounded and not any_precision:
            raise ValueError(
                f"checkpoint {folder} was trained on {model!r} in {dtype}: load it so, not in {self.dtype}"
            )
        if fingerprint != self.fingerprint and not rounded:
            raise ValueError(
                f"checkpoint {folder} was trained from {model!r} (weights {fingerprint[:8]}) and not from "
                f"{self.name!r} (weights {self.fingerprint[:8]}): load the model that it belongs to"
            )
        if self.training is None:
            lora = about["training"] == "lora"
            self.add_lora(about["rank"], about["alpha"], about["targets"]) if lora else self.train_all_weights()
        if self.training != about:
            raise ValueError(
                f"checkpoint {folder} holds {about} and this model trains {self.training}: make them agree"
            )
        self.set_trained(Path(folder) / "trained.safetensors")
        if sampling is not None:
            self.kernel, self.guidance_scale = sampling["kernel"], sampling["guidance"]
            self.timesteps = tuple(sampling["timesteps"])

    def set_trained(self, path: Path) -> None:
        """Take the trained weights of a file that holds what `trained_tensors` gave.

        Raises:
            ValueError: it holds others.
        """
        tensors, parameters = read_tensors(path), self.trained_parameters()
        if {name: t.shape for name, t in tensors.items()} != {name: p.shape for name, p in parameters.items()}:
            raise ValueError(f"{path} holds other layers than {self.name!r} trains: it is damaged")
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(tensors[name])

    def sampling(self) -> dict[str, Any]:
        """Return how the model is sampled: fields of `presets.Preset`."""
        return {"kernel": self.kernel, "timesteps": self.timesteps, "guidance": self.guidance_scale}

    def merged_network(self) -> nn.Module:
        """Copy the network and merge the trained weights in."""
        unet = copy.deepcopy(self.unet)
        if self.adapter is not None:
            for layer in [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]:
                layer.merge(adapter_names=[self.adapter])
            recurse_remove_peft_layers(unet)
        return unet

    def save_pretrained(self, folder: Path) -> None:
        """Write a diffusers pipeline folder with the trained weights merged in; `load` reads it.

        presets.SAMPLING stands beside the parts, and tells `load` the sampler, its times and the guidance.
        """
        parts = {
            self.text.network: self.merged_network(),
            "vae": self.vae,
            "scheduler": self.scheduler,
            **self.text.components(),
        }
        getattr(diffusers, self.text.pipeline)(**parts).save_pretrained(folder, safe_serialization=True)
        self.write_sampling(folder)

    def write_sampling(self, folder: Path, **more: str) -> None:
        """Write how the model is sampled into a folder, with what else `load` has to know of it."""
        (Path(folder) / SAMPLING).write_text(json.dumps(self.sampling() | more, indent=2) + "\n")


def trained_about(folder: Path) -> dict[str, Any]:
    """Read what `LatentModel.save_adapter` noted of trained weights.

    Raises:
        FileNotFoundError: no such file. ValueError: it is damaged.
    """
    path = folder / "trained.json"
    if not path.exists():
        raise FileNotFoundError(f"no trained weights in {folder}: expected trained.json and trained.safetensors")
    about = {"dtype": "float32"} | read_json(path, model=str, fingerprint=str, training=str)
    if about["training"] == "lora":
        check_object(path, about, rank=int, alpha=NUMBER, targets=(list, str, OPTIONAL))
    if "sampling" in about:
        check_object(f"sampling in {path}", about["sampling"], kernel=str, guidance=NUMBER, timesteps=list)
    if about["dtype"] not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"{path} is damaged: dtype is {about['dtype']!r}: restore it, or remove it")
    return about


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, without its graph.

    One that FSDP holds in parts is gathered, for which all processes must call this: on the first it is whole, and
    empty on the others, so that only one of them has to hold it.
    """
    if isinstance(tensor, DTensor):
        gathered = tensor.detach().full_tensor()
        tensor = gathered if tensor.device_mesh.get_rank() == 0 else gathered.new_empty(0)
    return tensor.detach().cpu().contiguous()


def share_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's share of a whole tensor that all processes have, in parts as `like` is; or all of it."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def vae_factor(vae: nn.Module) -> int:
    """Return the pixels a latent covers, along each side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def fingerprint(network: nn.Module) -> str:
    """Hash names, shapes and some values of the weights, which tells models of the same shape apart."""
    digest = hashlib.sha256()
    for name, p in sorted(network.named_parameters()):
        digest.update(f"{name}{tuple(p.shape)}".encode())
        if not p.is_meta:  # without values, when a run is only planned
            digest.update(p.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()
