"""Build the pocket world's weights: `python -m fsalign_lib.pocket.build`.

Stages run in order, each from a seed. A stage keeps its training state in `work` and goes on from there after a stop;
a finished one is quick to run again. `--stages` picks some, so that two of them can run side by side.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import tyro
from peft import get_peft_model_state_dict

from fsalign_lib.pocket import autoencoder, clip, data, lcm, networks, rewards, selfsup, student, teacher
from fsalign_lib.pocket import classifiers as judges
from fsalign_lib.pocket.refusals import refusals
from fsalign_lib.pocket.weights import WEIGHTS

STAGES = (
    *("autoencoder", "teacher", "student", "lcm", "dmd-lora", "eye", "classifier", "clip"),
    *("pickscore", "imagereward", "aesthetic", "hps", "selfsup"),
)
# Networks that must not share randomness have seeds of their own, all derived from the build's.
OFFSET = {"autoencoder": 1, "teacher": 2, "student": 3, "eye": 4, "classifier": 5, "clip": 6, "rewards": 7, "hps": 8}
OFFSET |= {"lcm": 13, "dmd-lora": 3}  # this LoRA and the student learn from the same paths of the teacher
OFFSET |= {"selfsup": 9}


@dataclass
class Build:
    """Train the pocket world's networks and write their weights."""

    stages: tuple[str, ...] = STAGES
    """Which stages to run, in order."""
    seed: int = 0
    work: Path = Path("build/pocket")
    """Training states and pictures, not shipped."""
    out: Path = WEIGHTS
    """Where the weights go."""


def check(config: Build) -> None:
    """Raise a ValueError or an OSError for stages, a seed or folders that cannot be had."""
    unknown = [s for s in config.stages if s not in STAGES]
    if unknown:
        raise ValueError(f"unknown stage {unknown[0]!r}: choose from {', '.join(STAGES)}")
    if config.seed < 0:
        raise ValueError(f"seed = {config.seed}: expected 0 or more")
    for folder in (config.work, config.out):
        folder.mkdir(parents=True, exist_ok=True)


def save(model, folder: Path) -> None:
    """Write half-precision safetensors in the class's own `from_pretrained` layout."""
    copy.deepcopy(model).half().save_pretrained(folder, safe_serialization=True)
    config = folder / "config.json"
    if config.exists():  # a network that began as a copy of another would carry the folder that one was read from
        kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n")


def save_lora(unet, folder: Path) -> None:
    """Write a network's LoRA in half precision, in diffusers' layout: `load_lora_weights` reads it."""
    layers = {name: tensor.half().contiguous() for name, tensor in get_peft_model_state_dict(unet).items()}
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)


def run(config: Build) -> None:
    work, out = config.work, config.out
    tokenizer = networks.tokenizer()
    tokenizer.save_pretrained(out / "tokenizer")
    vocabulary = len(tokenizer)
    scheduler = {
        "_class_name": "EulerAncestralDiscreteScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }

    def seed(stage: str) -> int:
        return config.seed * 100 + OFFSET[stage]

    def scheduler_to(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")

    facts, pictures = data.load(work, config.seed)
    for stage in config.stages:
        print(f"stage {stage}", flush=True)
        if stage == "autoencoder":
            save(autoencoder.train(pictures, work, seed(stage)), out / "vae")
        elif stage == "teacher":
            vae = networks.load_vae(out)
            latents = autoencoder.cached_latents(vae, pictures, work)
            ids = teacher.token_ids(tokenizer, teacher.captions(facts, seed(stage)))
            empty = teacher.token_ids(tokenizer, [""])[0]
            nets = teacher.train(latents, ids, empty, vocabulary, work, seed(stage))
            save(nets["unet"], out / "teacher" / "unet")
            save(nets["text_encoder"], out / "text_encoder")
            scheduler_to(out / "teacher" / "scheduler")
        elif stage == "student":
            unet, text = networks.load_teacher(out)
            save(student.train(unet, text, tokenizer, work, seed(stage)), out / "student" / "unet")
            scheduler_to(out / "student" / "scheduler")
        elif stage == "lcm":
            latents = autoencoder.cached_latents(networks.load_vae(out), pictures, work)
            ids = teacher.token_ids(tokenizer, teacher.captions(facts, seed(stage)))
            empty = teacher.token_ids(tokenizer, [""])[0]
            save_lora(lcm.train(*networks.load_teacher(out), latents, ids, empty, work, seed(stage)), out / "lcm-lora")
        elif stage == "dmd-lora":
            unet, text = networks.load_teacher(out)
            save_lora(student.train(unet, text, tokenizer, work, seed(stage), student.DMD_LORA), out / stage)
        elif stage == "eye":
            save(judges.train_eye(pictures, facts, work, seed(stage)), out / "eye")
        elif stage == "classifier":
            own_facts, own_pictures = data.load(work, seed(stage), data.TRAIN // 2)
            save(judges.train_classifier(own_pictures, own_facts, work, seed(stage)), out / "classifier")
        elif stage == "clip":
            save(clip.train("clip", pictures, facts, tokenizer, work, seed("clip")), out / "clip")
        elif stage == "pickscore":
            given = (networks.load_clip(out, "clip"), pictures, facts, tokenizer, work, out, seed("rewards"))
            save(rewards.train_clip("pickscore", *given), out / "pickscore")
        elif stage == "hps":
            # From a contrastive network of its own, so that it errs differently from PickScore.
            base = clip.train("hps-base", pictures, facts, tokenizer, work, seed(stage))
            save(rewards.train_clip("hps", base, pictures, facts, tokenizer, work, out, seed("rewards")), out / "hps")
        elif stage == "imagereward":
            save(rewards.train_imagereward(pictures, facts, tokenizer, work, out, seed("rewards")), out / stage)
        elif stage == "aesthetic":
            save(rewards.train_aesthetic(pictures, facts, tokenizer, work, out, seed("rewards")), out / stage)
        elif stage == "selfsup":
            save(selfsup.train(pictures, work, seed(stage)), out / stage)


def main(argv: Sequence[str] | None = None) -> None:
    config = tyro.cli(Build, description=__doc__, args=argv)
    with refusals():
        check(config)
    run(config)


if __name__ == "__main__":
    torch.set_num_interop_threads(1)
    main()
