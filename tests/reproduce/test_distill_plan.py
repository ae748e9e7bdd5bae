"""The planner for distillation: FLOPs against torch's counter, memory against the allocator's events, and by hand."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fsalign_lib.models import load as models
from reproduce import plan, train_distill
from reproduce.benchmarks import adapter_memory
from reproduce.evaluation import cost as memory
from reproduce.harness import planned
from reproduce.harness.command import at_scale
from reproduce.harness.variants import vary
from reproduce.planner import footprint, gpus, report
from reproduce.planner.counting import accelerated
from reproduce.recipes import make_config
from tests import tiny


@pytest.fixture
def make(folder, prompts_file, tmp_path):
    def make(method="distar", out="run", **overrides):
        small = {"model": str(folder), "teacher": str(folder), "prompts": prompts_file, "updates": 3, "batch": 8}
        small |= {"start": None, "time": 399, "sigma_init": None, "warmup": 0, "assistant_updates": 1, "rank": 2}
        small |= {"reward": None, "reward_scale": 0.0, "save_every": 100}
        return make_config(train_distill.DistillConfig, method, out=tmp_path / out, **(small | overrides))

    return make


def counted(config, prompts=4000, processes=1):
    reward = report.meta_reward(config.reward, config.scale)
    return footprint.Footprint(config, report.meta_networks(config), reward, prompts, processes, cuda=False)


def explicit_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """In matrix products, which the counter knows on every device."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value


@pytest.mark.parametrize("method,training", [("dipp", "full"), ("distar", "lora")])
def test_flops_are_those_of_the_loop(make, method, training, monkeypatch):
    config = make(method, training=training)
    flops = counted(config).flops()
    setup = train_distill.prepare(config)
    monkeypatch.setattr(F, "scaled_dot_product_attention", explicit_attention)
    calls = {"student update": train_distill.student_update, "assistant update": train_distill.assistant_update}
    assert set(flops) == set(calls)
    for name, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call(setup, 0)
        assert sum(flops[name].values()) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.slow
def test_flops_by_hand(make):
    """In forwards of the network, full copies: backward to weights and inputs is two of them, to inputs alone one."""
    of = {}
    for method, guidance in (("dipp", 1.0), ("distar", 2.5)):
        config = make(method, guidance=guidance, training="full", assistant_updates=3, warmup=6)
        found, model = counted(config), report.meta_model(config.model, "float32")
        with FlopCounterMode(display=False) as counter, accelerated(), torch.no_grad():
            x, cond = torch.empty(1, *model.latent_shape, device="meta"), model.encode_prompts(["a prompt"])
            encoding = counter.get_total_flops()
            model.predict_eps(x, torch.zeros(1, dtype=torch.long, device="meta"), cond)
        one = config.batch * (counter.get_total_flops() - encoding)
        of[method, guidance] = {phase: sum(value.values()) / one for phase, value in found.flops().items()}
    for (method, guidance), found in of.items():
        halves = 1 + (guidance != 1)
        networks = 1 + halves  # assistant and teacher
        expected = 3 + networks * (1 + (method == "distar"))
        assert found["student update"] == pytest.approx(expected, rel=0.06), (method, guidance)
        assert found["assistant update"] == pytest.approx((3 + 6 / 3) * 4, rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("training,checkpointing", [("full", False), ("lora", False), ("lora", True)])
def test_memory_of_an_update_within_a_tenth(make, training, checkpointing):
    config = make(training=training, gradient_checkpointing=checkpointing, batch=16)
    before = memory.live_bytes()
    setup = train_distill.prepare(config)
    steps = train_distill.train(setup)
    next(steps)
    measured = memory.peak_bytes(lambda: next(steps)) - before
    peaks = counted(config, len(tiny.PROMPTS)).peaks(16, 1, checkpointing)
    assert max(peaks.values()) == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_what_is_there_all_the_time(make):
    config = make(training="full")
    weights = sum(p.numel() for p in models.load(config.model).unet.parameters())
    fixed = counted(config, prompts=7, processes=2).fixed
    assert fixed["networks"] == 3 * 4 * weights, "student, assistant, teacher"
    assert fixed["optimizer"] == 2 * 8 * weights and fixed["average"] == 4 * weights
    assert fixed["gradient buckets"] == 2 * 4 * weights
    assert fixed["prompts"] == 7 * 2 * 4 * tiny.TEXT_LENGTH * 16
    assert "prompts" not in counted(config, prompts=3_000_000).fixed
    shared = counted(make(training="lora"))
    assert shared.fixed["networks"] == 4 * weights, "adapters on one network"
    assert shared.fixed["adapters"] == 2 * 4 * sum(p.numel() for p in shared.networks.learners["student update"])


def test_a_start_of_its_own_is_a_second_network(make, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")  # whose weights the plan does not look at
    one, two = (report.meta_networks(make(training="lora", **own)) for own in ({}, {"model": str(other)}))
    assert two.bytes["networks"] == 2 * one.bytes["networks"]


def test_autocast_is_for_the_networks_alone(make):
    """Full copies in float32 under bf16: the networks compute in half, the decoder in float32."""
    rewarded = {"training": "full", "reward": "pickscore", "reward_scale": 1.0}
    found = counted(make("dipp", mixed_precision="bf16", **rewarded))
    update = found.flops()["student update"]
    whole = counted(make("dipp", **rewarded)).flops()["student update"]
    assert set(whole) == {"float32"} and set(update) == {"float32", "bfloat16"}
    assert sum(update.values()) == pytest.approx(sum(whole.values()))
    alone = counted(make("dipp", training="full")).flops()["student update"]["float32"]
    assert update["bfloat16"] == pytest.approx(alone, rel=1e-6), "all that is not decoder and reward"
    assert found.flops(True)["student update"]["bfloat16"] > update["bfloat16"], "computed again, and cast"


class Brightness(torch.nn.Module):
    """Stand in for a reward's network."""

    def forward(self, images, prompts):
        return images.mean((1, 2, 3))


def test_the_plan_of_a_table(monkeypatch, capsys, folder):
    monkeypatch.setattr(report, "meta_model", lambda name, dtype: models.load(folder).to(torch.device("meta")))
    reward = Brightness()
    monkeypatch.setattr(report, "meta_reward", lambda *_: reward)
    asked = ["--row", "distar", "dipp", "--set", "training=lora", "--count", "1", "--gpu", "RTX4090", "--json"]
    plan.main(["distar_table1", *asked])
    found = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["unit"], row["units"], row["batch"]) for row in found.values()} == {("update", 10_000, 256)}
    flops = [found[row]["flops"]["student update"] for row in ("dipp", "distar")]
    assert flops == sorted(flops) and len(set(flops)) == 2, "a divergence of scores goes back through both networks"
    assert set(found["distar"]["flops"]) == {"student update", "assistant update"}
    told = "\n".join(report.row_text("distar", found["distar"]))
    for said in (
        f"DI*, {len(plan.TABLES['distar_table1'].seeds)} runs (distar), sdxl-dmd2-1step",
        "teacher sdxl",
        "256 rows an update",
        "LoRA rank 64",
    ):
        assert said in told


def test_the_recipe_for_adapters_is_named_where_full_copies_do_not_fit(monkeypatch, folder):
    monkeypatch.setattr(report, "meta_model", lambda name, dtype: models.load(folder).to(torch.device("meta")))
    monkeypatch.setattr(report, "meta_reward", lambda *_: None)
    table = at_scale(plan.TABLES["distar_table1"], "full")
    row, adapters = (
        replace(planned.planned(some, "full")["distar"], pictures=(), metrics=())
        for some in (table, vary(table, "full", "adapters"))
    )
    adapters = replace(adapters, training=replace(adapters.training, rank=1))  # of a network that is small itself
    planner = report.Planner(gpus.Machine(count=1))
    full, few = (planner.plan(some)["peak_gb"] for some in (row, adapters))
    assert few < full
    for room, told in (
        (few + 1e-6, f"--recipe adapters takes {few:.1f}"),
        (1e-6, "no settings fit: use a larger card"),
    ):
        planner.gpu = SimpleNamespace(memory=room / gpus.USABLE, peak=planner.gpu.peak)
        assert planned.remedy(planner, row, adapters).endswith(told)


def test_fsdp_holds_weights_gradients_and_moments_in_parts(make):
    config = make(training="full")
    reward, nets = None, report.meta_networks(config)
    one, eight = (
        footprint.Footprint(config, nets, reward, 7, 8, cuda=False, sharded=sharded) for sharded in (False, True)
    )
    for part in ("networks", "optimizer", "average"):
        assert eight.fixed[part] == one.fixed[part] // 8
    assert "gradient buckets" in one.fixed and "gradient buckets" not in eight.fixed
    assert eight.fixed["gathered layers"] > 0 and eight.fixed["VAE"] == one.fixed["VAE"]
    weights = one.fixed["networks"] // 3
    spared = sum(one.fixed.values()) - sum(eight.fixed.values())
    for phase, peak in one.peaks(1).items():
        gradients = weights * 7 // 8 if "update" in phase else 0
        assert one.peaks(1)[phase] - eight.peaks(1)[phase] <= spared + gradients + 2 * weights
        assert eight.peaks(1)[phase] < peak
    shared = footprint.Footprint(make(training="lora"), report.meta_networks(make(training="lora")), None, 7, 8)
    assert shared.parts == 1, "adapters are not sharded"


@pytest.mark.slow
def test_the_memory_benchmark_compares_both_modes(folder, tmp_path, monkeypatch):
    original = adapter_memory.make_config
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(tiny.PROMPTS))

    def small(*args, **kwargs):
        return original(*args, **kwargs | {"prompts": str(prompts), "reward": None, "reward_scale": 0.0})

    monkeypatch.setattr(adapter_memory, "make_config", small)
    out = tmp_path / "result.json"
    adapter_memory.main(["--model", str(folder), "--batches", "8", "--rank", "1", "--out", str(out)])
    found = json.loads(out.read_text())
    copies, adapters = found["records"]
    assert found["ratio"]["8"] == pytest.approx(adapters["peak_mb"] / copies["peak_mb"]) and found["ratio"]["8"] < 1
    assert adapters["trained"] < copies["trained"]
    for record in found["records"]:
        assert record["planned_mb"] == pytest.approx(record["peak_mb"], rel=0.15)


@pytest.mark.parametrize(
    "script,args,message",
    [
        (adapter_memory, ["--batches", "0"], "error: batches = (0,): expected numbers above 0"),
    ],
)
def test_bad_input(script, args, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        script.main(args)
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith(message)
