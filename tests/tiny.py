"""A random pipeline in the pocket's layout, small enough for tests: 32x32 pictures, latents 4x8x8."""

import json
import zlib
from pathlib import Path

import diffusers
import torch
import transformers
from PIL import Image

PROMPTS = ["a cat", "a dog", "two cats", "a red colored dog", "a dog on the moon", "a cat in the snow"]
TEXT_LENGTH = 8
SCHEDULER = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
}


def tokenizer() -> transformers.CLIPTokenizer:
    """CLIP's tokenizer over the letters: a word is spelled."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocab = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TEXT_LENGTH)


def build(folder: Path, seed: int = 0, scheduler: dict = SCHEDULER) -> Path:
    """Write a random pipeline folder and return it."""
    torch.manual_seed(seed)
    words = tokenizer()
    words.save_pretrained(folder / "tokenizer")
    text = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    transformers.CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=False,
        scaling_factor=0.9,
    ).save_pretrained(folder / "vae")
    diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def picture(path: Path, seed: int) -> None:
    """Write a random picture of the tiny model's size."""
    values = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(seed))
    Image.fromarray((values * 255).byte().numpy()).save(path)


def brightness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A reward that needs no weights."""
    return images.mean((1, 2, 3))


def taste(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A reward that needs no weights, in which each prompt has a taste of its own for colours, and a level."""
    assert len(images) == len(prompts)
    likes = [torch.randn(4, generator=torch.Generator().manual_seed(zlib.crc32(p.encode()))) for p in prompts]
    likes = torch.stack(likes).to(images.device)
    return 20 * (likes[:, :3] * (images.mean((2, 3)) - 0.5)).sum(1) + likes[:, 3]
