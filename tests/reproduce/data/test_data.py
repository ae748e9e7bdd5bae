"""Data sets in their published formats, written here in small: prompts, pairs, pictures; and latents in shards."""

import io
import itertools
import json
import os
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fsalign_lib.models.latent_model import fingerprint
from fsalign_lib.pocket import captions, concept
from fsalign_lib.twins import save_twin
from reproduce import build_pairs
from reproduce.common.files import write_text
from reproduce.common.provenance import ROOT
from reproduce.data import latents, pickapic
from reproduce.data import prompt_sets as data
from reproduce.data import sampled_pairs as pair_files
from reproduce.data.pairs import read_latents, read_rows
from reproduce.data.pictures import fit, read_picture
from reproduce.data.prompt_sets import SETS, read_pictures, read_prompts
from tests import tiny


def write_parquet(path, group=100, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    """A data folder in which every set has a few rows, as published."""
    write_parquet(tmp_path / "pickapic_v2/data/train-00001-of-00002.parquet", caption=["c", "a"], jpg_0=[b"", b""])
    write_parquet(tmp_path / "pickapic_v2/data/train-00000-of-00002.parquet", caption=["b", "a", "b", " "])
    write_parquet(tmp_path / "pickapic_v2/data/test_unique-00000-of-00001.parquet", caption=["t", "t"])
    header = "Prompt\tCategory\tChallenge\tNote\n"
    write(tmp_path / "parti/PartiPrompts.tsv", header + '"Stop" on a sign \tArts\tBasic\t\nthe words "Fly"\tArts\t\t\n')
    rows = [(7, 5, "second"), (7, 2, "first"), (3, 9, "of three ")]
    annotations = [{"image_id": i, "id": n, "caption": c} for i, n, c in rows]
    for year in (2014, 2017):
        text = json.dumps({"info": {}, "images": [], "annotations": annotations})
        write(tmp_path / f"coco/annotations/captions_val{year}.json", text)
    for category in ("anime", "concept-art", "paintings", "photo"):
        write(tmp_path / f"hpdv2/benchmark/{category}.json", json.dumps([f"{category} one", "two"]))
    scores = pyarrow.array([6.2, 6.3, 6.25, 7.0], pyarrow.float64())
    texts = ["low", "high", "equal", None]
    write_parquet(tmp_path / "laion-aesthetics/part-0.parquet", URL=["u"] * 4, TEXT=texts, AESTHETIC_SCORE=scores)
    (tmp_path / "sam-llava").mkdir()
    with tarfile.open(tmp_path / "sam-llava/SA1B_caption.tar.gz", "w:gz") as archive:
        for name in ("sa_1.txt", "sa_2.txt"):
            member = tarfile.TarInfo(f"captions/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    for place, caption in (("pokemon", "a green monster"), ("dreambooth/dataset/dog", None)):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "00.jpg")
        if caption:
            write(tmp_path / place / "00.txt", caption)
    return tmp_path


# prompts

PUBLISHED = {
    "pickapic-train": ["b", "a", "c"],
    "pickapic-test": ["t", "t"],
    "parti": ['"Stop" on a sign', 'the words "Fly"'],
    "coco-2017": ["of three", "first"],
    "hpdv2-concept-art": ["concept-art one", "two"],
    "laion-aesthetics": ["high"],
    "sam-llava": ["sa_1.txt", "sa_2.txt"],
    "pokemon": ["a green monster"],
}


@pytest.mark.filterwarnings("ignore:.* as published")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats(root, name, monkeypatch):
    assert read_prompts(name, root) == PUBLISHED[name]
    monkeypatch.setenv("FSALIGN_DATA", str(root))
    assert read_prompts(name) == PUBLISHED[name]


def test_a_set_that_is_not_whole_warns(root):
    with pytest.warns(UserWarning, match="parti has 2 prompts here and 1632 as published"):
        read_prompts("parti", root)


def test_drawn_sets_are_a_part_in_order(root, monkeypatch):
    """coco-2014-30k and pickapic-4k, with smaller numbers."""
    annotations = [{"image_id": i, "id": i, "caption": f"{i:03d}"} for i in range(50)]
    write(root / "coco/annotations/captions_val2014.json", json.dumps({"annotations": annotations}))
    monkeypatch.setitem(SETS, "drawn", replace(SETS["coco-2014-30k"], draw=20, count=20))
    drawn = read_prompts("drawn", root)
    assert len(drawn) == 20 and drawn == sorted(drawn) == read_prompts("drawn", root)
    assert drawn != [f"{i:03d}" for i in range(20)]
    assert SETS["coco-2014-30k"].draw == 30_000 and SETS["pickapic-4k"].draw == 4000


@pytest.mark.filterwarnings("ignore:.* as published")
def test_published_files_go_before_what_stands_for_them(root):
    """The prompts of the published PSO code, and Pick-a-Pic v1's test prompts."""
    assert read_prompts("pickapic-4k", root) == ["b", "a", "c"], "drawn from v2's"
    listed = [{"caption": caption, "trainset_idx": number} for number, caption in enumerate("zyx")]
    write(root / "pso/pso_pytorch/assets/4k_training_prompts.json", json.dumps(listed))
    assert read_prompts("pickapic-4k", root) == ["z", "y", "x"]
    write_parquet(root / "pickapic_v1/data/test_unique-00000-of-00001.parquet", caption=["of v1"])
    assert read_prompts("pickapic-test", root) == ["of v1"]


def test_counts_and_seeds():
    whole = [str(i) for i in range(100)]
    assert data.some(iter(whole), 7, None) == whole[:7]
    assert data.some((str(i) for i in itertools.count()), 3, None) == whole[:3], "no more is read than is asked for"
    one, other = (data.some(iter(whole), 30, seed) for seed in (1, 2))
    assert one == data.some(iter(whole), 30, 1) != other and len(set(one)) == 30
    assert [whole.index(p) for p in one] == sorted(whole.index(p) for p in one)
    assert data.some(iter(whole), 100, 1) == whole
    with pytest.raises(ValueError, match="sdpo-unseen has 4 prompts, and 5 are asked for"):
        read_prompts("sdpo-unseen", count=5)
    with pytest.raises(ValueError, match="count = 0: expected 1 or more"):
        read_prompts("sdpo-unseen", count=0)


def test_pocket_sets_and_animals_need_no_file(monkeypatch):
    monkeypatch.delenv("FSALIGN_DATA", raising=False)
    for name in data.POCKET:
        assert read_prompts(name) == (concept.contexts() if name == "concept" else captions.prompts(name))
    animals = read_prompts("sdpo-animals")
    assert len(set(animals)) == 45 and {captions.parse(a).animal for a in animals} == set(captions.ANIMALS)
    kinds = [captions.parse(p).kind for p in read_prompts("sdpo-unseen")]
    assert kinds == ["color", "count+place", "composition", "place"], "the axes of SDPO Sec. 4.2"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.csv", 'id,caption\n1,"one, two"\n2,three\n'),
        ("a.tsv", "caption\tid\none, two\t1\nthree\t2\n"),
        ("a.jsonl", '{"text": "one, two"}\n\n{"text": "three"}\n'),
        ("a.json", '["one, two", "three"]'),
        ("a.txt", "one, two\n\n three \n"),
        ("a.prompts", "one, two\nthree"),
    ],
)
def test_files_of_ones_own(tmp_path, file, content):
    write(tmp_path / file, content)
    assert read_prompts(str(tmp_path / file)) == ["one, two", "three"]


def test_what_is_wrong_with_prompts_is_one_line(root, tmp_path, monkeypatch):
    def told(name, error=ValueError, folder=root, **kwargs):
        with pytest.raises(error) as raised:
            read_prompts(str(name), folder, **kwargs)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    monkeypatch.delenv("FSALIGN_DATA", raising=False)
    assert "unknown prompt set 'partii'; choose one of animals, train" in told("partii")
    assert "set FSALIGN_DATA to a folder with parti/PartiPrompts.tsv, from github.com" in told("parti", folder=None)
    (root / "parti/PartiPrompts.tsv").unlink()
    missing = told("parti", FileNotFoundError)
    assert f"is not in {root}: expected parti/PartiPrompts.tsv there, from github.com/google-research" in missing
    assert "'pickapic' is a set of pairs" in told("pickapic")
    write_parquet(tmp_path / "bad.parquet", picture=[1], score=[2])
    assert "bad.parquet has no column prompt or Prompt or caption" in told(tmp_path / "bad.parquet")
    assert "it has picture, score" in told(tmp_path / "bad.parquet")
    write(tmp_path / "bad.csv", "a,b\n1,2\n")
    assert "it has a, b" in told(tmp_path / "bad.csv")
    write(tmp_path / "damaged.parquet", "PAR1 and no more")
    assert "damaged.parquet is not a parquet file" in told(tmp_path / "damaged.parquet")
    write(tmp_path / "damaged.jsonl", '{"text": "a"}\n{"text"\n')
    assert "damaged.jsonl line 2 is not JSON" in told(tmp_path / "damaged.jsonl")
    write(tmp_path / "damaged.json", "[1,")
    assert "damaged.json cannot be read as .json" in told(tmp_path / "damaged.json")
    whole = (root / "sam-llava/SA1B_caption.tar.gz").read_bytes()
    (root / "sam-llava/SA1B_caption.tar.gz").write_bytes(whole[:60])
    assert "cannot be read" in told("sam-llava", (ValueError, OSError))
    write_parquet(tmp_path / "empty.parquet", prompt=["", " "])
    assert "is empty" in told(tmp_path / "empty.parquet")


def test_the_table_of_data_md_is_the_generated_one():
    content = (ROOT / "reproduce/DATA.md").read_text(encoding="utf-8")
    assert f"<!-- data:begin -->\n{data.table()}\n<!-- data:end -->" in content
    assert "(DATA.md)" in (ROOT / "reproduce/README.md").read_text(encoding="utf-8")


# Pick-a-Pic


def jpeg(color):
    out = io.BytesIO()
    Image.new("RGB", (40, 32), color).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def published_pairs(tmp_path):
    """Two files of two row groups: six pairs, of them a tie and one that is cut off."""
    red, green, blue = (jpeg(color) for color in ("red", "green", "blue"))
    first = {
        "caption": list("abcd"),
        "jpg_0": [red] * 4,
        "jpg_1": [green, blue, green, blue],
        "label_0": [1, 0, 0.5, 1],
    }
    second = {"caption": ["e", "f"], "jpg_0": [green, blue[:300]], "jpg_1": [blue, red], "label_0": [0.0, 1.0]}
    for number, columns in enumerate((first, second)):
        columns["label_0"] = [float(x) for x in columns["label_0"]]
        path = tmp_path / f"published/data/train-{number:05d}-of-00002-abc.parquet"
        write_parquet(path, group=2, **columns, label_1=[1 - x for x in columns["label_0"]])
    return tmp_path / "published", {"red": red, "green": green, "blue": blue}


def tree(folder):
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def same_pairs(one, other):
    """All files but about.json, which has the time in it."""
    return all({**tree(f), "about.json": b""} == {**tree(one), "about.json": b""} for f in (one, other))


def bring(folder, out, **kwargs):
    pickapic.build(pickapic.prepare(pickapic.PickapicConfig(data=folder, out=out, **kwargs)))
    return out


def test_pickapic_without_its_ties(published_pairs, tmp_path):
    folder, pictures = published_pairs
    out = bring(folder, tmp_path / "pairs")
    rows = read_rows(out)
    found = [(r["prompt"], *((out / r[side]).read_bytes() for side in ("winner", "loser"))) for r in rows]
    expected = [("a", "red", "green"), ("b", "blue", "red"), ("d", "red", "blue"), ("e", "blue", "green")]
    assert found == [(prompt, pictures[w], pictures[l]) for prompt, w, l in expected]
    assert len(list(out.rglob("*.jpg"))) == 3, "each picture once"
    about = json.loads((out / "about.json").read_text())
    assert (about["pairs"], about["ties"], about["unreadable"]) == (4, 1, 1)
    assert [r["prompt"] for r in read_rows(bring(folder, tmp_path / "three", count=3))] == list("abd")


@pytest.mark.parametrize("when", range(6))
def test_an_import_that_was_stopped_goes_on(published_pairs, tmp_path, monkeypatch, when):
    """At any of its writes; what is noted is not read again."""
    folder, _ = published_pairs
    whole, out = bring(folder, tmp_path / "whole"), tmp_path / "stopped"
    calls = []

    def stop(*args, _write=pickapic.write_bytes, **kwargs):
        calls.append(args)
        if len(calls) > when:
            raise KeyboardInterrupt
        return _write(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pickapic, "write_bytes", stop)
        patch.setattr("reproduce.data.pair_folder.write_text", lambda *a, _write=write_text: stop(*a, _write=_write))
        with pytest.raises(KeyboardInterrupt):
            bring(folder, out)
    noted = len(list((out / "building").glob("0*.json")))
    read = []
    with monkeypatch.context() as patch:
        patch.setattr(pickapic, "_rows", lambda *a, _rows=pickapic._rows: read.append(a) or _rows(*a))
        bring(folder, out)
    assert len(read) == 3 - noted and same_pairs(whole, out)


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    """No label, or half a picture; whatever their kind, and none of them is called a tie."""
    red, blue = jpeg("red"), jpeg("blue")
    rows = {
        "caption": ["a", "b", None, "d", "e", "f"],
        "jpg_0": [red, red, red, None, red[:300], red],
        "jpg_1": [blue] * 6,
        "label_0": [None, float("nan"), 1.0, 1.0, 0.0, 0.5],
    }
    write_parquet(tmp_path / "published/train-0.parquet", **rows)
    about = json.loads((bring(tmp_path / "published", tmp_path / "pairs") / "about.json").read_text())
    found = {name: about[name] for name in ("pairs", "ties", "unlabelled", "unreadable")}
    assert found == {"pairs": 0, "ties": 1, "unlabelled": 2, "unreadable": 3}


def test_an_import_does_not_go_on_with_other_files(published_pairs, tmp_path):
    """Of the same name, size and number of rows."""
    folder, pictures = published_pairs
    out = tmp_path / "pairs"
    pickapic.prepare(pickapic.PickapicConfig(data=folder, out=out)).folder.begin()
    pickapic.prepare(pickapic.PickapicConfig(data=folder, out=out))
    path = folder / "data/train-00001-of-00002-abc.parquet"
    green, blue = (pictures[color] for color in ("green", "blue"))
    columns = {"caption": ["g", "h"], "jpg_0": [blue, green], "jpg_1": [green, blue], "label_0": [0.0, 1.0]}
    write_parquet(path, group=2, **columns, label_1=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"begun with other settings \(files\)"):
        pickapic.prepare(pickapic.PickapicConfig(data=folder, out=out))


def test_what_is_wrong_with_an_import(published_pairs, tmp_path, capsys, monkeypatch):
    folder, _ = published_pairs
    monkeypatch.delenv("FSALIGN_DATA", raising=False)

    def told(*argv):
        with pytest.raises(SystemExit) as stopped:
            build_pairs.main([str(a) for a in argv])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
        return err

    start = ("--from", "pickapic", "--out", tmp_path / "out")
    assert "with --data, or set FSALIGN_DATA" in told(*start)
    assert "no test-*.parquet in" in told(*start, "--data", folder, "--split", "test")
    assert "count = 0: expected more than 0" in told(*start, "--data", folder, "--count", 0)
    write_parquet(folder / "train-9.parquet", caption=["a"], jpg_0=[b""], jpg_1=[b""])
    assert "train-9.parquet has no column label_0: it has caption, jpg_0, jpg_1" in told(*start, "--data", folder)
    (folder / "train-9.parquet").unlink()
    bring(folder, tmp_path / "out")
    capsys.readouterr()
    assert "holds pairs already: choose another --out" in told(*start, "--data", folder)
    assert "--from 'elsewhere': choose from samples, pickapic" in told("--from", "elsewhere")
    assert "unknown scale 'fulll': choose from pocket, full" in told("--scale", "fulll")


# pairs at full scale


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return save_twin("sdxl", tmp_path_factory.mktemp("hub"))


@pytest.fixture
def sampled(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("FSALIGN_HUB", str(hub))
    write(tmp_path / "prompts.txt", "a cat\na dog\na red fox")

    def make(out, utility=tiny.brightness, model=None, **overrides):
        small = {"count": 4, "batch": 2, "steps": 2, "tie": 0.0, "dtype": "float32"} | overrides
        config = pair_files.FullPairConfig(out=tmp_path / out, prompts=str(tmp_path / "prompts.txt"), **small)
        return pair_files.prepare(config, model, utility)

    return make


def test_the_better_picture_wins_at_full_scale(sampled, monkeypatch):
    builder = sampled("pairs")
    pair_files.build(builder)
    out, size = builder.config.out, builder.model.image_size
    rows = read_rows(out)
    assert [r["prompt"] for r in rows] == ["a cat", "a dog", "a red fox", "a cat"]
    for row in rows:
        won, lost = (read_picture(out / row[side], size).float().mean() for side in ("winner", "loser"))
        assert won > lost
    assert set(builder.model._embeddings) <= {None}, "no list of all prompts' embeddings grows"
    scores = iter([[0.5, 0.1], [0.4, 0.3], [0.1, 0.1], [0.1, 0.3]])
    ranked = sampled("ranked", lambda images, prompts: torch.tensor(next(scores)), tie=0.11)
    pair_files.build(ranked)
    rows = [(r["prompt"], r["winner"]) for r in read_rows(ranked.config.out)]
    assert rows == [("a dog", "000001-b.png"), ("a cat", "000003-b.png")], "a margin of 0.1 is a tie, 0.2 is not"
    equal = sampled("equal", lambda images, prompts: torch.zeros(len(images)), ranked.model, count=2)
    pair_files.build(equal)
    assert json.loads((equal.config.out / "about.json").read_text())["ties"] == 2, "equal rewards, whatever the margin"


def test_sampling_that_was_stopped_goes_on(sampled):
    def utility(images, prompts):
        seen.append(len(images))
        if len(seen) > 3:
            raise KeyboardInterrupt
        return tiny.brightness(images, prompts)

    seen = []
    whole = sampled("whole")
    model = whole.model
    pair_files.build(whole)
    with pytest.raises(KeyboardInterrupt):
        pair_files.build(sampled("stopped", utility, model))
    with pytest.raises(ValueError, match=r"begun with other settings \(seed\): remove it, or choose another --out"):
        sampled("stopped", model=model, seed=1)
    seen = []
    again = sampled("stopped", utility, model)
    pair_files.build(again)
    assert seen == [2, 2], "the first part is not sampled again"
    assert same_pairs(whole.config.out, again.config.out)


# latents in shards


@dataclass
class Encoder:
    """Stands for a model: latents are 2x2 means; remembers what it encoded, and stops when told to."""

    image_size: int = 4
    stop_after: int | None = None
    vae_fingerprint: str = "vae"
    device: str = "cpu"
    latent_shape: tuple = (3, 2, 2)
    vae = SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(scaling_factor=1.0))

    def __post_init__(self):
        self.seen = []

    def encode(self, images):
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += (images[:, 0, 0, 0] * 255).round().int().tolist()
        return torch.nn.functional.avg_pool2d(images, 2)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Eleven pictures in shards of three, encoded two at a time."""
    monkeypatch.setattr(latents, "SHARD", 3)
    monkeypatch.setattr(latents, "BATCHES", ((4, 2),))
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / "pictures" / f"{i:02d}.png" for i in range(11)]
    for i, path in enumerate(paths):
        Image.new("RGB", (4, 4), (20 * i, i, 0)).save(path)
    return paths


def test_rows_come_from_their_shards(pictures, tmp_path):
    found = latents.encode_pictures(pictures, Encoder(), tmp_path / "cache")
    found.check()
    rows = torch.tensor([10, 0, 3, 2, 3])
    assert len(found) == 11 and torch.equal((found[rows][:, 1] * 255).round().long().amax((1, 2)), rows)
    assert [p.name for p in sorted((tmp_path / "cache").iterdir())] == [f"{i:06d}.safetensors" for i in range(4)]


@pytest.mark.parametrize("stop", range(10))
def test_encoding_that_was_stopped_goes_on(pictures, tmp_path, stop):
    """Same bytes; what is whole is not encoded again, and no more than one shard is lost."""
    latents.encode_pictures(pictures, Encoder(), tmp_path / "whole")
    first, again = Encoder(stop_after=stop), Encoder()
    with pytest.raises(KeyboardInterrupt):
        latents.encode_pictures(pictures, first, tmp_path / "stopped")
    kept = len(first.seen) // 3 * 3
    latents.encode_pictures(pictures, again, tmp_path / "stopped")
    assert again.seen == [20 * i for i in range(kept, 11)]
    assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")


def test_stopped_while_a_shard_is_written(pictures, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="cannot write .*000000.safetensors .*No space left.*free some space"):
            latents.encode_pictures(pictures, Encoder(), cache)
    assert not list(cache.iterdir()), "nothing half-written is left"
    assert len(latents.encode_pictures(pictures, Encoder(), cache)) == 11


def test_two_processes_share_the_shards(pictures, tmp_path):
    both = [Encoder(), Encoder()]
    for index, encoder in enumerate(both):
        found = latents.encode_pictures(pictures, encoder, tmp_path / "shared", part=(index, 2))
    found.check()
    assert sorted(both[0].seen + both[1].seen) == [20 * i for i in range(11)] and len(both[1].seen) == 5
    latents.encode_pictures(pictures, Encoder(), tmp_path / "alone")
    assert tree(tmp_path / "shared") == tree(tmp_path / "alone")


def test_a_damaged_shard_is_named(pictures, tmp_path):
    found = latents.encode_pictures(pictures, Encoder(), tmp_path / "cache")
    path = tmp_path / "cache/000002.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="000002.safetensors is damaged .*: remove it"):
        found.check()


def test_each_picture_of_the_pairs_is_encoded_once(pictures, tmp_path):
    names = [path.name for path in pictures]
    rows = [{"prompt": w, "winner": w, "loser": l} for w, l in zip(names, names[1:], strict=False)]
    write(tmp_path / "pictures/pairs.jsonl", "\n".join(json.dumps(row) for row in rows))
    encoder = Encoder()
    prompts, found = read_latents(tmp_path / "pictures", encoder)
    assert prompts == names[:-1] and sorted(encoder.seen) == [20 * i for i in range(11)]
    green = (found[torch.tensor([9, 4])][:, :, 1] * 255).round().amax((2, 3))
    assert green.tolist() == [[9, 10], [4, 5]]
    again = Encoder()
    read_latents(tmp_path / "pictures", again)
    assert not again.seen
    for other in (Encoder(vae_fingerprint="other"), Encoder(image_size=2)):
        assert latents.cache_name(names, other, False) != latents.cache_name(names, encoder, False)
    assert latents.cache_name(names, encoder, True) != latents.cache_name(names, encoder, False)


def test_pictures_of_other_sizes(pictures, tmp_path):
    Image.new("RGB", (8, 4)).save(pictures[7])
    encoder = Encoder()
    with pytest.raises(ValueError, match=r"07.png is 8x4: the model draws 4x4: .*--resize"):
        latents.encode_pictures(pictures, encoder, tmp_path / "cache")
    assert not encoder.seen, "known before any compute"
    assert len(latents.encode_pictures(pictures, encoder, tmp_path / "cache", resize=True)) == 11


def test_fit_keeps_the_middle():
    """Shorter side to the size, then the middle: of a 3:1 strip, its middle third; a tall one likewise."""
    strip = Image.new("RGB", (30, 10))
    for third, color in enumerate(("red", "lime", "blue")):
        strip.paste(color, (10 * third, 0, 10 * third + 10, 10))
    assert fit(strip, 10).getcolors() == [(100, (0, 255, 0))]
    assert fit(strip.rotate(90, expand=True), 10).getcolors() == [(100, (0, 255, 0))]
    small = fit(strip, 4)
    assert small.size == (4, 4) and small.getpixel((2, 2)) == (0, 255, 0)
    assert fit(Image.new("RGB", (5, 7)), 16).size == (16, 16)
    gradient = Image.linear_gradient("L")  # 256x256: a square is scaled only
    assert fit(gradient, 32).tobytes() == gradient.resize((32, 32), Image.Resampling.BILINEAR).tobytes()


# pictures with captions


def test_pictures_of_a_style_and_of_a_subject(root, tmp_path):
    (path,) = (root / "dreambooth/dataset/dog").iterdir()
    assert read_pictures(path.parent, "a photo of sks dog") == [(path, "a photo of sks dog")]
    assert read_pictures(root / "pokemon") == [(root / "pokemon/00.jpg", "a green monster")]
    style = tmp_path / "style"
    (style / "train").mkdir(parents=True)
    for name in ("b.png", "a.png"):
        Image.new("RGB", (8, 8)).save(style / "train" / name)
    lines = [{"file_name": "train/b.png", "text": "one"}, {"file_name": "train/a.png", "text": "two"}]
    write(style / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    assert [(p.name, c) for p, c in read_pictures(style)] == [("b.png", "one"), ("a.png", "two")]
    packed = [{"bytes": jpeg(color), "path": None} for color in ("red", "blue")]
    write_parquet(tmp_path / "packed/data/train-0.parquet", image=packed, text=["red", "blue"])
    for _ in range(2):
        rows = read_pictures(tmp_path / "packed")
        assert [c for _, c in rows] == ["red", "blue"] and rows[1][0].read_bytes() == packed[1]["bytes"]


def test_what_is_wrong_with_pictures(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        read_pictures(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no picture in .*empty"):
        read_pictures(tmp_path / "empty")
    dog = root / "dreambooth/dataset/dog"
    with pytest.raises(ValueError, match=r"00.jpg has no caption: give a prompt for all, or write it into .*00.txt"):
        read_pictures(dog)
    write(dog / "01.jpg", "no picture")
    with pytest.raises(ValueError, match="01.jpg is not a picture"):
        read_pictures(dog, "a dog")
    write(dog / "metadata.jsonl", '{"file_name": "02.jpg", "text": "a dog"}')
    with pytest.raises(FileNotFoundError, match="metadata.jsonl line 1: picture '02.jpg' is missing"):
        read_pictures(dog)
    write(dog / "metadata.jsonl", '{"text": "a dog"}')
    with pytest.raises(ValueError, match='line 1: expected {"file_name"'):
        read_pictures(dog)


# what was replaced under the same name


def paint(path, color, mtime=None):
    Image.new("RGB", (4, 4), color).save(path)
    if mtime is not None:
        os.utime(path, ns=(mtime, mtime))


def test_a_replaced_picture_is_encoded_again(pictures, tmp_path):
    """Its shard alone; also where another file of the same size and time takes its place."""
    cache = tmp_path / "cache"
    first = latents.encode_pictures(pictures, Encoder(), cache)
    before, stat = first.digest(), pictures[4].stat()
    paint(pictures[4], (250, 4, 0), stat.st_mtime_ns)
    assert (pictures[4].stat().st_size, pictures[4].stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    encoder = Encoder()
    found = latents.encode_pictures(pictures, encoder, cache)
    assert encoder.seen == [60, 250, 100], "the second shard"
    assert found[torch.tensor([4])][0, 0, 0, 0] == 250 / 255 and found.digest() != before
    again = Encoder()
    latents.encode_pictures(pictures, again, cache)
    assert not again.seen


def test_swapped_pictures_swap_their_latents(pictures, tmp_path):
    """Winner and loser, each under the other's name."""
    write(tmp_path / "pictures/pairs.jsonl", json.dumps({"prompt": "a", "winner": "00.png", "loser": "05.png"}))
    _, before = read_latents(tmp_path / "pictures", Encoder())
    row, was = torch.tensor([0]), before.digest()
    values = before[row]
    for old, new in (("00", "x"), ("05", "00"), ("x", "05")):
        (tmp_path / f"pictures/{old}.png").rename(tmp_path / f"pictures/{new}.png")
    _, after = read_latents(tmp_path / "pictures", Encoder())
    assert torch.equal(after[row], values.flip(1)) and after.digest() != was


def test_copied_and_touched_pictures_are_not_encoded_again(pictures, tmp_path, monkeypatch):
    cache, read = tmp_path / "cache", []
    digest = latents.encode_pictures(pictures, Encoder(), cache).digest()
    monkeypatch.setattr(latents, "sha256", lambda path, _sha256=latents.sha256: read.append(path) or _sha256(path))
    for _ in range(2):
        assert not latents.stale(pictures, cache) and not read, "size and time first"
        os.utime(pictures[4], ns=(1, 1))
        assert not latents.stale(pictures, cache) and read == [pictures[4]], "the digest where they differ"
        read.clear()
    assert latents.Latents(cache, len(pictures), (3, 2, 2)).digest() == digest


def test_a_damaged_shard_is_encoded_again(pictures, tmp_path):
    whole = latents.encode_pictures(pictures, Encoder(), tmp_path / "cache")
    path, encoder = tmp_path / "cache/000002.safetensors", Encoder()
    for damaged in (path.read_bytes()[:-8], b"", b"no tensors"):
        path.write_bytes(damaged)
        encoder.seen.clear()
        latents.encode_pictures(pictures, encoder, tmp_path / "cache")
        assert encoder.seen == [120, 140, 160]
        whole.check()


def test_renamed_or_rescaled_latents_are_others(pictures):
    """As is a picture set in another order, or a VAE with another scaling factor."""
    encoder, other = Encoder(), Encoder()
    other.vae = SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(scaling_factor=2.0))
    names = {latents.cache_name(some, model, False) for some in ("ab", "ba") for model in (encoder, other)}
    assert len(names) == 4


def packed(folder, *colors):
    rows = [{"bytes": jpeg(color), "path": None} for color in colors]
    write_parquet(folder / "train-0.PARQUET", image=rows, text=list(colors))


def test_a_replaced_parquet_file_is_unpacked_again(tmp_path):
    packed(tmp_path / "set", "red", "blue")
    read_pictures(tmp_path / "set")
    packed(tmp_path / "set", "lime", "blue")
    rows = read_pictures(tmp_path / "set")
    assert [(Image.open(path).getpixel((0, 0)), text) for path, text in rows] == [
        ((0, 255, 1), "lime"),
        ((0, 0, 254), "blue"),
    ]
    assert data.read_captions(tmp_path / "set") == ["lime", "blue"]


@pytest.fixture
def read_only(monkeypatch):
    """Makes a folder one that cannot be written to, for root too."""
    access, mkdir = os.access, Path.mkdir

    def forbid(folder):
        def make(path, *args, **kwargs):
            if path.is_relative_to(folder) and not path.exists():
                raise PermissionError(30, "Read-only file system", str(path))
            mkdir(path, *args, **kwargs)

        monkeypatch.setattr(
            os, "access", lambda path, mode: not Path(path).is_relative_to(folder) and access(path, mode)
        )
        monkeypatch.setattr(Path, "mkdir", make)

    return forbid


def test_a_read_only_parquet_set(tmp_path, read_only):
    packed(tmp_path / "set", "red", "blue")
    read_only(tmp_path / "set")
    with pytest.raises(PermissionError, match="cannot write to .*pictures"):
        read_pictures(tmp_path / "set")
    rows = read_pictures(tmp_path / "set", spare=tmp_path / "run")
    assert [path.parent for path, _ in rows] == [tmp_path / "run/pictures"] * 2
    assert data.read_captions(tmp_path / "set") == ["red", "blue"], "no picture is needed for these"
    prompts, found = read_latents(tmp_path / "set", Encoder(), resize=True, spare=tmp_path / "run")
    assert prompts == ["red", "blue"] and len(found) == 2
    assert not [p for p in (tmp_path / "set").iterdir() if p.is_dir()]


def test_a_read_only_folder_with_latents(pictures, tmp_path, read_only):
    """Its latents are used as long as they are those of its pictures."""
    folder, run = tmp_path / "pictures", tmp_path / "run"
    for path in pictures:
        write(path.with_suffix(".txt"), path.stem)
    read_latents(folder, Encoder())
    read_only(folder)
    encoder = Encoder()
    read_latents(folder, encoder, spare=run)
    assert not encoder.seen and not run.exists()
    os.utime(pictures[0], ns=(1, 1))
    read_latents(folder, encoder, spare=run)
    assert not encoder.seen and not run.exists()
    paint(pictures[4], (250, 4, 0))
    _, found = read_latents(folder, encoder, spare=run)
    assert len(encoder.seen) == 11 and list(run.glob("latents-*"))
    assert found[torch.tensor([4])][0, 0, 0, 0, 0] == 250 / 255


@pytest.mark.parametrize("wrong", ["picture", "caption", "kind"])
def test_nothing_is_unpacked_of_a_set_that_is_refused(tmp_path, wrong):
    image = {"picture": {"bytes": b"no picture", "path": None}, "kind": {"bytes": None, "path": "elsewhere.png"}}
    rows = [{"bytes": jpeg("red"), "path": None}, image.get(wrong, {"bytes": jpeg("blue"), "path": None})]
    write_parquet(tmp_path / "train-0.parquet", image=rows, text=["a", None if wrong == "caption" else "b"])
    told = {"picture": "is not a picture", "caption": "expected a text, found None", "kind": "no picture's bytes"}
    with pytest.raises(ValueError, match=f"train-0.parquet row 2.* {told[wrong]}"):
        read_pictures(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train-0.parquet"]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_sampling_does_not_go_on_with_another_model(sampled, part):
    """Of the same name and settings: each of its networks is known by its weights."""
    builder = sampled("pairs")
    builder.folder.begin()
    sampled("pairs")
    changed = {"unet": builder.model.unet, "vae": builder.model.vae, "text_encoder": builder.model.text.modules[1]}
    with torch.no_grad():
        next(changed[part].parameters()).add_(1)
    model = builder.model
    model.fingerprint, model.vae_fingerprint = map(fingerprint, (model.unet, model.vae))
    names = {"unet": "weights", "vae": "autoencoder", "text_encoder": "text encoders"}
    with pytest.raises(ValueError, match=rf"begun with other settings \({names[part]}\)"):
        sampled("pairs", model=model)
