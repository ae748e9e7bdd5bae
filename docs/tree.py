"""Lay out the tree that Sphinx reads: docs/, the notebooks and the tables' pages as they are committed, and what is
made of files: the errata from notebooks/equations.csv, a page for each module of the library.

Nothing here needs Sphinx. The tree lies outside git (build/docs); it is a copy, so that links can be rewritten:

- a link to a file that is no page of the site leads to the repository;
- {cell}`05: text|words` is a link with these words to the heading under which notebook 05 has this text;
- {printed}`03: regular expression with one (group)` is what the group matches in notebook 03's printed output, once,
  linked to the heading of its cell. So a number on the site is the one that the notebook printed.
"""

import ast
import csv
import functools
import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from posixpath import normpath

ROOT = Path(__file__).parents[1]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
PLAYGROUND = ROOT / "build/playground/site/playground/index.html"  # what `make playground` leaves
# Pages that lie elsewhere in the repository, at the same place in the tree
PAGES = (
    *("CONTRIBUTING.md", "CHANGELOG.md", "notebooks/*.ipynb"),
    *("reproduce/README.md", "reproduce/DATA.md", "reproduce/launch/README.md", "reproduce/results/*.md"),
    "fsalign_lib/pocket/weights/README.md",
)
PICTURES = ("reproduce/results/*.png", "fsalign_lib/pocket/weights/*.png")
CODE = r"```.*?```|`[^`\n]*`"
LINK = re.compile(rf"{CODE}|(?P<picture>!?)\[(?P<words>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)", re.DOTALL)
ROLE = re.compile(r"\{(cell|printed)\}`(\d\d): ([^`]+)`")
SECTION = re.compile(r'<!-- (\S+), section "(.+)" -->')
PAPERS = ("PSO", "SDPO", "DI++", "DI*")


def pages() -> dict[str, Path]:
    """Find the pages that are files: for each place in the tree, the file."""
    docs = ROOT / "docs"
    own = {path.name: path for path in docs.glob("*.md")}
    there = {path.relative_to(ROOT).as_posix(): path for pattern in PAGES for path in ROOT.glob(pattern)}
    return own | there


# Notebooks: cells, headings, what was printed


@functools.cache
def cells(number: str) -> tuple[str, list[dict]]:
    """Read the cells of the notebook with this number, and its place in the tree."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    return f"notebooks/{path.name}", json.loads(path.read_text(encoding="utf-8"))["cells"]


def slug(heading: str) -> str:
    """Make the anchor of a heading, as GitHub does; formulas and marks are left out."""
    plain = re.sub(r"\$[^$]*\$|`|\\", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def heading_of(number: str, wanted: Callable[[dict], int | None], what: str) -> tuple[str, str]:
    """Find the heading above the one cell for which `wanted` gives a place, the position of a text in its source.

    Returns:
        the heading, and the link to it from the tree's top.
    """
    page, all_cells = cells(number)
    heading, seen, found = ("", ""), set(), []
    for cell in all_cells:
        place, above = wanted(cell), heading
        if cell["cell_type"] == "markdown":
            for match in re.finditer(r"^#{1,4} (.+)$", "".join(cell["source"]), re.MULTILINE):
                base = slug(match[1])
                name = next(name for n in range(99) if (name := f"{base}-{n}" if n else base) not in seen)
                seen.add(name)
                heading = (match[1], f"{page}#{name}")
                above = heading if place is not None and match.start() <= place else above
        if place is not None:
            found.append(above)
    if len(found) != 1:
        raise ValueError(f"notebook {number}: {what!r} was found in {len(found)} cells, expected one")
    return found[0]


def cell_heading(number: str, text: str) -> tuple[str, str]:
    """Find the heading under which a notebook has this text in one cell's source, and the link to it."""

    def place(cell: dict) -> int | None:
        source = "".join(cell["source"]).replace("\\*", "*")
        return source.index(text) if text in source else None

    return heading_of(number, place, text)


def printed_by(cell: dict) -> str:
    """Join what a cell printed or showed as text."""
    texts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        texts += [output.get("text", ""), data.get("text/plain", ""), data.get("text/markdown", "")]
    return "\n".join("".join(text) for text in texts)


def printed(number: str, pattern: str) -> tuple[str, str]:
    """Find the one match of a pattern in a notebook's output: its group, and the link to its cell's heading."""
    matches = [match for cell in cells(number)[1] for match in re.finditer(pattern, printed_by(cell), re.MULTILINE)]
    if len(matches) != 1:
        raise ValueError(f"notebook {number}: {pattern!r} matches {len(matches)} outputs, expected one")
    there = heading_of(number, lambda cell: 0 if matches[0].string == printed_by(cell) else None, pattern)
    return matches[0][1], there[1]


# Rewriting


def rewrite(text: str, place: str, known: set[str]) -> str:
    """Rewrite the roles and links of a page, given as Markdown or as a notebook's JSON.

    Args:
        place: where the page lies in the tree, as a path from its top.
        known: the places of all pages and pictures.

    Raises:
        ValueError: a link leads to no file; a role's text is not in one cell.
    """
    if place.endswith(".ipynb"):
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            holders = [(output.get("data", {}), "text/markdown") for output in cell.get("outputs", [])]
            if cell["cell_type"] == "markdown":
                holders.append((cell, "source"))
            for holder, key in holders:
                if key in holder:
                    holder[key] = rewrite("".join(holder[key]), place.replace(".ipynb", ".md"), known)
        return json.dumps(notebook, ensure_ascii=False, indent=1)
    top = PurePosixPath(place).parent
    to_top = "../" * len(top.parts)

    def role(match: re.Match[str]) -> str:
        kind, number, rest = match.groups()
        if kind == "printed":
            words, link = printed(number, rest)
        else:
            sought, _, words = rest.rpartition("|")
            link = cell_heading(number, sought)[1]
        return f"[{words}]({to_top}{link})"

    def link(match: re.Match[str]) -> str:
        target, words = match["target"], match["words"]
        if target is None or re.match(r"[a-z]+:|#", target):
            # a badge is served by another host: its words do
            return match[0] if not (words or "").startswith("![") else f"[{words[2:].partition(']')[0]}]({target})"
        path, _, fragment = target.partition("#")
        there = normpath(str(top / path)).removeprefix("../")  # a page of docs/ lies one folder higher in the tree
        there = "index.md" if there == "README.md" else there
        if there in known:
            new = f"{to_top}{there}"
        elif match["picture"] or not (ROOT / there).exists():
            raise ValueError(f"{place}: the link {target} leads to no file")
        else:
            new = f"{REPOSITORY}/{'tree' if (ROOT / there).is_dir() else 'blob'}/main/{there}"
        return f"{match['picture']}[{words}]({new}{'#' * bool(fragment)}{fragment})"

    return LINK.sub(link, ROLE.sub(role, text))


# Pages that are made


def errata() -> str:
    """List every equation that notebooks/equations.csv calls corrected, with the reason and what shows it."""
    with (ROOT / "notebooks/equations.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["corrected"]]
    lines = []
    for paper in PAPERS:
        lines += ["", f"## {paper}", ""]
        for row in rows:
            if row["equation"].split()[0] == paper:
                shown = []
                for where in row["corrected"].split(" | "):
                    number, _, text = where.partition(": ")
                    if "::" in where:
                        path, _, name = where.partition("::")
                        shown.append(f"[`{name}`](../{path})")
                    else:
                        heading, link = cell_heading(number, text)
                        shown.append(f"[{number}, {heading}](../{link})")
                number = row["equation"].removeprefix(f"{paper} ")
                lines.append(f"- **{number}**, {row['about']}. {row['note']} *Shown in* {'; '.join(shown)}.")
    return "\n".join(lines).replace("DI*", "DI\\*")


def section(match: re.Match[str]) -> str:
    """Take a section of another file at the repository's top, without its heading."""
    text = (ROOT / match[1]).read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return parts[parts.index(match[2]) + 1].strip()


def tables() -> str:
    """List the pages of reproduce/results: the tables in the order of reproduce/README.md, after what is no table."""
    readme = (ROOT / "reproduce/README.md").read_text(encoding="utf-8")
    named = list(dict.fromkeys(re.findall(r"^\| \[(.+?)\]\(results/(\w+)\.md\)", readme, re.MULTILINE)))
    others = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "reproduce/results").glob("*.md"))}
    more = [(text.partition("\n")[0].lstrip("# "), name) for name, text in others.items()]
    named = [(title, name) for title, name in more if name not in dict(named).values()] + named
    lines = ["# The tables' pages", "", *(f"- [{title}]({name}.md)" for title, name in named)]
    names = [name for _, name in named]
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *names, "```", ""])


def modules() -> dict[str, str]:
    """Find the library's public modules, each with the first sentence of its docstring."""
    found = {}
    for path in sorted((ROOT / "fsalign_lib").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not path.stem.startswith("__main"):
            summary = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[name] = " ".join(summary.split("\n\n")[0].split())
    return found


def api() -> dict[str, str]:
    """Write a page for each module, and one that lists them by package."""
    found, written = modules(), {}
    for name in found:
        title = name if name != "fsalign_lib" else "API"
        text = f"# {title}\n\n"
        inside = [other for other in found if other.rpartition(".")[0] == name]
        if name == "fsalign_lib":
            text += "The library is pure functions on tensors. Formulas stand in the docstrings, with their tags.\n\n"
        else:
            text += f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n   :show-inheritance:\n```\n\n"
        if inside:
            text += "| module | task |\n| --- | --- |\n"
            for other in inside:
                text += f"| [{other.removeprefix(name + '.')}]({other}.md) | {found[other].replace('|', '&#124;')} |\n"
            text += (
                "\n```{toctree}\n:hidden:\n\n" + "".join(f"{o.rpartition('.')[2]} <{o}>\n" for o in inside) + "```\n"
            )
        written[f"api/{name}.md"] = text
    return written


def lay_out(tree: Path) -> list[str]:
    """Write the tree, touch only what has changed, remove what is gone, and return the places of its pages."""
    files = pages()
    texts = {place: path.read_text(encoding="utf-8") for place, path in files.items()}
    texts["errata.md"] = texts["errata.md"].replace("<!-- errata -->", errata())
    texts["reproduce/results/index.md"] = tables()
    if PLAYGROUND.is_file():
        texts["playground/index.md"] = "# Playground\n"  # the built page takes this one's place
    else:
        print("The site is built without the playground, which `make playground` makes (it needs npm)", flush=True)
        texts["index.md"] = re.sub(r"^.*playground/index.*\n", "", texts["index.md"], flags=re.MULTILINE)
    texts = {place: SECTION.sub(section, text) for place, text in texts.items()}
    made = api()
    pictures = {path.relative_to(ROOT).as_posix(): path for pattern in PICTURES for path in ROOT.glob(pattern)}
    known = texts.keys() | made.keys() | pictures.keys()
    texts = {place: rewrite(text, place, known) for place, text in texts.items()} | made
    tree.mkdir(parents=True, exist_ok=True)
    for old in [path for path in tree.rglob("*") if path.is_file()]:
        place = old.relative_to(tree).as_posix()
        if place not in known:
            old.unlink()
    for place, text in texts.items():
        path = tree / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for place, path in pictures.items():
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, tree / place)
    return sorted(texts)
