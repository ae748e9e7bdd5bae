"""A run goes on with what it was begun with; where something of it has changed, it says what."""

import os
import shutil

import pytest
import torch
from PIL import Image

from fsalign_lib.models.load import load
from reproduce import train_distill, train_offline, train_online
from reproduce.recipes import make_config
from tests import tiny


class Brightness(torch.nn.Module):
    """A reward with a weight."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, images, prompts):
        return tiny.brightness(images, prompts) * self.scale


@pytest.fixture
def refused():
    """Prepares to go on with a run whose input was changed; returns what it said."""

    def run(prepare):
        with pytest.raises(ValueError, match="bring them back, or choose another --out") as raised:
            prepare()
        return str(raised.value).split("was run with other ")[1].split(":")[0]

    return run


@pytest.mark.parametrize("loop", ["online", pytest.param("distill", marks=pytest.mark.slow)])
def test_prompts_and_rewards(loop, refused, folder, tmp_path):
    model, reward, path = load(str(folder)), Brightness(), tmp_path / "prompts.txt"
    path.write_text("\n".join(tiny.PROMPTS))

    def prepare(updates=2):
        usual = {"model": str(folder), "prompts": str(path), "out": tmp_path / "run", "resume": True}
        if loop == "online":
            own = {"rounds": updates, "pairs": 2, "minibatch": 2}
            return train_online.prepare(
                make_config(train_online.OnlineConfig, "pso-online", **usual, **own), model, reward
            )
        own = {"updates": updates, "batch": 2, "teacher": str(folder), "time": 500}
        config = make_config(train_distill.DistillConfig, "dipp", **usual, **own)
        return train_distill.prepare(config, reward=reward)

    (train_online if loop == "online" else train_distill).run(prepare(1))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert prepare().run.start == 1, "the texts count, not the bytes"
    for prompts in ([*tiny.PROMPTS, "a fish"], tiny.PROMPTS[::-1]):
        path.write_text("\n".join(prompts))
        assert refused(prepare) == "prompts"
    path.write_text("\n".join(tiny.PROMPTS))
    with torch.no_grad():
        reward.scale += 1
    assert refused(prepare) == "reward"


def test_pictures(refused, folder, pair_folder, tmp_path):
    model, pairs, prior = load(str(folder)), tmp_path / "pairs", tmp_path / "prior"
    shutil.copytree(pair_folder, pairs)
    prior.mkdir()
    Image.new("RGB", (32, 32), "red").save(prior / "a.png")
    (prior / "a.txt").write_text("a cat")

    def prepare(updates=2):
        usual = {"model": str(folder), "out": tmp_path / "run", "resume": True, "pairs": pairs, "prior": prior}
        config = make_config(train_offline.OfflineConfig, "pso-offline", **usual, updates=updates, batch=2)
        return train_offline.prepare(config, model)

    train_offline.run(prepare(1))
    lines, picture = pairs / "pairs.jsonl", next(pairs.glob("*-a.png"))
    for path in (lines, picture, prior / "a.png"):
        os.utime(path, ns=(1, 1))
    assert prepare().run.start == 1, "the content counts, not its time"
    swapped = lines.read_text().replace("winner", "x").replace("loser", "winner").replace("x", "loser").encode()
    black = tmp_path / "black.png"
    Image.new("RGB", (32, 32)).save(black)
    for path, content, told in (
        (lines, swapped, "pictures"),
        (lines, lines.read_bytes().replace(b"cat", b"cow"), "prompts"),
        (picture, black.read_bytes(), "pictures"),
        (prior / "a.png", black.read_bytes(), "prior pictures"),
        (prior / "a.txt", b"a cow", "prior captions"),
    ):
        before = path.read_bytes()
        path.write_bytes(content)
        assert refused(prepare) == told
        path.write_bytes(before)
    assert prepare().run.start == 1
    with torch.no_grad():
        next(model.text.modules[0].parameters()).add_(1)
    assert refused(prepare) == "text encoders"
