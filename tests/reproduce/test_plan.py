"""The planner: counts against what is known of the networks, memory against the allocator's events in real runs."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fsalign_lib import twins
from fsalign_lib.models import load as models
from fsalign_lib.rewards import load_reward
from fsalign_lib.twins import architectures
from reproduce import plan, train_offline, train_online
from reproduce.data import sampled_pairs as pair_files
from reproduce.evaluation import cost as memory
from reproduce.planner import counting, footprint, gpus
from reproduce.planner import text as plan_text
from reproduce.recipes import make_config
from tests import tiny


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    hub = tmp_path_factory.mktemp("hub")
    twins.save_twin("sdxl-turbo", hub)
    return str(hub / "stabilityai" / "sdxl-turbo")


def predicted(config, prompts, reward=None, **how):
    """The planner's peak, phase by phase, for a run on this CPU in one process."""
    model = models.load(config.model, getattr(torch, config.dtype)).to(torch.device("meta"))
    nets = footprint.Networks(model, reward, config)
    print_of = footprint.Footprint(config, nets, prompts, cuda=False)
    rollout = getattr(config, "rollout_batch", None) or config.pairs
    share = print_of.batch
    return print_of.peaks(config.micro_batch or share, rollout, config.gradient_checkpointing, share)


def second(steps):
    """The peak of the second round or update: the first makes the optimizer's moments."""
    next(steps)
    return memory.peak_bytes(lambda: next(steps))


@pytest.mark.slow
@pytest.mark.parametrize(
    "network,settings,phase",  # sdpo: the method, on the twin
    [
        ("pocket", {"pairs": 2, "training": "full", "rollout_batch": 1}, "update"),
        ("pocket", {"pairs": 4, "training": "lora", "micro_batch": 1, "gradient_checkpointing": True}, "decode"),
        ("twin", {"pairs": 16, "training": "lora", "rollout_batch": 8}, "update"),
        ("sdpo", {"pairs": 8, "steps": 8, "minibatch": 8, "micro_batch": 8, "reward": "pickscore"}, "reward"),
    ],
)
def test_memory_of_an_online_round_within_a_tenth(twin, tmp_path, network, settings, phase):
    config = make_config(
        train_online.OnlineConfig,
        "sdpo" if network == "sdpo" else "pso-online",
        model="pocket-turbo" if network == "pocket" else twin,
        out=tmp_path,
        rounds=3,
        **{"minibatch": settings["pairs"]} | settings,
    )
    before = memory.live_bytes()
    setup = train_online.prepare(config, reward=load_reward("pickscore"))
    measured = second(train_online.train(setup)) - before
    phases = predicted(config, len(setup.prompts), load_reward("pickscore").to("meta"))
    assert max(phases.values()) == pytest.approx(measured, rel=0.1), phases
    assert max(phases, key=phases.get) == phase


@pytest.mark.slow
@pytest.mark.parametrize("training,micro_batch", [("lora", None), ("full", 12)])
def test_memory_of_an_offline_update_within_a_tenth(twin, tmp_path, training, micro_batch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(tiny.PROMPTS))
    made = pair_files.PairConfig(out=tmp_path / "pairs", model=twin, prompts=str(prompts), count=24, batch=24, tie=0)
    made.steps = 1
    pair_files.build(pair_files.prepare(made, utility=tiny.brightness))
    config = make_config(
        train_offline.OfflineConfig,
        "pso-offline",
        model=twin,
        out=tmp_path / "run",
        pairs=tmp_path / "pairs",
        updates=3,
        batch=24,
        training=training,
        micro_batch=micro_batch,
        gradient_checkpointing=True,
    )
    before = memory.live_bytes()
    setup = train_offline.prepare(config)
    measured = second(train_offline.train(setup)) - before
    phases = predicted(config, 24)
    assert max(v for name, v in phases.items() if name != "encode") == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_the_real_sizes():
    """Parameters, LoRA parameters and FLOPs of SDXL at 1024 px, and of SD-Turbo, as they are known."""
    model = architectures.meta_model("sdxl", torch.bfloat16)
    assert plan_parameters(model) == 2_567_463_684
    config = make_config(train_online.OnlineConfig, "pso-online", "full", model="sdxl", dtype="bfloat16")
    model.guidance_scale = 1.0  # one row a picture, as few-step students have it
    nets = footprint.Networks(model, None, config)
    assert sum(p.numel() for p in nets.trained) == 23_224_320
    assert nets.bytes["UNet"] == 2 * 2_567_463_684
    forward = nets.forward()
    assert sum(forward.flops_per_row.values()) == pytest.approx(6.80e12, rel=2e-3)
    assert forward.flops_per_row["bfloat16"] == pytest.approx(6.76e12, rel=2e-3), "the adapters compute in float32"
    assert plan_parameters(architectures.meta_model("sd-turbo")) == 865_910_724


def plan_parameters(model):
    return sum(p.numel() for p in model.unet.parameters())


@pytest.mark.parametrize(
    "name,parameters",
    [("pickscore", 986_109_441), ("aesthetic", None), ("imagereward", None)],
)
def test_rewards_at_full_size_score_without_values(name, parameters):
    """Parameter counts: ViT-H-14 as open_clip's model card gives it (986.11 M)."""
    reward = architectures.meta_reward(name)
    if parameters:
        assert sum(p.numel() for p in reward.parameters()) == parameters

    def score(rows):
        return reward(torch.empty(rows, 3, 64, 64, device="meta"), [f"{rows}, {i}" for i in range(rows)])

    with torch.no_grad():
        count = counting.trace(score, [])
    assert sum(count.flops_per_row.values()) > 1e11
    with pytest.raises(ValueError, match="no full-size configuration of the reward 'beauty': choose from pickscore"):
        architectures.meta_reward("beauty")


def test_flops_are_those_of_torchs_counter(twin):
    config = make_config(train_online.OnlineConfig, "pso-online", model=twin, training="lora")
    nets = footprint.Networks(models.load(twin).to(torch.device("meta")), None, config)
    for checkpointing in (False, True):
        ours = sum(nets.update(checkpointing)[0].flops_per_row.values())
        with FlopCounterMode(display=False) as counter, counting.accelerated():
            nets._predict(4).square().mean().backward()
        assert ours * 4 == counter.get_total_flops()
    assert sum(nets.update(True)[0].flops_per_row.values()) > 1.2 * sum(nets.update(False)[0].flops_per_row.values())


def test_guidance_is_counted_where_it_is_trained_with(twin):
    """Offline losses are the network's own, whatever it is sampled with; online, no-prompt is a second half."""
    forward = {}
    for kind, method, scale in (
        (train_offline.OfflineConfig, "diffusion-dpo", 5.0),
        (train_online.OnlineConfig, "pso-online", 5.0),
        (train_online.OnlineConfig, "pso-online", 1.0),
    ):
        model = models.load(twin).to(torch.device("meta"))
        model.guidance_scale = scale
        nets = footprint.Networks(model, None, make_config(kind, method, model=twin))
        forward[method, scale] = sum(nets.forward().flops_per_row.values())
        assert model.guidance_scale == (1.0 if method == "diffusion-dpo" else scale)
    assert forward["diffusion-dpo", 5.0] == forward["pso-online", 1.0]
    assert forward["pso-online", 5.0] == 2 * forward["pso-online", 1.0]


def test_a_trace_is_exact_at_other_batch_sizes(twin):
    """From two batch sizes to any other, forward and backward; and a gradient that is there already is counted once."""
    config = make_config(train_online.OnlineConfig, "pso-online", model=twin, training="full")
    nets = footprint.Networks(models.load(twin).to(torch.device("meta")), None, config)
    first, later = nets.update(False)

    def peak(rows, known):
        meter = counting.Meter(known)
        with counting.accelerated(), meter:
            nets._predict(rows).square().mean().backward()
        return max(meter.trace)

    assert first.peak(24) == peak(24, nets.known)
    gradients = [p.grad for p in nets.trained]
    there = counting.size(gradients)
    assert later.peak(24) == there + peak(24, nets.known + gradients)
    assert later.peak(24) > first.peak(24) and first.kept(24) < first.peak(24)


def test_known_results_change_no_trace(twin, monkeypatch):
    """Operations that were seen before are not run again; views, tuples and what works in place are in the networks."""
    config = make_config(train_online.OnlineConfig, "pso-online", model=twin, training="lora")
    nets = footprint.Networks(models.load(twin).to(torch.device("meta")), None, config)

    def traced():
        first, later = nets._update(checkpointing=True)
        return [x.tolist() for x in (*first.bytes, *later.bytes)], first.flops_per_row, first.forward

    monkeypatch.setattr(counting, "_known_results", known := {})
    new, again = traced(), traced()
    assert len(known) > 100
    monkeypatch.setattr(counting, "_call", lambda operation, args, kwargs: operation(*args, **kwargs))
    assert new == again == traced()


def test_each_storage_is_counted_once_and_until_it_is_freed():
    weight = torch.empty(1000, device="meta")
    with counting.Meter([weight]) as meter:
        a = weight * 2  # 4000 bytes
        b = a.view(10, 100).t()
        c = a + weight
        del a
        c += 1  # in place
        del b, c
        weight.view(10, 100).exp()
    assert meter.trace == [4000, 4000, 4000, 8000, 8000, 0, 4000]


def test_attention_keeps_no_matrix_and_autocast_casts():
    x = torch.empty(2, 4, 512, 64, device="meta", requires_grad=True)
    for autocast in (None, torch.bfloat16):
        with counting.accelerated(autocast) as forward_is_over, counting.Meter([x]) as meter:
            out = F.scaled_dot_product_attention(x, x, x)
            forward_is_over()
        assert out.dtype == (autocast or torch.float32)
        assert max(meter.trace) < 2 * 4 * 512 * 512 * 4, "no matrix of 512 x 512"
    linear = torch.nn.Linear(8, 8, device="meta")
    with counting.accelerated(torch.bfloat16):
        assert linear(torch.empty(2, 8, device="meta")).dtype == torch.bfloat16
        assert F.layer_norm(torch.empty(2, 8, device="meta", dtype=torch.bfloat16), (8,)).dtype == torch.float32
    assert linear(torch.empty(2, 8, device="meta")).dtype == torch.float32, "what was changed is as it was"


def test_moments_in_eight_bits():
    parameters = [torch.nn.Parameter(torch.empty(n, device="meta")) for n in (4095, 256 * 100)]
    assert footprint.moments(parameters, "adamw") == 8 * (4095 + 25600)
    assert footprint.moments(parameters, "adamw8bit") == 8 * 4095 + 2 * 25600 + 8 * 100


@pytest.fixture(scope="module")
def once():
    """Networks that were made for a plan, for the next one: what they take is counted once."""
    made = {}
    return lambda model, reward, config: made.setdefault(config.dtype, footprint.Networks(model, reward, config))


@pytest.fixture
def planned(monkeypatch, capsys, once):
    """The plan of Table 2 with the pocket's networks in the place of the real ones, which take longer to count."""
    monkeypatch.setattr(plan, "meta_model", lambda config: models.load("pocket-turbo").to(torch.device("meta")))
    monkeypatch.setattr(plan, "meta_reward", lambda name, scale: None)
    monkeypatch.setattr(plan, "Networks", once)

    def run(*args):
        plan.main(["pso_table2", *args])
        return capsys.readouterr().out

    return run


def test_rows_and_pictures_of_each_method(twin):
    """What the loop does, counted: rows of an update, network rows of each, and pictures scored for a pair."""

    def rows(method, **settings):
        config = make_config(train_online.OnlineConfig, method, model=twin, minibatch=4, **settings)
        counted = footprint.Footprint(config, nets, cuda=False)
        return counted.batch, counted.rows, counted.queries

    config = make_config(train_online.OnlineConfig, "sdpo", model=twin)
    nets = footprint.Networks(models.load(twin).to(torch.device("meta")), None, config)
    assert rows("pso-online") == (12, 2, 2) and rows("pso-online", sum_steps="inside") == (4, 6, 2)
    assert rows("ddpo", steps=10) == (40, 2, 2) and rows("rebel", steps=10) == (4, 20, 2)
    assert rows("sdpo", steps=10) == (4, 2, 5) and rows("sdpo", steps=10, queries="all") == (4, 2, 19)
    assert rows("sdpo", steps=10, queries="copy")[2] == 2 and rows("sdpo", steps=10, queries="similarity")[2] == 3
    assert rows("sdpo", steps=2)[2] == 3


def test_the_table_and_its_json(planned):
    out = planned("--gpu", "L40S", "--count", "4")
    for said in ("PSO Table 2", "4 x L40S", "nothing is trained", "LoRA rank 16, bfloat16", "not counted", "assumed"):
        assert said in out
    rows = json.loads(planned("--json"))["rows"]
    assert list(rows) == ["offline", "online"]
    off, on = rows["online"]["settings"]
    assert (off["gradient_checkpointing"], on["gradient_checkpointing"]) == (False, True)
    assert on["flops"]["update"] > off["flops"]["update"] and on["hours"] > off["hours"]
    assert {card["micro_batch"] for card in off["cards"]} == {12}, "32 pairs at 3 steps on 8 GPUs; it fits everywhere"
    assert set(off["flops"]) == {"rollout", "decode", "reference", "update"}
    # 128 pairs: 4 steps without gradient and 3 with, each of two pictures
    assert off["flops"]["rollout"] == pytest.approx(128 * 2 * 4 * rows["online"]["forward_flops"])
    assert off["flops"]["reference"] == pytest.approx(128 * 2 * 3 * rows["online"]["forward_flops"])


def test_hours_are_flops_over_what_is_reached(planned):
    def hours(*args):
        return json.loads(planned("--json", "--row", "online", *args))["rows"]["online"]["settings"][0]["hours"]

    base = hours("--gpu", "H100", "--count", "8", "--utilisation", "0.3")
    assert hours("--gpu", "H100", "--count", "4", "--utilisation", "0.3") == pytest.approx(2 * base)
    assert hours("--gpu", "H100", "--count", "8", "--utilisation", "0.15") == pytest.approx(2 * base)
    one = gpus.named("A100-80")
    assert hours("--gpu", "A100-80") > 2 * base and one.peak("float32") < one.peak("bfloat16")


def test_what_does_not_fit_says_what_it_would_need():
    class Heavy:
        online, batch = True, 8

        def peaks(self, micro, rollout, checkpointing, share):
            return {"update": (30 + 10 * micro) * plan.GB, "rollout": (30 + rollout) * plan.GB}

    cards = {gb: plan.fit(Heavy(), gb, 8, 32, False) for gb in (24, 48, 80, 141)}
    assert [card["micro_batch"] for card in cards.values()] == [None, 1, 4, 8]
    assert cards[24]["peak_gb"] == 40 and plan_text.cell(cards[24]) == "no: 40.0"
    assert cards[48]["rollout_batch"] == 8 and cards[48]["peak_gb"] <= gpus.USABLE * 48
    assert plan.halves(12) == [12, 8, 4, 2, 1]


@pytest.mark.parametrize(
    "args,message",
    [
        (["pso_table9"], "error: unknown table 'pso_table9': choose from dipp_table1, distar_pareto"),
        (["pso_table2", "--gpu", "H1000"], "error: unknown GPU 'H1000': choose from V100, A100-40"),
        (["pso_table2", "--row", "best"], "error: unknown row 'best' of pso_table2: choose from offline, online"),
        (["pso_table2", "--row", "base"], "error: row 'base' of pso_table2 is the model as it is, and takes no"),
        (["sdpo_table3"], "error: sdpo_table3 trains nothing, so there is nothing to plan"),
        (["pso_table2", "--count", "3"], "error: count = 3: batch = 64 of row 'offline' does not divide among"),
        (["pso_table2", "--count", "0"], "error: count = 0: expected more than 0"),
        (["pso_table2", "--utilisation", "30"], "error: utilisation = 30.0: expected a share of the peak, at most 1"),
    ],
)
def test_bad_input(args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        plan.main(args)
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith(message)
