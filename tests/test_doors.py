"""The ways in without a set-up: the badge and first cell of each notebook, the container, Binder, the workflow."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from fsalign_lib import __version__
from tests.test_packaging import project, read

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = project()["urls"]["Repository"]


def first_cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"][:2]


def source(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_opens_with_its_badge_and_the_one_cell(path):
    title, door = first_cells(path)
    opens = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
    assert re.findall(r"^\[!\[Open In Colab\].*\]\((.*)\)$", source(title), re.MULTILINE) == [
        f"{opens}/blob/main/notebooks/{path.name}"
    ]
    assert door["cell_type"] == "code" and door["outputs"] == [] and door["metadata"]["tags"] == ["remove-cell"]
    assert source(door) == source(first_cells(NOTEBOOKS[0])[1]) and f'"{REPOSITORY}"' in source(door)


def test_here_the_first_cell_does_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail(f"ran {command}"))
    exec(source(first_cells(NOTEBOOKS[0])[1]), {})
    assert Path.cwd() == tmp_path and list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_on_colab_the_first_cell_installs_the_project(tmp_path):
    """In a bare virtual environment whose google.colab is a stub, from a wheel of this checkout, without a network."""
    checkout, content, wheels = tmp_path / "public/fsalign", tmp_path / "content", tmp_path / "wheels"
    for folder in ("fsalign_lib", "reproduce", "notebooks"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, checkout)
    build = ["wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(wheels), str(checkout)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (wheel,) = wheels.iterdir()
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "notebooks"], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], check=True)

    bare = tmp_path / "bare"
    venv.create(bare, with_pip=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": bare, "platbase": bare}))
    content.mkdir()
    cell = source(first_cells(NOTEBOOKS[0])[1])
    asked = f"import importlib.metadata as m, os\n{cell}\nprint(m.version('fsalign'), os.getcwd())"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV"))
    }
    environment |= {"PATH": f"{bare / 'bin'}:{environment['PATH']}", "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}

    def run(program: str) -> subprocess.CompletedProcess[str]:
        for name, ours in ((REPOSITORY, checkout.as_uri()), ("install -q ./fsalign", f"install -q {wheel}")):
            assert name in program
            program = program.replace(name, ours)
        program = program.replace("/content", str(content))
        command = [str(bare / "bin/python"), "-c", program]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    elsewhere = run(asked)
    assert "No package metadata was found for fsalign" in elsewhere.stderr and list(content.iterdir()) == []
    (packages / "google/colab").mkdir(parents=True)
    for _ in range(2):  # run again, the cell finds what it fetched
        done = run(asked)
        assert done.stdout.split() == [__version__, str(content / "fsalign/notebooks")], done.stderr
    assert (packages / "fsalign_lib/pocket/weights/student/unet/diffusion_pytorch_model.safetensors").is_file()
    assert sorted(path.name for path in (content / "fsalign/notebooks").glob("*.ipynb")) == [p.name for p in NOTEBOOKS]

    shutil.rmtree(content / "fsalign")
    failed = run(asked.replace(REPOSITORY, f"{REPOSITORY}/gone"))
    assert "was not installed: run this cell again" in failed.stderr


def test_the_container_and_binder_install_the_tested_versions():
    container = json.loads(read(".devcontainer/devcontainer.json"))
    assert container["image"].endswith("python:3.11")
    for command in (container["postCreateCommand"], read(".binder/postBuild")):
        assert "-c constraints.txt" in command and ".[notebooks" in command
    assert read(".binder/runtime.txt").strip() == "python-3.11"
    assert os.access(ROOT / ".binder/postBuild", os.X_OK)
    owner = REPOSITORY.removeprefix("https://github.com/")
    assert f"https://mybinder.org/v2/gh/{owner}/main?urlpath=lab/tree/notebooks/00_start_here.ipynb" in read(
        "README.md"
    )


def test_the_workflow_builds_the_site_and_publishes_it():
    jobs = yaml.safe_load(read(".github/workflows/pages.yml"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == ["make docs"]
    assert [step["with"]["path"] for step in steps if "upload-pages-artifact" in step.get("uses", "")] == ["build/site"]
    assert jobs["publish"]["needs"] == "build" and jobs["publish"]["permissions"] == {
        "pages": "write",
        "id-token": "write",
    }
