"""Export a trained model: a LoRA that diffusers' pipelines load, or a whole pipeline; with a model card.

python reproduce/export.py --checkpoint runs/pso --out export/pso

A LoRA becomes pytorch_lora_weights.safetensors, for `pipe.load_lora_weights(out)`. A model whose weights were all
trained becomes a pipeline folder, for `from_pretrained(out)`, and so does one whose pipeline loads no LoRA (PixArt),
with the LoRA merged in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from fsalign_lib.json_files import OPTIONAL, check_object, check_objects, read_json
from fsalign_lib.models import presets
from reproduce.common.cli import command_line
from reproduce.common.files import last_checkpoint, writable_folder, write_text

if TYPE_CHECKING:
    import torch

    from fsalign_lib.models.latent_model import LatentModel


@dataclass(kw_only=True)
class ExportConfig:
    """Write a trained model in the form that others load."""

    checkpoint: Path
    """Folder of a training run, or one of its checkpoints."""
    out: Path
    """A new folder."""
    model: str | None = None
    """Folder of the model that was trained, if it is no longer where the run found it."""


@dataclass
class Setup:
    """Hold a trained model, and what is known of its training."""

    config: ExportConfig
    model: LatentModel
    training: dict  # the run's configuration
    evaluation: list[dict]  # results of evaluate.py, if there are any


def prepare(config: ExportConfig) -> Setup:
    """Load the model and its trained weights.

    Raises:
        ValueError: the folder holds something, the weights belong to another model, or are as they were at the start.
        FileNotFoundError: no checkpoint.
    """
    import torch

    from fsalign_lib.models import load as models

    if config.out.exists() and (config.out.is_file() or any(config.out.iterdir())):
        raise ValueError(f"{config.out} holds something already: choose another --out")
    folder = (last_checkpoint(config.checkpoint) or config.checkpoint).resolve()  # from inside checkpoints/, too
    state = folder / "state.json"
    if not state.exists():
        raise FileNotFoundError(f"no checkpoint in {config.checkpoint}: name the folder of a training run")
    training = read_json(state, config=dict)["config"]
    text = dict.fromkeys(("model", "method", "scale"), str)
    check_object(f"config in {state}", training, **text, steps=int, rank=int, kernel=(str, OPTIONAL))
    model = models.load(config.model or training["model"], getattr(torch, training.get("dtype", "float32")))
    start = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    model.load_adapter(folder)
    if untouched(model, start):
        raise ValueError(f"{folder} trained nothing (its weights are those of {model.name}): train on, with more steps")
    writable_folder(config.out)
    scored = folder.parents[1] / "evaluation.json"
    evaluation = read_json(scored, results=list)["results"] if scored.exists() else []
    check_objects(f"results in {scored}", evaluation, prompt_set=str, steps=int, means=dict)
    return Setup(config, model, training, evaluation)


def untouched(model: LatentModel, start: dict[str, torch.Tensor]) -> bool:
    """Tell whether no trained weight moves the network: B = 0 in each adapter, or all weights as loaded."""
    import torch

    trained = model.trained_parameters()
    if model.training["training"] == "lora":
        return not any(p.any() for name, p in trained.items() if "lora_B" in name)
    return all(torch.equal(p, start[name]) for name, p in trained.items())


def run(setup: Setup) -> None:
    """Write the weights and the model card."""
    import diffusers

    out, model = setup.config.out, setup.model
    if leaves_as_lora(model):
        getattr(diffusers, model.text.pipeline).save_lora_weights(out, unet_lora_layers=lora_layers(model))
        model.write_sampling(out, base=base(setup))
    else:
        model.save_pretrained(out)
    write_text(out / "README.md", card(setup))
    print(f"Wrote {out}")


def base(setup: Setup) -> str:
    """Return what loads the base model: a preset's name, or where its folder is."""
    name = setup.config.model or setup.training["model"]
    return name if name in presets.PRESETS else str(Path(name).resolve())


def leaves_as_lora(model: LatentModel) -> bool:
    """Tell whether a LoRA was trained, and the model's pipeline loads such."""
    import diffusers

    pipeline = getattr(diffusers, model.text.pipeline)
    return model.training["training"] == "lora" and hasattr(pipeline, "save_lora_weights")


def lora_layers(model: LatentModel) -> dict[str, torch.Tensor]:
    """Return the adapter's A and (alpha / rank) B, so that a reader that takes alpha for the rank is right."""
    from peft.utils import get_peft_model_state_dict

    scale = model.training["alpha"] / model.training["rank"]
    layers = get_peft_model_state_dict(model.unet)
    return {name: (scale * t if "lora_B" in name else t).contiguous() for name, t in layers.items()}


def source(repository: str) -> str:
    """Link a source of a preset with its revision."""
    from fsalign_lib.models.hub import REVISIONS

    name, file = presets.split(repository)
    revision = REVISIONS.get(name)
    at = f", revision `{revision}`" if revision else ", no revision pinned"
    return f"[{name}](https://huggingface.co/{name})" + (f", file `{file}`" if file else "") + at


def base_parts(name: str) -> list[tuple[str, str]]:
    """List what the base model is made of: [(part, where it comes from)]."""
    preset = presets.PRESETS.get(name)
    if preset is None or isinstance(preset.pipeline, Path):
        return [("pipeline", f"`{name}`")]
    parts = {
        "pipeline": preset.pipeline,
        "UNet": preset.network,
        "LoRA merged in first": preset.lora,
        "VAE": preset.vae,
    }
    return [(part, source(where)) for part, where in parts.items() if where]


def usage(setup: Setup) -> str:
    """Write the lines of Python that draw a picture with the export, from within its folder."""
    training, more = setup.training, ""
    if training["kernel"] not in (None, setup.model.kernel):
        more = f', "{training["kernel"]}"'
    return f"""import torch

from fsalign_lib.models.load import load
from fsalign_lib.rollout import rollout

model = load(".")
cond, kernel = model.encode_prompts(["a cat"]), model.sampler({training["steps"]}{more})
noise = torch.randn(len(cond), kernel.num_steps + 1, *model.latent_shape)
pictures = model.decode(rollout(model, kernel, cond, noise).final)  # (1, 3, H, W) in [0, 1]"""


def usage_in_diffusers(setup: Setup) -> str:
    """Write the lines of Python that load the export into diffusers' pipeline, from within its folder."""
    from fsalign_lib.models.hub import REVISIONS

    pipeline, preset = setup.model.text.pipeline, presets.PRESETS.get(base(setup))
    if not leaves_as_lora(setup.model):
        return f'import diffusers\n\npipe = diffusers.{pipeline}.from_pretrained(".")'
    plain = preset is not None and not (preset.network or preset.lora or preset.vae)
    if plain and not isinstance(preset.pipeline, Path):
        revision = f', revision="{REVISIONS[preset.pipeline]}"' if preset.pipeline in REVISIONS else ""
        lines = ["import diffusers", "", f'pipe = diffusers.{pipeline}.from_pretrained("{preset.pipeline}"{revision})']
    else:  # of several parts, or none that diffusers knows: it is written as one pipeline first
        lines = ["import diffusers", "", "from fsalign_lib.models.load import load", ""]
        lines += [f'load("{base(setup)}").save_pretrained("base")']
        lines += [f'pipe = diffusers.{pipeline}.from_pretrained("base")']
    return "\n".join([*lines, 'pipe.load_lora_weights(".")'])


def settings_table(training: dict) -> str:
    """Write the table of the run's settings, each with where its value comes from."""
    from reproduce.recipes import recipe

    known = recipe(training["method"], training["scale"])
    lines = ["| setting | value | source |", "| --- | --- | --- |"]
    for name, value in training.items():
        if name in ("method", "scale", "model", "out", "resume"):
            continue
        taken, why = known.get(name, (None, "default"))
        if name in known and json.loads(json.dumps(taken, default=str)) != value:
            why = f"given for this run; the recipe has {taken}"
        lines.append(f"| {name} | {value} | {why} |")
    return "\n".join(lines)


def metrics_table(evaluation: list[dict]) -> str:
    """Write the table of the metrics that an evaluation found."""
    lines = ["| prompts | steps | metric | mean | above the base, 95% interval |", "| --- | --- | --- | --- | --- |"]
    for result in evaluation:
        for metric, mean in result["means"].items():
            above = result.get("above_base", {}).get(metric)
            difference = f"{above['estimate']:+.4f} [{above['low']:+.4f}, {above['high']:+.4f}]" if above else ""
            value = "" if mean is None else f"{mean:.4f}"
            lines.append(f"| {result['prompt_set']} | {result['steps']} | {metric} | {value} | {difference} |")
    return "\n".join(lines)


def against_what(training: dict) -> str:
    """Say what the run's loss held the model to."""
    if "pairs" in training and "reward" not in training:
        return f"the pairs in `{training['pairs']}`"
    reward = f"the reward `{training['reward']}`" if training["reward"] else ""
    teacher = f"the teacher `{training['teacher']}`" if "teacher" in training else ""
    return " and ".join(part for part in (teacher, reward) if part)


def card(setup: Setup) -> str:
    """Write the model card."""
    training = setup.training
    lora = setup.model.training["training"] == "lora"
    alone = leaves_as_lora(setup.model)
    parts = base_parts(training["model"])
    preset = presets.PRESETS.get(training["model"])
    hosted = preset is not None and not isinstance(preset.pipeline, Path)
    head = ["---", "library_name: diffusers", *([f"base_model: {preset.pipeline}"] if hosted else [])]
    head += ["tags:", "- text-to-image", *(["- lora"] if alone else []), f"- {training['method']}", "---"]
    against = against_what(training)
    what = f"A LoRA of rank {training['rank']} {'for' if alone else 'merged into'}" if lora else "All weights of"
    measured = (
        metrics_table(setup.evaluation)
        if setup.evaluation
        else "None were given: `reproduce/evaluate.py --checkpoint RUN --out RUN/evaluation.json` measures them."
    )
    sections = [
        "\n".join(head),
        f"# {training['model']}, aligned by {training['method']}",
        f"{what} `{training['model']}`, trained by `{training['method']}` on {against}, with fsalign.",
        "## Base model",
        "\n".join(["| part | from |", "| --- | --- |", *(f"| {part} | {where} |" for part, where in parts)]),
        "## Use",
        f"From within this folder, with the sampler and guidance of its training:\n\n```python\n{usage(setup)}\n```",
        f"Or in diffusers:\n\n```python\n{usage_in_diffusers(setup)}\n```",
        f"It was trained at {training['steps']} sampling steps"
        + (f" with the sampler {training['kernel'] or setup.model.kernel}."),
        "## Settings",
        settings_table(training),
        "## Metrics",
        measured,
        "## Licence",
        "These weights are derived from the base model: its licence holds for them too, and so do the terms of the "
        "prompts, pictures and reward that they were trained with. A reward is a model of preference, not the "
        "preference: look at the pictures before you use these weights.",
    ]
    return "\n\n".join(sections) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(ExportConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
