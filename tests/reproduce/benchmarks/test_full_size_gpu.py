"""The GPU benchmark's own logic, on a small twin and the CPU; no time and no utilisation is held to anything here."""

import json

import pytest
import torch

from reproduce.benchmarks import full_size_gpu


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return full_size_gpu.GPUConfig(
        models=("tiny",),
        device="cpu",
        rows=(1, 2),
        micro_batches=(3,),
        pairs=2,
        repetitions=1,
        out=tmp_path_factory.mktemp("out") / "results" / "tiny.json",
    )


@pytest.mark.slow
def test_it_writes_a_record_for_each_case(config):
    full_size_gpu.run(full_size_gpu.prepare(config))
    result = json.loads(config.out.read_text())
    assert result["config"]["models"] == ["tiny"] and "torch" in result["versions"]
    cases = [(r["what"], r["batch"], r["gradient_checkpointing"]) for r in result["records"]]
    one = [("step", 1), ("step", 2), ("update", 3), ("round", 3)]
    assert cases == [(*case, checkpointing) for checkpointing in (False, True) for case in one]
    off, on = result["records"][: len(one)], result["records"][len(one) :]
    for without, with_ in zip(off, on, strict=True):
        assert with_["tflop"] > without["tflop"] > 0, "what is computed again is counted"
        assert with_["seconds"] > 0
    assert off[1]["tflop"] == pytest.approx(2 * off[0]["tflop"])
    assert off[2]["tflop"] == pytest.approx(12 * off[0]["tflop"]), "2 pairs, each 2 pictures at 3 steps"
    assert off[3]["tflop"] > off[2]["tflop"]


def test_random_networks_of_a_published_configuration_can_be_trained(monkeypatch):
    """What is done at full size, on SD-Turbo's and PickScore's configurations cut small."""
    architectures = full_size_gpu.architectures
    small = {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "attention_head_dim": 2, "sample_size": 8}
    monkeypatch.setitem(architectures.UNETS, "sd-turbo", architectures.UNETS["sd-turbo"] | small)
    monkeypatch.setattr(architectures, "VAE", architectures.VAE | {"block_out_channels": (32, 32, 32, 32)})
    model = full_size_gpu.random_model("sd-turbo", "cpu", full_size_gpu.PROMPTS)
    cond = model.encode_prompts(full_size_gpu.PROMPTS)
    assert cond.device.type == "cpu" and cond.dtype == torch.bfloat16
    model.add_lora(2)
    t = torch.full((4,), 499)
    model.predict_eps(torch.randn(4, *model.latent_shape), t, cond).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.trained_parameters().values())
    assert model.decode(torch.randn(1, *model.latent_shape)).isfinite().all()


def test_memory_and_utilisation_of_a_card(config, monkeypatch, tmp_path):
    """With a card's figures in the place of measured ones: ratio to the plan, utilisation, a card that is full."""
    bench = full_size_gpu.build(config, "tiny", tmp_path)
    answers = iter([(2.0, 3.0)] * 7 + [torch.OutOfMemoryError()])

    def measured(call, repetitions, cuda):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(full_size_gpu, "measure", measured)
    gpu = full_size_gpu.named("A100-80")
    records = full_size_gpu.benchmark(config, gpu, bench)
    assert records[-1]["error"] == "out of memory" and "seconds" not in records[-1]
    first = records[0]
    assert first["planned_over_measured"] == pytest.approx(first["planned_gb"] / 3.0)
    lowest, highest = (first["tflop"] * 1e12 / gpu.peak(dtype) / 2.0 for dtype in ("bfloat16", "float32"))
    assert lowest < first["mfu"] < highest, "the adapters' products count at float32's peak"
    assert first["planned_gb"] * full_size_gpu.GB > sum(bench.footprint.fixed.values())


@pytest.mark.parametrize(
    "args,message",
    [
        ([], "error: no CUDA device: run this on a machine with a GPU, or try it by --models tiny --device cpu"),
        (["--device", "cpu"], "error: --device cpu is for trying the script: use --models tiny with it"),
        (["--rows", "0"], "error: rows = (0,): expected numbers above 0"),
    ],
)
def test_bad_input(args, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        full_size_gpu.main(args)
    assert stopped.value.code == 2 and capsys.readouterr().err.strip() == message
