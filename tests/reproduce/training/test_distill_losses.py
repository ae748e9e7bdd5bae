"""The losses of assistant and student on a batch, against their formulas with one network call for each sample.

Each weighting, each distance and both ways of guidance; the weights of both networks are nudged apart from the
teacher's, and the gradient is compared with the value.
"""

import copy

import pytest
import torch

from fsalign_lib.rollout import seeded_noise
from reproduce import train_distill
from reproduce.recipes import make_config
from reproduce.train_distill import ASSISTANT, STUDENT
from tests import tiny
from tests.by_hand import nudge, same, times_seen

TIME, NUMBER, ROWS = 399, 5, torch.tensor([2, 0])


@pytest.fixture
def make(loaded, prompts_file, tmp_path):
    def make(method, out="run", **overrides):
        small = {"model": "tiny", "teacher": "tiny", "prompts": prompts_file, "updates": 3, "batch": 3, "rank": 2}
        small |= {"start": None, "time": TIME, "sigma_init": None, "warmup": 0, "assistant_updates": 2, "seed": 3}
        small |= {"training": "lora", "save_every": 9, "times": "uniform", "time_range": (20, 980)}
        config = make_config(train_distill.DistillConfig, method, out=tmp_path / out, **(small | overrides))
        model = copy.deepcopy(loaded)
        model.guidance_scale = 3.0  # for sampling: the losses ask for both halves themselves
        setup = train_distill.prepare(config, model, model, tiny.taste if config.reward else None)
        nudge(setup.trio.student, 0.05, seed=1)
        nudge(setup.trio.assistant, 0.05, seed=2)
        return setup

    return make


def reduced(setup, values):
    return values.mean() if setup.config.reduction == "mean" else values.sum()


def denoised(model, x, sigma, cond):
    """The clean sample that a network predicts of x_0 + sigma eps, at the nearest of its noise levels."""
    levels = ((1 - model.schedule.alpha_bar) / model.schedule.alpha_bar).sqrt()
    t = int((levels - sigma).abs().argmin())
    return x - sigma * model.predict_eps(x / (sigma**2 + 1) ** 0.5, t, cond)


def generated(setup, batch, row):
    """A sample of the student, its noised form, its prompt and its condition."""
    model, prompt = setup.model, setup.prompts[batch.prompts[row]]
    cond, ab = model.encode_prompts([prompt]), model.schedule.alpha_bar[TIME].item()
    place = int(row) * len(setup.prompts) + int(batch.prompts[row])
    z, eps = seeded_noise(setup.config.seed, NUMBER, [place], model.latent_shape, 2)[0].unsqueeze(1)
    x0 = (z - (1 - ab) ** 0.5 * model.predict_eps(z, TIME, cond)) / ab**0.5
    sigma = batch.sigma[row].item()
    return x0, x0 + sigma * eps, sigma, prompt, cond


@pytest.mark.parametrize("weighting", train_distill.ASSISTANT_WEIGHTS)
def test_the_assistants_loss_is_its_formula(make, weighting):
    setup = make("dipp", assistant_weighting=weighting, reduction="sum" if weighting == "edm" else "mean")
    batch = train_distill.draw_batch(setup, NUMBER, ASSISTANT)
    with torch.no_grad():
        samples = train_distill.sample_rows(setup, batch, ROWS)
        by_hand = [generated(setup, batch, row) for row in ROWS]
    assert samples.prompts == [one[3] for one in by_hand]
    torch.testing.assert_close(samples.x, torch.cat([one[1] for one in by_hand]), atol=1e-3, rtol=1e-3)
    seen = times_seen(setup.trio.assistant)
    loss, _ = train_distill.assistant_minibatch_loss(setup, samples)
    assert seen == [setup.model.schedule.nearest_t(batch.sigma[ROWS]).tolist()]
    terms = []
    for x0, x, sigma, _, cond in by_hand:
        weight = {"eps": 1 / sigma**2, "edm": (sigma**2 + 0.25) / (0.5 * sigma) ** 2, "denoiser": 1.0}[weighting]
        terms.append(weight * reduced(setup, (denoised(setup.trio.assistant, x, sigma, cond) - x0).square()))
    same(loss, torch.stack(terms).mean(), setup.trio.assistant, 3e-3)


def norm(x):
    return x.flatten().norm()


STUDENT_CASES = {
    "Diff-Instruct": ("diff-instruct", {"weighting": "denoiser", "guidance": 1.0, "reduction": "sum"}),
    "Diff-Instruct on scores": ("diff-instruct", {"weighting": "score", "guidance": 1.0}),
    "guided by the reference": (
        "dipp",
        {"weighting": "inverse-gap", "guidance": 2.5, "guidance_by": "reference", "reward_scale": 0.3},
    ),
    "guided by a reward": ("dipp", {"weighting": "dmd2", "guidance": 1.5, "guidance_by": "reward", "reward_scale": 0}),
    "SIM, squared": (
        "sim",
        {"weighting": "denoiser", "distance": "squared", "guidance": 2.0, "guidance_by": "reference"},
    ),
    "SIM on scores": ("sim", {"weighting": "score", "distance": "pseudo-huber", "c": 0.7, "guidance": 1.0}),
    "DI*": (
        "distar",
        {
            **{"weighting": "denoiser", "distance": "pseudo-huber", "c": 3.0, "reduction": "sum"},
            **{"guidance": 1.5, "guidance_by": "reward", "reward_scale": 2.0},
        },
    ),
}


@pytest.mark.parametrize("case", STUDENT_CASES)
def test_the_students_loss_is_its_formula(make, case):
    method, settings = STUDENT_CASES[case]
    setup = make(method, **({"reduction": "mean"} | settings))
    c, trio = setup.config, setup.trio
    batch = train_distill.draw_batch(setup, NUMBER, STUDENT)
    with setup.run.alone(setup.run.learners[STUDENT]):
        samples = train_distill.sample_rows(setup, batch, ROWS)
        loss, diagnostics = train_distill.student_minibatch_loss(setup, samples, NUMBER)
        terms, rewards = [], []
        for row in ROWS:
            x0, x, sigma, prompt, cond = generated(setup, batch, row)
            through = method in ("sim", "distar")
            at = x if through else x.detach()
            assistant, teacher = (denoised(one, at, sigma, cond) for one in (trio.assistant, trio.teacher))
            blank = denoised(trio.teacher, at, sigma, trio.teacher.null(1))
            reference = teacher
            if c.guidance_by == "reference" and c.guidance != 1:
                reference = blank + c.guidance * (teacher - blank)
            gap = assistant - reference
            weight = {
                "denoiser": 1.0,
                "score": 1 / sigma**2,
                "inverse-gap": 1 / norm(gap.detach()),
                "dmd2": 1 / (x0 - reference).detach().abs().mean(),
            }[c.weighting]
            if not through:
                term = weight * reduced(setup, gap.detach() * x)
            else:
                y, residual = gap, assistant - x0
                if c.weighting == "score":
                    y, residual = y / sigma**2, residual / sigma**2
                slope = y if c.distance == "squared" else y / (norm(y) ** 2 + c.c**2).sqrt()
                term = -reduced(setup, slope * residual)
            if c.guidance_by == "reward" and c.guidance:
                pull = (teacher - blank).detach()
                normalised = norm(pull) if through and c.distance == "pseudo-huber" else 1.0
                term = term - c.guidance * weight / normalised * reduced(setup, pull * x)
            terms.append(term)
            if c.reward is not None and c.reward_scale:
                pictures = setup.model.decode(x0, c.through_clamp)
                rewards.append(tiny.taste(pictures, [prompt])[0])
        expected = torch.stack(terms).mean()
        if rewards:
            expected = expected - c.reward_scale * torch.stack(rewards).mean()
            torch.testing.assert_close(
                diagnostics["reward"], torch.stack(rewards).mean().detach(), rtol=1e-3, atol=1e-3
            )
        same(loss, expected, setup.model, 1e-2)
    assert ("reward" in diagnostics) == bool(rewards)


def test_training_is_the_updates_written_out(make):
    """The assistant's updates first, each on a batch of its own; then the student's, on another; then the average."""
    settings = {"updates": 2, "lr": 1e-3, "assistant_lr": 3e-3, "betas": (0.5, 0.7), "weight_decay": 0.3, "warmup": 1}
    settings |= {"grad_clip": 0.5, "ema": 0.6, "ema_ramp": 0.7, "guidance": 1.0, "guidance_by": "reference"}
    loop, hand = (make("dipp", out, **settings) for out in ("loop", "hand"))
    average = {name: p.detach().clone() for name, p in loop.model.trained_parameters().items()}
    loop.average.weights = {name: p.clone() for name, p in average.items()}  # from where the nudge has put them
    records = list(train_distill.train(loop))

    learners, rows = hand.run.learners, torch.arange(3)
    optimizers = [
        torch.optim.AdamW(learner.parameters, lr=lr, betas=(0.5, 0.7), weight_decay=0.3)
        for learner, lr in zip(learners, (1e-3, 3e-3), strict=True)
    ]

    def update(number, which):
        batch, learner = train_distill.draw_batch(hand, number, which), learners[which]
        with hand.run.alone(learner):
            with torch.set_grad_enabled(which == STUDENT):
                samples = train_distill.sample_rows(hand, batch, rows)
            if which == STUDENT:
                loss, _ = train_distill.student_minibatch_loss(hand, samples, number)
            else:
                loss, _ = train_distill.assistant_minibatch_loss(hand, samples)
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(learner.parameters, 0.5)
        optimizers[which].step()
        optimizers[which].zero_grad()
        return loss.item(), norm.item()

    decays = (0.0, 0.5 ** (1 / 0.7))  # the half-life is 0.7 of the updates done
    for record, followed, moved, decay in zip(records, ((-1, 0, 1), (3, 4)), (2, 5), decays, strict=True):
        assistant = [update(number, ASSISTANT) for number in followed]
        loss, norm = update(moved, STUDENT)
        assert (record["loss"], record["gradient"]) == pytest.approx((loss, norm), rel=1e-3)
        means = [sum(values) / len(values) for values in zip(*assistant, strict=True)]
        assert [record["assistant_loss"], record["assistant_gradient"]] == pytest.approx(means, rel=1e-3)
        for name, p in hand.model.trained_parameters().items():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    for name, p in loop.model.trained_parameters().items():
        torch.testing.assert_close(p, average[name], atol=1e-6, rtol=1e-4)
