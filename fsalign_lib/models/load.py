"""Load models in diffusers' and transformers' classes: presets by name, and pipeline folders.

`load(name)` takes a preset ("pocket-turbo", see `presets`), a folder in diffusers' pipeline layout, or one with a LoRA
that reproduce/export.py wrote. The LoRA of a preset can be put on another teacher:
`load("pocket-lcm", network=teacher.merged_network())`.

`hub` says where published files are read from, `tensor_files` how.
"""

import copy
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from fsalign_lib.json_files import read_json
from fsalign_lib.models import presets
from fsalign_lib.models.conditioning import ClipText, T5Text, TwoClipText
from fsalign_lib.models.hub import Hub
from fsalign_lib.models.latent_model import LatentModel, fingerprint, vae_factor
from fsalign_lib.models.presets import SCHEDULERS, Preset
from fsalign_lib.models.tensor_files import fill, load_pretrained, read_tensors, unreadable

NETWORK = ("config.json", "diffusion_pytorch_model.safetensors")  # of a repository that holds one network


def load(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    hub: str | Path | None = None,
    network: nn.Module | None = None,
    frozen_dtype: torch.dtype | None = None,
) -> LatentModel:
    """Load a preset by name, a folder in diffusers' pipeline layout, or an exported LoRA on its base.

    Args:
        dtype: of all networks. SDXL's own autoencoder overflows in float16: it is then loaded in float32, as diffusers'
            pipeline upcasts it (force_upcast in its configuration); the presets have one that does not overflow.
        image_size: of the pictures, if not the one that the UNet's configuration names.
        hub: a folder with published files, see `hub`.
        network: a UNet in place of the preset's own, to a copy of which the preset's LoRA is added: that of a teacher
            that has been trained, say, as `LatentModel.merged_network` gives it.
        frozen_dtype: of autoencoder and text encoders, which no method trains; None: dtype.

    Raises:
        ValueError: an unknown name, a pipeline of a kind that is not supported, weights that do not fit or are of
            another revision, or a network with adapters.
        FileNotFoundError: a repository, a folder or a part of one is missing, or the hub cannot be reached.
        PermissionError: a repository asks for consent.
    """
    name = str(name)
    if (Path(name) / presets.LORA_FILE).is_file():
        return _with_lora(Path(name), dtype, image_size, hub, network)
    files = Hub.of(f"model {name!r}", hub)
    preset, root = _find(name, files)
    scheduler = _scheduler(name, preset, root, SCHEDULERS)
    unet = _network(preset, root, files, dtype) if network is None else _copy(name, network, dtype)
    if preset.lora is not None:
        merge_lora(unet, _published(preset.lora, files))
    vae = _vae(preset, root, files, frozen_dtype or dtype, unet.config)
    image_size = image_size or unet.config.sample_size * vae_factor(vae)
    text = _text(name, root, unet.config, image_size, frozen_dtype or dtype)
    return LatentModel(name, unet, vae, text, scheduler, preset, image_size)


def _with_lora(folder: Path, dtype, image_size, hub, network) -> LatentModel:
    """Load the base of an exported LoRA, add the LoRA to its weights, and sample as the trained model was.

    Raises:
        ValueError: nothing says what the base is.
    """
    about, base = _sampling(folder / presets.SAMPLING), _base(folder / presets.SAMPLING)
    model = load(base, dtype, image_size, hub, network)
    merge_lora(model.unet, folder / presets.LORA_FILE)
    model.unet.requires_grad_(False)
    model.name, model.fingerprint = str(folder), fingerprint(model.unet)
    model.kernel, model.timesteps, model.guidance_scale = about["kernel"], about["timesteps"], about["guidance"]
    return model


def _base(note: Path) -> str:
    """Read which model a LoRA is for: a preset, or a folder."""
    base = read_json(note).get("base") if note.exists() else None
    if base is None:
        raise ValueError(f"{note.parent} holds a LoRA and no {note.name} with its base: load the base, and merge_lora")
    return base


def _find(name: str, hub: Hub) -> tuple[Preset, Path]:
    """Find the preset of a name or of a pipeline folder, and the folder that holds the pipeline.

    Raises:
        ValueError: an unknown name. FileNotFoundError: see `Hub.fetch`; or a part of the pipeline is missing.
    """
    preset = presets.PRESETS.get(name)
    if preset is None:
        if not Path(name).is_dir():
            raise ValueError(
                f"unknown model {name!r}: choose from {', '.join(presets.PRESETS)}, or name a pipeline folder"
            )
        preset = Preset(Path(name), **_sampling(Path(name) / presets.SAMPLING))
    root, needed = preset.pipeline, ["scheduler", "text_encoder", "tokenizer"]
    patterns = []
    if not isinstance(root, Path):
        needed += [] if preset.vae else ["vae"]
        asked = [*needed, "text_encoder_2"] + ([] if preset.network else ["unet", "transformer"])
        patterns = ["*.json", "*.txt", "*.model", *(f"{part}/*.safetensors" for part in asked)]
        root = hub.fetch(root, (), patterns)
    else:
        needed += ["vae"]
    needed += [] if preset.network else ["transformer" if (root / "transformer").is_dir() else "unet"]
    wanted = [_branch(preset, part) for part in needed]
    missing = [part for part in wanted if not (root / part).is_dir()]
    if missing and root == presets.POCKET:
        raise FileNotFoundError(
            f"model {name!r}: its weights are not in {root}: build them with python -m fsalign_lib.pocket.build"
        )
    if missing:
        again = f": {hub.how_to_get(preset.pipeline, patterns)}" if patterns else ""
        raise FileNotFoundError(f"model folder {str(root)!r} has no {missing[0]}/: expected {', '.join(wanted)}{again}")
    return preset, root


def _sampling(path: Path) -> dict[str, Any]:
    """Read how a folder's model is sampled, if that is written down (see `LatentModel.save_pretrained`).

    Raises:
        ValueError: it does not say what is expected.
    """
    if not path.exists():
        return {}
    try:
        about = read_json(path)
        return {
            "kernel": about["kernel"],
            "timesteps": None if about["timesteps"] is None else tuple(map(int, about["timesteps"])),
            "guidance": float(about["guidance"]),
        }
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged: expected a kernel, its timesteps and a guidance scale") from None


def _branch(preset: Preset, part: str) -> str:
    return f"{preset.branch}/{part}" if preset.branch and part in ("unet", "scheduler") else part


def unet_from_file(config: Path, weights: Path, dtype: torch.dtype) -> nn.Module:
    """Load a UNet from a folder with its configuration and a file with its weights, as DMD2 publishes them."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(config))
    state = {key: value.to(dtype) for key, value in read_tensors(weights).items()}
    return fill(unet, state, weights, assign=True)


def merge_lora(unet: nn.Module, weights: Path) -> None:
    """Add the low-rank weights of a file to those of the UNet.

    Raises:
        ValueError: not a LoRA file, or some of its layers are not in the UNet.
    """
    pipeline = diffusers.StableDiffusionXLPipeline
    loaded, alphas = pipeline.lora_state_dict(read_tensors(weights), unet_config=unet.config)
    low_rank = {key for key in loaded if key.startswith("unet.") and not key.endswith("alpha")}
    if not low_rank:
        raise ValueError(f"{weights} holds no LoRA of a UNet: get the right file")
    pipeline.load_lora_into_unet(loaded, network_alphas=alphas, unet=unet)
    placed = sum("lora_" in key for key, _ in unet.named_parameters())
    if placed != len(low_rank):
        raise ValueError(
            f"{weights} has {len(low_rank)} LoRA tensors and {placed} found a place in the UNet: get the right file"
        )
    unet.fuse_lora()
    unet.unload_lora()


def _published(source: str | Path, hub: Hub) -> Path:
    """Fetch the file or folder that a preset's source names.

    Raises:
        FileNotFoundError: see `Hub.fetch`; or a file that is named by its path is missing.
    """
    if isinstance(source, Path):
        if not source.exists():
            raise FileNotFoundError(f"{hub.reader}: no {source}: build it with python -m fsalign_lib.pocket.build")
        return source
    repository, file = presets.split(source)
    return hub.fetch(repository, [file]) / file if file else hub.fetch(repository, NETWORK)


def _network(preset: Preset, root: Path, hub: Hub, dtype: torch.dtype) -> nn.Module:
    """Load the UNet or transformer: the pipeline's, or another repository's, or one file's."""
    kind = diffusers.UNet2DConditionModel
    if (root / "transformer").is_dir():
        return load_pretrained(diffusers.PixArtTransformer2DModel, root / "transformer", dtype)
    if preset.network is None:
        unet = load_pretrained(kind, root / _branch(preset, "unet"), dtype)
    else:
        source = _published(preset.network, hub)
        unet = (
            unet_from_file(root / "unet", source, dtype) if source.is_file() else load_pretrained(kind, source, dtype)
        )
    return unet


def _copy(name: str, network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a UNet without adapters, frozen."""
    if any("lora_" in key for key, _ in network.named_parameters()):
        raise ValueError(f"model {name!r}: the network given has adapters: give LatentModel.merged_network() of it")
    return copy.deepcopy(network).to(dtype)


def _vae(preset: Preset, root: Path, hub: Hub, dtype: torch.dtype, config: dict) -> nn.Module:
    """Load the autoencoder: the pipeline's, or another repository's.

    Args:
        config: the network's, which says whether the pipeline is SDXL's.
    """
    folder = root / "vae" if preset.vae is None else _published(preset.vae, hub)
    sdxl = config.get("addition_embed_type") == "text_time"
    if dtype == torch.float16 and sdxl and diffusers.AutoencoderKL.load_config(folder).get("force_upcast", True):
        dtype = torch.float32
    return load_pretrained(diffusers.AutoencoderKL, folder, dtype)


def _text(name: str, root: Path, config: dict, image_size: int, dtype: torch.dtype) -> ClipText | TwoClipText | T5Text:
    """Load the text encoders of a pipeline folder: those that the network's configuration calls for."""
    if config["_class_name"] == "PixArtTransformer2DModel":
        encoder = load_pretrained(transformers.T5EncoderModel, root / "text_encoder", dtype)
        return T5Text(encoder, _tokenizer(transformers.T5Tokenizer, root / "tokenizer"))
    encoder = load_pretrained(transformers.CLIPTextModel, root / "text_encoder", dtype)
    tokenizer = _tokenizer(transformers.CLIPTokenizer, root / "tokenizer")
    if config.get("addition_embed_type") != "text_time":
        return ClipText(encoder, tokenizer)
    missing = [part for part in ("text_encoder_2", "tokenizer_2") if not (root / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"model {name!r}: {root} has no {missing[0]}/, and its UNet needs two text encoders: get the whole of it"
        )
    second = load_pretrained(transformers.CLIPTextModelWithProjection, root / "text_encoder_2", dtype)
    tokenizers = (tokenizer, _tokenizer(transformers.CLIPTokenizer, root / "tokenizer_2"))
    index = root / "model_index.json"
    about = read_json(index) if index.exists() else {}
    return TwoClipText(
        (encoder, second), tokenizers, image_size, zero_null=about.get("force_zeros_for_empty_prompt", True)
    )


def _tokenizer(kind: type, folder: Path):
    """Load a tokenizer.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # damaged files lead the library to any
        raise unreadable(folder, error) from error


def _scheduler(name: str, preset: Preset, root: Path, supported: Iterable[str]):
    """Load the scheduler of a pipeline folder, with what the preset changes in its configuration.

    Raises:
        ValueError: a class that is not one of `supported`.
    """
    path = root / _branch(preset, "scheduler") / "scheduler_config.json"
    config = read_json(path, _class_name=str) | preset.scheduler
    if config["_class_name"] not in supported:
        raise ValueError(
            f"{name}: scheduler {config['_class_name']} is not supported: expected one of {', '.join(supported)}"
        )
    kind = getattr(diffusers, config["_class_name"])
    if preset.scheduler:  # another class than the pipeline's, which knows fewer fields
        config = {key: config[key] for key in inspect.signature(kind).parameters if key in config}
    try:
        return kind.from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise unreadable(path, error) from error
