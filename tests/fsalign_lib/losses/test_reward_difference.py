"""REBEL and SDPO: gradients derived by hand, the misprints of the paper, and the order of updates."""

import pytest
import torch

from fsalign_lib.kernels import build_kernel
from fsalign_lib.losses.policy_gradient import ddpo_reinforce
from fsalign_lib.losses.reward_difference import importance_weights, rebel, sdpo, step_updates
from fsalign_lib.rollout import Trajectory, rollout, step_log_probs
from fsalign_lib.toy import load_student

B, S, P, CLIP, ETA = 60, 3, 5, 0.1, 0.7


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT = importance_weights(S, 0.8, ETA).double()


@pytest.fixture
def rows():
    """logp_a, logp_a_old, logp_b, logp_b_old: log-ratios on both sides of the clip and inside."""
    old_a, old_b = randn(0, B, S), randn(1, B, S)
    rows = old_a + 0.15 * randn(2, B, S), old_a, old_b + 0.15 * randn(3, B, S), old_b
    return tuple(x.requires_grad_() for x in rows)


@pytest.fixture
def advantages():
    return randn(4, B, S), randn(5, B, S)


# ---- the gradient, in the parameters of a policy with linear log-probs: grad rho^j = features^j ----


class Linear:
    def __init__(self):
        self.features = randn(6, 2, B, S, P)
        self.theta = (0.06 * randn(7, P)).requires_grad_()
        self.old = [randn(8, B, S), randn(9, B, S)]

    def rows(self):
        logp = [old + f @ self.theta for old, f in zip(self.old, self.features, strict=True)]
        return logp[0], self.old[0], logp[1], self.old[1]

    def branches(self, advantage_a, advantage_b):
        """l, its gradient, l~, its gradient, from the formulas.  # (B, S), (B, S, P), ..."""
        rho = (self.features @ self.theta).detach()  # (2, B, S)
        inside = (rho.abs() < CLIP)[..., None]
        difference = advantage_a - advantage_b

        def branch(rho, gradient):
            residual = WEIGHT * (rho[0] - rho[1]) - difference
            return residual**2, (2 * residual * WEIGHT)[..., None] * (gradient[0] - gradient[1])

        return *branch(rho, self.features), *branch(rho.clamp(-CLIP, CLIP), self.features * inside)


def test_the_gradient_of_sdpo_is_that_of_the_larger_branch_and_eq_27_is_not(advantages):
    linear = Linear()
    loss, diagnostics = sdpo(*linear.rows(), *advantages, WEIGHT, CLIP)
    (gradient,) = torch.autograd.grad(loss, linear.theta)
    l, grad_l, trusted, grad_trusted = linear.branches(*advantages)
    larger = (l >= trusted)[..., None]
    by_hand = (larger * grad_l + ~larger * grad_trusted).mean((0, 1))
    torch.testing.assert_close(gradient, by_hand)
    assert float(loss) == pytest.approx(float(torch.maximum(l, trusted).mean()))
    assert 0.1 < diagnostics["limited"] < 0.9 and 0.1 < diagnostics["clipped"] < 0.9, "both branches must occur"

    printed = torch.maximum(grad_l, grad_trusted).mean((0, 1))  # SDPO Eq. 27, read entry by entry
    assert (printed - by_hand).abs().max() > 0.1
    norms = (grad_l.norm(dim=2) >= grad_trusted.norm(dim=2))[..., None]  # read as the longer of the two
    longer = (norms * grad_l + ~norms * grad_trusted).mean((0, 1))
    assert (longer - by_hand).abs().max() > 0.1


def sdpo_variant(kind, logp_a, old_a, logp_b, old_b, advantage_a, advantage_b):
    rho_a, rho_b, difference = logp_a - old_a, logp_b - old_b, advantage_a - advantage_b
    clipped_a, clipped_b = rho_a.clamp(-CLIP, CLIP), rho_b.clamp(-CLIP, CLIP)
    l = (WEIGHT * (rho_a - rho_b) - difference) ** 2
    trusted = (WEIGHT * (clipped_a - clipped_b) - difference) ** 2
    joint = (WEIGHT * (rho_a - rho_b).clamp(-CLIP, CLIP) - difference) ** 2
    one_sided = (WEIGHT * (clipped_a - rho_b) - difference) ** 2
    straight = rho_a - rho_b + (clipped_a - clipped_b - rho_a + rho_b).detach()
    return {
        "right": torch.maximum(l, trusted),
        "minimum": torch.minimum(l, trusted),
        "unclipped": l,
        "clipped alone": trusted,
        "difference clipped": torch.maximum(l, joint),
        "b not clipped": torch.maximum(l, one_sided),
        "straight through": torch.maximum(l, (WEIGHT * straight - difference) ** 2),
        "weight on the loss": torch.maximum(
            WEIGHT * (rho_a - rho_b - difference) ** 2, WEIGHT * (clipped_a - clipped_b - difference) ** 2
        ),
        "one maximum for the batch": torch.maximum(l.mean(), trusted.mean()),
        "sign": torch.maximum((WEIGHT * (rho_a - rho_b) + difference) ** 2, trusted),
    }[kind].mean()


VARIANTS = """right, minimum, unclipped, clipped alone, difference clipped, b not clipped, straight through,
weight on the loss, one maximum for the batch, sign""".replace("\n", " ").split(", ")


@pytest.mark.parametrize("kind", [kind.strip() for kind in VARIANTS])
def test_clips_that_are_wrong_have_another_gradient(advantages, kind):
    linear = Linear()
    loss, _ = sdpo(*linear.rows(), *advantages, WEIGHT, CLIP)
    (gradient,) = torch.autograd.grad(loss, linear.theta)
    (other,) = torch.autograd.grad(sdpo_variant(kind, *linear.rows(), *advantages), linear.theta)
    distance = float((gradient - other).abs().max())
    assert distance < 1e-12 if kind == "right" else distance > 0.01


def test_which_side_of_the_clip_has_a_gradient():
    """dA = +1: a must get likelier, b less likely. Outside in that direction: none. Outside the other way: pulled."""
    old = torch.zeros(4, 1, dtype=torch.float64)
    rho_a = torch.tensor([[0.2], [-0.2], [0.2], [0.05]], dtype=torch.float64, requires_grad=True)
    rho_b = torch.tensor([[-0.2], [0.2], [0.05], [0.05]], dtype=torch.float64, requires_grad=True)
    loss, diagnostics = sdpo(rho_a, old, rho_b, old, old[:, 0] + 1, old[:, 0], 1.0, CLIP)
    loss.backward()
    assert rho_a.grad[0] == rho_b.grad[0] == 0
    assert rho_a.grad[1] < 0 < rho_b.grad[1]
    assert rho_a.grad[2] == 0 < rho_b.grad[2], "only a has left"
    assert rho_a.grad[3] < 0 < rho_b.grad[3]
    assert diagnostics["limited"] == 0.5 and diagnostics["clipped"] == 5 / 8


# ---- formulas ----


def test_sdpo_without_a_clip_is_eq_14_and_eq_12(rows, advantages):
    (a, old_a, b, old_b), (A_a, A_b) = rows, advantages
    loss, diagnostics = sdpo(*rows, A_a, A_b, WEIGHT, clip=None)
    residual = WEIGHT * ((a - old_a) - (b - old_b)) - (A_a - A_b)
    torch.testing.assert_close(loss, (residual**2).mean())
    torch.testing.assert_close(diagnostics["residual"], residual.abs().mean().detach())
    assert diagnostics["clipped"] == diagnostics["limited"] == 0
    eq_12, _ = sdpo(*rows, A_a[:, 0], A_b[:, 0], 1 / ETA, clip=None)  # one number a trajectory
    by_hand = ((((a - old_a) - (b - old_b)) / ETA - (A_a - A_b)[:, :1]) ** 2).mean()
    torch.testing.assert_close(eq_12, by_hand)
    wide, _ = sdpo(*rows, A_a, A_b, WEIGHT, clip=10.0)
    assert wide == loss


def test_rebel_squares_the_sum_and_eq_7_as_printed_does_not(rows):
    a, old_a, b, old_b = rows
    R_a, R_b = randn(10, B), randn(11, B)
    loss, diagnostics = rebel(*rows, R_a, R_b, ETA)
    residual = ((a - old_a).sum(1) - (b - old_b).sum(1)) / ETA - (R_a - R_b)
    torch.testing.assert_close(loss, (residual**2).mean())
    torch.testing.assert_close(diagnostics["residual"], residual.detach().square().mean().sqrt())
    printed, _ = rebel(*rows, R_a, R_b, ETA, steps="outside")
    by_hand = sum(((a - old_a - b + old_b)[:, n] / ETA - (R_a - R_b)) ** 2 for n in range(S)).mean()
    torch.testing.assert_close(printed, by_hand)
    assert abs(float(loss - printed)) > 1
    one_step = [x[:, :1] for x in rows]
    torch.testing.assert_close(rebel(*one_step, R_a, R_b, ETA)[0], rebel(*one_step, R_a, R_b, ETA, "outside")[0])


def test_at_the_sampling_policy_all_are_the_policy_gradient(advantages):
    """With the other trajectory as the baseline: -2 w dA grad(rho_a - rho_b)."""
    linear, (A_a, A_b) = Linear(), advantages
    with torch.no_grad():
        linear.theta.zero_()
    a, old_a, b, old_b = linear.rows()

    def gradient(loss):
        return torch.autograd.grad(loss, linear.theta, retain_graph=True)[0]

    credit = 2 * WEIGHT * (A_a - A_b)
    plain, _ = ddpo_reinforce(torch.cat([a, b]), torch.cat([credit, -credit]), "mean")
    torch.testing.assert_close(gradient(sdpo(a, old_a, b, old_b, A_a, A_b, WEIGHT, CLIP)[0]), 2 * gradient(plain))
    R = A_a[:, 0], A_b[:, 0]
    credit = 2 / ETA * (R[0] - R[1])
    plain, _ = ddpo_reinforce(torch.cat([a, b]), torch.cat([credit, -credit]), "sum")
    for steps in ("inside", "outside"):
        torch.testing.assert_close(gradient(rebel(a, old_a, b, old_b, *R, ETA, steps)[0]), 2 * gradient(plain))


LOSSES = {
    "rebel": lambda *x: rebel(*x[:4], x[4][:, 0], x[5][:, 0], ETA),
    "rebel as printed": lambda *x: rebel(*x[:4], x[4][:, 0], x[5][:, 0], ETA, "outside"),
    "sdpo": lambda *x: sdpo(*x, WEIGHT, CLIP),
    "sdpo unclipped": lambda *x: sdpo(*x, WEIGHT, None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_what_is_detached_and_the_swap(name, rows, advantages):
    a, old_a, b, old_b = rows
    A_a, A_b = (x.requires_grad_() for x in advantages)
    assert torch.autograd.gradcheck(lambda a, b: LOSSES[name](a, old_a, b, old_b, A_a, A_b)[0], (a, b))
    loss, diagnostics = LOSSES[name](a, old_a, b, old_b, A_a, A_b)
    loss.backward()
    assert a.grad is not None and b.grad is not None
    assert old_a.grad is None and old_b.grad is None and A_a.grad is None and A_b.grad is None
    assert not any(value.requires_grad for value in diagnostics.values())
    swapped, _ = LOSSES[name](b, old_b, a, old_a, A_b, A_a)
    assert float(swapped) == pytest.approx(float(loss)), "which of a pair is called a does not matter"


# ---- weights and the order of updates ----


def test_importance_weights():
    torch.testing.assert_close(importance_weights(50)[[0, 1, 49]], torch.tensor([1.0, 0.99, 0.99**49]))
    torch.testing.assert_close(importance_weights(3, 0.9, 2.0), torch.tensor([0.5, 0.45, 0.405]))
    torch.testing.assert_close(importance_weights(3, 0.9, 2.0, "reverse"), torch.tensor([0.405, 0.45, 0.5]))
    assert importance_weights(4, 1.0).tolist() == [1.0] * 4


STEPS = torch.tensor([0, 1, 2, 4])  # step 3 is left out


@pytest.mark.parametrize(
    ("kind", "shape"), [("shuffled", (4, 7, 1)), ("sequential", (4, 7, 1)), ("accumulated", (1, 7, 4))]
)
def test_every_step_of_every_pair_comes_once(kind, shape):
    keys = torch.rand(7, 4, generator=torch.Generator().manual_seed(0))
    updates = step_updates(STEPS, keys, kind)
    assert updates.shape == shape
    seen = updates.permute(1, 0, 2).flatten(1)  # (B, 4)
    assert torch.equal(seen.sort(1).values, STEPS.expand(7, -1))
    if kind == "shuffled":
        assert len({tuple(row) for row in seen.tolist()}) > 3, "each pair has an order of its own"
        part = step_updates(STEPS, keys[3:5], kind)
        assert torch.equal(part, updates[:, 3:5]), "whoever else is in the batch"
    else:
        assert torch.equal(seen, STEPS.expand(7, -1))


def test_the_order_of_steps_changes_no_total_of_a_frozen_model():
    """On the toy's student: loss and gradient over an epoch without updates, in three orders."""
    student = load_student()
    kernel = build_kernel("ddim", student.schedule, 4)
    pairs, generator = 6, torch.Generator().manual_seed(0)
    cond = torch.arange(pairs) % student.num_classes
    noise = torch.randn(2, pairs, 5, 2, generator=generator)
    noise[1, :, 0] = noise[0, :, 0]  # the pair shares x_T
    pair = [rollout(student, kernel, cond, z, "sum") for z in noise]
    both = Trajectory(*(torch.cat([getattr(t, k) for t in pair]) for k in ("states", "x0_hat", "log_prob")))
    with torch.no_grad():  # a model that is no longer the one that sampled
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    advantage = torch.randn(2, pairs, 4, generator=generator)
    weights, steps = importance_weights(4, 0.8), torch.tensor(kernel.stochastic_steps)
    assert len(steps) == 4, "DDIM(eta = 1) keeps a density at its last step"
    keys = torch.rand(pairs, 4, generator=generator)

    def totals(kind, updates=None):
        total, clipped = 0.0, 0.0
        for at in step_updates(steps, keys, kind) if updates is None else updates:
            logp = step_log_probs(student, kernel, both, cond.repeat(2), at.repeat(2, 1), "sum").unflatten(0, (2, -1))
            old = both.log_prob.unflatten(0, (2, -1))
            old_a, old_b, A_a, A_b = (x.gather(1, at) for x in (*old, *advantage))
            loss, diagnostics = sdpo(logp[0], old_a, logp[1], old_b, A_a, A_b, weights[at], 0.05)
            total, clipped = total + loss * at.shape[1] / len(steps), clipped + diagnostics["clipped"]
        gradient = torch.autograd.grad(total, list(student.parameters()), allow_unused=True)
        return total, torch.cat([g.flatten() for g in gradient if g is not None]), clipped

    loss, gradient, clipped = totals("accumulated")
    assert 0 < clipped < 1 and gradient.norm() > 0.1
    for kind in ("shuffled", "sequential"):
        other = totals(kind)
        torch.testing.assert_close(other[0], loss)
        torch.testing.assert_close(other[1], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    twice = step_updates(steps, keys, "shuffled")[[0, 0, 1, 2]]  # a wrong permutation: one step twice, one never
    assert (totals(None, twice)[1] - gradient).norm() > 0.05 * gradient.norm()


def test_bad_input_is_named(rows, advantages):
    A, R = advantages, (advantages[0][:, 0], advantages[1][:, 0])
    keys = torch.rand(2, 4)
    cases = [
        (lambda: sdpo(rows[0][:1], *rows[1:], *A), r"logp_a_old has shape \(60, 3\) and logp_a \(1, 3\)"),
        (lambda: sdpo(*rows, A[0][:2], A[1]), r"advantage_a is torch.float64 of shape \(2, 3\): expected floats"),
        (lambda: sdpo(*rows, *A, clip=-1.0), "clip = -1.0: expected a finite positive number"),
        (lambda: sdpo(*rows, *A, weight=torch.ones(2)), r"weight has shape \(2,\): expected \(3,\)"),
        (lambda: rebel(*rows, R[0][:2], R[1]), r"reward_a is torch.float64 of shape \(2,\): expected floats \(60,\)"),
        (lambda: rebel(*rows, *R, eta=0.0), "eta = 0.0: expected a finite positive number"),
        (lambda: rebel(*rows, *R, steps="sum"), "steps = 'sum': expected \"inside\""),
        (lambda: importance_weights(0), "num_steps = 0: expected 1 or more"),
        (lambda: importance_weights(3, 1.1), "decay = 1.1: expected a number above 0, up to 1"),
        (lambda: importance_weights(3, order="up"), 'order = \'up\': expected "decaying" or "reverse"'),
        (lambda: step_updates(STEPS, keys, "random"), "kind = 'random': expected \"shuffled\""),
        (lambda: step_updates(STEPS, keys[:, :3]), r"keys \(2, 3\): expected \(S,\) and \(B, S\)"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
