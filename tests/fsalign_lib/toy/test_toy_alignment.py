"""What the toy is for: naive fine-tuning blurs a distilled student, online PSO moves it toward the exact target."""

import numpy as np
import pytest
import torch

from fsalign_lib.kernels import build_kernel
from fsalign_lib.losses.preference import pso_online
from fsalign_lib.metrics.densities import Grid, histogram_kl
from fsalign_lib.metrics.statistics import Interval
from fsalign_lib.rollout import rollout
from fsalign_lib.toy import (
    GaussianMixture,
    ReferenceLastStep,
    ToyTeacher,
    load_student,
    mode_statistics,
    naive_fine_tuning,
    online_pso,
    toy_mixture,
    toy_reward,
)

MIXTURE, REWARD, BETA = toy_mixture(), toy_reward(), 1.0
TILTED = MIXTURE.tilted(REWARD, BETA)
COUNT = 8000


def samples(model) -> list[torch.Tensor]:
    kernel, generator = build_kernel("renoise", model.schedule, 4), torch.Generator().manual_seed(99)
    noise = [torch.randn(COUNT, 5, 2, generator=generator) for _ in range(3)]
    return [rollout(model, kernel, torch.full((COUNT,), c), z).final for c, z in enumerate(noise)]


def kl(xs: list[torch.Tensor], target: GaussianMixture) -> Interval:
    grid = Grid()
    exact = np.stack([grid.probabilities(lambda x, c=c: target.log_prob(x, c)) for c in range(3)])
    return histogram_kl(np.stack([grid.counts(x) for x in xs]), exact)


def spread(xs: list[torch.Tensor]) -> float:
    return float(np.mean([mode_statistics(MIXTURE, x, c).spread for c, x in enumerate(xs)]))


def mean_reward(xs: list[torch.Tensor]) -> float:
    return float(np.mean([REWARD(x, torch.full((len(x),), c)).mean() for c, x in enumerate(xs)]))


@pytest.fixture(scope="module")
def base() -> list[torch.Tensor]:
    return samples(load_student())


def test_naive_fine_tuning_blurs_the_student(base):
    """It leads to the posterior mean, so to the teacher sampled in four steps: spread 0.68 of the data's, not 1."""
    student = load_student()
    list(naive_fine_tuning(student, MIXTURE, 150, torch.Generator().manual_seed(0)))
    after, limit = samples(student), samples(ToyTeacher())
    kl_before, kl_after = kl(base, MIXTURE), kl(after, MIXTURE)
    print(f"spread over the data's: {spread(base):.3f} -> {spread(after):.3f}, limit {spread(limit):.3f}")
    print(f"KL to the data: {kl_before} -> {kl_after}, limit {kl(limit, MIXTURE)}")
    assert abs(spread(base) - 1) < 0.02 and abs(spread(after) - spread(limit)) < 0.05 and spread(after) < 0.75
    assert kl_after.low > 1 > kl_before.high


def test_online_pso_moves_the_student_toward_the_tilted_target(base):
    """The weights are shared: the last step has no term in the loss, and drifts off the data with the others."""
    student = load_student()
    kernel = build_kernel("renoise", student.schedule, 4)
    log = list(online_pso(student, kernel, REWARD, BETA, 150, torch.Generator().manual_seed(0), pairs=128))
    after = samples(student)
    before, now = kl(base, TILTED), kl(after, TILTED)
    print(f"KL to the tilted target: {before} -> {now}; reward {mean_reward(base):.3f} -> {mean_reward(after):.3f}")
    assert now.high < before.low and mean_reward(after) > mean_reward(base) + 0.4
    assert log[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and log[0]["accuracy"] == 0.5

    held = kl(samples(ReferenceLastStep(student, int(kernel.timesteps[-1]))), TILTED)
    print(f"the same weights with the reference's last step: {held}")
    assert held.high < 0.5 * now.low, "most of what is left comes from the last step's drift"


def test_online_pso_with_the_last_step_held(base):
    student = load_student()
    kernel = build_kernel("renoise", student.schedule, 4)
    log = list(
        online_pso(student, kernel, REWARD, BETA, 120, torch.Generator().manual_seed(0), pairs=128, hold_last_step=True)
    )
    after = samples(ReferenceLastStep(student, int(kernel.timesteps[-1])))
    before, now = kl(base, TILTED), kl(after, TILTED)
    print(f"KL to the tilted target: {before} -> {now}; reward {mean_reward(base):.3f} -> {mean_reward(after):.3f}")
    assert now.high < 0.5 * before.low
    seen = np.mean([round_log["reward"] for round_log in log[-10:]])
    assert abs(seen - mean_reward(after)) < 0.08, "training samples with the last step held, too"
    target = [TILTED.sample(COUNT, c, torch.Generator().manual_seed(c)) for c in range(3)]
    assert mean_reward(after) < mean_reward(target), "it stops short of the target; hard labels would pass it"


def gradient_at_the_tilt(beta: float, labels: str, loss_beta: float | None = None) -> torch.Tensor:
    """Of the expected online-PSO loss over all pairs of five outcomes, at p_ref exp(r / beta) / Z."""
    reference = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64).log()
    reward = torch.tensor([0.5, -1.0, 0.2, 1.4, -0.3], dtype=torch.float64)
    logits = (reference + reward / beta).requires_grad_()
    logp = logits.log_softmax(0)
    gap = reward[:, None] - reward
    wins = gap.sigmoid() if labels == "bradley-terry" else (gap > 0).double()
    loss = 0.0
    for w in range(5):
        for l in range(5):
            row = [v.reshape(1, 1) for v in (logp[w], reference[w], logp[l], reference[l])]
            share = (logp[w] + logp[l]).detach().exp() * wins[w, l]  # drawn from the policy itself
            loss = loss + share * pso_online(*row, loss_beta or beta)[0]
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_bradley_terry_labels_make_the_tilted_target_stationary(beta):
    assert gradient_at_the_tilt(beta, "bradley-terry").abs().max() < 1e-12
    assert gradient_at_the_tilt(beta, "bradley-terry", loss_beta=2 * beta).abs().max() > 1e-3
    hard = gradient_at_the_tilt(beta, "hard")
    assert hard[3] < -1e-4 and hard[1] > 1e-4, "hard labels push on, up for the best and down for the worst"


def test_unknown_labels_are_named():
    student = load_student()
    kernel = build_kernel("renoise", student.schedule, 4)
    with pytest.raises(ValueError, match="labels = 'soft'"):
        next(online_pso(student, kernel, REWARD, BETA, 1, torch.Generator(), labels="soft"))


def test_reference_last_step_changes_the_last_step_alone():
    student = load_student()
    held, x, c = ReferenceLastStep(student, 249), torch.randn(4, 2), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        student.out.bias += 1
    with student.reference():
        reference = student.predict_x0(x, 249, c)
    assert torch.equal(held.predict_x0(x, 249, c), reference)
    assert torch.equal(held.predict_x0(x, 499, c), student.predict_x0(x, 499, c))
    assert held.schedule is student.schedule
    with held.reference():
        assert torch.equal(held.predict_x0(x, 249, c), reference)
