"""Write a page from the JSON of `evaluate.py`: tables, curves, pictures, training, and where they came from.

One file without scripts and without a network: pictures are in it, styles are in it.
"""

import base64
import html
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from fsalign_lib.plotting import DPI, PALETTE, learning_curve, new_figure
from reproduce.common.files import write_text
from reproduce.evaluation.metrics import few_pictures

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ccc; --soft: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #16181b; --line: #444; --soft: #22262b; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { border-bottom: 1px solid var(--line); margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .92em; display: block; overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.decided td { font-weight: 600; }
code { overflow-wrap: anywhere; }
img.plot { background: #fff; padding: .4rem; border-radius: 4px; max-width: 100%; }
.sheet { display: flex; flex-wrap: wrap; gap: .7rem; }
.sheet figure { margin: 0; width: 10rem; } .sheet figure.pair { width: 16.4rem; }
.sheet div { display: flex; gap: .3rem; }
.sheet img { width: 8rem; height: auto; } .sheet figure:not(.pair) img { width: 10rem; }
.sheet img.small { image-rendering: pixelated; }
figcaption { font-size: .8em; overflow-wrap: anywhere; }
.note { background: var(--soft); padding: .5rem .8rem; border-left: 3px solid var(--line); }
footer { margin-top: 3rem; font-size: .85em; border-top: 1px solid var(--line); padding-top: .6rem; }
@media print { :root { --ink: #000; --paper: #fff; --line: #999; --soft: #fff; } body { max-width: none; margin: 0; }
  figure, tr, img { break-inside: avoid; } h2, h3 { break-after: avoid; } table { display: table; } }
"""
# Nothing in the page may run or be fetched, whatever a prompt holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
CREDIT = "Pictures of the pocket world: drawn after OpenMoji (https://openmoji.org), CC BY-SA 4.0."
SHOWN = 12  # pictures of a cell: the first prompts, not chosen
THUMBNAIL = 256  # pixels along the longer side, at most
SMALL = 128  # pictures up to this size are enlarged pixel by pixel
LINES = list(PALETTE)

escape = html.escape


def rank_warnings(result: dict) -> list[str]:
    """Warn of each side of a Frechet distance whose covariance cannot have full rank."""
    if "fid" not in result:
        return []
    about = result["fid"]
    sides = (few_pictures(about[side], about["dimensions"], side) for side in ("pictures", "reference"))
    return [line for lines in sides for line in lines]


def number(value: float | None) -> str:
    """Format four significant digits or more, without an exponent where it can be."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    value = round(value, 6)
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 3
    return f"{value:.{min(digits, 6)}f}"


def count(number: int, what: str) -> str:
    """Write a number with its noun, in the plural but for 1."""
    return f"{number} {what}{'s' * (number != 1)}"


def between(interval: dict | None) -> str:
    """Write the ends of an interval; nothing for None."""
    return f"[{number(interval['low'])}, {number(interval['high'])}]" if interval else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0, decided: Sequence[bool] = ()) -> str:
    """Write a table of texts, escaped here. From column `numbers` on, if it is not 0, they are set as numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="number"' if numbers and i >= numbers else "" for i in range(len(cells))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))

    marks = [' class="decided"' if i < len(decided) and decided[i] else "" for i in range(len(rows))]
    body = "\n".join(f"<tr{mark}>{line(row, 'td')}</tr>" for row, mark in zip(rows, marks, strict=True))
    return f"<table><thead><tr>{line(heads, 'th')}</tr></thead><tbody>\n{body}\n</tbody></table>"


def scores(result: dict) -> str:
    """Write means with their intervals; with a base, the base's and the paired differences."""
    base, above = result.get("base"), result.get("above_base", {})
    rows, decided = [], []
    for name, value in result["means"].items():
        row = [name, number(value), between(result["intervals"].get(name))]
        if base:
            gap, before = above.get(name), base["means"][name]
            both = value is not None and before is not None
            row += [number(before), number(value - before if both else None), between(gap)]
        rows.append(row)
        decided.append(bool(base and gap and not gap["low"] <= 0 <= gap["high"]))
    heads = ["metric", "mean", "95%"] + (["base", "above base", "95%"] if base else [])
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in rank_warnings(result))
    return table(heads, rows, 1, decided) + notes


def png(figure) -> str:
    """Encode a figure as an address that holds it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def plot(figure, caption: str) -> str:
    """Embed a figure as a tag, with its caption for those who do not see it."""
    return f'<img class="plot" src="{png(figure)}" alt="{escape(caption)}">'


def panels(count: int):
    """Make axes for `count` small plots, three in a row; those left over are hidden."""
    columns = min(3, count)
    figure, axes = new_figure(-(-count // columns), columns, 3.2, 2.3)
    cells = [axes] if count == 1 else list(axes.flat)
    for cell in cells[count:]:
        cell.set_axis_off()
    return figure, cells[:count]


def over_steps(results: Sequence[dict]) -> str:
    """Draw each metric over the number of steps, with intervals, the base's dashed; nothing for a single number."""
    if len({result["steps"] for result in results}) < 2:
        return ""
    names = [name for name, value in results[0]["means"].items() if value is not None]
    sets = list(dict.fromkeys(result["prompt_set"] for result in results))
    figure, cells = panels(len(names))
    for cell, name in zip(cells, names, strict=True):
        for color, prompt_set in zip(LINES * len(sets), sets, strict=False):
            mine = sorted((r for r in results if r["prompt_set"] == prompt_set), key=lambda r: r["steps"])
            line(cell, mine, name, PALETTE[color], literal(Path(prompt_set).name[:24]), "-")
            if all("base" in r for r in mine):
                line(cell, [{**r["base"], "steps": r["steps"]} for r in mine], name, PALETTE[color], None, "--")
        cell.set(xscale="log", title=name, xlabel="steps")
        steps = sorted({result["steps"] for result in results})
        cell.set_xticks(steps, [str(n) for n in steps])
        cell.minorticks_off()
    if len(sets) > 1:
        cells[0].legend(fontsize=7)
    dashed = " Dashed: the base." if any("base" in r for r in results) else ""
    caption = f"{', '.join(names)} over sampling steps"
    return f"<h2>Over steps</h2><p>Means with 95% intervals.{dashed}</p>{plot(figure, caption)}"


def line(cell, results: Sequence[dict], name: str, color: str, label: str | None, style: str) -> None:
    steps, values = [r["steps"] for r in results], [r["means"].get(name) for r in results]
    values = [math.nan if value is None else value for value in values]
    cell.plot(steps, values, style, marker="o", markersize=3, color=color, label=label)
    for step, found in zip(steps, (r["intervals"].get(name) for r in results), strict=True):
        if found:
            cell.plot([step, step], [found["low"], found["high"]], color=color, linewidth=1, alpha=0.6)


def literal(text: str) -> str:
    """Escape a text, so that matplotlib does not read it as a formula."""
    return text.replace("$", r"\$")


def thumbnail(path: Path) -> str | None:
    """Embed the picture as a tag, made smaller if it is large; None if it is not there."""
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        small = max(picture.size) <= SMALL
        picture = picture.convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 88}))
    data, kind = base64.b64encode(buffer.getvalue()).decode(), "png" if small else "jpeg"
    return f'<img{" class=small" * small} src="data:image/{kind};base64,{data}" alt="">'


def sheet(result: dict, root: Path) -> str:
    """Show the first prompts' pictures, before and after side by side if there is a base."""
    kept = result.get("pictures")
    if not kept:
        return ""
    figures = []
    for index, prompt in enumerate(result["prompts"][:SHOWN]):
        sides = [kept[side] for side in ("base", "folder") if side in kept]
        found = [root / side / f"{index:05d}-{result['seeds'][0]}.{kept['format']}" for side in sides]
        tags = [tag for tag in map(thumbnail, found) if tag]
        pair = ' class="pair"' if len(tags) == 2 else ""
        if tags:
            caption = f"<figcaption>{escape(prompt)}</figcaption>"
            figures.append(f"<figure{pair}><div>{''.join(tags)}</div>{caption}</figure>")
    if not figures:
        return f'<p class="note">The pictures are not in {escape(kept["folder"])} any more.</p>'
    order = "base, trained; " if "base" in kept else ""
    return f'<p>{order}the first prompts, seed {result["seeds"][0]}:</p><div class="sheet">{"".join(figures)}</div>'


def training(config: dict) -> str:
    """Draw the curves of the run that made the checkpoint, from its result.json."""
    if not config.get("checkpoint"):
        return ""
    folder = Path(config["checkpoint"])
    path = next((p / "result.json" for p in (folder, *folder.parents[:2]) if (p / "result.json").is_file()), None)
    if path is None:
        note = f"No result.json beside {folder}: the run was not finished, or lies elsewhere."
        return f'<h2>Training</h2><p class="note">{escape(note)}</p>'
    about = json.loads(path.read_text())
    history = [row for row in about.get("history", []) if isinstance(row, dict)]
    names = [name for name, value in history[0].items() if isinstance(value, int | float)] if history else []
    drawn = ""
    if names and len(history) > 1:
        figure, cells = panels(len(names))
        for cell, name in zip(cells, names, strict=True):
            learning_curve(cell, range(1, len(history) + 1), [row.get(name, math.nan) for row in history])
            cell.set(title=literal(name), xlabel="round or update")
        drawn = plot(figure, f"training history: {', '.join(names)}")
    return f"<h2>Training</h2>{drawn}{settings(about)}"


def settings(about: dict) -> str:
    """List configuration and provenance of a result file."""
    rows = [[name, text(value)] for name, value in about["config"].items()]
    rest = (
        "command",
        "commit",
        "device",
        "threads",
        "processes",
        "wall_seconds",
        "cpu_seconds",
        "peak_memory_mb",
        "versions",
    )
    rows += [[name, text(about[name])] for name in rest if name in about]
    return table(["setting", "value"], rows)


def text(value) -> str:
    """Write a setting, a list or a dictionary as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return "–" if value is None else str(value)


def page(about: dict, root: Path) -> Iterator[str]:
    """Yield the lines of the page of an evaluation, whose pictures lie below `root`."""
    config, results = about["config"], about["results"]
    title = (
        f"{config['model']}, scored" if not config.get("checkpoint") else f"{config['checkpoint']}, against its base"
    )
    yield f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{STYLE}</style></head><body>'
    yield f"<h1>{escape(title)}</h1>"
    if any("base" in result for result in results):
        yield "<p>Differences are paired: same prompt, same noise. Bold: zero is outside of the 95% interval, which is "
        yield "over prompts, of this one training run.</p>"
    yield over_steps(results)
    for result in results:
        counts = [count(len(result["prompts"]), "prompt"), count(len(result["seeds"]), "seed"), result["kernel"]]
        title = f"{result['prompt_set']}, {count(result['steps'], 'step')}"
        yield f"<h2>{escape(title)}</h2><p>{escape(', '.join(counts))}</p>"
        yield scores(result) + sheet(result, root)
    yield training(config)
    yield f"<h2>Configuration</h2>{settings(about)}"
    pocket = config.get("scale") == "pocket" and any("pictures" in result for result in results)
    yield f"<footer>{escape(CREDIT) if pocket else ''}</footer></body></html>\n"


def write(source: Path, out: Path) -> Path:
    """Write the page of an evaluation's JSON, whole or not at all."""
    write_text(out, "\n".join(page(json.loads(source.read_text()), source.parent)))
    return out
