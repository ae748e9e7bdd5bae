"""Put settings that a table's command line gives by --set in the place of its rows' own.

| given | applies to |
| --- | --- |
| NAME=VALUE | every trained row that has the setting |
| online.NAME=VALUE (or offline, distill) | the rows of a loop |
| METHOD.NAME=VALUE | the rows of a method, such as pso-online |
| ROW.NAME=VALUE | a row of the table |
| pairs.NAME=VALUE, targets.NAME=VALUE | what offline methods learn from (data/pair_settings.py, harness/targets.py) |

Where names are the same, a loop goes before a method, and a method before a row. Values are written as in Python (4,
1e-5, None, (0.9, 0.99)); true, false and words need no quotes.
"""

import ast
import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args, get_type_hints

from reproduce.data.pair_settings import FullPairConfig, PairConfig
from reproduce.harness.command import with_rows
from reproduce.harness.declare import GIVEN, Row, Table
from reproduce.harness.rows import CONFIGS, free_settings, uses_pairs
from reproduce.harness.targets import Targets
from reproduce.recipes import fits
from reproduce.training.methods import METHODS

APART = ("pairs", "targets")  # scopes that are no rows
# Settings that the table, its command line or FSALIGN_DATA have; targets have none of these.
OF_RUNS = ("method", "scale", "out", "seed", "resume", "threads", "model", "teacher", "start", "pairs", "prior")
OF_PAIRS = ("out", "model", "threads", "data")
WORDS = {"true": True, "false": False, "none": None, "inf": math.inf}


def override(table: Table, scale: str, given: Sequence[str]) -> tuple[Table, dict[str, dict[str, Any]]]:
    """Return the table with the settings given, and those of "pairs" and "targets".

    Args:
        table: as it is at the scale (see command.at_scale).
        given: such as "online.micro_batch=4".

    Raises:
        ValueError: no such setting, nothing that it applies to, a value of another type, or a setting that the table
            has itself; with what was expected.
    """
    apart: dict[str, dict[str, Any]] = {}
    for each in given:
        place, equals, text = each.partition("=")
        scope, _, name = place.strip().rpartition(".")
        if not equals or not name:
            raise ValueError(f"--set {each}: expected NAME=VALUE or SCOPE.NAME=VALUE, such as online.micro_batch=4")
        if scope in APART:
            kind, own = (FullPairConfig if scale == "full" else PairConfig), OF_PAIRS
            if scope == "targets":
                kind, own = Targets, ()
            if not (table.own.targets if scope == "targets" else uses_pairs(table)):
                raise ValueError(f"--set {each}: {table.name} has no {scope}")
            apart.setdefault(scope, {})[name] = parsed(each, kind, own, name, text.strip())
            continue
        kinds = {row: CONFIGS[METHODS[about.method].loop] for row, about in concerned(each, table, scope).items()}
        having = {row: kind for row, kind in kinds.items() if name in get_type_hints(kind)} or kinds
        changed = {row: (parsed(each, kind, OF_RUNS, name, text.strip()), GIVEN) for row, kind in having.items()}

        def with_it(row: str, about: Row, name: str = name, changed: dict = changed) -> Row:
            return replace(about, settings=about.settings | {name: changed[row]}) if row in changed else about

        table = with_rows(table, with_it)
    return table, apart


def concerned(each: str, table: Table, scope: str) -> dict[str, Row]:
    """Return the trained rows that a scope names, with those that rows start from; "" names all.

    Raises:
        ValueError: there is none.
    """
    rows = {name: row for name, row in (table.own.starts | table.rows).items() if row.method}
    loops = {name: row for name, row in rows.items() if METHODS[row.method].loop == scope}
    methods = {name: row for name, row in rows.items() if row.method == scope}
    found = rows if not scope else loops or methods or {name: row for name, row in rows.items() if name == scope}
    if not found:
        known = dict.fromkeys([METHODS[row.method].loop for row in rows.values()])
        known |= dict.fromkeys([*(row.method for row in rows.values()), *rows])
        raise ValueError(f"--set {each}: {table.name} trains nothing of that name{nearest(scope, known)}")
    return found


def parsed(each: str, kind: type, own: Sequence[str], name: str, text: str) -> Any:
    """Return a value of the type that a configuration's setting has.

    Args:
        own: settings that are not to be given here.

    Raises:
        ValueError: no such setting, or the text is no such value.
    """
    kinds = get_type_hints(kind)
    if name in own:
        raise ValueError(f"--set {each}: {name} is the table's own, or an option of its script (see --help)")
    if name not in kinds or name == "loop":
        raise ValueError(f"--set {each}: {kind.__name__} has no setting {name!r}{nearest(name, kinds)}")
    try:
        value = WORDS[text.lower()] if text.lower() in WORDS else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    for one in (value, text):
        if fits(one, kinds[name]):
            return one
    expected = ", ".join(getattr(one, "__name__", repr(one)) for one in get_args(kinds[name]) or (kinds[name],))
    raise ValueError(f"--set {each}: {text!r} is no value of {name}, expected {expected}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Name the nearest of what there is, or all of it."""
    close = difflib.get_close_matches(name, known, cutoff=0.5)
    return f": did you mean {' or '.join(close)}?" if close else f": choose from {', '.join(known)}"


def given_settings(table: Table, apart: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what was given by --set: a row, "pairs" or "targets" -> setting -> value."""
    rows = {
        name: {setting: value for setting, (value, source) in row.settings.items() if source == GIVEN}
        for name, row in (table.own.starts | table.rows).items()
    }
    return {name: settings for name, settings in (rows | apart).items() if settings}


def changes_numbers(given: dict[str, dict[str, Any]]) -> bool:
    """Say whether results depend on what was given, and not memory, speed and records alone."""
    free = free_settings()
    return any(place in APART or name not in free for place, settings in given.items() for name in settings)
