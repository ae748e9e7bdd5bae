"""Pictures scored by the rewards' own packages and by fsalign, on random weights at a small size."""

import contextlib
import importlib.util
import json
import sys
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from fsalign_lib.models.hub import Hub
from reproduce import score_images
from reproduce.evaluation import original_packages
from reproduce.evaluation.original_rewards import ORIGINALS
from tests import original_inputs as given
from tests import published
from tests.published import RECORD

NEEDED = {"imagereward": "ImageReward", "clipscore": "open_clip", "hps": "hpsv2", "hps-2.1": "hpsv2", "pickscore": None}


def there(package):
    return package is None or importlib.util.find_spec(package) is not None


REWARDS = [
    pytest.param(name, marks=pytest.mark.skipif(not there(package), reason=f"no {package}: make image-reward"))
    for name, package in NEEDED.items()
]
COUNT = len(given.SIZES)
EXACT = 8  # pictures of the towers' own size, which nothing scales
# Of 24: the prompts file leaves out an empty line, so the pictures that it belongs to are left out.
TOLD = [i for i in range(COUNT) if given.prompt(i).strip()]
TOWER = {"img_size": 224, "patch_size": given.VIT_PATCH, "embed_dim": 128, "depth": 2, "num_heads": 2}
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": given.VIT_PATCH},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return published.build(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module", autouse=True)
def small():
    """The packages' classes at a small size, where they ask for that of the published weights."""
    with contextlib.ExitStack() as stack:
        if there("ImageReward"):
            module = original_packages.load("ImageReward.ImageReward")
            blip = original_packages.load("ImageReward.models.BLIP.blip_pretrain")
            vit = original_packages.load("ImageReward.models.BLIP.vit")
            mlp, width = module.MLP, RECORD["imagereward"]["med_config"]["hidden_size"]
            stack.enter_context(mock.patch.object(module, "MLP", lambda _: mlp(width)))
            tower = mock.Mock(side_effect=lambda *_: (vit.VisionTransformer(**TOWER), TOWER["embed_dim"]))
            stack.enter_context(mock.patch.object(blip, "create_vit", tower))
        for package in ("open_clip", "hpsv2.src.open_clip"):
            if there(package.split(".")[0]):
                factory = original_packages.load(f"{package}.factory")
                stack.enter_context(mock.patch.dict(factory._MODEL_CONFIGS, {"ViT-H-14": CLIP}))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, and a prompt for each."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "pictures").mkdir()
    for i in TOLD:
        Image.fromarray(given.picture(i)).save(folder / "pictures" / f"{i:02}.png")
    (folder / "prompts.txt").write_text("\n".join(given.prompt(i) for i in TOLD), encoding="utf-8")
    return folder


def arguments(folder, *more):
    return ["--images", str(folder / "pictures"), "--prompts", str(folder / "prompts.txt"), *map(str, more)]


@pytest.mark.parametrize("name", REWARDS[:3])
def test_what_is_supplied_is_what_the_packages_ask_for(name, hub):
    """Their scores are those recorded with the real torchvision and timm, and with transformers 4."""
    score = ORIGINALS[name](Hub.of("a test", hub), "cpu")
    with torch.no_grad():
        scores = [score(Image.fromarray(given.picture(i)), given.prompt(i)) for i in range(COUNT)]
    assert np.abs(np.array(scores) - RECORD[name]["scores"]).max() < 1e-6


@pytest.mark.parametrize("name", REWARDS)
def test_fsalign_scores_as_the_package(name, hub, folder, tmp_path, capsys):
    out = tmp_path / "new" / "scores.json"
    score_images.main(arguments(folder, "--reward", name, "--hub", hub, "--out", out))
    result = json.loads(out.read_text())
    rows, summary = result["scores"], result["summary"][name]
    assert [row["picture"] for row in rows] == [f"{i:02}.png" for i in TOLD]
    assert [row["prompt"] for row in rows] == [given.prompt(i).strip() for i in TOLD]
    unit = np.exp(given.weight("logit_scale", ())) if name == "pickscore" else 1.0
    off = np.array([row["fsalign"] - row["package"] for row in rows]) / unit
    assert np.abs(off[: TOLD.index(EXACT)]).max() < 1e-5 and np.abs(off).max() < 5e-3
    assert summary["deviation"] / unit > 0.05, "scores that do not vary would agree with anything"
    assert summary["largest_difference"] == pytest.approx(np.abs(off).max() * unit)
    assert len(rows) == summary["pictures"] == len(TOLD)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(TOLD) + 1 and printed[-1].startswith(f"{name}: {len(TOLD)} pictures")


@pytest.mark.parametrize("name", [name for name in REWARDS if name.values != ("hps-2.1",)])
def test_another_pipeline_is_noticed(name, hub, folder):
    settings = {"images": folder / "pictures", "prompts": str(folder / "prompts.txt"), "reward": (name,), "hub": hub}
    setup = score_images.prepare(score_images.ScoreConfig(**settings))
    setup.rows = setup.rows[-3:]
    original, reward = setup.rewards[name]
    right = reward.preprocess

    def worst(original=original, preprocess=right):
        setup.rewards[name], reward.preprocess = (original, reward), preprocess
        return max(abs(row["difference"]) for row in score_images.score(setup))

    assert worst() < 5e-3
    assert worst(preprocess=lambda x, size: right(x, size) + 0.3) > 0.01
    assert worst(preprocess=lambda x, size: right(torch.nn.functional.interpolate(x, (300, 224)), size)) > 0.01
    assert worst(original=lambda picture, prompt: original(picture, "a dog on the moon")) > 0.01
    assert worst(original=lambda picture, prompt: 2 * original(picture, prompt)) > 0.01
    if name == "imagereward":
        reward.mean, reward.std = 0.0, 1.0
        assert worst() > 0.1


@pytest.mark.skipif(not there("ImageReward"), reason="no ImageReward: make image-reward")
def test_nothing_of_what_is_supplied_is_left():
    from transformers.utils import is_torchvision_available

    before = is_torchvision_available()
    original_packages.load("ImageReward")
    assert not any(isinstance(module, original_packages.Lacking) for module in sys.modules.values())
    assert not any(isinstance(finder, original_packages.Finder) for finder in sys.meta_path)
    is_torchvision_available.cache_clear()
    assert is_torchvision_available() == before
    assert transformers.BertTokenizer is not original_packages.BertTokenizer
    assert transformers.PreTrainedModel is not original_packages.PreTrainedModel
    assert not hasattr(transformers.modeling_utils, "apply_chunking_to_forward")


def test_a_placeholder_refuses_to_be_called():
    with original_packages.supplied():
        from fairscale.nn.checkpoint import checkpoint_wrapper
    with pytest.raises(ModuleNotFoundError, match="fairscale.nn.checkpoint.checkpoint_wrapper is not installed"):
        checkpoint_wrapper(None)


def test_bad_input(folder, hub, tmp_path, capsys, monkeypatch):
    def message(*args):
        with pytest.raises(SystemExit) as stopped:
            score_images.main(list(args))
        assert stopped.value.code == 2
        return capsys.readouterr().err.strip()

    (tmp_path / "two.txt").write_text("a cat\na dog\n")
    pictures = ["--images", str(folder / "pictures")]
    told = message(*pictures, "--prompts", str(tmp_path / "two.txt"))
    assert told == f"error: 2 prompts for {len(TOLD)} pictures: give one for each, or one for all"
    nowhere = ["--prompts", str(folder / "prompts.txt"), "--images"]
    assert message(*nowhere, str(tmp_path / "no")) == f"error: no folder {tmp_path / 'no'}: name one with pictures"
    assert message(*nowhere, str(tmp_path)).startswith(f"error: no picture in {tmp_path}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = message(*arguments(folder, "--hub", hub))
    assert asked == "error: image-reward is not installed: get it by `make image-reward`"
