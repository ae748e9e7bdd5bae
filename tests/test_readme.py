"""What the READMEs say: counts of claims as in the committed results, files that exist, no more than one reads."""

import json
import re
from collections import Counter

import pytest

from reproduce.common.provenance import ROOT
from reproduce.harness import claims
from reproduce.harness.protocol import STATUSES

RESULTS = ROOT / "reproduce" / "results"
README, REPRODUCE = (path.read_text("utf-8") for path in (ROOT / "README.md", ROOT / "reproduce" / "README.md"))
LINE = re.compile(r"^\| \[[^]]+\]\(reproduce/results/(\w+)\.md\) \| " + r"(\d+) \| " * len(STATUSES), re.MULTILINE)
COUNTS = {name: tuple(map(int, counts)) for name, *counts in LINE.findall(README)}
PAPERS = ("pso", "sdpo", "dipp", "distar")  # the order in which they are read


def results(paper):
    """The committed results of a paper, with statuses that are corrected over it."""
    found = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in COUNTS if name.split("_")[0] == paper}
    return {
        name: claims.correct(result, [other for key, other in found.items() if key != name])
        for name, result in found.items()
    }


def test_every_result_has_its_line_in_the_order_of_the_papers():
    there = {path.stem for path in RESULTS.glob("*.json") if not path.stem.endswith("-full")}
    assert {name for name in there if "table" in json.loads((RESULTS / f"{name}.json").read_text())} == set(COUNTS)
    papers = [PAPERS.index(name.split("_")[0]) for name in COUNTS]
    assert papers == sorted(papers)
    below = re.findall(r"^\| \[[^]]+\]\(results/(\w+)\.md\) \|", REPRODUCE, re.MULTILINE)
    assert below == list(COUNTS)


@pytest.mark.parametrize("paper", PAPERS)
def test_claims_are_counted_as_in_the_results(paper):
    found, alone, primary = results(paper), Counter(), Counter()
    for name, result in found.items():
        of_claims = Counter(claim["corrected"] for claim in result["claims"])
        assert COUNTS[name] == tuple(of_claims[status] for status in STATUSES)
        alone.update(claim["status"] for claim in result["claims"])
        primary.update(about["corrected"] for about in claims.primary_records(result).values())
    title = {"pso": "PSO", "sdpo": "SDPO", "dipp": "DI++", "distar": "DI*"}[paper]
    together = map(sum, zip(*(COUNTS[name] for name in found), strict=True))
    for kind, counts in (
        ("primary claims", [primary[status] for status in STATUSES]),
        ("all claims", together),
        ("all, each by itself", [alone[status] for status in STATUSES]),
    ):
        line = f"| {title}, {kind} | " + " | ".join(map(str, counts)) + " |"
        assert line in REPRODUCE.splitlines() and (line in README.splitlines()) == (kind == "primary claims")


def test_the_last_line_adds_up():
    (line,) = [line for line in README.splitlines() if line.startswith("| **all** |")]
    assert tuple(map(int, re.findall(r"\*\*(\d+)\*\*", line))) == tuple(map(sum, zip(*COUNTS.values(), strict=True)))
    assert sum(map(sum, COUNTS.values())) == 501


def test_readme_is_short():
    assert len(README.splitlines()) <= 130
    assert "<!-- tables:begin -->" in README and README.count(":begin -->") == REPRODUCE.count(":begin -->") == 2


@pytest.mark.parametrize("path", ["README.md", "reproduce/README.md", "reproduce/launch/README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    missing = [link for link in links if not ((ROOT / path).parent / link).exists()]
    assert not missing, missing


def test_what_is_here_is_here():
    listed = REPRODUCE.split("## What is here")[1].split("\n## ")[0]
    names = [name for line in listed.splitlines()[4:] for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])]
    here = ROOT / "reproduce"
    assert len(names) > 15 and all(list(here.glob(name)) for name in names), names
    found = {path.relative_to(here).parts[0] for name in names for path in here.glob(name)}
    there = {
        p.name for p in here.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name not in ("runs", "__pycache__"))
    }
    assert there <= found, there - found


def test_commands_are_those_that_exist():
    for text in (README, REPRODUCE):
        for script in re.findall(r"(?:python|launch [^\n]*?|`)\s*(reproduce/\w+\.py)", text):
            assert (ROOT / script).exists(), script
    renamed = README.split("Scripts that were renamed: ")[1].split("\n")[0]
    for old in ("pairs.py", "reference.py", "data.py", "benchmarks"):
        assert f"`{old}" in renamed and not (ROOT / "reproduce" / old).with_suffix(".py").exists()
    assert (ROOT / "reproduce/build_pairs.py").exists() and (ROOT / "reproduce/fid_reference.py").exists()
    assert (ROOT / "reproduce/data/prompt_sets.py").exists() and (ROOT / "reproduce/benchmarks").is_dir()
