"""Dense rewards: similarity, anchor and prediction against loops in numpy; queries counted; returns by recursion."""

from typing import get_args

import numpy as np
import pytest
import torch

from fsalign_lib.dense_reward import (
    Strategy,
    anchor_step,
    cosine_similarity,
    dense_rewards,
    discounted_returns,
    predict_rewards,
    query_steps,
)

B, T, SHAPE = 6, 9, (4, 3, 3)
STRATEGIES = get_args(Strategy)
WITH_ANCHOR = ("adaptive", "random", "fixed")


def predictions(steps=T, offset=1.0, seed=0):
    """x0_hat of B trajectories that wander from a start of their own; an offset makes the similarities positive."""
    generator = torch.Generator().manual_seed(seed)
    walk = torch.randn(B, steps, *SHAPE, generator=generator, dtype=torch.float64).cumsum(1) / steps**0.5
    return walk + offset


def uniform(seed=0):
    return torch.rand(B, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    a, b = np.asarray(a).ravel(), np.asarray(b).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def reward(latents, rows):
    """Depends on the prediction and on whose it is, as a prompt's would."""
    return latents.flatten(1).mean(1) + 10.0 * rows


def exact(x0_hat):
    return x0_hat.flatten(2).mean(2) + 10.0 * torch.arange(len(x0_hat))[:, None]


def by_brute_force(x, ends_too=False):
    T = len(x)
    inside = range(T) if ends_too else range(1, T - 1)
    return min(inside, key=lambda n: cosine(x[n], x[0]) + cosine(x[n], x[-1]))


@pytest.mark.parametrize("steps", [3, 4, T])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_anchor_equals_brute_force(steps, offset):
    x = predictions(steps, offset)
    assert anchor_step(x).tolist() == [by_brute_force(row) for row in x]
    assert anchor_step(x.float()).tolist() == anchor_step(x).tolist()


def test_along_an_arc_an_anchor_over_all_steps_is_an_end():
    angles = torch.linspace(0, 1.2, T, dtype=torch.float64) ** 1.5  # uneven steps along one arc
    arc = torch.stack([angles.cos(), angles.sin(), torch.zeros(T)], 1)[None]
    assert by_brute_force(arc[0], ends_too=True) in (0, T - 1)
    anchor = int(anchor_step(arc))
    assert 0 < anchor < T - 1 and anchor == by_brute_force(arc[0])
    detour = arc.clone()
    detour[0, 5, 2] = 1.0  # one prediction leaves the arc: now it is the anchor, the ends or not
    assert int(anchor_step(detour)) == by_brute_force(detour[0], ends_too=True) == 5


def test_equal_predictions_take_the_earliest_anchor():
    assert anchor_step(torch.ones(2, 6, 3)).tolist() == [1, 1]


def test_cosine_similarity_equals_numpy_and_ignores_scale():
    x, steps = predictions(), torch.tensor([[0, 3, T - 1]] * B)
    similarity = cosine_similarity(x, steps)
    expected = [[[cosine(x[b, n], x[b, m]) for m in (0, 3, T - 1)] for n in range(T)] for b in range(B)]
    np.testing.assert_allclose(similarity.numpy(), expected, atol=1e-12)
    torch.testing.assert_close(cosine_similarity(x * torch.rand(B, T, 1, 1, 1, dtype=x.dtype), steps), similarity)
    half = cosine_similarity(x.half(), steps)
    assert half.dtype == torch.float32 and (half - similarity).abs().max() < 1e-3
    x[0, 2] = 0
    assert (cosine_similarity(x, steps)[0, 2] == 0).all()


QUERIES = {"adaptive": 3, "random": 3, "fixed": 3, "similarity": 2, "interpolation": 2, "copy": 1, "all": T}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_queries_are_counted_and_keep_their_exact_rewards(strategy):
    x = predictions()
    calls = []

    def counted(latents, rows):
        calls.append(len(latents))
        return reward(latents, rows)

    dense = dense_rewards(x, counted, strategy, uniform())
    assert calls == [dense.queries] == [B * QUERIES[strategy]], "one call, each prediction once"
    assert dense.rewards.shape == (B, T) and dense.steps.shape == (B, QUERIES[strategy])
    torch.testing.assert_close(dense.rewards.gather(1, dense.steps), exact(x).gather(1, dense.steps))
    assert (dense.steps.diff() > 0).all() and (dense.steps[:, -1] == T - 1).all()
    asked = exact(x).gather(1, dense.steps)
    low, high = asked.min(1, keepdim=True).values, asked.max(1, keepdim=True).values
    assert ((dense.rewards >= low - 1e-9) & (dense.rewards <= high + 1e-9)).all()
    if strategy in WITH_ANCHOR:
        assert ((dense.steps[:, 1] > 0) & (dense.steps[:, 1] < T - 1)).all()


def test_a_pair_shares_its_first_query():
    x = predictions()
    x[1::2, 0] = x[::2, 0]  # rows 0 and 1, 2 and 3, ...: one prompt and one x_T, so one first prediction
    seen = []

    def pair_reward(latents, rows):
        seen.extend(zip(rows.tolist(), latents, strict=True))
        return latents.flatten(1).mean(1) + 10.0 * (rows // 2)

    apart = dense_rewards(x, lambda z, rows: z.flatten(1).mean(1) + 10.0 * (rows // 2))
    shared = dense_rewards(x, pair_reward, share_first=2)
    assert (apart.queries, shared.queries) == (3 * B, 3 * B - B // 2) and len(seen) == shared.queries
    torch.testing.assert_close(shared.rewards, apart.rewards)
    for b, latent in seen:
        assert any(torch.equal(latent, x[b, n]) for n in shared.steps[b]), "the row that comes with a prediction is its"
    last_only = dense_rewards(x, pair_reward, "copy", share_first=2)
    assert last_only.queries == B, "last predictions differ"


def predicted_by_loop(x, steps, rewards, keep=True):
    """SDPO Eq. 11 written out, then the exact rewards put back."""
    predicted = np.zeros(x.shape[:2])
    for b in range(len(x)):
        for n in range(x.shape[1]):
            similarity = [cosine(x[b, n], x[b, m]) for m in steps[b]]
            predicted[b, n] = np.dot(similarity, rewards[b]) / np.sum(similarity)
        if keep:
            predicted[b, steps[b]] = rewards[b]
    return predicted


@pytest.mark.parametrize("strategy", [*WITH_ANCHOR, "similarity"])
def test_prediction_by_similarity_is_eq_11(strategy):
    x = predictions()
    dense = dense_rewards(x, reward, strategy, uniform())
    asked = exact(x).gather(1, dense.steps).numpy()
    assert cosine_similarity(x, dense.steps).min() > 0
    np.testing.assert_allclose(dense.rewards, predicted_by_loop(x.numpy(), dense.steps.numpy(), asked), atol=1e-10)
    blurred = predicted_by_loop(x.numpy(), dense.steps.numpy(), asked, keep=False)
    assert np.abs(blurred - dense.rewards.numpy()).max() > 1e-3, "Eq. 11 alone loses the exact rewards"


def test_negative_similarities_do_not_leave_the_range():
    x = torch.tensor([[1.0, 0.0], [-0.999, -0.045], [0.0, -1.0], [0.0, 1.0]])[None]  # (1, 4, 2)
    steps, rewards = torch.tensor([[0, 3]]), torch.tensor([[1.0, 2.0]])
    predicted = predict_rewards(x, steps, rewards, "similarity")
    assert predicted.min() >= 1 and predicted.max() <= 2
    assert predicted[0, 1] == 1.5, "nothing is like either: the mean"
    zero = torch.tensor([[1.0, 0.0], [1.0, -0.999], [0.0, 1.0]])[None]  # similarities that cancel
    printed = predicted_by_loop(zero.numpy(), np.array([[0, 2]]), rewards.numpy())
    assert printed[0, 1] < -900, "as printed"
    assert predict_rewards(zero, torch.tensor([[0, 2]]), rewards, "similarity")[0, 1] == 1


def test_the_alternatives_of_the_ablation():
    x = predictions()
    truth = exact(x)
    torch.testing.assert_close(dense_rewards(x, reward, "all").rewards, truth)
    torch.testing.assert_close(dense_rewards(x, reward, "copy").rewards, truth[:, -1:].expand(B, T))
    line = np.stack([np.linspace(row[0], row[-1], T) for row in truth.numpy()])
    np.testing.assert_allclose(dense_rewards(x, reward, "interpolation").rewards, line, atol=1e-10)
    assert query_steps(predictions(50), "fixed")[:, 1].tolist() == [24] * B, "the 25th of 50, as in the paper"
    drawn = torch.cat([query_steps(x, "random", uniform(seed))[:, 1] for seed in range(200)])
    share = drawn.bincount(minlength=T).double() / len(drawn)
    assert share[0] == share[-1] == 0 and (share[1:-1] - 1 / (T - 2)).abs().max() < 0.035
    edge = torch.full((B,), 1 - 2**-24)  # the largest float32 below 1
    assert query_steps(x, "random", edge)[:, 1].tolist() == [T - 2] * B
    assert query_steps(x, "random", torch.zeros(B))[:, 1].tolist() == [1] * B


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 2])
def test_short_trajectories_have_no_interior(strategy, steps):
    x = predictions(steps)
    dense = dense_rewards(x, reward, strategy, uniform())
    if strategy == "copy":
        assert dense.queries == B
        torch.testing.assert_close(dense.rewards, exact(x)[:, -1:].expand(B, steps))
    else:
        assert dense.queries == B * steps
        torch.testing.assert_close(dense.rewards, exact(x))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99, 1.0])
def test_returns_are_the_recursion(gamma):
    rewards = torch.randn(B, T, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    returns = discounted_returns(rewards, gamma)
    expected = rewards.detach().clone()
    for n in range(T - 2, -1, -1):  # published code's form
        expected[:, n] += gamma * expected[:, n + 1]
    torch.testing.assert_close(returns, expected)
    # SDPO Eq. 13 in its own index: t = T-1-n
    t = T - 1 - 2
    eq_13 = sum(gamma**k * rewards.detach()[:, T - 1 - (t - k)] for k in range(t + 1))
    torch.testing.assert_close(returns[:, 2], eq_13)
    assert not returns.requires_grad
    past = (rewards.detach() * gamma ** torch.arange(T)).cumsum(1)
    assert gamma == 0 or (past - returns).abs().max() > 0.1, "the sum over the past is something else"
    assert discounted_returns(rewards.half()).dtype == torch.float32


def test_bad_input_is_named():
    x, steps = predictions(), torch.tensor([[0, T - 1]] * B)
    rewards = torch.zeros(B, 2)
    cases = [
        (lambda: query_steps(x, "cosine"), "strategy = 'cosine': expected one of adaptive, random"),
        (lambda: query_steps(torch.zeros(2, 3)), r"x0_hat is torch.float32 of shape \(2, 3\): expected floats \(B, T"),
        (lambda: query_steps(x, "random"), 'strategy "random" needs 6 numbers in'),
        (lambda: query_steps(x, "random", torch.ones(B)), 'strategy "random" needs 6 numbers in'),
        (lambda: anchor_step(x[:, :2]), "x0_hat has 2 steps: an anchor needs 3 or more"),
        (lambda: predict_rewards(x, steps, rewards[:2]), r"steps has shape \(6, 2\), rewards \(2, 2\)"),
        (lambda: dense_rewards(x, lambda z, rows: z.flatten(1)), r"the reward has shape \(18, 36\): expected \(18,\)"),
        (lambda: dense_rewards(x, reward, share_first=4), "share_first = 4: expected a divisor of the batch size 6"),
        (lambda: discounted_returns(rewards, 1.1), "gamma = 1.1: expected 0"),
        (lambda: discounted_returns(rewards[0]), r"rewards is torch.float32 of shape \(2,\): expected floats"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
