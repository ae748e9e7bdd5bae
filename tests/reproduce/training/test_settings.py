"""Every setting of every loop changes the stage that it names, and nothing before it.

A loop is looked at stage by stage: what is drawn, sampled, scored, credited, which rows an update takes, the loss at
nudged weights, the weights after a step. A setting that goes nowhere, or acts too early, is seen.
"""

import copy
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from fsalign_lib.models import load as models
from reproduce import train_distill, train_offline, train_online
from reproduce.recipes import make_config
from reproduce.train_distill import ASSISTANT, STUDENT
from tests import tiny
from tests.by_hand import nudge

TWO = "a cat\na dog\n"


@pytest.fixture(scope="module")
def world(folder, pair_folder, tmp_path_factory):
    """What settings name: models, prompts, pictures."""
    root = tmp_path_factory.mktemp("world")
    (root / "two.txt").write_text(TWO)
    (root / "others.txt").write_text("a bird\na cow\n")
    prior = root / "prior"
    prior.mkdir()
    for number in range(2):
        tiny.picture(prior / f"{number}.png", number)
        (prior / f"{number}.txt").write_text("a zebra")
    other = tiny.build(root / "other", seed=5)
    return {"folder": folder, "pairs": pair_folder, "prior": prior, "root": root, "other": other}


def prepare(loop, config, *networks):
    """With rewards that need no weights in place of those named."""
    with pytest.MonkeyPatch.context() as patch:
        rewards = {"aesthetic": tiny.brightness}
        patch.setattr(loop, "load_reward", lambda name, scale, dtype: rewards.get(name, tiny.taste), raising=False)
        return loop.prepare(config, *networks)


def online(world, network, out, method, **overrides):
    small = {"model": str(world["folder"]), "prompts": str(world["root"] / "two.txt"), "rounds": 2, "pairs": 2}
    small |= {"minibatch": 2, "steps": 3, "training": "lora", "rank": 2, "save_every": 9, "micro_batch": None}
    small |= {"lr": 1e-3, "buffer": 4, "min_count": 2}
    config = make_config(train_online.OnlineConfig, method, out=out, **(small | overrides))
    return prepare(train_online, config, network)


def offline(world, network, out, method, **overrides):
    small = {"model": str(world["folder"]), "pairs": world["pairs"], "prior": None, "updates": 2, "batch": 2}
    small |= {"save_every": 9, "training": "lora", "rank": 2, "steps": 3, "lr": 1e-3}
    config = make_config(train_offline.OfflineConfig, method, out=out, **(small | overrides))
    return prepare(train_offline, config, network)


def distill(world, network, out, method, **overrides):
    small = {"model": str(world["folder"]), "teacher": str(world["folder"]), "prompts": str(world["root"] / "two.txt")}
    small |= {"updates": 2, "batch": 2, "rank": 2, "start": None, "time": 399, "sigma_init": None, "warmup": 0}
    small |= {"assistant_updates": 1, "training": "lora", "save_every": 9, "times": "uniform", "lr": 1e-3}
    small |= {"assistant_lr": 1e-3, "ema": 0.5, "ema_ramp": None, "guidance": 1.5}
    config = make_config(train_distill.DistillConfig, method, out=out, **(small | overrides))
    shared = [] if {"model", "teacher"} & overrides.keys() else [network]  # read once where it is the teacher, too
    return prepare(train_distill, config, network, *shared)


def files(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def learned(model):
    return {name: p.detach().clone() for name, p in model.trained_parameters().items()}


def restore(model, tensors):
    with torch.no_grad():
        for name, p in model.trained_parameters().items():
            p.copy_(tensors[name])


def end(setup, loop, *others):
    """The last stages of all loops: the weights after training, and what is on disk."""
    records = list(loop.train(setup))
    yield "step", [learned(model) for model in (setup.model, *others)]
    yield "records", records
    yield "files", files(setup.config.out)


def online_stages(setup):
    sampled, sample_some = [], train_online.sample_some
    yield "weights", {name: p.shape for name, p in setup.model.trained_parameters().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_online, "sample_some", lambda *args: sampled.append(sample_some(*args)) or sampled[-1])
        pairs = [train_online.sample_pairs(setup, number) for number in range(2)]
    yield "prompts", [p.prompts for p in pairs]
    yield "samples", [some[0] for some in sampled]
    yield "log-probs", [some[1] for some in sampled]
    yield "rewards", [some[2:] for some in sampled]
    yield "credit", [p.advantage for p in pairs]
    yield "updates", [list(train_online.minibatches(setup, pairs[0], epoch)) for epoch in range(setup.config.epochs)]
    ref, before = train_online.reference_log_probs(setup, pairs[0]), learned(setup.model)
    nudge(setup.model, 0.1)
    which, steps = torch.arange(2), torch.arange(2).expand(2, -1)
    yield "loss", train_online.minibatch_loss(setup, pairs[0], ref, which, steps)
    restore(setup.model, before)
    yield from end(setup, train_online)


def offline_stages(setup):
    yield "weights", {name: p.shape for name, p in setup.model.trained_parameters().items()}
    rows = torch.tensor([1, 0])
    yield "pictures", (setup.prompts, setup.latents[rows])
    yield "noised", train_offline.noised(setup, 1, rows)
    before = learned(setup.model)
    nudge(setup.model, 0.1)
    yield "loss", train_offline.batch_loss(setup, 1, rows)
    restore(setup.model, before)
    yield from end(setup, train_offline)


def distill_stages(setup):
    yield "weights", {name: p.shape for name, p in setup.model.trained_parameters().items()}
    batches = [train_distill.draw_batch(setup, 3, which) for which in (STUDENT, ASSISTANT)]
    yield "assistant's batch", (batches[1].prompts, batches[1].sigma)
    yield "student's batch", (batches[0].prompts, batches[0].sigma)
    both = setup.model, setup.trio.assistant
    before = [learned(model) for model in both]
    rows = torch.arange(2)
    samples = train_distill.sample_rows(setup, batches[0], rows)
    yield "samples", (samples.prompts, samples.x0, samples.x)
    for seed, model in enumerate(both):
        nudge(model, 0.1, seed)
    samples = train_distill.sample_rows(setup, batches[0], rows)
    yield "assistant's loss", train_distill.assistant_minibatch_loss(setup, samples)
    loss, _ = train_distill.student_minibatch_loss(setup, samples, 3)
    gradient = torch.autograd.grad(loss, list(setup.model.trained_parameters().values()))
    yield "student's loss", (loss, gradient)
    for model, tensors in zip(both, before, strict=True):
        restore(model, tensors)
    yield from end(setup, train_distill, setup.trio.assistant)


LOOPS = {
    "online": (online, online_stages, train_online.OnlineConfig),
    "offline": (offline, offline_stages, train_offline.OfflineConfig),
    "distill": (distill, distill_stages, train_distill.DistillConfig),
}
# loop -> field -> (method, what is set in both, the other value, the first stage that it changes). A function of the
# world makes a value that is a file.
SETTINGS = {
    "online": {
        "training": ("ddpo", {}, "full", "weights"),
        "rank": ("ddpo", {}, 1, "weights"),
        "alpha": ("ddpo", {}, 7, "loss"),
        "model": ("ddpo", {}, lambda world: str(world["other"]), "samples"),
        "prompts": ("ddpo", {}, lambda world: str(world["root"] / "others.txt"), "prompts"),
        "seed": ("ddpo", {}, 1, "prompts"),
        "pairs": ("ddpo", {}, 4, "prompts"),
        "kernel": ("ddpo", {}, "euler-ancestral", "samples"),
        "steps": ("ddpo", {}, 4, "samples"),
        "mixed_steps": ("ddpo", {}, (2, 4), "samples"),
        "shared_start": ("sdpo", {}, False, "samples"),
        "reduction": ("ddpo", {}, "sum", "log-probs"),
        "reward": ("ddpo", {"reward": "pickscore"}, "aesthetic", "rewards"),
        "queries": ("sdpo", {}, "copy", "rewards"),
        "gamma": ("sdpo", {}, 0.3, "credit"),
        "normalize": ("sdpo", {}, "global", "credit"),
        "buffer": ("ddpo", {}, 2, "credit"),
        "min_count": ("ddpo", {}, 4, "credit"),
        "advantage_clip": ("ddpo", {}, 0.1, "credit"),
        "minibatch": ("ddpo", {}, 1, "updates"),
        "epochs": ("ddpo", {}, 2, "updates"),
        "updates": ("sdpo", {}, "sequential", "updates"),
        "last_step": ("ddpo", {}, False, "updates"),
        "sum_steps": ("pso-online", {"sum_steps": "outside"}, "inside", "updates"),
        "beta": ("pso-online", {}, 0.3, "loss"),
        "clamp": ("pso-online", {}, 1e-4, "loss"),
        "clip": ("ddpo", {}, 1e-6, "loss"),
        "eta": ("rebel", {}, 0.3, "loss"),
        "decay": ("sdpo", {}, 0.5, "loss"),
        "decay_order": ("sdpo", {}, "reverse", "loss"),
        "mixed_precision": ("ddpo", {"clip": None}, "bf16", "samples"),
        "rounds": ("ddpo", {}, 3, "step"),
        "snapshot_every": ("ddpo", {}, 1, "files"),
    },
    "offline": {
        "training": ("pso-offline", {}, "full", "weights"),
        "rank": ("pso-offline", {}, 1, "weights"),
        "pairs": ("sft", {}, lambda world: world["prior"], "pictures"),
        "model": ("pso-offline", {}, lambda world: str(world["other"]), "pictures"),
        "seed": ("pso-offline", {}, 1, "noised"),
        "steps": ("pso-offline", {}, 4, "noised"),
        "times": ("pso-offline", {}, "uniform", "noised"),
        "shared_noise": ("pso-offline", {"shared_noise": False}, True, "noised"),
        "prior": ("dreambooth", {}, lambda world: world["prior"], "noised"),
        "kernel": ("pso", {}, "ddim", "noised"),
        "alpha": ("pso-offline", {}, 7, "loss"),
        "beta": ("pso-offline", {}, 0.3, "loss"),
        "reduction": ("pso-offline", {"reduction": "mean"}, "sum", "loss"),
        "sum_steps": ("pso-offline", {"sum_steps": "outside"}, "inside", "loss"),
        "prior_weight": ("dreambooth", {"prior": lambda world: world["prior"]}, 0.3, "loss"),
        "eq5_weights": ("pso", {}, "exact", "loss"),
        "mixed_precision": ("pso-offline", {}, "bf16", "loss"),
        "updates": ("pso-offline", {}, 3, "step"),
        "batch": ("pso-offline", {}, 4, "step"),
        "halves_every": ("pso", {}, 1, "records"),
        "snapshot_every": ("pso-offline", {}, 1, "files"),
    },
    "distill": {
        "training": ("dipp", {}, "full", "weights"),
        "rank": ("dipp", {}, 1, "weights"),
        "prompts": ("dipp", {}, lambda world: str(world["root"] / "others.txt"), "samples"),
        "seed": ("dipp", {}, 1, "assistant's batch"),
        "batch": ("dipp", {}, 3, "assistant's batch"),
        "times": ("dipp", {}, "log-normal", "assistant's batch"),
        "log_sigma": ("dipp", {"times": "log-normal", "log_sigma": (0.0, 1.0)}, (1.0, 1.0), "assistant's batch"),
        "time_range": ("dipp", {}, (600, 900), "student's batch"),
        "time": ("dipp", {}, 600, "samples"),
        "sigma_init": ("dipp", {"time": None, "sigma_init": 2.5}, 1.0, "samples"),
        "model": ("dipp", {}, lambda world: world["root"] / "moved", "samples"),
        "start": ("dipp", {}, lambda world: world["root"] / "earlier", "samples"),
        "alpha": ("dipp", {}, 7, "assistant's loss"),
        "assistant_weighting": ("dipp", {"assistant_weighting": "eps"}, "edm", "assistant's loss"),
        "reduction": ("dipp", {"reduction": "mean"}, "sum", "assistant's loss"),
        "teacher": ("dipp", {}, lambda world: str(world["root"] / "moved"), "assistant's loss"),
        "mixed_precision": ("dipp", {}, "bf16", "samples"),
        "weighting": ("dipp", {"weighting": "denoiser"}, "dmd2", "student's loss"),
        "distance": ("sim", {}, "squared", "student's loss"),
        "c": ("sim", {}, 9.0, "student's loss"),
        "guidance": ("dipp", {}, 3.0, "student's loss"),
        "guidance_by": ("distar", {"guidance_by": "reference"}, "reward", "student's loss"),
        "reward": ("dipp", {"reward": "pickscore"}, "aesthetic", "student's loss"),
        "reward_scale": ("dipp", {}, 77.0, "student's loss"),
        "through_clamp": ("dipp", {"reward_scale": 1e4}, False, "student's loss"),
        "assistant_updates": ("dipp", {}, 2, "step"),
        "warmup": ("dipp", {}, 1, "step"),
        "ema_ramp": ("dipp", {}, 0.05, "step"),
        "updates": ("dipp", {}, 3, "step"),
        "snapshot_every": ("dipp", {}, 1, "files"),
    },
}
# What another test shows, by its name.
ELSEWHERE = {
    "method": "tests/reproduce/training/test_online_losses.py::test_an_online_loss_is_its_formula",
    "scale": "tests/reproduce/recipes/test_recipes.py::test_every_recipe_is_complete_and_has_sources",
    "out": "tests/reproduce/training/test_run.py::test_a_run_leaves_its_result_and_its_model",
    "resume": "tests/reproduce/training/test_run.py::test_a_resumed_run_has_the_same_bits",
    "tracker": "tests/reproduce/training/test_run.py::test_a_run_leaves_its_result_and_its_model",
    "optimizer": "tests/reproduce/training/test_running_big.py::test_eight_bit_adam_without_its_package",
    "resize": "tests/reproduce/data/test_data.py::test_pictures_of_other_sizes",
    "save_every": "tests/reproduce/training/test_run.py::test_a_resumed_run_has_the_same_bits",
}
# What says how something is computed, and not what.
HOW = {
    "micro_batch": (1, lambda setup: calls(setup, train_online.minibatch_loss)),
    "rollout_batch": (1, lambda setup: calls(setup, train_online.sample_some)),
    "dtype": ("bfloat16", lambda setup: setup.model.dtype),
    "frozen_dtype": ("bfloat16", lambda setup: (setup.model.vae.dtype, setup.model.text.encoder.dtype)),
    "gradient_checkpointing": (True, lambda setup: setup.model.unet.is_gradient_checkpointing),
    "vae_slicing": (True, lambda setup: setup.model.vae.use_slicing),
    "threads": (2, lambda setup: torch.get_num_threads()),
}
# test_training_is_the_updates_written_out and test_a_round_is_the_updates_written_out of each loop
WRITTEN_OUT = {"lr", "assistant_lr", "weight_decay", "betas", "grad_clip", "ema"}
REFUSED = {"distill": {"steps", "kernel"}}  # other values, by test_bad_settings_are_refused_before_compute
OF_OTHER_METHODS = {"distill": {"beta", "sum_steps"}}  # PSO's and REBEL's, as their docstrings say


def calls(setup, function):
    """How often the loop calls it in a round."""
    count = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_online, function.__name__, lambda *args: count.append(1) or function(*args))
        next(train_online.train(setup))
    return len(count)


def alike(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)) and not isinstance(one, torch.Size):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


@pytest.fixture(scope="module")
def moved(world, loaded):
    """A model in the tiny one's place, with other weights; and a run that has trained."""
    with torch.no_grad():
        model = copy.deepcopy(loaded)
        model.unet.conv_out.bias.add_(0.5)
        model.save_pretrained(world["root"] / "moved")
    setup = distill(world, copy.deepcopy(loaded), world["root"] / "earlier", "dipp", updates=1, lr=0.1)
    list(train_distill.train(setup))


@pytest.fixture(scope="module")
def look(world, loaded, moved, tmp_path_factory):
    """The stages of a run one by one, each computed once."""
    looks = {}

    def start(loop, method, given):
        make, stages, _ = LOOPS[loop]
        settings = {name: value(world) if callable(value) else value for name, value in given.items()}
        network = models.load(settings["model"]) if "model" in settings else copy.deepcopy(loaded)
        return stages(make(world, network, tmp_path_factory.mktemp("run") / "out", method, **settings))

    def look(loop, method, given):
        rest, seen = looks.setdefault((loop, method, repr(given)), (start(loop, method, given), []))
        yield from seen
        for stage in rest:
            seen.append(stage)
            yield stage

    return look


@pytest.mark.parametrize("loop,field", [(loop, field) for loop in SETTINGS for field in SETTINGS[loop]])
def test_a_setting_changes_the_stage_that_it_names(loop, field, look):
    method, both, value, first = SETTINGS[loop][field]
    for (name, one), (_, other) in zip(
        look(loop, method, both), look(loop, method, both | {field: value}), strict=False
    ):
        if name == first:
            assert not alike(one, other), f"{field} does not change the {name}"
            return
        assert alike(one, other), f"{field} changes the {name}, before the {first}"
    raise AssertionError(f"{field} changes nothing: no stage is the {first}")


@pytest.mark.parametrize("field", HOW)
def test_a_setting_changes_how_it_is_computed(field, world, loaded, tmp_path):
    value, look = HOW[field]
    threads = torch.get_num_threads()
    try:
        seen = []
        for out, given in (("a", {}), ("b", {field: value})):
            model = None if field.endswith("dtype") else copy.deepcopy(loaded)
            seen.append(look(online(world, model, tmp_path / out, "ddpo", **given)))
        assert seen[0] != seen[1]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("loop", LOOPS)
def test_no_setting_is_forgotten(loop):
    shown = SETTINGS[loop].keys() | ELSEWHERE.keys() | HOW.keys() | WRITTEN_OUT
    shown = shown | REFUSED.get(loop, set()) | OF_OTHER_METHODS.get(loop, set())
    assert {field.name for field in fields(LOOPS[loop][2])} <= shown
    for where in ELSEWHERE.values():
        path, name = where.split("::")
        assert f"def {name}(" in (Path(__file__).parents[3] / path).read_text(), where
