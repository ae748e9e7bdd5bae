"""What is wrong with a model's files is said in one line: which file, what was expected, what to do."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsalign_lib import twins
from fsalign_lib.models import load as models
from fsalign_lib.models.presets import DMD2, FP16_VAE, SDXL


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for name in ("sdxl-dmd2", "sdxl-dmd2-lora"):
        twins.save_twin(name, folder)
    return folder


@pytest.fixture
def hub(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def told(kind, name, **options):
    with pytest.raises(kind) as caught:
        models.load(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("part", ["scheduler", "text_encoder", "text_encoder_2", "tokenizer_2"])
def test_a_part_that_is_not_there(hub, part):
    (hub / SDXL / part).rename(hub / "elsewhere")
    message = told(FileNotFoundError, "sdxl-dmd2", hub=hub)
    assert f"has no {part}/" in message
    assert ("get the whole of it" if part.endswith("_2") else f"`hf download {SDXL} --include ") in message


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
    assert "cannot be read as tensors alone" in told(ValueError, "sdxl-dmd2", hub=hub)
    torch.save({"function": print}, weights)
    assert "cannot be read as tensors alone" in told(ValueError, "sdxl-dmd2", hub=hub)
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
