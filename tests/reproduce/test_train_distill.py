"""The loop of distribution matching: three networks in two ways, what an update sees, where it goes, resuming."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from peft.functional import set_adapter

from fsalign_lib.models import edm
from fsalign_lib.models import load as models
from fsalign_lib.rollout import rollout, seeded_noise
from reproduce import train_distill
from reproduce.common.files import last_checkpoint
from reproduce.recipes import make_config
from reproduce.train_distill import ASSISTANT, STUDENT
from reproduce.training.ema import Average
from reproduce.training.methods import METHODS
from tests import tiny
from tests.exact import gaussian, kl

ROWS = torch.arange(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(tiny.PROMPTS))
    return str(path)


@pytest.fixture
def make(folder, prompts_file, tmp_path):
    def make(method="dipp", out="run", scorer=tiny.brightness, model=None, teacher=None, **overrides):
        small = {"model": str(folder), "teacher": str(folder), "prompts": prompts_file, "updates": 4, "batch": 4}
        small |= {"start": None, "time": 399, "sigma_init": None, "warmup": 0, "assistant_updates": 1, "rank": 2}
        small |= {"save_every": 2}
        config = make_config(train_distill.DistillConfig, method, out=tmp_path / out, **(small | overrides))
        return train_distill.prepare(config, model, teacher, scorer if config.reward else None)

    return make


def trained(model):
    return torch.cat([p.detach().flatten() for p in model.trained_parameters().values()])


def nudge(model, seed=0):
    """Away from the start, where an adapter's B is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.trained_parameters().values():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))


def student_loss(setup, drawn, rows):
    return train_distill.student_minibatch_loss(setup, train_distill.sample_rows(setup, drawn, rows), drawn.number)


def assistant_loss(setup, drawn, rows):
    with torch.no_grad():
        some = train_distill.sample_rows(setup, drawn, rows)
    return train_distill.assistant_minibatch_loss(setup, some)


def student_gradient(setup, loss_of=student_loss, which=STUDENT):
    """Loss and gradient of an update, without its step."""
    learner = setup.run.learners[which]
    drawn = train_distill.draw_batch(setup, 5, which)
    with setup.run.alone(learner):
        loss, _ = loss_of(setup, drawn, ROWS)
        loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in learner.parameters])
    for other in setup.run.learners:
        assert other is learner or all(p.grad is None for p in other.parameters), "the other network takes none"
        for p in other.parameters:
            p.grad = None
    return loss.detach(), gradient


# the three networks


@pytest.mark.parametrize("method", ["dipp", "distar"])
def test_adapters_compute_what_full_copies_compute(make, method):
    """At the start: all three predictions, and the gradient that the student's sample gets."""
    found = {}
    for training in ("full", "lora"):
        setup = make(method, training, training=training)
        some = train_distill.sample_rows(setup, train_distill.draw_batch(setup, 0, STUDENT), ROWS)
        x0 = some.x0.detach().requires_grad_()
        given = train_distill.Samples(some.prompts, some.cond, x0, x0 + (some.x - some.x0).detach(), some.sigma)
        with pytest.MonkeyPatch.context() as patch, setup.run.alone(setup.run.learners[STUDENT]):
            patch.setattr(train_distill, "sample_rows", lambda *_, given=given: given)
            loss, _ = student_loss(setup, train_distill.draw_batch(setup, 0, STUDENT), ROWS)
            loss.backward()
            others = setup.trio.assistant, setup.trio.teacher
            predictions = [edm.denoise(m, given.x, given.sigma, given.cond).detach() for m in others]
        found[training] = [some.x0.detach(), *predictions, loss.detach(), x0.grad]
        assert torch.equal(*predictions), "the assistant starts as the teacher"
        assert x0.grad.abs().sum() > 0
        held = setup.trio.networks()
        assert len(held) == {"full": 3, "lora": 1}[training]
    for full, lora in zip(*found.values(), strict=True):
        torch.testing.assert_close(lora, full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", ["full", "lora"])
@pytest.mark.parametrize("method", ["dipp", "distar"])
def test_an_update_moves_one_network_alone(make, method, training):
    setup = make(method, training=training, lr=1e-2, assistant_lr=1e-2)
    trio = setup.trio
    learners, teacher = (trio.student, trio.assistant), [p.detach().clone() for p in trio.teacher.unet.parameters()]
    for model in learners:
        nudge(model)
    names = [n for n, _ in trio.teacher.unet.named_parameters()]
    for update, which in ((train_distill.assistant_update, ASSISTANT), (train_distill.student_update, STUDENT)):
        before = [trained(model) for model in learners]
        assert update(setup, which)["gradient"] > 0
        after = [trained(model) for model in learners]
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [which != STUDENT, which != ASSISTANT]
    for name, before, p in zip(names, teacher, trio.teacher.unet.parameters(), strict=True):
        assert "lora" in name or torch.equal(p, before), "the teacher is frozen"
    assert all(p.requires_grad for model in learners for p in model.trained_parameters().values())


@pytest.mark.parametrize("training", ["full", "lora"])
def test_checkpointed_activations_are_computed_again_by_the_same_adapter(make, training):
    """The backward of DI* goes through all three networks, when the last call's adapter is on."""
    found = []
    for checkpointing in (False, True):
        setup = make("distar", f"{checkpointing}", training=training, gradient_checkpointing=checkpointing)
        for model in (setup.trio.student, setup.trio.assistant):
            nudge(model)
        found.append(student_gradient(setup)[1])
        found.append(student_gradient(setup, assistant_loss, ASSISTANT)[1])
    torch.testing.assert_close(found[2], found[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[3], found[1], atol=1e-5, rtol=1e-4)
    assert found[0].abs().max() > 0 and found[1].abs().max() > 0


def test_peft_alone_would_lose_the_students_gradient(make):
    """Why `Adapters` exists: with peft's own switching the student is frozen when the backward comes."""
    setup = make("distar", training="lora")
    unet, drawn = setup.trio.student.unet, train_distill.draw_batch(setup, 0, STUDENT)
    x0 = train_distill.sample_rows(setup, drawn, ROWS).x0
    set_adapter(unet, "assistant")
    x0.sum().backward()
    assert all(p.grad is None for p in setup.trio.student.trained_parameters().values())


def test_a_student_of_its_own_start_has_a_network_of_its_own(make, folder, tmp_path):
    losses = {}
    other = tiny.build(tmp_path / "other")
    model = models.load(other)
    with torch.no_grad():
        model.unet.conv_out.bias.add_(1.0)
    model.save_pretrained(tmp_path / "student")
    for training, held in (("lora", 2), ("full", 3)):
        setup = make(out=training, model=models.load(tmp_path / "student"), training=training)
        assert len(setup.trio.networks()) == held
        losses[training] = student_loss(setup, train_distill.draw_batch(setup, 0, STUDENT), ROWS)[0]
    torch.testing.assert_close(*losses.values(), atol=1e-4, rtol=1e-4)


# what an update sees


def test_samples_depend_on_seed_batch_prompt_and_place_alone(make):
    setup = make(batch=12)
    drawn = train_distill.draw_batch(setup, 3, STUDENT)
    with torch.no_grad():
        whole = train_distill.sample_rows(setup, drawn, torch.arange(12))
        part = train_distill.sample_rows(setup, drawn, torch.tensor([7, 2]))
    assert sorted(whole.prompts) == sorted(tiny.PROMPTS * 2)
    torch.testing.assert_close(part.x, whole.x[[7, 2]], atol=1e-5, rtol=1e-5)
    assert len(whole.x0.flatten(1).unique(dim=0)) == 12, "a prompt that comes twice gets other noise"
    again = train_distill.draw_batch(make(out="b", batch=12), 3, STUDENT)
    assert torch.equal(again.prompts, drawn.prompts) and torch.equal(again.sigma, drawn.sigma)
    other = train_distill.draw_batch(setup, 4, STUDENT)
    assert not torch.equal(other.prompts, drawn.prompts) and not torch.equal(other.sigma, drawn.sigma)


def test_times_are_those_asked_for(make):
    setup = make(batch=4000, time_range=(20, 980))
    levels = setup.model.schedule
    t = levels.nearest_t(train_distill.draw_batch(setup, 0, STUDENT).sigma)
    assert (t.min(), t.max()) == (20, 980) and abs(t.double().mean() - 500) < 3 * 277 / math.sqrt(4000)
    every = levels.nearest_t(train_distill.draw_batch(setup, 0, ASSISTANT).sigma)
    assert every.min() < 10 and every.max() > 990
    setup = make(out="log", batch=4000, times="log-normal", log_sigma=(-2.0, 2.0))
    log_sigma = train_distill.draw_batch(setup, 0, STUDENT).sigma.log()
    low, high = math.log(levels.sigma(0)), math.log(levels.sigma(999))
    assert low <= log_sigma.min() and log_sigma.max() <= high
    normal = torch.distributions.Normal(-2.0, 2.0)
    inside = normal.cdf(torch.tensor(high)) - normal.cdf(torch.tensor(low))
    for quantile in (0.1, 0.5, 0.9):
        expected = normal.icdf(normal.cdf(torch.tensor(low)) + quantile * inside)
        share = (log_sigma < expected).double().mean()
        assert abs(share - quantile) < 4 * math.sqrt(quantile * (1 - quantile) / 4000)


@pytest.mark.parametrize("form", [{"time": 399}, {"time": None, "sigma_init": 2.5}])
def test_the_one_step_generator_is_what_the_sampler_gives(make, form):
    setup = make(**form)
    drawn = train_distill.draw_batch(setup, 2, STUDENT)
    with torch.no_grad():
        some = train_distill.sample_rows(setup, drawn, ROWS)
        z = seeded_noise(0, 2, ROWS * len(tiny.PROMPTS) + drawn.prompts, setup.model.latent_shape, 2)
        final = rollout(setup.model, setup.model.sampler(1), some.cond, z).final
        torch.testing.assert_close(some.x0, final)
        if form["time"]:
            eps = setup.model.predict_eps(z[:, 0], 399, some.cond)
            ab = setup.model.schedule.alpha_bar[399].item()
            expected = (z[:, 0] - (1 - ab) ** 0.5 * eps) / ab**0.5
        else:
            t = int(setup.model.schedule.nearest_t(2.5))
            assert setup.model.timesteps == (t,)
            sigma = setup.model.schedule.sigma(t)  # 2.5, as near as the levels allow
            assert sigma == pytest.approx(2.5, rel=0.01)
            expected = edm.denoise(setup.model, sigma * z[:, 0], sigma, some.cond)
    torch.testing.assert_close(some.x0, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(some.x - some.x0, drawn.sigma.float().view(-1, 1, 1, 1) * z[:, 1], atol=2e-3, rtol=1e-3)


def test_guidance_by_reward_is_guidance_in_the_reference_for_the_kl(make):
    """DI++ Thm 3.3; and not so for DI*."""
    for method, same in (("dipp", True), ("distar", False)):
        weighting = {"weighting": "denoiser", "training": "full"}
        one = make(method, f"{method}-a", guidance=1.5, guidance_by="reward", **weighting)
        two = make(method, f"{method}-b", guidance=2.5, guidance_by="reference", **weighting)
        for setup in (one, two):
            nudge(setup.trio.assistant)
        a, b = student_gradient(one)[1], student_gradient(two)[1]
        scale = b.abs().max()
        assert ((a - b).abs().max() < 1e-4 * scale) == same


def test_guidance_as_a_reward_pulls_as_its_divergence_is_normalised(make):
    """Beside the pseudo-Huber distance each sample is pulled by alpha_cfg, beside the squared one by the gap itself."""
    for distance in ("pseudo-huber", "squared"):
        setup = make("sim", distance, distance=distance, weighting="denoiser", guidance=1.5, guidance_by="reward")
        setup = replace(setup, config=replace(setup.config, reduction="sum"))
        some = train_distill.sample_rows(setup, train_distill.draw_batch(setup, 0, STUDENT), ROWS)
        x0 = some.x0.detach().requires_grad_()
        given = replace(some, x0=x0, x=x0 + (some.x - some.x0).detach())
        conditional, unconditional = train_distill.teacher_predictions(setup, given, given.x.detach())
        gap = (conditional - unconditional).flatten(1)

        def pull(setup, given=given, x0=x0):
            return torch.autograd.grad(train_distill.student_minibatch_loss(setup, given, 0)[0] * len(x0), x0)[
                0
            ].flatten(1)

        alone = replace(setup, config=replace(setup.config, guidance=0.0))
        found = pull(setup) - pull(alone)
        expected = -1.5 * (gap / gap.norm(dim=1, keepdim=True) if distance == "pseudo-huber" else gap)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        assert (gap.norm(dim=1) - 1).abs().max() > 0.1, "or the two forms cannot be told apart"


def test_the_gradient_of_a_score_divergence_comes_through_both_networks(make):
    """DI* Eq. 3.4 with the squared distance, written out: its gradient in the sample, with x = x_0 + sigma eps."""
    setup = make("sim", distance="squared", weighting="denoiser", guidance=1.0)
    trio = setup.trio
    nudge(trio.assistant)
    some = train_distill.sample_rows(setup, train_distill.draw_batch(setup, 0, STUDENT), ROWS)
    x0 = some.x0.detach().requires_grad_()

    def gradient(keep_x):
        x = x0 + (some.x - some.x0).detach()
        x = x if keep_x else x.detach()
        assistant, teacher = (edm.denoise(m, x, some.sigma, some.cond) for m in (trio.assistant, trio.teacher))
        loss = -((assistant - teacher) * (assistant - x0)).flatten(1).sum(1).mean()
        return torch.autograd.grad(loss, x0)[0]

    given = train_distill.Samples(some.prompts, some.cond, x0, x0 + (some.x - some.x0).detach(), some.sigma)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_distill, "sample_rows", lambda *_: given)
        loss, _ = student_loss(setup, train_distill.draw_batch(setup, 0, STUDENT), ROWS)
    (found,) = torch.autograd.grad(loss, x0)
    torch.testing.assert_close(found, gradient(keep_x=True), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(found, gradient(keep_x=False), atol=1e-2)


def test_micro_batches_do_not_change_an_update(make):
    for method, weighting in (("dipp", "inverse-gap"), ("distar", "score")):
        whole = make(method, f"{method}-whole", weighting=weighting)
        parts = make(method, f"{method}-parts", weighting=weighting, micro_batch=1)
        for update in (train_distill.assistant_update, train_distill.student_update):
            a, b = update(whole, 0), update(parts, 0)
            for name, value in a.items():
                assert b[name].item() == pytest.approx(value.item(), rel=1e-3), name


def test_a_saturated_value_has_a_gradient_if_asked(loaded):
    latents = (8 * torch.randn(1, *loaded.latent_shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    plain, through = loaded.decode(latents), loaded.decode(latents, through_clamp=True)
    torch.testing.assert_close(through, plain)
    saturated = (plain == 0) | (plain == 1)
    assert saturated.any()
    (of_plain,) = torch.autograd.grad(plain[saturated].sum(), latents)
    (of_through,) = torch.autograd.grad(through[saturated].sum(), latents)
    assert not of_plain.any() and of_through.any()


# where it goes


def test_the_assistant_learns(make):
    setup = make(updates=1, assistant_updates=30, assistant_lr=3e-3, lr=1e-9)
    drawn = train_distill.draw_batch(setup, 0, ASSISTANT)

    def loss():
        with torch.no_grad(), setup.run.alone(setup.run.learners[STUDENT]):
            some = train_distill.sample_rows(setup, drawn, ROWS)
            denoised = edm.denoise(setup.trio.assistant, some.x, some.sigma, some.cond)
            return ((denoised - some.x0).flatten(1).square().sum(1) / some.sigma**2).mean()

    before = loss()
    list(train_distill.train(setup))
    assert loss() < 0.8 * before


@pytest.mark.parametrize("method", ["diff-instruct", "sim"])
def test_the_student_moves_to_the_teacher(make, loaded, method):
    """Exact: student, assistant and teacher are Gaussian, and so is what the student generates."""
    target = (0.7, 0.5)
    setup = make(
        method,
        model=gaussian(loaded, *target),
        teacher=gaussian(loaded, *target),
        **{"training": "full", "updates": 80, "batch": 8, "lr": 3e-2, "assistant_lr": 4e-2, "assistant_updates": 3},
        **{"guidance": 1.0, "warmup": 20, "betas": (0.5, 0.9), "save_every": 1000, "ema": 0.9, "ema_ramp": None},
    )
    student = setup.trio.student.unet
    with torch.no_grad():
        student.mean.fill_(-0.5)
        student.log_std.fill_(math.log(0.5))
    start = kl(*student.generated(399), *target)
    list(train_distill.train(setup))
    assert start > 1
    assert kl(*student.generated(399), *target) < 0.05 * start
    # The assistant has become exact for what the student generates.
    mean, std = student.generated(399)
    assert (
        abs(setup.trio.assistant.unet.mean - mean) < 0.15 and abs(setup.trio.assistant.unet.log_std - std.log()) < 0.3
    )


@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.loop == "distill" and "reward" in method.needs]
)
def test_a_larger_reward_scale_moves_the_reward_further(make, loaded, method):
    means = []
    for scale in (0.0, 300.0, 3000.0):
        setup = make(
            method,
            f"{scale}",
            scorer=lambda images, prompts: images.mean((1, 2, 3)),
            model=gaussian(loaded, 0.0, 0.8),
            teacher=gaussian(loaded, 0.0, 0.8),
            **{"training": "full", "updates": 10, "batch": 4, "lr": 5e-2, "assistant_lr": 5e-2, "guidance": 1.0},
            **{"reward_scale": scale, "ema": 0.0, "save_every": 1000, "weighting": "denoiser"},
        )
        list(train_distill.train(setup))
        with torch.no_grad():
            some = train_distill.sample_rows(setup, train_distill.draw_batch(setup, 999, STUDENT), ROWS)
            means.append(setup.model.decode(some.x0).mean().item())
    assert means[0] < means[1] < means[2]


# checkpoints


@pytest.mark.parametrize("training", ["full", "lora"])
def test_a_resumed_run_has_the_same_bits(make, training):
    settings = {"training": training, "lr": 1e-3, "assistant_lr": 1e-3, "warmup": 1}
    whole = make(out="whole", **settings)
    records = list(train_distill.train(whole))
    stopped = make(out="stopped", **settings)
    assert list(itertools.islice(train_distill.train(stopped), 3)) == records[:3]
    resumed = make(out="stopped", **settings, resume=True)
    assert resumed.run.start == 2
    list(train_distill.train(resumed))
    for one, other in zip(resumed.run.learners, whole.run.learners, strict=True):
        assert torch.equal(trained(one.model), trained(other.model))
    assert resumed.run.history == whole.run.history


@pytest.mark.parametrize("training", ["full", "lora"])
def test_what_is_left_is_the_average_and_samples_in_one_step(make, folder, tmp_path, training):
    setup = make(training=training, lr=1e-2, ema=0.9)
    lives = []
    for _ in train_distill.train(setup):
        lives.append(trained(setup.model) if len(lives) < 3 else None)
    checkpoint = last_checkpoint(setup.config.out)
    again = models.load(folder)
    again.load_adapter(checkpoint)
    assert again.timesteps == (399,) and again.kernel == "renoise"
    assert torch.equal(trained(again), trained(setup.model)), "the run ends with its average in the model"
    assert not torch.equal(trained(again), lives[2])
    again.save_pretrained(tmp_path / "pipeline")
    pipeline = models.load(tmp_path / "pipeline")
    noise = seeded_noise(0, 0, [0, 1], again.latent_shape, 2)
    samples = []
    for model in (setup.model, again, pipeline):
        cond = model.encode_prompts(tiny.PROMPTS[:2])
        samples.append(rollout(model, model.sampler(1), cond, noise).final)
    for some in samples[1:]:
        torch.testing.assert_close(some, samples[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="sampled at t = 399 only"):
        pipeline.sampler(4)
    following = make(out="next", start=setup.config.out, time=None, training=training)
    assert following.model.timesteps == (399,) and torch.equal(trained(following.model), trained(again))


def test_a_damaged_note_on_sampling_is_refused(folder, tmp_path):
    path = tiny.build(tmp_path / "damaged")
    (path / "sampling.json").write_text('{"kernel": "renoise"}')
    with pytest.raises(ValueError, match="sampling.json is damaged: expected a kernel, its timesteps"):
        models.load(path)


def test_the_average_follows_as_it_says(loaded):
    model = gaussian(loaded, 0.0, 1.0)
    model.train_all_weights(reference=False)
    average = Average(model, 0.9)
    expected = 0.0
    for update in range(5):
        with torch.no_grad():
            model.unet.mean.fill_(float(update))
        average.update(update)
        expected = 0.9 * expected + 0.1 * update
    assert average.weights["mean"].item() == pytest.approx(expected)
    average.finish()
    assert model.unet.mean.item() == pytest.approx(expected)
    ramp = Average(model, 0.999, ramp=0.05)
    assert ramp.decay_at(0) == 0 and ramp.decay_at(20) == 0.5 and ramp.decay_at(10**6) == 0.999


# settings


def test_full_scale_recipes_are_the_papers():
    """[DI++ Table 2, DI* Sec. 5]"""
    make = lambda method: make_config(train_distill.DistillConfig, method, "full")  # noqa: E731
    first, second, third = make("diff-instruct"), make("dipp"), make("distar")
    for c, size in ((first, 1024), (second, 256)):
        assert (c.lr, c.assistant_lr, c.batch, c.betas, c.guidance) == (5e-6, 5e-6, size, (0.0, 0.999), 4.5)
        assert (c.model, c.times, c.log_sigma, c.assistant_weighting) == ("pixart-alpha", "log-normal", (-2, 2), "edm")
    assert first.sigma_init == 2.5 and second.ema == 0.95 and second.ema_ramp is None
    assert (third.model, third.teacher, third.reward) == ("sdxl-dmd2-1step", "sdxl", "pickscore")
    assert (third.reward_scale, third.guidance, third.guidance_by) == (100, 7.5, "reference")


REFUSED = {
    "steps = 4, kernel = None: a one-step generator has 1": {"steps": 4},
    "time = 399 and sigma_init = 2.5: give one, and None for the other": {"sigma_init": 2.5},
    "is no one-step generator yet: give --time, or --sigma-init, or --start": {"time": None},
    "sigma_init = 500: .* has levels 0.0292 to 14.6": {"time": None, "sigma_init": 500},
    "t = 1000: expected|t = 1000 is outside this schedule": {"time": 1000},
    "time_range = \\(20, 1000\\): .* has times 0 to 999": {"time_range": (20, 1000)},
    "time_range = \\(30, 20\\): expected a first time": {"time_range": (30, 20)},
    "ema = 1: expected 0 to less than 1": {"ema": 1},
    "weighting = 'dmd2' with distar: choose from denoiser, score": {"method": "distar", "weighting": "dmd2"},
    "c = None: the pseudo-Huber distance needs a positive number": {"method": "distar", "c": None},
    "diff-instruct has no reward: .* or use --method dipp": {"method": "diff-instruct", "reward_scale": 1.0},
    "reward_scale = 1.0 without a reward: name one": {"reward": None},
    "assistant_updates = 0: expected more than 0": {"assistant_updates": 0},
    "betas = \\(0.9, 1.0\\): expected two numbers from 0": {"betas": (0.9, 1.0)},
    "log_sigma = \\(0, 0\\): expected a mean and a positive std": {"log_sigma": (0, 0)},
    "guidance = -1: expected 0 or more": {"guidance": -1},
    "unknown method 'sdpo': choose from diff-instruct, dipp, sim, distar": {"method": "sdpo"},
}


@pytest.mark.parametrize("told", REFUSED)
def test_bad_settings_are_refused_before_compute(make, told, loaded):
    calls = []
    hook = loaded.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    given = dict(REFUSED[told])
    with pytest.raises(ValueError, match=told):
        make(given.pop("method", "dipp"), teacher=loaded.with_network(loaded.unet), **given)
    hook.remove()
    assert not calls


def test_a_reward_without_gradient_and_a_teacher_of_another_kind_are_refused(make, loaded, tmp_path, capsys):
    from fsalign_lib.rewards import JPEGReward

    with pytest.raises(ValueError, match="reward imagereward has no gradient: choose another, or train_online.py"):
        make(scorer=JPEGReward(1.0))
    other = models.load(tiny.build(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="work on different latents: choose two with the same autoencoder"):
        make(model=loaded.with_network(loaded.unet), teacher=other)
    with pytest.raises(FileNotFoundError, match="no trained weights in"):
        make(start=tmp_path / "nowhere")
    with pytest.raises(SystemExit):
        train_distill.main(["--method", "dipp", "--model", "pocket-teachr", "--out", str(tmp_path / "run")])
    assert "error: unknown model 'pocket-teachr'" in capsys.readouterr().err


def test_a_start_of_another_form_is_refused(make):
    first = make(out="first", updates=1)
    list(train_distill.train(first))
    with pytest.raises(ValueError, match="the student starts as renoise at t = 399, not renoise at t = 500"):
        make(out="second", start=first.config.out, time=500)


def test_a_run_leaves_its_result(make):
    setup = make(updates=2)
    train_distill.run(setup)
    result = json.loads((setup.config.out / "result.json").read_text())
    assert len(result["history"]) == 2
    assert {"loss", "gradient", "gap", "reward", "assistant_loss", "assistant_gradient"} <= result["history"][0].keys()


def test_of_too_many_prompts_each_batch_is_encoded(make, monkeypatch):
    """DI*'s three million prompts would be a terabyte of embeddings."""
    kept = make(out="kept")
    monkeypatch.setattr(train_distill, "KEPT_PROMPTS", len(tiny.PROMPTS) - 1)
    encoded = make(out="encoded")
    assert encoded.cond is None and kept.cond is not None
    drawn = [
        train_distill.sample_rows(setup, train_distill.draw_batch(setup, 0, STUDENT), ROWS) for setup in (kept, encoded)
    ]
    assert drawn[0].prompts == drawn[1].prompts
    torch.testing.assert_close(drawn[0].x0, drawn[1].x0)
    torch.testing.assert_close(drawn[0].cond, drawn[1].cond)
