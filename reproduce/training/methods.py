"""Register the methods: for each its loop, its loss, and what the loop has to give it.

A loop computes what a method sees of some rows, `Rollouts`, `Scored`, `Errors` or `Matched`, and calls

    loss, diagnostics = method.loss(*method.inputs(data, config))

CONTRIBUTING.md shows how to add one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fsalign_lib.losses.common import Diagnostics
from fsalign_lib.losses.distribution_matching import diff_instruct, sim
from fsalign_lib.losses.policy_gradient import ddpo_clipped
from fsalign_lib.losses.preference import d3po, diffusion_dpo, pso, pso_offline, pso_online, pso_without_reference
from fsalign_lib.losses.reward_difference import rebel, sdpo
from fsalign_lib.losses.reward_gradient import draft

Loop = Literal["online", "offline", "distill"]

NEEDS: dict[Loop, dict[str, str]] = {
    "online": {
        "reference": "log-probs under the reference model",
        "advantages": "rewards standardised by running statistics: the setting `normalize`",
        "one reward": "one reward for a whole trajectory: `queries` is final",
        "step sums": "where `sum_steps` is inside, all steps of a pair in one micro-batch",
        "all steps": "all steps of a pair in one micro-batch: the loss sums over them, inside a square or outside",
        "clip below 1": "`clip` is a range of the ratio around 1",
        "clamp below 1": "`clamp` is a range of the ratio around 1",
        "reward gradient": "the reward of the last prediction, with its graph through that step alone; no log-probs",
    },
    "offline": {
        "reference": "errors under the reference model",
        "losers": "pairs of pictures, a preferred one and another",
        "own samples": "a trajectory of the model as it is now for each picture, and its log-probs",
    },
    "distill": {
        "reward": "a reward with a gradient, beside the loss",
        "input gradients": "the graph through the inputs of teacher and assistant",
        "distance": "a divergence of scores with its own normaliser: the settings `distance` and `c`",
    },
}


@dataclass(frozen=True)
class Method:
    """State how a method is trained.

    Attributes:
        loop: train_online.py, train_offline.py or train_distill.py.
        loss: takes what `inputs` returns; returns the loss and detached diagnostics, both means over the rows.
        inputs: (data of some rows, the loop's configuration) -> the positional arguments of the loss.
        needs: some of NEEDS[loop]; what is not named is not computed, or not asked for.

    Raises:
        ValueError: an unknown loop or need.
    """

    loop: Loop
    loss: Callable[..., tuple[Tensor, Diagnostics]]
    inputs: Callable[[Any, Any], tuple]
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.loop not in get_args(Loop):
            raise ValueError(f"unknown loop {self.loop!r}: choose from {', '.join(get_args(Loop))}")
        for need in self.needs:
            if need not in NEEDS[self.loop]:
                raise ValueError(
                    f"unknown need {need!r} of an {self.loop} method: choose from {', '.join(NEEDS[self.loop])}"
                )


@dataclass
class Rollouts:
    """Hold what an online loss sees of M pairs of trajectories at s steps each, the higher reward at index 0."""

    logp: Tensor  # (M, 2, s) under the policy as it is now, with its graph
    logp_ref: Tensor | None  # (M, 2, s) under the reference; None: the method does not need it
    logp_old: Tensor  # (M, 2, s) under the policy that sampled
    reward: Tensor  # (M, 2)
    advantage: Tensor | None  # (M, 2, s); None: rewards are not standardised
    weight: Tensor  # (M, s) of the steps, as SDPO has it

    def winner_loser(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log-probs of winner and loser, under policy and reference (M, s): w, w_ref, l, l_ref.

        Of a tie neither won, so the policy stands in as its own reference, and no gradient flows.
        """
        tie = (self.reward[:, 0] == self.reward[:, 1])[:, None, None]
        logp = torch.where(tie, self.logp_ref, self.logp)
        return logp[:, 0], self.logp_ref[:, 0], logp[:, 1], self.logp_ref[:, 1]

    def branches(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log-probs of both trajectories, now and when they were sampled (M, s): a, a_old, b, b_old."""
        return self.logp[:, 0], self.logp_old[:, 0], self.logp[:, 1], self.logp_old[:, 1]

    def trajectories(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probs now, log-probs when sampled, and advantages, without pairs (2M, s)."""
        return self.logp.flatten(0, 1), self.logp_old.flatten(0, 1), self.advantage.flatten(0, 1)


@dataclass
class Scored:
    """Hold what a loss that is differentiated through the reward sees of M pairs of trajectories."""

    reward: Tensor  # (M, 2) of the last prediction, with the graph through reward, decoder and that step


@dataclass
class Errors:
    """Hold what an offline loss sees of P pairs: squared noise errors at S times, the winner at index 0."""

    error: Tensor  # (P, 2, S) under the policy, with its graph; (P, 1, S) where losers are not needed
    error_ref: Tensor | None  # of the same shape under the reference; None: the method does not need it
    logp: Tensor | None = None  # (P, S) of own samples' transitions, with its graph; None: not needed
    logp_ref: Tensor | None = None  # (P, S) of the same transitions under the reference
    weight: Tensor | None = None  # (S,) of the errors against the log-probs

    def winner_loser(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return errors of winner and loser, under policy and reference (P, S): w, w_ref, l, l_ref."""
        return self.error[:, 0], self.error_ref[:, 0], self.error[:, 1], self.error_ref[:, 1]


@dataclass
class Matched:
    """Hold what a student's loss sees of B of its samples, noised to x = x_0 + sigma eps (EDM's form)."""

    x0: Tensor  # (B, ...) with the student's graph
    x: Tensor  # (B, ...) with the student's graph
    sigma: Tensor  # (B,)
    assistant: Tensor  # (B, ...) d_psi(x); with the graph to x where input gradients are needed
    reference: Tensor  # (B, ...) d_ref(x) of the teacher, guided if guidance is in the reference; graph likewise
    weight: float | Tensor = 1.0  # w(t) on denoisers, as the setting `weighting` says  # (B,), or a number

    def in_form(self, weighting: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return d_psi, d_ref and x_0 (B, ...), for "score" as scores, (d - x) / sigma^2 (DI++ Eq. C.3)."""
        denoised = self.assistant, self.reference, self.x0
        if weighting != "score":
            return denoised
        sigma = self.sigma.view(-1, *[1] * (self.x.ndim - 1))
        return tuple((d - self.x) / sigma**2 for d in denoised)


def diffusion_loss(error: Tensor) -> tuple[Tensor, Diagnostics]:
    """Average squared noise errors over pictures, times and, as the caller has reduced them, dimensions."""
    return error.mean(), {}


METHODS: dict[str, Method] = {
    # on pairs of own samples, ranked by a reward
    "pso-online": Method(
        "online",
        pso_online,
        lambda data, c: (*data.winner_loser(), c.beta, c.clamp, c.sum_steps),
        needs=("reference", "step sums", "clamp below 1"),
    ),
    "d3po": Method(
        "online",
        d3po,
        lambda data, c: (*data.winner_loser(), c.beta, c.clamp),
        needs=("reference", "clamp below 1"),
    ),
    "ddpo": Method(
        "online",
        ddpo_clipped,
        lambda data, c: (*data.trajectories(), c.clip, "mean"),
        needs=("advantages", "clip below 1"),
    ),
    "rebel": Method(
        "online",
        rebel,
        lambda data, c: (
            *data.branches(),
            data.advantage[:, 0, 0],
            data.advantage[:, 1, 0],
            c.eta,
            c.sum_steps,
        ),
        needs=("advantages", "one reward", "all steps"),
    ),
    "sdpo": Method(
        "online",
        sdpo,
        lambda data, c: (*data.branches(), data.advantage[:, 0], data.advantage[:, 1], data.weight, c.clip),
        needs=("advantages",),
    ),
    # on own samples, through a differentiable reward
    "draft": Method("online", draft, lambda data, c: (data.reward.flatten(),), needs=("reward gradient",)),
    # on given pictures, in pairs or alone
    "pso-offline": Method(
        "offline",
        pso_offline,
        lambda data, c: (*data.winner_loser(), c.beta, c.sum_steps),
        needs=("reference", "losers"),
    ),
    "diffusion-dpo": Method(
        "offline",
        diffusion_dpo,
        lambda data, c: (*data.winner_loser(), c.beta),
        needs=("reference", "losers"),
    ),
    "sft": Method("offline", diffusion_loss, lambda data, c: (data.error,)),
    "pso": Method(
        "offline",
        pso,
        lambda data, c: (
            data.error[:, 0],
            data.error_ref[:, 0],
            data.logp,
            data.logp_ref,
            c.beta,
            data.weight,
            c.sum_steps,
        ),
        needs=("reference", "own samples"),
    ),
    "dreambooth": Method("offline", diffusion_loss, lambda data, c: (data.error,)),
    "pso-customize": Method(
        "offline",
        pso_without_reference,
        lambda data, c: (data.error[:, 0], data.error[:, 1], c.beta),
        needs=("losers",),
    ),
    # on a one-step generator's samples, beside a teacher
    "diff-instruct": Method(
        "distill",
        diff_instruct,
        lambda data, c: (data.assistant, data.reference, data.x, data.weight, c.reduction),
    ),
    "dipp": Method(
        "distill",
        diff_instruct,
        lambda data, c: (data.assistant, data.reference, data.x, data.weight, c.reduction),
        needs=("reward",),
    ),
    "sim": Method(
        "distill",
        sim,
        lambda data, c: (*data.in_form(c.weighting), 1.0, c.distance, c.c, c.reduction),
        needs=("input gradients", "distance"),
    ),
    "distar": Method(
        "distill",
        sim,
        lambda data, c: (*data.in_form(c.weighting), 1.0, c.distance, c.c, c.reduction),
        needs=("input gradients", "distance", "reward"),
    ),
}


def find(name: str, loop: Loop) -> Method:
    """Return a loop's method.

    Raises:
        ValueError: the loop has no method of that name.
    """
    method = METHODS.get(name)
    if method is None or method.loop != loop:
        known = [other for other, about in METHODS.items() if about.loop == loop]
        raise ValueError(f"unknown method {name!r}: choose from {', '.join(known)}")
    return method


def sums_steps(config: Any) -> bool:
    """Tell whether an online loss needs all steps of a pair at once; otherwise it is a mean over steps."""
    needs = METHODS[config.method].needs
    return "all steps" in needs or ("step sums" in needs and config.sum_steps == "inside")
