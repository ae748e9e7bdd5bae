"""Pairs of samples of a model, ranked by a judge: written, read back, ties left out."""

import json

import torch

from fsalign_lib.models import load as models
from reproduce.data import sampled_pairs as pair_files
from reproduce.data.pairs import read_latents, read_rows
from reproduce.data.pictures import read_picture
from tests import tiny


def test_built_pairs_are_judged_and_read_back(pair_folder, folder):
    rows = read_rows(pair_folder)
    about = json.loads((pair_folder / "about.json").read_text())
    assert len(rows) == about["pairs"] == 8 and about["ties"] == 0
    model = models.load(folder)
    prompts, latents = read_latents(pair_folder, model)
    assert prompts == [row["prompt"] for row in rows] and len(latents) == 8
    found = latents[torch.tensor([3, 0])]
    assert found.shape == (2, 2, *model.latent_shape)
    picture = read_picture(pair_folder / rows[3]["loser"], model.image_size)
    torch.testing.assert_close(model.encode(picture[None] / 255)[0], found[0, 1], atol=1e-5, rtol=1e-5)


def test_ties_are_dropped_when_pairs_are_built(folder, prompts_file, tmp_path):
    config = pair_files.PairConfig(
        out=tmp_path, model=str(folder), prompts=prompts_file, count=4, batch=4, steps=2, tie=1e9
    )
    pair_files.build(pair_files.prepare(config, utility=tiny.brightness))
    assert json.loads((tmp_path / "about.json").read_text())["ties"] == 4
