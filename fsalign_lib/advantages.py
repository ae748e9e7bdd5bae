r"""Turn returns into advantages by the running mean and standard deviation of their prompt and step.

DDPO keeps them for each prompt; SDPO for each step of each prompt (Sec. 3.3), because returns of early steps sum over
more rewards than those of late ones. Rewards of whole trajectories are the case of one step, (B, 1).
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from fsalign_lib.kernels import at_least_float32

Per = Literal["step-prompt", "prompt", "global"]
EPS = 1e-6  # added to the standard deviation, as in published code


class Advantages:
    r"""Keep the statistics of the last `buffer` trajectories of each prompt; call it with a batch of returns.

    Each call first enters the batch, then standardises it: $\hat A = (G - \mu) / (\sigma + 10^{-6})$, $\sigma$ the
    population standard deviation. $\mu$ and $\sigma$ are taken

    - "step-prompt" (SDPO): for each step over the prompt's trajectories in the buffer; for each step over the batch
      while the prompt has fewer than `min_count` of them;
    - "prompt" (as DDPO; SDPO's first alternative): over the prompt's trajectories and all steps; over the batch and
      all steps while it has fewer than `min_count`;
    - "global" (its second alternative): over the batch and all steps. The buffer is not used. The paper does not say
      whether steps are pooled; here they are.

    Both trajectories of a pair go in, as two rows with the same prompt. In a batch that holds more than `buffer` of
    one prompt, the last ones stay. With several processes, gather returns and prompts and pass the same full batch, in
    the same order, on each: the statistics are then the same however many there are.

    Args:
        num_prompts: prompts are named 0, ..., num_prompts - 1.
        num_steps: T, columns of the returns.
        buffer, min_count: 32 and 16 in SDPO's Table 2.
        clip: limit advantages to [-clip, clip]; published code (of DDPO and SDPO) does at 5, the papers do not say.
        dtype: of the stored returns.

    Raises:
        ValueError: sizes below 1, min_count outside 1..buffer, a clip that is not positive, an unknown `per`.
    """

    def __init__(
        self,
        num_prompts: int,
        num_steps: int = 1,
        per: Per = "step-prompt",
        buffer: int = 32,
        min_count: int = 16,
        clip: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if per not in get_args(Per):
            raise ValueError(f"per = {per!r}: expected one of {', '.join(get_args(Per))}")
        for name, value in (("num_prompts", num_prompts), ("num_steps", num_steps), ("buffer", buffer)):
            if value < 1:
                raise ValueError(f"{name} = {value}: expected 1 or more")
        if not 1 <= min_count <= buffer:
            raise ValueError(f"min_count = {min_count}: expected 1 to the buffer's {buffer}, or it is never reached")
        if clip is not None and not (math.isfinite(clip) and clip > 0):
            raise ValueError(f"clip = {clip}: expected a finite positive number, or None")
        self.per, self.min_count, self.clip = per, min_count, clip
        rows = 0 if per == "global" else num_prompts
        self.values = torch.zeros(rows, buffer, num_steps, dtype=dtype)  # a ring for each prompt
        self.counts = torch.zeros(num_prompts, dtype=torch.long)  # trajectories seen, also those that have left

    def __call__(self, returns: Tensor, prompts: Tensor) -> Tensor:
        """Enter a batch of returns into the buffers, and return its advantages.

        Args:
            returns: G of each step  # (B, T)
            prompts: which prompt each row has  # (B,) long

        Returns:
            in the dtype of the statistics, on the device of `returns`, detached.  # (B, T)

        Raises:
            ValueError: shapes that do not match, an unknown prompt, or returns that are not finite (one of them would
                stay in the buffer and spoil all that follows).
        """
        num_steps = self.values.shape[2]
        if returns.ndim != 2 or returns.shape[1] != num_steps or not len(returns) or not returns.is_floating_point():
            raise ValueError(
                f"returns is {returns.dtype} of shape {tuple(returns.shape)}: expected floats (B, {num_steps}), B >= 1"
            )
        if prompts.shape != returns.shape[:1] or prompts.is_floating_point():
            raise ValueError(
                f"prompts is {prompts.dtype} of shape {tuple(prompts.shape)}: expected integers ({len(returns)},)"
            )
        device, prompts = returns.device, prompts.cpu().long()
        if prompts.min() < 0 or prompts.max() >= len(self.counts):
            raise ValueError(f"prompts has {prompts.min()}..{prompts.max()}: expected 0..{len(self.counts) - 1}")
        x = at_least_float32(returns.detach()).to("cpu", self.values.dtype)
        if not x.isfinite().all():
            raise ValueError("returns has a value that is not finite: find the reward that made it")
        self._enter(x, prompts)
        mean, std = self._statistics(x, prompts)
        advantage = (x - mean) / (std + EPS)
        if self.clip is not None:
            advantage = advantage.clamp(-self.clip, self.clip)
        return advantage.to(device)

    def _enter(self, x: Tensor, prompts: Tensor) -> None:
        count = prompts.bincount(minlength=len(self.counts))
        if self.per != "global":
            order = prompts.argsort(stable=True)
            first = count.cumsum(0) - count  # where each prompt begins among the sorted
            rank = torch.arange(len(x)) - first[prompts[order]]
            # Two rows must not meet in one slot: which of them an indexed write keeps is not defined.
            kept = rank >= count[prompts[order]] - self.values.shape[1]
            order, rank = order[kept], rank[kept]
            slot = (self.counts[prompts[order]] + rank) % self.values.shape[1]
            self.values[prompts[order], slot] = x[order]
        self.counts += count

    def _statistics(self, x: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation that broadcast to x (B, T)."""
        over = 0 if self.per == "step-prompt" else (0, 1)
        batch_mean, batch_std = x.mean(over), x.std(over, correction=0)
        if self.per == "global":
            return batch_mean, batch_std
        seen, row = prompts.unique(return_inverse=True)  # (P,), (B,)
        values, count = self.values[seen], self.counts[seen].clamp_max(self.values.shape[1])  # (P, buffer, T), (P,)
        held = (torch.arange(values.shape[1]) < count[:, None])[..., None]  # (P, buffer, 1)
        over = 1 if self.per == "step-prompt" else (1, 2)
        size = count[:, None, None] * (1 if self.per == "step-prompt" else values.shape[2])
        # Two passes: E[x^2] - E[x]^2 would lose the spread of returns that differ little.
        mean = (values * held).sum(over, keepdim=True) / size
        std = (((values - mean) * held).square().sum(over, keepdim=True) / size).sqrt()
        enough = (count >= self.min_count)[:, None]
        mean = torch.where(enough, mean[:, 0], batch_mean)  # (P, T)
        return mean[row], torch.where(enough, std[:, 0], batch_std)[row]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed run needs."""
        return {"values": self.values.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave; raise a ValueError if it was made for other sizes."""
        for name, mine in (("values", self.values), ("counts", self.counts)):
            if state[name].shape != mine.shape:
                raise ValueError(
                    f"{name} has shape {tuple(state[name].shape)}: expected {tuple(mine.shape)}; resume with the "
                    "prompts, steps and buffer of the saved run"
                )
            mine.copy_(state[name])
