"""The offline loop on a tiny random model: noise, errors, mixed PSO and its halves, the prior, PSO for concepts."""

import itertools
import math
from functools import partial

import pytest
import torch
from PIL import Image

from fsalign_lib.losses.preference import pso_weights, pso_without_reference
from fsalign_lib.rollout import rollout, step_log_probs
from reproduce import recipes, train_offline
from reproduce.training.methods import METHODS
from tests import tiny


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.loop == "offline"])
def test_offline_losses_fall_on_their_own_batch(offline, method):
    setup = offline(method=method, lr=2e-3, updates=8)
    rows = torch.arange(4)
    before, diagnostics = train_offline.batch_loss(setup, 0, rows)
    if "reference" in METHODS[method].needs:
        assert before.item() == pytest.approx(math.log(2), abs=1e-5)
        assert diagnostics["margin"] == pytest.approx(0, abs=1e-6)
    for _ in range(8):
        for some in setup.run.micro_batches(setup.prompts[:4], 0):
            setup.run.backward(*train_offline.batch_loss(setup, 0, rows[some]), some)
        setup.run.step()
    assert train_offline.batch_loss(setup, 0, rows)[0] < before


def test_noised_latents(offline):
    setup = offline()
    x_t, eps, t, _ = train_offline.noised(setup, 1, torch.tensor([2, 5]))
    assert t.tolist() == [[999, 749, 499]] * 2
    assert x_t.shape == (2, 2, 3, *setup.model.latent_shape)
    expected = setup.model.schedule.add_noise(setup.latents[torch.tensor([5])][0, 1], eps[1, 1, 2], 499)
    torch.testing.assert_close(x_t[1, 1, 2], expected)
    assert len(eps.flatten(0, 2).flatten(1).unique(dim=0)) == 12, "a noise for each picture and time"

    shared = offline("dpo", method="diffusion-dpo")
    x_t, eps, t, _ = train_offline.noised(shared, 1, torch.tensor([2, 5]))
    assert torch.equal(eps[:, 0], eps[:, 1]) and t.shape == (2, 1) and t[0] != t[1]
    sft = offline("sft", method="sft")
    assert train_offline.noised(sft, 1, torch.tensor([2]))[0].shape[1] == 1, "fine-tuning needs no losers"


# on a handful of given pictures


def pictures(folder, captions, seed):
    """Random pictures of the tiny model's size, with captions beside them."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    for number, caption in enumerate(captions):
        values = (torch.rand(32, 32, 3, generator=generator) * 255).byte().numpy()
        Image.fromarray(values).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("style") / "targets", tiny.PROMPTS, 0)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("class") / "prior", ["a zebra"] * 3, 1)


@pytest.fixture
def make(offline, targets):
    return partial(offline, method="pso", pairs=targets)


def trained(setup, updates=1):
    """Somewhere else than the reference, where the halves do not stand in a special relation."""
    list(itertools.islice(train_offline.train(setup), updates))
    return setup


def test_the_references_are_samples_of_the_model_as_it_is_now(make):
    setup = trained(make(lr=1e-2))
    rows = torch.tensor([1, 3])
    *_, noise = train_offline.noised(setup, 2, rows)
    cond = train_offline.conditions(setup, rows)
    found, _ = train_offline.batch_errors(setup, 2, rows)
    now = rollout(setup.model, setup.kernel, cond, noise)
    steps = list(setup.kernel.stochastic_steps)
    torch.testing.assert_close(found.logp.detach(), now.log_prob[:, steps], atol=1e-4, rtol=1e-4)
    with setup.model.reference():
        before = rollout(setup.model, setup.kernel, cond, noise)
        of_now = step_log_probs(setup.model, setup.kernel, now, cond, steps)
    torch.testing.assert_close(found.logp_ref, of_now, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before.final, now.final, atol=1e-2), "samples of the reference would be others"
    assert found.logp.requires_grad and not found.logp_ref.requires_grad


def test_targets_and_references_have_noise_of_their_own(make):
    setup = make()
    _, eps, _, noise = train_offline.noised(setup, 0, torch.tensor([0, 1]))
    draws = torch.cat([eps.flatten(0, 2), noise.flatten(0, 1)]).flatten(1)
    assert len(draws.unique(dim=0)) == len(draws) == 2 * (3 + 5)


@pytest.mark.parametrize("weights", ["printed", "exact"])
def test_the_loss_is_equation_five_with_either_weighting(make, weights):
    setup = trained(make(eq5_weights=weights, lr=2e-3, beta=1.0))
    rows = torch.tensor([0, 2])
    found, _ = train_offline.batch_errors(setup, 3, rows)
    omega = pso_weights(setup.kernel, weights)
    assert (omega == 1).all() == (weights == "printed")
    h = (-omega * (found.error - found.error_ref)[:, 0] - (found.logp - found.logp_ref)).sum(1)
    expected = torch.log1p(torch.exp(-setup.config.beta * h)).mean()
    loss, _ = train_offline.batch_loss(setup, 3, rows)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    sign = torch.log1p(torch.exp(-setup.config.beta * (h + 2 * (found.logp - found.logp_ref).sum(1)))).mean()
    assert not torch.allclose(loss, sign), "with the references' sign turned it is another loss"


def test_the_halves_add_up_to_the_update_however_it_is_parted(make):
    """|a + b|^2 = |a|^2 + |b|^2 + 2 |a| |b| cos, with a + b the gradient that the optimizer sees."""
    whole = trained(make("whole", lr=1e-3, grad_clip=1e9))
    rows = torch.tensor([0, 1, 2, 4])
    found = train_offline.halves(whole, 1, rows)
    a, b, cosine = (found[f"gradient_{part}"].item() for part in ("target", "reference", "cosine"))
    loss, _ = train_offline.batch_loss(whole, 1, rows)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, whole.run.parameters)]).norm().item()
    assert math.sqrt(a * a + b * b + 2 * a * b * cosine) == pytest.approx(gradient, rel=1e-3)
    assert math.sqrt(a * a + b * b) != pytest.approx(gradient, rel=1e-3), "they are not orthogonal"
    parted = trained(make("parted", lr=1e-3, grad_clip=1e9, micro_batch=2))
    for name, value in train_offline.halves(parted, 1, rows).items():
        torch.testing.assert_close(value, found[name], rtol=1e-2, atol=1e-2)
    naive = [train_offline.halves(parted, 1, some)["gradient_target"].item() for some in rows.split(2)]
    assert sum(naive) / 2 > a * 1.001, "the mean of norms is not the norm of the mean"


def test_halves_are_measured_when_they_are_asked_for(make):
    setup = make(halves_every=2)
    records = list(train_offline.train(setup))
    assert ["gradient_target" in record for record in records] == [True, False, True, False]
    assert setup.run.history == records
    plain = make("plain")
    list(train_offline.train(plain))
    ours, other = (torch.cat([p.flatten() for p in each.run.parameters]) for each in (setup, plain))
    assert torch.equal(ours, other), "a measurement changes nothing"


def test_mixed_pso_resumes_to_the_bit(make):
    whole = list(train_offline.train(make("whole", lr=1e-3)))
    stopped = make("stopped", lr=1e-3)
    list(itertools.islice(train_offline.train(stopped), 3))
    resumed = make("stopped", lr=1e-3, resume=True)
    assert resumed.run.start == 2
    assert list(train_offline.train(resumed)) == whole[2:]


def test_the_prior_is_the_diffusion_loss_on_its_own_pictures_and_captions(make, prior):
    setup = make(method="dreambooth", prior=prior, prior_weight=0.5)
    rows = torch.tensor([0, 3])
    loss, diagnostics = train_offline.batch_loss(setup, 1, rows)
    x_t, eps, t, _ = train_offline.noised(setup, 1, rows)
    assert x_t.shape[1] == 2, "a target and a picture of the prior"
    which = train_offline.prior_rows(setup, 1, rows)
    assert torch.equal(setup.prior[0][which][:, 0], torch.stack([setup.prior[0][i : i + 1][0, 0] for i in which]))
    model, at = setup.model, t[:, 0]
    zebras, own = model.encode_prompts(["a zebra"] * 2), train_offline.conditions(setup, rows)

    def error(place, cond):
        return (model.predict_eps(x_t[:, place, 0], at, cond) - eps[:, place, 0]).square().mean()

    expected = error(0, own) + 0.5 * error(1, zebras)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    assert diagnostics["prior"] == pytest.approx(error(1, zebras).item(), rel=1e-4)
    assert not torch.allclose(error(1, own), error(1, zebras), rtol=1e-4), "the captions matter"


def test_one_network_call_for_targets_and_prior(make, prior):
    setup = make(method="dreambooth", prior=prior)
    sizes = []
    setup.model.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    train_offline.batch_loss(setup, 0, torch.arange(4))
    assert sizes == [8]


def errors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.rand(3, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    return draws[0], draws[1]


def test_pso_without_reference_is_the_hinge_that_the_code_has():
    w, l = errors()  # noqa: E741
    loss, diagnostics = pso_without_reference(w, l, beta=5.0)
    torch.testing.assert_close(loss, torch.relu(1 - 5.0 * (0.1 * l - w)).mean())
    assert diagnostics["clamped"] == 0, "errors below 2 leave every hinge open"
    gradients = torch.autograd.grad(loss, (w, l))
    torch.testing.assert_close(gradients[0], torch.full_like(w, 5 / 12))
    torch.testing.assert_close(gradients[1], torch.full_like(l, -0.5 / 12))
    closed, far = pso_without_reference(w, l + 1e3, beta=5.0)
    assert closed == 0 and far["clamped"] == 1
    assert not torch.allclose(loss, torch.relu(1 - 5.0 * (w - 0.1 * l)).mean()), "with the sign turned"


def test_as_published_the_prior_cancels_the_references():
    """Hinge plus 0.5 err on the same pictures, at beta 5: what is left is five times the diffusion loss on targets."""
    w, l = errors(1)  # noqa: E741
    loss = pso_without_reference(w, l, beta=5.0)[0] + 0.5 * l.mean()
    gradients = torch.autograd.grad(loss, (w, l))
    torch.testing.assert_close(gradients[1], torch.zeros_like(l))
    torch.testing.assert_close(gradients[0], torch.autograd.grad(5 * w.mean(), w)[0])
    other = pso_without_reference(w, l, beta=4.0)[0] + 0.5 * l.mean()
    assert torch.autograd.grad(other, l)[0].abs().min() > 0, "at another beta it does not"


def test_what_cannot_be_had_is_refused(make, monkeypatch):
    with pytest.raises(ValueError, match="needs pairs"):
        make(method="pso-offline")
    with pytest.raises(ValueError, match="halves_every = 2: only pso"):
        make("sft", method="sft", halves_every=2)
    with pytest.raises(ValueError, match="prior_weight = -1"):
        make("prior", prior_weight=-1.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process"):
        make("two", halves_every=2)


def test_the_registry_knows_what_each_method_needs():
    assert [name for name, method in METHODS.items() if "own samples" in method.needs] == ["pso"]
    assert "losers" not in METHODS["pso"].needs
    for method in ("pso", "dreambooth", "pso-customize"):
        for scale in recipes.SCALES:
            assert {"lr", "updates", "batch", "times", "pairs"} <= recipes.recipe(method, scale).keys()


def test_half_gradients_of_a_sum_are_those_of_its_terms():
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

    def terms(rows):
        a, b = (p * rows.float().mean()).sum(), (p**2).sum()
        return 3 * a + 5 * b, a, b

    found = train_offline.half_gradients(terms, [torch.tensor([0, 2]), torch.tensor([4])], [p])
    assert found["gradient_target"] == pytest.approx(3 * 2 * 2**0.5)  # the mean over all three rows
    assert found["gradient_reference"] == pytest.approx(5 * 2 * 5**0.5)
