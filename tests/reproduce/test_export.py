"""Exported models are what was trained: in diffusers' own pipelines, on tiny twins of SD and SDXL."""

import json
import re
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from safetensors.torch import load_file

from fsalign_lib import twins
from fsalign_lib.models import load as models
from fsalign_lib.models.hub import REVISIONS
from fsalign_lib.models.presets import PRESETS
from fsalign_lib.rollout import rollout
from reproduce import export, train_online
from reproduce.common.files import last_checkpoint
from reproduce.recipes import make_config
from tests import tiny


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for name in ("sd-turbo", "sdxl-turbo"):
        twins.save_twin(name, folder)
    return folder


@pytest.fixture
def trained(hub, tmp_path, monkeypatch):
    """A run of one round, with adapters set to something that shows."""
    monkeypatch.setenv("FSALIGN_HUB", str(hub))
    (tmp_path / "prompts.txt").write_text("\n".join(tiny.PROMPTS))

    def make(name, **overrides):
        small = {"model": name, "prompts": str(tmp_path / "prompts.txt"), "rounds": 1, "pairs": 1, "minibatch": 1}
        small |= {"out": tmp_path / "run", "rank": 2, "lr": 1e-3}
        config = make_config(
            train_online.OnlineConfig, "pso-online", "full", **(small | {"dtype": "float32"} | overrides)
        )
        setup = train_online.prepare(config, reward=tiny.brightness)
        with torch.no_grad():
            for i, p in enumerate(setup.run.parameters):
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)), alpha=0.1)
        list(train_online.train(setup))
        setup.model.text = models.load(name).text  # the run has dropped its own
        setup.model.forget_prompts()
        return setup

    return make


def exported(setup, out, **overrides):
    export.run(export.prepare(export.ExportConfig(checkpoint=setup.config.out, out=out, **overrides)))
    return out


def predictions(pipe, setup):
    """Of the pipeline's UNet and of the trained model, on the same input."""
    model = setup.model
    x = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = model.encode_prompts(["a cat", "two dogs"])
    inputs = model.text.inputs(cond)
    with torch.no_grad():
        ours = model.predict_eps(x, 500, cond)
        theirs = pipe.unet(x, 500, **inputs).sample
    return ours, theirs


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo"])
@pytest.mark.parametrize("alpha", [None, 6])
def test_a_pipeline_with_the_exported_lora_is_the_trained_model(trained, hub, tmp_path, name, alpha):
    setup = trained(name, alpha=alpha)
    out = exported(setup, tmp_path / "export")
    kind = {"sd-turbo": diffusers.StableDiffusionPipeline, "sdxl-turbo": diffusers.StableDiffusionXLPipeline}[name]
    pipe = kind(**setup.model.text.components(), **parts(name))
    _, before = predictions(pipe, setup)
    pipe.load_lora_weights(out)
    ours, theirs = predictions(pipe, setup)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert (before - ours).abs().max() > 1e-2, "the adapter shows"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "pytorch_lora_weights.safetensors",
        "sampling.json",
    ]


def parts(name):
    fresh = models.load(name)
    return {"unet": fresh.unet, "vae": fresh.vae, "scheduler": fresh.scheduler}


def test_a_fully_trained_model_becomes_a_pipeline(trained, tmp_path):
    setup = trained("sd-turbo", training="full")
    out = exported(setup, tmp_path / "export")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    ours, theirs = predictions(pipe, setup)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert "All weights of `sd-turbo`" in (out / "README.md").read_text()


def test_the_card_tells_base_settings_and_metrics(trained, tmp_path):
    setup = trained("sdxl-turbo", beta=7.0)
    above = {"estimate": 0.5, "low": 0.25, "high": 0.75}
    scores = {"prompt_set": "parti", "steps": 4, "means": {"pickscore": 21.5}, "above_base": {"pickscore": above}}
    (setup.config.out / "evaluation.json").write_text(json.dumps({"results": [scores]}))
    text = (exported(setup, tmp_path / "export") / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == "stabilityai/sdxl-turbo" and "lora" in head["tags"]
    for repository in (PRESETS["sdxl-turbo"].pipeline, PRESETS["sdxl-turbo"].vae):
        assert f"| [{repository}](https://huggingface.co/{repository}), revision `{REVISIONS[repository]}` |" in text
    assert "| lr | 0.001 | given for this run; the recipe has 1e-05 |" in text
    assert "| clamp | 0.1 | published PSO code; not in the paper |" in text
    assert "| beta | 7.0 | given for this run; the recipe has 50.0 |" in text
    assert "| parti | 4 | pickscore | 21.5000 | +0.5000 [+0.2500, +0.7500] |" in text
    assert 'pipe.load_lora_weights(".")' in text and "the reward `pickscore`" in text
    assert "## Licence" in text


def test_what_cannot_be_exported(trained, hub, tmp_path, capsys):
    setup = trained("sd-turbo")
    run, out = setup.config.out, tmp_path / "export"

    def refused(*argv):
        with pytest.raises(SystemExit) as stopped:
            export.main([str(part) for part in argv])
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and told.count("error: ") == 1
        assert not out.exists()
        return told

    assert f"no checkpoint in {tmp_path}" in refused("--checkpoint", tmp_path, "--out", out)
    assert f"{run} holds something already: choose another" in refused("--checkpoint", run, "--out", run)
    other = twins.save_twin("sd-turbo", tmp_path / "other", seed=1) / PRESETS["sd-turbo"].pipeline
    told = refused("--checkpoint", run, "--out", out, "--model", other)
    assert "was trained from 'sd-turbo'" in told and "load the model that it belongs to" in told
    folder = last_checkpoint(run)
    tensors = load_file(folder / "trained.safetensors")
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()
    setup.model.save_adapter(folder, tensors)
    assert "trained nothing (its weights are those of sd-turbo)" in refused("--checkpoint", run, "--out", out)


# round trips


def checkpoint(name, folder, training):
    """What a run of this model would leave, with weights that are not those of its start."""
    model = models.load(name)
    model.add_lora(2, 6) if training == "lora" else model.train_all_weights(reference=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.trained_parameters().values():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    last = folder / "checkpoints" / "000003"
    last.mkdir(parents=True)
    model.save_adapter(last)
    steps = 4 if model.timesteps is None else len(model.timesteps)
    told = {"method": "pso-online", "scale": "pocket", "model": name, "steps": steps, "kernel": None, "rank": 2}
    (last / "state.json").write_text(json.dumps({"config": told | {"reward": "pickscore"}}))
    return model, last, steps


def draw(model, steps):
    kernel = model.sampler(steps)
    noise = torch.randn(1, steps + 1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    return kernel, model.decode(rollout(model, kernel, model.encode_prompts(["a cat"]), noise).final)


def same_model(one, other, steps):
    """Sampler, times, guidance, prediction type, and the picture that comes of the same noise."""
    (kernel, picture), (again, drawn) = draw(one, steps), draw(other, steps)
    assert type(kernel) is type(again) and torch.equal(kernel.timesteps, again.timesteps)
    assert one.sampling() == other.sampling() and one.prediction_type == other.prediction_type
    assert one.embeds_guidance == other.embeds_guidance
    torch.testing.assert_close(drawn, picture, atol=1e-3, rtol=1e-3)


def on_hub(name, folder, monkeypatch):
    if not isinstance(PRESETS[name].pipeline, Path):
        monkeypatch.setenv("FSALIGN_HUB", str(twins.save_twin(name, folder)))


# SDXL's family has one code: two of it are looked at in the quick suite.
QUICK = [name for name in PRESETS if "sdxl" not in name or name in ("sdxl-dmd2-1step", "sdxl-lcm")]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_what_is_exported_is_loaded_as_it_was_for_every_preset(name, tmp_path, monkeypatch):
    on_hub(name, tmp_path / "hub", monkeypatch)
    for training in ("full",) if name == "pixart-alpha" else ("full", "lora"):  # diffusers has no adapters for it
        model, last, steps = checkpoint(name, tmp_path / f"run-{training}", training)
        export.run(export.prepare(export.ExportConfig(checkpoint=last, out=tmp_path / training)))
        same_model(model, models.load(tmp_path / training), steps)


@pytest.mark.parametrize(
    "name,training", [("pocket-renoise", "lora"), ("sd-turbo", "lora"), ("sdxl-dmd2", "lora"), ("pixart-alpha", "full")]
)
def test_the_cards_code_runs_as_it_stands(name, training, tmp_path, monkeypatch):
    """In the folder of the export; published files lie where a download would put them."""
    on_hub(name, tmp_path / "hub", monkeypatch)
    model, last, steps = checkpoint(name, tmp_path / "run", training)
    export.run(export.prepare(export.ExportConfig(checkpoint=last, out=tmp_path / "export")))
    monkeypatch.chdir(tmp_path / "export")
    if (tmp_path / "hub" / "stabilityai").exists():
        (tmp_path / "export" / "stabilityai").symlink_to(tmp_path / "hub" / "stabilityai")
    ours, diffuser = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    found = {}
    exec(ours, found)
    sample = rollout(model, model.sampler(steps), model.encode_prompts(["a cat"]), found["noise"])
    expected = model.decode(sample.final)
    torch.testing.assert_close(found["pictures"], expected, atol=1e-3, rtol=1e-3)
    exec(diffuser, found)
    network = getattr(found["pipe"], model.text.network)
    x, cond = torch.randn(1, *model.latent_shape), model.encode_prompts(["a cat"])
    model.guidance_scale = 1.0
    inputs = model.text.inputs(cond)
    with torch.no_grad():
        t = torch.tensor([500])
        out = network(x, timestep=t, **inputs, return_dict=False)[0][:, : x.shape[1]]
        torch.testing.assert_close(out, model._forward(x, t, cond), atol=1e-3, rtol=1e-3)


def test_from_inside_the_folder_of_checkpoints(tmp_path, monkeypatch):
    """`--checkpoint 000003` names no folder above it."""
    _, last, _ = checkpoint("pocket-turbo", tmp_path / "run", "lora")
    scores = {"prompt_set": "animals", "steps": 4, "means": {"pickscore": 21.5}}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps({"results": [scores]}))
    monkeypatch.chdir(last.parent)
    export.run(export.prepare(export.ExportConfig(checkpoint=Path("000003"), out=tmp_path / "export")))
    assert "| animals | 4 | pickscore | 21.5000 |" in (tmp_path / "export" / "README.md").read_text()


def test_a_lora_without_its_base_is_refused(tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="holds a LoRA and no sampling.json with its base: load the base"):
        models.load(tmp_path)
