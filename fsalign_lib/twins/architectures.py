"""Hold the configurations of the published models, for planning without weights, and for small twins.

Each dictionary holds the fields of a published config.json that differ from the defaults of its class in diffusers or
transformers. `SOURCES` says where each was read: in public copies of the files, since the hub could not be asked.
Loading a model reads the configuration that lies beside its weights, and nothing from here.
"""

from collections.abc import Sequence

import diffusers
import torch
import transformers
from torch import nn

from fsalign_lib.models.conditioning import ClipText, Conditioning, T5Text, TwoClipText
from fsalign_lib.models.latent_model import LatentModel, vae_factor
from fsalign_lib.models.presets import PRESETS
from fsalign_lib.rewards.aesthetic import AestheticReward, published_mlp
from fsalign_lib.rewards.clip import CLIPReward
from fsalign_lib.rewards.imagereward import ImageReward
from fsalign_lib.rewards.preprocess import HPS, OPENAI, PICKSCORE

SOURCES = {
    "sd-2.1-base": "config.json files of a copy of stabilityai/stable-diffusion-2-1-base, which SD-Turbo is made from",
    "sd-1.5": "public projects that carry the fields of its UNet, and of the LCM's, with its guidance embedding of 256",
    "sdxl": "config.json files of a copy of stabilityai/sdxl-turbo, and of projects that build on SDXL base",
    "pixart-alpha": "public projects that carry the fields of its parts; the betas also in DI++ App. C",
    "rewards": "public configurations of open_clip's ViT-H-14, OpenAI's ViT-L/14, and BLIP's ViT-L with BERT base",
}

SD_BLOCKS = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
}
SD21_UNET = SD_BLOCKS | {
    "sample_size": 64,
    "attention_head_dim": (5, 10, 20, 20),  # in diffusers' UNets the number of heads
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
LCM_SD15_UNET = SD_BLOCKS | {
    "sample_size": 96,  # 768 px, in its config.json, though SD 1.5's is 64
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "time_cond_proj_dim": 256,
}
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,  # 6 x 256 + 1280
}
UNETS = {
    "sd-turbo": SD21_UNET,
    "lcm-dreamshaper-v7": LCM_SD15_UNET,
    "sdxl": SDXL_UNET,
    "sdxl-turbo": SDXL_UNET | {"sample_size": 64},
    "sdxl-dmd2": SDXL_UNET,
    "sdxl-dmd2-lora": SDXL_UNET,
    "sdxl-dmd2-1step": SDXL_UNET,
    "sdxl-lcm": SDXL_UNET | {"time_cond_proj_dim": 256},
    "sdxl-lcm-lora": SDXL_UNET,
}

PIXART_512 = {
    "sample_size": 64,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
SDXL_VAE = VAE | {"scaling_factor": 0.13025, "sample_size": 1024}

# CLIP ViT-L/14's text encoder (SD 1.5, SDXL's first), OpenCLIP ViT-H/14's without its last layer (SD 2.1), and OpenCLIP
# ViT-bigG/14's (SDXL's second).
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_L = CLIP_L | {"hidden_act": "quick_gelu", "projection_dim": 768, "eos_token_id": 2, "pad_token_id": 1}
CLIP_H = CLIP_H | {"hidden_act": "gelu", "projection_dim": 512, "eos_token_id": 2, "pad_token_id": 1}
CLIP_G = CLIP_G | {"hidden_act": "gelu", "projection_dim": 1280, "eos_token_id": 2, "pad_token_id": 1}

BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
TURBO_SCHEDULER = BETAS | {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
SD_TURBO_SCHEDULER = BETAS | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
SDXL_SCHEDULER = BETAS | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
PIXART_SCHEDULER = BETAS | {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
LCM_SCHEDULER = BETAS | {"_class_name": "LCMScheduler", "original_inference_steps": 50}
SCHEDULERS = {
    "sd-turbo": SD_TURBO_SCHEDULER,
    "sdxl-turbo": TURBO_SCHEDULER,
    "lcm-dreamshaper-v7": LCM_SCHEDULER,
    "pixart-alpha": PIXART_SCHEDULER,
}  # the others have SDXL's, or what their preset says

# The rewards' towers: CLIP ViT-H-14 (CLIP score, PickScore, HPS), CLIP ViT-L/14 (Aesthetic), BLIP (ImageReward).
CLIP_H_VISION = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
CLIP_H_VISION |= {"patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu"}
CLIP_H_TEXT = CLIP_H | {"num_hidden_layers": 24, "projection_dim": 1024}
CLIP_L_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
BLIP_VISION = CLIP_L_VISION | {"patch_size": 16, "image_size": 224}
CLIP_L_VISION |= {"patch_size": 14, "projection_dim": 768}
BLIP_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BLIP_TEXT |= {"vocab_size": 30524, "encoder_hidden_size": 1024, "is_decoder": True}
PREPROCESS = {"pickscore": PICKSCORE, "clipscore": OPENAI, "hps": HPS, "hps-2.1": HPS}


def meta_unet(name: str) -> nn.Module:
    """Build the UNet (or transformer) of a preset at its full size, without memory for its weights.

    Raises:
        ValueError: a preset whose configuration is not known here.
    """
    if name == "pixart-alpha":
        with torch.device("meta"):
            return diffusers.PixArtTransformer2DModel(**PIXART_512)
    if name not in UNETS:
        raise ValueError(f"no full-size configuration of {name!r}: choose from {', '.join(UNETS)}, pixart-alpha")
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**UNETS[name])


class BlankTokenizer:
    """Make token ids that are all zero: on the meta device, where they have no values, unless another is set."""

    def __init__(self, length: int):
        self.model_max_length, self.device = length, "meta"

    def __call__(self, prompts: list[str], **_) -> transformers.BatchEncoding:
        ids = torch.zeros(len(prompts), self.model_max_length, dtype=torch.long, device=self.device)
        return transformers.BatchEncoding({"input_ids": ids, "attention_mask": ids})


class MetaT5Text(T5Text):
    """Return what T5 would, without calling it: it looks into the mask, where a meta tensor has no values."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return embeddings and mask of prompts, of the shapes that T5 gives."""
        mask = self.tokenizer(list(prompts)).attention_mask
        width, dtype = self.encoder.config.d_model, self.encoder.dtype
        return Conditioning(torch.empty(*mask.shape, width, dtype=dtype, device="meta"), {"mask": mask})


def meta_model(name: str, dtype: torch.dtype = torch.float32) -> LatentModel:
    """Build a published model at its full size, without memory for its weights: only shapes come out of it.

    Raises:
        ValueError: a preset whose configuration is not known here.
    """
    unet, preset = meta_unet(name), PRESETS[name]
    with torch.device("meta"):
        two = "addition_embed_type" in UNETS.get(name, {})
        vae = diffusers.AutoencoderKL(**(SDXL_VAE if two else VAE))
        if name == "pixart-alpha":
            encoders = [transformers.T5EncoderModel(transformers.T5Config(**T5_XXL))]
        else:
            first = CLIP_H if name == "sd-turbo" else CLIP_L
            encoders = [transformers.CLIPTextModel(transformers.CLIPTextConfig(**first))]
        if two:
            encoders.append(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP_G)))
    for network in (unet, vae, *encoders):
        nn.Module.to(network, dtype)  # diffusers' own warns of nothing
    size = unet.config.sample_size * vae_factor(vae)
    words = BlankTokenizer(T5Text.length if name == "pixart-alpha" else 77)
    if two:
        text = TwoClipText(tuple(encoders), (words, words), size)
    else:
        text = (MetaT5Text if name == "pixart-alpha" else ClipText)(encoders[0], words)
    config = SCHEDULERS.get(name, SDXL_SCHEDULER) | preset.scheduler
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    return LatentModel(name, unet, vae, text, scheduler, preset, size)


def meta_reward(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build a published reward at its full size, without memory for its weights.

    Raises:
        ValueError: a reward whose configuration is not known here.
    """
    with torch.device("meta"):
        if name in PREPROCESS:
            config = transformers.CLIPConfig(text_config=CLIP_H_TEXT, vision_config=CLIP_H_VISION, projection_dim=1024)
            return CLIPReward(transformers.CLIPModel(config).to(dtype), BlankTokenizer(77), PREPROCESS[name])
        if name == "aesthetic":
            vision = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CLIP_L_VISION))
            return AestheticReward(vision.to(dtype), mlp=published_mlp(768), preprocess=OPENAI).eval()
        if name == "imagereward":
            configs = transformers.BlipVisionConfig(**BLIP_VISION), transformers.BlipTextConfig(**BLIP_TEXT)
            mlp = published_mlp(BLIP_TEXT["hidden_size"])
            return ImageReward(*configs, BlankTokenizer(35), mlp=mlp, preprocess=OPENAI).towers(dtype)
    known = ", ".join((*PREPROCESS, "aesthetic", "imagereward"))
    raise ValueError(f"no full-size configuration of the reward {name!r}: choose from {known}")
