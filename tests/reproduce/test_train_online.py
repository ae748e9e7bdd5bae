"""The online loop on a tiny random model: what a round holds, what an update sees and costs, for each method."""

import math

import pytest
import torch

from fsalign_lib.advantages import Advantages
from fsalign_lib.dense_reward import discounted_returns
from fsalign_lib.models import load as models
from reproduce import train_online
from reproduce.recipes import make_config
from reproduce.training.methods import sums_steps
from tests import tiny


def weights(setup):
    return torch.cat([p.detach().flatten() for p in setup.run.parameters])


def all_of(setup, pairs, ref):
    """The loss on all pairs of a round at all steps."""
    steps = torch.tensor(setup.kernel.stochastic_steps)
    which = torch.arange(len(pairs.prompts)).repeat_interleave(len(steps))
    steps = steps.repeat(len(pairs.prompts))[:, None]
    return train_online.minibatch_loss(setup, pairs, ref, which, steps)


def test_a_round_ranks_pairs_and_starts_at_log_two(online):
    setup = online()
    pairs = train_online.sample_pairs(setup, 0)
    assert (pairs.reward[:, 0] > pairs.reward[:, 1]).all()
    with torch.no_grad():
        images = setup.model.decode(pairs.states[:, :, -1].flatten(0, 1))
    prompts = [prompt for prompt in pairs.prompts for _ in range(2)]
    torch.testing.assert_close(tiny.taste(images, prompts), pairs.reward.flatten())
    ref = train_online.reference_log_probs(setup, pairs)
    torch.testing.assert_close(ref, pairs.logp_old, atol=1e-5, rtol=1e-5)
    loss, diagnostics = all_of(setup, pairs, ref)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-4)
    assert diagnostics["drift"] < 1e-5


def test_the_samples_of_a_round_do_not_depend_on_the_batch_split(online):
    whole = train_online.sample_pairs(online("a"), 3)
    split = train_online.sample_pairs(online("b", rollout_batch=1), 3)
    torch.testing.assert_close(split.states, whole.states, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(split.reward, whole.reward, atol=1e-3, rtol=1e-3)
    assert split.prompts == whole.prompts
    other = train_online.sample_pairs(online("c", seed=1), 3)
    assert not torch.allclose(other.states[:, 0, 0], whole.states[:, 0, 0])


def test_a_prompt_that_comes_twice_in_a_round_gets_other_noise(online):
    pairs = train_online.sample_pairs(online(pairs=12), 0)
    assert sorted(pairs.prompts) == sorted(tiny.PROMPTS * 2)
    starts = pairs.states[:, :, 0].flatten(0, 1).flatten(1)
    assert len(starts.unique(dim=0)) == 24


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


# SDPO, DDPO, REBEL and D3PO


STEPS = 5


@pytest.fixture
def make(folder, prompts_file, tmp_path):
    def make(method="sdpo", out="run", reward=tiny.brightness, **overrides):
        small = {"model": str(folder), "prompts": prompts_file, "rounds": 2, "pairs": 4, "minibatch": 4}
        small |= {"steps": STEPS, "rank": 2, "save_every": 1, "micro_batch": None}
        config = make_config(train_online.OnlineConfig, method, out=tmp_path / out, **(small | overrides))
        return train_online.prepare(config, reward=reward)

    return make


def rows_seen(model):
    """Batch sizes of the network, and of the decoder with a minus."""
    seen = []
    model.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model.vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(-len(args[0])))
    return seen


def test_a_pair_of_sdpo_shares_its_first_prediction_and_asks_five_rewards(make):
    setup = make()
    seen = rows_seen(setup.model)
    pairs = train_online.sample_pairs(setup, 0)
    assert torch.equal(pairs.states[:, 0, 0], pairs.states[:, 1, 0])
    assert not torch.equal(pairs.states[:, 0, 1], pairs.states[:, 1, 1])
    assert seen == [4] + [8] * (STEPS - 1) + [-20], "one first call a pair; five pictures of it"
    assert pairs.queries == 20
    setup = make("ddpo", "ddpo")
    seen = rows_seen(setup.model)
    pairs = train_online.sample_pairs(setup, 0)
    assert not torch.equal(pairs.states[:, 0, 0], pairs.states[:, 1, 0])
    assert seen == [8] * STEPS + [-8] and pairs.queries == 8


def test_the_shared_first_call_changes_nothing(make):
    pairs = train_online.sample_pairs(make(), 0)
    again = train_online.log_probs(make(out="b"), pairs, torch.arange(4), torch.arange(STEPS).expand(4, -1))
    torch.testing.assert_close(again, pairs.logp_old, atol=1e-5, rtol=1e-5)


def test_advantages_are_standardised_returns_of_the_steps(make):
    """All of the predictions scored: the rewards, and with them returns and advantages, are known."""
    setup = make(queries="all", gamma=0.5)
    pairs = train_online.sample_pairs(setup, 0)
    assert pairs.queries == 4 * (2 * STEPS - 1)
    with torch.no_grad():
        steps = range(STEPS)
        x = [setup.kernel.model_input(pairs.states[:, :, n].flatten(0, 1), n) for n in steps]
        cond = pairs.cond.repeat_interleave(2, 0)
        x0_hat = [setup.model.predict_x0(x[n], int(setup.kernel.timesteps[n]), cond) for n in steps]
        rewards = torch.stack([tiny.brightness(setup.model.decode(x0), []) for x0 in x0_hat], 1)  # (8, T)
    torch.testing.assert_close(pairs.reward.flatten(), rewards[:, -1], atol=1e-5, rtol=1e-5)
    rows = torch.tensor([setup.prompts.index(p) for p in pairs.prompts]).repeat_interleave(2)
    expected = Advantages(len(setup.prompts), STEPS, "step-prompt", 32, 4, 5.0)(discounted_returns(rewards, 0.5), rows)
    torch.testing.assert_close(pairs.advantage.flatten(0, 1), expected, atol=2e-3, rtol=2e-3)


def test_trajectory_methods_spread_one_advantage_over_the_steps(make):
    for method in ("ddpo", "rebel"):
        pairs = train_online.sample_pairs(make(method, method), 0)
        assert torch.equal(pairs.advantage, pairs.advantage[..., :1].expand(-1, -1, STEPS))
        assert (pairs.advantage[:, 0] >= pairs.advantage[:, 1]).all(), "the higher reward first"


def test_every_step_of_every_pair_comes_once_an_epoch(make):
    setup = make(minibatch=2)
    pairs = train_online.sample_pairs(setup, 0)
    updates = list(train_online.minibatches(setup, pairs, 0))
    assert len(updates) == STEPS * 2 and all(steps.shape == (2, 1) for _, steps in updates)
    seen = sorted((int(i), int(n)) for which, steps in updates for i, n in zip(which, steps[:, 0], strict=True))
    assert seen == [(i, n) for i in range(4) for n in range(STEPS)]
    assert any(len(steps.unique()) > 1 for _, steps in updates), "each pair in its own order"
    again = list(train_online.minibatches(setup, pairs, 1))
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(updates, again, strict=True)), "another in the next epoch"
    (one,) = train_online.minibatches(make("ddpo", "ddpo"), pairs, 0)
    assert one[1].shape == (4 * STEPS, 1), "all steps in one update, each a row of its own"
    (one,) = train_online.minibatches(make("rebel", "rebel"), pairs, 0)
    assert one[1].shape == (4, STEPS), "the square is over the sum of a pair's steps"


@pytest.mark.parametrize("method", ["sdpo", "ddpo", "rebel", "d3po"])
def test_micro_batches_change_nothing(make, method):
    """Up to the order in which float32 adds the parts up, which AdamW enlarges where a gradient is next to nothing."""
    whole, parts = make(method, "whole", lr=1e-3), make(method, "parts", lr=1e-3, micro_batch=1, rollout_batch=3)
    start = weights(whole).clone()
    records = [list(train_online.train(setup)) for setup in (whole, parts)]
    moved, apart = (weights(whole) - start).norm(), (weights(parts) - weights(whole)).norm()
    assert apart < 0.01 * moved
    assert records[0][0]["loss"] == pytest.approx(records[1][0]["loss"], rel=1e-3, abs=1e-6)
    assert records[0][1].keys() >= {"reward", "queries", "drift"}


@pytest.mark.parametrize("method", ["sdpo", "ddpo", "rebel", "d3po"])
def test_the_better_of_a_pair_becomes_likelier(make, method):
    setup = make(method, rounds=1, lr=2e-3, clip=None, weight_decay=0.0)
    pairs = train_online.sample_pairs(setup, 0)
    list(train_online.train(setup))
    steps = torch.arange(STEPS).expand(4, -1)
    with torch.no_grad():
        rho = train_online.log_probs(setup, pairs, torch.arange(4), steps) - pairs.logp_old  # (4, 2, T)
    assert (rho[:, 0] - rho[:, 1]).sum() > 0


@pytest.mark.parametrize("method", ["sdpo", "ddpo", "rebel", "d3po"])
def test_a_resumed_run_has_the_same_bits(make, method):
    """With the statistics of the advantages, which a fresh start would lack."""
    whole = make(method, "whole", rounds=3, lr=1e-3)
    list(train_online.train(whole))
    stopped = make(method, "stopped", rounds=3, lr=1e-3)
    next(train_online.train(stopped))
    resumed = make(method, "stopped", rounds=3, lr=1e-3, resume=True)
    assert resumed.run.start == 1
    list(train_online.train(resumed))
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.run.history == whole.run.history


def test_snapshots_are_kept(make, folder):
    setup = make(rounds=3, lr=1e-3, snapshot_every=1)
    list(train_online.train(setup))
    kept = sorted((setup.config.out / "snapshots").iterdir())
    assert [path.name for path in kept] == ["000001", "000002", "000003"]
    again = models.load(folder)
    again.load_adapter(kept[-1])
    assert all(
        torch.equal(a, b) for a, b in zip(again.trained_parameters().values(), setup.run.parameters, strict=True)
    )
    again.load_adapter(kept[0])
    assert not torch.equal(next(iter(again.trained_parameters().values())), setup.run.parameters[0])


def test_a_run_killed_at_a_checkpoint_has_its_snapshot(make, monkeypatch):
    """The snapshot of a round is written first: a run that goes on from that round does not make it again."""

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    setup = make(out="stopped", rounds=2, snapshot_every=1, save_every=1)
    monkeypatch.setattr(setup.run, "save", kill)
    with pytest.raises(KeyboardInterrupt):
        next(train_online.train(setup))
    assert (setup.config.out / "snapshots" / "000001").is_dir()


@pytest.mark.parametrize(
    "method,settings,message",
    [
        ("ddpo", {"clip": 1.5}, "clip = 1.5: a ratio's range around 1, expected below 1"),
        ("d3po", {"clamp": 2.0}, "clamp = 2.0: a ratio's range"),
        ("ddpo", {"normalize": None}, "ddpo with normalize = None: its loss needs advantages; use prompt or global"),
        ("rebel", {"normalize": None}, "rebel with normalize = None"),
        ("sdpo", {"normalize": None}, "sdpo with normalize = None"),
        ("rebel", {"queries": "adaptive"}, "rebel with queries = 'adaptive': it compares rewards of whole"),
    ],
)
def test_what_a_loss_would_refuse_is_told_before_anything_is_sampled(make, method, settings, message):
    with pytest.raises(ValueError, match=message):
        make(method, **settings)


def test_a_ratio_that_is_not_one_is_told(make, monkeypatch):
    setup = make()
    monkeypatch.setattr(train_online, "log_probs", lambda setup, pairs, which, steps: pairs.logp_old[which] + 2e-4)
    with pytest.raises(FloatingPointError, match=r"differ by 2.0e-04 between rollout and update, and the clip is"):
        list(train_online.train(make(out="b", clip=1e-4)))
    monkeypatch.undo()
    train_online.check_ratio(setup, train_online.sample_pairs(setup, 0))


@pytest.mark.parametrize(
    "setting,message",
    [
        ({"gamma": 1.5}, "gamma = 1.5"),
        ({"min_count": 40}, "min_count = 40"),
        ({"decay": 0.0}, "decay = 0.0"),
        ({"eta": -1.0}, "eta = -1.0"),
        ({"clip": 0.0}, "clip = 0.0"),
        ({"queries": "best"}, "queries = 'best'"),
        ({"updates": "twice"}, "updates = 'twice'"),
    ],
)
def test_bad_settings_are_told_before_any_sampling(make, setting, message):
    with pytest.raises(ValueError, match=message):
        make(**setting)


def test_the_paper_s_settings():
    """[SDPO Table 2]"""
    for method in ("sdpo", "ddpo", "rebel", "d3po"):
        config = make_config(train_online.OnlineConfig, method, "full")
        assert (config.model, config.kernel, config.steps, config.pairs, config.weight_decay) == (
            "sd-turbo",
            "ddim",
            50,
            128,
            1e-4,
        )
        assert sums_steps(config) == (method == "rebel")
    sdpo = make_config(train_online.OnlineConfig, "sdpo", "full")
    assert (sdpo.gamma, sdpo.decay, sdpo.eta, sdpo.clip, sdpo.buffer, sdpo.min_count) == (0.99, 0.99, 1, 1e-4, 32, 16)


def steps_seen(setup, pairs):
    return {int(n) for _, steps in train_online.minibatches(setup, pairs, 0) for n in steps.flatten()}


@pytest.mark.parametrize("method", ["sdpo", "d3po", "rebel"])
def test_the_last_step_can_be_left_out(make, method):
    """Of the losses: it is sampled, and scored, as before."""
    setup, whole = make(method, "without", last_step=False), make(method, "whole")
    pairs, same = (train_online.sample_pairs(one, 0) for one in (setup, whole))
    assert torch.equal(pairs.states, same.states) and pairs.queries == same.queries
    assert steps_seen(setup, pairs) == set(range(STEPS - 1)) and steps_seen(whole, same) == set(range(STEPS))
    if method == "d3po":
        reference, full = (train_online.reference_log_probs(*each) for each in ((setup, pairs), (whole, same)))
        assert torch.equal(reference[..., :-1], full[..., :-1]) and (reference[..., -1] == 0).all()
        assert (full[..., -1] != 0).all()
    list(train_online.train(setup))
    with pytest.raises(ValueError, match="a trajectory of 1 steps and last_step = False leaves no step to train"):
        make(method, "none", steps=1, last_step=False)


def test_rounds_of_mixed_lengths(make):
    """Each of one length for all its pairs; drawn by the seed and the round alone."""
    setup = make("ddpo", mixed_steps=(1, 2, 4), rounds=8)
    lengths = [train_online.sample_pairs(setup, number).states.shape[2] - 1 for number in range(8)]
    assert set(lengths) == {1, 2, 4}
    assert lengths[5] == train_online.sample_pairs(make("ddpo", "again", mixed_steps=(1, 2, 4)), 5).kernel.num_steps
    other = make("ddpo", "other", mixed_steps=(1, 2, 4), seed=1)
    assert lengths != [train_online.sample_pairs(other, number).kernel.num_steps for number in range(8)]
    pairs = train_online.sample_pairs(setup, lengths.index(4))
    assert steps_seen(setup, pairs) == set(range(4)) and pairs.advantage.shape[2] == 4
    which, steps = torch.arange(4), torch.arange(4).expand(4, -1)
    again = train_online.log_probs(make("ddpo", "b", mixed_steps=(1, 2, 4)), pairs, which, steps)
    torch.testing.assert_close(again, pairs.logp_old, atol=1e-5, rtol=1e-5)


def test_a_resumed_run_of_mixed_lengths_has_the_same_bits(make):
    settings = {"rounds": 4, "lr": 1e-3, "mixed_steps": (1, 3)}
    whole = make("ddpo", "whole", **settings)
    list(train_online.train(whole))
    stopped = train_online.train(make("ddpo", "stopped", **settings))
    next(stopped), next(stopped)
    resumed = make("ddpo", "stopped", resume=True, **settings)
    assert resumed.run.start == 2
    list(train_online.train(resumed))
    assert torch.equal(weights(resumed), weights(whole)) and resumed.run.history == whole.run.history
    with pytest.raises(ValueError, match="was run with mixed_steps"):
        make("ddpo", "stopped", resume=True, **settings | {"mixed_steps": (1, 2)})


def test_dense_rewards_need_trajectories_of_one_length(make):
    with pytest.raises(ValueError, match=r"mixed_steps = \(1, 2\) with queries = 'adaptive': rewards of steps need"):
        make(mixed_steps=(1, 2))
    with pytest.raises(ValueError, match="num_steps|expected"):
        make("ddpo", mixed_steps=(1, 0))
