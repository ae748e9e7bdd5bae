"""What spares memory changes no update; checkpoints survive a full disk; launch configurations are accelerate's own."""

import contextlib
import dataclasses
import json
import resource
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from fsalign_lib.models import load as models
from fsalign_lib.pocket.weights import WEIGHTS
from reproduce import pso_table2, train_online
from reproduce.harness import rows as table_runs
from reproduce.harness.command import RESULTS, TableConfig, at_scale, prepare
from reproduce.harness.declare import World
from reproduce.recipes import make_config
from reproduce.training import checkpoints
from reproduce.training import run as runs
from tests import tiny

LAUNCH = Path(runs.__file__).parents[1] / "launch"


@pytest.fixture
def online(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(tiny.PROMPTS))

    def make(out, **overrides):
        small = {
            "model": str(folder),
            "prompts": str(tmp_path / "prompts.txt"),
            "rounds": 2,
            "pairs": 5,
            "minibatch": 5,
        }
        small |= {"out": tmp_path / out, "training": "lora", "rank": 2, "lr": 1e-3}
        config = make_config(train_online.OnlineConfig, "pso-online", **(small | overrides))
        return train_online.prepare(config, reward=tiny.brightness)

    return make


def gradients(setup, monkeypatch):
    """Of the first update, as the optimizer sees them, away from the reference; and its record."""
    with torch.no_grad():
        for i, p in enumerate(setup.run.parameters):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)), alpha=3e-3)
    seen = []
    optimizer = setup.run.optimizer.optimizer
    monkeypatch.setattr(optimizer, "step", lambda *a: seen.append([p.grad.clone() for p in setup.run.parameters]))
    record = next(train_online.train(setup))
    assert len(seen) == 1 and record["gradient"] > 0
    return seen[0], record


@pytest.mark.parametrize("spared", [{"micro_batch": 2}, {"micro_batch": 1}, {"gradient_checkpointing": True}])
def test_sparing_memory_changes_no_update(online, monkeypatch, spared):
    """Micro-batches of 2, ... and 1 of 15 steps of 5 pairs: a mean of means would give the last one too much weight."""
    expected, record = gradients(online("whole", training="full"), monkeypatch)
    setup = online("spared", training="full", **spared)
    sizes = []
    setup.model.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    found, same = gradients(setup, monkeypatch)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert record == pytest.approx(same, rel=1e-4, abs=1e-6) and record.keys() == same.keys()
    if "micro_batch" in spared:
        sampling, start = 4, 1  # network calls of the rollout, and of the check that the ratio is 1
        assert max(sizes[sampling + start :]) == 2 * spared["micro_batch"], "never more than it was given"


def test_gradient_checkpointing_keeps_fewer_activations(online):
    def saved(setup):
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        model = setup.model
        x, cond = torch.randn(2, *model.latent_shape), model.encode_prompts(tiny.PROMPTS[:2])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model.predict_eps(x, 500, cond).sum()
        return count

    assert saved(online("a", gradient_checkpointing=True)) < 0.5 * saved(online("b"))


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_half_precision_starts_at_its_own_reference(online, mixed_precision):
    """Policy and reference compute alike, so the log-ratio is 0 at the start; what is trained stays float32."""
    for training in ("lora", "full"):
        dtype = "bfloat16" if training == "lora" else "float32"
        setup = online(f"{training}-run", training=training, dtype=dtype, mixed_precision=mixed_precision)
        assert setup.model.dtype == getattr(torch, dtype)
        assert {p.dtype for p in setup.run.parameters} == {torch.float32}
        pairs = train_online.sample_pairs(setup, 0)
        ref = train_online.reference_log_probs(setup, pairs)
        which, steps = next(train_online.minibatches(setup, pairs, epoch=0))
        _, diagnostics = train_online.minibatch_loss(setup, pairs, ref, which, steps)
        assert pairs.logp_old.dtype == ref.dtype == torch.float32
        assert diagnostics["drift"] < 1e-6
        before = [p.detach().clone() for p in setup.run.parameters]
        next(train_online.train(setup))
        assert any(not torch.equal(p, b) for p, b in zip(setup.run.parameters, before, strict=True))


def test_each_run_of_a_process_computes_in_its_own_precision(online, folder):
    """And a model that is loaded afterwards in its own: a table trains and evaluates in one process."""

    def computed_in(model):
        found = []
        model.unet.conv_in.register_forward_hook(lambda *call: found.append(call[2].dtype))
        with torch.no_grad():
            model.predict_eps(torch.randn(1, *model.latent_shape), 500, model.encode_prompts(["a cat"]))
        return found[0]

    for number, precision in enumerate(("bf16", "no")):
        setup = online(f"run-{number}", mixed_precision=precision)
        next(train_online.train(setup))
        assert setup.run.accelerator.mixed_precision == precision
        assert computed_in(setup.model) == {"bf16": torch.bfloat16, "no": torch.float32}[precision]
        for dtype in (torch.float32, torch.bfloat16):
            assert computed_in(models.load(folder, dtype)) == dtype


@pytest.mark.parametrize(
    "settings,told",
    [
        (
            {"training": "full", "dtype": "bfloat16"},
            "steps of lr 0.001 are lost in half precision; use --dtype float32",
        ),
        ({"dtype": "float16"}, "small gradients vanish unless the loss is scaled; use --mixed-precision fp16"),
        ({"optimizer": "adamw8bit"}, "optimizer adamw8bit needs a GPU: use --optimizer adamw"),
        ({"micro_batch": 0}, "micro_batch = 0: expected more than 0"),
    ],
)
def test_settings_that_do_not_train_are_refused(online, settings, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=told):
        online("run", **settings)


def test_eight_bit_adam_without_its_package(online, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs bitsandbytes: pip install bitsandbytes, or use --optimizer adamw"):
        online("run", optimizer="adamw8bit")


def test_a_run_goes_on_with_its_memory_spared_otherwise(online):
    list(train_online.train(online("run", rounds=1)))
    resumed = online("run", resume=True, micro_batch=2, gradient_checkpointing=True, vae_slicing=True, rollout_batch=1)
    assert resumed.run.start == 1
    with pytest.raises(ValueError, match=r"was run with mixed_precision = 'no' \(now 'bf16'\)"):
        online("run", resume=True, mixed_precision="bf16")


def test_a_run_that_knew_fewer_settings_goes_on(online):
    list(train_online.train(online("run", rounds=1)))
    state = checkpoints.last_checkpoint(online("other").config.out.with_name("run")) / "state.json"
    content = json.loads(state.read_text())
    for name in ("dtype", "optimizer", "micro_batch", "gradient_checkpointing", "vae_slicing"):
        del content["config"][name]
    state.write_text(json.dumps(content))
    assert online("run", resume=True).run.start == 1
    with pytest.raises(ValueError, match=r"was run with dtype = 'float32' \(now 'bfloat16'\)"):
        online("run", resume=True, dtype="bfloat16")


# a full disk


@contextlib.contextmanager
def files_no_longer_than(size):
    """As on a full disk, writing more fails; for this process alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("part", ["trained.safetensors", "optimizer.pt", "state.json"])
def test_a_full_disk_leaves_the_checkpoint_before(online, part, monkeypatch, capsys):
    setup = online("run", rounds=3, save_every=1)
    rounds = train_online.train(setup)
    next(rounds)
    first = checkpoints.last_checkpoint(setup.config.out)
    files = {path.name: path.read_bytes() for path in first.iterdir()}
    if part == "state.json":  # the smallest: nothing before it would fit
        monkeypatch.setattr(checkpoints, "write_json", partial(fail_for_want_of_space, checkpoints.write_json))
        limit = contextlib.nullcontext()
    else:
        limit = files_no_longer_than(len(files[part]) - 1000)
    with limit, pytest.raises(OSError) as failed:
        next(rounds)
    told = str(failed.value)
    assert f"cannot write checkpoint {first.parent / '000002'} (" in told and "\n" not in told
    assert f"{first} is still whole: free space, then go on with --resume" in told
    assert [path.name for path in first.parent.iterdir()] == ["000001"]
    assert {path.name: path.read_bytes() for path in first.iterdir()} == files
    monkeypatch.undo()
    resumed = online("run", rounds=3, save_every=1, resume=True)
    assert resumed.run.start == 1 and len(list(train_online.train(resumed))) == 2


def fail_for_want_of_space(original, path, content):
    raise OSError(28, "No space left on device", str(path))


def test_a_full_disk_is_told_in_one_line(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(tiny.PROMPTS))
    monkeypatch.setattr(checkpoints, "write_json", partial(fail_for_want_of_space, None))
    argv = ["--model", folder, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "run", "--rounds", 1]
    argv += ["--pairs", 1, "--minibatch", 1, "--reward", "jpeg-incompressibility"]
    with pytest.raises(SystemExit) as stopped:
        train_online.main([str(part) for part in argv])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(told) == 1
    assert "No space left on device" in told[0] and "there is none before it: free space, then go on" in told[0]


# what was run before these settings were there


@pytest.mark.skipif(
    not all((WEIGHTS / name).is_dir() for name in table_runs.NETWORKS), reason="the pocket world is not built"
)
def test_the_committed_runs_are_accepted(tmp_path):
    result = json.loads((RESULTS / "pso_table2.json").read_text())
    work = tmp_path / "runs"
    work.mkdir()
    for run in result["runs"]:
        run["settings"]["prompts"] = result["prompts"]
        table_runs.run_path(work, run["row"], run["seed"]).write_text(json.dumps(run))
    made = prepare(at_scale(pso_table2.TABLE, "pocket"), TableConfig(work=work, out=tmp_path))
    world = World(settings={"pso-online": {"gradient_checkpointing": True, "micro_batch": 4}})
    spared = dataclasses.replace(made, world=world)
    table_runs.check_same(spared, "online", 0)
    for other in ({"dtype": "bfloat16"}, {"rounds": 61}, {"mixed_precision": "bf16"}):
        changed = dataclasses.replace(made, world=World(settings={"pso-online": other}))
        with pytest.raises(ValueError, match="online-0.json has other settings"):
            table_runs.check_same(changed, "online", 0)


# launching


def test_a_checkpoint_in_another_precision_says_so(online, folder):
    setup = online("run", dtype="bfloat16", rounds=1)
    list(train_online.train(setup))
    with pytest.raises(ValueError, match=r"was trained on '.+' in torch.bfloat16: load it so, not in torch.float32"):
        models.load(folder).load_adapter(checkpoints.last_checkpoint(setup.config.out))
    evaluated = models.load(folder)
    evaluated.load_adapter(checkpoints.last_checkpoint(setup.config.out), any_precision=True)
    for name, p in evaluated.trained_parameters().items():
        assert torch.equal(p, setup.model.trained_parameters()[name].to(p.dtype))


CONFIGS = sorted(LAUNCH.glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_launch_configurations(path):
    config = load_config_from_file(str(path))
    expected = {
        "one_gpu": ("NO", 1),
        "eight_gpus": ("MULTI_GPU", 8),
        "fsdp": ("FSDP", 8),
        "deepspeed_zero2": ("DEEPSPEED", 8),
    }[path.stem]
    assert (config.distributed_type.value, config.num_processes) == expected
    assert config.num_machines == 1 and not config.use_cpu
    assert config.mixed_precision == "no", "the scripts' own setting decides"
    head = path.read_text().split("compute_environment")[0]
    assert f"accelerate launch --config_file reproduce/launch/{path.name} reproduce/train_online.py" in head
    plugin = {"fsdp": config.fsdp_config, "deepspeed_zero2": config.deepspeed_config}.get(path.stem)
    if path.stem == "fsdp":
        assert plugin["fsdp_version"] == 2 and plugin["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    if path.stem == "deepspeed_zero2":
        assert plugin["zero_stage"] == 2 and plugin["gradient_accumulation_steps"] == 1


def test_every_launch_file_is_in_the_table_of_what_was_run():
    told = (LAUNCH / "README.md").read_text()
    assert {path.name for path in LAUNCH.iterdir()} - {"README.md"} == {
        name for name in [path.name for path in LAUNCH.iterdir()] if f"| `{name}` |" in told
    }
    script = (LAUNCH / "slurm.sh").read_text()
    assert "reproduce/launch/eight_gpus.yaml" in script and "--resume" in script
    for option in ("--num_machines", "--num_processes", "--machine_rank", "--main_process_ip", "--main_process_port"):
        assert option in script


def test_the_settings_of_the_readme_exist():
    settings = {field.name for field in dataclasses.fields(train_online.OnlineConfig)}
    table = (LAUNCH / "README.md").read_text().split("| setting |")[1].split("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 5 and all(row.split("`")[1].split("=")[0] in settings for row in rows)
