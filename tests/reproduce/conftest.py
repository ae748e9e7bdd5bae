"""Make small runs of the loops on a tiny pipeline."""

import pytest

from reproduce import train_offline, train_online
from reproduce.data import sampled_pairs as pair_files
from reproduce.recipes import make_config
from tests import tiny


@pytest.fixture(scope="module")
def pair_folder(folder, prompts_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs")
    config = pair_files.PairConfig(out=out, model=str(folder), prompts=prompts_file, count=8, batch=4, steps=2, tie=0)
    pair_files.build(pair_files.prepare(config, utility=tiny.brightness))
    return out


@pytest.fixture
def online(folder, prompts_file, tmp_path):
    def make(out="run", reward=tiny.taste, method="pso-online", **overrides):
        small = {
            "model": str(folder),
            "prompts": prompts_file,
            "rounds": 4,
            "pairs": 4,
            "minibatch": 2,
            "save_every": 2,
        }
        config = make_config(train_online.OnlineConfig, method, out=tmp_path / out, **(small | overrides))
        return train_online.prepare(config, reward=reward)

    return make


@pytest.fixture
def offline(folder, pair_folder, tmp_path):
    def make(out="run", method="pso-offline", **overrides):
        small = {"model": str(folder), "pairs": pair_folder, "prior": None, "updates": 4, "batch": 4, "save_every": 2}
        config = make_config(train_offline.OfflineConfig, method, out=tmp_path / out, **(small | overrides))
        return train_offline.prepare(config)

    return make
