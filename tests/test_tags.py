"""Every equation tag, such as [PSO Eq. 7], stands in the library and in a notebook, or in neither."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A paper, what it numbers, and one number: [PSO Eq. 7], [DI++ Thm 3.2], [Diffusion-DPO Eq. 14], [DI* Alg. 1]
PAPER = r"[A-Z][\w+*-]*"
TAG = re.compile(rf"\[{PAPER} (?:Eq\.|Thm|Alg\.|Lemma|Prop\.|Cor\.) (?:[A-Z]\.?)?\d+(?:\.\d+)*[a-z]?\]")
# What was meant as a tag: [PSO Eqs. 3, 11], [PSO eq 7], [DI* Theorem 3.1]
NEARLY = re.compile(rf"\[{PAPER} (?:eq|thm|theorem|alg|lemma|prop|cor)[^\]]*\]", re.IGNORECASE)


def tags(text: str) -> set[str]:
    return set(TAG.findall(text))


def malformed(text: str) -> set[str]:
    return set(NEARLY.findall(text)) - tags(text)


def library() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "fsalign_lib").rglob("*.py"))}


def notebooks() -> dict[Path, str]:
    """The sources of all cells, without the outputs; Markdown may write DI* as DI\\*."""
    texts = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path] = "\n".join("".join(cell["source"]) for cell in cells).replace("\\*", "*")
    return texts


def missing(here: dict[Path, str], there: dict[Path, str]) -> list[str]:
    """Tags of `here` that `there` lacks, each with the file that carries it."""
    known = tags("\n".join(there.values()))
    return [f"{tag} ({path.name})" for path, text in here.items() for tag in sorted(tags(text) - known)]


def test_tags_are_told_from_other_brackets():
    assert tags("r'[PSO Eq. 7] x[PSO] [1] [DI++ Thm 3.2][DI* Eq. 3.4] [SDPO Eq. 11] [DI++ Eq. C.8]'") == {
        "[DI++ Eq. C.8]",
        "[PSO Eq. 7]",
        "[DI++ Thm 3.2]",
        "[DI* Eq. 3.4]",
        "[SDPO Eq. 11]",
    }
    assert malformed("[PSO Eqs. 3, 11] [PSO Eq. 3] [PSO eq 7] [DI* Theorem 3.1] [PSO Fig. 1]") == {
        "[PSO Eqs. 3, 11]",
        "[PSO eq 7]",
        "[DI* Theorem 3.1]",
    }
    assert missing({Path("a.py"): "[PSO Eq. 1]"}, {Path("b"): "[PSO Eq. 11]"}) == ["[PSO Eq. 1] (a.py)"]


def test_every_tag_is_one_paper_and_one_number():
    wrong = {path.name: malformed(text) for path, text in (library() | notebooks()).items() if malformed(text)}
    assert not wrong, "write one tag per equation, as in [PSO Eq. 7]"


def test_the_library_has_tags():
    assert tags("\n".join(library().values()))


@pytest.mark.skipif(not (ROOT / "notebooks/00_start_here.ipynb").exists(), reason="the notebooks have no map yet")
def test_tags_of_the_library_occur_in_a_notebook():
    assert missing(library(), notebooks()) == []


def test_tags_of_the_notebooks_occur_in_the_library():
    assert missing(notebooks(), library()) == []


def test_the_map_has_every_notebook_that_there_is():
    start = ROOT / "notebooks/00_start_here.ipynb"
    rows = re.findall(r"^\| \[(\d\d)\]\((\S+\.ipynb)\)", notebooks()[start], re.MULTILINE)
    assert [name for _, name in rows] == [path.name for path in notebooks() if path != start]
    assert all(name.startswith(number) for number, name in rows)
