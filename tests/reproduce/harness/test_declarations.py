"""What holds of all tables as they are declared, at both scales."""

import importlib
import re
from dataclasses import fields

import pytest

from reproduce.data.pair_settings import SOURCES, FullPairConfig, PairConfig
from reproduce.harness import dry_run, targets
from reproduce.harness.claims import PAPERS
from reproduce.harness.command import at_scale
from reproduce.harness.declare import SMOKE
from reproduce.harness.rows import CONFIGS, row_of, start_of, trained_here, uses_pairs
from reproduce.recipes import SCALES, make_config, recipe, values
from reproduce.training.methods import METHODS

TABLES = {name: importlib.import_module(f"reproduce.{name}").TABLE for name in PAPERS}
LONGER = {"distar-long"}  # rows that train longer than the others of their tables


def config(row, scale, **more):
    kind = CONFIGS[METHODS[row.method].loop]
    needed = {"pairs": "x"} if kind is CONFIGS["offline"] else {}
    needed |= {"teacher": "t"} if kind is CONFIGS["distill"] else {}
    return make_config(kind, row.method, scale, **({"model": "m"} | needed | values(row.settings) | more))


def samples(made):
    """Pictures that a run trains on: its own samples, or those of its pairs."""
    if isinstance(made, CONFIGS["distill"]):
        return made.batch * (made.updates * (1 + made.assistant_updates) + made.warmup)
    return 2 * (made.rounds * made.pairs if isinstance(made, CONFIGS["online"]) else made.updates * made.batch)


@pytest.mark.parametrize("name", TABLES)
def test_all_rows_of_a_table_train_on_as_many_samples(name):
    for world in ({}, SMOKE.settings):
        table = at_scale(TABLES[name], "pocket")
        made = {
            row: samples(config(about, "pocket", **world.get(about.method, {})))
            for row, about in table.rows.items()
            if about.method and row not in LONGER
        }
        assert len(set(made.values())) <= 1, made


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TABLES)
def test_rows_that_are_evaluated_on_one_model_are_trained_in_one_way(name, scale):
    """Their weights are loaded into the same network, one after the other."""
    table = at_scale(TABLES[name], scale)
    ways = {
        (made.training, (made.rank, made.alpha) if made.training == "lora" else None, made.dtype)
        for row in table.rows.values()
        if row.method and not row.sampled
        for made in [config(row, scale)]
    }
    assert len(ways) <= 1, ways


@pytest.mark.parametrize("scale", SCALES)
def test_a_run_that_tables_share_is_declared_alike_in_each(scale):
    found = {}
    for table in (at_scale(table, scale) for table in TABLES.values()):
        for name in (*table.rows, *table.own.starts):
            row = row_of(table, name)
            if row.runs:
                models = (row.sampled.models if row.sampled else table.models)[scale]
                about = (row.method, values(row.settings), row.seeds, models, start_of(table, name, 0))
                assert found.setdefault((row.runs, name), about) == about, (table.name, name)
    assert {folder for folder, _ in found} == {"distar", "pso_table1", "sdpo_table1"}
    there = {("pso_table1", "dpo"), ("distar", "distar-long"), ("sdpo_table1", "sdpo-hps")}
    assert there <= set(found)


def test_a_table_trains_the_rows_whose_runs_are_its_own_or_its_papers():
    trains = {
        name: {trained_here(table, row) for row in at_scale(table, "pocket").rows.values() if row.method}
        for name, table in TABLES.items()
    }
    assert {name for name, here in trains.items() if False in here} == {"sdpo_curves"}
    assert trains["sdpo_curves"] == {False} and trains["sdpo_table3"] == set()


def test_rows_declare_settings_that_their_loops_have():
    for scale in SCALES:
        for table in TABLES.values():
            for row in at_scale(table, scale).rows.values():
                if row.method:
                    config(row, scale)
                    assert recipe(row.method, scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", TABLES)
def test_a_dry_run_prints_every_setting_with_its_source(name, scale):
    table = at_scale(TABLES[name], scale)
    lines = dry_run.description(table, scale).splitlines()
    printed = [line for line in lines if re.match(r"  \w+ = ", line)]
    rows = [row for row in (*table.rows.values(), *table.own.starts.values()) if row.method]
    own = sum(len({"seed"} | {*recipe(row.method, scale), *dry_run.own_settings(table, row, scale)}) for row in rows)
    pairs = len(SOURCES[scale]) if uses_pairs(table) and not table.own.targets else 0
    assert len(printed) == own + pairs + (len(targets.SOURCES) if table.own.targets else 0)
    for line in printed:
        assert re.fullmatch(r"  \w+ = .+?  # \S.*", line) and "this row" not in line, line


def test_all_that_pairs_and_targets_depend_on_has_a_source():
    free = {"out", "threads", "data"}
    for scale, config in (("pocket", PairConfig()), ("full", FullPairConfig())):
        assert set(SOURCES[scale]) == set(vars(config)) - free
    assert set(targets.SOURCES) == {field.name for field in fields(targets.Targets)}


def test_a_row_s_setting_without_a_source_is_refused():
    with pytest.raises(ValueError, match=r"lr = 1e-05 has no source: give \(value, source\)"):
        values({"lr": 1e-5})


def test_smoke_has_sizes_for_every_method():
    assert set(SMOKE.settings) == {"pairs", "targets", *METHODS}
