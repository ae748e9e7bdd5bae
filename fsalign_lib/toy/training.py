"""Train the toy student, as generators: by naive fine-tuning, and by online PSO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fsalign_lib.kernels import Kernel
from fsalign_lib.losses.preference import pso_online
from fsalign_lib.rollout import rollout, step_log_probs
from fsalign_lib.schedules import NoiseSchedule
from fsalign_lib.toy.mixture import GaussianMixture, QuadraticReward
from fsalign_lib.toy.student import ToyStudent


@dataclass(frozen=True)
class ReferenceLastStep:
    r"""Use the reference (the adapter off) at the time `last`, and elsewhere the model as it is.

    The deterministic last step of `Renoise` and `EulerAncestral` enters no policy loss, but it shares its weights with
    the steps that do, and drifts with them. Held like this it is part of the environment, as the theory takes it.
    """

    model: ToyStudent
    last: int

    @property
    def schedule(self) -> NoiseSchedule:
        """Return the schedule of the model."""
        return self.model.schedule

    def predict_x0(self, x_t: Tensor, t, cond: Tensor) -> Tensor:
        """Predict by the reference at the time `last`, by the model elsewhere."""
        if isinstance(t, int) and t == self.last:
            with self.model.reference():
                return self.model.predict_x0(x_t, t, cond)
        return self.model.predict_x0(x_t, t, cond)

    def reference(self):
        """Make the model its reference within the block."""
        return self.model.reference()


def naive_fine_tuning(
    student: ToyStudent,
    mixture: GaussianMixture,
    rounds: int,
    generator: torch.Generator,
    times: Tensor | None = None,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
) -> Iterator[float]:
    r"""Train the student in place on exact data with the plain diffusion loss; yields it round by round.

    $$E\,\|\epsilon - \epsilon_\theta(x_t, t, c)\|^2,$$

    whose minimiser is the posterior mean $\hat x_0 = E[x_0|x_t, c]$ at every t, whatever the model could do before.

    Args:
        times: t is uniform on these (a few-step grid), or on the whole schedule  # (N,)
    """
    optimizer, decay = _optimizer(student, rounds, learning_rate)
    times = torch.arange(student.schedule.num_train_timesteps) if times is None else times
    for _ in range(rounds):
        cond = torch.randint(mixture.num_classes, (batch_size,), generator=generator)
        x0 = mixture.sample(batch_size, cond, generator).float()
        eps = torch.randn(x0.shape, generator=generator)
        t = times[torch.randint(len(times), (batch_size,), generator=generator)]
        loss = (eps - student.predict_eps(student.schedule.add_noise(x0, eps, t), t, cond)).square().sum(1).mean()
        _update(student, loss, optimizer, decay)
        yield loss.item()


def online_pso(
    student: ToyStudent,
    kernel: Kernel,
    reward: QuadraticReward,
    beta: float,
    rounds: int,
    generator: torch.Generator,
    labels: str = "bradley-terry",
    hold_last_step: bool = False,
    pairs: int = 256,
    learning_rate: float = 3e-4,
) -> Iterator[dict[str, float]]:
    r"""Train the student in place by online PSO [PSO Eq. 7], one update a round; yields each round's numbers.

    With `labels="bradley-terry"` sample a beats b with probability $\sigma(r_a - r_b)$. The loss (log-probs summed
    over dimensions, steps inside the sigmoid) is then the cross-entropy between this probability and
    $\sigma(\beta\,\Delta_a - \beta\,\Delta_b)$ with $\Delta = \sum_n \log p_\theta/p_{ref}$. Among all policies it is
    least where $\beta\,\Delta = r +$ const: $p_\theta = p_{ref}\,e^{r/\beta}/Z$ on trajectories, so that the samples
    follow the exact tilted target (if Z does not depend on the initial noise, and the last step is held). A Gaussian
    step of fixed std cannot become the tilted one: the student stops short of it. With `labels="hard"` the larger
    reward always wins: the cross-entropy has no finite minimiser at any beta, and the policy overshoots.

    Args:
        hold_last_step: sample with `ReferenceLastStep`.
    """
    if labels not in ("bradley-terry", "hard"):
        raise ValueError(f'labels = {labels!r}: expected "bradley-terry" or "hard"')
    optimizer, decay = _optimizer(student, rounds, learning_rate)
    steps = kernel.stochastic_steps
    sampler = ReferenceLastStep(student, int(kernel.timesteps[-1])) if hold_last_step else student
    for _ in range(rounds):
        cond = torch.randint(student.num_classes, (pairs,), generator=generator).repeat(2)  # both samples of a pair
        trajectory = rollout(
            sampler, kernel, cond, torch.randn(2 * pairs, kernel.num_steps + 1, 2, generator=generator)
        )
        rewards = reward(trajectory.final, cond)
        gap = rewards[:pairs] - rewards[pairs:]
        first_wins = (torch.rand(pairs, generator=generator) < gap.sigmoid()) if labels == "bradley-terry" else gap > 0
        logp = step_log_probs(student, kernel, trajectory, cond, steps, "sum").unflatten(0, (2, pairs))  # (2, P, S)
        with torch.no_grad(), student.reference():
            logp_ref = step_log_probs(student, kernel, trajectory, cond, steps, "sum").unflatten(0, (2, pairs))
        w, row = (~first_wins).long(), torch.arange(pairs)
        loss, diagnostics = pso_online(logp[w, row], logp_ref[w, row], logp[1 - w, row], logp_ref[1 - w, row], beta)
        _update(student, loss, optimizer, decay)
        yield {"loss": loss.item(), "reward": rewards.mean().item(), "accuracy": diagnostics["accuracy"].item()}


def _optimizer(student: ToyStudent, rounds: int, learning_rate: float):
    optimizer = torch.optim.Adam(student.parameters(), learning_rate, betas=(0.9, 0.99))
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)


def _update(student: ToyStudent, loss: Tensor, optimizer, decay) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    decay.step()
