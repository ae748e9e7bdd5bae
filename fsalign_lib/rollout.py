r"""Sample trajectories of a model under a kernel, and compute the log-probs of their transitions.

A model is anything with `predict_x0(x_t, t, cond)`, t an int or a LongTensor (B,); `cond` is a tensor, batch
first, or a `Conditioning`, which is indexed and repeated like one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsalign_lib.devices import send, table_on
from fsalign_lib.kernels import Kernel, Reduction
from fsalign_lib.models.conditioning import Cond


@dataclass
class Trajectory:
    """Hold a batch of trajectories of N steps, detached, with states in the kernel's coordinates.

    states[:, n] is the state before step n and states[:, n + 1] the one after; x0_hat[:, n] is what the network
    predicted at step n; log_prob[:, n] that of the transition, 0 at a deterministic step.
    """

    states: Tensor  # (B, N+1, ...)
    x0_hat: Tensor  # (B, N, ...)
    log_prob: Tensor  # (B, N) float32

    @property
    def final(self) -> Tensor:
        """Return the samples, the last states.  # (B, ...)"""
        return self.states[:, -1]


def seeded_noise(run_seed: int, step: int, prompt_ids: Sequence[int] | Tensor, shape: tuple[int, ...], count: int):
    """Draw standard normal noise that depends on (run, step, prompt) alone: not on who else is in the batch, how the
    batch is split, or how many processes share it.

    Args:
        step: the training step or round; use a value of its own (such as -1) for evaluation.
        prompt_ids: B integers that name the prompts; equal ids get equal noise, so number repeated prompts apart.
        shape: of one sample.
        count: how many draws each prompt gets: N + 1 for one trajectory of N steps, 2 (N + 1) for a pair.

    Returns:
        float32 on the CPU (so that every device sees the same values).  # (B, count, *shape)
    """
    draws = []
    for prompt_id in prompt_ids.tolist() if isinstance(prompt_ids, Tensor) else prompt_ids:
        # A hash, because seeds made by adding the three would collide: (run 0, step 1) with (run 1, step 0).
        digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt_id}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        draws.append(torch.randn(count, *shape, generator=generator))
    return torch.stack(draws) if draws else torch.empty(0, count, *shape)


@torch.no_grad()
def rollout(
    model, kernel: Kernel, cond: Cond, noise: Tensor, reduction: Reduction = "mean", share_first: int = 1
) -> Trajectory:
    """Sample one trajectory for each row of `cond`, with one network call a step.

    Args:
        noise: noise[:, 0] starts the trajectory and noise[:, 1 + n] is drawn on at step n; N + 1 draws, of which a
            deterministic step leaves its own unused.  # (B, N+1, ...)
        reduction: of the log-prob over the dimensions of a state.
        share_first: rows come in groups of this many with one condition and one start, such as the 2 of a pair. Their
            first prediction is the same, and is computed once.

    No step makes the host wait for an accelerator.

    Raises:
        ValueError: noise and cond differ in batch size, there are fewer than N + 1 draws, or the starts of a group
            differ (on an accelerator they are not compared).
    """
    N = kernel.num_steps
    if len(noise) != len(cond):
        raise ValueError(f"noise has batch size {len(noise)} and cond {len(cond)}: they must agree")
    if noise.ndim < 3 or noise.shape[1] < N + 1:
        raise ValueError(f"noise has shape {tuple(noise.shape)}: expected (B, {N + 1}, ...), N + 1 draws for N steps")
    starts, on_cpu = noise[::share_first, 0], noise.device.type == "cpu"
    if len(noise) % share_first or (on_cpu and not torch.equal(starts.repeat_interleave(share_first, 0), noise[:, 0])):
        raise ValueError(f"share_first = {share_first}: the rows do not come in groups of that many with one start")
    x = kernel.initial(noise[:, 0])
    log_prob = torch.zeros(len(noise), N, device=noise.device)
    for n in range(N):
        share = share_first if n == 0 else 1
        x0_hat = model.predict_x0(kernel.model_input(x[::share], n), int(kernel.timesteps[n]), cond[::share])
        x0_hat = x0_hat.repeat_interleave(share, 0)
        x_next = kernel.sample(x, x0_hat, n, noise[:, 1 + n])
        if n in kernel.stochastic_steps:
            log_prob[:, n] = kernel.log_prob(x_next, x, x0_hat, n, reduction)
        if n == 0:  # filled in place: lists that are stacked at the end would hold everything twice
            states = x_next.new_empty(len(noise), N + 1, *x_next.shape[1:])
            x0_hats = x0_hat.new_empty(len(noise), N, *x0_hat.shape[1:])
            states[:, 0] = x
        states[:, n + 1], x0_hats[:, n] = x_next, x0_hat
        x = x_next
    return Trajectory(states, x0_hats, log_prob)


def transition_log_probs(
    model, kernel: Kernel, x: Tensor, x_next: Tensor, steps: Tensor, cond: Cond, reduction: Reduction = "mean"
) -> Tensor:
    r"""Return $\log p_\theta(x_{n+1} | x_n, c)$ of recorded transitions under the present model, with its gradient.

    All go through the network in one call, each with its own time. Call it under `model.reference()` and
    `torch.no_grad()` for the reference's log-probs.

    Args:
        x, x_next: states before and after the step, in the kernel's coordinates  # (B, ...)
        steps: n of each, a stochastic step  # (B,) long

    Returns:
        float32.  # (B,)

    Raises:
        ValueError: no transition, a step that the kernel lacks or that is deterministic (steps on an accelerator are
            not read back), batches that do not match.
    """
    _check_steps(kernel, steps)
    if not len(x) == len(x_next) == len(steps) == len(cond):
        raise ValueError(
            f"x has batch size {len(x)}, x_next {len(x_next)}, steps {len(steps)}, cond {len(cond)}: they must agree"
        )
    steps = send(steps, x.device)
    t = table_on(kernel.timesteps, x.device, torch.long)[steps]
    x0_hat = model.predict_x0(kernel.model_input(x, steps), t, cond)
    return kernel.log_prob(x_next, x, x0_hat, steps, reduction)


def _check_steps(kernel: Kernel, steps: Tensor) -> None:
    if steps.numel() and steps.device.type != "cpu":
        return
    if not steps.numel() or not set(steps.flatten().tolist()) <= set(kernel.stochastic_steps):
        raise ValueError(f"steps = {steps.tolist()}: expected some of the stochastic steps {kernel.stochastic_steps}")


def step_log_probs(
    model,
    kernel: Kernel,
    trajectory: Trajectory,
    cond: Cond,
    steps: Sequence[int] | Tensor,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Compute `transition_log_probs` of chosen steps of whole trajectories in one batch, sample-major.

    Args:
        steps: S step indices, each stochastic, in the order wanted; or a LongTensor (B, S) with each sample's own.

    Returns:
        float32; before any update it equals what `trajectory.log_prob` holds at these steps.  # (B, S)

    Raises:
        ValueError: as `transition_log_probs`, or a trajectory of another kernel.
    """
    B = len(trajectory.states)
    steps = torch.as_tensor(steps, dtype=torch.long, device="cpu")
    if len(cond) != B:
        raise ValueError(f"cond has batch size {len(cond)} and the trajectory {B}: they must agree")
    if trajectory.states.shape[1] != kernel.num_steps + 1:
        raise ValueError(
            f"the trajectory has {trajectory.states.shape[1] - 1} steps and the kernel {kernel.num_steps}: "
            "use the kernel that sampled it"
        )
    if steps.ndim > 2 or (steps.ndim == 2 and len(steps) != B):
        raise ValueError(f"steps has shape {tuple(steps.shape)}: expected (S,), or ({B}, S) for a batch of {B}")
    _check_steps(kernel, steps)
    device = trajectory.states.device
    n = send(steps.expand(B, -1).flatten(), device)  # (B*S,)
    row = send(torch.arange(B).repeat_interleave(steps.shape[-1]), device)
    x, x_next = trajectory.states[row, n], trajectory.states[row, n + 1]  # (B*S, ...)
    cond = cond.repeat_interleave(steps.shape[-1], 0)
    return transition_log_probs(model, kernel, x, x_next, n, cond, reduction).view(B, -1)
