"""Each online loss on a minibatch, against its formula with one network call for each transition.

The weights are nudged away from those that sampled, and those from the reference; the settings are none of the
defaults; the reward depends on the prompt. So what goes to a wrong row, side, step, time or setting changes the value.
"""

import copy
import math

import numpy as np
import pytest
import torch

from fsalign_lib.rollout import seeded_noise
from reproduce import train_online
from reproduce.recipes import make_config
from tests import tiny
from tests.by_hand import gradient, nudge, same, times_seen

TIMES = [999, 749, 499, 249]  # of four steps


@pytest.fixture
def make(loaded, prompts_file, tmp_path):
    def make(method, out="run", reward=tiny.taste, **overrides):
        small = {"model": "tiny", "prompts": prompts_file, "rounds": 2, "pairs": 2, "minibatch": 2, "steps": 4}
        small |= {"training": "lora", "rank": 2, "save_every": 9, "micro_batch": None}
        config = make_config(train_online.OnlineConfig, method, out=tmp_path / out, **(small | overrides))
        return train_online.prepare(config, copy.deepcopy(loaded), reward)

    return make


def log_prob(setup, prompt, x, x_next, n):
    """Of one transition, as the samplers' papers have it."""
    model, ab = setup.model, setup.model.schedule.alpha_bar.tolist()
    t, cond = TIMES[n], model.encode_prompts([prompt])
    now, after = ab[t], ab[([*TIMES, 0])[n + 1]]
    if setup.config.kernel == "ddim":
        eps = model.predict_eps(x, t, cond)
        std = math.sqrt((1 - after) / (1 - now) * (1 - now / after))
        x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        mean = math.sqrt(after) * x0 + math.sqrt(1 - after - std**2) * eps
    else:  # Euler ancestral, whose states are x_0 + sigma eps
        sigma, lower = math.sqrt((1 - now) / now), math.sqrt((1 - after) / after)
        eps = model.predict_eps(x * math.sqrt(now), t, cond)
        std = math.sqrt(lower**2 * (sigma**2 - lower**2) / sigma**2)
        mean = x + eps * (lower**2 / sigma - sigma)
    each = torch.distributions.Normal(mean, std).log_prob(x_next)
    return each.mean() if setup.config.reduction == "mean" else each.sum()


def log_probs(setup, pairs, steps):
    """Of all pairs at these steps, one network call each.  # (P, 2, S)"""

    def one(i, side, n):
        x, x_next = pairs.states[i, side, n][None], pairs.states[i, side, n + 1][None]
        return log_prob(setup, pairs.prompts[i], x, x_next, n)

    rows = range(len(pairs.prompts))
    return torch.stack([torch.stack([torch.stack([one(i, s, n) for n in steps]) for s in range(2)]) for i in rows])


def pso(c, steps, now, old, ref, advantage):
    log_ratio = (now - ref).exp().clamp(1 - c.clamp, 1 + c.clamp).log()
    h = log_ratio[:, 0] - log_ratio[:, 1]
    h = h.sum(1) if c.sum_steps == "inside" and c.method == "pso-online" else h
    return torch.log1p(torch.exp(-c.beta * h)).mean()


def ddpo(c, steps, now, old, ref, advantage):
    ratio = (now - old).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - c.clip, 1 + c.clip)).mean()


def rebel(c, steps, now, old, ref, advantage):
    rho, wanted = now - old, advantage[:, 0, 0] - advantage[:, 1, 0]
    if c.sum_steps == "inside":
        return (((rho[:, 0] - rho[:, 1]).sum(1) / c.eta - wanted) ** 2).mean()
    return sum(((rho[:, 0, n] - rho[:, 1, n]) / c.eta - wanted) ** 2 for n in range(len(steps))).mean()


def sdpo(c, steps, now, old, ref, advantage):
    rho, wanted = now - old, advantage[:, 0] - advantage[:, 1]
    weight = torch.tensor([c.decay ** (n if c.decay_order == "decaying" else 3 - n) / c.eta for n in steps])
    terms = [(weight * (r[:, 0] - r[:, 1]) - wanted) ** 2 for r in (rho, rho.clamp(-c.clip, c.clip))]
    return torch.maximum(*terms).mean()


CASES = {
    "PSO, summed inside": ("pso-online", pso, {"beta": 0.7, "clamp": 0.1, "sum_steps": "inside"}),
    "PSO, a sigmoid a step": ("pso-online", pso, {"beta": 3.0, "clamp": 0.1, "sum_steps": "outside"}),
    "D3PO": ("d3po", pso, {"beta": 20.0, "clamp": 0.05}),
    "DDPO": ("ddpo", ddpo, {"clip": 0.05, "shared_start": True}),
    "REBEL": ("rebel", rebel, {"eta": 0.6, "sum_steps": "inside", "shared_start": False}),
    "REBEL, as printed": ("rebel", rebel, {"eta": 0.6, "sum_steps": "outside"}),
    "SDPO": ("sdpo", sdpo, {"eta": 0.9, "decay": 0.5, "clip": 0.05, "gamma": 0.5}),
    "SDPO, reversed, a mean": (
        "sdpo",
        sdpo,
        {"eta": 0.05, "decay": 0.5, "clip": 1e-3, "decay_order": "reverse", "reduction": "mean"},
    ),
}


def test_through_a_reward_the_gradient_passes_reward_decoder_and_last_step_alone(make):
    """The loss is the mean reward of what the last step predicts of the recorded state before it, negated."""
    setup = make("draft")
    nudge(setup.model, seed=1)
    pairs = train_online.sample_pairs(setup, 0)
    nudge(setup.model, seed=2)
    which, steps = next(train_online.minibatches(setup, pairs, 0))
    assert sorted(which.tolist()) == [0, 1] and steps.tolist() == [[3], [3]]
    loss, diagnostics = train_online.minibatch_loss(setup, pairs, None, which, steps)

    model, ab = setup.model, setup.model.schedule.alpha_bar[249].item()
    rewards = []
    for i, prompt in enumerate(pairs.prompts):
        for side in range(2):
            x = pairs.states[i, side, 3][None] * math.sqrt(ab)  # Euler's states are x_0 + sigma eps
            eps = model.predict_eps(x, 249, model.encode_prompts([prompt]))
            x0 = (x - math.sqrt(1 - ab) * eps) / math.sqrt(ab)
            inside = model.decode(x0)
            beyond = model.vae.decode(x0 / model.vae.config.scaling_factor).sample / 2 + 0.5
            rewards.append(tiny.taste(beyond + (inside - beyond).detach(), [prompt]))
    expected = -torch.cat(rewards).mean()
    same(loss, expected, model)
    assert diagnostics["reward"] == pytest.approx(-expected.item())
    assert pairs.queries == 4, "each picture is scored once an epoch, by the loss"


def test_through_a_reward_a_single_step_is_trained_too(make):
    """Of a one-step generator, which has no likelihood."""
    setup = make("draft", steps=1)
    pairs = train_online.sample_pairs(setup, 0)
    loss, _ = train_online.minibatch_loss(setup, pairs, None, torch.arange(2), torch.zeros(2, 1, dtype=torch.long))
    names = [prompt for prompt in pairs.prompts for _ in range(2)]
    drawn = setup.model.decode(pairs.states[:, :, 1].flatten(0, 1))  # a last step gives its prediction
    assert loss.item() == pytest.approx(-tiny.taste(drawn, names).mean().item(), rel=1e-4)
    assert gradient(loss, setup.model).norm() > 0


def test_a_method_through_a_reward_refuses_what_it_does_not_have(make, loaded, prompts_file, tmp_path):
    for settings, told in (
        ({"queries": "adaptive"}, "queries = 'adaptive' with draft, which has none"),
        ({"normalize": "prompt"}, "normalize = 'prompt' with draft"),
        ({"clamp": 0.1}, "clamp = 0.1 with draft"),
    ):
        with pytest.raises(ValueError, match=told):
            make("draft", **settings)
    with pytest.raises(ValueError, match="reward jpeg-compressibility has no gradient: choose another"):
        config = make_config(
            train_online.OnlineConfig,
            "draft",
            model="tiny",
            prompts=prompts_file,
            reward="jpeg-compressibility",
            out=tmp_path / "jpeg",
        )
        train_online.prepare(config, copy.deepcopy(loaded))


UNSET = {"beta": 1.0, "eta": 1.0, "decay": 1.0, "clip": 1e9, "clamp": 0.999999}


@pytest.mark.parametrize("case", CASES)
def test_an_online_loss_is_its_formula(make, case):
    method, formula, settings = CASES[case]
    setup = make(method, **({"reduction": "sum"} | settings))
    steps = list(setup.kernel.stochastic_steps)
    assert steps == ([0, 1, 2] if method == "pso-online" else [0, 1, 2, 3])

    nudge(setup.model, seed=1)  # so that the model that samples is not the reference
    referred = method in ("pso-online", "d3po")
    with torch.no_grad():
        pairs = train_online.sample_pairs(setup, 0)
        old, ref = log_probs(setup, pairs, steps), None
        if referred:
            with setup.model.reference():
                ref = log_probs(setup, pairs, steps)
    kept = train_online.reference_log_probs(setup, pairs)
    assert (kept is not None) == referred
    for logp, expected in ((pairs.logp_old, old), (kept, ref)) if referred else ((pairs.logp_old, old),):
        torch.testing.assert_close(logp[..., steps], expected, atol=2e-3, rtol=1e-4)

    nudge(setup.model, 0.02 if setup.config.reduction == "sum" else 0.1, seed=2)
    rows = list(train_online.minibatches(setup, pairs, 0))
    which, chosen = torch.cat([pair for pair, _ in rows]), torch.cat([n for _, n in rows])
    seen = times_seen(setup.model)
    loss, diagnostics = train_online.minibatch_loss(setup, pairs, kept, which, chosen)
    assert seen == [[TIMES[n] for row in chosen.tolist() for _ in range(2) for n in row]]

    now = log_probs(setup, pairs, steps)
    advantage = None if pairs.advantage is None else pairs.advantage[..., steps]
    expected = formula(setup.config, steps, now, old, ref, advantage)
    tolerance = 3e-3 if setup.config.reduction == "sum" else 1e-2
    same(loss, expected, setup.model, tolerance)
    found = gradient(expected, setup.model)
    base = ref if referred else old
    torch.testing.assert_close(diagnostics["drift"], (now - base).abs().mean(), atol=1e-3, rtol=1e-3)
    if formula in (ddpo, sdpo):
        assert 0 < diagnostics["clipped"] < 1 and diagnostics["stopped" if formula is ddpo else "limited"] > 0
    for name in settings.keys() & UNSET.keys():
        other = copy.copy(setup.config)
        setattr(other, name, UNSET[name])
        without = gradient(formula(other, steps, now, old, ref, advantage), setup.model)
        assert (without - found).norm() > 1.5 * tolerance * found.norm(), f"{name} does not matter here"


@pytest.mark.parametrize("method,queries", [("pso-online", "final"), ("sdpo", "all"), ("sdpo", "adaptive")])
def test_a_reward_is_of_its_own_prompt_and_picture(make, method, queries):
    setup = make(method, queries=queries, pairs=3, minibatch=3)
    told = []
    reward, setup.reward = setup.reward, lambda images, prompts: told.extend(prompts) or reward(images, prompts)
    pairs = train_online.sample_pairs(setup, 0)
    assert len(told) == pairs.queries == {"final": 6, "all": 3 * 7, "adaptive": 3 * 5}[queries]
    for i, prompt in enumerate(pairs.prompts):
        for side in range(2):
            with torch.no_grad():
                picture = pairs.states[i, side, -1][None]
                if queries != "final":  # of the prediction that the last step makes
                    x = pairs.states[i, side, 3][None]
                    picture = setup.model.predict_x0(x, TIMES[3], setup.model.encode_prompts([prompt]))
                expected = tiny.taste(setup.model.decode(picture), [prompt])
            torch.testing.assert_close(pairs.reward[i, side][None], expected, atol=1e-4, rtol=1e-4)
    assert (pairs.reward[:, 0] > pairs.reward[:, 1]).all()
    assert len({round(r, 2) for r in pairs.reward[:, 0].tolist()}) == 3, "or a wrong prompt would not be seen"


def test_advantages_of_three_rounds_are_of_their_own_prompt(make):
    """Over the last three trajectories of the prompt where it has as many, over the round otherwise."""
    setup = make("ddpo", pairs=4, minibatch=4, buffer=3, min_count=3, advantage_clip=0.9)
    # The trajectories of a pair are entered in the order in which they were sampled, which ranks do not keep.
    remembered, own, batch = {prompt: [] for prompt in setup.prompts}, 0, 0
    sampled, seen, sample_some = [], [], train_online.sample_some

    def watched(*args):
        found = sample_some(*args)
        sampled.append(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_online, "sample_some", watched)
        for number in range(3):
            pairs = train_online.sample_pairs(setup, number)
            unranked = sampled[-1][2][..., -1].tolist()
            ids = [place * 6 + setup.prompts.index(prompt) for place, prompt in enumerate(pairs.prompts)]
            noise = seeded_noise(setup.config.seed, number, ids, setup.model.latent_shape, 10).unflatten(1, (2, 5))
            assert torch.equal(sampled[-1][0][:, :, 0], noise[:, :, 0]), "of seed, round, place and prompt alone"
            for prompt, some in zip(pairs.prompts, unranked, strict=True):
                remembered[prompt] = [*remembered[prompt], *some][-3:]
            everything = [r for some in unranked for r in some]
            for i, prompt in enumerate(pairs.prompts):
                enough = len(remembered[prompt]) == 3
                own, batch = own + enough, batch + (not enough)
                among = remembered[prompt] if enough else everything
                expected = [(r - np.mean(among)) / (np.std(among) + 1e-6) for r in sorted(unranked[i], reverse=True)]
                expected = torch.tensor(expected).clamp(-0.9, 0.9).float()
                torch.testing.assert_close(pairs.advantage[i, :, 0], expected, atol=1e-2, rtol=1e-2)
                torch.testing.assert_close(pairs.reward[i].sort()[0], torch.tensor(sorted(unranked[i])))
            seen += pairs.prompts
    assert own and batch
    assert sorted(seen) == sorted(tiny.PROMPTS * 2), "epochs of all prompts"


def test_a_round_is_the_updates_written_out(make):
    """AdamW with the settings' numbers, on clipped gradients; the record is the mean over the updates."""
    settings = {"rounds": 1, "steps": 2, "pairs": 2, "minibatch": 1, "epochs": 2, "lr": 1e-3, "betas": (0.5, 0.7)}
    settings |= {"weight_decay": 0.3, "reduction": "sum", "clip": 0.05}
    loop, hand = (make("sdpo", out, **settings, grad_clip=0.5) for out in ("loop", "hand"))
    (record,) = train_online.train(loop)

    parameters, records = hand.run.parameters, []
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.5, 0.7), weight_decay=0.3)
    pairs = train_online.sample_pairs(hand, 0)
    for epoch in range(2):
        for which, steps in train_online.minibatches(hand, pairs, epoch):
            loss, diagnostics = train_online.minibatch_loss(hand, pairs, None, which, steps)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
            optimizer.zero_grad()
            records.append(diagnostics | {"loss": loss.detach(), "gradient": norm})
    assert len(records) == 2 * 2 * 2, "a step of a pair an update"
    assert max(r["gradient"] for r in records) > 0.5, "or no gradient was clipped"
    for one, other in zip(loop.run.parameters, parameters, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    for name in records[0]:
        mean = sum(r[name].item() for r in records) / len(records)
        assert record[name] == pytest.approx(mean, rel=1e-3, abs=1e-6), name
    assert record["reward"] == pytest.approx(pairs.reward.mean().item(), rel=1e-5)
    assert record["queries"] == pairs.queries == 2 * 3 and record["ties"] == 0


def test_a_tie_of_one_pair_has_no_gradient_and_the_others_have_theirs(make):
    setup = make("pso-online")
    nudge(setup.model)
    pairs = train_online.sample_pairs(setup, 0)
    pairs.reward[1] = 1.0
    ref = train_online.reference_log_probs(setup, pairs)
    for pair, learns in ((0, True), (1, False)):
        which, steps = torch.tensor([pair]), torch.tensor([[1]])
        loss, _ = train_online.minibatch_loss(setup, pairs, ref, which, steps)
        assert not loss.requires_grad or gradient(loss, setup.model).any() == learns


def test_pairs_come_in_another_order_each_epoch_and_round(make):
    setup = make("ddpo", pairs=6, minibatch=6)
    pairs = train_online.sample_pairs(setup, 0)
    orders = [next(train_online.minibatches(setup, pairs, epoch))[0][::4].tolist() for epoch in range(3)]
    pairs.number = 1
    orders.append(next(train_online.minibatches(setup, pairs, 0))[0][::4].tolist())
    assert len(set(map(tuple, orders))) == 4 and all(sorted(order) == [*range(6)] for order in orders)
