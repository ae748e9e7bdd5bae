"""What holds for every test: nothing is fetched from a hub, and no window opens."""

import os
import shutil
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported: it has to stand here
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("FSALIGN_HUB", None)  # the weights of whoever runs the tests

import matplotlib  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from fsalign_lib.models import load as models  # noqa: E402
from reproduce.common import files  # noqa: E402
from tests import tiny  # noqa: E402

torch.set_num_threads(1)  # networks this small gain nothing from more, and sums have the order that they have elsewhere
matplotlib.use("Agg")  # in this process only: MPLBACKEND would reach the notebooks' kernels and take their figures away


@pytest.fixture(autouse=True)
def leave_nothing():
    """A process holds the folders of its runs until they end, and most that tests begin never do; and the demo tells
    accelerate by the environment, which notebooks' kernels inherit, to use the CPU."""
    with mock.patch.dict(os.environ):
        yield
    while files.CLAIMS:
        lock, file = files.CLAIMS.popitem()
        lock.unlink(missing_ok=True)
        file.close()


@pytest.fixture(scope="module")
def chromium():
    """Chromium for the tests that are marked `browser`: the one on the PATH, else the one that playwright brought."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    options = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as tool, tool.chromium.launch(executable_path=path, args=options) as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random pipeline."""
    return tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def loaded(folder):
    return models.load(folder)


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    """The tiny world's prompts, a line each."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(tiny.PROMPTS))
    return str(path)
