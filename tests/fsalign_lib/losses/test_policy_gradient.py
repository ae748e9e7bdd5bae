"""DDPO: its two forms against each other and against hand-derived gradients, beside clips known to be wrong."""

import pytest
import torch

from fsalign_lib.losses.policy_gradient import ddpo_clipped, ddpo_reinforce

B, S, CLIP = 40, 3, 0.1


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def inputs():
    """logp, logp_old, advantage; with CLIP, every combination of side, sign and inside occurs."""
    logp_old = randn(0, B, S)
    return (logp_old + 0.2 * randn(1, B, S)).requires_grad_(), logp_old.requires_grad_(), randn(2, B)


@pytest.mark.parametrize("steps", ["sum", "mean"])
@pytest.mark.parametrize("per_step", [False, True])
def test_reinforce_is_its_formula(inputs, steps, per_step):
    logp, _, advantage = inputs
    advantage = randn(3, B, S) if per_step else advantage
    loss, _ = ddpo_reinforce(logp, advantage, steps)
    by_hand = 0.0
    for b in range(B):
        for n in range(S):
            by_hand -= float(advantage[b, n] if per_step else advantage[b]) * logp[b, n].item()
    assert float(loss) == pytest.approx(by_hand / B / (S if steps == "mean" else 1))
    (gradient,) = torch.autograd.grad(loss, logp)
    expected = -(advantage if per_step else advantage[:, None].expand(B, S)) / B / (S if steps == "mean" else 1)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("steps", ["sum", "mean"])
def test_the_clipped_form_at_ratio_1_is_reinforce(inputs, steps):
    logp, _, advantage = inputs
    clipped, diagnostics = ddpo_clipped(logp, logp, advantage, CLIP, steps)
    plain, _ = ddpo_reinforce(logp, advantage, steps)
    # At a ratio of exactly 1 the values differ (a constant), the gradients do not.
    torch.testing.assert_close(torch.autograd.grad(clipped, logp), torch.autograd.grad(plain, logp))
    assert diagnostics["ratio"] == 1 and diagnostics["clipped"] == diagnostics["stopped"] == diagnostics["kl"] == 0


def gradient_by_hand(logp, logp_old, advantage):
    """-A w / B, and 0 where a good sample has w > 1 + c or a bad one w < 1 - c."""
    w = (logp - logp_old).exp().detach()
    good = (advantage > 0)[:, None]
    stopped = (good & (w > 1 + CLIP)) | (~good & (w < 1 - CLIP))
    return torch.where(stopped, 0.0, -advantage[:, None] * w / B), stopped


def clipped_variant(kind):
    """Clips that were got wrong: each as a function of the library's arguments."""

    def loss(logp, logp_old, advantage):
        ratio, a = (logp - logp_old.detach()).exp(), advantage[:, None]
        kept, clipped = -a * ratio, -a * ratio.clamp(1 - CLIP, 1 + CLIP)
        log_clipped = -a * (logp - logp_old.detach()).clamp(-CLIP, CLIP).exp()
        terms = {
            "minimum": torch.minimum(kept, clipped),
            "clipped alone": clipped,
            "unclipped": kept,
            "clip around 0": torch.maximum(kept, -a * ratio.clamp(-CLIP, CLIP)),
            "clip of the logarithm": torch.maximum(kept, log_clipped),
            "sign": torch.maximum(-kept, -clipped),
            "trajectory ratio": torch.maximum(
                -a[:, 0] * ratio.prod(1), -a[:, 0] * ratio.prod(1).clamp(1 - CLIP, 1 + CLIP)
            )[:, None],
        }[kind]
        return terms.sum(1).mean()

    return loss


VARIANTS = ["minimum", "clipped alone", "unclipped", "clip around 0", "clip of the logarithm", "sign"]


def test_the_clipped_gradient_is_the_one_derived_by_hand(inputs):
    logp, logp_old, advantage = inputs
    loss, diagnostics = ddpo_clipped(logp, logp_old, advantage, CLIP)
    (gradient,) = torch.autograd.grad(loss, logp)
    expected, stopped = gradient_by_hand(logp, logp_old, advantage)
    torch.testing.assert_close(gradient, expected)
    w = (logp - logp_old).exp()
    good = (advantage > 0)[:, None]
    for side in (w > 1 + CLIP, w < 1 - CLIP, (w - 1).abs() < CLIP):
        assert (side & good).any() and (side & ~good).any(), "every case must occur"
    assert float(diagnostics["stopped"]) == pytest.approx(float(stopped.float().mean()))
    assert float(diagnostics["clipped"]) == pytest.approx(float(((w - 1).abs() > CLIP).float().mean()))
    assert float(diagnostics["stopped"]) < float(diagnostics["clipped"])


@pytest.mark.parametrize("kind", [*VARIANTS, "trajectory ratio"])
def test_clips_that_are_wrong_have_another_gradient(inputs, kind):
    logp, logp_old, advantage = inputs
    (gradient,) = torch.autograd.grad(clipped_variant(kind)(logp, logp_old, advantage), logp)
    assert (gradient - gradient_by_hand(logp, logp_old, advantage)[0]).abs().max() > 1e-3


def test_without_a_clip_the_ratio_is_kept(inputs):
    logp, logp_old, advantage = inputs
    loss, diagnostics = ddpo_clipped(logp, logp_old, advantage, clip=None)
    torch.testing.assert_close(loss, clipped_variant("unclipped")(logp, logp_old, advantage))
    assert diagnostics["clipped"] == diagnostics["stopped"] == 0


@pytest.mark.parametrize("clip", [None, CLIP])
def test_gradcheck_and_what_is_detached(inputs, clip):
    logp, logp_old, advantage = inputs
    advantage.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ddpo_clipped(x, logp_old, advantage, clip)[0], logp)
    assert torch.autograd.gradcheck(lambda x: ddpo_reinforce(x, advantage)[0], logp)
    for loss, diagnostics in (ddpo_clipped(logp, logp_old, advantage, clip), ddpo_reinforce(logp, advantage)):
        loss.backward()
        assert not any(value.requires_grad for value in diagnostics.values())
    assert logp.grad is not None and logp_old.grad is None and advantage.grad is None


def test_the_kl_estimate_is_right_for_small_changes():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, 1, dtype=torch.float64, generator=generator)  # from theta', N(0, 1); theta is N(0.05, 1)
    _, diagnostics = ddpo_clipped(-((x - 0.05) ** 2) / 2, -(x**2) / 2, torch.ones(len(x), dtype=torch.float64))
    assert float(diagnostics["kl"]) == pytest.approx(0.05**2 / 2, rel=0.02)


def test_bad_input_is_named(inputs):
    logp, logp_old, advantage = inputs
    cases = [
        (lambda: ddpo_clipped(logp, logp_old[:1], advantage), r"logp_old has shape \(1, 3\) and logp \(40, 3\)"),
        (lambda: ddpo_clipped(logp, logp_old, advantage, clip=0.0), "clip = 0.0: expected a number between 0 and 1"),
        (lambda: ddpo_clipped(logp, logp_old, advantage, steps="inside"), "steps = 'inside': expected \"sum\""),
        (lambda: ddpo_reinforce(logp, advantage[:3]), r"advantage is torch.float64 of shape \(3,\): expected floats"),
        (lambda: ddpo_reinforce(logp, advantage.long()), "advantage is torch.int64"),
        (lambda: ddpo_reinforce(logp[0], advantage), r"logp is torch.float64 of shape \(3,\): expected floats"),
        (lambda: ddpo_reinforce(logp[:0], advantage[:0]), "not empty"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
