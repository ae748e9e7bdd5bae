"""The layout: who may import whom, what lies where, and that each table has its page."""

import ast
import functools
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOOPS = {"train_online", "train_offline", "train_distill"}
COMMANDS = {"demo", "evaluate", "export", "build_pairs", "fid_reference", "plan", "score_images", "ledger"}
TABLES = {path.stem for path in (ROOT / "reproduce").glob("*.py")} - LOOPS - COMMANDS
# What each package of reproduce/ may import of it, whole packages or single modules. Data flow one way: from `common`
# through training and evaluation to the harness and the tables. `loops` stands for the three of them.
MAY_IMPORT = {
    "common": set(),
    "data": {"common"},
    "evaluation": {"common", "data"},
    "training": {"common", "data", "recipes"},
    "recipes": {"training.methods"},
    "loops": {"common", "data", "training"},
    "planner": {"common", "data", "evaluation", "recipes", "training", "loops"},
    "papers": {"recipes", "harness.declare"},
    "harness": {"common", "data", "evaluation", "recipes", "training", "loops", "planner", "papers"},
    "tables": {"common", "data", "evaluation", "harness", "papers"},
    "commands": {"common", "data", "evaluation", "recipes", "training", "loops", "planner", "harness"},
    "benchmarks": {"common", "data", "evaluation", "recipes", "training", "loops", "planner", "harness"},
}
LISTS_TABLES = "reproduce.plan"  # the one module that names the tables


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for top in ("fsalign_lib", "reproduce", "tests") for path in (ROOT / top).rglob("*.py")}


def imported(text: str) -> set[str]:
    """The project's modules that a source imports, at its top or within functions."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the one import style is absolute"
            both = [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
            names |= {module if module in MODULES else source for module, source in both}
    return names & MODULES.keys()


def at_import(path: Path) -> set[str]:
    """The project's modules that are imported with this one."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return imported("\n".join(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)))


@functools.cache
def edges() -> list[tuple[str, str]]:
    """(importer, imported) for every module of the library and of reproduce/."""
    ours = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items() if not name.startswith("tests")}
    return [(name, other) for name, text in ours.items() for other in sorted(imported(text) - {name})]


def part_of(name: str) -> str:
    """The package of reproduce/ that a module is in; "loops", "commands" or "tables" for a script."""
    if not name.startswith("reproduce."):
        return name.split(".")[0]
    first = name.removeprefix("reproduce.").split(".")[0]
    scripts = {"loops": LOOPS, "commands": COMMANDS, "tables": TABLES}
    return next((kind for kind, names in scripts.items() if first in names), first)


def test_the_library_stands_alone():
    assert [(a, b) for a, b in edges() if a.startswith("fsalign_lib") and not b.startswith("fsalign_lib")] == []


def test_scripts_are_not_imported():
    """But loops, which the harness, the planner, the benchmarks and the demo run, and tables, which plan.py lists."""
    scripts = [(a, b) for a, b in edges() if part_of(b) in ("commands", "tables")]
    assert [(a, b) for a, b in scripts if (a, part_of(b)) != (LISTS_TABLES, "tables")] == []


def test_no_loop_imports_another():
    assert [(a, b) for a, b in edges() if part_of(a) == "loops" == part_of(b)] == []


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_one_way(part):
    allowed, wrong = MAY_IMPORT[part] | {part}, []
    for importer, other in edges():
        if part_of(importer) == part and other.startswith("reproduce.") and importer != LISTS_TABLES:
            if part_of(other) not in allowed and other.removeprefix("reproduce.") not in allowed:
                wrong.append((importer, other))
    assert wrong == []


def test_no_module_waits_for_itself():
    """Imports at the top of modules make no circle."""
    below = {name: at_import(path) - {name} for name, path in MODULES.items()}
    while free := [name for name, there in below.items() if not there & below.keys()]:
        for name in free:
            del below[name]
    assert below == {}


def test_every_package_has_its_rule():
    packages = {path.parent.name for path in (ROOT / "reproduce").glob("*/*.py")}
    assert packages == MAY_IMPORT.keys() - {"loops", "tables", "commands"}


def test_reproduce_holds_tables_loops_and_commands():
    scripts = {path.stem for path in (ROOT / "reproduce").glob("*.py")}
    assert scripts >= LOOPS | COMMANDS and len(TABLES) == 17 and len(scripts) <= 28
    assert all("TABLE = " in MODULES[f"reproduce.{name}"].read_text(encoding="utf-8") for name in TABLES)


def test_every_table_has_a_page_and_a_row():
    readme = (ROOT / "reproduce/README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    for name in TABLES:
        assert (ROOT / f"reproduce/results/{name}.md").is_file(), f"{name}.py has no page"
        assert any(f"results/{name}.md" in row for row in rows), f"reproduce/README.md has no row for {name}.py"


def test_tests_mirror_the_code():
    """A test of a module lies in a folder of the same name; those of the whole project lie at the top."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        there = path.parent.relative_to(ROOT / "tests")
        assert there == Path() or (ROOT / there).is_dir(), f"tests/{there} is a folder that the project does not have"
        if there != Path():
            assert there.parts[0] in ("fsalign_lib", "reproduce")


def test_no_path_is_edited():
    edit = re.compile(r"sys\.path\s*(\.|\[|\+|=)")
    sources = {path: path.read_text(encoding="utf-8") for path in MODULES.values() if path != Path(__file__)}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources[path] = "\n".join("".join(cell["source"]) for cell in cells)
    assert [str(path.relative_to(ROOT)) for path, text in sources.items() if edit.search(text)] == []


def test_no_module_hides_a_known_package():
    """A script's own folder comes first when Python looks for a module, so its files must not be named as packages."""
    ours = {path.stem for path in (ROOT / "reproduce").glob("*") if path.is_dir() or path.suffix == ".py"}
    ours |= {"fsalign_lib", "reproduce"}
    known = {name for name, owners in packages_distributions().items() if set(owners) != {"fsalign"}}
    assert ours & (known | sys.stdlib_module_names | {"tables"}) == set()
    # Hugging Face's `evaluate` may be installed; no module of ours imports one of that name.
    for path in MODULES.values():
        assert not re.search(r"^\s*(import|from) evaluate\b", path.read_text(encoding="utf-8"), re.M), path


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_needs_no_torch(command):
    program = (
        f"import sys; from reproduce import {command}\n"
        f"try: {command}.main(['--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


def test_docstrings_say_what_is_done():
    """None begins in the middle of a thought: "What ...", "Of ...", "Those ..."."""
    riddle = re.compile(r'^ *r?"""(What|Of|Those|Likewise) .*', re.M)
    ours = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items() if not name.startswith("tests")}
    assert {name: riddle.findall(text) for name, text in ours.items() if riddle.search(text)} == {}
