"""Recipes: every setting has a source, a known name and a value of its type; what has not is refused."""

from pathlib import Path

import pytest

from reproduce import recipes
from reproduce.recipes import SCALES, describe, make_config, recipe
from reproduce.train_distill import DistillConfig
from reproduce.train_offline import OfflineConfig
from reproduce.train_online import OnlineConfig
from reproduce.training.methods import METHODS

CONFIGS = {kind.loop: kind for kind in (OnlineConfig, OfflineConfig, DistillConfig)}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_is_complete_and_has_sources(method, scale):
    config = make_config(CONFIGS[METHODS[method].loop], method, scale)
    for name, (value, source) in recipe(method, scale).items():
        assert getattr(config, name) == value and source


def test_a_paper_has_a_file_and_a_method_one_recipe():
    papers = (recipes.pso, recipes.sdpo, recipes.dipp, recipes.distar, recipes.direct)
    named = [method for paper in papers for method in paper.RECIPES]
    assert sorted(named) == sorted(METHODS) and len(set(named)) == len(named)
    assert not any(" | " in Path(paper.__file__).read_text() for paper in papers), "nothing is merged"


BROKEN = {
    "recipe of sdpo: OnlineConfig has no setting 'gama'": {"gama": {"both": (0.9, "a paper")}},
    "recipe of sdpo: gamma = 0.9 has no source: give (value, source)": {"gamma": {"both": 0.9}},
    "recipe of sdpo: gamma = (0.9, '') has no source": {"gamma": {"both": (0.9, "")}},
    "recipe of sdpo: gamma has pocket, both: give both, or pocket and full": {
        "gamma": {"pocket": (0.9, "own"), "both": (0.9, "own")}
    },
    "recipe of sdpo: gamma has toy: give both": {"gamma": {"toy": (0.9, "own")}},
    "recipe of sdpo: gamma = 'most': expected <class 'float'>": {"gamma": {"both": ("most", "a paper")}},
    "recipe of sdpo: rounds = 1.5: expected <class 'int'>": {"rounds": {"both": (1.5, "a paper")}},
    "recipe of sdpo: shared_start = 1: expected <class 'bool'>": {"shared_start": {"both": (1, "a paper")}},
    "recipe of sdpo: rounds = True: expected <class 'int'>": {"rounds": {"both": (True, "a paper")}},
    "recipe of sdpo: updates = 'twice': expected typing.Literal": {"updates": {"both": ("twice", "a paper")}},
    "recipe of sdpo: mixed_steps = (1, 2.5): expected tuple": {"mixed_steps": {"both": ((1, 2.5), "a paper")}},
    "recipe of sdpo: betas = (0.9,): expected tuple": {"betas": {"both": ((0.9,), "a paper")}},
}


@pytest.mark.parametrize("told", BROKEN)
def test_what_is_wrong_with_a_recipe_is_told_when_it_is_read(told, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "sdpo", recipes.sdpo.RECIPES["sdpo"] | BROKEN[told])
    with pytest.raises(ValueError) as refused:
        make_config(OnlineConfig, "sdpo")
    assert told in str(refused.value)


def test_unknown_methods_and_scales_are_told():
    with pytest.raises(ValueError, match="no recipe for method 'spdo': choose from pso-online, "):
        recipe("spdo", "pocket")
    with pytest.raises(ValueError, match="unknown scale 'poket': choose from pocket, full"):
        recipe("sdpo", "poket")
    with pytest.raises(ValueError, match="unknown method 'sdpo': choose from pso-offline, "):
        make_config(OfflineConfig, "sdpo")


def test_a_recipe_is_printed_with_its_sources_and_a_row_s_own_settings():
    lines = describe("sdpo", "full", {"lr": (1.0, "a paper"), "snapshot_every": (20, "own choice")}).splitlines()
    assert "  gamma = 0.99  # SDPO Table 2" in lines and "  lr = 1.0  # a paper" in lines
    assert lines[-1] == "  snapshot_every = 20  # own choice"
    assert lines.index("  lr = 1.0  # a paper") == list(recipe("sdpo", "full")).index("lr"), "in its place"
