r"""The models by name, as data: which repository each part comes from, at which revision, and how it is sampled.

| preset | sampler | times | prediction, guidance |
| --- | --- | --- | --- |
| sd-turbo, sdxl-turbo | Euler ancestral | trailing: 999, 749, 499, 249 | eps, none |
| sdxl-dmd2, sdxl-dmd2-lora | renoise | 999, 749, 499, 249 | eps, none |
| sdxl-dmd2-1step | renoise | 399, the only one | eps, none |
| sdxl-lcm, lcm-dreamshaper-v7 | renoise | LCM's: 999, 759, 499, 259 | eps and boundary scalings, 8 embedded |
| sdxl, pixart-alpha | DDIM | trailing | eps, classifier-free 5 and 4.5 (the pipelines' defaults) |

`edm.denoise` gives a model in the form of EDM, in which DI++ uses PixArt-alpha.

Repositories are read from the hub, or from a folder in the hub's layout, <folder>/<owner>/<repository>, that the
environment variable FSALIGN_HUB or the argument `hub` of `models.load` names.
"""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors

POCKET = Path(__file__).parent / "pocket" / "weights"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"  # SDXL's own overflows in half precision
DMD2 = "tianweiy/DMD2"

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

# Commits on the hub. Where this was written the hub could not be asked; these are the ones that several independent
# public projects pin or name in their cache paths. A repository without one is read at its main branch, with a warning.
REVISIONS = {
    "stabilityai/sd-turbo": "b261bac6fd2cf515557d5d0707481eafa0485ec2",
    "stabilityai/sdxl-turbo": "71153311d3dbb46851df1931d3ca6e939de83304",
    SDXL: "462165984030d82259a11f4367a4eed129e94a7b",
    FP16_VAE: "207b116dae70ace3637169f1ddd2434b91b3a8cd",
    DMD2: "be22767697a1f3ca656b73c776e15fa335c86c6c",
    "SimianLuo/LCM_Dreamshaper_v7": "a85df6a8bd976cdd08b4fd8f3b73f229c9e54df5",
    "PixArt-alpha/PixArt-XL-2-512x512": "50f702106901db6d0f8b67eb88e814c56ded2692",
}

# diffusers' LCMScheduler on DMD2's grid: with 1000 origin steps it takes every (1000 / N)-th time, 999 the first.
DMD2_SCHEDULER = {"_class_name": "LCMScheduler", "original_inference_steps": 1000}
LCM_SCHEDULER = {"_class_name": "LCMScheduler", "original_inference_steps": 50}


@dataclass(frozen=True)
class Preset:
    """Where a model's parts come from, and how it is sampled.

    A source is a repository "owner/name", or a file in one, "owner/name/file". A Path is a folder on this machine.
    """

    pipeline: str | Path  # in diffusers' pipeline layout
    branch: str = ""  # a subfolder for unet and scheduler, where several models share the other parts
    network: str | None = None  # in place of the pipeline's unet
    lora: str | None = None  # merged into the unet
    vae: str | None = None  # in place of the pipeline's
    scheduler: dict[str, Any] = field(default_factory=dict)  # over the pipeline's scheduler configuration
    kernel: str | None = None  # None: the scheduler's
    timesteps: tuple[int, ...] | None = None  # the only times that it can be sampled at
    guidance: float = 1.0


PRESETS = {
    "pocket-turbo": Preset(POCKET, branch="student", kernel="euler-ancestral"),
    "pocket-teacher": Preset(POCKET, branch="teacher", kernel="ddim"),
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
    "lcm-dreamshaper-v7": Preset(
        "SimianLuo/LCM_Dreamshaper_v7", scheduler=LCM_SCHEDULER, kernel="renoise", guidance=8.0
    ),
    "sdxl": Preset(SDXL, vae=FP16_VAE, kernel="ddim", guidance=5.0),
    "pixart-alpha": Preset("PixArt-alpha/PixArt-XL-2-512x512", kernel="ddim", guidance=4.5),
}


def split(source: str) -> tuple[str, str]:
    """A source as (repository, file); the file is "" for a whole repository."""
    owner, name, *file = source.split("/", 2)
    return f"{owner}/{name}", "".join(file)


def local_hub(hub: str | Path | None) -> Path | None:
    hub = hub or os.environ.get("FSALIGN_HUB")
    return Path(hub) if hub else None


def how_to_get(source: str, hub: Path | None) -> str:
    """The command that fetches a source."""
    repository, file = split(source)
    revision = f" --revision {REVISIONS[repository]}" if repository in REVISIONS else ""
    target = f" --local-dir {hub / repository}" if hub else ""
    return f"hf download {repository}{' ' + file if file else ''}{revision}{target}"


def locate(name: str, source: str, hub: Path | None, patterns: list[str]) -> Path:
    """The file or folder on this machine that holds a source, downloaded if there is no local hub.

    Args:
        name: of the model, for messages.
        patterns: the files of a repository that are wanted, such as "unet/*.json".

    Raises:
        FileNotFoundError: it is not in the local hub, not on the hub, or the hub cannot be reached.
        PermissionError: its owner asks for consent first.
    """
    repository, file = split(source)
    get = how_to_get(source, hub)
    if hub is not None:
        path = hub / repository / file
        if not path.exists():
            raise FileNotFoundError(f"model {name!r} needs {source}, which is not in {hub}: get it with {get}")
        return path
    revision = REVISIONS.get(repository)
    if revision is None:
        warnings.warn(f"model {name!r}: {repository} has no pinned revision and is read at main", stacklevel=3)
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=[file] if file else patterns, ignore_patterns=["*.fp16.*"]
        )
    except errors.GatedRepoError:
        raise PermissionError(
            f"model {name!r}: the owner of {repository} asks for consent: give it on its page of the hub, then "
            "run hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"model {name!r}: {repository} has no revision {revision}: set another one in presets.REVISIONS"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"model {name!r}: the hub has no {repository}, or it is private: put a copy into <folder>/{repository} "
            "and set FSALIGN_HUB=<folder>"
        ) from None
    except OSError as error:
        raise FileNotFoundError(
            f"model {name!r} needs {source}, and the hub cannot be reached ({type(error).__name__}): run {get} where "
            f"it can, or put a copy into <folder>/{repository} and set FSALIGN_HUB=<folder>"
        ) from None
    return Path(folder) / file
