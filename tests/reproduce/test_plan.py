"""The planner: counts against what is known of the networks, memory against the allocator's events in real runs."""

import functools
import json
import re
from dataclasses import replace
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
from reproduce.harness import planned, rows
from reproduce.harness.command import at_scale, command
from reproduce.planner import counting, footprint, gpus, report
from reproduce.recipes import make_config, recipe
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
    "network,settings,phase",  # sdpo, draft: the method, on the twin
    [
        ("pocket", {"pairs": 2, "training": "full", "rollout_batch": 1}, "update"),
        ("pocket", {"pairs": 4, "training": "lora", "micro_batch": 1, "gradient_checkpointing": True}, "sampling"),
        ("twin", {"pairs": 16, "training": "lora", "rollout_batch": 8}, "update"),
        ("sdpo", {"pairs": 8, "steps": 8, "minibatch": 8, "micro_batch": 8, "reward": "pickscore"}, "sampling"),
        ("draft", {"pairs": 8, "minibatch": 8, "micro_batch": 8, "reward": "pickscore"}, "update"),
    ],
)
def test_memory_of_an_online_round_within_a_tenth(twin, tmp_path, network, settings, phase):
    config = make_config(
        train_online.OnlineConfig,
        network if network in ("sdpo", "draft") else "pso-online",
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
    first, later = (found.round(False).peaks(18, 6, 6, 6, later, lambda pictures: 0) for later in (False, True))
    assert max(first.values()) == max(run.trace)
    gradients = sum(p.numel() * 4 for p in found.networks.learners["update"])
    assert first["update"] < later["update"] <= first["update"] + gradients and first["sampling"] == later["sampling"]


@pytest.mark.slow
def test_known_results_change_no_trace(small, monkeypatch):
    """Operations that were seen before are not run again; views, tuples and what works in place are in the networks."""
    config = make_config(train_online.OnlineConfig, "pso-online", model=small, training="lora")
    nets = counted(config).networks

    def traced():
        run = nets._trace(config, None, False, 2)
        return run.trace, run.flops, run.spans, run.births

    nets.memory.clear()
    counting.OPERATIONS.clear()
    new, again = traced(), traced()
    assert len(nets.memory) > 2 and len(counting.OPERATIONS) > 100
    monkeypatch.setattr(counting.Meter, "_again", lambda self, memory, key, call, *args, **kw: call(*args, **kw))
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
def tiny_sizes(monkeypatch, once):
    """The pocket's networks in the place of the real ones, which take longer to count."""
    monkeypatch.setattr(report, "meta_networks", once)
    monkeypatch.setattr(report, "meta_model", lambda name, dtype: meta("pocket-turbo"))
    monkeypatch.setattr(report, "meta_reward", lambda *_: one_reward())


@functools.cache
def one_reward():
    return load_reward("pickscore").to("meta")


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_table_and_its_json(tiny_sizes, capsys):
    plan.main(["pso_table2", "--gpu", "L40S", "--count", "4", "--set", "online.micro_batch=3", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert list(rows) == ["pairs", "base", "offline", "online"]
    online, flops = rows["online"], rows["online"]["flops"]
    assert set(flops) == {"rollout", "decode", "reward", "reference", "update"}
    # 4 steps without gradient; in the update 3 steps, whose backward, to the inputs alone, is one more forward or less
    assert 2 / 3 < flops["reference"] / flops["rollout"] < 3 / 4, "the reference is without adapters"
    seeds = len(plan.TABLES["pso_table2"].seeds)
    assert online["runs"] == seeds > 1 and rows["base"]["runs"] == 1
    assert set(online["hours"]) == {"training", "pictures", "prompts"}, "evaluation is in the plan"
    assert set(rows["pairs"]["hours"]) == {"pictures", "pairs encoded", "prompts"}, "and so are the pairs"
    peak = gpus.GPUS["L40S"].peak
    by_hand = (
        sum(n for part, n in flops.items() if part == "rollout") / (peak("float16") * gpus.Machine().utilisation) / 3600
    )
    assert online["hours"]["training"] > seeds * 5000 * by_hand, "of all seeds; other parts beside the rollout"
    # It has the settings that run, and chooses none.
    config = make_config(train_online.OnlineConfig, "pso-online", "full")
    for name in ("rollout_batch", "gradient_checkpointing", "vae_slicing", "dtype"):
        assert online["config"][name] == getattr(config, name)
    assert online["config"]["micro_batch"] == 3
    told = report.text(gpus.Machine(gpu="L40S", count=4), "PSO Table 2", rows)
    for said in ("PSO Table 2", "4 x L40S", "LoRA rank 16, float16", "micro-batch 3", "58,960 pairs", "not counted"):
        assert said in told


def test_memory_is_that_of_the_settings(tiny_sizes):
    row = planned.planned(at_scale(plan.TABLES["pso_table2"], "full"), "full")["online"]
    planner = report.Planner(gpus.Machine(count=1))

    def peaks(**change):
        return planner.footprint(row, **change).as_run()

    update = [peaks(micro_batch=n)["update"] for n in (1, 8, None)]
    assert update == sorted(update) and len(set(update)) == 3
    assert peaks(rollout_batch=1)["sampling"] < peaks(rollout_batch=None)["sampling"]
    assert peaks(gradient_checkpointing=True, micro_batch=None)["update"] < update[2]
    off, on = (planner.footprint(row, gradient_checkpointing=on).flops(on)["update"] for on in (False, True))
    assert sum(off.values()) < sum(on.values())
    idle = planner.footprint(row).fixed["metrics"]
    assert idle == 4 * footprint.weights(one_reward()), "networks of metrics lie there while rows train"


def test_text_encoders_are_counted_while_they_are_there(tiny_sizes, monkeypatch):
    """Prompts that the disk has room for are encoded before the first round; a run that draws a few encodes those."""
    row = planned.planned(at_scale(plan.TABLES["pso_table2"], "full"), "full")["offline"]
    planner = report.Planner(gpus.Machine(count=1))
    stored, drawn = planner.footprint(row), planner.footprint(row, updates=10)
    encoders = drawn.fixed["text encoders"]
    assert encoders > 0 and "text encoders" not in stored.fixed
    before, now = drawn.as_run(), stored.as_run()
    assert before["update"] - now["update"] == encoders and before["encode"] == now["encode"]
    assert now["prompts"] > encoders + sum(stored.fixed.values()) and "prompts" not in before
    monkeypatch.setattr(report, "DISK", 0)
    assert "text encoders" in planner.footprint(row).fixed
    [job] = row.pictures
    there = planner.take(replace(job, stored=False))
    assert there.held["text encoders"] == encoders and 0 <= there.peak - planner.take(job).peak <= encoders


def test_a_run_is_planned_as_often_as_it_has_seeds():
    """The DPO'd teacher has one training seed at full scale, others the table's; curves have all their snapshots."""
    seeds = len(plan.TABLES["pso_table1"].seeds)
    rows = planned.planned(at_scale(plan.TABLES["pso_table1"], "full"), "full")
    assert {name: rows[name].runs for name in ("teacher", "dpo", "dpo-lora", "sft", "offline")} == {
        "teacher": 1,
        "dpo": 1,
        "dpo-lora": 1,
        "sft": seeds,
        "offline": seeds,
    }
    assert seeds > 1 and rows["dpo"].training.batch == 2048 and rows["offline"].pairs == 58_960
    curve = planned.planned(at_scale(plan.TABLES["sdpo_ablations"], "full"), "full")
    assert curve["base"].pictures[0].pictures == 45 * 8 and curve["sdpo"].pictures[0].pictures == 10 * 45 * 8
    pretrained = planned.planned(at_scale(plan.TABLES["dipp_table1"], "full"), "full")["pretrained"]
    assert pretrained.training.updates == 16_000 and pretrained.runs == 1
    rows = planned.planned(at_scale(plan.TABLES["sdpo_table1"], "full"), "full")
    assert not any(name.endswith("-50") for name in rows), "rows of the pocket scale alone"


def test_every_table_has_a_plan():
    """The list of tables is the folder's; each says what it runs, with what its rows start from."""
    folder = Path(plan.__file__).parent
    assert sorted(plan.TABLES) == sorted(
        path.stem for path in folder.glob("*_*.py") if "\nTABLE = " in path.read_text()
    )
    for name, table in plan.TABLES.items():
        rows = planned.planned(at_scale(table, "full"), "full")
        assert rows and all(row.training is None or row.training.scale == "full" for row in rows.values()), name
    assert "dpo" in planned.planned(at_scale(plan.TABLES["pso_table3"], "full"), "full"), "which is not trained there"


@pytest.mark.slow
def test_what_is_trained_for_several_tables_is_in_the_ledger_once(tiny_sizes, capsys, monkeypatch):
    """The pairs, and Diffusion-DPO's teacher, which at full scale is another row than in the pocket world."""
    some = {name: plan.TABLES[name] for name in ("pso_table1", "pso_table3")}
    monkeypatch.setattr(plan, "TABLES", some)
    plan.main(["--ledger", "--utilisation", "1e-6"])  # the pocket networks take next to nothing
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    hours = {name: [float(value.replace(",", "")) for value in lines[name][:6]] for name in (*some, "all")}
    assert hours["pso_table1"][4] > 0 and hours["pso_table3"][4] == 0, "pairs are built once"
    seeds = len(some["pso_table1"].seeds)
    assert [hours[name][0] for name in some] == [1 + 3 * seeds, 2 * seeds], "the teacher is trained once"
    spent = [each[5] for each in hours.values()]
    assert spent[2] == pytest.approx(sum(spent[:2]), abs=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["online", "offline"])
def test_what_would_fit_fits(once, monkeypatch, loop):
    """The first of the settings that spare memory, with the largest micro-batch; the room is what they leave."""
    monkeypatch.setattr(report, "meta_networks", once)
    monkeypatch.setattr(report, "meta_reward", lambda *_: None)
    kind, method = {
        "online": (train_online.OnlineConfig, "pso-online"),
        "offline": (train_offline.OfflineConfig, "diffusion-dpo"),
    }[loop]
    row = report.Planned("a row", make_config(kind, method, model="pocket-turbo", micro_batch=None), pairs=100)
    planner = report.Planner(gpus.Machine(count=1), "pocket")
    plan_of = planner.plan(row)
    tight = 0.9 * plan_of["peak_gb"]
    planner.gpu = SimpleNamespace(memory=tight / gpus.USABLE, peak=planner.gpu.peak)
    assert not planner.plan(row)["fits"]
    change, peak = planner.fitting(row)
    again = report.Planned("a row", replace(row.training, **change), pairs=100)
    assert planner.plan(again)["fits"] and planner.plan(again)["peak_gb"] == pytest.approx(peak)
    planner.gpu = SimpleNamespace(memory=1e-6, peak=planner.gpu.peak)
    assert planner.fitting(row) is None
    assert report.halves(12) == [12, 8, 4, 2, 1]


def test_the_preflight_refuses_before_anything_is_loaded(tiny_sizes, monkeypatch, capsys, tmp_path):
    """In one line, with numbers, and what would fit; --anyway goes on to load."""
    monkeypatch.setattr(planned, "NOTHING", {})
    monkeypatch.setitem(gpus.GPUS, "small", replace(gpus.GPUS["H100"], memory=0.2))

    def loaded(*args):
        raise ValueError("loads")

    monkeypatch.setattr(rows, "prepare", loaded)
    argv = ["--scale", "full", "--out", str(tmp_path), "--only", "online"]
    for more, said in (
        (["--gpu", "small"], "row online needs "),
        (["--gpu", "small", "--anyway"], "loads"),
        (["--gpu", "H100"], "loads"),
        (["--gpu", "H1000"], "unknown GPU 'H1000': choose from"),
    ):
        with pytest.raises(SystemExit):
            command(plan.TABLES["pso_table2"], None, argv + more)
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and told.startswith(f"error: {said}"), told
        if said.startswith("row"):
            assert "GB in its" in told and "held: " in told and "--anyway goes on" in told


@pytest.mark.slow
def test_distar_with_full_copies_does_not_fit_24_gb(capsys, tmp_path):
    argv = ["--scale", "full", "--out", str(tmp_path), "--only", "distar", "--gpu", "RTX4090"]
    with pytest.raises(SystemExit):
        command(plan.TABLES["distar_table1"], None, argv)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "row distar needs " in told and "RTX4090 has 24, of which 22.1" in told
    print(told)


@functools.cache
def eight():
    """One planner for all that follows: what was traced for a table is not traced again."""
    return report.Planner(gpus.Machine(fsdp=True))


@pytest.mark.long
def test_the_ledger_of_all_tables(capsys):
    """Every table has a line whose hours add up, and all that runs fits eight H100."""
    plan.ledger(
        eight(), {name: planned.planned(at_scale(table, "full"), "full") for name, table in plan.TABLES.items()}
    )
    told = capsys.readouterr().out
    print(told)  # pytest -rP shows it
    lines = {line.split()[0]: line.split()[1:] for line in told.splitlines()[2:]}
    hours = {name: [float(value.replace(",", "")) for value in lines[name][:6]] for name in (*plan.TABLES, "all")}
    for name, (_, *parts, whole) in hours.items():
        assert sum(parts) == pytest.approx(whole, abs=0.3) and whole > 0, name
    for column in zip(*hours.values(), strict=True):
        assert sum(column[:-1]) == pytest.approx(column[-1], abs=1)
    assert all(lines[name][6:] == ["-"] for name in plan.TABLES), "one does not fit"


@pytest.mark.long
@pytest.mark.parametrize("name", plan.TABLES)
def test_every_recipe_fits_the_card_that_it_names(name):
    """Its settings that spare memory name it in their source, "fits H100: plan": alone there, or eight by FSDP."""
    table = at_scale(plan.TABLES[name], "full")
    for row, about in planned.planned(table, "full").items():
        if about.training is None:
            continue
        sources = recipe(about.training.method, "full") | (table.own.starts | table.rows)[row].settings
        named = {source for _, source in sources.values() if source.startswith("fits ")}
        cards = {re.match(r"fits (8 x )?(\S+?)( by FSDP)?: plan", source).groups() for source in named}
        assert cards, f"{name}, {row}: no setting names a card"
        for several, card, fsdp in cards:
            planner = eight().on(8 if several else 1, fsdp=bool(fsdp))
            planner.gpu = gpus.named(card)
            found = planner.plan(replace(about, pictures=()))
            assert found["fits"], (row, planner.machine, found["peaks_gb"])


@pytest.mark.parametrize(
    "args,message",
    [
        (["pso_table9"], "error: unknown table 'pso_table9': choose from pso_table1, pso_table2"),
        ([], "error: unknown table None: choose from pso_table1"),
        (["pso_table2", "--gpu", "H1000"], "error: unknown GPU 'H1000': choose from A100-40"),
        (["pso_table2", "--row", "best"], "error: row 'best' of pso_table2 is unknown: choose from pairs, base"),
        (["pso_table2", "--set", "lrr=1"], "error: --set lrr=1: "),
        (["pso_table2", "--count", "3"], "error: count = 3: batch = 64 of row 'offline' does not divide among"),
        (["pso_table2", "--count", "0"], "error: count = 0: expected more than 0"),
        (["pso_table2", "--utilisation", "30"], "error: utilisation = 30.0: expected a share of the peak, at most 1"),
    ],
)
def test_bad_input(args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        plan.main(args)
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith(message)
