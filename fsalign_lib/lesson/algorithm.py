"""Lay an algorithm of a paper beside the code that does it, line by line."""

import inspect
from html import escape
from types import ModuleType


def algorithm(title: str, lines: list[tuple[str, str, str]], sources: list[ModuleType | type]) -> None:
    """Display a table: the paper's line number, what the line does in our words, our code for it.

    Args:
        title: "PSO Alg. 2: online PSO"
        lines: (number, words, code) each. Code is one line or several of the sources, without their indentation,
            or "" where the words say why there is none.
        sources: the modules, functions or classes that the code stands in

    Raises:
        ValueError: a line of code stands in none of the sources, so that the table cannot grow stale.
    """
    from IPython.display import HTML, display  # only notebooks have IPython

    there = {line.strip() for source in sources for line in inspect.getsource(source).splitlines()}
    for number, _, code in lines:
        for line in code.splitlines():
            if line.strip() not in there:
                names = ", ".join(source.__name__ for source in sources)
                raise ValueError(f"line {number} of {title}: {line.strip()!r} stands in none of {names}")
    cell = '<td style="text-align: left; vertical-align: top">'
    rows = "\n".join(
        f"<tr>{cell}{escape(number)}</td>{cell}{escape(words)}</td>{cell}<pre>{escape(code)}</pre></td></tr>"
        for number, words, code in lines
    )
    head = "".join(f'<th style="text-align: left">{name}</th>' for name in ("line", "what it does", "our code"))
    display(HTML(f"<b>{escape(title)}</b>\n<table>\n<tr>{head}</tr>\n{rows}\n</table>"))
