"""Check exercises on noise levels, posterior means and guidance (notebooks 01 and 03)."""

from torch import Tensor

from fsalign_lib.lesson.exercise import Exercise, draw
from fsalign_lib.losses.distribution_matching import guided
from fsalign_lib.schedules import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear()
T = 249
ALPHA_BAR = SCHEDULE.alpha_bar[T]


check_x0_from_score = Exercise(
    "x0_from_score",
    right=lambda x_t, score, alpha_bar: SCHEDULE.x0_from_score(x_t, score, T),
    mistakes={
        "the score has the wrong sign. It points to where data are denser, so the guess moves along it.": (
            lambda x_t, score, ab: (x_t - (1 - ab) * score) / ab.sqrt()
        ),
        "you multiply the score by the standard deviation of the noise. Tweedie has its variance, 1 - alpha_bar.": (
            lambda x_t, score, ab: (x_t + (1 - ab).sqrt() * score) / ab.sqrt()
        ),
        "you divide by alpha_bar. The clean sample was shrunk by its square root.": (
            lambda x_t, score, ab: (x_t + (1 - ab) * score) / ab
        ),
        "the division is missing: this is sqrt(alpha_bar) x0, still shrunk.": lambda x_t, score, ab: (
            x_t + (1 - ab) * score
        ),
        "x_t is missing: the score alone is only the way from x_t to the guess.": lambda x_t, score, ab: (
            (1 - ab) * score / ab.sqrt()
        ),
    },
    cases=lambda: [(draw(0, 5, 2), draw(1, 5, 2), ALPHA_BAR)],
    returns="(B, D), the posterior mean of each point",
)

check_guided_score = Exercise(
    "guided_score",
    right=guided,
    mistakes={
        "you count the scale from 0. In this project, as in the papers, w = 1 is no guidance and w = 0 no prompt.": (
            lambda c, u, w: c + w * (c - u)
        ),
        "conditional and unconditional score are swapped: this walks away from the prompt.": lambda c, u, w: (
            c + w * (u - c)
        ),
        "the unconditional score is missing as the place to start from: this is only what guidance adds to it.": (
            lambda c, u, w: w * (c - u)
        ),
        "you scale the whole conditional score. Guidance scales its difference from the unconditional one.": (
            lambda c, u, w: w * c
        ),
        "you take an average of the two: guidance goes past the conditional score, not between the two.": (
            lambda c, u, w: (w * c + u) / (w + 1)
        ),
    },
    cases=lambda: [(draw(2, 5, 2), draw(3, 5, 2), 3.0)],
    returns="(B, D), the guided score of each point",
)


def _gain(alpha_bar: Tensor, v: Tensor) -> Tensor:
    return alpha_bar.sqrt() * v / (alpha_bar * v + 1 - alpha_bar)


check_posterior_gain = Exercise(
    "posterior_gain",
    right=_gain,
    mistakes={
        "you undo the shrinkage and stop there. The noise in x_t says nothing of x_0: it belongs in the denominator.": (
            lambda ab, v: ab.rsqrt() * v / v
        ),
        "v is missing in the numerator: it is the covariance of x_0 and x_t, which is sqrt(alpha_bar) v.": (
            lambda ab, v: ab.sqrt() / (ab * v + 1 - ab)
        ),
        "the numerator has alpha_bar. The covariance of x_0 and x_t has its square root.": lambda ab, v: (
            ab * v / (ab * v + 1 - ab)
        ),
        "the denominator has the noise's standard deviation. Variances add, so it is 1 - alpha_bar.": lambda ab, v: (
            ab.sqrt() * v / (ab * v + (1 - ab).sqrt())
        ),
        "you take v for a standard deviation. It is the variance of the data.": lambda ab, v: _gain(ab, v**2),
        "the data's variance is not shrunk in the denominator: x_t holds sqrt(alpha_bar) x_0.": lambda ab, v: (
            ab.sqrt() * v / (v + 1 - ab)
        ),
    },
    cases=lambda: [(SCHEDULE.alpha_bar[[749, 499, 249]], 0.3 + draw(4, 3).abs())],
    returns="(n,), a gain for each noise level",
)

check_next_variance = Exercise(
    "next_variance",
    right=lambda V, gain, ab: ab * gain**2 * V + 1 - ab,
    mistakes={
        "the gain is not squared. A factor on the state comes squared in its variance.": lambda V, gain, ab: (
            ab * gain * V + 1 - ab
        ),
        "the factor of x0_hat is sqrt(alpha_bar) and comes squared in the variance: alpha_bar.": lambda V, gain, ab: (
            ab.sqrt() * gain**2 * V + 1 - ab
        ),
        "you add the standard deviation of the fresh noise. Variances add: 1 - alpha_bar.": lambda V, gain, ab: (
            ab * gain**2 * V + (1 - ab).sqrt()
        ),
        "the fresh noise is missing: a renoising step adds it each time.": lambda V, gain, ab: ab * gain**2 * V,
        "the old state is kept beside the new one. Renoising forgets it: only x0_hat goes on.": lambda V, gain, ab: (
            V + ab * gain**2 * V + 1 - ab
        ),
    },
    cases=lambda: [(0.5 + draw(5, 4).abs(), 0.2 + draw(6, 4).abs(), SCHEDULE.alpha_bar[[749, 499, 249, 99]])],
    returns="(n,), the variance of the next state",
)
