"""Distribution matching: the gradient of each pseudo-loss against autograd of its objective, with exact scores.

In one dimension both are integrals over the same Gaussians, exact to 1e-6; in two, the student is a mixture, the
reference the toy world, and the loss a Monte Carlo average, compared within 4 standard errors. The mistakes that papers
and code have made stand beside each loss, and must fail the same check.
"""

import functools
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
CLASS, SCALE, ALPHA_REW, ALPHA_CFG, C = 0, 3.0, 0.7, 1.5, 0.45


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
    student = Student(
        double(0.5, 0.3, -0.6, -0.4).reshape(2, 2), double(-0.9, -0.5, -0.4, -1).reshape(2, 2), double(0.6, 0.4)
    )
    axis = torch.linspace(-5, 5, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    return World(student, toy_mixture(), grid, 0.125**2, double(0.8, -0.5, 0.3, 0.6).reshape(2, 2))


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
            self.q = len(q) * (q / q.sum()).repeat(
                3
            )  # batch means become integrals over (z, eps), averaged over levels
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

    @functools.cache  # noqa: B019  the networks are called once for all the losses that are compared
    def networks(self, what: str) -> tuple[Tensor, Tensor, Tensor]:
        """Assistant, reference and unconditional reference at x_t, with the graph to it; "score_t" or else."""
        ref = self.world.reference
        psi = getattr(self.psi, what)(self.x_t, self.alpha_bar)
        return psi, *(getattr(ref, what)(self.x_t, self.alpha_bar, c) for c in (CLASS, None))

    def scores(self, guidance=1.0):
        psi, conditional, unconditional = self.networks("score_t")
        return psi, guided(conditional, unconditional, guidance)

    def denoisers(self, guidance=1.0):
        psi, conditional, unconditional = self.networks("posterior_mean")
        return psi, guided(conditional, unconditional, guidance)

    def reward(self):
        return self.q * self.world.reward(self.x0)

    def agrees(self, loss: Tensor, truth: Tensor) -> bool:
        (gradient,) = torch.autograd.grad(loss, self.theta, retain_graph=True)
        if not self.per_sample:
            return bool((gradient - truth).abs().max() < 1e-6)
        samples = gradient * len(gradient)
        return bool(((samples.mean(0) - truth).abs() < 4 * samples.std(0) / len(samples) ** 0.5).all())


# Each loss as it should be used, of a Batch.
def di(b, guidance=1.0):
    return diff_instruct(*b.scores(guidance), b.x_t, b.weight)[0]


def di_denoisers(b, guidance=1.0):
    return diff_instruct(*b.denoisers(guidance), b.x_t, b.weight * b.a / b.b**2)[0]


def sim_scores(b, distance, guidance=1.0):
    return sim(*b.scores(guidance), b.target, b.weight, distance, C)[0]


def cfg_reward(b):
    return guidance_reward(*b.networks("score_t")[1:], b.x_t, b.weight)


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
    d_psi, d_ref = b.denoisers() if inputs else (d.detach() for d in b.denoisers())
    y = k * (d_psi - d_ref)
    if detach_y:
        y = y.detach()
    root = (y.square().sum(1, keepdim=True) + C**2).sqrt() if distance == "pseudo-huber" else torch.ones(1).double()
    slope = y / (root.detach() if detach_root else root)
    return -sign * inner(slope, k * (d_psi - (b.x0 if denoiser_x0 else b.x0.detach())), b)


def reward_inside_the_sum(b):
    """DI++ Listing 1: the reward, (B, 1), is added before the sum over the dimensions."""
    s_psi, s_ref = b.scores(SCALE)
    return (b.weight[:, None] * (s_psi - s_ref).detach() * b.x_t - ALPHA_REW * b.reward()[:, None]).sum(1).mean()


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
    "DI++ Thm 3.3": (  # the KL and guidance as a reward are together the KL to the guided reference
        dict(kl=1.0, cfg=ALPHA_CFG),
        lambda b: di(b, 1 + ALPHA_CFG),
        {"1/beta as the scale": lambda b: di(b, ALPHA_CFG)},
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


@pytest.fixture(scope="module")
def nodes(line) -> Batch:
    return Batch(line)


@pytest.fixture(scope="module")
def samples(plane) -> Batch:
    return Batch(plane, 30_000)


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_the_objective_by_quadrature(line, nodes, case):
    truth, loss, mistakes = CASES[case]
    truth = line.objective(**truth)
    assert nodes.agrees(loss(nodes), truth)
    for name, mistake in mistakes.items():
        shown = name != "the reward inside the sum"  # which is right where there is one dimension
        assert nodes.agrees(mistake(nodes), truth) != shown, name


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_the_objective_by_monte_carlo(plane, samples, case):
    truth, loss, mistakes = CASES[case]
    truth = plane.objective(**truth)
    assert samples.agrees(loss(samples), truth)
    for name, mistake in mistakes.items():
        assert not samples.agrees(mistake(samples), truth), name


@pytest.mark.parametrize("distance", ["squared", "pseudo-huber"])
def test_the_formulas_by_hand_are_right_until_one_thing_is_wrong(line, nodes, distance):
    assert nodes.agrees(di_by_hand(nodes), line.objective(kl=1.0))
    d = {"squared": squared, "pseudo-huber": huber}[distance]
    assert nodes.agrees(sim_by_hand(nodes, distance), line.objective(divergence=(1.0, d)))


def test_the_assistant_is_exact(plane):
    for ab in LEVELS.tolist():
        x = plane.grid[::97]
        exact = plane.student.score(x, ab, plane.student.theta)
        torch.testing.assert_close(plane.student.assistant().score_t(x, ab), exact, atol=1e-12, rtol=0)


def test_a_gaussian_in_closed_form_and_what_detaching_y_costs():
    """N(m, s^2) against N(0, v_ref): with v the student's noised variance, d/ds of the divergence is

    2 a^2 s (v - v_ref) / (v^2 v_ref), and d/dm is a^2 m / (v v_ref). Detaching y halves the first, and not the second.
    """
    ab, m, s, v_ref = 0.6, 0.5, 0.4, 1.0
    z, q = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(20))
    z, eps = torch.cartesian_prod(z, z).unbind(1)
    q = torch.cartesian_prod(q, q).prod(1) / q.sum() ** 2 * len(z)
    theta = double(m, s).requires_grad_()
    x_t = (ab**0.5 * (theta[0] + theta[1] * z) + (1 - ab) ** 0.5 * eps)[:, None]
    v = ab * s**2 + 1 - ab
    s_psi, s_ref, target = -(x_t - ab**0.5 * m) / v, -x_t / v_ref, -eps[:, None] / (1 - ab) ** 0.5
    truth = double(ab * m / (v * v_ref), 2 * ab * s * (v - v_ref) / (v**2 * v_ref))
    (full,) = torch.autograd.grad(sim(s_psi, s_ref, target, q, "squared")[0], theta, retain_graph=True)
    torch.testing.assert_close(full, truth, atol=1e-12, rtol=0)
    (detached,) = torch.autograd.grad((-q * ((s_psi - s_ref).detach() * (s_psi - target)).sum(1)).mean(), theta)
    torch.testing.assert_close(detached, truth * double(1, 0.5), atol=1e-12, rtol=0)


@pytest.fixture
def level(plane):
    """x_0 with a graph, noised to one level: (x0, x_t, target, scores, denoisers), and a, b."""
    ab, x0 = 0.5, plane.grid[2000:5000:30].clone().requires_grad_()
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = ab**0.5, (1 - ab) ** 0.5
    x_t, psi, ref = a * x0 + b * eps, plane.student.assistant(), plane.reference
    scores = psi.score_t(x_t, ab), ref.score_t(x_t, ab, CLASS), ref.score_t(x_t, ab)
    denoisers = psi.posterior_mean(x_t, ab), ref.posterior_mean(x_t, ab, CLASS), ref.posterior_mean(x_t, ab)
    return x0, x_t, -eps / b, scores, denoisers, a, b


def same(one: Tensor, other: Tensor, x0: Tensor) -> None:
    """Value and gradient."""
    torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)
    gradients = [torch.autograd.grad(loss, x0, retain_graph=True)[0] for loss in (one, other)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-8)


def test_the_same_loss_in_scores_and_in_denoisers(level):
    x0, x_t, target, (s_psi, s_ref, s_free), (d_psi, d_ref, d_free), a, b = level
    k = a / b**2
    same(guidance_reward(s_ref, s_free, x_t), guidance_reward(d_ref, d_free, x_t, k), x0)
    same(diff_instruct(s_psi, s_ref, x_t)[0], diff_instruct(d_psi, d_ref, x_t, k)[0], x0)
    same(sim(s_psi, s_ref, target, distance="squared")[0], sim(d_psi, d_ref, x0, k**2, "squared")[0], x0)
    same(sim(s_psi, s_ref, target, c=C)[0], sim(d_psi, d_ref, x0, k, c=C / k)[0], x0)
    same(sid(s_psi, s_ref, target, 1.2)[0], sid(d_psi, d_ref, x0, 1.2, k**2)[0], x0)
    torch.testing.assert_close(assistant_loss(s_psi, target), assistant_loss(d_psi, x0, k**2))
    torch.testing.assert_close(NoiseSchedule(double(a**2)).score_from_x0(x_t, x0, 0), target)


def test_the_kl_does_not_know_the_coordinates_and_the_divergence_of_scores_does(level):
    x0, x_t, target, (s_psi, s_ref, _), _, a, _ = level  # x_t / a is VE, and its scores are a times those of x_t
    same(diff_instruct(s_psi, s_ref, x_t)[0], diff_instruct(a * s_psi, a * s_ref, x_t / a)[0], x0)
    ve = sim(a * s_psi, a * s_ref, a * target, distance="squared")[0]
    same(a**2 * sim(s_psi, s_ref, target, distance="squared")[0], ve, x0)


def test_choice_1_is_choice_2_for_the_kl_only(level):
    x0, x_t, target, (s_psi, s_c, s_free), _, _, _ = level
    cfg = ALPHA_CFG * guidance_reward(s_c, s_free, x_t)
    inside = guided(s_c, s_free, 1 + ALPHA_CFG)
    same(diff_instruct(s_psi, s_c, x_t)[0] + cfg, diff_instruct(s_psi, inside, x_t)[0], x0)
    with pytest.raises(AssertionError):
        same(sim(s_psi, s_c, target, c=C)[0] + cfg, sim(s_psi, inside, target, c=C)[0], x0)
    torch.testing.assert_close(guided(s_c, s_free, 1.0), s_c)
    torch.testing.assert_close(guided(s_c, s_free, 0.0), s_free)


def test_sid_at_1_is_sim_squared(level):
    x0, _, target, (s_psi, s_ref, _), _, _, _ = level
    (one, its), (other, others) = sid(s_psi, s_ref, target, 1.0), sim(s_psi, s_ref, target, distance="squared")
    same(one, other, x0)
    assert its == others


def test_the_guided_target_is_the_tilted_target_at_one_noise_level(plane):
    """DI++ Thm 3.3: with r = log p(x_t|c) / p(x_t), p(x_t|c) e^{r/beta} / Z has the guided score at 1 + 1/beta."""
    ab, beta, ref = 0.5, 0.5, plane.reference
    x = plane.grid.clone().requires_grad_()
    log_c, log_free = ref.log_prob_t(x, ab, CLASS), ref.log_prob_t(x, ab)
    r = log_c - log_free
    log_tilted = log_c + r / beta
    (score,) = torch.autograd.grad(log_tilted.sum(), x, retain_graph=True)
    halves = ref.score_t(x, ab, CLASS), ref.score_t(x, ab)
    torch.testing.assert_close(score, guided(*halves, 1 + 1 / beta), atol=1e-9, rtol=0)
    assert (score - guided(*halves, 1 / beta)).abs().max() > 0.1
    # B.18 as printed starts from an unconditional density in its first term
    (printed,) = torch.autograd.grad((log_free + r / beta).sum(), x, retain_graph=True)
    assert (printed - guided(*halves, 1 + 1 / beta)).abs().max() > 0.1

    log_z = float(log_tilted.detach().logsumexp(0)) + math.log(plane.cell)
    log_c, log_free, log_tilted, r = (v.detach() for v in (log_c, log_free, log_tilted, r))

    def objective(log_p):  # DI++ B.15 at this level, with w = 1
        log_p = log_p - log_p.logsumexp(0) - math.log(plane.cell)
        return float((log_p.exp() * (-r + beta * (log_p - log_c))).sum() * plane.cell)

    best = objective(log_tilted)
    assert best == pytest.approx(-beta * log_z, abs=1e-9)
    for other in (log_c, log_free + r / beta, log_c + 0.9 * r / beta, log_c + 1.1 * r / beta):
        assert objective(other) > best + 1e-4


def test_the_assistant_learns_the_posterior_mean(nodes):
    """Its gradient vanishes at the exact assistant, whatever the weight, and the excess is that of the networks."""
    s, d = (nodes.networks(what)[0].detach() for what in ("score_t", "posterior_mean"))
    eps, x0, x_t = -nodes.target * nodes.b[:, None], nodes.x0.detach(), nodes.x_t.detach()
    noise = (x_t - nodes.a[:, None] * d) / nodes.b[:, None]

    def gradient(exact, target, weight):
        bias, slope = double(0.0, 0.0).requires_grad_()
        loss = assistant_loss(exact * (1 + slope) + bias, target, weight)
        return torch.stack(torch.autograd.grad(loss, (bias, slope)))

    lambda_edm = nodes.q * edm_weight(nodes.b / nodes.a)
    for exact, target in ((s, nodes.target), (d, x0), (noise, eps)):
        for weight in (nodes.q, nodes.weight, lambda_edm):
            assert gradient(exact, target, weight).abs().max() < 1e-9
    for exact, target in ((s, -nodes.target), (noise, -eps), (d, x_t)):  # the score's sign, the noisy sample
        assert gradient(exact, target, nodes.q).abs().max() > 0.1
    off = (d + 0.3).requires_grad_()
    excess = (assistant_loss(off, x0, nodes.q) - assistant_loss(d.clone().requires_grad_(), x0, nodes.q)).detach()
    assert float(excess) == pytest.approx(0.09, abs=1e-9)
    assert edm_weight(0.5) == pytest.approx(8.0) and float(edm_weight(double(2.0))) == pytest.approx(4.25)


def test_the_weight_of_c8_is_the_inverse_gap_and_no_weight_of_t(nodes):
    d_psi, d_ref = nodes.denoisers()
    w = inverse_gap_weight(d_psi, d_ref, 1e-9)
    assert not w.requires_grad
    torch.testing.assert_close(w, 1 / ((d_psi - d_ref).detach().abs().squeeze(1) + 1e-9))
    (found,) = torch.autograd.grad(
        diff_instruct(d_psi, d_ref, nodes.x_t, nodes.weight * w)[0], nodes.theta, retain_graph=True
    )
    by_hand = (nodes.weight[:, None] * (d_psi - d_ref).detach().sign() * nodes.x_t).mean()
    (sign,) = torch.autograd.grad(by_hand, nodes.theta, retain_graph=True)
    torch.testing.assert_close(found, sign, atol=1e-6, rtol=0)
    # an x_t-dependent weight turns the direction away from that of every integral KL with a w(t) at one level
    one = nodes.alpha_bar == LEVELS[0]
    directions = []
    for weight in (1.0, w):
        loss = diff_instruct(d_psi, d_ref, nodes.x_t, nodes.q * one * weight)[0]
        directions.append(torch.autograd.grad(loss, nodes.theta, retain_graph=True)[0].flatten())
    assert torch.cosine_similarity(*directions, dim=0) < 0.99
    # at the optimum, 0/0 as printed
    same_scores = d_psi.detach()
    loss, diagnostics = diff_instruct(same_scores, same_scores, nodes.x_t, inverse_gap_weight(same_scores, same_scores))
    assert float(loss.detach()) == 0 and float(diagnostics["gap"]) == 0


def test_the_losses_can_be_negative_and_the_diagnostics_are_the_objective(line, nodes):
    s_psi, s_ref = nodes.scores()
    loss, diagnostics = sim(s_psi, s_ref, nodes.target, nodes.weight, c=C)
    with torch.no_grad():
        truth = line.integral(lambda ab: _divergence(line, ab))
    assert float(diagnostics["divergence"]) == pytest.approx(float(truth), abs=1e-6)
    assert abs(float(loss.detach()) - float(truth)) > 0.1 * float(truth)
    assert float(diagnostics["gap"]) == pytest.approx(float((s_psi - s_ref).detach().norm(dim=1).mean()))
    assert not any(value.requires_grad for value in diagnostics.values())


def _divergence(world, ab):
    x, theta = world.grid, world.student.theta
    y = world.student.score(x, ab, theta) - world.reference.score_t(x, ab, CLASS)
    return world.student.log_prob(x, ab, theta).exp() * huber(y)


def pictures(seed=0, dtype=torch.float64):
    """assistant, reference, target and x_t of four latents (4, 2, 3, 3), with graphs to one x_0."""
    generator = torch.Generator().manual_seed(seed)
    x0, *rest = torch.randn(5, 4, 2, 3, 3, generator=generator, dtype=torch.float64)
    x0.requires_grad_()
    x_t = x0 + 0.3 * rest[0]
    return x0, [v.to(dtype) for v in (torch.tanh(x_t + rest[1]), torch.sin(x_t + rest[2]), x0, x_t)]


@pytest.mark.parametrize("term", ["diff_instruct", "sim squared", "sim pseudo-huber", "sid", "assistant_loss"])
def test_mean_is_the_sum_over_d_and_w_is_one_a_sample(term):
    x0, (psi, ref, target, x_t) = pictures()
    loss = {
        "diff_instruct": lambda w, how: diff_instruct(psi, ref, x_t, w, how)[0],
        "sim squared": lambda w, how: sim(psi, ref, target, w, "squared", None, how)[0],
        "sim pseudo-huber": lambda w, how: sim(psi, ref, target, w, "pseudo-huber", C, how)[0],
        "sid": lambda w, how: sid(psi, ref, target, 1.2, w, how)[0],
        "assistant_loss": lambda w, how: assistant_loss(psi, target, w, how),
    }[term]
    torch.testing.assert_close(18 * loss(1.0, "mean"), loss(1.0, "sum"))
    apart = [loss(torch.eye(4, dtype=torch.float64)[i], "sum") for i in range(4)]
    w = double(0.5, 2.0, 0.0, 3.0)
    torch.testing.assert_close(loss(w, "sum"), (w * torch.stack(apart)).sum())
    torch.testing.assert_close(loss(2.0, "sum"), 2 * loss(1.0, "sum"))


def test_formulas_of_the_distances():
    x0, (psi, ref, target, _) = pictures()
    y, residual = (psi - ref).flatten(1), (psi - target).flatten(1)
    torch.testing.assert_close(sim(psi, ref, target, distance="squared")[0], -(y * residual).sum(1).mean())
    root = (y.square().sum(1) + C**2).sqrt()  # over the whole sample
    torch.testing.assert_close(sim(psi, ref, target, c=C)[0], -((y * residual).sum(1) / root).mean())
    leaves = [v.detach().clone().requires_grad_() for v in (psi, ref, target)]
    assert torch.autograd.gradcheck(lambda p, r, t: sim(p, r, t, c=C)[0], leaves)
    assert torch.autograd.gradcheck(lambda p, r, t: sid(p, r, t, 1.2)[0], leaves)
    # far from the reference the slope of the pseudo-Huber distance is bounded, near it is the squared one's
    far = sim(psi, ref, target, distance="squared")[0] / sim(psi, ref, target, 1e3, c=1e3)[0]
    assert float(far) == pytest.approx(1, abs=1e-4)


def test_the_reward_is_added_after_the_reduction_and_comes_through_the_decoder():
    x0, (psi, ref, _, x_t) = pictures()
    decoded = torch.tanh(x0.flatten(1))
    rewards = decoded.square().sum(1)
    term = reward_term(rewards, 10.0)
    (gradient,) = torch.autograd.grad(term, x0, retain_graph=True)
    expected = -10 / 4 * 2 * decoded * (1 - decoded**2)
    torch.testing.assert_close(gradient.flatten(1), expected)
    y = (psi - ref).detach()
    listing_1 = (y * x_t - 10 * rewards.reshape(4, 1, 1, 1)).sum((1, 2, 3)).mean()
    regularizer = diff_instruct(psi, ref, x_t)[0]
    torch.testing.assert_close(listing_1, regularizer + 18 * term)  # alpha_rew times C*H*W
    assert float(reward_term(rewards.detach(), 0.0)) == 0
    with torch.no_grad():
        blind = torch.tanh(x0.flatten(1)).square().sum(1)
    for wrong in (blind, rewards.detach()):
        with pytest.raises(ValueError, match="reward carries no gradient: .* the student, through reward and decoder"):
            reward_term(wrong, 10.0)


def test_graphs_that_a_formula_needs_and_those_it_cuts():
    x0, (psi, ref, target, x_t) = pictures()
    loss, _ = diff_instruct(psi, ref, x_t, psi.detach().mean((1, 2, 3)))
    (gradient,) = torch.autograd.grad(loss, x0)
    torch.testing.assert_close(gradient, (psi.mean((1, 2, 3), keepdim=True) * (psi - ref) / 4).detach())
    x0, (psi, ref, target, x_t) = pictures()
    assert torch.autograd.grad(assistant_loss(psi, target), x0, allow_unused=True)[0] is not None
    x0, (psi, ref, target, x_t) = pictures()
    frozen = psi.detach().requires_grad_()
    assistant_loss(frozen, target).backward()
    assert x0.grad is None  # the target's graph to the student is cut
    x0, (psi, ref, target, x_t) = pictures()
    attached = x_t.square().mean((1, 2, 3))  # a weight that depends on the sample is a number for the gradient
    for loss in (lambda w: diff_instruct(psi, ref, x_t, w)[0], lambda w: sim(psi, ref, target, w, c=C)[0]):
        same(loss(attached), loss(attached.detach()), x0)
    with torch.no_grad():  # evaluation needs no graph
        assert torch.isfinite(sim(psi.detach(), ref.detach(), target, c=C)[0])


def test_half_precision_is_computed_in_float32():
    x0, half = pictures(dtype=torch.bfloat16)
    psi, ref, target, x_t = half
    exact = [v.float() for v in half]
    for loss, same_loss in (
        (sim(psi, ref, target, c=C)[0], sim(*exact[:3], c=C)[0]),
        (diff_instruct(psi, ref, x_t)[0], diff_instruct(*exact[:2], exact[3])[0]),
        (assistant_loss(psi, target), assistant_loss(exact[0], exact[2])),
    ):
        assert loss.dtype == torch.float32 and float(loss.detach()) == float(same_loss.detach())


ONE, GRAPH = torch.zeros(2, 3), torch.zeros(2, 3, requires_grad=True)
REFUSALS = [
    (lambda: diff_instruct(ONE, ONE, ONE), "x_t carries no gradient: compute it with the graph to the student"),
    (lambda: sim(ONE, GRAPH, ONE, c=1.0), "assistant carries no gradient: compute it with the graph to its input x_t"),
    (lambda: sim(GRAPH, ONE, ONE, c=1.0), "reference carries no gradient: compute it with the graph to its input x_t"),
    (lambda: sid(GRAPH, ONE, ONE, 1.0), "reference carries no gradient"),
    (lambda: assistant_loss(ONE, ONE), "prediction carries no gradient: .* the assistant's weights"),
    (lambda: sim(GRAPH, GRAPH, ONE), "c = None: the pseudo-Huber distance needs a finite positive number"),
    (lambda: sim(GRAPH, GRAPH, ONE, c=0.0), "c = 0.0: the pseudo-Huber"),
    (lambda: sim(GRAPH, GRAPH, ONE, distance="l1"), 'distance = \'l1\': expected "squared" or "pseudo-huber"'),
    (lambda: sid(GRAPH, GRAPH, ONE, math.nan), "alpha = nan: expected a finite number"),
    (lambda: guided(ONE, ONE, math.inf), "guidance_scale = inf: expected a finite number"),
    (lambda: guided(ONE, ONE[:1], 2.0), r"unconditional has shape \(1, 3\) and conditional \(2, 3\)"),
    (lambda: diff_instruct(ONE, ONE[:, :2], GRAPH), r"reference has shape \(2, 2\) and assistant \(2, 3\)"),
    (lambda: diff_instruct(ONE[0], ONE[0], GRAPH[0]), r"assistant is torch.float32 of shape \(3,\): expected floats"),
    (lambda: diff_instruct(ONE.long(), ONE, GRAPH), "assistant is torch.int64"),
    (
        lambda: diff_instruct(ONE, ONE, GRAPH, torch.ones(2, 1)),
        r"weight has shape \(2, 1\): expected \(2,\), one a sample",
    ),
    (lambda: diff_instruct(ONE, ONE, GRAPH, math.nan), "weight = nan: expected a finite number"),
    (lambda: diff_instruct(ONE, ONE, GRAPH, 1.0, "max"), 'reduction = \'max\': expected "mean" or "sum"'),
    (lambda: inverse_gap_weight(ONE, ONE, 0.0), "offset = 0.0: expected a finite positive number"),
    (lambda: reward_term(GRAPH[:, :1], 1.0), r"reward is torch.float32 of shape \(2, 1\): expected floats \(B,\)"),
    (lambda: reward_term(GRAPH[:, 0], math.inf), "reward_scale = inf: expected a finite number"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)
