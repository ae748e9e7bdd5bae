"""Put a declared variant of the papers' recipes in the place of a table's own: `--recipe adapters`, at full scale.

| recipe | for | what it changes |
| --- | --- | --- |
| adapters | DI++, DI* and their baselines | student and assistant are adapters on the teacher's network, held once |
"""

from dataclasses import replace

from fsalign_lib.models.presets import PRESETS
from reproduce.harness.command import with_rows
from reproduce.harness.declare import Row, Table
from reproduce.recipes import VARIANTS
from reproduce.training.methods import METHODS


def vary(table: Table, scale: str, recipe: str) -> Table:
    """Return the table with the recipe's settings on all rows of its loop, and a note of it for the page.

    With adapters, a student that has weights of its own (DI*'s, DMD2's) starts from the teacher's in their place, at
    the same time: its base is the one network that there is.

    Raises:
        ValueError: not at full scale, an unknown recipe, or no row of its loop.
    """
    if recipe not in VARIANTS:
        raise ValueError(f"unknown recipe {recipe!r}: choose from {', '.join(VARIANTS)}")
    if scale != "full":
        raise ValueError(f"--recipe {recipe} is one of full scale: add --scale full")
    loop, settings = VARIANTS[recipe]

    def concerned(row: Row) -> bool:
        return row.method is not None and METHODS[row.method].loop == loop

    if not any(map(concerned, table.rows.values())):
        raise ValueError(f"--recipe {recipe} is for {loop} methods, of which {table.name} has none")
    model, teacher = table.models[scale], table.teachers[scale]
    if model != teacher:
        settings = settings | {
            "model": (teacher, f"{settings['training'][1]}; the paper's {model} would be a second"),
            "time": (PRESETS[model].timesteps[0], f"as {model}"),
        }

    def varied(_: str, row: Row) -> Row:
        return replace(row, settings=row.settings | settings) if concerned(row) else row

    told = ", ".join(f"{name} = {value}" for name, (value, _) in settings.items())
    note = f"**Not the paper's settings, for want of memory: recipe {recipe}, with {told}.** {table.note}"
    return replace(with_rows(table, varied), note=note)
