"""The GPU benchmark's own logic, on small twins and the CPU; no time and no utilisation is held to anything here."""

import dataclasses
import json

import pytest
import torch

from reproduce import train_online
from reproduce.benchmarks import full_size


@pytest.fixture
def config(tmp_path):
    return full_size.FullSizeConfig(models=("tiny",), device="cpu", seconds=1e-3, out=tmp_path / "new" / "tiny.jsonl")


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """The settings of a run, with adapters in float32 beside bfloat16, and its plan."""
    settings = full_size.settings("tiny", "pso-online", tmp_path_factory.mktemp("online"))
    settings = dataclasses.replace(settings, dtype="bfloat16", mixed_precision="no")
    return settings, full_size.plan(settings, tiny=True, cuda=False)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def phases(config, method):
    full_size.run(full_size.prepare(dataclasses.replace(config, methods=(method,))))
    about, *records = lines(config.out)
    assert about["config"]["models"] == ["tiny"] and "torch" in about["versions"]
    assert all(record["model"] == "tiny" and record["method"] == method for record in records)
    assert all(record["seconds"] > 0 and record["tflop"] > 0 and record["planned_gb"] > 0 for record in records)
    return {record["phase"]: record for record in records}


@pytest.mark.slow
def test_online_pso_has_a_line_for_each_phase(config, online, monkeypatch):
    monkeypatch.setattr(full_size, "plan", lambda *_: online[1])
    found = phases(config, "pso-online")
    assert {phase: record["calls"] for phase, record in found.items()} == {"sampling": 1, "reference": 1, "update": 1}
    assert found["update"]["tflop"] > 2 * found["reference"]["tflop"], "forward and backward of the same transitions"


@pytest.mark.slow
def test_sdpo_has_a_line_for_each_phase(config):
    found = phases(config, "sdpo")
    assert {phase: record["calls"] for phase, record in found.items()} == {"sampling": 1, "update": 4}


@pytest.mark.slow
def test_distar_has_a_line_for_each_update(config):
    found = phases(config, "distar")
    assert {phase: record["calls"] for phase, record in found.items()} == {"assistant update": 1, "student update": 1}
    assert found["student update"]["tflop"] > found["assistant update"]["tflop"]


def test_the_watched_loop_trains_as_ever(online, tmp_path):
    weights = []
    for watched in (False, True):
        settings = dataclasses.replace(online[0], out=tmp_path / str(watched))
        setup = full_size.build(settings, True, "cpu")
        if watched:
            watch = full_size.Watch(setup, ["update"], cuda=False)
            assert not watch.rounds(setup, 1e-9), "no time after the first round"
        else:
            next(train_online.train(setup))
        weights.append(setup.model.trained_tensors())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_memory_and_utilisation_of_a_card(online):
    """With a card's figures in the place of measured ones."""
    settings, footprint = online
    setup = full_size.build(settings, True, "cpu")
    watch = full_size.Watch(setup, ["update"], cuda=False)
    watch.seconds |= {"sampling": [9.0], "update": [2.0, 1.0, 7.0]}
    watch.peaks["update"] = 3 * full_size.GB
    gpu = full_size.named("A100-80")
    sampling, update = full_size.records(footprint, watch, gpu)
    flops = footprint.flops(settings.gradient_checkpointing)
    assert update["seconds"] == 2.0 and update["calls"] == 3
    assert update["tflop"] * 1e12 == pytest.approx(sum(flops["update"].values())), "one update a round"
    assert sampling["tflop"] * 1e12 == pytest.approx(sum(sum(flops[part].values()) for part in ("rollout", "decode")))
    assert update["peak_gb"] == 3 and update["planned_over_measured"] == pytest.approx(update["planned_gb"] / 3)
    assert "peak_gb" not in sampling
    lowest, highest = (update["tflop"] * 1e12 / gpu.peak(dtype) / 2.0 for dtype in ("bfloat16", "float32"))
    assert lowest < update["mfu"] < highest, "the adapters' products count at float32's peak"
    assert update["planned_gb"] * full_size.GB > sum(footprint.fixed.values())


def test_each_line_is_written_at_once_and_a_failure_is_a_line(config, monkeypatch):
    def measured(config, gpu, model, method, folder):
        if method == "pso-online":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        seen.append(len(lines(config.out)))
        if method == "distar":
            config.budget = -1.0
        return [{"model": model, "method": method, "seconds": 1.0}]

    seen = []
    monkeypatch.setattr(full_size, "measure", measured)
    config.methods = ("pso-online", "sdpo", "distar", "sdpo")
    full_size.run((config, None))
    _, failed, sdpo, distar, late = lines(config.out)
    assert failed["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate"
    assert sdpo["method"] == "sdpo" and distar["method"] == "distar" and seen == [2, 3]
    assert late == {"model": "tiny", "method": "sdpo", "error": "left out: -1 seconds are over"}


@pytest.mark.parametrize("method", full_size.METHODS)
@pytest.mark.parametrize("model", ["sd-turbo", "sdxl"])
def test_the_settings_are_the_recipes(model, method, tmp_path):
    """But for adapters (DI*), batches, and clips that random networks would exceed."""
    found = full_size.settings(model, method, tmp_path)
    recipe = full_size.make_config(type(found), method, "full")
    other = {name for name in vars(found) if getattr(found, name) != getattr(recipe, name)}
    free = {"model", "teacher", "reward", "prompts", "out", "save_every", "rounds", "updates"}
    assert other - free <= full_size.SMALL[method].keys() | (full_size.ADAPTERS.keys() if method == "distar" else set())


@pytest.fixture
def cut_small(monkeypatch):
    """SD-Turbo's and PickScore's published configurations, with less of everything."""
    architectures = full_size.architectures
    small = {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "attention_head_dim": 2, "sample_size": 8}
    monkeypatch.setitem(architectures.UNETS, "sd-turbo", architectures.UNETS["sd-turbo"] | small)
    monkeypatch.setattr(architectures, "VAE", architectures.VAE | {"block_out_channels": (32, 32, 32, 32)})
    monkeypatch.setattr(architectures, "CLIP_H", architectures.CLIP_H | {"num_hidden_layers": 1, "vocab_size": 100})
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(architectures, "CLIP_H_TEXT", architectures.CLIP_H_TEXT | tower)
    monkeypatch.setattr(architectures, "CLIP_H_VISION", architectures.CLIP_H_VISION | tower)


def test_random_networks_of_a_published_configuration_can_be_trained(cut_small):
    model = full_size.random_model("sd-turbo", "cpu", torch.bfloat16)
    cond = model.encode_prompts(full_size.PROMPTS)
    assert cond.device.type == "cpu" and cond.dtype == torch.bfloat16 and cond.isfinite().all()
    model.add_lora(2)
    t = torch.full((4,), 499)
    model.predict_eps(torch.randn(4, *model.latent_shape), t, cond).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.trained_parameters().values())
    assert model.decode(torch.randn(1, *model.latent_shape)).isfinite().all()
    pictures = torch.rand(4, 3, 64, 64, requires_grad=True)
    full_size.random_reward("cpu")(pictures, full_size.PROMPTS).sum().backward()
    assert pictures.grad.isfinite().all() and pictures.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", full_size.METHODS)
def test_a_published_configuration_is_measured_as_on_a_gpu(cut_small, config, method, tmp_path):
    """The prompts are encoded by the random encoders, which are then dropped, and the loop's rounds run."""
    records = full_size.measure(config, None, "sd-turbo", method, tmp_path)
    assert records and all(record["seconds"] > 0 and record["tflop"] > 0 for record in records)


@pytest.mark.parametrize(
    "device,memory,name",
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "H100"),
        ("NVIDIA H100 PCIe", 79.1, "H100-PCIe"),
        ("NVIDIA H200", 139.8, "H200"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "A100-80"),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX4090"),
    ],
)
def test_the_card_is_found_by_its_name(device, memory, name):
    assert full_size.card(device, memory) == name


def test_a_card_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="NVIDIA T4 is not in reproduce/planner/gpus.py: name the GPU"):
        full_size.card("NVIDIA T4", 14.6)


@pytest.mark.parametrize(
    "args,message",
    [
        ([], "error: no CUDA device: run this on a machine with a GPU, or try it by --models tiny --device cpu"),
        (["--device", "cpu"], "error: --device cpu is for trying the script: use --models tiny with it"),
        (["--seconds", "0"], "error: seconds = 0.0: expected more than 0"),
    ],
)
def test_bad_input(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        full_size.main([*args, "--out", str(tmp_path / "no.jsonl")])
    assert stopped.value.code == 2 and capsys.readouterr().err.strip() == message


def test_a_result_is_not_written_over(config):
    config.out.parent.mkdir()
    config.out.write_text("{}\n")
    with pytest.raises(ValueError, match="holds measurements already: remove it, or choose another --out"):
        full_size.prepare(config)
