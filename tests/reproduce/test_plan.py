"""The planner: counts against what is known of the networks, memory against the allocator's events in real runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fsalign_lib import twins
from fsalign_lib.models import load as models
from fsalign_lib.rewards import load_reward
from fsalign_lib.twins import architectures
from reproduce import plan, train_distill, train_offline, train_online
from reproduce.data import sampled_pairs as pair_files
from reproduce.evaluation import cost as memory
from reproduce.planner import counting, footprint, gpus, report
from reproduce.recipes import make_config
from tests import tiny


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    hub = tmp_path_factory.mktemp("hub")
    twins.save_twin("sdxl-turbo", hub)
    return str(hub / "stabilityai" / "sdxl-turbo")


def meta(name, dtype="float32"):
    return models.load(name, getattr(torch, dtype)).to(torch.device("meta"))


def counted(config, reward=None, prompts=4000, model=None):
    """The planner's footprint of a run on this CPU in one process."""
    nets = footprint.Networks(config, model or meta(config.model, config.dtype))
    return footprint.Footprint(config, nets, reward, prompts, cuda=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return str(tiny.build(tmp_path_factory.mktemp("small")))


def predicted(config, prompts, reward=None):
    """The planner's peak, phase by phase."""
    found = counted(config, reward, prompts)
    rollout = getattr(config, "rollout_batch", None) or found.pairs
    return found.peaks(config.micro_batch or found.batch, rollout, config.gradient_checkpointing)


def second(steps):
    """The peak of the second round or update: the first makes the optimizer's moments."""
    next(steps)
    return memory.peak_bytes(lambda: next(steps))


@pytest.mark.slow
@pytest.mark.parametrize(
    "network,settings,phase",  # sdpo: the method, on the twin
    [
        ("pocket", {"pairs": 2, "training": "full", "rollout_batch": 1}, "update"),
        ("pocket", {"pairs": 4, "training": "lora", "micro_batch": 1, "gradient_checkpointing": True}, "sampling"),
        ("twin", {"pairs": 16, "training": "lora", "rollout_batch": 8}, "update"),
        ("sdpo", {"pairs": 8, "steps": 8, "minibatch": 8, "micro_batch": 8, "reward": "pickscore"}, "sampling"),
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
    how = {"model": "sdxl", "dtype": "bfloat16", "mixed_precision": "no"}
    config = make_config(train_online.OnlineConfig, "pso-online", "full", **how)
    model.guidance_scale = 1.0  # one row a picture, as few-step students have it
    found = counted(config, model=model)
    assert sum(p.numel() for p in found.networks.learners["update"]) == 23_224_320
    assert found.fixed["networks"] == 2 * 2_567_463_684
    rows = config.pairs * 2 * config.steps
    forward = {dtype: n / rows for dtype, n in found.flops()["rollout"].items()}
    assert sum(forward.values()) == pytest.approx(6.80e12, rel=2e-3)
    assert forward["bfloat16"] == pytest.approx(6.76e12, rel=2e-3), "the adapters compute in float32"
    reference = found.flops()["reference"]
    assert set(reference) == {"bfloat16"}, "which has no adapters"
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

    with torch.no_grad(), counting.accelerated(), counting.Meter() as meter:
        score(2)
    assert sum(meter.flops.values()) > 2e11
    with pytest.raises(ValueError, match="no full-size configuration of the reward 'beauty': choose from pickscore"):
        architectures.meta_reward("beauty")


def test_flops_are_those_of_torchs_counter(small):
    config = make_config(train_online.OnlineConfig, "pso-online", model=small, training="lora")
    found, model = counted(config), meta(small)
    with torch.device("meta"):
        model.add_lora(config.rank)
    cond = model.encode_prompts(["a prompt"]).repeat_interleave(4, 0)
    for checkpointing in (False, True):
        if checkpointing:
            model.checkpoint_gradients()
        with FlopCounterMode(display=False) as counter, counting.accelerated():
            x, t = torch.empty(4, *model.latent_shape, device="meta"), torch.empty(4, dtype=torch.long, device="meta")
            model.predict_eps(x, t, cond).square().mean().backward()
        rows = config.pairs * 2 * 3
        assert found.flops(checkpointing)["update"] == {"float32": counter.get_total_flops() / 4 * rows}
    assert sum(found.flops(True)["update"].values()) > 1.2 * sum(found.flops()["update"].values())


def test_guidance_is_counted_where_it_is_trained_with(small):
    """Offline losses are the network's own, whatever it is sampled with; online, no-prompt is a second half."""
    update = {}
    for kind, method in ((train_offline.OfflineConfig, "diffusion-dpo"), (train_online.OnlineConfig, "pso-online")):
        for scale in (5.0, 1.0):
            model = meta(small)
            model.guidance_scale = scale
            update[method, scale] = counted(make_config(kind, method, model=small), model=model).flops()["update"]
            assert model.guidance_scale == (1.0 if method == "diffusion-dpo" else scale)
    assert update["diffusion-dpo", 5.0] == update["diffusion-dpo", 1.0]
    assert update["pso-online", 5.0]["float32"] == 2 * update["pso-online", 1.0]["float32"]


def test_a_round_is_exact_at_other_batch_sizes(small):
    """From two batch sizes to any other; and a gradient that is there already is counted once."""
    config = make_config(train_online.OnlineConfig, "pso-online", model=small, training="full", pairs=6, minibatch=6)
    found = counted(config)
    run = found.networks._trace(config, None, False, 6)
    first, later = (found.round(False).peaks(18, 6, 6, 6, later) for later in (False, True))
    assert max(first.values()) == max(run.trace)
    gradients = sum(p.numel() * 4 for p in found.networks.learners["update"])
    assert first["update"] < later["update"] <= first["update"] + gradients and first["sampling"] == later["sampling"]


def test_known_results_change_no_trace(small, monkeypatch):
    """Operations that were seen before are not run again; views, tuples and what works in place are in the networks."""
    config = make_config(train_online.OnlineConfig, "pso-online", model=small, training="lora")
    nets = counted(config).networks

    def traced():
        run = nets._trace(config, None, False, 2)
        return run.trace, run.flops, run.spans, run.births

    nets.memory.clear()
    new, again = traced(), traced()
    assert len(nets.memory) > 100
    monkeypatch.setattr(counting.Meter, "_again", lambda self, key, function, *args, **kw: function(*args, **kw))
    assert new == again == traced()


@pytest.mark.parametrize("loop", ["online", "offline", "distill"])
def test_a_change_of_a_loop_changes_the_plan(small, monkeypatch, loop):
    """One more forward in the update, of which the planner knows nothing."""
    module, name, kind, method = {
        "online": (train_online, "minibatch_loss", train_online.OnlineConfig, "pso-online"),
        "offline": (train_offline, "batch_loss", train_offline.OfflineConfig, "pso-offline"),
        "distill": (train_distill, "assistant_minibatch_loss", train_distill.DistillConfig, "distar"),
    }[loop]
    settings = {"training": "full", "model": small}
    if loop == "distill":
        settings |= {"teacher": small, "reward": None, "reward_scale": 0.0, "batch": 4}
    config, original = make_config(kind, method, **settings), getattr(module, name)

    def plan_of():
        model = meta(small)
        found = footprint.Footprint(config, footprint.Networks(config, model, model if loop == "distill" else None))
        learner = [*found.networks.learners][-1]
        return found.flops()[learner]["float32"], found.peaks(2)[learner]

    def with_another_forward(setup, *args):
        loss, diagnostics = original(setup, *args)
        model = setup.trio.assistant if loop == "distill" else setup.model
        x = torch.zeros(len(setup.prompts), *model.latent_shape, device="meta")
        return loss + model.predict_eps(x, 0, setup.cond).mean(), diagnostics

    before = plan_of()
    monkeypatch.setattr(module, name, with_another_forward)
    assert all(now > then for now, then in zip(plan_of(), before, strict=True)), "FLOPs and memory"


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


class Attention(torch.nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


def test_attention_keeps_no_matrix_and_autocast_casts():
    x = torch.empty(2, 4, 512, 64, device="meta", requires_grad=True)
    for autocast in (None, torch.bfloat16):
        network = Attention()
        with counting.accelerated(autocast, [network]), counting.Meter([x]) as meter:
            out = network(x)
        assert out.dtype == (autocast or torch.float32)
        assert max(meter.trace) < 2 * 4 * 512 * 512 * 4, "no matrix of 512 x 512"
    linear = torch.nn.Linear(8, 8, device="meta")
    norm, half = torch.nn.LayerNorm(8, device="meta"), torch.empty(2, 8, device="meta", dtype=torch.bfloat16)
    with counting.accelerated(torch.bfloat16, [linear, norm]):
        assert linear(torch.empty(2, 8, device="meta")).dtype == torch.bfloat16
        assert norm(half).dtype == torch.float32
        assert F.linear(linear.weight, linear.weight).dtype == torch.float32, "outside of the networks nothing is cast"
    assert linear(torch.empty(2, 8, device="meta")).dtype == torch.float32, "what was changed is as it was"


def test_moments_in_eight_bits():
    parameters = [torch.nn.Parameter(torch.empty(n, device="meta")) for n in (4095, 256 * 100)]

    def moments(optimizer):
        return sum(footprint.moments(p, optimizer) for p in parameters)

    assert moments("adamw") == 8 * (4095 + 25600)
    assert moments("adamw8bit") == 8 * 4095 + 2 * 25600 + 8 * 100


@pytest.fixture(scope="module")
def once():
    """Networks that were made for a plan, for the next one: what they take is counted once."""
    made = {}
    return lambda config: made.setdefault((config.loop, config.dtype), footprint.Networks(config, meta("pocket-turbo")))


@pytest.fixture
def planned(monkeypatch, capsys, once):
    """The plan of Table 2 with the pocket's networks in the place of the real ones, which take longer to count."""
    monkeypatch.setattr(report, "meta_networks", once)
    monkeypatch.setattr(report, "meta_reward", lambda name, scale: None)

    def run(*args):
        plan.main(["pso_table2", *args])
        return capsys.readouterr().out

    return run


def test_rows_and_pictures_of_each_method(small):
    """What the loop does, counted: rows of an update, pictures scored for a pair, and network rows of a round."""

    def rows(method, **settings):
        settings = {"model": small, "minibatch": 4, "training": "lora", "rank": 4} | settings
        found = footprint.Footprint(make_config(train_online.OnlineConfig, method, **settings), nets, cuda=False)
        flops = {part: sum(of.values()) / found.pairs for part, of in found.flops().items()}
        return found.batch, round(2 * flops["decode"] / once["decode"]), round(flops["update"] / once["update"])

    config = make_config(train_online.OnlineConfig, "pso-online", model=small, training="lora", rank=4)
    nets = footprint.Networks(config, meta(small))
    base = footprint.Footprint(config, nets, cuda=False)
    once = {part: sum(of.values()) / base.pairs for part, of in base.flops().items()}
    once["update"] /= 6  # a pair has two pictures at three steps
    assert rows("pso-online") == (12, 2, 6) and rows("pso-online", sum_steps="inside") == (4, 2, 6)
    assert rows("ddpo", steps=10) == (40, 2, 20) and rows("rebel", steps=10) == (4, 2, 20)
    assert rows("sdpo", steps=10) == (4, 5, 20) and rows("sdpo", steps=10, queries="all") == (4, 19, 20)
    assert rows("sdpo", steps=10, queries="copy")[1] == 2 and rows("sdpo", steps=10, queries="similarity")[1] == 3
    assert rows("sdpo", steps=2)[1] == 3


def test_the_table_and_its_json(planned):
    out = planned("--gpu", "L40S", "--count", "4")
    for said in ("PSO Table 2", "4 x L40S", "LoRA rank 16, float16", "decoded together", "not counted", "assumed"):
        assert said in out
    rows = json.loads(planned("--json"))["rows"]
    assert list(rows) == ["offline", "online"]
    off, on = rows["online"]["settings"]
    assert (off["gradient_checkpointing"], on["gradient_checkpointing"]) == (False, True)
    assert on["flops"]["update"] > off["flops"]["update"] and on["hours"] > off["hours"]
    assert {card["micro_batch"] for card in off["cards"]} == {12}, "32 pairs at 3 steps on 8 GPUs; it fits everywhere"
    assert set(off["flops"]) == {"rollout", "decode", "reference", "update"}
    # 4 steps without gradient; in the update 3 steps, whose backward, to the inputs alone, is one more forward or less
    assert 2 / 3 < off["flops"]["reference"] / off["flops"]["rollout"] < 3 / 4, "the reference is without adapters"
    assert 3 / 4 < off["flops"]["update"] / off["flops"]["rollout"] < 2 * 3 / 4 * 1.2
    sliced = json.loads(planned("--json", "--row", "online", "--vae-slicing"))["rows"]["online"]
    assert sliced["settings"][0]["flops"] == pytest.approx(off["flops"]) and sliced["config"]["vae_slicing"]


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
        config, batch, pairs, processes = SimpleNamespace(loop="online"), 8, 32, 1

        def peaks(self, micro, rollout, checkpointing):
            return {"update": (30 + 10 * micro) * report.GB, "rollout": (30 + rollout) * report.GB}

    cards = {gb: report.fit(Heavy(), gb, False) for gb in (24, 48, 80, 141)}
    assert [card["micro_batch"] for card in cards.values()] == [None, 1, 4, 8]
    assert cards[24]["peak_gb"] == 40 and report.cell(cards[24]) == "no: 40.0"
    assert cards[48]["rollout_batch"] == 8 and cards[48]["peak_gb"] <= gpus.USABLE * 48
    assert report.halves(12) == [12, 8, 4, 2, 1]


def test_the_total_has_what_fits(planned):
    """A row that does not fit the card is named beside the total, and is not in it."""
    rows = json.loads(planned("--json"))["rows"]
    for setting in rows["offline"]["settings"]:
        setting["fits"] = False
    hours = 3 * rows["online"]["settings"][0]["hours"]
    told = report.text(gpus.Machine(), "a table", rows, {"offline": "one", "online": "other"}, 3)
    assert f"1 of 2 rows at 3 training seeds, without gradient checkpointing: {hours:.3g} hours (left out" in told
    assert "as they do not fit 80 GB: offline)" in told


def test_every_table_has_a_plan_or_says_why():
    """The list of tables is the folder's; each gives the settings of what it trains, with what its rows start from."""
    folder = Path(plan.__file__).parent
    assert sorted(plan.TABLES) == sorted(
        path.stem for path in folder.glob("*_*.py") if "\nTABLE = " in path.read_text()
    )
    for name in plan.TABLES:
        try:
            rows = plan.prepare(plan.PlanConfig(table=name, count=1)).rows
        except ValueError as error:
            assert "trains nothing" in str(error) and name in ("sdpo_table3", "sdpo_curves", "distar_table2"), error
        else:
            assert all(config.scale == "full" for config in rows.values())
    assert "pretrained" in str([*plan.prepare(plan.PlanConfig(table="dipp_table1", count=1)).rows])


@pytest.mark.parametrize(
    "args,message",
    [
        (["pso_table9"], "error: unknown table 'pso_table9': choose from dipp_table1, distar_pareto"),
        (["pso_table2", "--gpu", "H1000"], "error: unknown GPU 'H1000': choose from V100, A100-40"),
        (["pso_table2", "--row", "best"], "error: row 'best' of pso_table2 is unknown: choose from offline, online"),
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
