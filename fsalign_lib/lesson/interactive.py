"""Let a reader move a figure: controls over arrays that were computed beforehand."""

import functools
import inspect
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from fsalign_lib.plotting import png


def move(draw: Callable[..., Figure], colors: int = 64, **values: Sequence) -> None:
    """Show a figure and, above it, a control for each argument of `draw`: a menu for texts, else a slider that plays.

    Without a reader (nbconvert, nbval, a notebook that was not run yet) there is the figure alone. So a committed
    notebook holds a plain PNG and no widget, and a reader of the rendered page sees where the controls begin.

    Args:
        draw: called by name with one value of each argument, returns the figure. It is to read arrays, not to compute
            them. Each figure is drawn once. The first one is of the defaults of `draw`.
        colors: of the PNG's palette
        values: what each argument may be, by its name

    Raises:
        ValueError: an argument has no value to choose from, or a default that is not among its values.
    """
    from IPython.display import Image, Markdown, display  # only notebooks have IPython and ipywidgets

    frame = functools.cache(lambda *chosen: png(draw(**dict(zip(values, chosen, strict=True))), colors))
    starts = {name: _start(draw, name, some) for name, some in values.items()}
    if not _has_reader():
        names = ", ".join(f"**{name.replace('_', ' ')}**" for name in values)
        display(Markdown(f"*Run this cell to move* {names}."), Image(frame(*starts.values())))
        return
    controls = [_control(name, some, starts[name]) for name, some in values.items()]
    display(*(row for row, _ in controls))
    picture = display(Image(frame(*starts.values())), display_id=True)
    for _, control in controls:
        control.observe(lambda _: picture.update(Image(frame(*(one.value for _, one in controls)))), "value")


def _start(draw: Callable, name: str, values: Sequence):
    """Return the default that `draw` has for an argument, or the first of the values."""
    if len(values) == 0:
        raise ValueError(f"{name} has no values: give at least one to choose from")
    default = inspect.signature(draw).parameters[name].default
    if default is inspect.Parameter.empty:
        return values[0]
    if default not in values:
        raise ValueError(f"{name} begins at {default!r}: expected one of {list(values)}")
    return default


def _has_reader() -> bool:
    """Say whether someone can answer a cell: JupyterLab's requests allow input, those of nbconvert and nbval do not."""
    from IPython import get_ipython

    request = getattr(get_ipython(), "get_parent", dict)()
    return bool(request.get("content", {}).get("allow_stdin"))


def _control(name: str, values: Sequence, start):
    """Return (what is displayed, the widget whose value is observed)."""
    from ipywidgets import Dropdown, HBox, Layout, Play, SelectionSlider, jslink

    label, wide = name.replace("_", " "), {"description_width": "9em"}
    if isinstance(values[0], str):
        menu = Dropdown(options=list(values), value=start, description=label, style=wide)
        return menu, menu
    options = [(f"{value:.3g}" if isinstance(value, float) else str(value), value) for value in values]
    slider = SelectionSlider(options=options, value=start, description=label, style=wide, layout=Layout(width="34em"))
    play = Play(min=0, max=len(values) - 1, value=slider.index, interval=300)
    jslink((play, "value"), (slider, "index"))
    return HBox([slider, play]), slider
