"""The toy world: every closed form against autograd, quadrature or a grid, and a student that is good enough to use."""

import copy
import math

import numpy as np
import pytest
import torch

from fsalign_lib.kernels import DDIM, build_kernel
from fsalign_lib.metrics.densities import Grid, histogram_kl
from fsalign_lib.rollout import rollout
from fsalign_lib.schedules import NoiseSchedule, renoise_timesteps
from fsalign_lib.toy import (
    CLASS_NAMES,
    STUDENT_FILE,
    GaussianMixture,
    QuadraticReward,
    ToyStudent,
    ToyTeacher,
    distil,
    load_student,
    mode_statistics,
    probability_flow,
    toy_mixture,
    toy_reward,
)
from tests.exact import discrete_kl

SCHEDULE = NoiseSchedule.scaled_linear()
TIMES = [999, 749, 499, 249, 19]


@pytest.fixture(scope="module")
def mixture() -> GaussianMixture:
    """Unequal weights, long and tilted components, classes that overlap."""
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(6, 2, 2, generator=generator, dtype=torch.float64) / 3
    return GaussianMixture(
        weights=torch.rand(6, generator=generator) + 0.2,
        means=torch.randn(6, 2, generator=generator),
        covs=roots @ roots.mT + 0.02 * torch.eye(2),
        labels=torch.tensor([0, 0, 1, 1, 1, 2]),
    )


def points(count: int = 24, seed: int = 1) -> torch.Tensor:
    return 1.3 * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """A noise level and a class, -1 among them, for each point."""
    return SCHEDULE.alpha_bar[torch.tensor(TIMES).repeat(5)[:count]], torch.arange(-1, 3).repeat(6)[:count]


@pytest.mark.parametrize("c", [None, 0, 1, 2])
@pytest.mark.parametrize("t", TIMES)
def test_log_prob_is_that_of_torch_distributions(mixture, t, c):
    ab = SCHEDULE.alpha_bar[t]
    own = torch.ones(6, dtype=bool) if c is None else mixture.labels == c
    covs = ab * mixture.covs[own] + (1 - ab) * torch.eye(2)
    components = torch.distributions.MultivariateNormal(ab.sqrt() * mixture.means[own], covs)
    expected = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights[own]), components)
    torch.testing.assert_close(mixture.log_prob_t(points(), ab, c), expected.log_prob(points()))


@pytest.mark.parametrize("c", [-1, 0, 1, 2])
@pytest.mark.parametrize("alpha_bar", [0.0047, 0.3, 1.0])
def test_densities_are_normalised(mixture, alpha_bar, c):
    *cells, outside = Grid(-7, 7, 70).probabilities(lambda x: mixture.log_prob_t(x, alpha_bar, c))
    assert abs(sum(cells) - 1) < 1e-6 and outside < 1e-6


def test_classes_make_up_the_whole(mixture):
    prior = torch.stack([mixture.weights[mixture.labels == c].sum() for c in range(3)])
    parts = torch.stack([mixture.log_prob(points(), c) for c in range(3)], dim=1)
    torch.testing.assert_close(torch.logsumexp(parts + prior.log(), dim=1), mixture.log_prob(points()))


def test_score_is_the_gradient_of_the_log_density(mixture):
    x, (ab, c) = points().requires_grad_(), mixed()
    (expected,) = torch.autograd.grad(mixture.log_prob_t(x, ab, c).sum(), x)
    torch.testing.assert_close(mixture.score_t(x, ab, c), expected, rtol=1e-9, atol=1e-9)
    without_class = mixture.score_t(x, ab)
    assert (without_class - expected)[c >= 0].abs().max() > 0.1, "the check must notice a dropped class"


def test_posterior_mean_is_tweedies(mixture):
    x, c, t = points(), mixed()[1], torch.tensor(TIMES).repeat(5)[:24]
    score = mixture.score_t(x, SCHEDULE.alpha_bar[t], c)
    mean = mixture.posterior_mean(x, SCHEDULE.alpha_bar[t], c)
    torch.testing.assert_close(mean, SCHEDULE.x0_from_score(x, score, t), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(SCHEDULE.score_from_x0(x, mean, t), score, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("c", [-1, 1])
@pytest.mark.parametrize("t", [999, 499, 249])
def test_posterior_mean_and_density_are_those_of_quadrature(mixture, t, c):
    ab, x_t = SCHEDULE.alpha_bar[t], points(8)
    grid = Grid(-6, 6, 200)
    x0 = grid.centers()
    q = -(x_t[:, None] - ab.sqrt() * x0).square().sum(-1) / (2 * (1 - ab)) - (2 * math.pi * (1 - ab)).log()
    joint = (mixture.log_prob(x0, c) + q).exp() * (12 / 200) ** 2  # (B, G): p(x_0|c) q(x_t|x_0) dx_0
    torch.testing.assert_close(joint.sum(1).log(), mixture.log_prob_t(x_t, ab, c), rtol=1e-7, atol=1e-7)
    expected = joint @ x0 / joint.sum(1, keepdim=True)
    torch.testing.assert_close(mixture.posterior_mean(x_t, ab, c), expected, rtol=1e-6, atol=1e-6)
    # Known wrong forms: the gain without sqrt(ab), and the noisy sample merely scaled back.
    gain = (mixture.posterior_mean(x_t, ab, c) - mixture.responsibilities(x_t, ab, c) @ mixture.means) / ab.sqrt()
    wrong = mixture.responsibilities(x_t, ab, c) @ mixture.means + gain
    assert (wrong - expected).abs().max() > 1e-2 and (x_t / ab.sqrt() - expected).abs().max() > 1e-1


def test_guidance_extrapolates_from_the_unconditional_score(mixture):
    x, (ab, c) = points().requires_grad_(), mixed()
    w = 3.5
    log_guided = (1 - w) * mixture.log_prob_t(x, ab) + w * mixture.log_prob_t(x, ab, c)
    (expected,) = torch.autograd.grad(log_guided.sum(), x)
    guided = mixture.guided_score_t(x, ab, c, w)
    torch.testing.assert_close(guided, expected, rtol=1e-8, atol=1e-8)
    column = ab[:, None]
    tweedie = (x + (1 - column) * guided) / column.sqrt()
    torch.testing.assert_close(mixture.guided_posterior_mean(x, ab, c, w), tweedie, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixture.guided_score_t(x, ab, c, 1.0), mixture.score_t(x, ab, c))
    torch.testing.assert_close(mixture.guided_score_t(x, ab, c, 0.0), mixture.score_t(x, ab))
    free, own = mixture.score_t(x, ab), mixture.score_t(x, ab, c)
    assert (own + w * (own - free) - expected).abs().max() > 0.1, "the convention in which w = 0 is no guidance"


def test_samples_have_the_mixtures_moments_and_classes(mixture):
    for c in (-1, 0, 1, 2):
        own = mixture.class_log_weights(c)[0].exp()
        x = mixture.sample(40_000, c, torch.Generator().manual_seed(2))
        mean = own @ mixture.means
        centred = mixture.means - mean
        cov = torch.einsum("k,kde->de", own, mixture.covs + centred[:, :, None] * centred[:, None])
        torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
        torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=0.03)
    each = mixture.sample(6, torch.tensor([0, 1, 2, 0, 1, 2]), torch.Generator().manual_seed(3))
    assert each.shape == (6, 2) and each.dtype == torch.float64
    assert torch.equal(each, mixture.sample(6, torch.tensor([0, 1, 2] * 2), torch.Generator().manual_seed(3)))


def general_reward() -> QuadraticReward:
    generator = torch.Generator().manual_seed(4)
    linear = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    root = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    return QuadraticReward(linear, root @ root.mT)


def test_reward_is_the_formula():
    reward, x, c = general_reward(), points(6), torch.tensor([0, 1, 2, 2, 1, 0])
    expected = [reward.linear[k] @ v - 0.5 * v @ reward.quadratic[k] @ v for v, k in zip(x, c, strict=True)]
    torch.testing.assert_close(reward(x, c), torch.stack(expected))
    near = QuadraticReward.toward((0.5, -1.0), 2.0, 3)
    away = -(x - torch.tensor([0.5, -1.0])).square().sum(1)
    torch.testing.assert_close(near(x, c) - near(x[:1], c[:1]), away - away[0])


@pytest.mark.parametrize("c", [0, 1, 2])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_tilted_target_in_closed_form_is_the_one_on_the_grid(mixture, beta, c):
    reward, grid = general_reward(), Grid(-6, 6, 60)
    tilted = mixture.tilted(reward, beta)

    def on_grid(r, beta):
        def log_density(x):
            return mixture.log_prob(x, c) + r(x, torch.full((len(x),), c)) / beta

        return grid.probabilities(log_density, normalise=True)

    exact = grid.probabilities(lambda x: tilted.log_prob(x, c))
    assert np.abs(exact - on_grid(reward, beta)).max() < 1e-7
    opposite = QuadraticReward(-reward.linear, reward.quadratic)
    for wrong in (
        on_grid(opposite, beta),
        on_grid(reward, 1 / beta),
        grid.probabilities(lambda x: mixture.log_prob(x, c)),
    ):
        assert discrete_kl(exact[:-1], wrong[:-1] + 1e-30) > 0.01
    # The tilt without |P||S|, a slip that leaves a mixture with the right means and covariances.
    own = mixture.labels == c
    slip = torch.where(own, tilted.weights / (torch.linalg.det(tilted.covs) / torch.linalg.det(mixture.covs)).sqrt(), 0)
    if int(own.sum()) > 1:
        assert (slip[own] / slip.sum() - tilted.weights[own] / tilted.weights[own].sum()).abs().max() > 1e-3


def test_tilting_keeps_the_classes_and_ends_at_the_identity(mixture):
    tilted = mixture.tilted(general_reward(), 0.3)
    for c in range(3):
        own = mixture.labels == c
        torch.testing.assert_close(tilted.weights[own].sum(), mixture.weights[own].sum())
    weak = mixture.tilted(general_reward(), 1e9)
    torch.testing.assert_close(weak.log_prob(points()), mixture.log_prob(points()), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="beta=0.1 is too small"):
        mixture.tilted(QuadraticReward.toward((0.0, 0.0), -5.0, 3), 0.1)


def test_bad_mixtures_and_classes_are_named():
    eye = torch.eye(2).repeat(2, 1, 1)
    with pytest.raises(ValueError, match="weights must be positive"):
        GaussianMixture(torch.tensor([1.0, 0.0]), torch.zeros(2, 2), eye, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="positive definite"):
        GaussianMixture(torch.ones(2), torch.zeros(2, 2), -eye, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"class \[7\] unknown: use 0..2"):
        toy_mixture().log_prob(points(1), 7)


def test_toy_world_has_three_prompts_of_about_unit_scale():
    mixture = toy_mixture()
    assert mixture.num_classes == len(CLASS_NAMES) == 3 and mixture.labels.bincount().tolist() == [4, 3, 3]
    x = mixture.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert 0.7 < x.std(0).min() < x.std(0).max() < 1.1


def test_probability_flow_of_one_gaussian():
    """dx/dsigma has the solution m + (x - m) sqrt((s^2 + sigma^2) / (s^2 + sigma_0^2))."""
    s, mean = 0.3, torch.tensor([0.5, -1.0], dtype=torch.float64)
    one = GaussianMixture(torch.ones(1), mean[None], s**2 * torch.eye(2)[None], torch.zeros(1, dtype=torch.long))
    sigmas = torch.cat((SCHEDULE.sigma(renoise_timesteps(250)), torch.zeros(1)))
    x = mean + float(sigmas[0]) * points(5)
    states = probability_flow(one, x, sigmas)
    expected = mean + (x - mean) * ((s**2 + sigmas[:, None, None] ** 2) / (s**2 + sigmas[0] ** 2)).sqrt()
    torch.testing.assert_close(states, expected, rtol=0, atol=2e-3)


def test_probability_flow_ends_at_the_data():
    mixture = toy_mixture()
    sigmas = torch.cat((SCHEDULE.sigma(renoise_timesteps(100)), torch.zeros(1)))
    x = float(sigmas[0]) * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    assert kl_to_data([probability_flow(mixture, x, sigmas, 1)[-1]], mixture, classes=[1]).estimate < 0.03


def samples(model, num_steps: int, count: int = 8000, name: str = "renoise", classes=(0, 1, 2)) -> list[torch.Tensor]:
    kernel, generator = build_kernel(name, model.schedule, num_steps), torch.Generator().manual_seed(5)
    noise = [torch.randn(count, num_steps + 1, 2, generator=generator) for _ in classes]
    return [rollout(model, kernel, torch.full((count,), c), z).final for c, z in zip(classes, noise, strict=True)]


def kl_to_data(xs: list[torch.Tensor], mixture: GaussianMixture, classes=(0, 1, 2)):
    grid = Grid()
    exact = [grid.probabilities(lambda x, c=c: mixture.log_prob(x, c)) for c in classes]
    return histogram_kl(np.stack([grid.counts(x) for x in xs]), np.stack(exact))


def test_teacher_is_the_exact_model():
    teacher, x, c = ToyTeacher(), points(), mixed()[1]
    t = torch.tensor(TIMES).repeat(5)[:24]
    score = teacher.mixture.score_t(x, SCHEDULE.alpha_bar[t], c)
    torch.testing.assert_close(teacher.predict_eps(x, t, c), SCHEDULE.eps_from_score(x, score, t))
    torch.testing.assert_close(teacher.predict_x0(x, 499, c), teacher.predict_x0(x, torch.full((24,), 499), c))
    guided = ToyTeacher(guidance_scale=2.0)
    free = teacher.predict_x0(x, t, torch.full((24,), -1))
    expected = free + 2 * (teacher.predict_x0(x, t, c) - free)
    torch.testing.assert_close(guided.predict_x0(x, t, c), expected)
    assert teacher.predict_x0(x.float(), 499, c).dtype == torch.float32
    with teacher.reference():
        torch.testing.assert_close(
            teacher.predict_x0(x, t, c), teacher.mixture.posterior_mean(x, SCHEDULE.alpha_bar[t], c)
        )


def test_teacher_needs_many_steps():
    """Its samples are the data's after 100 DDIM steps (eta = 0), and far from them after 4 renoise steps."""
    teacher = ToyTeacher()
    kernel = DDIM(teacher.schedule, renoise_timesteps(100), eta=0.0)
    noise = torch.randn(4000, 101, 2, generator=torch.Generator().manual_seed(5))
    many = rollout(teacher, kernel, torch.zeros(4000, dtype=torch.long), noise).final
    assert kl_to_data([many], teacher.mixture, [0]).estimate < 0.1
    assert kl_to_data(samples(teacher, 4, 4000, classes=[0]), teacher.mixture, [0]).estimate > 1


def test_mode_statistics_of_the_data_are_one():
    mixture = toy_mixture()
    for c in range(3):
        s = mode_statistics(mixture, mixture.sample(40_000, c, torch.Generator().manual_seed(c)), c)
        assert abs(s.spread - 1) < 0.01 and abs(s.within - 1) < 0.01 and abs(s.on_mode - 0.989) < 0.003
        assert s.recall == 1 and abs(float(s.shares.sum()) - 1) < 1e-12
        torch.testing.assert_close(
            s.shares, mixture.class_log_weights(c)[0, mixture.labels == c].exp().float(), atol=0.01, rtol=0
        )


def test_mode_statistics_see_shrinking_averaging_and_lost_modes():
    mixture, g = toy_mixture(), torch.Generator().manual_seed(0)
    own = mixture.means[mixture.labels == 0]
    k = torch.randint(4, (4000,), generator=g)
    noise = 0.22 * torch.randn(4000, 2, generator=g, dtype=torch.float64)
    assert abs(mode_statistics(mixture, own[k] + 0.5 * noise, 0).within - 0.5) < 0.03
    assert mode_statistics(mixture, own[k % 3] + noise, 0).recall == 0.75
    between = mode_statistics(mixture, (own[k] + own[k.flip(0)]) / 2, 0)
    assert between.on_mode < 0.35 and between.spread < 0.75
    # The law of total variance: posterior means spread less than the data, by the mean posterior variance.
    ab = SCHEDULE.alpha_bar[249]
    x0 = mixture.sample(20_000, 0, g)
    x_t = ab.sqrt() * x0 + (1 - ab).sqrt() * torch.randn(x0.shape, generator=g, dtype=torch.float64)
    mean = mixture.posterior_mean(x_t, ab, 0)
    total = x0.var(0).sum()
    expected = ((total - (x0 - mean).square().sum(1).mean()) / total).sqrt()
    assert abs(mode_statistics(mixture, mean, 0).spread - float(expected)) < 0.01 and expected < 0.95


def test_shipped_student_is_close_to_the_data():
    student, mixture = load_student(), toy_mixture()
    assert STUDENT_FILE.stat().st_size < 300_000
    for num_steps, bound in ((4, 0.03), (1, 0.04)):
        xs = samples(student, num_steps)
        assert kl_to_data(xs, mixture).high < bound
        for c, x in enumerate(xs):
            s = mode_statistics(mixture, x, c)
            assert s.recall == 1 and s.on_mode > 0.975 and abs(s.spread - 1) < 0.02 and abs(s.within - 1) < 0.03


def test_student_takes_one_time_or_one_for_each_sample():
    student, x, c = load_student(), points(8).float(), torch.arange(-1, 3).repeat(2)
    t = torch.tensor([999, 749, 499, 249] * 2)
    each = torch.cat([student.predict_x0(x[i : i + 1], int(t[i]), c[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(student.predict_x0(x, t, c), each)
    torch.testing.assert_close(SCHEDULE.x0_from_eps(x, student.predict_eps(x, t, c), t), each, rtol=1e-4, atol=1e-4)
    assert (student.predict_x0(x, 999, c) - student.predict_x0(x, 999, c.flip(0))).abs().max() > 0.1


def test_reference_stays_when_the_student_moves():
    student, x, c = load_student(), points(8).float(), torch.zeros(8, dtype=torch.long)
    before = student.predict_x0(x, 499, c).detach()
    with torch.no_grad():
        student.out.weight += 1
    assert (student.predict_x0(x, 499, c) - before).abs().max() > 0.1
    with student.reference():
        assert torch.equal(student.predict_x0(x, 499, c), before)
        assert not student.predict_x0(x, 499, c).requires_grad
    moved = student.predict_x0(x, 499, c)
    assert moved.requires_grad and (moved - before).abs().max() > 0.1, "the context ends"
    twin = copy.deepcopy(student)
    with twin.reference():
        assert torch.equal(twin.predict_x0(x, 499, c), before)
    assert twin.state_dict().keys() == dict(student.named_parameters()).keys(), "the reference is no weight of its own"
    with pytest.raises(ValueError, match="call freeze_reference"), ToyStudent().reference():
        pass


def test_distillation_runs_and_repeats_to_the_bit():
    teacher = ToyTeacher()
    first, again = (distil(teacher, seed=3, steps=80, trajectories=256, batch_size=128) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = distil(teacher, seed=4, steps=1, trajectories=16, batch_size=16)
    assert not torch.equal(first.out.weight, other.out.weight)
    kl = kl_to_data(samples(first, 4, 4000), teacher.mixture).estimate
    untrained = kl_to_data(samples(other, 4, 4000), teacher.mixture).estimate
    assert kl < 0.5 * untrained
    x, c = points(4).float(), torch.zeros(4, dtype=torch.long)
    with first.reference():
        reference = first.predict_x0(x, 499, c)
    torch.testing.assert_close(reference, first.predict_x0(x, 499, c))


def test_toy_reward_prefers_its_point():
    reward, c = toy_reward(), torch.zeros(2, dtype=torch.long)
    best, other = reward(torch.tensor([[1.0, 0.6], [-1.0, 0.6]]), c)
    assert best - other == pytest.approx(2.0)
