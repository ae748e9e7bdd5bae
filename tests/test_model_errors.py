"""What is wrong with a model's files is said in one line: which file, what was expected, what to do."""

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from fsalign_lib import models, presets, twins
from fsalign_lib.presets import DMD2, FP16_VAE, PRESETS, SDXL


@pytest.fixture
def hub(tmp_path):
    for name in ("sdxl-dmd2", "sdxl-dmd2-lora"):
        twins.save_twin(name, tmp_path)
    return tmp_path


def told(kind, name, **options):
    with pytest.raises(kind) as caught:
        models.load(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_repository_that_is_not_there_names_the_command_that_gets_it(tmp_path):
    message = told(FileNotFoundError, "sdxl-turbo", hub=tmp_path)
    assert "model 'sdxl-turbo' needs stabilityai/sdxl-turbo, which is not in" in message
    assert "hf download stabilityai/sdxl-turbo --revision 71153311d3dbb46851df1931d3ca6e939de83304" in message
    assert f"--local-dir {tmp_path / 'stabilityai/sdxl-turbo'}" in message


def test_a_file_that_is_not_there(hub):
    (hub / DMD2 / "dmd2_sdxl_4step_unet_fp16.bin").unlink()
    assert f"hf download {DMD2} dmd2_sdxl_4step_unet_fp16.bin --revision" in told(
        FileNotFoundError, "sdxl-dmd2", hub=hub
    )
    assert "needs latent-consistency/lcm-sdxl, which is not in" in told(FileNotFoundError, "sdxl-lcm", hub=hub)


@pytest.mark.parametrize("part", ["scheduler", "text_encoder", "text_encoder_2", "tokenizer_2"])
def test_a_part_that_is_not_there(hub, part):
    (hub / SDXL / part).rename(hub / "elsewhere")
    assert f"has no {part}/" in told(FileNotFoundError, "sdxl-dmd2", hub=hub)


def test_no_network(monkeypatch):
    """The tests run offline: the real error of the library, not a made one."""
    monkeypatch.delenv("FSALIGN_HUB", raising=False)
    message = told(FileNotFoundError, "sd-turbo")
    assert "the hub cannot be reached" in message and "hf download stabilityai/sd-turbo --revision b261bac" in message
    assert "<folder>/stabilityai/sd-turbo and set FSALIGN_HUB=<folder>" in message


@pytest.mark.parametrize(
    "error,kind,expected",
    [
        (errors.RevisionNotFoundError, FileNotFoundError, "has no revision b261bac6fd2cf515557d5d0707481eafa0485ec2"),
        (errors.GatedRepoError, PermissionError, "asks for consent"),
        (errors.RepositoryNotFoundError, FileNotFoundError, "the hub has no stabilityai/sd-turbo, or it is private"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, error, kind, expected):
    def refuse(*_, **__):
        response = httpx2.Response(404, request=httpx2.Request("GET", "https://huggingface.co"))
        raise error("several\nlines", response=response)

    monkeypatch.delenv("FSALIGN_HUB", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert expected in told(kind, "sd-turbo")


def test_downloads_ask_for_the_pinned_revision_and_the_files_that_are_read(hub, monkeypatch):
    asked = {}

    def serve(repository, revision, allow_patterns, ignore_patterns):
        asked[repository] = (revision, allow_patterns)
        return str(hub / repository)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", serve)
    assert models.load("sdxl-dmd2").sampler(4).num_steps == 4
    assert {repository: revision for repository, (revision, _) in asked.items()} == {
        repository: presets.REVISIONS[repository] for repository in (SDXL, FP16_VAE, DMD2)
    }
    assert asked[DMD2][1] == ["dmd2_sdxl_4step_unet_fp16.bin"]
    assert "unet/config.json" in asked[SDXL][1] and "unet/*.safetensors" not in asked[SDXL][1]
    assert "vae/*.safetensors" not in asked[SDXL][1] and "text_encoder_2/*.safetensors" in asked[SDXL][1]
    unpinned = {presets.split(source)[0] for p in PRESETS.values() for source in (p.network, p.vae, p.lora) if source}
    assert unpinned - presets.REVISIONS.keys() == {"latent-consistency/lcm-sdxl"}
    twins.save_twin("sdxl-lcm", hub)
    with pytest.warns(UserWarning, match="latent-consistency/lcm-sdxl has no pinned revision and is read at main"):
        models.load("sdxl-lcm")


def change(path, edit):
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    state = dict(state)
    edit(state)
    save_file(state, path, metadata={"format": "pt"}) if path.suffix == ".safetensors" else torch.save(state, path)


@pytest.mark.parametrize(
    "part", [f"{DMD2}/dmd2_sdxl_4step_unet_fp16.bin", f"{FP16_VAE}/diffusion_pytorch_model.safetensors"]
)
def test_keys_that_do_not_match_are_named(hub, part):
    first = sorted(
        load_file(hub / part) if part.endswith("safetensors") else torch.load(hub / part, weights_only=True)
    )[0]
    change(hub / part, lambda state: state.pop(first))
    assert f"keys 1 missing ({first})" in told(ValueError, "sdxl-dmd2", hub=hub)
    change(hub / part, lambda state: state.update({first: torch.zeros(3, 1), "one.too.many": torch.zeros(1)}))
    message = told(ValueError, "sdxl-dmd2", hub=hub)
    assert "1 unknown (one.too.many)" in message and f"1 of another shape ({first})" in message


def test_a_text_encoder_of_another_model(hub):
    path = hub / SDXL / "text_encoder" / "model.safetensors"
    key = next(key for key in load_file(path) if key.endswith("token_embedding.weight"))
    change(path, lambda state: state.pop(key))
    assert "1 missing (" in told(ValueError, "sdxl-dmd2", hub=hub)


def test_files_that_are_not_weights(hub):
    weights, lora = (hub / DMD2 / f"dmd2_sdxl_4step_{end}" for end in ("unet_fp16.bin", "lora_fp16.safetensors"))
    weights.write_bytes(b"<html>not found</html>")
    assert "is not a file of tensors" in told(ValueError, "sdxl-dmd2", hub=hub)
    torch.save({"function": print}, weights)
    assert "is not a file of tensors" in told(ValueError, "sdxl-dmd2", hub=hub)
    state = load_file(lora)
    save_file({key.replace("attentions.0", "attentions.9"): value for key, value in state.items()}, lora)
    assert "the right file" in told(ValueError, "sdxl-dmd2-lora", hub=hub)
    save_file({"weight": torch.zeros(2)}, lora)
    assert "holds no LoRA of a UNet" in told(ValueError, "sdxl-dmd2-lora", hub=hub)


def test_steps_that_a_one_step_model_lacks(hub):
    twins.save_twin("sdxl-dmd2-1step", hub)
    model = models.load("sdxl-dmd2-1step", hub=hub)
    with pytest.raises(
        ValueError, match="num_steps = 4: sdxl-dmd2-1step is sampled at t = 399 only: use num_steps = 1"
    ):
        model.sampler(4)
