"""The site: what is laid out for it, and, marked `site`, what was built; `make docs` runs those."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from docs import tree
from docs.docstrings import to_rst
from tests.test_packaging import installed_closure, pins, project

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build/site"
LOADS = {
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "audio": "src",
    "video": "src",
    "embed": "src",
}
RELATIONS = {"stylesheet", "icon", "shortcut icon", "preload", "modulepreload", "prefetch", "manifest"}


# What is laid out


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
    """The tree; laying it out fails at a relative link that leads to no file, and at a role that finds no cell."""
    folder = tmp_path_factory.mktemp("tree")
    return folder, tree.lay_out(folder)


def test_every_page_is_laid_out(laid):
    folder, pages = laid
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".md", ".ipynb")} == {
        *pages
    }
    for pattern in ("notebooks/*.ipynb", "reproduce/results/*.md"):
        for path in ROOT.glob(pattern):
            assert path.relative_to(ROOT).as_posix() in pages
    for module in tree.modules():
        assert f"api/{module}.md" in pages
    for page in pages:
        assert not re.search(r"<!-- \S+, section|\{(cell|printed)\}`\d|<!-- errata", (folder / page).read_text("utf-8"))


def test_nothing_is_written_twice(laid):
    folder, _ = laid
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.md")}
    (folder / "gone.md").write_text("# A page that is no more\n")
    tree.lay_out(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.md")} == before


def test_notebooks_are_as_committed_but_for_links(laid):
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        ours, committed = (
            json.loads(re.sub(r"\]\([^()\s]+\)", "", text.read_text("utf-8")).replace("[![", "["))["cells"]
            for text in (laid[0] / "notebooks" / path.name, path)
        )
        for cell, other in zip(ours, committed, strict=True):
            assert "".join(cell["source"]) == "".join(other["source"])
            for output, printed in zip(cell.get("outputs", []), other.get("outputs", []), strict=True):
                text, expected = (one.get("data", {}).pop("text/markdown", "") for one in (output, printed))
                assert output == printed and "".join(text) == "".join(expected)


@pytest.mark.parametrize("built", [False, True])
def test_without_the_playground_the_tree_says_so(built, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tree, "PLAYGROUND", Path(__file__) if built else tmp_path / "index.html")
    tree.lay_out(tmp_path)
    assert ("without the playground" in capsys.readouterr().out) == (not built)
    assert ("playground/index" in (tmp_path / "index.md").read_text("utf-8")) == built
    assert (tmp_path / "playground/index.md").is_file() == built


def test_links_are_rewritten():
    known = {"index.md", "notebooks/05_pso.ipynb", "reproduce/README.md", "errata.md"}
    blob = f"{tree.REPOSITORY}/blob/main"
    for place, text, expected in [
        ("errata.md", "[a](../notebooks/05_pso.ipynb#x)", "[a](notebooks/05_pso.ipynb#x)"),
        ("errata.md", "[a](errata.md)", "[a](errata.md)"),
        ("errata.md", "[`a`](../fsalign_lib/kernels.py)", f"[`a`]({blob}/fsalign_lib/kernels.py)"),
        ("reproduce/README.md", "[a](results)", f"[a]({tree.REPOSITORY}/tree/main/reproduce/results)"),
        ("reproduce/README.md", "[a](../README.md)", "[a](../index.md)"),
        ("errata.md", "[a](https://arxiv.org/abs/1) [b](#c)", "[a](https://arxiv.org/abs/1) [b](#c)"),
        ("errata.md", "`f[a](no_file)` and\n```\nf[a](no_file)\n```", "`f[a](no_file)` and\n```\nf[a](no_file)\n```"),
        ("notebooks/05_pso.md", "[![Open In Colab](https://a/b.svg)](https://c)", "[Open In Colab](https://c)"),
    ]:
        assert tree.rewrite(text, place, known) == expected
    for wrong in (
        "[a](../no_file.md)",
        "![a](../LICENSE)",
        "{cell}`05: no such words|a`",
        "{printed}`05: (no such)`",
    ):
        with pytest.raises(ValueError, match="leads to no file|in 0 cells|matches 0 outputs"):
            tree.rewrite(wrong, "errata.md", known)


def test_a_number_is_the_one_that_the_notebook_printed(monkeypatch):
    def markdown(source):
        return {"cell_type": "markdown", "source": [source]}

    def code(text):
        return {"cell_type": "code", "source": ["x"], "outputs": [{"output_type": "stream", "text": [text]}]}

    cells = [
        markdown("# A"),
        markdown("## B $x$ `c`\n\nwords"),
        code("spread 0.7\n"),
        markdown("## B c\n\n## E"),
        code("KL 2"),
    ]
    monkeypatch.setattr(tree, "cells", lambda number: ("notebooks/03_a.ipynb", cells))
    assert (
        tree.rewrite("{printed}`03: spread (.*)`", "errata.md", {"notebooks/03_a.ipynb"})
        == "[0.7](notebooks/03_a.ipynb#b--c)"
    )
    assert tree.printed("03", r"KL (\d)") == ("2", "notebooks/03_a.ipynb#e")
    assert tree.cell_heading("03", "words") == ("B $x$ `c`", "notebooks/03_a.ipynb#b--c")
    assert tree.cell_heading("03", "## B c") == ("B c", "notebooks/03_a.ipynb#b-c")
    with pytest.raises(ValueError, match="in 2 cells"):
        tree.cell_heading("03", "## B")
    with pytest.raises(ValueError, match="matches 2 outputs"):
        tree.printed("03", r"([\d.]+)$")


def test_every_corrected_equation_is_among_the_errata_with_its_cell():
    from tests.test_equations import ROWS

    lines = [line for line in tree.errata().splitlines() if line.startswith("- ")]
    corrected = [row for row in ROWS if row["corrected"]]
    assert len(lines) == len(corrected) > 25
    for row, line in zip(corrected, lines, strict=True):
        assert row["equation"].split(" ", 1)[1] in line and "](../notebooks/" in line and "#" in line.split("](")[1]


def test_docstrings_become_restructured_text():
    assert to_rst("Take $x_0$s and `a`s of *one* step, **not** x_, a|b.") == (
        "Take :math:`x_0`\\ s and ``a``\\ s of *one* step, **not** x\\_, a\\|b."
    )
    assert to_rst("Compute\n\n    $$a\n    = b.$$\n\nEnd").split() == "Compute .. math:: a = b. End".split()
    assert to_rst("As\n- one\n  more\n- two") == "As\n\n- one\n  more\n- two"
    table = to_rst("| a | $p(x|c)$ |\n| --- | --- |\n| `b` | 2 |")
    assert table.split() == ".. list-table:: :header-rows: 1 * - a - :math:`p(x|c)` * - ``b`` - 2".split()


# What was built


class Page(HTMLParser):
    """What a page has: ids, links, and addresses of what a browser loads with it."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        has = dict(attributes)
        self.ids |= {has[name] for name in ("id", "name") if has.get(name)}
        if tag == "a" and has.get("href"):
            self.links.append(has["href"])
        if has.get(LOADS.get(tag, "")):
            self.loaded.append(has[LOADS[tag]])
        if tag == "link" and has.get("rel", "").lower() in RELATIONS:
            self.loaded.append(has["href"])
        self.loaded += re.findall(r"url\(['\"]?(.+?)['\"]?\)", has.get("style") or "")
        self.loaded += [part.split()[0] for part in (has.get("srcset") or "").split(",") if part.strip()]


def unresolved(site: Path) -> list[str]:
    """Name each link or file of a page that is not there, and each anchor that its page does not have."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    wrong = []
    for path, page in pages.items():
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file():
                wrong.append(f"{path.relative_to(site)}: {target}: no such file")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].ids:
                wrong.append(f"{path.relative_to(site)}: {target}: no such anchor")
    return wrong


def elsewhere(site: Path) -> list[str]:
    """Name each resource that a page, or a stylesheet, would load from another host."""
    wrong = []
    for path in site.rglob("*.html"):
        wrong += [f"{path.relative_to(site)}: {one}" for one in Page(path).loaded if re.match(r"(https?:)?//", one)]
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"(?:url\(|@import\s+)['\"]?((?:https?:)?//[^'\")\s]+)", text)
        wrong += [f"{path.relative_to(site)}: {one}" for one in found]
    return wrong


def test_dead_links_and_foreign_files_are_found(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static/a.css").write_text("p { background: url(https://fonts.example.org/b.woff) }")
    (tmp_path / "index.html").write_text(
        '<p id="here"><a href="#here">a</a> <a href="#gone">a</a> <a href="b.html">a</a> <a href="https://c.org">c</a>'
        '<script src="//cdn.example.org/d.js"></script><img src="_static/none.png">'
        '<link rel="stylesheet" href="https://e.example.org/e.css"><link rel="canonical" href="https://c.org">'
    )
    assert unresolved(tmp_path) == [
        "index.html: #gone: no such anchor",
        "index.html: b.html: no such file",
        "index.html: _static/none.png: no such file",
    ]
    assert [line.split("//")[1] for line in elsewhere(tmp_path)] == [
        "cdn.example.org/d.js",
        "e.example.org/e.css",
        "fonts.example.org/b.woff",
    ]


@pytest.mark.site
def test_every_link_and_anchor_of_the_site_resolves():
    assert len(list(SITE.rglob("*.html"))) > 100, "no site: make docs"
    assert unresolved(SITE) == []


@pytest.mark.site
def test_no_page_asks_another_host():
    assert elsewhere(SITE) == []
    assert (SITE / "_static/mathjax/tex-chtml.js").is_file()
    assert len(list((SITE / "_static/mathjax/output/chtml/fonts/woff-v2").glob("*.woff"))) > 20


@pytest.mark.site
def test_the_site_is_small():
    assert sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file()) < 80e6


@pytest.mark.site
def test_formulas_and_numbers_are_on_the_page():
    api = (SITE / "api/fsalign_lib.losses.preference.html").read_text(encoding="utf-8")
    assert r"\[L = -\log \sigma" in api and "$$" not in api
    assert 'id="fsalign_lib.losses.preference.pso_online"' in api
    assert "mathjax/tex-chtml.js" in api
    assert "{printed}" not in (SITE / "questions.html").read_text(encoding="utf-8")


@pytest.mark.site
def test_all_that_the_site_needs_is_pinned():
    named = {line.split(">")[0].split("=")[0] for line in project()["optional-dependencies"]["docs"]}
    assert installed_closure(named) - set(pins()) == set()
