"""Run tables on a tiny pipeline, with a picture's brightness for every reward, utility and metric."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from reproduce import train_distill, train_online
from reproduce.data import sampled_pairs
from reproduce.harness import command, rows
from reproduce.harness.command import TableConfig, at_scale
from reproduce.harness.declare import SMOKE, Row, Table, World
from tests import tiny


def on_tiny(table: Table, folder: Path, **changes) -> Table:
    """Return the table at pocket scale, changed, with the tiny pipeline for each of its models."""
    model, table = {"pocket": str(folder)}, at_scale(table, "pocket")

    def row(one: Row) -> Row:
        sampled = one.sampled and replace(one.sampled, models=model)
        return replace(one, sampled=sampled, composed=one.composed and model)

    table = replace(table, models=model, teachers=model, **changes)
    starts = {name: row(one) for name, one in table.own.starts.items()}
    own, rows_ = replace(table.own, starts=starts), {name: row(one) for name, one in table.rows.items()}
    return replace(table, rows=rows_, own=own)


def small(training_prompts: str | Path | None, settings: dict[str, dict] | None = None, **changes) -> World:
    """Return the smoke world on training prompts of a file, with more settings for some methods."""
    more = {name: {**SMOKE.settings.get(name, {}), **own} for name, own in (settings or {}).items()}
    given = training_prompts and str(training_prompts)
    return replace(SMOKE, training_prompts=given, settings=SMOKE.settings | more, **changes)


@contextlib.contextmanager
def brightness():
    """Put brightness in the place of all that is loaded to score pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for loop in (train_online, train_distill):
            patch.setattr(loop, "load_reward", lambda *_, **__: tiny.brightness)
        patch.setattr(sampled_pairs, "pocket_utility", lambda taste: tiny.brightness)
        for load in ("load_metrics", "load_likeness"):
            patch.setattr(rows, load, lambda names, *_, **__: dict.fromkeys(names, tiny.brightness))
        yield


def prepare(table: Table, world: World, out: Path, **config) -> tuple[TableConfig, rows.Work | None]:
    """Check a call with --smoke --out, and load what it needs."""
    call = TableConfig(smoke=True, out=out, **config)
    command.check(table, call)
    with brightness():
        return call, command.prepare(table, call, world)


def make(table: Table, world: World, out: Path, **config) -> dict | None:
    """Run what the call asks for; return the table's result, None while runs are missing."""
    call, work = prepare(table, world, out, **config)
    with brightness():
        command.run(table, call, work)
    path = out / f"{table.name}.json"
    return json.loads(path.read_text()) if path.exists() else None
