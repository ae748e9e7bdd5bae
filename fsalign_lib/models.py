"""Loading models: presets by name, and pipeline folders, in diffusers' and transformers' classes.

`load(name)` takes a preset ("pocket-turbo", see `presets`) or a folder in diffusers' pipeline layout.

The libraries warn when a checkpoint lacks a weight or holds one that the network has no place for, and go on with
random weights. Here that is an error. Nothing is unpickled except by `torch.load(weights_only=True)`.
"""

import inspect
import json
import pickle
from collections.abc import Iterable
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from fsalign_lib import presets
from fsalign_lib.conditioning import ClipText, T5Text, TwoClipText
from fsalign_lib.latent import LatentModel, vae_factor
from fsalign_lib.presets import SCHEDULERS, Preset

SHOWN = 3  # keys named in a message


def load(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    image_size: int | None = None,
    hub: str | Path | None = None,
) -> LatentModel:
    """Load a preset by name, or a folder in diffusers' pipeline layout.

    Args:
        dtype: of all networks.
        image_size: of the pictures, if not the one that the UNet's configuration names.
        hub: a folder with repositories as <owner>/<repository>, to read in place of the hub; see `presets`.

    Raises:
        ValueError: an unknown name, a pipeline of a kind that is not supported, weights that do not fit.
        FileNotFoundError: a repository, a folder or a part of one is missing, or the hub cannot be reached.
        PermissionError: a repository asks for consent.
    """
    name, hub = str(name), presets.local_hub(hub)
    preset, root = _find(name, hub)
    scheduler = _scheduler(name, preset, root, SCHEDULERS)
    unet = _network(name, preset, root, hub, dtype)
    vae = _vae(name, preset, root, hub, dtype)
    image_size = image_size or unet.config.sample_size * vae_factor(vae)
    text = _text(name, root, unet.config, image_size, dtype)
    return LatentModel(name, unet, vae, text, scheduler, preset, image_size)


def _find(name: str, hub: Path | None) -> tuple[Preset, Path]:
    """The preset of a name, or of a pipeline folder, and the folder that holds the pipeline.

    Raises:
        ValueError: an unknown name. FileNotFoundError: see `presets.locate`; or a part of the pipeline is missing.
    """
    preset = presets.PRESETS.get(name)
    if preset is None:
        if not Path(name).is_dir():
            raise ValueError(
                f"unknown model {name!r}: choose from {', '.join(presets.PRESETS)}, or name a pipeline folder"
            )
        preset = Preset(Path(name))
    root, needed = preset.pipeline, ["scheduler", "text_encoder", "tokenizer"]
    if not isinstance(root, Path):
        needed += [] if preset.vae else ["vae"]
        asked = [*needed, "text_encoder_2", "tokenizer_2"] + ([] if preset.network else ["unet", "transformer"])
        patterns = [f"{part}{end}" for part in asked for end in ("/*.json", "/*.safetensors", "/*.txt", "/*.model")]
        root = presets.locate(name, root, hub, [*patterns, "unet/config.json", "model_index.json"])
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
        again = "" if isinstance(preset.pipeline, Path) else f": {presets.how_to_get(preset.pipeline, hub)}"
        raise FileNotFoundError(f"model folder {str(root)!r} has no {missing[0]}/: expected {', '.join(wanted)}{again}")
    return preset, root


def _branch(preset: Preset, part: str) -> str:
    return f"{preset.branch}/{part}" if preset.branch and part in ("unet", "scheduler") else part


def _module(kind: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A network that `save_pretrained` wrote, in either library's class.

    Raises:
        OSError: no safetensors in the folder. ValueError: its keys or shapes are not the network's.
    """
    of_diffusers = issubclass(kind, diffusers.ModelMixin)
    options = {"torch_dtype" if of_diffusers else "dtype": dtype, "ignore_mismatched_sizes": True}
    files = [path.name for path in folder.glob("*.safetensors")]
    if files and all(".fp16" in file for file in files):
        options["variant"] = "fp16"
    if of_diffusers:
        options["low_cpu_mem_usage"] = False
    network, info = kind.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
    )
    # transformers drops and adds buffers between its versions, so a key too many is the business of diffusers' alone.
    unknown = info["unexpected_keys"] if of_diffusers else ()
    _same_keys(str(folder), info["missing_keys"], unknown, info["mismatched_keys"])
    return network


def _same_keys(where: str, missing: Iterable, unknown: Iterable, reshaped: Iterable) -> None:
    told = []
    for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", reshaped)):
        keys = sorted(key if isinstance(key, str) else key[0] for key in keys)
        if keys:
            told.append(f"{len(keys)} {what} ({', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''})")
    if told:
        raise ValueError(f"the weights in {where} are not this network's: keys {'; '.join(told)}: get the right file")


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, or in a torch file that holds nothing but tensors.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is not a file of tensors ({why[:80]}): download it again") from None


def unet_from_file(config: Path, weights: Path, dtype: torch.dtype) -> nn.Module:
    """A UNet of the configuration in a folder with the weights of one file, as DMD2 publishes them."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(config))
    here, there = unet.state_dict(), state_dict(weights)
    reshaped = [key for key in here.keys() & there.keys() if here[key].shape != there[key].shape]
    _same_keys(str(weights), here.keys() - there.keys(), there.keys() - here.keys(), reshaped)
    unet.load_state_dict({key: value.to(dtype) for key, value in there.items()}, assign=True)
    return unet


def merge_lora(unet: nn.Module, weights: Path) -> None:
    """Add the low-rank weights of a file to those of the UNet.

    Raises:
        ValueError: not a LoRA file, or some of its layers are not in the UNet.
    """
    pipeline = diffusers.StableDiffusionXLPipeline
    loaded, alphas = pipeline.lora_state_dict(state_dict(weights), unet_config=unet.config)
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


def _network(name: str, preset: Preset, root: Path, hub: Path | None, dtype: torch.dtype) -> nn.Module:
    """The UNet or transformer: the pipeline's, or another repository's, or one file's; with a LoRA merged in."""
    kind = diffusers.UNet2DConditionModel
    if (root / "transformer").is_dir():
        return _module(diffusers.PixArtTransformer2DModel, root / "transformer", dtype)
    if preset.network is None:
        unet = _module(kind, root / _branch(preset, "unet"), dtype)
    else:
        source = presets.locate(name, preset.network, hub, ["config.json", "diffusion_pytorch_model.safetensors"])
        unet = unet_from_file(root / "unet", source, dtype) if source.is_file() else _module(kind, source, dtype)
    if preset.lora is not None:
        merge_lora(unet, presets.locate(name, preset.lora, hub, []))
    return unet


def _vae(name: str, preset: Preset, root: Path, hub: Path | None, dtype: torch.dtype) -> nn.Module:
    """The autoencoder: the pipeline's, or another repository's."""
    folder = root / "vae"
    if preset.vae is not None:
        folder = presets.locate(name, preset.vae, hub, ["config.json", "diffusion_pytorch_model.safetensors"])
    return _module(diffusers.AutoencoderKL, folder, dtype)


def _text(name: str, root: Path, config: dict, image_size: int, dtype: torch.dtype) -> ClipText | TwoClipText | T5Text:
    """The text encoders of a pipeline folder: those that the network's configuration calls for."""
    if config["_class_name"] == "PixArtTransformer2DModel":
        encoder = _module(transformers.T5EncoderModel, root / "text_encoder", dtype)
        return T5Text(encoder, transformers.T5Tokenizer.from_pretrained(root / "tokenizer"))
    encoder = _module(transformers.CLIPTextModel, root / "text_encoder", dtype)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(root / "tokenizer")
    if config.get("addition_embed_type") != "text_time":
        return ClipText(encoder, tokenizer)
    missing = [part for part in ("text_encoder_2", "tokenizer_2") if not (root / part).is_dir()]
    if missing:
        raise FileNotFoundError(f"model {name!r}: {root} has no {missing[0]}/, and its UNet needs two text encoders")
    second = _module(transformers.CLIPTextModelWithProjection, root / "text_encoder_2", dtype)
    tokenizers = (tokenizer, transformers.CLIPTokenizer.from_pretrained(root / "tokenizer_2"))
    index = root / "model_index.json"
    about = json.loads(index.read_text()) if index.exists() else {}
    return TwoClipText(
        (encoder, second), tokenizers, image_size, zero_null=about.get("force_zeros_for_empty_prompt", True)
    )


def _scheduler(name: str, preset: Preset, root: Path, supported: Iterable[str]):
    """The scheduler of a pipeline folder, with what the preset changes in its configuration.

    Raises:
        ValueError: a class that is not one of `supported`.
    """
    config = diffusers.DDIMScheduler.load_config(root, subfolder=_branch(preset, "scheduler"), local_files_only=True)
    config = {**config, **preset.scheduler}
    if config["_class_name"] not in supported:
        raise ValueError(
            f"{name}: scheduler {config['_class_name']} is not supported: expected one of {', '.join(supported)}"
        )
    kind = getattr(diffusers, config["_class_name"])
    if preset.scheduler:  # another class than the pipeline's, which knows fewer fields
        config = {key: config[key] for key in inspect.signature(kind).parameters if key in config}
    return kind.from_config(config)
