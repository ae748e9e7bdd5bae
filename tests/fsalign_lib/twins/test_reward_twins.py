"""Tiny files in the published formats: each full-size reward is loaded from them by its own code, and scores."""

import pytest
import torch

from fsalign_lib import twins
from fsalign_lib.models.tensor_files import read_tensors
from fsalign_lib.rewards import REWARDS, full, load_reward
from fsalign_lib.rewards.conversion import from_image_reward, from_open_clip, to_image_reward, to_open_clip
from tests.published import NAMES, RECORD, WEIGHTS, weights

PROMPTS = ["a cat", "Two “dogs” — in a naïve café, 4k", ""]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for name in REWARDS["full"]:
        assert twins.save_reward_twin(name, folder) == folder
    return folder


@pytest.mark.parametrize("name", REWARDS["full"])
def test_every_full_size_reward_runs_on_its_twin(name, hub, monkeypatch):
    monkeypatch.setenv("FSALIGN_HUB", str(hub))
    reward = load_reward(name, scale="full")
    for height, width in ((32, 32), (64, 90), (7, 5)):
        generator = torch.Generator().manual_seed(height)
        pictures = torch.rand(3, 3, height, width, generator=generator).requires_grad_()
        scores = reward(pictures, PROMPTS)
        assert scores.shape == (3,) and scores.dtype == torch.float32 and scores.isfinite().all()
        if name in NAMES:
            assert scores.std() > 1e-3, "a training run on twins needs a reward that varies"
            scores.sum().backward()
            assert pictures.grad.isfinite().all() and pictures.grad.abs().max() > 0
    assert not any(p.requires_grad for p in reward.parameters()) and not reward.training


@pytest.mark.parametrize("name", ["clipscore", "hps", "imagereward", "aesthetic"])
def test_twins_have_the_keys_of_the_originals(name, hub):
    shapes = RECORD["aesthetic"]["mlp"] if name == "aesthetic" else RECORD[name]["shapes"]
    assert read_tensors(hub / WEIGHTS[name]).keys() == shapes.keys()


def test_published_keys_and_ours_map_to_each_other():
    clip, blip = weights(RECORD["clipscore"]["shapes"]), weights(RECORD["imagereward"]["shapes"])
    again = to_open_clip(from_open_clip(clip))
    assert again.keys() == clip.keys() and all(torch.equal(again[key], clip[key]) for key in clip)
    again = to_image_reward(from_image_reward(blip))
    unused = {key for key in blip if "_proj." in key.removeprefix("blip.").split("visual")[0] or "position_ids" in key}
    assert again.keys() == blip.keys() - unused and len(unused) == 5
    assert all(torch.equal(again[key], blip[key]) for key in again)


def test_a_twin_does_not_depend_on_what_was_written_before(hub, tmp_path):
    twins.save_reward_twin("hps", tmp_path)
    alone, beside = (read_tensors(folder / WEIGHTS["hps"]) for folder in (tmp_path, hub))
    assert all(torch.equal(alone[key], beside[key]) for key in beside)
    twins.save_reward_twin("hps", tmp_path, seed=1)
    assert not torch.equal(read_tensors(tmp_path / WEIGHTS["hps"])["visual.proj"], beside["visual.proj"])
    with pytest.raises(ValueError, match="no twin of reward 'hps-3': choose from pickscore, clipscore"):
        twins.save_reward_twin("hps-3", tmp_path)


@pytest.mark.parametrize(
    ("prompt", "cleaned"),  # what open_clip 3.3.0 and hpsv2 1.2.0 make of it
    [
        ("“a cat’s hat”", '"a cat\'s hat"'),
        ("schÃ¶n", "schön"),
        ("fish &amp;amp; chips", "fish & chips"),
        ("<b> &lt;3 cats", "<b> <3 cats"),
        ("&quot;x&quot; 100% &nbsp; y", '"x" 100% y'),
        ("ﬁne ＬＯＵＤ", "fine LOUD"),
        ("\u00a0tab\there \n ", "tab here"),
        ("a — b…", "a — b…"),
    ],
)
def test_prompts_are_cleaned_as_by_open_clip(prompt, cleaned):
    assert full.open_clip_text(prompt) == cleaned


def test_which_rewards_clean_their_prompts(hub):
    picture, given, cleaned = torch.rand(1, 3, 32, 32), "“a cat’s hat”", '"a cat\'s hat"'
    for name, cleans in {"clipscore": True, "hps": True, "hps-2.1": True, "pickscore": False}.items():
        reward = load_reward(name, scale="full", hub=hub)
        assert torch.equal(reward(picture, [given]), reward(picture, [cleaned])) == cleans, name
