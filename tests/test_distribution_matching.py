"""Distribution matching: the gradient of each pseudo-loss against autograd of its objective, with exact scores.

In one dimension both are integrals over the same Gaussians, exact to 1e-6; in two, the student is a mixture, the
reference the toy world, and the loss a Monte Carlo average, compared within 4 standard errors. The mistakes that papers
and code have made stand beside each loss, and must fail the same check.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from fsalign_lib.losses.distribution_matching import (
    assistant_loss,
    diff_instruct,
    edm_weight,
    guidance_reward,
    guided,
    inverse_gap_weight,
    reward_term,
    sid,
    sim,
)
from fsalign_lib.schedules import NoiseSchedule
from fsalign_lib.toy import GaussianMixture, toy_mixture

LEVELS = torch.tensor([0.8, 0.5, 0.15], dtype=torch.float64)  # alpha_bar
WEIGHTS = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)  # w(t) of each
CLASS, SCALE, ALPHA_REW, ALPHA_CFG, C = 0, 3.0, 0.7, 1.5, 0.8


def double(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass
class Student:
    """x_0 = m_k + exp(l_k) z: a mixture of axis-aligned Gaussians with trained means and log-stds, both (K, D)."""

    means: Tensor
    log_stds: Tensor
    weights: Tensor

    @property
    def theta(self) -> Tensor:
        return torch.stack((self.means, self.log_stds))

    def parts(self, x, alpha_bar, theta):
        means, log_stds = theta
        variance = alpha_bar * (2 * log_stds).exp() + 1 - alpha_bar
        z = x[:, None] - alpha_bar**0.5 * means
        log_joint = self.weights.log() - 0.5 * (z**2 / variance + (2 * math.pi * variance).log()).sum(-1)
        return log_joint, z / variance

    def log_prob(self, x, alpha_bar, theta):
        """log p_{theta,t}(x), differentiable in theta too: (G, D) -> (G,)."""
        return self.parts(x, alpha_bar, theta)[0].logsumexp(1)

    def score(self, x, alpha_bar, theta):
        log_joint, slope = self.parts(x, alpha_bar, theta)
        return -(log_joint.softmax(1)[..., None] * slope).sum(1)

    def assistant(self) -> GaussianMixture:
        """The exact assistant: the student's own mixture, frozen."""
        covs = torch.diag_embed((2 * self.log_stds).exp())
        return GaussianMixture(self.weights, self.means, covs, torch.zeros(len(self.weights), dtype=torch.long))


@dataclass
class World:
    student: Student
    reference: GaussianMixture
    grid: Tensor  # (G, D)
    cell: float
    decoder: Tensor  # (D, P)

    def reward(self, x0):
        """Of the decoded sample: the reward's gradient comes through a decoder that is not linear."""
        return -(torch.tanh(x0 @ self.decoder) - 0.5).square().sum(1)

    def integral(self, f) -> Tensor:
        """The mean over the noise levels of w(t) times the grid integral of f(alpha_bar)."""
        values = [w * f(ab).sum() * self.cell for w, ab in zip(WEIGHTS, LEVELS.tolist(), strict=True)]
        return torch.stack(values).mean()

    def objective(self, kl=None, divergence=None, fisher=False, cfg=0.0, reward=0.0):
        """The gradient in theta of the true objective, by autograd on the grid.

        kl, divergence: the guidance scale of the reference, or None to leave the term out; divergence with its d(y).
        """
        theta = self.student.theta.clone().requires_grad_()
        x, ref = self.grid, self.reference

        def log_guided(ab, scale):
            free = ref.log_prob_t(x, ab)
            return free + scale * (ref.log_prob_t(x, ab, CLASS) - free)

        def one_level(ab):
            log_p = self.student.log_prob(x, ab, theta)
            total = torch.zeros(len(x), dtype=torch.float64)
            if kl is not None:
                total = total + log_p.exp() * (log_p - log_guided(ab, kl))
            if divergence is not None:
                scale, d = divergence
                y = self.student.score(x, ab, theta) - ref.guided_score_t(x, ab, CLASS, scale)
                total = total + (log_p.exp() if fisher else log_p.exp().detach()) * d(y)
            if cfg:
                total = total - cfg * log_p.exp() * (log_guided(ab, 1) - log_guided(ab, 0))
            return total

        value = self.integral(one_level)
        if reward:
            value = value - reward * (self.student.log_prob(x, 1.0, theta).exp() * self.reward(x)).sum() * self.cell
        return torch.autograd.grad(value, theta)[0]


def squared(y):
    return 0.5 * y.square().sum(1)


def huber(y):
    return (y.square().sum(1) + C**2).sqrt() - C


@pytest.fixture(scope="module")
def line() -> World:
    """One dimension: a Gaussian student, two classes of two components."""
    student = Student(double(0.4)[:, None], double(0.7)[:, None].log(), double(1.0))
    reference = GaussianMixture(
        double(0.3, 0.25, 0.2, 0.25),
        double(-0.9, 0.8, 1.2, -0.2)[:, None],
        double(0.5, 0.4, 0.6, 0.9)[:, None, None],
        torch.tensor([0, 0, 1, 1]),
    )
    grid = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    return World(student, reference, grid[:, None], 0.01, double(0.8, -0.5)[None])


@pytest.fixture(scope="module")
def plane() -> World:
    """Two dimensions: a student of two components, and the toy world's class "square"."""
    student = Student(double(0.5, 0.3, -0.6, -0.4).reshape(2, 2), double(-0.9, -0.5, -0.4, -1).reshape(2, 2), double(0.6, 0.4))
    axis = torch.linspace(-5.6, 5.6, 113, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    return World(student, toy_mixture(), grid, 0.01, double(0.8, -0.5, 0.3, 0.6).reshape(2, 2))


class Batch:
    """The student's samples with their graph to `theta`, and what the networks say of them.

    `count` None: all nodes of a Gauss-Hermite rule over (z, eps), whose weights go into `weight`, at every level. Else
    a random batch with one copy of theta for each sample, so that the gradients of the samples stay apart.
    """

    def __init__(self, world: World, count: int | None = None, seed: int = 0):
        self.world, student = world, world.student
        if count is None:
            nodes, q = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(72))
            z, eps = torch.cartesian_prod(nodes, nodes).repeat(3, 1)[..., None].unbind(1)
            q, level = torch.cartesian_prod(q, q).prod(1), torch.arange(3).repeat_interleave(len(q) ** 2)
            self.q = len(q) * (q / q.sum()).repeat(3)  # batch means become integrals over (z, eps), averaged over levels
            self.theta = student.theta.clone().requires_grad_()
            means, log_stds = self.theta[:, 0]
        else:
            generator = torch.Generator().manual_seed(seed)
            z, eps = torch.randn(2, count, student.means.shape[1], generator=generator, dtype=torch.float64)
            level = torch.randint(3, (count,), generator=generator)
            k = torch.multinomial(student.weights, count, replacement=True, generator=generator)
            self.q = torch.ones(count, dtype=torch.float64)
            self.theta = student.theta.expand(count, *student.theta.shape).clone().requires_grad_()
            means, log_stds = self.theta[torch.arange(count), :, k].unbind(1)
        self.per_sample = count is not None
        self.alpha_bar = LEVELS[level]
        self.a, self.b = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        self.weight = self.q * WEIGHTS[level]
        self.x0 = means + log_stds.exp() * z
        self.x_t = self.a[:, None] * self.x0 + self.b[:, None] * eps
        self.target = -eps / self.b[:, None]
        self.psi = student.assistant()

    def scores(self, x=None, guidance=1.0):
        """(s_psi, s_ref) at x, or at x_t with its graph."""
        x = self.x_t if x is None else x
        return self.psi.score_t(x, self.alpha_bar), guided(*self.halves(x), guidance)

    def halves(self, x):
        return (self.world.reference.score_t(x, self.alpha_bar, c) for c in (CLASS, None))

    def denoisers(self, x=None, guidance=1.0):
        x = self.x_t if x is None else x
        ref = (self.world.reference.posterior_mean(x, self.alpha_bar, c) for c in (CLASS, None))
        return self.psi.posterior_mean(x, self.alpha_bar), guided(*ref, guidance)

    def reward(self):
        return self.q * self.world.reward(self.x0)

    def agrees(self, loss: Tensor, truth: Tensor) -> bool:
        (gradient,) = torch.autograd.grad(loss, self.theta)
        if not self.per_sample:
            return bool((gradient - truth).abs().max() < 1e-6)
        samples = gradient * len(gradient)
        return bool(((samples.mean(0) - truth).abs() < 4 * samples.std(0) / len(samples) ** 0.5).all())


# Each loss as it should be used, of a Batch.
def di(b, guidance=1.0):
    with torch.no_grad():
        s_psi, s_ref = b.scores(guidance=guidance)
    return diff_instruct(s_psi, s_ref, b.x_t, b.weight)[0]


def di_denoisers(b, guidance=1.0):
    with torch.no_grad():
        d_psi, d_ref = b.denoisers(guidance=guidance)
    return diff_instruct(d_psi, d_ref, b.x_t, b.weight * b.a / b.b**2)[0]


def sim_scores(b, distance, guidance=1.0):
    return sim(*b.scores(guidance=guidance), b.target, b.weight, distance, C)[0]


def cfg_reward(b):
    with torch.no_grad():
        conditional, unconditional = b.halves(b.x_t)
    return guidance_reward(conditional, unconditional, b.x_t, b.weight)


def bonus(b, scale=ALPHA_REW):
    return reward_term(b.reward(), scale)


# The same formulas by hand, with one thing wrong.
def inner(u, v, b):
    return (b.weight * (u * v).sum(1)).mean()


def di_by_hand(b, sign=1, keep_graph=False):
    s_psi, s_ref = b.scores()
    y = s_psi - s_ref
    return sign * inner(y if keep_graph else y.detach(), b.x_t, b)


def sim_by_hand(b, distance, sign=1, detach_y=False, detach_root=False, inputs=True, denoiser_x0=True):
    """In denoisers, so that the graph through x_0 stands apart: d_psi - x_0 = (s_psi - target) b^2/a."""
    k = (b.a / b.b**2)[:, None]
    d_psi, d_ref = b.denoisers(b.x_t if inputs else b.x_t.detach())
    y = k * (d_psi - d_ref)
    if detach_y:
        y = y.detach()
    root = (y.square().sum(1, keepdim=True) + C**2).sqrt() if distance == "pseudo-huber" else torch.ones(1).double()
    slope = y / (root.detach() if detach_root else root)
    return -sign * inner(slope, k * (d_psi - (b.x0 if denoiser_x0 else b.x0.detach())), b)


def reward_inside_the_sum(b):
    """DI++ Listing 1: the reward, (B, 1), is added before the sum over the dimensions."""
    with torch.no_grad():
        s_psi, s_ref = b.scores(guidance=SCALE)
    return (b.weight[:, None] * (s_psi - s_ref) * b.x_t - ALPHA_REW * b.reward()[:, None]).sum(1).mean()


CASES = {
    "Diff-Instruct": (
        dict(kl=1.0),
        di,
        {
            "sign": lambda b: di_by_hand(b, sign=-1),
            "y keeps its graph": lambda b: di_by_hand(b, keep_graph=True),
            "w(t) = 1 on denoisers": lambda b: diff_instruct(*b.denoisers(), b.x_t, b.weight)[0],
        },
    ),
    "Diff-Instruct in denoisers": (dict(kl=1.0), di_denoisers, {"guided": lambda b: di_denoisers(b, SCALE)}),
    "DI++": (
        dict(kl=SCALE, reward=ALPHA_REW),
        lambda b: di(b, SCALE) + bonus(b),
        {
            "Eq. 3.10's unguided y_t": lambda b: di(b) + bonus(b),
            "the reward's sign (B.1)": lambda b: di(b, SCALE) - bonus(b),
            "no gradient through the reward": lambda b: di(b, SCALE) + bonus(b).detach(),
            "the reward inside the sum": reward_inside_the_sum,
        },
    ),
    "DI++ in denoisers": (
        dict(kl=SCALE, reward=ALPHA_REW),
        lambda b: di_denoisers(b, SCALE) + bonus(b),
        {"unguided": lambda b: di_denoisers(b) + bonus(b)},
    ),
    "guidance as a reward": (
        dict(cfg=1.0),
        cfg_reward,
        {"sign": lambda b: -cfg_reward(b)},
    ),
    "SiD, alpha 1/2": (
        dict(divergence=(1.0, squared), fisher=True),
        lambda b: sid(*b.scores(), b.target, 0.5, b.weight)[0],
        {"alpha 1": lambda b: sid(*b.scores(), b.target, 1.0, b.weight)[0]},
    ),
    "SiD, alpha 1": (
        dict(divergence=(1.0, squared)),
        lambda b: sid(*b.scores(), b.target, 1.0, b.weight)[0],
        {"alpha 1/2": lambda b: sid(*b.scores(), b.target, 0.5, b.weight)[0]},
    ),
    "DI*, choice 1": (
        dict(divergence=(1.0, huber), cfg=ALPHA_CFG, reward=ALPHA_REW),
        lambda b: sim_scores(b, "pseudo-huber") + ALPHA_CFG * cfg_reward(b) + bonus(b),
        {
            "choice 2 at 1 + alpha": lambda b: sim_scores(b, "pseudo-huber", 1 + ALPHA_CFG) + bonus(b),
            "the guidance's sign": lambda b: sim_scores(b, "pseudo-huber") - ALPHA_CFG * cfg_reward(b) + bonus(b),
            "the reward's sign": lambda b: sim_scores(b, "pseudo-huber") + ALPHA_CFG * cfg_reward(b) - bonus(b),
        },
    ),
    "DI*, choice 2": (
        dict(divergence=(SCALE, huber), reward=ALPHA_REW),
        lambda b: sim_scores(b, "pseudo-huber", SCALE) + bonus(b),
        {"unguided": lambda b: sim_scores(b, "pseudo-huber") + bonus(b)},
    ),
}
for name, d in {"squared": squared, "pseudo-huber": huber}.items():
    CASES[f"SIM {name}"] = (
        dict(divergence=(1.0, d)),
        lambda b, name=name: sim_scores(b, name),
        {
            "sign": lambda b, name=name: sim_by_hand(b, name, sign=-1),
            "y detached": lambda b, name=name: sim_by_hand(b, name, detach_y=True),
            "no graph through the inputs": lambda b, name=name: sim_by_hand(b, name, inputs=False),
            "no graph through x_0": lambda b, name=name: sim_by_hand(b, name, denoiser_x0=False),
        }
        | (
            {"the normaliser detached": lambda b: sim_by_hand(b, "pseudo-huber", detach_root=True)}
            if name == "pseudo-huber"
            else {}
        ),
    )


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_the_objective_by_quadrature(line, case):
    truth, loss, mistakes = CASES[case]
    truth, batch = line.objective(**truth), Batch(line)
    assert truth.abs().min() > 1e-2  # neither parameter is compared at a stationary point
    assert batch.agrees(loss(batch), truth)
    for name, mistake in mistakes.items():
        if name == "the reward inside the sum":
            continue  # one dimension cannot show it
        batch = Batch(line)
        assert not batch.agrees(mistake(batch), truth), name


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_the_objective_by_monte_carlo(plane, case):
    truth, loss, mistakes = CASES[case]
    truth, batch = plane.objective(**truth), Batch(plane, 40_000)
    assert batch.agrees(loss(batch), truth)
    for name, mistake in mistakes.items():
        batch = Batch(plane, 40_000)
        assert not batch.agrees(mistake(batch), truth), name
