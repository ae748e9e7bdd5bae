"""Advantages against an oracle of plain deques and numpy, over a stream in which some prompts are rare."""

from collections import defaultdict, deque

import numpy as np
import pytest
import torch

from fsalign_lib.advantages import Advantages

PROMPTS, T, BUFFER, MIN_COUNT = 12, 5, 8, 4


class Oracle:
    """What published trackers do, one prompt and one row at a time."""

    def __init__(self, per, buffer=BUFFER, min_count=MIN_COUNT, extend_first=True, correction=0):
        self.per, self.min_count, self.correction = per, min_count, correction
        self.extend_first = extend_first
        self.seen = defaultdict(lambda: deque(maxlen=buffer))

    def __call__(self, returns, prompts):
        returns, out = returns.numpy().astype(np.float64), np.zeros(returns.shape)
        if self.extend_first:
            self.extend(returns, prompts)
        for b, prompt in enumerate(prompts.tolist()):
            known = np.array(self.seen[prompt])
            for n in range(returns.shape[1]):
                if self.per == "global":
                    values = returns
                else:
                    values = known if len(known) >= self.min_count else returns
                    values = values[:, n] if self.per == "step-prompt" else values
                out[b, n] = (returns[b, n] - values.mean()) / (values.std(ddof=self.correction) + 1e-6)
        if not self.extend_first:
            self.extend(returns, prompts)
        return out

    def extend(self, returns, prompts):
        for row, prompt in zip(returns, prompts.tolist(), strict=True):
            self.seen[prompt].append(row)


def stream(rounds=25, batch=10, seed=0):
    """Prompt 0 often (more than the buffer within a batch, at times), the last hardly ever; scale and level differ
    between prompts and steps."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 0.6 ** torch.arange(PROMPTS)
    level = torch.randn(PROMPTS, T, generator=generator) * 3
    scale = torch.rand(PROMPTS, T, generator=generator) * torch.arange(1, T + 1) + 0.1
    for _ in range(rounds):
        prompts = torch.multinomial(frequency, batch, replacement=True, generator=generator)
        prompts = prompts.repeat_interleave(2)  # both of a pair
        yield level[prompts] + scale[prompts] * torch.randn(2 * batch, T, generator=generator), prompts


def largest_difference(oracle, per="step-prompt", **kwargs):
    advantages = Advantages(PROMPTS, T, per, BUFFER, MIN_COUNT, **kwargs)
    return max(
        float(np.abs(advantages(x, prompts).numpy() - oracle(x, prompts)).max()) for x, prompts in stream()
    ), advantages


@pytest.mark.parametrize("per", ["step-prompt", "prompt", "global"])
def test_statistics_equal_the_oracle(per):
    difference, advantages = largest_difference(Oracle(per), per)
    assert difference < 2e-4
    difference, _ = largest_difference(Oracle(per), per, dtype=torch.float64)
    assert difference < 1e-10
    counts = advantages.counts
    assert counts.sum() == 500 and counts[0] > BUFFER and 0 < counts[counts > 0].min() < MIN_COUNT
    most = max(int((prompts == 0).sum()) for _, prompts in stream())
    assert most > BUFFER, "a batch must hold more of a prompt than the buffer does"


WRONG = {
    "used before it is extended": Oracle("step-prompt", extend_first=False),
    "sample deviation": Oracle("step-prompt", correction=1),
    "a longer buffer": Oracle("step-prompt", buffer=BUFFER + 1),
    "a larger minimum": Oracle("step-prompt", min_count=MIN_COUNT + 1),
    "steps pooled": Oracle("prompt"),
    "prompts pooled": Oracle("global"),
}


@pytest.mark.parametrize("name", WRONG)
def test_statistics_that_are_wrong_differ(name):
    assert largest_difference(WRONG[name])[0] > 0.01


def test_published_sizes_and_a_reward_per_trajectory():
    advantages = Advantages(2)
    assert advantages.values.shape == (2, 32, 1) and advantages.min_count == 16
    x = torch.randn(15, 1, generator=torch.Generator().manual_seed(0))
    prompts = torch.zeros(15, dtype=torch.long)
    prompts[-3:] = 1
    torch.testing.assert_close(advantages(x, prompts), (x - x.mean()) / (x.std(correction=0) + 1e-6))
    more = advantages(x[:4] + 5, prompts[:4])  # prompt 0 now has 12 + 4 = 16
    known = torch.cat([x[:12], x[:4] + 5])
    torch.testing.assert_close(more, (x[:4] + 5 - known.mean()) / (known.std(correction=0) + 1e-6))


def test_the_order_of_a_batch_and_its_split_over_processes():
    """Gathered batches give each row the same advantage wherever it stands, as long as no row drops out."""
    one, other = (Advantages(PROMPTS, T, buffer=1000, min_count=4) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    for x, prompts in stream(5):
        order = torch.randperm(len(x), generator=generator)
        torch.testing.assert_close(one(x, prompts)[order], other(x[order], prompts[order]), rtol=1e-4, atol=1e-5)


def test_a_narrow_spread_on_a_high_level_keeps_its_digits():
    """PickScore returns over 50 steps: about 10, with a spread of 0.01."""
    x = 10 + 0.01 * torch.randn(32, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prompts = torch.zeros(32, dtype=torch.long)
    expected = (x - x.mean()) / (x.std(correction=0) + 1e-6)
    found = Advantages(1)(x.float(), prompts).double()
    assert (found - expected).abs().max() < 1e-3
    single = x.float()
    one_pass = (single.square().mean() - single.mean() ** 2).clamp_min(0).sqrt().double()
    assert abs(one_pass / x.std(correction=0) - 1) > 0.01


def test_equal_returns_give_no_advantage_and_the_clip_limits():
    assert (Advantages(1)(torch.full((20, 1), 0.3), torch.zeros(20, dtype=torch.long)).abs() < 1e-1).all()
    x = torch.cat([torch.zeros(31, 1), torch.ones(1, 1)])
    prompts = torch.zeros(32, dtype=torch.long)
    assert Advantages(1)(x, prompts).max() > 5 and Advantages(1, clip=5.0)(x, prompts).max() == 5


@pytest.mark.parametrize("per", ["step-prompt", "prompt", "global"])
def test_resuming_goes_on_to_the_same_bits(per):
    batches = list(stream(6))
    straight, before, after = (Advantages(PROMPTS, T, per, BUFFER, MIN_COUNT) for _ in range(3))
    expected = [straight(*batch) for batch in batches]
    for batch in batches[:3]:
        before(*batch)
    state = before.state_dict()
    for batch in batches[3:]:
        before(*batch)  # must not reach into the saved state
    after.load_state_dict(state)
    assert all(torch.equal(after(*batch), want) for batch, want in zip(batches[3:], expected[3:], strict=True))


def test_bad_input_is_named():
    advantages, x, prompts = Advantages(3, 2), torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    cases = [
        (lambda: Advantages(3, per="step"), "per = 'step': expected one of step-prompt, prompt, global"),
        (lambda: Advantages(0), "num_prompts = 0: expected 1 or more"),
        (lambda: Advantages(3, buffer=8), "min_count = 16: expected 1 to the buffer's 8"),
        (lambda: Advantages(3, clip=0.0), "clip = 0.0: expected a finite positive number"),
        (
            lambda: advantages(x[:, :1], prompts),
            r"returns is torch.float32 of shape \(4, 1\): expected floats \(B, 2\)",
        ),
        (lambda: advantages(x, prompts[:2]), r"prompts is torch.int64 of shape \(2,\): expected integers \(4,\)"),
        (lambda: advantages(x, prompts + 3), r"prompts has 3..3: expected 0..2"),
        (lambda: advantages(x, prompts - 1), r"prompts has -1..-1: expected 0..2"),
        (lambda: advantages(x * torch.nan, prompts), "returns has a value that is not finite"),
        (lambda: advantages.load_state_dict(Advantages(4, 2).state_dict()), r"values has shape \(4, 32, 2\): expected"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert advantages.counts.sum() == 0, "what was refused left no trace"
