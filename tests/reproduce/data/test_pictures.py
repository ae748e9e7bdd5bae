"""Pictures as people bring them: turned, deep, grey, transparent, huge, damaged; all are read by one reader."""

import io
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from reproduce.common.provenance import ROOT
from reproduce.data import pictures
from reproduce.data.pictures import list_pictures, load_picture, picture_size, read_picture, whole_picture
from reproduce.data.prompt_sets import read_pictures
from reproduce.evaluation.folder_reference import stretched

Turn = Image.Transpose
# EXIF's orientations, each with the turn that makes what a camera stores of what is to be seen.
STORED = {
    **{2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE},
    **{6: Turn.ROTATE_90, 7: Turn.TRANSVERSE, 8: Turn.ROTATE_270},
}


@pytest.fixture(autouse=True)
def none_named():
    """Each test begins as a process does: no transparent picture was named."""
    pictures.transparent.clear()


@pytest.fixture
def upright():
    """Four corners of other colours, higher than wide."""
    picture = Image.new("RGB", (16, 32))
    for place, color in (((0, 0), "red"), ((8, 0), "lime"), ((0, 16), "blue"), ((8, 16), "white")):
        picture.paste(color, (*place, place[0] + 8, place[1] + 16))
    return picture


def same(path, picture, within=0):
    found = np.asarray(load_picture(path), dtype=int)
    assert found.shape == np.asarray(picture).shape
    return np.abs(found - np.asarray(picture, dtype=int)).max() <= within


def png(folder, depth, kind, values, transparent=None):
    """A PNG of one row, of a depth or kind that Pillow cannot write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    width = len(values) // {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    row = b"\0" + struct.pack(f">{len(values)}{'H' if depth == 16 else 'B'}", *values)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))]
    if transparent is not None:
        parts.append(chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    path = folder / "made.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")]))
    return path


# turned


@pytest.mark.parametrize("orientation", [1, *STORED])
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_turned_pictures_are_upright_and_measured_so(upright, tmp_path, orientation, suffix):
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(STORED[orientation]) if orientation in STORED else upright
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {"quality": 95, "subsampling": 0}))
    assert same(path, upright, within=3 if suffix == "jpg" else 0)
    assert picture_size(path) == upright.size
    with pytest.raises(ValueError, match="a.* is 16x32: the model draws 32x32"):
        read_picture(path, 32)
    fitted = read_picture(path, 16, resize=True)
    assert fitted.shape == (3, 16, 16) and torch.equal(fitted[:, 0, 0] > 128, torch.tensor([True, False, False]))
    assert torch.equal(stretched(path, 8)[:, -1, 0] > 0.5, torch.tensor([False, False, True])), "of FID's folders, too"


# deep, grey, with a palette, CMYK


def test_sixteen_bits_keep_their_brightness(tmp_path):
    middle = np.full((4, 4), 0x8000, dtype=np.uint16)
    Image.fromarray(middle).save(tmp_path / "grey.png")
    assert same(tmp_path / "grey.png", Image.new("RGB", (4, 4), (128, 128, 128)))
    grey = load_picture(png(tmp_path, 16, 0, [0, 0x1234, 0x8000, 0xFFFF]))
    assert [grey.getpixel((x, 0))[0] for x in range(4)] == [0, 0x12, 0x80, 0xFF]
    assert load_picture(png(tmp_path, 16, 2, [0x8000, 0x1000, 0xFFFF])).getpixel((0, 0)) == (0x80, 0x10, 0xFF)
    with pytest.warns(UserWarning, match="transparent"):
        seen = load_picture(png(tmp_path, 16, 4, [0x8000, 0xFFFF, 0x8000, 0]))
    assert [seen.getpixel((x, 0)) for x in range(2)] == [(128,) * 3, (255,) * 3]
    pictures.transparent.clear()
    with pytest.warns(UserWarning, match="transparent"):
        seen = load_picture(png(tmp_path, 16, 0, [0x1234, 0x1235], transparent=[0x1234]))
    assert [seen.getpixel((x, 0))[0] for x in range(2)] == [255, 0x12], "one of two greys whose upper bits are the same"


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palettes(upright, tmp_path, mode):
    stored = upright.convert(mode)
    stored.save(tmp_path / "a.png")
    assert same(tmp_path / "a.png", stored.convert("RGB"))
    assert mode != "P" or same(tmp_path / "a.png", upright), "four colours fit into a palette"


def test_cmyk(upright, tmp_path):
    upright.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert same(tmp_path / "a.jpg", upright, within=40), "no channel is turned round"
    Image.new("CMYK", (8, 8), (0, 0, 0, 128)).save(tmp_path / "a.jpg")
    assert same(tmp_path / "a.jpg", Image.new("RGB", (8, 8), (127,) * 3), within=2)


# transparent


def transparent_pictures():
    """By name: a picture of which the left half is transparent, whatever colour lies there."""
    for hidden in ("lime", "black"):
        picture = Image.new("RGBA", (8, 8), "red")
        picture.paste(Image.new("RGBA", (4, 8), hidden), (0, 0))
        picture.putalpha(Image.frombytes("L", (8, 8), (b"\0" * 4 + b"\xff" * 4) * 8))
        yield f"rgba-{hidden}", picture, {}
    colors = Image.new("RGB", (8, 8), "red")
    colors.paste("lime", (0, 0, 4, 8))
    yield "rgb", colors, {"transparency": (0, 255, 0)}
    palette = colors.quantize(2)
    yield "palette", palette, {"transparency": palette.getpixel((0, 0))}
    yield "grey", colors.convert("L"), {"transparency": colors.convert("L").getpixel((0, 0))}
    yield "two levels", picture.convert("LA"), {}


@pytest.mark.parametrize(("name", "picture", "how"), transparent_pictures(), ids=lambda x: x if type(x) is str else "")
def test_transparency_is_white_and_said_once(tmp_path, name, picture, how):
    path = tmp_path / "a.png"
    picture.save(path, **how)
    with pytest.warns(UserWarning, match=re.escape(f"{path} is transparent in places: it is laid on white")):
        seen = np.asarray(load_picture(path))
    assert (seen[:, :4] == 255).all() and not (seen[:, 4:] == 255).all(axis=2).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(path, seen), "no second warning"


def test_half_transparent_and_opaque(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "half.webp", lossless=True)
    with pytest.warns(UserWarning, match="half.webp is transparent"):
        assert load_picture(tmp_path / "half.webp").getpixel((0, 0)) == (255, 127, 127)
    Image.new("RGBA", (4, 4), (255, 0, 9, 255)).save(tmp_path / "opaque.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_picture(tmp_path / "opaque.png").getpixel((0, 0)) == (255, 0, 9)


def test_not_a_thousand_warnings(tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for number in range(pictures.NAMED + 5):
            Image.new("RGBA", (1, 1)).save(tmp_path / f"{number}.png")
            load_picture(tmp_path / f"{number}.png")
    assert len(told) == pictures.NAMED + 1 and "further ones are not named" in str(told[-1].message)


# refused


def test_huge_pictures_are_refused_by_name(tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for read in (picture_size, load_picture):
        with pytest.raises(ValueError, match="a.png has more than 0 million pixels: scale it down"):
            read(tmp_path / "a.png")
    assert not whole_picture((tmp_path / "a.png").read_bytes())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_picture(tmp_path / "a.png").size == (32, 32), (
            "Pillow's own warning, which names no file, is not seen"
        )
    with pytest.raises(ValueError, match="a.png is 1x200, a strip without a middle"):
        Image.new("RGB", (1, 200)).save(tmp_path / "a.png")
        read_picture(tmp_path / "a.png", 1024, resize=True)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_damaged_pictures_are_refused_by_name(tmp_path, suffix):
    """Cut off at any of ten places, or with bytes changed, they are read or refused, and nothing else is raised."""
    rng = np.random.default_rng(0)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(whole)
    content, path, refused = whole.read_bytes(), tmp_path / f"a.{suffix}", 0
    assert whole_picture(content)
    for cut in np.linspace(0, len(content) * 0.9, 10, dtype=int):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=f"a.{suffix} is not a picture: replace it or drop its pair"):
            load_picture(path)
        assert not whole_picture(content[:cut])
    for _ in range(20):
        broken = bytearray(content)
        for place in rng.integers(0, len(content), 8):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            picture_size(path)
            load_picture(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused


def test_other_kinds_are_refused_whatever_they_are_called(tmp_path):
    for kind in ("TIFF", "GIF", "PPM", "EPS"):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png", kind)
        with pytest.raises(ValueError, match="a.png is not a picture: .*pictures are .png .jpg .jpeg .webp .bmp"):
            load_picture(tmp_path / "a.png")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert load_picture(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 0, 0), "the content counts, not the name"
    with pytest.raises(FileNotFoundError, match="b.png"):
        load_picture(tmp_path / "b.png")


# folders


def test_what_a_folder_leaves_out_is_said(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.tif", "d.heic", "._a.jpg", ".DS_Store", "a.txt", "metadata.csv", "deep/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    expected = "1 of .heic, 1 of .png in folders below, 1 of .tif left out: pictures are .png .jpg"
    with pytest.warns(UserWarning, match=expected):
        assert [path.name for path in list_pictures(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.warns(UserWarning, match="1 of .heic, 1 of .tif left out"):
        assert [path.name for path in list_pictures(tmp_path, below=True)] == ["a.jpg", "b.PNG", "e.png"]


def test_captions_beside_pictures(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.PNG", "PNG")
    (tmp_path / "a.TXT").write_bytes(b"\xef\xbb\xbfa cat\r\n")
    assert read_pictures(tmp_path) == [(tmp_path / "a.PNG", "a cat")]
    (tmp_path / "a.TXT").write_bytes("ein Kätzchen".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.TXT is not UTF-8 text \(byte 0xe4\): save it as UTF-8"):
        read_pictures(tmp_path)


def test_there_is_one_reader():
    """But for pictures that the project drew itself."""
    own = {"evaluation/report.py"}
    found = {
        str(path.relative_to(ROOT / "reproduce"))
        for path in (ROOT / "reproduce").rglob("*.py")
        if re.search(r"\bImage\.open\(", path.read_text(encoding="utf-8"))
    }
    assert found == {"data/pictures.py"} | own
