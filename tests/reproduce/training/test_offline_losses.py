"""Each offline loss on a batch, against its formula with one network call for each picture and time.

It begins with the files: which picture won is read from pairs.jsonl, and each picture is encoded by itself.
"""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fsalign_lib.rollout import seeded_noise
from reproduce import train_offline
from reproduce.recipes import make_config
from reproduce.training.run import epoch_rows
from tests import tiny
from tests.by_hand import nudge, same, times_seen

GRID = [999, 749, 499]  # the stochastic ones of four steps
COUNT = len(tiny.PROMPTS)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pictures whose names say nothing of who won, in an order of their own."""
    out = tmp_path_factory.mktemp("pairs")
    rows = []
    for number, prompt in enumerate(tiny.PROMPTS):
        sides = [f"{number}-{side}.png" for side in "ab"]
        for place, name in enumerate(sides):
            tiny.picture(out / name, 10 * number + place)
        winner, loser = sides if number % 2 else sides[::-1]
        rows.append({"prompt": prompt, "winner": winner, "loser": loser})
    (out / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return out


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    out = tmp_path_factory.mktemp("prior")
    for number, caption in enumerate(("a zebra", "a horse", "a cow")):
        tiny.picture(out / f"{number}.png", 1000 + number)
        (out / f"{number}.txt").write_text(caption)
    return out


@pytest.fixture
def make(loaded, pairs, tmp_path):
    def make(method, out="run", **overrides):
        small = {"model": "tiny", "pairs": pairs, "prior": None, "updates": 4, "batch": 2, "save_every": 9}
        small |= {"training": "lora", "rank": 2, "steps": 4}
        config = make_config(train_offline.OfflineConfig, method, out=tmp_path / out, **(small | overrides))
        return train_offline.prepare(config, copy.deepcopy(loaded))

    return make


def latent(setup, path):
    picture = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
    return setup.model.encode(picture)


def error(setup, x0, eps, t, prompt):
    """The squared error of the noise that the network predicts, one picture at one time."""
    model, ab = setup.model, setup.model.schedule.alpha_bar[t].item()
    found = model.predict_eps(ab**0.5 * x0 + (1 - ab) ** 0.5 * eps, t, model.encode_prompts([prompt]))
    each = (found - eps).square()
    return each.mean() if setup.config.reduction == "mean" else each.sum()


def sigmoids(beta, h):
    return torch.log1p(torch.exp(-beta * h)).mean()


CASES = {
    "PSO, summed inside": ("pso-offline", {"beta": 2.0, "sum_steps": "inside", "shared_noise": False}),
    "PSO, a sigmoid a step": ("pso-offline", {"beta": 9.0, "sum_steps": "outside", "shared_noise": True}),
    "Diffusion-DPO": ("diffusion-dpo", {"beta": 9.0}),
    "fine-tuning": ("sft", {"reduction": "mean"}),
    "DreamBooth": ("dreambooth", {"prior_weight": 0.3, "reduction": "mean"}),
    "concepts": ("pso-customize", {"beta": 0.002, "prior_weight": 0.3}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_offline_loss_is_its_formula(make, pairs, prior, case):
    method, settings = CASES[case]
    settings = {"reduction": "sum"} | settings | ({"prior": prior} if "prior_weight" in settings else {})
    setup = make(method, **settings)
    c, update, rows = setup.config, 3, torch.tensor([4, 1])
    nudge(setup.model)
    seen = times_seen(setup.model)
    loss, diagnostics = train_offline.batch_loss(setup, update, rows)
    x_t, eps, t, _ = train_offline.noised(setup, update, rows)
    lines = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    grid = c.times == "grid"
    assert t.tolist() == [GRID, GRID] if grid else t.shape == (2, 1)
    pictures = x_t.shape[1]
    assert seen[0] == [int(time) for row in t for _ in range(pictures) for time in row]

    sides, prior_error = {"winner": [], "loser": []}, []
    before = {"winner": [], "loser": []}
    for place, row in enumerate(rows.tolist()):
        for side in sides:
            x0, k = latent(setup, pairs / lines[row][side]), 0 if side == "winner" or pictures == 1 else 1
            noise = [eps[place, k, n][None] for n in range(t.shape[1])]
            every = [(x0, e, int(at), lines[row]["prompt"]) for e, at in zip(noise, t[place], strict=True)]
            sides[side].append(torch.stack([error(setup, *one) for one in every]))
            with torch.no_grad(), setup.model.reference():
                before[side].append(torch.stack([error(setup, *one) for one in every]))
        if c.prior is not None:
            which = train_offline.prior_rows(setup, update, rows)[place]
            x0, caption = latent(setup, prior / f"{which}.png"), (prior / f"{which}.txt").read_text()
            noise = eps[place, -1]
            each = [error(setup, x0, e[None], int(at), caption) for e, at in zip(noise, t[place], strict=True)]
            prior_error.append(torch.stack(each))
    w, l = (torch.stack(sides[side]) for side in sides)
    w_ref, l_ref = (torch.stack(before[side]) for side in before)
    h = (l - l_ref) - (w - w_ref)
    expected = {
        "pso-offline": lambda: sigmoids(c.beta, h.sum(1) if c.sum_steps == "inside" else h),
        "diffusion-dpo": lambda: sigmoids(c.beta, h),
        "sft": lambda: w.mean(),
        "dreambooth": lambda: w.mean(),
        "pso-customize": lambda: (1 - c.beta * (0.1 * l - w)).clamp_min(0).mean(),
    }[method]()
    if c.prior is not None:
        expected = expected + c.prior_weight * torch.stack(prior_error).mean()
        torch.testing.assert_close(diagnostics["prior"], torch.stack(prior_error).mean().detach(), rtol=1e-3, atol=1e-5)
    same(loss, expected, setup.model)
    if method in ("pso-offline", "diffusion-dpo"):
        swapped = sigmoids(c.beta, -(h.sum(1) if c.sum_steps == "inside" else h))
        assert (swapped - expected).abs() > 0.01 * expected, "or it would not be seen who won"


def sigmas(model):
    """Of the four steps' times."""
    ab = [model.schedule.alpha_bar[t].item() for t in [*GRID, 249]]
    return [((1 - a) / a) ** 0.5 for a in ab]


def step(model, x, n, cond):
    """Mean and standard deviation of an Euler-ancestral step, whose states are x_0 + sigma eps."""
    now, after = sigmas(model)[n : n + 2]
    eps = model.predict_eps(x / (now**2 + 1) ** 0.5, GRID[n], cond)
    return x + eps * (after**2 / now - now), after * (now**2 - after**2) ** 0.5 / now


def density(model, x, x_next, n, cond):
    return torch.distributions.Normal(*step(model, x, n, cond)).log_prob(x_next).sum()


def test_mixed_pso_is_equation_five_call_by_call(make, pairs):
    """Winners against samples of the model as it is now, whose noise comes after that of the pictures."""
    setup = make("pso", beta=0.02, reduction="sum", eq5_weights="exact")
    nudge(setup.model)
    c, model, update, rows = setup.config, setup.model, 2, torch.tensor([3, 0])
    lines = [json.loads(line) for line in (pairs / "pairs.jsonl").read_text().splitlines()]
    noise, sigma, h = seeded_noise(c.seed, update, rows, model.latent_shape, 3 + 5), sigmas(model), []
    for place, row in enumerate(rows.tolist()):
        prompt, x0 = lines[row]["prompt"], latent(setup, pairs / lines[row]["winner"])
        cond, x, terms = model.encode_prompts([prompt]), sigma[0] * noise[place, 3][None], []
        for n, t in enumerate(GRID):
            with torch.no_grad():
                mean, std = step(model, x, n, cond)
                x_next = mean + std * noise[place, 4 + n][None]
            transition, picture = (model, x, x_next, n, cond), (setup, x0, noise[place, n][None], t, prompt)
            with torch.no_grad(), model.reference():
                density_before, error_before = density(*transition), error(*picture)
            omega = (1 - sigma[n + 1] ** 2 / sigma[n] ** 2) ** 2 * sigma[n] ** 2 / (2 * std**2)
            terms.append(-omega * (error(*picture) - error_before) - (density(*transition) - density_before))
            x = x_next
        h.append(sum(terms))
    loss, _ = train_offline.batch_loss(setup, update, rows)
    same(loss, sigmoids(c.beta, torch.stack(h)), model, tolerance=1e-2)


def test_uniform_times_and_priors_are_of_the_pair_and_the_update(make, prior):
    """Each pair's own, whoever else is in the batch; another in the next update; all times come."""
    setup = make("diffusion-dpo", "dpo")
    every = torch.cat([train_offline.times(setup, update, torch.arange(COUNT)) for update in range(200)]).flatten()
    assert every.min() < 30 and every.max() > 970 and abs(every.double().mean() - 499.5) < 4 * 289 / len(every) ** 0.5
    some = train_offline.times(setup, 7, torch.tensor([5, 2]))
    assert torch.equal(some, train_offline.times(setup, 7, torch.arange(COUNT))[[5, 2]])
    with_prior = make("dreambooth", "prior", prior=prior)
    drawn = torch.cat([train_offline.prior_rows(with_prior, update, torch.arange(COUNT)) for update in range(30)])
    assert drawn.unique().tolist() == [0, 1, 2]
    assert torch.equal(
        train_offline.prior_rows(with_prior, 7, torch.tensor([5, 2])),
        train_offline.prior_rows(with_prior, 7, torch.arange(COUNT))[[5, 2]],
    )


def test_training_is_the_updates_written_out(make):
    """AdamW with the settings' numbers on clipped gradients, on epochs of all pairs; a record an update."""
    settings = {"updates": 3, "lr": 1e-3, "betas": (0.5, 0.7), "weight_decay": 0.3, "grad_clip": 0.5}
    loop, hand = (make("pso-offline", out, **settings, reduction="sum") for out in ("loop", "hand"))
    records = list(train_offline.train(loop))
    optimizer = torch.optim.AdamW(hand.run.parameters, lr=1e-3, betas=(0.5, 0.7), weight_decay=0.3)
    for update, record in enumerate(records):
        rows = epoch_rows("pairs", hand.config.seed, update, COUNT, 2)
        loss, diagnostics = train_offline.batch_loss(hand, update, rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(hand.run.parameters, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        expected = diagnostics | {"loss": loss.detach(), "gradient": norm}
        assert record == {name: pytest.approx(value.item(), rel=1e-4, abs=1e-6) for name, value in expected.items()}
    assert max(record["gradient"] for record in records) > 0.5, "or no gradient was clipped"
    for one, other in zip(loop.run.parameters, hand.run.parameters, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_losses_are_on_the_networks_own_error_whatever_the_guidance(loaded, pairs, tmp_path):
    model = copy.deepcopy(loaded)
    model.guidance_scale = 3.0
    config = make_config(train_offline.OfflineConfig, "sft", model="tiny", pairs=pairs, out=tmp_path / "run")
    assert train_offline.prepare(config, model).model.guidance_scale == 1
