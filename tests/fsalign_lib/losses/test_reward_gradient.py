"""DRaFT: the gradient of the mean reward, through a model of one weight whose derivative is known."""

import pytest
import torch

from fsalign_lib.losses.reward_gradient import draft


def test_the_gradient_is_that_of_the_mean_reward():
    """x_0 = theta z and r(x_0) = -(x_0 - 1)^2 / 2, so that dL/dtheta = mean z (theta z - 1)."""
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    z = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss, diagnostics = draft(-((theta * z - 1) ** 2) / 2)
    (found,) = torch.autograd.grad(loss, theta)
    expected = (z * (0.3 * z - 1)).mean()
    torch.testing.assert_close(found, expected)
    assert diagnostics["reward"] == -loss and not diagnostics["reward"].requires_grad
    assert abs(found + expected) > 1e-3 and abs(found - 50 * expected) > 1e-3, "neither a fall nor a sum"


def test_a_reward_without_a_graph_is_refused():
    with pytest.raises(ValueError, match="the student, through reward and decoder"):
        draft(torch.ones(3))
