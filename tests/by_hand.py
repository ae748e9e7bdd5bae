"""What tests of the losses share, which hold a minibatch against its formula, one network call at a time."""

import torch


def nudge(model, size=0.02, seed=0):
    """Move trained weights away from the start, where an adapter's B is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.trained_parameters().values():
            p.add_(size * torch.randn(p.shape, generator=generator))


def gradient(loss, model):
    """Of the trained weights, as one vector."""
    found = torch.autograd.grad(loss, list(model.trained_parameters().values()), retain_graph=True)
    return torch.cat([g.flatten() for g in found])


def same(loss, expected, model, tolerance=1e-3):
    """Assert that two losses have one value and one gradient."""
    torch.testing.assert_close(loss, expected.float(), atol=1e-5, rtol=tolerance)
    one, other = gradient(loss, model), gradient(expected, model)
    assert other.norm() > 0 and (one - other).norm() < tolerance * other.norm()


def times_seen(model):
    """Return a list that collects the times which the network is handed from now on, call by call."""
    seen = []

    def hook(_, args, kwargs):
        seen.append(kwargs["timestep"].tolist())

    model.network.register_forward_pre_hook(hook, with_kwargs=True)
    return seen
