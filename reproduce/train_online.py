"""Online alignment of a few-step model: sample pairs, score them, give credit, update; again.

python reproduce/train_online.py --method pso-online --reward pickscore --out runs/pso
python reproduce/train_online.py --method sdpo --reward aesthetic --out runs/sdpo

One round: P prompts, two trajectories each, from one start or from two; rewards of the last pictures, or of three
predictions on the way (SDPO); then passes over the pairs in minibatches. What an update sees, all steps of a pair or
one of each, is the method's (see `fsalign_lib.losses`); its transitions go through the network in one forward.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import get_args

import torch
from torch import Tensor
from tqdm import tqdm

from fsalign_lib.advantages import Advantages
from fsalign_lib.dense_reward import Strategy, discounted_returns
from fsalign_lib.kernels import Kernel
from fsalign_lib.losses.reward_difference import Updates, importance_weights, step_updates
from fsalign_lib.models.latent_model import LatentModel
from reproduce.common.cli import check_finite, command_line, generator, positive
from reproduce.data.prompt_sets import read_prompts
from reproduce.training.methods import METHODS, Rollouts, find, sums_steps
from reproduce.training.run import Run, check, divides, load_model, parse_training, training_kernel
from reproduce.training.sampling import (
    STEPS_AT_ONCE,
    OnlineConfig,
    Pairs,
    Reward,
    Setup,
    log_probs,
    reference_log_probs,
    sample_pairs,
)


def prepare(config: OnlineConfig, model: LatentModel | None = None, reward: Reward | None = None) -> Setup:
    """Check the settings, load what they name. A model or a reward that is given is taken in place of the named one."""
    find(config.method, "online")
    positive(config, "rounds", "pairs", "minibatch", "epochs", "eta")
    check(config)
    divides(config, "pairs", "minibatch")
    prompts = read_prompts(config.prompts)
    if config.threads:
        torch.set_num_threads(config.threads)
    model = model or load_model(config)
    kernel = training_kernel(config, model)
    for one in [kernel, *(model.sampler(steps, config.kernel) for steps in config.mixed_steps)]:
        check_settings(config, one)
    advantages = None
    if config.normalize:
        steps = 1 if config.queries == "final" else kernel.num_steps
        limits = (config.buffer, config.min_count, config.advantage_clip)
        advantages = Advantages(len(prompts), steps, config.normalize, *limits)
    if reward is None:
        from fsalign_lib.rewards import load_reward

        reward = load_reward(config.reward, scale=config.scale)
    run = Run(config, model)
    if advantages is not None:
        run.keep(advantages)
    if isinstance(reward, torch.nn.Module):
        reward.to(model.device)
    return Setup(config, model, reward, prompts, model.encode_prompts(prompts), kernel, run, advantages)


def check_settings(config: OnlineConfig, kernel: Kernel) -> None:
    """Raise a ValueError for what a loss or a part would refuse, before anything is sampled."""
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


def minibatches(setup: Setup, pairs: Pairs, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The updates of a round: which pairs (M,) at which steps (M, s).

    Where a loss is a mean over steps, a pair's steps are rows of their own, s = 1, which micro-batches can part.
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
    setup: Setup, pairs: Pairs, logp_ref: Tensor | None, which: Tensor, steps: Tensor, part: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The method's loss on a part of the rows of an update."""
    c, which, steps = setup.config, which[part], steps[part]
    logp = log_probs(setup, pairs, which, steps)
    check_finite("the log-prob", logp, [pairs.prompts[i] for i in which], c.seed, pairs.number)
    at = which[:, None, None], torch.arange(2)[:, None], steps[:, None]
    weight = importance_weights(pairs.kernel.num_steps, c.decay, c.eta, c.decay_order)[steps].to(logp.device)
    data = Rollouts(
        logp=logp,
        logp_ref=None if logp_ref is None else logp_ref[at],
        logp_old=pairs.logp_old[at],
        reward=pairs.reward[which],
        advantage=None if pairs.advantage is None else pairs.advantage[at],
        weight=weight,
    )
    method = METHODS[c.method]
    loss, diagnostics = method.loss(*method.inputs(data, c))
    base = data.logp_old if logp_ref is None else data.logp_ref
    return loss, diagnostics | {"drift": (logp - base).detach().abs().mean()}


def update(setup: Setup, pairs: Pairs, logp_ref: Tensor | None, which: Tensor, steps: Tensor) -> dict[str, Tensor]:
    """One step of the optimizer on the rows of an update; see `Run.update`."""
    loss = partial(minibatch_loss, setup, pairs, logp_ref, which, steps)
    return setup.run.update(torch.arange(len(which)), loss, [pairs.prompts[i] for i in which], pairs.number)


def check_ratio(setup: Setup, pairs: Pairs) -> None:
    """Before the first update the model is the one that sampled: its log-probs are those of the rollout.

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


def train(setup: Setup) -> Iterator[dict[str, float]]:
    """Yield each round's record: mean reward, share of ties, reward queries, loss and its diagnostics, and the mean
    |log-ratio| to the reference, or to the model that sampled where there is none (drift)."""
    c, run = setup.config, setup.run
    for number in range(run.start, c.rounds):
        pairs = sample_pairs(setup, number)
        logp_ref = reference_log_probs(setup, pairs)
        if number == run.start:
            check_ratio(setup, pairs)
        records = []
        for epoch in range(c.epochs):
            for which, steps in minibatches(setup, pairs, epoch):
                records.append(update(setup, pairs, logp_ref, which, steps))
        tie = pairs.reward[:, 0] == pairs.reward[:, 1]
        means = {name: torch.stack([r[name] for r in records]).mean() for name in records[0]}
        queries = torch.tensor(float(pairs.queries), device=tie.device)
        here = {"reward": pairs.reward.mean(), "ties": tie.float().mean(), "queries": queries}
        yield run.record(number, c.rounds, here | means)


def run(setup: Setup) -> None:
    bar = tqdm(train(setup), initial=setup.run.start, total=setup.config.rounds, desc=setup.config.method, unit="round")
    for record in bar:
        bar.set_postfix({k: f"{record[k]:.3g}" for k in ("reward", "loss", "accuracy") if k in record})
    setup.run.finish()


def main(argv: Sequence[str] | None = None) -> None:
    command_line(parse_training(OnlineConfig, "pso-online", __doc__), prepare, run, argv)


if __name__ == "__main__":
    main()
