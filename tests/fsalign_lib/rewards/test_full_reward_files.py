"""Files of the full-size rewards that are wrong or dangerous: one line says what to do."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsalign_lib.models.tensor_files import read_tensors
from fsalign_lib.rewards import full, load_reward
from tests import published
from tests.published import WEIGHTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return published.build(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def copy(folder, tmp_path):
    """Files to be replaced: hard links, so that they are deleted before they are written."""
    return shutil.copytree(folder, tmp_path / "copy", copy_function=os.link)


def told(name, hub):
    with pytest.raises(ValueError) as caught:
        load_reward(name, scale="full", hub=hub)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "path", "key", "here"),
    [
        ("pickscore", None, "text_model.final_layer_norm.bias", "text_model.final_layer_norm.bias"),
        ("clipscore", None, "visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
        ("hps", None, "transformer.resblocks.1.ln_1.bias", "text_model.encoder.layers.1.layer_norm1.bias"),
        ("imagereward", None, "mlp.layers.7.weight", "mlp.7.weight"),
        ("imagereward", None, "blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
        ("aesthetic", f"{full.CLIP_L}/model.safetensors", *["vision_model.pre_layrnorm.bias"] * 2),
        ("aesthetic", None, "layers.6.weight", "6.weight"),
    ],
)
def test_keys_that_do_not_match_are_named(name, path, key, here, copy):
    path = copy / (path or WEIGHTS[name])
    tensors = read_tensors(path)

    def refused():
        path.unlink()
        published.write(path, tensors)
        message = told(name, copy)
        assert message.startswith(f"the weights in {path.parent if path.name == 'model.safetensors' else path} are not")
        assert message.endswith(": get the right file")
        return message

    taken = tensors.pop(key)
    assert f"keys 1 missing ({here})" in refused()
    if "pos_embed" in key:  # tells the size of the pictures
        return
    tensors |= {key: taken, "vision_model.surplus": torch.zeros(1)}
    assert "1 unknown (vision_model.surplus)" in refused()
    del tensors["vision_model.surplus"]
    tensors[key] = torch.zeros(3, 5)
    assert f"1 of another shape ({here})" in refused()


def test_another_reward_in_its_place(copy):
    path = copy / WEIGHTS["clipscore"]
    path.unlink()
    published.write(path, {"visual.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(7, 5)})
    message = told("clipscore", copy)
    assert "78 missing (" in message and "1 unknown (vision_model.encoder.layers.0.self_attn.in_proj_w" in message
    path = copy / WEIGHTS["imagereward"]
    shutil.copy(copy / WEIGHTS["hps"], tmp := path.with_suffix(".new"))
    tmp.replace(path)
    assert "2 missing (vision.embeddings.patch_embedding.weight, " in told("imagereward", copy)


class Surprise:
    def __reduce__(self):
        return print, ("code in a checkpoint has run",)


@pytest.mark.parametrize("name", ["hps", "imagereward", "aesthetic"])
def test_checkpoints_do_not_run_code(name, copy, capsys):
    path = copy / WEIGHTS[name]
    path.unlink()
    torch.save({"state_dict": {"a": torch.zeros(1)}, "surprise": Surprise()}, path)
    assert f"{path} cannot be read as tensors alone (" in told(name, copy)
    assert "has run" not in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:100])
    assert f"{path} cannot be read as tensors alone (" in told(name, copy)
    torch.save({"state_dict": [1, 2]}, path)
    assert f"{path} holds no tensors by name: get the right file" in told(name, copy)


@pytest.mark.parametrize("name", ["pickscore", "clipscore"])
def test_damaged_safetensors(name, copy):
    path = copy / WEIGHTS[name]
    content = path.read_bytes()
    path.unlink()
    for damaged in (b"<html>not found</html>", content[:100], content[:-1]):
        path.write_bytes(damaged)
        assert "cannot be read as tensors alone (" in told(name, copy)


def test_old_and_new_formats_are_read(tmp_path):
    state = {"a": torch.randn(3), "b": torch.randn(2, 2)}
    torch.save(state, tmp_path / "new.pt")
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "training.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safe.safetensors")
    for path in tmp_path.iterdir():
        tensors = read_tensors(path)
        assert tensors.keys() == state.keys() and all(torch.equal(tensors[key], state[key]) for key in state)
    assert load_file(tmp_path / "safe.safetensors").keys() == state.keys()
