"""The notebooks' controls, moved in JupyterLab in headless Chromium: `make browser`. Screenshots: build/browser."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SHOTS = ROOT / "build/browser"
MOVES = re.compile(r"^move\(", re.MULTILINE)
READS_TO = 900_000  # milliseconds that the cells up to the last control may take, on a busy machine

pytestmark = pytest.mark.browser


def up_to_the_controls(notebook: dict) -> tuple[dict, int]:
    """The notebook without what comes after its last control and without outputs, and its number of such cells."""
    cells = notebook["cells"]
    moving = [
        i for i, cell in enumerate(cells) if cell["cell_type"] == "code" and MOVES.search("".join(cell["source"]))
    ]
    for cell in cells:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return notebook | {"cells": cells[: moving[-1] + 1] if moving else []}, len(moving)


NOTEBOOKS = {
    path.stem: found
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    if (found := up_to_the_controls(json.loads(path.read_text(encoding="utf-8"))))[1]
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab over copies of the notebooks that have controls."""
    folder, settings = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("settings")
    for name, (notebook, _) in NOTEBOOKS.items():
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    chosen = {
        "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, in view or not
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # nothing over the figures
    }
    for name, values in chosen.items():
        path = settings / f"@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--ServerApp.token="]
    command += [f"--ServerApp.root_dir={folder}"]
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    log = settings / "log"
    with log.open("w") as out, subprocess.Popen(command, env=environment, stderr=out) as server:
        while not (address := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/lab", log.read_text())):
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
        yield address[0]
        server.terminate()


def pixels(picture) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(picture.get_attribute("src").split(",")[1]))) as png:
        return np.asarray(png.convert("RGB"))


def moved(cell, act) -> None:
    """Act on a control and wait until the picture of its cell is another."""
    picture = cell.locator("img").last
    before, source = pixels(picture), picture.get_attribute("src")
    act()
    for _ in range(100):
        if picture.get_attribute("src") != source:
            break
        cell.page.wait_for_timeout(100)
    after = pixels(picture)
    assert before.shape == after.shape and (before != after).any(), "the picture stayed as it was"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_control_moves_the_picture(lab, chromium, name):
    page = chromium.new_page(viewport={"width": 1300, "height": 1000})
    page.goto(f"{lab}/tree/{name}.ipynb?reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    cells = page.locator(".jp-CodeCell")
    cells.last.locator(".jp-OutputArea .widget-readout, .jp-OutputArea select").first.wait_for(timeout=READS_TO)
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    moving = [cell for cell in cells.all() if cell.locator(".jp-OutputArea .jupyter-widgets").count()]
    assert len(moving) == NOTEBOOKS[name][1]
    SHOTS.mkdir(parents=True, exist_ok=True)
    for i, cell in enumerate(moving):
        cell.locator("img").last.wait_for()
        cell.scroll_into_view_if_needed()
        cell.screenshot(path=SHOTS / f"{name}-{i}-before.png")
        for handle in cell.locator(".noUi-handle").all():
            at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
            moved(cell, lambda h=handle, key="ArrowLeft" if at_end else "ArrowRight": h.press(key))
        for menu in cell.locator(".jp-OutputArea select").all():
            last = menu.locator("option").count() - 1
            moved(cell, lambda m=menu, n=last: m.select_option(index=0 if m.evaluate("m => m.selectedIndex") else n))
        cell.screenshot(path=SHOTS / f"{name}-{i}-after.png")
    page.close()


def test_ten_notebooks_have_controls():
    assert len(NOTEBOOKS) >= 10
