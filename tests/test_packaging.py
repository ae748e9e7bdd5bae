"""The files that install the project agree, and say what they must."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fsalign_lib import __version__

ROOT = Path(__file__).parents[1]
DEMANDED = {
    *("torch", "diffusers", "transformers", "peft", "accelerate"),
    *("jupyterlab", "nbval", "matplotlib", "ipywidgets", "image-reward"),
}
ORIGINALS = ("image-reward", "open-clip-torch", "hpsv2")  # the rewards' own packages
GPU_ONLY = ("nvidia-", "cuda-", "triton")  # what a GPU build of torch brings along, at versions that torch itself pins
PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==(\d[\w.]*)")


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


def requirements() -> dict[str, Requirement]:
    """Everything that pyproject.toml names, by canonical name: the dependencies and all extras."""
    lines = project()["dependencies"] + [
        line for group in project()["optional-dependencies"].values() for line in group
    ]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def constraint_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def malformed_constraints(text: str) -> list[str]:
    """Lines that are not a plain `name==version`: options, addresses, folders, markers, +local versions."""
    return [line for line in constraint_lines(text) if not PIN.fullmatch(line)]


def pins() -> dict[str, str]:
    matches = [PIN.fullmatch(line) for line in constraint_lines(read("constraints.txt"))]
    return {canonicalize_name(match[1]): match[2] for match in matches}


def environment() -> tuple[list[str], list[str]]:
    """conda's own lines, and pip's."""
    lines = yaml.safe_load(read("environment.yml"))["dependencies"]
    return [line for line in lines if isinstance(line, str)], next(
        line["pip"] for line in lines if isinstance(line, dict)
    )


def environment_requirements() -> dict[str, Requirement]:
    found = [Requirement(line) for line in environment()[1] if not line.startswith("-")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def installed_closure(roots: set[str]) -> set[str]:
    """Everything that the roots need, by what the installed distributions say of themselves on this machine."""
    closure: set[str] = set()
    pending = [(root, frozenset[str]()) for root in roots]
    visited = set()
    while pending:
        name, extras = pending.pop()
        if (name, extras) in visited:
            continue
        visited.add((name, extras))
        closure.add(name)
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras | {""}):
                pending.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return closure


def test_the_three_files_name_the_same_packages():
    named = set(requirements())
    assert named >= DEMANDED
    assert set(environment_requirements()) == named
    assert set(pins()) >= named
    assert "-c constraints.txt" in environment()[1]  # which gives environment.yml its versions
    assert "-e ." in environment()[1]


def test_the_pins_lie_within_the_bounds():
    for name, requirement in requirements().items():
        assert requirement.specifier.contains(pins()[name]), f"{requirement} excludes the pin {pins()[name]}"


def test_the_same_python_everywhere():
    assert project()["requires-python"] == ">=3.11"
    assert "python=3.11" in environment()[0]
    steps = yaml.safe_load(read(".github/workflows/test.yml"))["jobs"]["test"]["steps"]
    assert [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")] == ["3.11"]
    assert "(3, 11)" in read("Makefile")


@pytest.mark.parametrize(
    "line",
    ["torch==2.13.0+cpu", "torch", "torch>=2", "--index-url https://example.org", "torch @ file:///wheels/t.whl"],
)
def test_a_constraint_that_binds_to_one_machine_is_found(line):
    assert malformed_constraints(f"# why\nnumpy==2.4.6\n{line}\n") == [line]


def test_the_constraints_are_plain_pins():
    assert malformed_constraints(read("constraints.txt")) == []
    assert len(constraint_lines(read("constraints.txt"))) == len(pins()), "a package is pinned twice"


@pytest.mark.skipif(
    sys.platform != "linux", reason="the pins were made on Linux: other systems need a few packages more"
)
def test_all_that_gets_installed_is_pinned_and_torchvision_is_not_among_it():
    own = project()["optional-dependencies"]  # installed by the targets that need them
    later = {canonicalize_name(Requirement(line).name) for extra in ("docs", "playground") for line in own[extra]}
    closure = installed_closure(set(requirements()) - {*ORIGINALS, "bitsandbytes", "playwright", *later})
    assert {name for name in closure - set(pins()) if not name.startswith(GPU_ONLY)} == set()
    assert "torchvision" not in closure | set(pins())


def test_image_reward_and_its_like_are_installed_without_what_they_ask_for():
    extras = project()["optional-dependencies"]
    assert pins()["image-reward"] == "1.5"
    recipe = " ".join(read("Makefile").split("\n$(originals): ")[1].split("\n\n")[0].replace("\\", "").split())
    assert "--no-deps -c constraints.txt image-reward open_clip_torch hpsv2" in recipe
    assert "\nimage-reward: $(originals)\n" in read("Makefile")
    for name in ORIGINALS:
        listed = [extra for extra, lines in extras.items() if name in map(canonicalize_name, lines)]
        assert listed == ["image-reward"], "pip would resolve its requirements"
        marker = environment_requirements()[name].marker
        assert marker is not None and not marker.evaluate({"extra": ""}), "pip would resolve its requirements"
        assert marker.evaluate({"extra": "image-reward"})
    default = re.search(r"-e '\.\[(.*?)\]'", read("Makefile"))[1]
    assert set(default.split(",")) == set(extras) - {"image-reward", "eightbit", "browser", "playground", "docs"}


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in (ROOT / "fsalign_lib").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_file_of_the_library_is_installed_with_it():
    package = ROOT / "fsalign_lib"
    patterns = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["package-data"]["fsalign_lib"]
    installed = {path for pattern in ["**/*.py", *patterns] for path in package.glob(pattern)}
    present = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert [str(path) for path in present - installed if not path.name.startswith(".")] == []


def test_continuous_integration_calls_make_test():
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert read(".ci/run").splitlines()[-1] == "make test"
    steps = yaml.safe_load(read(".github/workflows/test.yml"))["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A make of its own, not one that takes part in the make which runs the tests."""
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("demo", ["reproduce/demo.py"]),
        ("unit", ["pytest tests", "not slow"]),
        ("docs", ["furo", "-m sphinx -q -W", "build/site", "pytest tests/test_site.py -m site"]),
        (
            "test",
            ["ruff format --check", "ruff check", "pytest tests notebooks", "--nbval-sanitize-with=tests/nbval.cfg"],
        ),
    ],
)
def test_make_sets_up_and_runs(target, commands, tmp_path):
    script = make("--dry-run", f"VENV={tmp_path / 'fresh'}", target).stdout
    positions = [script.index(part) for part in ["-m venv", "pip install", *commands]]
    assert positions == sorted(positions)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_without_a_usable_python_says_what_to_do(tmp_path):
    result = make(f"VENV={tmp_path / 'fresh'}", "PYTHON=no-such-python", "lint")
    assert result.returncode != 0
    assert "no-such-python" in result.stderr and "PYTHON=/path/to/python3.11" in result.stderr


def test_licences_and_credits():
    assert "Apache License" in read("LICENSE") and "Version 2.0, January 2004" in read("LICENSE")
    for part in ("OpenMoji", "https://openmoji.org", "CC BY-SA 4.0", "fsalign_lib/pocket/weights/", "Apache License"):
        assert part in read("NOTICE")
    assert project()["license"] == "Apache-2.0 AND CC-BY-SA-4.0"
    assert project()["license-files"] == ["LICENSE", "NOTICE"]


def test_the_citation_names_the_four_papers():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == __version__
    papers = {reference["notes"].split()[0]: reference for reference in citation["references"]}
    expected = {"PSO": "2410.03190", "DI++": "2410.18881", "SDPO": "2411.11727", "DI*": "2410.20898"}
    assert {name: paper["identifiers"][0]["value"] for name, paper in papers.items()} == {
        name: f"arXiv:{number}" for name, number in expected.items()
    }
    for name, paper in papers.items():
        assert paper["url"].endswith(expected[name]) and paper["title"] and paper["authors"]


def test_the_version_has_one_place():
    assert tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "fsalign_lib.__version__"
    }
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[1] == __version__


def test_the_public_address_has_one_place():
    """Whatever names the repository or the site names what pyproject.toml does."""
    urls = project()["urls"]
    owner, name = urls["Repository"].removeprefix("https://github.com/").split("/")
    files = [*ROOT.glob("*.md"), ROOT / "CITATION.cff", *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    for path in files:
        text = path.read_text(encoding="utf-8")
        for other in re.findall(rf"(?:github\.com|/github|/gh)/([\w-]+)/{name}\b", text):
            assert other == owner, f"{path.name} names {other}/{name}, pyproject.toml {owner}/{name}"
        for other in re.findall(r"https://[\w-]+\.github\.io/[\w-]+", text):
            assert f"{other}/" == urls["Documentation"], f"{path.name} names {other}"
    assert yaml.safe_load(read("CITATION.cff"))["repository-code"] == urls["Repository"]
    assert yaml.safe_load(read("CITATION.cff"))["url"] == urls["Documentation"]


def test_nothing_is_fetched_from_a_hub():
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE


def notebook_with(execution_count: str, tags: str = "") -> str:
    cell = (
        f'{{"cell_type": "code", "execution_count": {execution_count}, "id": "a", "metadata": {{"tags": [{tags}]}}, '
        '"outputs": [], "source": ["x = 1"]}'
    )
    return f'{{"cells": [{cell}], "metadata": {{}}, "nbformat": 4, "nbformat_minor": 5}}'


def test_unrun_cells_are_found(tmp_path):
    spec = importlib.util.spec_from_file_location("notebook_guard", ROOT / "notebooks/conftest.py")
    guard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    for text, unrun in [
        (notebook_with("1"), []),
        (notebook_with("null"), [0]),
        (notebook_with("null", '"nbval-skip"'), []),
        (notebook_with("null").replace("x = 1", " "), []),
    ]:
        (tmp_path / "a.ipynb").write_text(text)
        assert guard.unrun_cells(tmp_path / "a.ipynb") == unrun


@pytest.mark.slow
def test_collection_fails_on_an_unrun_notebook(tmp_path):
    shutil.copy(ROOT / "notebooks/conftest.py", tmp_path)
    (tmp_path / "run.ipynb").write_text(notebook_with("1"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        str(tmp_path),
    ]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == pytest.ExitCode.OK
    (tmp_path / "unrun.ipynb").write_text(notebook_with("null"))
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == pytest.ExitCode.INTERRUPTED
    assert "unrun.ipynb: code cells [0] were never run" in result.stdout and "make notebooks" in result.stdout
