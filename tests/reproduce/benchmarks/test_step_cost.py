"""The benchmark runs, and both sides of each ratio make the network calls that its docstring counts. No time is held
to anything here: a busy machine would decide."""

import json

import pytest
import torch

from reproduce import train_online
from reproduce.benchmarks import step_cost
from tests import tiny

P = 3


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tiny.build(tmp_path_factory.mktemp("tiny"))
    given = {"model": str(folder), "teacher": str(folder)}
    return step_cost.prepare(step_cost.CostConfig(**given, pairs=P, steps=4, repetitions=2))


@pytest.fixture(params=step_cost.ONLINE)
def setup(bench, request):
    return bench.setups[request.param]


@pytest.fixture
def calls(setup):
    """(which, rows, with gradient) of each network call."""
    made, model = [], setup.model

    def count(which):
        return lambda module, args: made.append((which, len(args[0]), torch.is_grad_enabled()))

    hooks = [model.unet.register_forward_pre_hook(count("policy"))]
    if model.frozen_copy is not None:
        hooks.append(model.frozen_copy.register_forward_pre_hook(count("reference")))
    hooks.append(model.vae.decoder.register_forward_pre_hook(count("decode")))
    yield made
    for hook in hooks:
        hook.remove()


def test_both_sides_of_a_rollout_make_the_same_calls(setup, calls):
    pairs = train_online.sample_pairs(setup, 0)
    loop = list(calls)
    calls.clear()
    step_cost.bare_rollout(setup, pairs.cond.repeat_interleave(2, 0), pairs.queries)
    first, decoded = {"pso-online": (2 * P, 2 * P), "sdpo": (P, 5 * P)}[setup.config.method]
    expected = [("policy", first, False)] + [("policy", 2 * P, False)] * 3 + [("decode", decoded, False)]
    assert calls == loop == expected


def test_both_sides_of_the_updates_make_the_same_calls(setup, calls):
    pairs = train_online.sample_pairs(setup, 0)
    inputs = step_cost.calls(setup, pairs)
    calls.clear()
    weight = setup.run.parameters[1]
    before = weight.detach().clone()
    step_cost.bare_updates(setup, inputs)
    assert torch.equal(weight, before), "the bare calls learn nothing"
    bare = list(calls)
    calls.clear()
    step_cost.updates(setup, pairs)
    expected = {
        "pso-online": [("reference", 6 * P, False), ("policy", 6 * P, True)],
        "sdpo": [("policy", 2 * P, True)] * 4,
    }
    assert calls == bare == expected[setup.config.method]
    assert not torch.equal(weight, before), "AdamW's step is part of the update"


def test_the_inputs_of_both_sides_agree(setup, monkeypatch):
    """Same times and conditions, row by row; only the states differ, whose values cost nothing."""
    seen = []
    predict = setup.model._predict
    monkeypatch.setattr(setup.model, "_predict", lambda x, t, cond: seen.append((x, t, cond)) or predict(x, t, cond))
    pairs = train_online.sample_pairs(setup, 0)
    inputs = step_cost.calls(setup, pairs)
    seen.clear()
    step_cost.updates(setup, pairs)
    for loop, bare in zip(seen[-len(inputs) :], inputs, strict=True):
        assert loop[0].shape == bare[0].shape and loop[0].dtype == bare[0].dtype
        assert torch.equal(loop[1], bare[1]) and torch.equal(loop[2], bare[2])


@pytest.mark.parametrize("method", step_cost.DISTILL)
def test_both_sides_of_a_distillation_make_the_same_calls(bench, method):
    """(which, rows, weights that learn, whether the output has a graph) of each call, in their order."""
    setup, made = bench.setups[method], []
    trio = setup.trio
    networks = {"student": trio.student.unet, "assistant": trio.assistant.unet, "teacher": trio.teacher.unet}
    networks["decode"] = setup.model.vae.decoder

    def count(which):
        def hook(module, args, kwargs, out):
            learns = any(p.requires_grad for p in module.parameters()) and torch.is_grad_enabled()
            out = out[0] if isinstance(out, tuple) else out
            made.append((which, len(args[0] if args else kwargs["sample"]), learns, out.requires_grad))

        return hook

    hooks = [net.register_forward_hook(count(name), with_kwargs=True) for name, net in networks.items()]
    before = [next(net.parameters()).detach().clone() for net in networks.values()]
    step_cost.bare_distill_update(setup)
    after = [next(net.parameters()) for net in networks.values()]
    assert all(map(torch.equal, before, after)), "the bare calls learn nothing"
    bare = list(made)
    made.clear()
    step_cost.distill_update(setup)
    for hook in hooks:
        hook.remove()
    graph = method == "distar"
    follow = [("student", P, False, False), ("assistant", P, True, True)]
    match = [("student", P, True, True), ("assistant", P, False, graph), ("teacher", 2 * P, False, graph)]
    expected = follow * setup.config.assistant_updates + match + [("decode", P, False, True)]
    assert made == bare == expected
    assert not torch.equal(before[0], next(trio.student.unet.parameters())), "AdamW's step is part of the update"


@pytest.mark.slow
def test_it_prints_all_ratios_with_their_spread(tmp_path, capsys):
    folder = tiny.build(tmp_path / "tiny")
    given = ["--model", str(folder), "--teacher", str(folder)]
    out = tmp_path / "found.json"
    step_cost.main([*given, "--pairs", "2", "--repetitions", "2", "--steps", "3", "--out", str(out)])
    title, *lines = capsys.readouterr().out.splitlines()
    assert "2 pairs, 2 repetitions" in title and len(lines) == 6
    parts = [(method, part) for method in step_cost.ONLINE for part in ("update", "rollout")]
    for line, (method, part) in zip(lines, parts + [(m, "update") for m in step_cost.DISTILL], strict=True):
        assert line.startswith(method) and part in line and f"target {step_cost.TARGETS[part]:.2f}" in line
    found = json.loads(out.read_text())["found"]
    assert [f"{one['ratio']:.3f}" for one in found] == [line.split()[2] for line in lines]
