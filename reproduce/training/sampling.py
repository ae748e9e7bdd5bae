"""Pairs of a model's own samples: sampled, scored, ranked and given credit, one round of `train_online.py`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fsalign_lib.advantages import Advantages, Per
from fsalign_lib.dense_reward import Strategy, dense_rewards, discounted_returns
from fsalign_lib.kernels import Kernel
from fsalign_lib.losses.reward_difference import Updates
from fsalign_lib.models.conditioning import Cond
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.rollout import rollout, seeded_noise, transition_log_probs
from reproduce.common.cli import check_finite, generator
from reproduce.training.methods import METHODS
from reproduce.training.run import Run, TrainConfig

STEPS_AT_ONCE = 8  # of each trajectory, in a forward without gradient
Reward = Callable[[Tensor, Sequence[str]], Tensor]  # pictures (B, 3, H, W) in [0, 1], prompts -> (B,)


@dataclass(kw_only=True)
class OnlineConfig(TrainConfig):
    """Align a few-step model with a reward, on samples of its own."""

    loop: ClassVar = "online"

    reward: str
    """What scores the pictures (see fsalign_lib.rewards)."""
    prompts: str
    """A prompt set of the pocket world, or a text file with a prompt a line."""
    rounds: int
    pairs: int
    """Prompts a round, with two samples each."""
    minibatch: int
    """Pairs an update."""
    epochs: int
    """Passes over the pairs of a round."""
    clamp: float | None = None
    """PSO, D3PO: clip each step's probability ratio to [1 - c, 1 + c]; None: no clip."""
    shared_start: bool = False
    """The two samples of a pair start from the same noise."""
    updates: Updates = "accumulated"
    """All steps of a pair in one update, or one step an update, shuffled or in their order."""
    queries: Strategy | Literal["final"] = "final"
    """Score the last picture, or predictions on the way by a strategy of fsalign_lib.dense_reward."""
    gamma: float = 1.0
    """SDPO: discount of the returns; 0: rewards in place of returns."""
    normalize: Per | None = None
    """Statistics that make advantages of rewards (see fsalign_lib.advantages); None: rewards only rank."""
    buffer: int = 32
    """Trajectories of a prompt that the statistics remember."""
    min_count: int = 16
    """Trajectories of a prompt before its own statistics are used."""
    advantage_clip: float | None = 5.0
    eta: float = 1.0
    """REBEL, SDPO: scale of the log-ratios against the rewards, 1 / eta."""
    decay: float = 1.0
    """SDPO: the weight of step n is decay^n / eta."""
    decay_order: Literal["decaying", "reverse"] = "decaying"
    clip: float | None = None
    """DDPO: range of the ratio around 1; SDPO: of the log-ratio around 0."""
    last_step: bool = True
    """Train the last step too, which under DDIM is almost deterministic."""
    mixed_steps: tuple[int, ...] = ()
    """Each round draws its number of steps from these; none: it is always `steps`."""
    rollout_batch: int | None = None
    """Pairs sampled at a time; None: all of the round."""

    def trained_steps(self, kernel: Kernel) -> Tensor:
        """Those that enter losses: the kernel's stochastic ones, or of these all but the trajectory's last."""
        last = kernel.num_steps - 1
        return torch.tensor([n for n in kernel.stochastic_steps if self.last_step or n < last], dtype=torch.long)


@dataclass
class Setup:
    """Everything a run needs, checked."""

    config: OnlineConfig
    model: LatentModel
    reward: Reward
    prompts: list[str]
    cond: Cond  # len(prompts)
    kernel: Kernel
    run: Run
    advantages: Advantages | None


@dataclass
class Pairs:
    """The pairs of a round, the one with the higher reward at index 0."""

    number: int  # of the round
    kernel: Kernel  # that sampled them
    prompts: list[str]  # P
    cond: Cond  # P
    states: Tensor  # (P, 2, N+1, ...)
    logp_old: Tensor  # (P, 2, N)
    reward: Tensor  # (P, 2), of the last picture; for methods that query predictions (SDPO), of the last prediction
    advantage: Tensor | None  # (P, 2, N)
    queries: int  # pictures scored


def round_rows(seed: int, number: int, prompts: int, pairs: int) -> Tensor:
    """Which prompts a round takes: a new permutation each time round the list.  # (pairs,)"""
    first = number * pairs
    rows = []
    for cycle in range(first // prompts, (first + pairs - 1) // prompts + 1):
        rows.append(torch.randperm(prompts, generator=generator("prompts", seed, cycle)))
    start = first % prompts
    return torch.cat(rows)[start : start + pairs]


def round_kernel(setup: Setup, number: int) -> Kernel:
    """The sampler of a round. Its number of steps depends on the seed and the round alone, so that a run resumes."""
    c = setup.config
    if not c.mixed_steps:
        return setup.kernel
    drawn = torch.randint(len(c.mixed_steps), (), generator=generator("length", c.seed, number))
    return setup.model.sampler(c.mixed_steps[drawn], c.kernel)


@torch.no_grad()
def sample_pairs(setup: Setup, number: int) -> Pairs:
    """Sample, decode, score and rank the pairs of one round; each process its share, and then all have all."""
    c, run, kernel = setup.config, setup.run, round_kernel(setup, number)
    rows = round_rows(c.seed, number, len(setup.prompts), c.pairs)
    place = run.share(torch.arange(c.pairs))
    parts = [sample_some(setup, kernel, number, rows, some) for some in place.split(c.rollout_batch or len(place))]
    states, logp, rewards = (run.gather(torch.cat(part)) for part in list(zip(*parts, strict=True))[:3])
    queries = run.gather(torch.tensor([sum(part[3] for part in parts)], device=states.device)).sum()
    order = rewards[..., -1].argsort(dim=1, descending=True, stable=True)  # (P, 2), the winner first
    rank = torch.arange(c.pairs, device=rewards.device)[:, None]
    advantage = None
    if setup.advantages is not None:
        returns = discounted_returns(rewards.flatten(0, 1), c.gamma)  # (2P, T)
        advantage = setup.advantages(returns, rows.repeat_interleave(2)).unflatten(0, (-1, 2))[rank, order]
        advantage = advantage.expand(-1, -1, kernel.num_steps)
    prompts = [setup.prompts[i] for i in rows]
    reward, states, logp = rewards[..., -1][rank, order], states[rank, order], logp[rank, order]
    return Pairs(number, kernel, prompts, setup.cond[rows], states, logp, reward, advantage, int(queries))


def sample_some(
    setup: Setup, kernel: Kernel, number: int, rows: Tensor, some: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """States (b, 2, N+1, ...), log-probs (b, 2, N) and rewards (b, 2, T or 1) at some places, and the queries made."""
    c, model = setup.config, setup.model
    # A prompt that comes twice in a round must not get the same noise twice, so the place in the round counts.
    ids = some * len(setup.prompts) + rows[some]
    noise = seeded_noise(c.seed, number, ids, model.latent_shape, 2 * (kernel.num_steps + 1)).unflatten(1, (2, -1))
    if c.shared_start:
        noise[:, 1, 0] = noise[:, 0, 0]
    noise = noise.flatten(0, 1).to(model.device)  # (2b, N+1, ...)
    share = 2 if c.shared_start else 1
    trajectory = rollout(model, kernel, setup.cond[rows[some]].repeat_interleave(2, 0), noise, c.reduction, share)
    names = [setup.prompts[i] for i in rows[some] for _ in range(2)]

    def score(latents: Tensor, of: Tensor) -> Tensor:
        told = [names[i] for i in of]
        values = setup.reward(model.decode(latents), told).float()
        check_finite(f"reward {c.reward}", values, told, c.seed, number)
        return values

    if c.queries == "final":
        rewards, queries = score(trajectory.final, torch.arange(len(names)))[:, None], len(names)
    else:
        uniform = None
        if c.queries == "random":
            draws = [torch.rand(2, generator=generator("anchor", c.seed, number, i)) for i in ids.tolist()]
            uniform = torch.cat(draws).to(model.device)
        dense = dense_rewards(trajectory.x0_hat, score, c.queries, uniform, share)
        rewards, queries = dense.rewards, dense.queries
    return *(part.unflatten(0, (-1, 2)) for part in (trajectory.states, trajectory.log_prob, rewards)), queries


def log_probs(setup: Setup, pairs: Pairs, which: Tensor, steps: Tensor) -> Tensor:
    """Under the model as it is: of both trajectories of pairs `which` (M,), at each one's own steps (M, s).

    Returns:
        (M, 2, s)
    """
    pair, side, n = which[:, None, None], torch.arange(2)[:, None], steps[:, None]
    x, x_next = (pairs.states[pair, side, n + after].flatten(0, 2) for after in (0, 1))
    n = n.expand(-1, 2, -1).flatten()
    cond = pairs.cond[which].repeat_interleave(2 * steps.shape[1], 0)
    logp = transition_log_probs(setup.model, pairs.kernel, x, x_next, n, cond, setup.config.reduction)
    return logp.view(len(which), 2, -1)


def reference_log_probs(setup: Setup, pairs: Pairs) -> Tensor | None:
    """(P, 2, N), 0 at steps that are not trained; None for a method that has no reference."""
    if "reference" not in METHODS[setup.config.method].needs:
        return None
    steps = setup.config.trained_steps(pairs.kernel)
    place, parts = setup.run.share(torch.arange(len(pairs.prompts))), []
    with torch.no_grad(), setup.model.reference():
        for rows in place.split(setup.config.rollout_batch or len(place)):
            some = [log_probs(setup, pairs, rows, n.expand(len(rows), -1)) for n in steps.split(STEPS_AT_ONCE)]
            parts.append(torch.cat(some, 2))
    reference = torch.zeros_like(pairs.logp_old)
    reference[..., steps] = setup.run.gather(torch.cat(parts))
    return reference
