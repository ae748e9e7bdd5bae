"""Two training loops on a tiny random model: what a round holds, what an update costs, resuming to the bit."""

import itertools
import json
import math
from functools import partial

import pytest
import torch

from fsalign_lib.models import load as models
from reproduce import recipes, train_distill, train_offline, train_online
from reproduce.data import sampled_pairs as pair_files
from reproduce.data.latents import read_picture
from reproduce.data.pairs import read_latents, read_rows
from reproduce.training import run as runs
from reproduce.training import sampling
from reproduce.training.methods import METHODS
from tests import tiny


@pytest.fixture(scope="module")
def pair_folder(folder, prompts_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs")
    config = pair_files.PairConfig(out=out, model=str(folder), prompts=prompts_file, count=8, batch=4, steps=2, tie=0)
    pair_files.build(pair_files.prepare(config, utility=tiny.brightness))
    return out


@pytest.fixture
def online(folder, prompts_file, tmp_path):
    def make(out="run", reward=tiny.brightness, method="pso-online", **overrides):
        small = {
            "model": str(folder),
            "prompts": prompts_file,
            "rounds": 4,
            "pairs": 4,
            "minibatch": 2,
            "save_every": 2,
        }
        config = runs.make_config(train_online.OnlineConfig, method, out=tmp_path / out, **(small | overrides))
        return train_online.prepare(config, reward=reward)

    return make


@pytest.fixture
def offline(folder, pair_folder, tmp_path):
    def make(out="run", method="pso-offline", **overrides):
        small = {"model": str(folder), "pairs": pair_folder, "prior": None, "updates": 4, "batch": 4, "save_every": 2}
        config = runs.make_config(train_offline.OfflineConfig, method, out=tmp_path / out, **(small | overrides))
        return train_offline.prepare(config)

    return make


def weights(setup):
    return torch.cat([p.detach().flatten() for p in setup.run.parameters])


def all_of(setup, pairs, ref):
    """The loss on all pairs of a round at all steps."""
    steps = torch.tensor(setup.kernel.stochastic_steps)
    which = torch.arange(len(pairs.prompts)).repeat_interleave(len(steps))
    steps = steps.repeat(len(pairs.prompts))[:, None]
    return train_online.minibatch_loss(setup, pairs, ref, which, steps, torch.arange(len(which)))


def test_a_round_ranks_pairs_and_starts_at_log_two(online):
    setup = online()
    pairs = train_online.sample_pairs(setup, 0)
    assert (pairs.reward[:, 0] > pairs.reward[:, 1]).all()
    with torch.no_grad():
        images = setup.model.decode(pairs.states[:, :, -1].flatten(0, 1))
    torch.testing.assert_close(tiny.brightness(images, []), pairs.reward.flatten())
    ref = train_online.reference_log_probs(setup, pairs)
    torch.testing.assert_close(ref, pairs.logp_old, atol=1e-5, rtol=1e-5)
    loss, diagnostics = all_of(setup, pairs, ref)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)
    assert diagnostics["drift"] < 1e-5


def test_the_samples_of_a_round_do_not_depend_on_the_batch_split(online):
    whole = train_online.sample_pairs(online("a"), 3)
    split = train_online.sample_pairs(online("b", rollout_batch=1), 3)
    torch.testing.assert_close(split.states, whole.states, atol=1e-4, rtol=1e-4)
    assert split.prompts == whole.prompts
    other = train_online.sample_pairs(online("c", seed=1), 3)
    assert not torch.allclose(other.states[:, 0, 0], whole.states[:, 0, 0])


def test_a_prompt_that_comes_twice_in_a_round_gets_other_noise(online):
    pairs = train_online.sample_pairs(online(pairs=12), 0)
    assert sorted(pairs.prompts) == sorted(tiny.PROMPTS * 2)
    starts = pairs.states[:, :, 0].flatten(0, 1).flatten(1)
    assert len(starts.unique(dim=0)) == 24


def test_every_prompt_comes_equally_often():
    rows = torch.cat([sampling.round_rows(0, n, prompts=6, pairs=4) for n in range(9)])
    assert rows.bincount().tolist() == [6] * 6
    assert not torch.equal(rows[:6], rows[6:12])
    batches = torch.cat([train_offline.batch_rows(0, n, pairs=6, batch=4) for n in range(9)])
    assert batches.bincount().tolist() == [6] * 6


def test_network_calls_of_a_round(online):
    """Four to sample, one for the reference, a small one at the start-up check, one an update."""
    setup = online(rounds=1, pairs=4, minibatch=2)
    sizes = []
    setup.model.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    setup.model.frozen_copy.register_forward_pre_hook(lambda _, args: sizes.append(-len(args[0])))
    list(train_online.train(setup))
    assert sizes == [8] * 4 + [-24, 12] + [12] * 2


def test_ties_have_no_gradient(online):
    setup = online(reward=lambda images, prompts: torch.zeros(len(images)), weight_decay=0.0)
    before = weights(setup)
    records = list(train_online.train(setup))
    assert torch.equal(weights(setup), before)
    assert records[0]["ties"] == 1 and records[0]["loss"] == pytest.approx(math.log(2))


@pytest.mark.parametrize("method", ["pso-online", "d3po"])
def test_the_winner_becomes_likelier_than_the_loser(online, method):
    setup = online(method=method, lr=1e-3, epochs=3, rounds=1)
    pairs = train_online.sample_pairs(setup, 0)
    ref = train_online.reference_log_probs(setup, pairs)
    list(train_online.train(setup))
    _, diagnostics = all_of(setup, pairs, ref)
    assert diagnostics["margin"] > 0 and diagnostics["accuracy"] > 0.5


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.loop == "offline"])
def test_offline_losses_fall_on_their_own_batch(offline, method):
    setup = offline(method=method, lr=2e-3, updates=8)
    rows = torch.arange(4)
    before, diagnostics = train_offline.batch_loss(setup, 0, rows)
    if "reference" in METHODS[method].needs:
        assert before.item() == pytest.approx(math.log(2), abs=1e-5)
        assert diagnostics["margin"] == pytest.approx(0, abs=1e-6)
    for _ in range(8):
        setup.run.update(rows, partial(train_offline.batch_loss, setup, 0), setup.prompts, 0)
    assert train_offline.batch_loss(setup, 0, rows)[0] < before


def test_noised_latents(offline):
    setup = offline()
    x_t, eps, t, _ = train_offline.noised(setup, 1, torch.tensor([2, 5]))
    assert t.tolist() == [[999, 749, 499]] * 2
    assert x_t.shape == (2, 2, 3, *setup.model.latent_shape)
    expected = setup.model.schedule.add_noise(setup.latents[torch.tensor([5])][0, 1], eps[1, 1, 2], 499)
    torch.testing.assert_close(x_t[1, 1, 2], expected)
    assert len(eps.flatten(0, 2).flatten(1).unique(dim=0)) == 12, "a noise for each picture and time"

    shared = offline("dpo", method="diffusion-dpo")
    x_t, eps, t, _ = train_offline.noised(shared, 1, torch.tensor([2, 5]))
    assert torch.equal(eps[:, 0], eps[:, 1]) and t.shape == (2, 1) and t[0] != t[1]
    sft = offline("sft", method="sft")
    assert train_offline.noised(sft, 1, torch.tensor([2]))[0].shape[1] == 1, "fine-tuning needs no losers"


@pytest.mark.parametrize("training", ["lora", "full"])
@pytest.mark.parametrize("kind", ["online", "offline"])
def test_a_resumed_run_has_the_same_bits(request, kind, training):
    make, loop = request.getfixturevalue(kind), {"online": train_online, "offline": train_offline}[kind]
    settings = {"training": training, "rank": 2, "lr": 1e-3}
    whole = make("whole", **settings)
    records = list(loop.train(whole))

    stopped = make("stopped", **settings)
    done = list(itertools.islice(loop.train(stopped), 3))  # killed after step 3; the last checkpoint is that of step 2
    assert done == records[:3]
    resumed = make("stopped", **settings, resume=True)
    assert resumed.run.start == 2
    list(loop.train(resumed))
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.run.history == whole.run.history
    assert [p.name for p in (resumed.config.out / "checkpoints").iterdir()] == ["000004"]


def test_a_run_leaves_its_result_and_its_model(online, folder):
    setup = online(tracker="tensorboard", training="lora", rank=2, lr=1e-3)
    train_online.run(setup)
    result = json.loads((setup.config.out / "result.json").read_text())
    assert len(result["history"]) == 4 and result["config"]["lr"] == 1e-3
    about = {"command", "commit", "versions", "device", "wall_seconds", "cpu_seconds", "peak_memory_mb"}
    assert about <= result.keys() and 0 < result["cpu_seconds"]
    assert list(setup.config.out.rglob("events.out.tfevents*"))
    again = models.load(folder)
    again.load_adapter(runs.last_checkpoint(setup.config.out))
    x, cond = torch.randn(1, *again.latent_shape), again.encode_prompts(["a cat"])
    with torch.no_grad():
        assert torch.equal(again.predict_eps(x, 500, cond), setup.model.predict_eps(x, 500, cond))


@pytest.mark.parametrize(
    "before,cpu", [({"wall_seconds": 900.0, "cpu_seconds": 70.0}, 70), ({"wall_seconds": 900.0}, 900)]
)
def test_time_adds_up_over_resumes(online, before, cpu):
    """A state that an older version wrote has no CPU time: its wall time stands in."""
    begun = online(save_every=1)
    next(train_online.train(begun))
    state = runs.last_checkpoint(begun.config.out) / "state.json"
    content = json.loads(state.read_text())
    assert content.keys() >= {"wall_seconds", "cpu_seconds"}
    kept = {k: v for k, v in content.items() if k not in ("wall_seconds", "cpu_seconds")}
    state.write_text(json.dumps(kept | before))
    resumed = online(save_every=1, resume=True)
    next(train_online.train(resumed))
    found = json.loads((runs.last_checkpoint(resumed.config.out) / "state.json").read_text())
    assert 900 <= found["wall_seconds"] < 960 and cpu <= found["cpu_seconds"] < cpu + 30


def test_non_finite_values_name_prompt_and_seed(online, offline):
    def broken(images, prompts):
        return torch.tensor([float("nan") if p == "a dog" else 1.0 for p in prompts])

    with pytest.raises(FloatingPointError, match=r"reward pickscore is not finite for prompt 'a dog' \(seed 7, step"):
        list(train_online.train(online(reward=broken, seed=7, pairs=6)))
    for make, loop in ((online, train_online), (offline, train_offline)):
        setup = make("broken-" + loop.__name__)
        with torch.no_grad():
            setup.run.parameters[0].fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=r"not finite for prompt '.+' \(seed 0, step 0\)"):
            list(loop.train(setup))


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


@pytest.mark.parametrize("scale", recipes.SCALES)
@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_is_complete_and_has_sources(method, scale):
    config_types = (train_online.OnlineConfig, train_offline.OfflineConfig, train_distill.DistillConfig)
    (config_type,) = [kind for kind in config_types if kind.loop == METHODS[method].loop]
    config = runs.make_config(config_type, method, scale)
    for name, (value, source) in recipes.recipe(method, scale).items():
        assert getattr(config, name) == value and source


def test_full_scale_recipes_are_the_papers():
    """[PSO App. B.1]"""
    online = runs.make_config(train_online.OnlineConfig, "pso-online", "full")
    offline = runs.make_config(train_offline.OfflineConfig, "pso-offline", "full")
    assert (online.rank, online.beta, online.lr, online.pairs, online.minibatch, online.steps) == (
        16,
        5,
        1e-5,
        128,
        32,
        4,
    )
    assert online.rounds * online.epochs * online.pairs // online.minibatch == 20_000
    assert (offline.rank, offline.beta, offline.lr, offline.batch, offline.updates) == (16, 50, 1e-5, 64, 5000)
