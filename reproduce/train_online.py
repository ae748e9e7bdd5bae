"""Align a few-step model online: sample pairs, score them, give credit, update; again.

python reproduce/train_online.py --method pso-online --reward pickscore --out runs/pso
python reproduce/train_online.py --method sdpo --reward aesthetic --out runs/sdpo

A round, in `train`:

1. Sample two trajectories for each of P prompts, from one start or from two.
2. Score the last pictures with a reward, or a few predictions on the way (SDPO).
3. Give credit: rank each pair, and make returns and advantages of rewards where the method needs them.
4. Update on the pairs in minibatches: all steps of a pair at once, or one step of each pair (see `fsalign_lib.losses`).
   The transitions of a micro-batch go through the network in one forward. A method that is differentiated through the
   reward (DRaFT) has neither 2 nor 3: its loss scores the last predictions, with the graph through the last step.
5. Record the round.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from fsalign_lib.advantages import Advantages, Per
from fsalign_lib.dense_reward import Strategy, dense_rewards, discounted_returns
from fsalign_lib.devices import send
from fsalign_lib.kernels import Kernel
from fsalign_lib.losses.common import Diagnostics
from fsalign_lib.losses.reward_difference import Updates, importance_weights, step_updates
from fsalign_lib.models.conditioning import Cond
from fsalign_lib.models.latent_model import LatentModel, fingerprint
from fsalign_lib.rewards import load_reward
from fsalign_lib.rewards.jpeg import JPEGReward
from fsalign_lib.rollout import rollout, seeded_noise, transition_log_probs
from reproduce.common.cli import check_finite, command_line, generator, positive
from reproduce.common.files import digest
from reproduce.data.encoded_prompts import store_prompts
from reproduce.data.prompt_sets import read_prompts, warn_of_cut
from reproduce.training.config import RewardFunction, TrainConfig, parse_training
from reproduce.training.methods import METHODS, Rollouts, Scored, find, sums_steps
from reproduce.training.run import Run, check_divides, check_training, epoch_rows, kept, load_model, training_kernel

STEPS_AT_ONCE = 8  # of each trajectory, in a forward without gradient


@dataclass(kw_only=True)
class OnlineConfig(TrainConfig):
    """Align a few-step model with a reward, on samples of its own."""

    loop: ClassVar = "online"

    reward: str
    """Reward that scores the pictures (see fsalign_lib.rewards)."""
    prompts: str
    """A prompt set of the pocket world, or a text file with a prompt a line."""
    rounds: int
    """Rounds of sampling and updating."""
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
    """Limit of advantages on either side; None: no limit."""
    eta: float = 1.0
    """REBEL, SDPO: scale of the log-ratios against the rewards, 1 / eta."""
    decay: float = 1.0
    """SDPO: the weight of step n is decay^n / eta."""
    decay_order: Literal["decaying", "reverse"] = "decaying"
    """SDPO: the weights fall along the trajectory, or, in reverse, rise."""
    clip: float | None = None
    """DDPO: range of the ratio around 1; SDPO: of the log-ratio around 0."""
    last_step: bool = True
    """Train the last step too, which under DDIM is almost deterministic."""
    mixed_steps: tuple[int, ...] = ()
    """Each round draws its number of steps from these; none: it is always `steps`."""
    rollout_batch: int | None = None
    """Pairs sampled at a time; None: all of the round."""

    def trained_steps(self, kernel: Kernel) -> Tensor:
        """Return the steps that enter losses: the stochastic ones, without the trajectory's last if it is left out.

        Through a reward it is the last one.
        """
        last = kernel.num_steps - 1
        if "reward gradient" in METHODS[self.method].needs:
            return torch.tensor([last])
        return torch.tensor([n for n in kernel.stochastic_steps if self.last_step or n < last], dtype=torch.long)


@dataclass
class Setup:
    """Hold everything that a run needs, checked."""

    config: OnlineConfig
    model: LatentModel
    reward: RewardFunction
    prompts: list[str]
    cond: Cond  # len(prompts)
    kernel: Kernel
    run: Run
    advantages: Advantages | None


@dataclass
class Pairs:
    """Hold the pairs of a round, the one with the higher reward at index 0."""

    number: int  # of the round
    kernel: Kernel  # that sampled them
    prompts: list[str]  # P
    cond: Cond  # P
    states: Tensor  # (P, 2, N+1, ...)
    logp_old: Tensor  # (P, 2, N)
    reward: Tensor  # (P, 2), of the last picture; for methods that query predictions (SDPO), of the last prediction
    advantage: Tensor | None  # (P, 2, N)
    queries: int  # pictures scored


def prepare(config: OnlineConfig, model: LatentModel | None = None, reward: RewardFunction | None = None) -> Setup:
    """Check the settings, and load what they name.

    Args:
        model, reward: taken in place of the named ones.

    Raises:
        ValueError: a setting is wrong, or does not go with the others; before anything is sampled.
    """
    find(config.method, "online")
    positive(config, "rounds", "pairs", "minibatch", "epochs", "eta")
    check_training(config)
    check_divides(config)
    prompts = read_prompts(config.prompts)
    if config.threads:
        torch.set_num_threads(config.threads)
    model = model or load_model(config)
    warn_of_cut(model, prompts)
    kernel = training_kernel(config, model)
    for one in [kernel, *(model.sampler(steps, config.kernel) for steps in config.mixed_steps)]:
        check_settings(config, one)
    advantages = None
    if config.normalize:
        steps = 1 if config.queries == "final" else kernel.num_steps
        limits = (config.buffer, config.min_count, config.advantage_clip)
        advantages = Advantages(len(prompts), steps, config.normalize, *limits)
    dtype = getattr(torch, config.frozen_dtype or "float32")
    reward = reward or load_reward(config.reward, scale=config.scale, dtype=dtype)
    if isinstance(reward, JPEGReward) and "reward gradient" in METHODS[config.method].needs:
        raise ValueError(f"reward {config.reward} has no gradient: choose another, or another method")
    run = Run(config, model)
    run.same_inputs(prompts=f"{len(prompts)} with digest {digest(prompts)}")
    if advantages is not None:
        run.keep(advantages)
    if isinstance(reward, torch.nn.Module):
        run.same_inputs(reward=fingerprint(reward)[:12])
        reward.to(model.device)
    if config.scale == "full":
        store_prompts([model], prompts, config.out.parent)
    return Setup(config, model, reward, prompts, model.encode_prompts(prompts), kernel, run, advantages)


def check_settings(config: OnlineConfig, kernel: Kernel) -> None:
    """Raise a ValueError for what the loss, or a stage before it, would refuse."""
    if not len(config.trained_steps(kernel)):
        why = "" if config.last_step else " and last_step = False"
        raise ValueError(f"a trajectory of {kernel.num_steps} steps{why} leaves no step to train: use more steps")
    if config.mixed_steps and config.queries != "final":
        raise ValueError(
            f"mixed_steps = {config.mixed_steps} with queries = {config.queries!r}: rewards of steps need "
            "trajectories of one length; use queries final, or no mixed_steps"
        )
    importance_weights(kernel.num_steps, config.decay, config.eta, config.decay_order)
    discounted_returns(torch.zeros(1, kernel.num_steps), config.gamma)
    for name, kind in (("queries", (*get_args(Strategy), "final")), ("updates", get_args(Updates))):
        if getattr(config, name) not in kind:
            raise ValueError(f"{name} = {getattr(config, name)!r}: choose from {', '.join(kind)}")
    for name in ("clip", "clamp"):
        if getattr(config, name) is not None:
            positive(config, name)
    needs = METHODS[config.method].needs
    for name in ("clip", "clamp"):
        if f"{name} below 1" in needs and (getattr(config, name) or 0.0) >= 1:
            raise ValueError(f"{name} = {getattr(config, name)}: a ratio's range around 1, expected below 1")
    if "advantages" in needs and config.normalize is None:
        raise ValueError(f"{config.method} with normalize = None: its loss needs advantages; use prompt or global")
    if "one reward" in needs and config.queries != "final":
        raise ValueError(
            f"{config.method} with queries = {config.queries!r}: it compares rewards of whole trajectories; use final"
        )
    if "reward gradient" in needs:
        for name, only in (("queries", "final"), ("normalize", None), ("clip", None), ("clamp", None)):
            if getattr(config, name) != only:
                raise ValueError(
                    f"{name} = {getattr(config, name)!r} with {config.method}, which has none: leave it out"
                )


def round_kernel(setup: Setup, number: int) -> Kernel:
    """Return the sampler of a round. Its number of steps depends on seed and round alone, so that a run resumes."""
    c = setup.config
    if not c.mixed_steps:
        return setup.kernel
    drawn = torch.randint(len(c.mixed_steps), (), generator=generator("length", c.seed, number))
    return setup.model.sampler(c.mixed_steps[drawn], c.kernel)


@torch.no_grad()
def sample_pairs(setup: Setup, number: int) -> Pairs:
    """Sample, score, rank and credit the pairs of a round; each process computes its share, and then all have all."""
    c, run, kernel = setup.config, setup.run, round_kernel(setup, number)
    rows = epoch_rows("prompts", c.seed, number, len(setup.prompts), c.pairs)
    place = run.share(torch.arange(c.pairs))

    # Sample and score, `rollout_batch` pairs at a time, so that few decoded pictures are held at once.
    sampled = [sample_some(setup, kernel, number, rows, some) for some in place.split(c.rollout_batch or len(place))]
    states, logp, rewards = (run.gather(torch.cat(values)) for values in list(zip(*sampled, strict=True))[:3])
    queries = run.gather(torch.tensor([sum(some[3] for some in sampled)], device=states.device)).sum()

    # Rank: the winner of each pair comes first. The sort is stable, so that a tie keeps its order.
    order = rewards[..., -1].argsort(dim=1, descending=True, stable=True)  # (P, 2)
    rank = torch.arange(c.pairs, device=rewards.device)[:, None]
    reward, states, logp = rewards[..., -1][rank, order], states[rank, order], logp[rank, order]

    # Credit: what a step is worth, its discounted return, against what its prompt usually gets.
    advantage = None
    if setup.advantages is not None:
        returns = discounted_returns(rewards.flatten(0, 1), c.gamma)  # (2P, T)
        advantage = setup.advantages(returns, rows.repeat_interleave(2)).unflatten(0, (-1, 2))[rank, order]
        advantage = advantage.expand(-1, -1, kernel.num_steps)
    prompts = [setup.prompts[i] for i in rows]
    return Pairs(number, kernel, prompts, setup.cond[rows], states, logp, reward, advantage, int(queries))


def sample_some(
    setup: Setup, kernel: Kernel, number: int, rows: Tensor, some: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Sample and score b pairs of a round: two trajectories of a prompt each, which differ in their noise.

    Args:
        rows: the round's prompts  # (P,)
        some: places in the round  # (b,)

    Returns:
        states (b, 2, N+1, ...), log-probs (b, 2, N), rewards (b, 2, T or 1), and how many pictures were scored.
    """
    c, model = setup.config, setup.model
    # A prompt that comes twice in a round must not get the same noise twice, so the place in the round counts.
    ids = some * len(setup.prompts) + rows[some]
    noise = seeded_noise(c.seed, number, ids, model.latent_shape, 2 * (kernel.num_steps + 1)).unflatten(1, (2, -1))
    if c.shared_start:
        noise[:, 1, 0] = noise[:, 0, 0]
    noise = send(noise.flatten(0, 1), model.device)  # (2b, N+1, ...)
    share_first = 2 if c.shared_start else 1  # rows with one first prediction, which is computed and scored once
    cond = setup.cond[send(rows[some], model.device)].repeat_interleave(2, 0)
    trajectory = rollout(model, kernel, cond, noise, c.reduction, share_first)
    names = [setup.prompts[i] for i in rows[some] for _ in range(2)]

    def score(latents: Tensor, which: Tensor) -> Tensor:
        prompts = [names[i] for i in which.tolist()]
        values = setup.reward(model.decode(latents), prompts).float()
        check_finite(f"reward {c.reward}", values, prompts, c.seed, number)
        return values

    if "reward gradient" in METHODS[c.method].needs:  # the loss scores the last predictions, once an epoch
        rewards, queries = trajectory.log_prob.new_zeros(len(names), 1), c.epochs * len(names)
    elif c.queries == "final":
        rewards, queries = score(trajectory.final, torch.arange(len(names)))[:, None], len(names)
    else:  # a few predictions are scored, and the other steps' rewards follow from how alike the predictions are
        uniform = None
        if c.queries == "random":
            draws = [torch.rand(2, generator=generator("anchor", c.seed, number, i)) for i in ids.tolist()]
            uniform = send(torch.cat(draws), model.device)
        dense = dense_rewards(trajectory.x0_hat, score, c.queries, uniform, share_first)
        rewards, queries = dense.rewards, dense.queries
    return *(found.unflatten(0, (-1, 2)) for found in (trajectory.states, trajectory.log_prob, rewards)), queries


def log_probs(setup: Setup, pairs: Pairs, which: Tensor, steps: Tensor) -> Tensor:
    """Return log-probs of recorded transitions under the model as it is now, with their graph.

    Args:
        which: pairs  # (M,) long
        steps: each pair's own  # (M, s) long

    Returns:
        of both trajectories.  # (M, 2, s)
    """
    device = pairs.states.device
    which, steps = send(which, device), send(steps, device)
    pair, side, n = which[:, None, None], torch.arange(2, device=device)[:, None], steps[:, None]
    x, x_next = (pairs.states[pair, side, n + after].flatten(0, 2) for after in (0, 1))
    n = n.expand(-1, 2, -1).flatten()
    cond = pairs.cond[which].repeat_interleave(2 * steps.shape[1], 0)
    logp = transition_log_probs(setup.model, pairs.kernel, x, x_next, n, cond, setup.config.reduction)
    return logp.view(len(which), 2, -1)


def reference_log_probs(setup: Setup, pairs: Pairs) -> Tensor | None:
    """Return the pairs' log-probs under the reference model (P, 2, N), 0 at steps that are not trained.

    None for a method that does not need the reference.
    """
    if "reference" not in METHODS[setup.config.method].needs:
        return None
    steps = setup.config.trained_steps(pairs.kernel)
    place, found = setup.run.share(torch.arange(len(pairs.prompts))), []
    with torch.no_grad(), setup.model.reference():
        for rows in place.split(setup.config.rollout_batch or len(place)):
            some = [log_probs(setup, pairs, rows, n.expand(len(rows), -1)) for n in steps.split(STEPS_AT_ONCE)]
            found.append(torch.cat(some, 2))
    logp_ref = torch.zeros_like(pairs.logp_old)
    logp_ref[..., steps] = setup.run.gather(torch.cat(found))
    return logp_ref


def check_ratio(setup: Setup, pairs: Pairs) -> None:
    """Compare log-probs of the rollout with the update's before the first update, while the model is the same.

    Raises:
        FloatingPointError: they differ by more than the method's clip, so that its first update would be noise.
    """
    limit = setup.config.clip or setup.config.clamp
    if limit is None:
        return
    which = torch.arange(min(2, len(pairs.prompts)))
    steps = setup.config.trained_steps(pairs.kernel)[-STEPS_AT_ONCE:].expand(len(which), -1)  # the least noisy
    with torch.no_grad():
        off = (log_probs(setup, pairs, which, steps) - pairs.logp_old[which][..., steps[0]]).abs().max().item()
    if not off < limit:
        raise FloatingPointError(
            f"log-probs of the same transitions differ by {off:.1e} between rollout and update, and the clip is "
            f"{limit:g}: use a higher precision (--mixed-precision no), or a larger clip"
        )


def minibatches(setup: Setup, pairs: Pairs, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the updates of an epoch: which pairs (M,) at which steps (M, s).

    Where a loss is a mean over steps, each step of a pair is a row of its own, s = 1, so that micro-batches can cut
    between them.
    """
    c, P = setup.config, len(pairs.prompts)
    steps = c.trained_steps(pairs.kernel)
    keys = [torch.rand(len(steps), generator=generator("steps", c.seed, pairs.number, epoch, i)) for i in range(P)]
    order = torch.randperm(P, generator=generator("order", c.seed, pairs.number, epoch))
    for each in step_updates(steps, torch.stack(keys), c.updates):  # (P, s)
        for which in order.split(c.minibatch):
            if sums_steps(c):
                yield which, each[which]
            else:
                yield which.repeat_interleave(each.shape[1]), each[which].reshape(-1, 1)


def minibatch_loss(
    setup: Setup, pairs: Pairs, logp_ref: Tensor | None, which: Tensor, steps: Tensor
) -> tuple[Tensor, Diagnostics]:
    """Return the method's loss on some rows of an update, and diagnostics.

    Args:
        logp_ref: from `reference_log_probs`  # (P, 2, N)
        which: pair of each row  # (M,) long
        steps: of each row  # (M, s) long

    Raises:
        FloatingPointError: a log-prob is not finite.
    """
    c, method = setup.config, METHODS[setup.config.method]
    if "reward gradient" in method.needs:
        return method.loss(*method.inputs(Scored(last_rewards(setup, pairs, which)), c))
    logp = log_probs(setup, pairs, which, steps)  # (M, 2, s)
    check_finite("the log-prob", logp, [pairs.prompts[i] for i in which], c.seed, pairs.number)
    weight = importance_weights(pairs.kernel.num_steps, c.decay, c.eta, c.decay_order)[steps]
    which, steps, weight = (send(values, logp.device) for values in (which, steps, weight))
    at = which[:, None, None], torch.arange(2, device=logp.device)[:, None], steps[:, None]
    data = Rollouts(
        logp=logp,
        logp_ref=None if logp_ref is None else logp_ref[at],
        logp_old=pairs.logp_old[at],
        reward=pairs.reward[which],
        advantage=None if pairs.advantage is None else pairs.advantage[at],
        weight=weight,
    )
    loss, diagnostics = method.loss(*method.inputs(data, c))
    base = data.logp_old if logp_ref is None else data.logp_ref
    return loss, diagnostics | {"drift": (logp - base).detach().abs().mean()}


def last_rewards(setup: Setup, pairs: Pairs, which: Tensor) -> Tensor:
    """Return rewards of the last predictions, with their graph through reward, decoder and the last step alone.

    Args:
        which: pairs  # (M,) long

    Returns:
        of both trajectories.  # (M, 2)

    Raises:
        FloatingPointError: a reward is not finite.
    """
    model, kernel, last = setup.model, pairs.kernel, pairs.kernel.num_steps - 1
    names = [pairs.prompts[i] for i in which.tolist() for _ in range(2)]
    which = send(which, pairs.states.device)
    x = pairs.states[which, :, last].flatten(0, 1)  # recorded without a graph
    cond = pairs.cond[which].repeat_interleave(2, 0)
    x0_hat = model.predict_x0(kernel.model_input(x, last), int(kernel.timesteps[last]), cond)
    rewards = setup.reward(model.decode(x0_hat, through_clamp=True), names).float()
    check_finite(f"reward {setup.config.reward}", rewards, names, setup.config.seed, pairs.number)
    return rewards.view(-1, 2)


def train(setup: Setup) -> Iterator[dict[str, float]]:
    """Train, and yield each round's record.

    A record has the reward queries, the mean reward, and the share of ties where rewards rank; the means over updates
    of the loss, of its diagnostics and of the gradient's norm; and, where there are log-probs, `drift`, the mean
    |log-ratio| to the reference, or to the model that sampled where the method needs no reference.
    """
    c, run = setup.config, setup.run
    for number in range(run.start, c.rounds):
        # Sample, score, credit: the model as it is now makes the pairs that this round learns from. Where the loss goes
        # through the reward, they are sampled alone.
        pairs = sample_pairs(setup, number)

        # The reference does not move, so one pass over the pairs serves all updates.
        logp_ref = reference_log_probs(setup, pairs)
        if number == run.start:
            check_ratio(setup, pairs)

        # Update. From the second minibatch on, the model is no longer the one that sampled: hence ratios and clips.
        updates = []
        for epoch in range(c.epochs):
            for which, steps in minibatches(setup, pairs, epoch):
                for rows in run.micro_batches([pairs.prompts[i] for i in which], number):
                    loss, diagnostics = minibatch_loss(setup, pairs, logp_ref, which[rows], steps[rows])
                    run.backward(loss, diagnostics, rows)
                updates.append(run.step())

        # Record, and save when it is time.
        tie = pairs.reward[:, 0] == pairs.reward[:, 1]
        queries = torch.tensor(float(pairs.queries), device=tie.device)
        record = {"queries": queries}
        if "reward gradient" not in METHODS[c.method].needs:
            record |= {"reward": pairs.reward.mean(), "ties": tie.float().mean()}
        record |= {name: torch.stack([update[name] for update in updates]).mean() for name in updates[0]}
        yield run.record(number, c.rounds, record)


def run(setup: Setup) -> None:
    """Train to the end, with a progress bar, and write the result."""
    bar = tqdm(train(setup), initial=setup.run.start, total=setup.config.rounds, desc=setup.config.method, unit="round")
    for record in bar:
        bar.set_postfix({k: f"{record[k]:.3g}" for k in ("reward", "loss", "accuracy") if k in record})
    setup.run.finish()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command_line(parse_training(OnlineConfig, "pso-online", __doc__), prepare, run, argv, kept)


if __name__ == "__main__":
    main()
