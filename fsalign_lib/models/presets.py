r"""List the models by name, as data: which repository each part comes from, and how it is sampled.

| preset | sampler | times | prediction, guidance |
| --- | --- | --- | --- |
| sd-turbo, sdxl-turbo | Euler ancestral | trailing: 999, 749, 499, 249 | eps, none |
| sdxl-dmd2, sdxl-dmd2-lora | renoise | 999, 749, 499, 249 | eps, none |
| sdxl-dmd2-1step | renoise | 399, the only one | eps, none |
| sdxl-lcm, lcm-dreamshaper-v7 | renoise | LCM's: 999, 759, 499, 259 | eps and boundary scalings, 8 embedded |
| sdxl-lcm-lora | renoise | LCM's | eps and boundary scalings, none |
| sdxl, pixart-alpha | DDIM | trailing | eps, classifier-free 5 and 4.5 (the pipelines' defaults) |

`edm.denoise` gives a model in the form of EDM, in which DI++ uses PixArt-alpha.

`hub` says at which commit each repository is read, and from where.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POCKET = Path(__file__).parents[1] / "pocket" / "weights"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"  # SDXL's own overflows in half precision
DMD2 = "tianweiy/DMD2"
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name for it

# The sampler that a pipeline's scheduler stands for; other multi-step schedulers are served by DDIM.
SCHEDULERS = {
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "LCMScheduler": "renoise",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddim",
    "PNDMScheduler": "ddim",
    "EulerDiscreteScheduler": "ddim",
    "DPMSolverMultistepScheduler": "ddim",
}

# In a folder that was written here: the model's kernel, times and guidance as JSON, and a LoRA's base.
SAMPLING = "sampling.json"

# diffusers' LCMScheduler on DMD2's grid: with 1000 origin steps it takes every (1000 / N)-th time, 999 the first.
DMD2_SCHEDULER = {"_class_name": "LCMScheduler", "original_inference_steps": 1000}
LCM_SCHEDULER = {"_class_name": "LCMScheduler", "original_inference_steps": 50}


@dataclass(frozen=True)
class Preset:
    """Say where a model's parts come from, and how it is sampled.

    A source is a repository "owner/name", or a file in one, "owner/name/file". A Path is on this machine.
    """

    pipeline: str | Path  # in diffusers' pipeline layout
    branch: str = ""  # a subfolder for unet and scheduler, where several models share the other parts
    network: str | None = None  # in place of the pipeline's unet
    lora: str | Path | None = None  # merged into the unet
    vae: str | None = None  # in place of the pipeline's
    scheduler: dict[str, Any] = field(default_factory=dict)  # over the pipeline's scheduler configuration
    kernel: str | None = None  # None: the scheduler's
    timesteps: tuple[int, ...] | None = None  # the only times that it can be sampled at
    guidance: float = 1.0


PRESETS = {
    "pocket-turbo": Preset(POCKET, branch="student", kernel="euler-ancestral"),
    "pocket-teacher": Preset(POCKET, branch="teacher", kernel="ddim"),
    "pocket-renoise": Preset(POCKET, branch="student", kernel="renoise"),  # pocket-turbo's weights, sampled as DMD2's
    "pocket-lcm": Preset(
        POCKET, branch="teacher", lora=POCKET / "lcm-lora" / LORA_FILE, scheduler=LCM_SCHEDULER, kernel="renoise"
    ),
    "pocket-dmd-lora": Preset(
        POCKET, branch="teacher", lora=POCKET / "dmd-lora" / LORA_FILE, scheduler=DMD2_SCHEDULER, kernel="renoise"
    ),
    # Diff-Instruct's generator: one time, that of the noise level nearest edm.SIGMA_INIT.
    "pocket-one-step": Preset(POCKET, branch="one-step", kernel="euler-ancestral", timesteps=(625,)),
    # Those below are loaded by the same code and tested on small random twins; their weights were not run.
    "sd-turbo": Preset("stabilityai/sd-turbo", kernel="euler-ancestral"),
    "sdxl-turbo": Preset("stabilityai/sdxl-turbo", vae=FP16_VAE, kernel="euler-ancestral"),
    "sdxl-dmd2": Preset(
        SDXL, network=f"{DMD2}/dmd2_sdxl_4step_unet_fp16.bin", vae=FP16_VAE, scheduler=DMD2_SCHEDULER, kernel="renoise"
    ),
    "sdxl-dmd2-lora": Preset(
        SDXL,
        lora=f"{DMD2}/dmd2_sdxl_4step_lora_fp16.safetensors",
        vae=FP16_VAE,
        scheduler=DMD2_SCHEDULER,
        kernel="renoise",
    ),
    "sdxl-dmd2-1step": Preset(
        SDXL,
        network=f"{DMD2}/dmd2_sdxl_1step_unet_fp16.bin",
        vae=FP16_VAE,
        scheduler=DMD2_SCHEDULER,
        kernel="renoise",
        timesteps=(399,),
    ),
    "sdxl-lcm": Preset(
        SDXL,
        network="latent-consistency/lcm-sdxl",
        vae=FP16_VAE,
        scheduler=LCM_SCHEDULER,
        kernel="renoise",
        guidance=8.0,
    ),
    "sdxl-lcm-lora": Preset(
        SDXL,
        lora=f"latent-consistency/lcm-lora-sdxl/{LORA_FILE}",
        vae=FP16_VAE,
        scheduler=LCM_SCHEDULER,
        kernel="renoise",
    ),
    "lcm-dreamshaper-v7": Preset(
        "SimianLuo/LCM_Dreamshaper_v7", scheduler=LCM_SCHEDULER, kernel="renoise", guidance=8.0
    ),
    "sdxl": Preset(SDXL, vae=FP16_VAE, kernel="ddim", guidance=5.0),
    "pixart-alpha": Preset("PixArt-alpha/PixArt-XL-2-512x512", kernel="ddim", guidance=4.5),
}


def split(source: str) -> tuple[str, str]:
    """Split a source into (repository, file); the file is "" for a whole repository."""
    owner, name, *file = source.split("/", 2)
    return f"{owner}/{name}", "".join(file)
