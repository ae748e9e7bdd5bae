r"""Raise a differentiable reward by its own gradient (DRaFT): no policy, no ratio, no reference.

$$L = -E_{c,\, x}\big[ r(\hat x_0, c) \big], \qquad
\nabla_\theta L = -E\Big[ \nabla_{\hat x_0} r\, \frac{\partial \hat x_0}{\partial\theta} \Big].$$

With K = 1 (DRaFT-1) the gradient passes the last step of sampling alone: the state before it is recorded without a
graph, and $\hat x_0$ is what the network predicts there. Nothing holds the model to where it began, so that what the
reward overrates is found soon; how far it went has to be measured beside the reward.

Source: Clark et al., "Directly fine-tuning diffusion models on differentiable rewards", arXiv 2309.17400.
"""

from torch import Tensor

from fsalign_lib.losses.common import Diagnostics
from fsalign_lib.losses.distribution_matching import reward_term


def draft(reward: Tensor) -> tuple[Tensor, Diagnostics]:
    """Compute DRaFT's loss, the mean reward negated.

    Args:
        reward: one number for each sample, with the graph to the model through reward, decoder and step  # (B,)

    Returns:
        the loss, and `reward`, the mean reward, detached.

    Raises:
        ValueError: rewards that are not floats (B,), or without a graph.
    """
    return reward_term(reward, 1.0), {"reward": reward.detach().mean()}
