"""DI++ and DI* at the papers' sizes: networks in parts, or adapters on one network, from a table to its page."""

import pytest
import torch
from safetensors.torch import load_file

from fsalign_lib.models import student_teacher
from fsalign_lib.models.load import load
from reproduce import dipp_table1, distar_table1, distar_table2, pso_table2
from reproduce.harness.command import at_scale, command
from reproduce.harness.dry_run import description
from reproduce.harness.planned import trained_rows
from reproduce.harness.variants import vary
from tests import table_worker as worker
from tests.launched import launch

SOME = {"distar_table1": ("base", "distar"), "dipp_table1": ("pretrained", "cfg4.5-reward1")}


def make(name, out, processes, *more, sharded=False):
    """Run some rows of a table on tiny twins, and make its page."""
    for argv in (("--only", *SOME[name], "--seeds", "0"), ("--table-only",)):
        each = [(name, [*argv, "--out", str(out), *more], sharded)] * processes
        assert launch(worker.table, each) == [0] * processes
    return (out / f"{name}-full.md").read_text()


def trained(out):
    """What the runs under a folder left, by run and file."""
    return {path.relative_to(out): load_file(path) for path in (out / "runs").rglob("checkpoints/*/*.safetensors")}


def assert_same(out, two):
    expected, found = trained(out), trained(two)
    assert expected.keys() == found.keys() and expected
    for path, tensors in expected.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[path][name], tensor, atol=1e-5, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("name", SOME)
def test_in_parts_a_table_reaches_its_page(name, tmp_path):
    assert "A smoke run" in make(name, tmp_path, 2, sharded=True)
    assert len(trained(tmp_path)) >= 3


@pytest.mark.long
@pytest.mark.parametrize("name", SOME)
def test_with_adapters_two_processes_make_what_one_makes(name, tmp_path):
    pages = [make(name, tmp_path / str(n), n, "--recipe", "adapters") for n in (1, 2)]
    assert all("Not the paper's settings, for want of memory: recipe adapters" in page for page in pages)
    assert_same(tmp_path / "1", tmp_path / "2")
    assert all(".lora_" in tensor for tensors in trained(tmp_path / "1").values() for tensor in tensors)


@pytest.mark.parametrize("table", [dipp_table1.TABLE, distar_table1.TABLE, distar_table2.TABLE], ids=lambda t: t.name)
def test_the_recipe_puts_every_row_on_the_teachers_network(table):
    full = at_scale(table, "full")
    before, after = trained_rows(full, "full"), trained_rows(vary(full, "full", "adapters"), "full")
    for name, config in after.items():
        assert (config.training, config.dtype, config.mixed_precision) == ("lora", "bfloat16", "no")
        assert config.model == config.teacher == full.teachers["full"]
        assert config.gradient_checkpointing and config.guidance == before[name].guidance
        if full.models["full"] != config.teacher:
            assert config.time == 399, "DMD2's, from whose weights it does not start"
    told = description(vary(full, "full", "adapters"), "full")
    sourced = [line for line in told.splitlines() if line.startswith("  training = 'lora'")]
    assert len(sourced) == len(after) and all("# not the paper's: memory" in line for line in sourced)


def test_student_and_assistant_are_adapters_on_one_network(folder):
    trio = student_teacher.build_trio(load(folder), load(folder), "lora", 2, None, 0)
    assert trio.student.unet is trio.assistant.unet is trio.teacher.unet and len(trio.networks()) == 1
    assert (trio.student.adapter, trio.assistant.adapter, trio.teacher.adapter) == ("default", "assistant", None)


def test_the_recipe_is_refused_where_it_is_not_meant(tmp_path, capsys):
    for table, argv, told in (
        (distar_table1.TABLE, [], "--recipe adapters is one of full scale: add --scale full"),
        (
            pso_table2.TABLE,
            ["--scale", "full"],
            "--recipe adapters is for distill methods, of which pso_table2 has none",
        ),
        (distar_table1.TABLE, ["--scale", "full"], "--recipe adapters must not write over"),
    ):
        with pytest.raises(SystemExit):
            command(table, None, ["--recipe", "adapters", *argv])
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(distar_table1.TABLE, None, ["--recipe", "adaptors", "--scale", "full"])
    assert "unknown recipe 'adaptors': choose from adapters" in capsys.readouterr().err
