"""No loop over steps or pictures makes the host wait for an accelerator: counted on the meta device, without one."""

from collections import Counter
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsalign_lib.kernels import KERNELS
from fsalign_lib.models.consistency import boundary_scalings
from fsalign_lib.models.load import load
from fsalign_lib.rollout import rollout, step_log_probs
from reproduce import train_distill, train_offline, train_online
from reproduce.evaluation import scores
from reproduce.recipes import make_config
from tests import tiny

aten = torch.ops.aten
OF_UNKNOWN_SIZE = (aten.nonzero, aten.masked_select, aten._unique2, aten.unique_consecutive)


class Waits(TorchDispatchMode):
    """Count what would make the host wait, as if the meta device were a GPU; values that are read back are zeros."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operation._overloadpacket
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        meta, cpu = any(t.is_meta for t in tensors), any(not t.is_meta and t.ndim for t in tensors)
        device = getattr(kwargs.get("device"), "type", None)
        if meta and name is aten._local_scalar_dense:
            self.seen["read back"] += 1
            return False
        if meta and name is aten.equal:
            self.seen["read back"] += 1
            return True
        if meta and name is aten._to_copy and device == "cpu":
            self.seen["read back"] += 1
            return torch.zeros(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
        if meta and name in OF_UNKNOWN_SIZE:
            self.seen["size read back"] += 1
        if not meta and name is aten._to_copy and device == "meta" and not kwargs.get("non_blocking"):
            self.seen["copy"] += 1
        if meta and cpu and name in (aten.index, aten.index_put, aten.index_put_, aten.copy_):
            self.seen["copy"] += 1
        return operation(*args, **kwargs)


def waits(function, *args) -> Counter:
    seen = Counter()

    def counting(make):
        def made(data, *args, device=None, **kwargs):
            there = isinstance(data, torch.Tensor) or str(device) != "meta"
            seen["copy"] += not there
            return make(data, *args, device=device, **kwargs)

        return made

    patches = {name: counting(getattr(torch, name)) for name in ("tensor", "as_tensor")}  # no operation of theirs shows
    with mock.patch.multiple(torch, **patches), Waits() as counted:
        function(*args)
    return +(counted.seen + seen)


class Linear(torch.nn.Module):
    """Take the place of a network, whose operations take long on the meta device."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, device="meta"))

    def forward(self, x, timestep, encoder_hidden_states, return_dict):
        assert timestep.shape == x.shape[:1] and timestep.is_meta and encoder_hidden_states.is_meta
        return (x * self.weight.view(4, 1, 1) + encoder_hidden_states.mean(),)


def on_meta(model):
    model.encode_prompts(tiny.PROMPTS)
    model.null(1)
    model.to("meta")
    model.network = Linear()
    model.decode = lambda latents, through_clamp=False: latents[:, :3] + 0.5
    return model


@pytest.fixture(scope="module")
def model(folder):
    return on_meta(load(folder))


def sampled(model, name, steps, share_first=1):
    kernel = model.sampler(steps, name)
    noise = torch.empty(4, steps + 1, *model.latent_shape, device="meta")
    cond = model.encode_prompts(tiny.PROMPTS[:2]).repeat_interleave(2, 0)
    return kernel, cond, rollout(model, kernel, cond, noise, share_first=share_first)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_neither_a_rollout_nor_the_way_back_waits(model, name, guidance):
    model.guidance_scale = guidance
    for share_first in (1, 2):
        assert not waits(sampled, model, name, 4, share_first)
    kernel, cond, trajectory = sampled(model, name, 4)
    assert not waits(step_log_probs, model, kernel, trajectory, cond, kernel.stochastic_steps)


def test_nor_do_the_network_and_the_decoder(folder):
    model = load(folder)
    model.add_lora(rank=2)
    model.encode_prompts(tiny.PROMPTS)
    model.to("meta")
    assert not waits(sampled, model, "ddim", 1)
    assert not waits(model.decode, torch.empty(2, *model.latent_shape, device="meta"))


def test_what_waits_is_seen():
    """The forms that were here before must be counted."""
    index, x = torch.zeros(3, dtype=torch.long, device="meta"), torch.zeros(3, 2, device="meta")
    assert waits(lambda: [int(i) for i in index])["read back"] == 3
    assert waits(lambda: index.tolist())["read back"] == 1
    assert waits(lambda: torch.equal(x, x))["read back"] == 1
    assert waits(lambda: x.isfinite().all() or None)["read back"] == 1
    assert waits(lambda: x[torch.tensor([0, 1])])["copy"] == 1
    assert waits(lambda: torch.ones(2).to("meta"))["copy"] == 1
    assert waits(lambda: torch.as_tensor(3, device="meta"))["copy"] == 1
    with pytest.raises(NotImplementedError), Waits():
        index.unique()


class OnMeta:
    """Stand in for the run: one process."""

    def share(self, rows):
        return rows

    gather = share


def moved(setup):
    """Move a prepared run to the meta device."""
    trio = getattr(setup, "trio", None)
    for model in (trio.student, trio.assistant, trio.teacher) if trio else (setup.model,):
        on_meta(model)
    setup.cond, setup.run = setup.cond.to("meta"), OnMeta()
    return setup


@pytest.mark.parametrize("queries", ["final", "adaptive", "random"])
def test_sampling_a_round_waits_as_often_for_more_steps_and_pictures(online, queries):
    def of(pairs, steps):
        given = {"queries": queries, "normalize": "step-prompt", "shared_start": True, "kernel": "ddim"}
        given["reward"] = tiny.brightness  # the fixture's own looks at its prompts, on the CPU
        setup = moved(online(out=f"{pairs}", method="sdpo", pairs=pairs, minibatch=pairs, steps=steps, **given))
        rows = torch.arange(pairs)
        return waits(train_online.sample_some, setup, setup.kernel, 0, rows, rows)

    assert of(2, 4) == of(6, 8) == Counter({"read back": 1})  # whether the rewards are finite


@pytest.mark.parametrize("method", ["pso-online", "sdpo", "ddpo", "d3po", "rebel"])
def test_an_update_waits_as_often_for_more_steps_and_pictures(online, method):
    setup = moved(online(method=method, kernel="ddim", steps=6, normalize="prompt", queries="final"))
    setup.advantages = None

    def of(pairs, steps):
        like = torch.zeros(pairs, 2, 6, device="meta")
        states = torch.zeros(pairs, 2, 7, *setup.model.latent_shape, device="meta")
        recorded = train_online.Pairs(
            0, setup.kernel, tiny.PROMPTS[:pairs], setup.cond[:pairs], states, like, like[..., 0], like, 0
        )
        which, steps = torch.arange(pairs), torch.arange(steps).expand(pairs, -1)
        loss = lambda: train_online.minibatch_loss(setup, recorded, like, which, steps)[0].backward()  # noqa: E731
        return waits(loss)

    assert of(2, 1) == of(6, 3) == Counter({"read back": 1})  # whether the log-probs are finite


def test_distillation_waits_as_often_for_more_pictures(folder, prompts_file, tmp_path):
    config = make_config(
        train_distill.DistillConfig, "distar", out=tmp_path, model=str(folder), teacher=str(folder), start=None,
        prompts=prompts_file, time=399, batch=6, reward="pickscore", reward_scale=1.0,
    )  # fmt: skip
    setup = moved(train_distill.prepare(config, reward=tiny.brightness))

    def of(rows):
        batch = train_distill.draw_batch(setup, 0, train_distill.STUDENT)
        samples = train_distill.sample_rows(setup, batch, torch.arange(rows))
        train_distill.student_minibatch_loss(setup, samples, 0)[0].backward()
        train_distill.assistant_minibatch_loss(setup, samples)[0]

    # Whether the teacher's prediction and the rewards are finite.
    assert waits(of, 2) == waits(of, 6) == Counter({"read back": 2})


@pytest.mark.parametrize("method", ["pso-offline", "diffusion-dpo"])
def test_an_offline_update_waits_as_often_for_more_pictures(offline, method):
    setup = moved(offline(method=method))
    of = lambda pairs: waits(lambda: train_offline.batch_loss(setup, 0, torch.arange(pairs))[0].backward())  # noqa: E731
    assert of(1) == of(4) == Counter({"read back": 1})  # whether the errors are finite


def test_an_evaluation_never_waits_while_it_samples(model):
    model.guidance_scale = 1.0
    assert not waits(scores.sample, model, None, 4, tiny.PROMPTS[:3], range(2))


def test_a_consistency_model_never_waits():
    x = torch.zeros(2, 4, 8, 8, device="meta")
    assert not waits(boundary_scalings, 999, 10.0, x)
    assert not waits(boundary_scalings, torch.zeros(2, dtype=torch.long, device="meta"), 10.0, x)
