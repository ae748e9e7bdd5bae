"""The configurations of the published models, for counting and planning without their weights, and for small twins.

Each dictionary holds the fields of a published config.json that differ from the defaults of its class in diffusers or
transformers. `SOURCES` says where each was read: in public copies of the files, since the hub could not be asked.
Loading a model reads the configuration that lies beside its weights, and nothing from here.
"""

import diffusers
import torch
from torch import nn

SOURCES = {
    "sd-2.1-base": "config.json files of a copy of stabilityai/stable-diffusion-2-1-base, which SD-Turbo is made from",
    "sd-1.5": "public projects that carry the fields of its UNet, and of the LCM's, with its guidance embedding of 256",
    "sdxl": "config.json files of a copy of stabilityai/sdxl-turbo, and of projects that build on SDXL base",
    "pixart-alpha": "public projects that carry the fields of its parts; the betas also in DI++ App. C",
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
# The published sample_size of LCM_Dreamshaper_v7 was not seen; no weight depends on it.
LCM_SD15_UNET = SD_BLOCKS | {
    "sample_size": 64,
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


def meta_unet(name: str) -> nn.Module:
    """The UNet (or transformer) of a preset at its full size, without memory for its weights.

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
