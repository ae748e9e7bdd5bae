"""Each metric against a closed form, and each interval against the coverage that it claims."""

import numpy as np
import pytest
import torch

from fsalign_lib.metrics.densities import Grid, gaussian_kl, histogram_kl
from fsalign_lib.metrics.features import cosine_kernel, sharpness, vendi_score
from fsalign_lib.metrics.frechet import gaussian_frechet
from fsalign_lib.metrics.statistics import Interval, crossed_interval
from tests.exact import discrete_kl, fitted


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# crossed_interval


def of_pairs(after, before, level=0.95):
    """One training run, one picture a prompt."""
    return crossed_interval((np.asarray(after) - np.asarray(before))[None, :, None], level)


def test_interval_of_a_constant_difference_has_no_width(rng):
    b = rng.normal(size=50)
    assert of_pairs(b + 0.25, b) == pytest.approx((0.25, 0.25, 0.25))


def test_interval_is_about_the_difference(rng):
    b = 10 * rng.normal(size=200)  # the pairs differ much more between than within
    a = b + rng.normal(0.3, 1, size=200)
    interval = of_pairs(a, b)
    assert interval.estimate == pytest.approx((a - b).mean()) and interval.low < interval.estimate < interval.high
    width = 2 * 1.96 * (a - b).std(ddof=1) / np.sqrt(200)
    assert interval.high - interval.low == pytest.approx(width, rel=0.05)
    unpaired = of_pairs(a, rng.permutation(b))
    assert unpaired.high - unpaired.low > 5 * width
    swapped = of_pairs(b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-interval.high, -interval.low))


def test_interval_covers_the_truth(rng):
    """Skewed differences, 50 pairs: at 95% asked it must hold the mean in 88-99% of 400 trials, and at 50% in half."""
    hits = {0.95: 0, 0.5: 0}
    for _ in range(400):
        a = rng.exponential(1.0, 50)
        for level in hits:
            interval = of_pairs(a, np.zeros(50), level)
            hits[level] += interval.low <= 1.0 <= interval.high
    assert 0.88 < hits[0.95] / 400 < 0.99 and 0.42 < hits[0.5] / 400 < 0.58


def test_interval_keeps_a_prompts_pictures_together(rng):
    a = rng.normal(size=40)
    copies = np.repeat(a[:, None], 10, axis=1)  # (P, E)
    whole = crossed_interval(copies[None])
    assert whole == pytest.approx(of_pairs(a, 0 * a)), "copies of a pair are no evidence"
    naive = crossed_interval(copies.reshape(1, -1, 1))
    assert (whole.high - whole.low) > 2.5 * (naive.high - naive.low)


@pytest.mark.parametrize(
    ("differences", "level", "message"),
    [
        (np.zeros((2, 3)), 0.95, r"differences have shape \(2, 3\): expected \(T, P, E\)"),
        (np.array([[[1.0], [np.nan]]]), 0.95, "every value finite"),
        (np.ones((1, 1, 4)), 0.95, "1 prompt: an interval needs 2 or more"),
        (np.ones((1, 2, 1)), 95, "level = 95"),
    ],
)
def test_interval_names_bad_input(differences, level, message):
    with pytest.raises(ValueError, match=message):
        crossed_interval(differences, level)


def test_interval_prints_and_decides():
    assert str(Interval(0.1234, -0.5, 1)) == "0.123 [-0.500, 1.000]"
    assert not Interval(0.1, -0.5, 1).excludes() and Interval(0.1, 0.05, 1).excludes() and Interval(2, 1, 3).excludes(4)


# gaussian_frechet, gaussian_kl


def exactly(mean, cov, rng, count: int = 60) -> np.ndarray:
    """Samples whose mean and unbiased covariance are exactly these."""
    z = rng.normal(size=(count, len(mean)))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return z @ np.linalg.cholesky(cov).T + mean


def distance(x, y):
    return gaussian_frechet(fitted(x), fitted(y))


def test_gaussian_frechet_of_known_gaussians(rng):
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    x, y = exactly([1.0, 2.0], a, rng), exactly([0.0, -1.0], b, rng, 90)
    # In two dimensions tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)); a and b do not commute.
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = 1 + 9 + np.trace(a + b) - 2 * cross
    assert distance(x, y) == pytest.approx(expected) == distance(torch.tensor(y), x)
    elementwise = 10 + ((np.sqrt(np.diag(a)) - np.sqrt(np.diag(b))) ** 2).sum()
    assert abs(expected - elementwise) > 0.1, "the check must notice covariances taken as diagonal"


def test_gaussian_frechet_is_zero_for_equal_sets_and_blind_to_rotation(rng):
    x, shift = rng.normal(size=(30, 40)), rng.normal(size=40)  # fewer samples than dimensions
    assert distance(x, x) == pytest.approx(0, abs=1e-6)
    assert distance(x, x + shift) == pytest.approx((shift**2).sum(), rel=1e-6)
    y, (rotation, _) = rng.normal(size=(50, 40)) * 2, np.linalg.qr(rng.normal(size=(40, 40)))
    assert distance(x @ rotation, y @ rotation) == pytest.approx(distance(x, y))
    with pytest.raises(ValueError, match="40 and 39 dimensions"):
        distance(x, y[:, 1:])
    with pytest.raises(ValueError, match="every value finite"):
        distance(x, np.full((3, 40), np.nan))


def test_gaussian_kl_is_that_of_torch_distributions(rng):
    roots = rng.normal(size=(2, 3, 3))
    covs = roots @ roots.transpose(0, 2, 1) + np.eye(3)
    means = rng.normal(size=(2, 3))
    p, q = (
        torch.distributions.MultivariateNormal(torch.tensor(m), torch.tensor(s))
        for m, s in zip(means, covs, strict=True)
    )
    expected = float(torch.distributions.kl_divergence(p, q))
    assert gaussian_kl(means[0], covs[0], means[1], covs[1]) == pytest.approx(expected)
    assert gaussian_kl(means[1], covs[1], means[0], covs[0]) != pytest.approx(expected)
    assert gaussian_kl(means[0], covs[0], means[0], covs[0]) == pytest.approx(0, abs=1e-12)


# diversity


def test_vendi_score_counts_what_differs(rng):
    assert vendi_score(np.ones((7, 7))) == pytest.approx(1)
    assert vendi_score(np.eye(7)) == pytest.approx(7)
    twice = cosine_kernel(np.repeat(np.eye(3), 4, axis=0) * rng.uniform(1, 5, size=(12, 1)))
    assert vendi_score(twice) == pytest.approx(3), "three kinds, however often and however long"
    x = rng.normal(size=(10, 4))
    square = ((x[:, None] - x) ** 2).sum(-1)
    wide, narrow = np.exp(-square / 8), np.exp(-square / 0.5)
    assert 1 < vendi_score(wide) < vendi_score(narrow) < 10
    with pytest.raises(ValueError, match="ones on the diagonal"):
        vendi_score(2 * np.eye(3))
    with pytest.raises(ValueError, match="a feature row is zero"):
        cosine_kernel(np.zeros((2, 3)))


# sharpness


def test_sharpness_is_horizontal():
    stripes = torch.zeros(2, 3, 4, 6)
    stripes[0, :, :, ::2] = 1  # columns: every horizontal difference is 1
    stripes[1, :, ::2] = 1  # rows: none
    assert sharpness(stripes).tolist() == [1.0, 0.0]
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    assert sharpness(blurred)[0] < 0.5 * sharpness(noise)[0]
    assert sharpness(noise)[0] == pytest.approx(float((noise[..., 1:] - noise[..., :-1]).square().mean()))
    with pytest.raises(ValueError, match=r"\(3, 16, 16\)"):
        sharpness(noise[0])


# grid and KL


def normal(mean, std):
    distribution = torch.distributions.Independent(torch.distributions.Normal(torch.tensor(mean), torch.tensor(std)), 1)
    return distribution.log_prob


def test_grid_probabilities_are_exact_integrals():
    grid = Grid(-3, 3, 30)
    p = grid.probabilities(normal([0.5, -0.2], [0.4, 0.9]))
    edges = torch.linspace(-3, 3, 31)
    one = [torch.distributions.Normal(m, s).cdf(edges).diff() for m, s in ((0.5, 0.4), (-0.2, 0.9))]
    exact = torch.outer(*one).ravel().numpy()  # x-major
    assert np.abs(p[:-1] - exact).max() < 5e-5 and p.sum() == pytest.approx(1)
    assert p[-1] == pytest.approx(1 - exact.sum(), rel=0.05)
    unnormalised = grid.probabilities(lambda x: normal([0.5, -0.2], [0.4, 0.9])(x) + 7, normalise=True)
    assert np.abs(unnormalised[:-1] - p[:-1] / p[:-1].sum()).max() < 1e-12


def test_grid_counts_every_sample_once():
    grid = Grid(-1, 1, 4)
    counts = grid.counts(torch.tensor([[-0.9, -0.9], [-0.9, 0.9], [0.1, -0.1], [0.1, -0.1], [2.0, 0.0], [0.0, -5.0]]))
    assert counts.sum() == 6 and counts[0] == 1 and counts[3] == 1 and counts[9] == 2 and counts[-1] == 2
    index = np.array([grid.counts(x[None]).argmax() for x in grid.centers()])
    assert (index == np.arange(16)).all(), "centers and counts number the cells alike"
    with pytest.raises(ValueError, match="not finite"):
        grid.counts(torch.tensor([[np.nan, 0.0]]))


def test_kl_of_cells_of_gaussians_is_theirs():
    grid = Grid(-6, 6, 120)
    p, q = grid.probabilities(normal([0.5, 0.0], [0.8, 1.0])), grid.probabilities(normal([0.0, 0.0], [1.0, 0.9]))
    exact = gaussian_kl([0.5, 0.0], np.diag([0.64, 1.0]), [0.0, 0.0], np.diag([1.0, 0.81]))
    assert discrete_kl(p, q) == pytest.approx(exact, rel=0.01)


def test_histogram_kl_is_nearly_unbiased_and_covers(rng):
    """Where the plug-in is biased by several times its standard deviation, and would never cover."""
    grid = Grid(-3, 3, 20)
    p, q = grid.probabilities(normal([0.2, 0.0], [0.8, 0.8])), grid.probabilities(normal([0.0, 0.0], [0.9, 0.9]))
    p, truth, hits, estimates, plug_in = p / p.sum(), discrete_kl(p, q), 0, [], []
    for trial in range(100):
        counts = rng.multinomial(16_000, p)
        interval = histogram_kl(counts, q, resamples=100, seed=trial)
        hits += interval.low <= truth <= interval.high
        estimates.append(interval.estimate)
        plug_in.append(discrete_kl(counts / 16_000, q))
    assert abs(np.mean(estimates) - truth) < 0.8 * np.std(estimates) and 86 <= hits <= 100
    assert np.mean(plug_in) - truth > 3 * np.std(estimates)


def test_histogram_kl_entropy_is_grassbergers():
    """With one cell for each count n the estimate is log q and G alone; G from the digamma function."""
    for n in (1, 2, 3, 4, 7, 20):
        half = [torch.special.digamma(torch.tensor(v, dtype=torch.float64)) for v in (n, (n + 1) / 2, n / 2)]
        g = half[0] + (-1) ** n * (half[1] - half[2]) / 2
        estimate = histogram_kl(np.array([n, n]), np.array([0.5, 0.5]), resamples=2).estimate
        assert estimate == pytest.approx(float(g) - np.log(2 * n) + np.log(2))


def test_histogram_kl_averages_classes_and_names_bad_input(rng):
    q = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    counts = np.stack([rng.multinomial(500, [0.3, 0.3, 0.4]), rng.multinomial(900, [0.5, 0.2, 0.3])])
    single = [histogram_kl(n, p).estimate for n, p in zip(counts, q, strict=True)]
    both = histogram_kl(counts, q)
    assert both.estimate == pytest.approx(np.mean(single)) and both.low < both.estimate < both.high
    assert both == histogram_kl(counts, q)
    with pytest.raises(ValueError, match="probability 0"):
        histogram_kl(np.array([1, 1]), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="same grid and classes"):
        histogram_kl(counts, q[:1])
