r"""Latent diffusion models in diffusers' own classes, behind the few methods that kernels, losses and loops need.

`load(name)` takes a preset ("pocket-turbo") or a folder in diffusers' pipeline layout. Whatever a network predicts
(noise, v or the clean sample), and whatever the guidance, is settled here: callers see `predict_x0` and `predict_eps`.

The frozen reference of the preference objectives is the same network with its adapter off (LoRA), or a frozen copy
(when all weights are trained): `with model.reference(): ...`.
"""

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import diffusers
import torch
import transformers
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fsalign_lib.schedules import NoiseSchedule

Training = Literal["lora", "full"]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
POCKET = Path(__file__).parent / "pocket" / "weights"

# The sampler that a pipeline's scheduler stands for; other multi-step schedulers are served by DDIM.
SCHEDULERS = {
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "LCMScheduler": "renoise",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddim",
    "PNDMScheduler": "ddim",
    "EulerDiscreteScheduler": "ddim",
}
PARTS = ("unet", "scheduler", "vae", "text_encoder", "tokenizer")


@dataclass(frozen=True)
class Preset:
    """Where a model's parts lie: under `root`, or on the hub at a pinned `revision`."""

    root: str
    revision: str | None = None
    branch: str = ""  # a subfolder for unet and scheduler, where several models share the other parts
    kernel: str | None = None


PRESETS = {
    "pocket-turbo": Preset(str(POCKET), branch="student", kernel="euler-ancestral"),
    "pocket-teacher": Preset(str(POCKET), branch="teacher", kernel="ddim"),
    # Loaded by the same code as the pocket models, but not run where this was written.
    "sd-turbo": Preset("stabilityai/sd-turbo", "b261bac6fd2cf515557d5d0707481eafa0485ec2", kernel="euler-ancestral"),
}


class LatentModel:
    """UNet, VAE, text encoder, tokenizer and noise schedule as one model (see `load`).

    Attributes:
        name: what `load` was given. kernel: the name of its usual sampler (see `kernels.build_kernel`).
        guidance_scale: classifier-free guidance weight w, eps = eps_null + w (eps_cond - eps_null); 1 is none.
        network: what is called in place of `unet`: itself, or its wrapper for several processes.
    """

    def __init__(self, name: str, unet, vae, text_encoder, tokenizer, scheduler, kernel: str | None = None):
        config = scheduler.config
        if config.beta_schedule != "scaled_linear":
            raise ValueError(f"{name}: beta_schedule {config.beta_schedule!r} is not supported: expected scaled_linear")
        if config.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"{name}: prediction_type {config.prediction_type!r}: expected epsilon, v_prediction, sample"
            )
        self.name, self.tokenizer, self.scheduler = name, tokenizer, scheduler
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        for part in (unet, vae, text_encoder):
            part.requires_grad_(False).eval()
        self.network: nn.Module = unet
        self.schedule = NoiseSchedule.scaled_linear(config.beta_start, config.beta_end, config.num_train_timesteps)
        self.prediction_type = config.prediction_type
        self.kernel = kernel or SCHEDULERS[type(scheduler).__name__]
        self.guidance_scale = 1.0
        self.training: dict | None = None  # what is trained: {"training": "lora", "rank": ...}
        self._copy: nn.Module | None = None
        self._in_reference = False
        self._embeddings: dict[str, Tensor] = {}
        self.fingerprint, self.vae_fingerprint = _fingerprint(unet), _fingerprint(vae)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.unet.config.sample_size
        return (self.unet.config.in_channels, size, size)

    @property
    def image_size(self) -> int:
        return self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def to(self, device: torch.device) -> "LatentModel":
        for part in (self.unet, self.vae, self.text_encoder, self._copy):
            if part is not None:
                part.to(device)
        self._embeddings = {k: v.to(device) for k, v in self._embeddings.items()}
        return self

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings of prompts, each encoded once in the model's life.  # (B, L, D) float32"""
        new = [p for p in dict.fromkeys(prompts) if p not in self._embeddings]
        if new:
            tokens = self.tokenizer(new, padding="max_length", truncation=True, return_tensors="pt").input_ids
            self._embeddings |= zip(new, self.text_encoder(tokens.to(self.device))[0].float(), strict=True)
        return torch.stack([self._embeddings[p] for p in prompts])

    def _predict(self, x_t: Tensor, t: int | Tensor, cond: Tensor) -> Tensor:
        """The network's own output, with guidance; its two halves go through the network together."""
        network = self._copy if self._in_reference and self._copy is not None else self.network
        if self.guidance_scale == 1:
            return network(x_t, t, cond, return_dict=False)[0].to(x_t.dtype)
        null = self.encode_prompts([""]).expand_as(cond)
        both_t = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        out = network(torch.cat([x_t, x_t]), both_t, torch.cat([null, cond]), return_dict=False)[0].to(x_t.dtype)
        unconditional, conditional = out.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def predict_x0(self, x_t: Tensor, t: int | Tensor, cond: Tensor) -> Tensor:
        """The predicted clean latent of a VP sample x_t at time t, an int or a LongTensor (B,).  # (B, C, h, w)"""
        out = self._predict(x_t, t, cond)
        if self.prediction_type == "epsilon":
            return self.schedule.x0_from_eps(x_t, out, t)
        return out if self.prediction_type == "sample" else self.schedule.x0_from_v(x_t, out, t)

    def predict_eps(self, x_t: Tensor, t: int | Tensor, cond: Tensor) -> Tensor:
        """The predicted noise of a VP sample x_t at time t, an int or a LongTensor (B,).  # (B, C, h, w)"""
        out = self._predict(x_t, t, cond)
        if self.prediction_type == "epsilon":
            return out
        convert = self.schedule.eps_from_x0 if self.prediction_type == "sample" else self.schedule.eps_from_v
        return convert(x_t, out, t)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in [0, 1], differentiable.  # (B, 3, H, W)"""
        pictures = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return (pictures / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (posterior means, scaled to unit variance) of pictures in [0, 1].  # (B, C, h, w)"""
        return self.vae.encode(images * 2 - 1).latent_dist.mean * self.vae.config.scaling_factor

    def add_lora(self, rank: int, alpha: int | None = None, targets: Sequence[str] = ATTENTION, seed: int = 0) -> None:
        """Train low-rank adapters on the named layers: W + (alpha / rank) B A, with B = 0 at the start.

        Args:
            alpha: `rank` if None, as in the PSO code.
        """
        self._start_training()
        config = LoraConfig(
            r=rank, lora_alpha=alpha or rank, init_lora_weights="gaussian", target_modules=list(targets)
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.unet.add_adapter(config)
        self.training = {"training": "lora", "rank": rank, "alpha": alpha or rank, "targets": list(targets)}

    def train_all_weights(self) -> None:
        """Train every weight of the UNet; the reference is a frozen copy."""
        self._start_training()
        self._copy = copy.deepcopy(self.unet)
        self.unet.requires_grad_(True)
        self.training = {"training": "full"}

    def _start_training(self) -> None:
        if self.training is not None:
            raise ValueError(f"{self.name} is trained already ({self.training}): load it again for another training")

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Within it the model is the frozen reference: the network as it was loaded."""
        adapter = self.training is not None and self.training["training"] == "lora"
        if adapter:
            self.unet.disable_adapters()
        self._in_reference = True
        try:
            yield
        finally:
            self._in_reference = False
            if adapter:
                self.unet.enable_adapters()

    def save_adapter(self, folder: Path) -> None:
        """Write the trained weights (adapters, or the whole UNet), and which model they belong to."""
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.trained_parameters().items()}
        save_file(tensors, folder / "trained.safetensors")
        about = {"model": self.name, "fingerprint": self.fingerprint, **(self.training or {})}
        (folder / "trained.json").write_text(json.dumps(about, indent=2) + "\n")

    def load_adapter(self, folder: Path) -> None:
        """Take the trained weights that `save_adapter` wrote; training is set up first if it was not.

        Raises:
            FileNotFoundError: no such files.
            ValueError: they belong to another model, or to another kind of training.
        """
        path = Path(folder) / "trained.json"
        if not path.exists():
            raise FileNotFoundError(f"no trained weights in {folder}: expected trained.json and trained.safetensors")
        about = json.loads(path.read_text())
        model, fingerprint = about.pop("model"), about.pop("fingerprint")
        if fingerprint != self.fingerprint:
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
        tensors = load_file(Path(folder) / "trained.safetensors")
        parameters = self.trained_parameters()
        if tensors.keys() != parameters.keys():
            raise ValueError(f"checkpoint {folder} holds other layers than {self.name!r} trains: it is damaged")
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(tensors[name])

    def save_pretrained(self, folder: Path) -> None:
        """Write a diffusers StableDiffusionPipeline folder with the trained weights merged in; `load` reads it."""
        unet = copy.deepcopy(self.unet)
        if self.training is not None and self.training["training"] == "lora":
            unet.fuse_lora()
            unet.unload_lora()
        parts = (self.vae, self.text_encoder, self.tokenizer, unet, self.scheduler)
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        diffusers.StableDiffusionPipeline(*parts, **unused).save_pretrained(folder, safe_serialization=True)


def _fingerprint(network: nn.Module) -> str:
    """A hash over names, shapes and some values of the weights: tells models of the same shape apart."""
    digest = hashlib.sha256()
    for name, p in sorted(network.named_parameters()):
        digest.update(f"{name}{tuple(p.shape)}".encode())
        digest.update(p.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def load(name: str | Path) -> LatentModel:
    """Load a preset by name, or a folder in diffusers' pipeline layout, in float32.

    Raises:
        ValueError: an unknown name, or a pipeline of a kind that is not supported.
        FileNotFoundError: the folder, or one of its parts, is missing.
    """
    preset = PRESETS.get(str(name))
    if preset is None:
        if not Path(name).is_dir():
            raise ValueError(
                f"unknown model {str(name)!r}: choose from {', '.join(PRESETS)}, or name a pipeline folder"
            )
        preset = Preset(str(name))
    source: dict = {"revision": preset.revision} if preset.revision else {"local_files_only": True}
    folder = {part: f"{preset.branch}/{part}" if preset.branch and part in PARTS[:2] else part for part in PARTS}
    if preset.revision is None:
        _check_parts(str(name), Path(preset.root), folder)
    model = {"use_safetensors": True, **source}
    config = diffusers.DDIMScheduler.load_config(preset.root, subfolder=folder["scheduler"], **source)
    kind = config["_class_name"]
    if kind not in SCHEDULERS:
        raise ValueError(f"{name}: scheduler {kind} is not supported: expected one of {', '.join(SCHEDULERS)}")
    return LatentModel(
        str(name),
        diffusers.UNet2DConditionModel.from_pretrained(
            preset.root, subfolder=folder["unet"], torch_dtype=torch.float32, **model
        ),
        diffusers.AutoencoderKL.from_pretrained(preset.root, subfolder="vae", torch_dtype=torch.float32, **model),
        transformers.CLIPTextModel.from_pretrained(preset.root, subfolder="text_encoder", dtype=torch.float32, **model),
        transformers.CLIPTokenizer.from_pretrained(preset.root, subfolder="tokenizer", **source),
        getattr(diffusers, kind).from_config(config),
        preset.kernel,
    )


def _check_parts(name: str, root: Path, folder: dict[str, str]) -> None:
    missing = [f for f in folder.values() if not (root / f).is_dir()]
    if missing and root == POCKET:
        raise FileNotFoundError(
            f"model {name!r}: its weights are not in {root}: build them with python -m fsalign_lib.pocket.build"
        )
    if missing:
        raise FileNotFoundError(f"model folder {name!r} has no {missing[0]}/: expected {', '.join(folder.values())}")
    if (root / "text_encoder_2").is_dir():
        raise ValueError(f"model folder {name!r} has two text encoders (SDXL): full scale lands with that milestone")
