"""Settings given by --set: what they apply to, what is refused, where they are seen again."""

from pathlib import Path

import pytest

from reproduce import plan, pso_table2
from reproduce.harness import dry_run, page, rows
from reproduce.harness.command import TableConfig, at_scale, check
from reproduce.harness.overrides import changes_numbers, given_settings, override


def given(table, *settings, scale="pocket"):
    table, apart = override(at_scale(plan.TABLES[table], scale), scale, settings)
    return given_settings(table, apart)


@pytest.mark.parametrize(
    "table,setting,where",
    [
        ("pso_table2", "lr=1e-3", {"offline", "online"}),
        ("pso_table2", "sum_steps=inside", {"offline", "online"}),
        ("pso_table2", "rounds=3", {"online"}),  # offline methods have none
        ("pso_table1", "offline.batch=8", {"dpo", "sft", "offline"}),  # the loop, though a row is called so too
        ("pso_table1", "pso-offline.batch=8", {"offline"}),
        ("pso_table1", "sft.batch=8", {"sft"}),
        ("pso_table3", "diffusion-dpo.lr=1", {"dpo"}),  # a row to start from
        ("sdpo_lcm", "ddpo.clip=None", {"ddpo"}),
        ("distar_table2", "distar-10.reward_scale=3", {"distar-10"}),
    ],
)
def test_a_setting_goes_to_the_rows_that_it_names(table, setting, where):
    assert given(table, setting).keys() == where


@pytest.mark.parametrize(
    "text,value",
    [
        ("online.micro_batch=4", 4),
        ("online.micro_batch=none", None),
        ("online.lr=1e-5", 1e-5),
        ("online.grad_clip=inf", float("inf")),
        ("online.betas=(0.5, 0.9)", (0.5, 0.9)),
        ("online.mixed_steps=1,2", (1, 2)),
        ("online.shared_start=true", True),
        ("online.dtype=bfloat16", "bfloat16"),
        ("online.prompts=animals", "animals"),
        ("online.tracker=tensorboard", "tensorboard"),
    ],
)
def test_values_have_the_type_of_the_setting(text, value):
    found = given("pso_table2", text)["online"]
    assert [*found.values()] == [value] and type(*found.values()) is type(value)


@pytest.mark.parametrize(
    "table,text,message",
    [
        ("pso_table2", "online.microbatch=4", "OnlineConfig has no setting 'microbatch': did you mean micro_batch"),
        ("pso_table2", "online.micro_batch=four", "'four' is no value of micro_batch, expected int, NoneType"),
        ("pso_table2", "online.micro_batch=4.5", "'4.5' is no value of micro_batch"),
        ("pso_table2", "online.dtype=float8", "expected 'float32', 'bfloat16', 'float16'"),
        ("pso_table2", "onlin.lr=1", "pso_table2 trains nothing of that name: did you mean online"),
        ("pso_table2", "distill.lr=1", "trains nothing of that name: choose from offline, online, pso-offline"),
        ("pso_table2", "online.seed=1", "seed is the table's own"),
        ("pso_table2", "online.model=sdxl", "model is the table's own"),
        ("pso_table2", "online.lr", "expected NAME=VALUE or SCOPE.NAME=VALUE"),
        ("pso_table2", "targets.subject=cat", "pso_table2 has no targets"),
        ("pso_table4", "pairs.count=4", "pso_table4 has no pairs"),
        ("pso_table4", "targets.subjekt=cat", "Targets has no setting 'subjekt': did you mean subject"),
    ],
)
def test_what_is_no_setting_is_refused(table, text, message):
    with pytest.raises(ValueError, match="--set " + text.replace("(", r"\(")) as refused:
        given(table, text)
    assert message in str(refused.value)


def test_numbers_that_change_have_a_folder_of_their_own(tmp_path):
    assert changes_numbers(given("pso_table2", "lr=1")) and changes_numbers(given("pso_table4", "targets.prior=3"))
    assert not changes_numbers(given("pso_table2", "micro_batch=4", "tracker=tensorboard"))
    table, apart = override(at_scale(pso_table2.TABLE, "pocket"), "pocket", ["online.lr=1.0"])
    with pytest.raises(ValueError, match="--set must not write over .*results: name another folder with --out"):
        check(table, TableConfig(given=("online.lr=1.0",)))
    config = TableConfig(given=("online.lr=1.0",), out=tmp_path)
    check(table, config)
    assert config.work == tmp_path / "runs" / "pso_table2"


def test_what_was_given_goes_before_all_else(tmp_path):
    """Also before what --smoke or twins cut down; and the digest of the run's settings has it."""
    from types import SimpleNamespace

    from reproduce.harness.declare import SMOKE

    table, apart = override(at_scale(pso_table2.TABLE, "pocket"), "pocket", ["online.rounds=7"])
    for some, rounds in ((given_settings(table, apart), 7), ({}, 2)):
        world = SimpleNamespace(**vars(SMOKE) | {"given": some})
        work = SimpleNamespace(table=table, world=world, folder=Path(tmp_path), threads=None, model=None)
        assert rows.training_config(work, "online", 0).rounds == rounds
        assert rows.training_settings(work, "online", 0)["training"]["rounds"] == rounds


def test_dry_run_and_page_say_what_was_given():
    table, apart = override(at_scale(pso_table2.TABLE, "pocket"), "pocket", ["online.lr=0.5", "pairs.steps=3"])
    lines = dry_run.description(table, "pocket", apart).splitlines()
    assert "  lr = 0.5  # --set" in lines and "  steps = 3  # --set" in lines
    told = page.given({"online": {"lr": 0.5, "reward": "hps"}})
    assert told.endswith("given by --set.** online: lr = 0.5, reward = hps.")
