"""A folder of pictures as the reference of FID: what was replaced is computed again, what is damaged is named."""

import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from PIL import Image

from reproduce.common.cli import failures
from reproduce.evaluation.folder_reference import FolderReference, picture_paths


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name, color in (("a.bmp", "red"), ("deep/B.PNG", "lime"), ("deep/c.jpg", "blue")):
        Image.new("RGB", (8, 8), color).save(folder / name, "BMP" if name == "a.bmp" else "PNG")
    (folder / "._a.bmp").write_bytes(b"left behind by macOS")
    return folder


def reference(folder):
    network = SimpleNamespace(extractor="mean", size=4, dimensions=3, network=lambda images: images.mean((2, 3)))
    return FolderReference(picture_paths(folder), network, folder.parent / "parts", "cpu")


def means(found):
    found.chunks.fill(found.compute, PartialState(cpu=True), "reference")
    return torch.as_tensor(found.gaussian.mean)


def test_a_replaced_picture_is_seen(pictures):
    """Where the parts of a reference that was stopped lie there still."""
    assert torch.allclose(means(reference(pictures)).float(), torch.full((3,), 1 / 3))
    first = reference(pictures).chunks.folder
    assert reference(pictures).chunks.folder == first
    before = (pictures / "a.bmp").stat()
    Image.new("RGB", (8, 8), (0, 0, 255)).save(pictures / "a.bmp")
    os.utime(pictures / "a.bmp", ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert (pictures / "a.bmp").stat().st_size == before.st_size
    again = reference(pictures)
    assert again.chunks.folder != first
    assert torch.allclose(means(again).float(), torch.tensor([0, 1 / 3, 2 / 3]))


def test_a_damaged_picture_ends_it_with_one_line(pictures, capsys):
    whole = (pictures / "deep/B.PNG").read_bytes()
    found = reference(pictures)
    (pictures / "deep/B.PNG").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit) as stopped, failures():
        found.compute(0)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count("\n") == 1 and "deep/B.PNG is not a picture: replace it" in err
    with pytest.raises(ValueError, match="deep/B.PNG is not a picture: replace it"):
        picture_paths(pictures)  # before anything is computed
