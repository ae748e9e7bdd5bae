"""What holds for every test: nothing is fetched from a hub, and no window opens."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported: it has to stand here
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("FSALIGN_HUB", None)  # the weights of whoever runs the tests

import matplotlib  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from reproduce.common import files  # noqa: E402
from tests import tiny  # noqa: E402

torch.set_num_threads(1)  # networks this small gain nothing from more, and sums have the order that they have elsewhere
matplotlib.use("Agg")  # in this process only: MPLBACKEND would reach the notebooks' kernels and take their figures away


@pytest.fixture(autouse=True)
def release_folders():
    """A process holds the folders of its runs until they end, and most that tests begin never do."""
    yield
    for lock in list(files.CLAIMS):
        files.release(lock)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random pipeline."""
    return tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    """The tiny world's prompts, a line each."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(tiny.PROMPTS))
    return str(path)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep what accelerate left in the environment, in an earlier test, away from the next one."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
