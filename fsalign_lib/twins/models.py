"""Write the twins of the published models."""

import io
import json
import string
from pathlib import Path

import diffusers
import sentencepiece
import torch
import transformers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from fsalign_lib.models.presets import FP16_VAE, PRESETS, SDXL, split
from fsalign_lib.twins import architectures as full
from fsalign_lib.twins.vocabulary import clip_vocabulary, seed_by

TEXT_LENGTH = 12  # tokens; 77 at full size
WIDTH = 16  # of a text encoder
LATENT = 8  # latents along a side
TIME_DIM, GUIDANCE_DIM = 8, 16


def save_twin(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the repositories of one preset; those that several presets share come out the same for each.

    Returns:
        the folder, to be given to `models.load.load` as `hub`.

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
            seed_by(preset.vae, seed)
            _vae(full.SDXL_VAE | {"force_upcast": False}).save_pretrained(folder / preset.vae)
        if preset.network is not None:
            _save_network(name, folder, preset.network, seed)
        if preset.lora is not None:
            _save_lora(folder, preset.lora, seed)
    return folder


def tokenizer(pad: str = "<|endoftext|>") -> transformers.CLIPTokenizer:
    """Build CLIP's tokenizer without its merges: a word is spelled."""
    return transformers.CLIPTokenizer(vocab=clip_vocabulary(), merges=[], model_max_length=TEXT_LENGTH, pad_token=pad)


def _unet(config: dict) -> diffusers.UNet2DConditionModel:
    """Cut widths and depths of a published configuration."""
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
    seed_by(source, seed)
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
    seed_by(source, seed)
    small = {"sample_size": LATENT, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": WIDTH // 2}
    small |= {"cross_attention_dim": WIDTH, "caption_channels": WIDTH}
    diffusers.PixArtTransformer2DModel(**full.PIXART_512 | small).save_pretrained(folder / "transformer")
    _vae(full.VAE).save_pretrained(folder / "vae")
    diffusers.DPMSolverMultistepScheduler.from_config(full.PIXART_SCHEDULER).save_pretrained(folder / "scheduler")
    words = _save_t5_words(folder / "tokenizer")
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


def _save_t5_words(folder: Path) -> transformers.T5Tokenizer:
    """Write T5's tokenizer in the published form, SentencePiece's own file, over the characters."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(string.ascii_lowercase + string.digits + "!,.")] * 4),
        model_writer=model,
        vocab_size=45,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "T5Tokenizer",
        "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)],
        "extra_ids": 100,
        "model_max_length": 512,
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return transformers.T5Tokenizer.from_pretrained(folder)


def _save_network(name: str, folder: Path, source: str, seed: int) -> None:
    seed_by(source, seed)
    unet = _unet(full.UNETS[name])
    repository, file = split(source)
    if not file:
        unet.save_pretrained(folder / repository)
        return
    (folder / repository).mkdir(parents=True, exist_ok=True)
    torch.save(unet.half().state_dict(), folder / source)


def _save_lora(folder: Path, source: str, seed: int) -> None:
    seed_by(source, seed)
    unet = _unet(full.SDXL_UNET)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))
    repository, file = split(source)
    diffusers.StableDiffusionXLPipeline.save_lora_weights(
        folder / repository, unet_lora_layers=get_peft_model_state_dict(unet), weight_name=file
    )
