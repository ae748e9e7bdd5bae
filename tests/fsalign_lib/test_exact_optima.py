"""Each online objective against the exact optimum that its theory names, on a chain that can be enumerated.

Two starts (the x_T), three steps, two actions a step; a policy is a table over histories, so that every policy exists
and every expectation is a finite sum, in float64. Losses are the library's, on each pair by itself, weighted by the
probability with which the sampling policy theta' draws it.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from fsalign_lib.losses.policy_gradient import ddpo_clipped, ddpo_reinforce
from fsalign_lib.losses.preference import d3po
from fsalign_lib.losses.reward_difference import importance_weights, rebel, sdpo

X, A, T = 2, 2, 3
M = A**T  # trajectories from a start
PATH = torch.arange(M)
SIZES = [X * A**n * A for n in range(T)]
ETA, BETA = 0.8, 1.5


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tables(logits):
    """Log-policies of the steps, from one vector of logits.  # [(X, A**n, A)]"""
    return [part.view(X, -1, A).log_softmax(2) for n, part in enumerate(logits.split(SIZES))]


def along(step_tables):
    """Entries of (X, A**n, A) tables along each trajectory.  # (X, M, T)"""
    return torch.stack([t.reshape(X, -1)[:, PATH // A ** (T - 1 - n)] for n, t in enumerate(step_tables)], 2)


def logp(logits):
    return along(tables(logits))


OLD_LOGITS = randn(0, sum(SIZES))
OLD = logp(OLD_LOGITS)  # (X, M, T)
REWARD = randn(1, X, M)


def tilt(old, reward, scale):
    """p' exp(scale R) / Z for each start, over whole trajectories.  # (X, M)"""
    return (old.sum(2) + scale * reward).softmax(1)


def logits_of(trajectory_probability):
    """The policy whose trajectories have these probabilities: conditionals of the marginals."""
    parts = [trajectory_probability.reshape(X, A ** (n + 1), -1).sum(2).log() for n in range(T)]
    return torch.cat([part.flatten() for part in parts])  # log-marginals: softmax over siblings gives the conditional


def pairs(share_start=True, old=OLD):
    """Indices (start, path) of both members of every pair, and how often theta' draws it."""
    p = old.sum(2).exp()
    start, path = (index.flatten() for index in torch.meshgrid(torch.arange(X), PATH, indexing="ij"))
    i, j = (index.flatten() for index in torch.meshgrid(torch.arange(X * M), torch.arange(X * M), indexing="ij"))
    a, b = (start[i], path[i]), (start[j], path[j])
    weight = p[a] * p[b] / X**2
    if share_start:
        weight = torch.where(a[0] == b[0], weight * X, 0.0)
    return a, b, weight


def expected(loss, a, b, weight, *inputs):
    """Sum over pairs of weight x loss of that pair alone; each input is (X, M, ...) and goes in for a, then for b."""
    rows = [x[index] for x in inputs for index in (a, b)]
    each = torch.func.vmap(lambda *row: loss(*(x[None] for x in row))[0])(*rows)
    return (weight * each).sum()


def gradient(objective, logits):
    logits = logits.detach().requires_grad_()
    value = objective(logits)
    return float(value.detach()), torch.autograd.grad(value, logits)[0]


def minimum(objective, start, rounds=6):
    logits = start.clone().requires_grad_()
    for _ in range(rounds):
        optimizer = torch.optim.LBFGS(
            [logits], max_iter=100, tolerance_grad=1e-11, tolerance_change=1e-16, line_search_fn="strong_wolfe"
        )

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            value = objective(logits)
            value.backward()
            return value

        optimizer.step(closure)
    return logits.detach()


def assert_stationary(objective, logits, tolerance=1e-10):
    assert gradient(objective, logits)[1].abs().max() < tolerance


def assert_not_stationary(objective, logits, tolerance=1e-3):
    assert gradient(objective, logits)[1].abs().max() > tolerance


def test_the_chain_itself():
    torch.testing.assert_close(OLD.sum(2).exp().sum(1), torch.ones(X, dtype=torch.float64))
    torch.testing.assert_close(logp(logits_of(OLD.sum(2).exp())), OLD)
    for share in (True, False):
        assert float(pairs(share)[2].sum()) == pytest.approx(1)


# ---- REBEL: p' exp(eta R) / Z on trajectories ----


def rebel_objective(share_start=True, eta=ETA, **kwargs):
    a, b, weight = pairs(share_start)

    def loss(logp_a, logp_b, old_a, old_b, R_a, R_b):
        return rebel(logp_a, old_a, logp_b, old_b, R_a, R_b, eta, **kwargs)

    return lambda logits: expected(loss, a, b, weight, logp(logits), OLD, REWARD)


def test_rebel_reaches_the_tilted_trajectories():
    target = tilt(OLD, REWARD, ETA)
    value, at_target = gradient(rebel_objective(), logits_of(target))
    assert value < 1e-24 and at_target.abs().max() < 1e-12, "no residual is left"
    found = logp(minimum(rebel_objective(), OLD_LOGITS)).sum(2).exp()
    torch.testing.assert_close(found, target, rtol=0, atol=1e-7)
    assert (found - OLD.sum(2).exp()).abs().max() > 0.05


@pytest.mark.parametrize("wrong", [{"eta": 1 / ETA}, {"eta": 2 * ETA}, {"steps": "outside"}, {"share_start": False}])
def test_rebel_in_other_forms_does_not(wrong):
    """Eq. 7 as printed regresses each step on the whole; pairs of two starts meet two different Z."""
    assert_not_stationary(rebel_objective(**wrong), logits_of(tilt(OLD, REWARD, ETA)))


# ---- SDPO: p' exp(A / w) / Z where both of a pair stand at one state ----

ADVANTAGE = [randn(2 + n, X, A**n, A) for n in range(T)]  # of each step, a function of state and action
WEIGHT = importance_weights(T, 0.8, ETA).double()


def sdpo_objective(advantage, steps=tuple(range(T)), weight=WEIGHT, share_start=True):
    a, b, probability = pairs(share_start)
    steps = list(steps)

    def loss(logp_a, logp_b, old_a, old_b, A_a, A_b):
        return sdpo(logp_a, old_a, logp_b, old_b, A_a, A_b, weight[steps], clip=None)

    credit = along(advantage)[..., steps]
    return lambda logits: expected(loss, a, b, probability, logp(logits)[..., steps], OLD[..., steps], credit)


def tilted_steps(advantage, weight=WEIGHT):
    """p'(.|s) exp(A(s, .) / w_n) / Z(s), and the log Z(s)."""
    raw = [old + q / w for old, q, w in zip(tables(OLD_LOGITS), advantage, weight, strict=True)]
    return torch.cat([r.flatten() for r in raw]), [r.logsumexp(2, keepdim=True) for r in raw]


def test_the_first_step_of_sdpo_reaches_its_tilt():
    target, _ = tilted_steps(ADVANTAGE)
    objective = sdpo_objective(ADVANTAGE, steps=(0,))
    assert_stationary(objective, target)
    found = tables(minimum(objective, OLD_LOGITS))[0]
    torch.testing.assert_close(found, tables(target)[0], rtol=0, atol=1e-7)
    assert_not_stationary(sdpo_objective(ADVANTAGE, steps=(0,), weight=WEIGHT / 2), target)
    assert_not_stationary(sdpo_objective(ADVANTAGE, steps=(0,), share_start=False), target)


def test_sdpo_reaches_the_tilt_of_every_step_where_the_states_agree_on_z():
    target, log_z = tilted_steps(ADVANTAGE)
    centred = [q - w * z for q, z, w in zip(ADVANTAGE, log_z, WEIGHT, strict=True)]  # Z(s) = 1 at every state
    value, at_target = gradient(sdpo_objective(centred), target)
    assert value < 1e-24 and at_target.abs().max() < 1e-12
    found = minimum(sdpo_objective(centred), OLD_LOGITS)
    torch.testing.assert_close(logp(found), logp(target), rtol=0, atol=1e-6)
    assert_not_stationary(sdpo_objective(ADVANTAGE), target)


def test_elsewhere_sdpo_reaches_the_minimum_of_a_variance():
    """Over pairs of a start the objective is the mean over steps of 2 Var[w rho - A]: an oracle without pairs."""
    p_old, old, credit, w = OLD.sum(2).exp().numpy(), OLD.numpy(), along(ADVANTAGE).numpy(), WEIGHT.numpy()

    def oracle(logits):
        residual = w * (logp(torch.from_numpy(logits)).numpy() - old) - credit  # (X, M, T)
        mean = (p_old[..., None] * residual).sum(1, keepdims=True)
        return 2 * (p_old[..., None] * (residual - mean) ** 2).sum(1).mean()

    objective = sdpo_objective(ADVANTAGE)
    for logits in (OLD_LOGITS, randn(9, sum(SIZES))):
        assert float(objective(logits)) == pytest.approx(oracle(logits.numpy()), rel=1e-12)
    found = minimum(objective, OLD_LOGITS)
    best = minimize(oracle, OLD_LOGITS.numpy(), method="L-BFGS-B", options={"maxiter": 300, "maxfun": 20000})
    assert float(objective(found)) <= best.fun + 1e-9 and float(objective(found)) > 0.1
    np.testing.assert_allclose(logp(found).exp(), logp(torch.from_numpy(best.x)).exp(), atol=2e-3)


def curvature(objective, step, state, at=OLD_LOGITS):
    """The second derivative of the objective along the one way in which a state's two probabilities can move."""
    first = sum(SIZES[:step]) + A * state
    h = 1e-3
    move = torch.zeros_like(at)
    move[first], move[first + 1] = h, -h
    return float(objective(at + move) - 2 * objective(at) + objective(at - move)) / h**2


def nothing_to_choose(shortfall):
    """Advantages of a start and its second state alone: all actions there are worth the same, and the bad state of
    each start (after action 1) is short of the start's mean by `shortfall` w."""
    level = [torch.zeros(X, A**n, A, dtype=torch.float64) for n in range(T)]
    good = tables(OLD_LOGITS)[0][:, 0, 0].exp()  # (X,)
    level[1][:, 0] = (shortfall * WEIGHT[1] / good)[:, None]
    return level


def test_later_steps_of_sdpo_move_where_there_is_nothing_to_choose():
    """With E[rho | s] = -KL(theta' || theta) at s, a bad state's level can be regressed on only by leaving theta'.
    It pays as soon as the state is worse than the mean by w = lambda^n / eta, whatever way it leaves."""
    for shortfall, leaves in ((0.9, False), (1.1, True)):
        objective = sdpo_objective(nothing_to_choose(shortfall))
        assert_stationary(objective, OLD_LOGITS)  # at theta' the gradient is the policy gradient, which is 0
        for bad_state in (1, 3):
            assert (curvature(objective, 1, bad_state) < -1e-4) == leaves
        for good_state in (0, 2):
            assert curvature(objective, 1, good_state) > 1e-2
    objective = sdpo_objective(nothing_to_choose(3.0))
    found = minimum(objective, OLD_LOGITS + 0.01 * randn(10, sum(SIZES)))
    assert float(objective(found)) < float(objective(OLD_LOGITS)) - 0.01
    moved = [(new.exp() - old.exp()).abs().amax(2) for new, old in zip(tables(found), tables(OLD_LOGITS), strict=True)]
    good, bad = moved[1].unbind(1)
    assert bad.min() > 0.1 and good.max() < 1e-4 and moved[0].max() < 1e-4 and moved[2].max() < 1e-4
    less_value = [q - q.mean(2, keepdim=True) for q in nothing_to_choose(3.0)]  # against the state's own level
    assert float(sdpo_objective(less_value)(OLD_LOGITS)) == 0, "nothing moves"


# ---- D3PO: one sigmoid a step ----


def d3po_objective(reward, steps=tuple(range(T)), beta=BETA, hard=False, old=OLD):
    """Bradley-Terry labels, winner and loser in both orders."""
    a, b, weight = pairs(old=old)
    gap = reward[a] - reward[b]
    wins = (gap > 0).double() + 0.5 * (gap == 0).double() if hard else gap.sigmoid()
    steps = list(steps)

    def loss(logp_w, logp_l, old_w, old_l):
        return d3po(logp_w, old_w, logp_l, old_l, beta)

    return lambda logits: 2 * expected(loss, a, b, weight * wins, logp(logits)[..., steps], old[..., steps])


def only(n):
    """A reward of step n's action, and of the start, alone; the policy theta' of the other steps does not matter."""
    value = randn(11, X, A)
    return value[:, PATH // A ** (T - 1 - n) % A], value


def test_d3po_reaches_the_tilt_of_the_step_that_earns_the_reward():
    reward, value = only(0)
    raw = tables(OLD_LOGITS)
    target = torch.cat([(raw[0] + value[:, None] / BETA).flatten(), OLD_LOGITS[SIZES[0] :]])
    objective = d3po_objective(reward, steps=(0,))
    assert_stationary(objective, target)
    found = tables(minimum(objective, OLD_LOGITS))[0]
    torch.testing.assert_close(found, tables(target)[0], rtol=0, atol=1e-6)
    assert_not_stationary(d3po_objective(reward, steps=(0,), beta=2 * BETA), target)
    assert_not_stationary(d3po_objective(reward, steps=(0,), hard=True), target)


def test_d3po_over_all_steps_is_the_tilt_where_only_the_last_earns():
    """And where the last step acts alike at all states: then no state is better than another."""
    reward, value = only(T - 1)
    old_logits = OLD_LOGITS.clone()
    alike = randn(12, X, 1, A).log_softmax(2).expand(X, A ** (T - 1), A)
    old_logits[-SIZES[-1] :] = alike.flatten()
    old = logp(old_logits)
    target = old_logits.clone()
    target[-SIZES[-1] :] += (value[:, None] / BETA).expand_as(alike).flatten()
    torch.testing.assert_close(logp(target).sum(2).exp(), tilt(old, reward, 1 / BETA))
    assert_stationary(d3po_objective(reward, old=old), target)
    found = minimum(d3po_objective(reward, old=old), old_logits)
    torch.testing.assert_close(logp(found), logp(target), rtol=0, atol=1e-6)
    assert_not_stationary(d3po_objective(reward, beta=BETA / 2, old=old), target)


def test_d3po_pushes_later_steps_for_what_they_did_not_do():
    """Reward earned at the first step: the later ones should stay. But a state that wins less than 1/2 - beta/4
    of its comparisons is left, whatever way."""
    reward, value = only(0)
    wins = (value[:, :, None] - value[:, None]).sigmoid()  # (X, action of a, of b)
    share = (wins * tables(OLD_LOGITS)[0].exp()).sum(2)  # (X, A) of each state after the first step
    worst = share.argmin(1)
    for start in range(X):
        bound = float(4 * (0.5 - share[start, worst[start]]))
        for beta, leaves in ((0.9 * bound, True), (1.1 * bound, False)):
            objective = d3po_objective(reward, steps=(1,), beta=beta)
            assert_stationary(objective, OLD_LOGITS)
            assert (curvature(objective, 1, start * A + int(worst[start])) < 0) == leaves
            assert curvature(objective, 1, start * A + 1 - int(worst[start])) > 0


# ---- DDPO: the expected reward, no reference ----


def expected_reward(logits, reward=REWARD):
    return (logp(logits).sum(2).exp() * reward).sum(1).mean()


def reinforce_objective(reward=REWARD, steps="sum"):
    """The batch is every trajectory; its probability, detached, goes into the advantage."""

    def objective(logits):
        rows = logp(logits).flatten(0, 1)
        probability = rows.detach().sum(1).exp() / X
        return ddpo_reinforce(rows, probability * reward.flatten() * len(rows), steps)[0]

    return objective


def test_reinforce_is_the_gradient_of_the_expected_reward():
    for seed in (13, 14):
        logits = randn(seed, sum(SIZES))
        exact = gradient(expected_reward, logits)[1]
        torch.testing.assert_close(gradient(reinforce_objective(), logits)[1], -exact)
        baseline = randn(15, X, 1)  # of the start: it changes the variance, not the mean
        torch.testing.assert_close(gradient(reinforce_objective(REWARD - baseline), logits)[1], -exact)
        torch.testing.assert_close(gradient(reinforce_objective(steps="mean"), logits)[1], -exact / T)
        wrong = gradient(reinforce_objective(REWARD - randn(16, X, M)), logits)[1]  # a baseline that saw the action
        assert (wrong + exact).abs().max() > 0.01


def test_reinforce_climbs_to_the_best_trajectory_and_rebel_stops_at_the_tilt():
    logits = OLD_LOGITS.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(150):
        optimizer.zero_grad()
        reinforce_objective()(logits).backward()
        optimizer.step()
    best = float(REWARD.max(1).values.mean())
    assert float(expected_reward(OLD_LOGITS)) < float(expected_reward(logits_of(tilt(OLD, REWARD, ETA)))) < best - 0.2
    assert best - 0.01 < float(expected_reward(logits.detach())) <= best
    assert torch.equal(logp(logits.detach()).sum(2).argmax(1), REWARD.argmax(1))


def test_the_ratio_of_single_steps_is_right_at_theta_prime_alone():
    def objective(logits):
        rows, old = logp(logits).flatten(0, 1), OLD.flatten(0, 1)
        return ddpo_clipped(rows, old, old.sum(1).exp() / X * REWARD.flatten() * len(rows), clip=None)[0]

    exact = gradient(expected_reward, OLD_LOGITS)[1]
    torch.testing.assert_close(gradient(objective, OLD_LOGITS)[1], -exact)
    away = OLD_LOGITS + randn(17, sum(SIZES))
    assert (gradient(objective, away)[1] + gradient(expected_reward, away)[1]).abs().max() > 0.01
