"""Small random twins of the published models: the same classes and configuration fields, a few thousand weights.

`save_twin(name, folder)` writes the repositories that a preset names, in the hub's layout, so that
`models.load(name, hub=folder)` runs the code that loads the published weights, file for file.
"""

import hashlib
import json
import string
from pathlib import Path

import diffusers
import torch
import transformers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from fsalign_lib import architectures as full
from fsalign_lib.presets import FP16_VAE, PRESETS, SDXL, split

TEXT_LENGTH = 12  # tokens; 77 at full size
WIDTH = 16  # of a text encoder
LATENT = 8  # latents along a side
TIME_DIM, GUIDANCE_DIM = 8, 16


def save_twin(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the repositories of one preset; those that several presets share come out the same for each.

    Returns:
        the folder, to be given to `models.load` as `hub`.

    Raises:
        ValueError: a preset that lies on no hub.
    """
    preset = PRESETS.get(name)
    if preset is None or isinstance(preset.pipeline, Path):
        hosted = ", ".join(n for n, p in PRESETS.items() if not isinstance(p.pipeline, Path))
        raise ValueError(f"no twin of {name!r}: choose from {hosted}")
    folder = Path(folder)
    with torch.random.fork_rng():
        base = "sdxl" if preset.pipeline == SDXL else name
        save = _save_pixart if name == "pixart-alpha" else _save_pipeline
        save(base, folder / preset.pipeline, preset.pipeline, seed)
        if preset.vae == FP16_VAE:
            _seed(preset.vae, seed)
            _vae(full.SDXL_VAE | {"force_upcast": False}).save_pretrained(folder / preset.vae)
        if preset.network is not None:
            _save_network(name, folder, preset.network, seed)
        if preset.lora is not None:
            _save_lora(folder, preset.lora, seed)
    return folder


def tokenizer(pad: str = "<|endoftext|>") -> transformers.CLIPTokenizer:
    """CLIP's tokenizer over the characters: a word is spelled. As in the published one, the end has the last id."""
    characters = string.ascii_lowercase + string.digits + "!,."
    words = [*characters, *(character + "</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=TEXT_LENGTH, pad_token=pad
    )


def _seed(source: str, seed: int) -> None:
    digest = hashlib.blake2b(f"{source}/{seed}".encode(), digest_size=6).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def _unet(config: dict) -> diffusers.UNet2DConditionModel:
    """A published configuration with its widths and depths cut."""
    blocks = len(config["block_out_channels"])
    small = {
        "sample_size": LATENT,
        "block_out_channels": (8, 16, 16, 16)[:blocks],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2 if isinstance(config["attention_head_dim"], int) else (1, 2, 2, 2)[:blocks],
        "cross_attention_dim": WIDTH,
    }
    if "addition_embed_type" in config:
        small |= {
            "cross_attention_dim": 2 * WIDTH,
            "transformer_layers_per_block": (1, 1, 2),
            "addition_time_embed_dim": TIME_DIM,
            "projection_class_embeddings_input_dim": 6 * TIME_DIM + WIDTH,
        }
    if "time_cond_proj_dim" in config:
        small["time_cond_proj_dim"] = GUIDANCE_DIM
    return diffusers.UNet2DConditionModel(**config | small)


def _vae(config: dict) -> diffusers.AutoencoderKL:
    small = {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8 * LATENT}
    return diffusers.AutoencoderKL(**config | small)


def _text(kind: type, config: dict):
    words = tokenizer()
    small = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": WIDTH,
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": words.bos_token_id,
    }
    return kind(transformers.CLIPTextConfig(**config | small))


def _save_pipeline(name: str, folder: Path, source: str, seed: int) -> None:
    _seed(source, seed)
    two = full.UNETS[name].get("addition_embed_type") is not None
    schedulers = {"sd-turbo": full.SD_TURBO_SCHEDULER, "sdxl-turbo": full.TURBO_SCHEDULER, "sdxl": full.SDXL_SCHEDULER}
    scheduler = schedulers.get(name, full.LCM_SCHEDULER)
    _unet(full.UNETS[name]).save_pretrained(folder / "unet")
    _vae(full.SDXL_VAE if two else full.VAE).save_pretrained(folder / "vae")
    getattr(diffusers, scheduler["_class_name"]).from_config(scheduler).save_pretrained(folder / "scheduler")
    first = full.CLIP_H if name == "sd-turbo" else full.CLIP_L
    _text(transformers.CLIPTextModel, first).save_pretrained(folder / "text_encoder")
    tokenizer("!" if name == "sd-turbo" else "<|endoftext|>").save_pretrained(folder / "tokenizer")
    index = {
        "_class_name": f"StableDiffusion{'XL' * two}Pipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if two:
        _text(transformers.CLIPTextModelWithProjection, full.CLIP_G).save_pretrained(folder / "text_encoder_2")
        tokenizer("!").save_pretrained(folder / "tokenizer_2")
        index |= {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": True,
        }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _save_pixart(name: str, folder: Path, source: str, seed: int) -> None:
    _seed(source, seed)
    small = {"sample_size": LATENT, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": WIDTH // 2}
    small |= {"cross_attention_dim": WIDTH, "caption_channels": WIDTH}
    diffusers.PixArtTransformer2DModel(**full.PIXART_512 | small).save_pretrained(folder / "transformer")
    _vae(full.VAE).save_pretrained(folder / "vae")
    diffusers.DPMSolverMultistepScheduler.from_config(full.PIXART_SCHEDULER).save_pretrained(folder / "scheduler")
    characters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    characters += [(character, -3.0) for character in string.ascii_lowercase + string.digits + "!,."]
    words = transformers.T5Tokenizer(vocab=characters, extra_ids=0, model_max_length=120)
    words.save_pretrained(folder / "tokenizer")
    small = {"d_model": WIDTH, "d_kv": WIDTH // 2, "d_ff": 2 * WIDTH, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(**full.T5_XXL | small | {"vocab_size": len(words)})
    transformers.T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    index = {
        "_class_name": "PixArtAlphaPipeline",
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _save_network(name: str, folder: Path, source: str, seed: int) -> None:
    _seed(source, seed)
    unet = _unet(full.UNETS[name])
    repository, file = split(source)
    if not file:
        unet.save_pretrained(folder / repository)
        return
    (folder / repository).mkdir(parents=True, exist_ok=True)
    torch.save(unet.half().state_dict(), folder / source)


def _save_lora(folder: Path, source: str, seed: int) -> None:
    _seed(source, seed)
    unet = _unet(full.SDXL_UNET)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))
    repository, file = split(source)
    diffusers.StableDiffusionXLPipeline.save_lora_weights(
        folder / repository, unet_lora_layers=get_peft_model_state_dict(unet), weight_name=file
    )
