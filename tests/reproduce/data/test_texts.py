"""Texts as people bring them: every ending, encoding and line end; what is no text is refused by file, line, value."""

import gzip
import io
import json
import random
import struct
import tarfile
import warnings
from types import SimpleNamespace

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from fsalign_lib.models.conditioning import ClipText, T5Text
from reproduce.data.pairs import read_rows
from reproduce.data.prompt_sets import CAPTIONS, read_pictures, read_prompts, warn_of_cut
from reproduce.data.texts import texts
from tests import tiny

BOM = b"\xef\xbb\xbf"


def archive(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for number, content in enumerate(members):
            member = tarfile.TarInfo(f"folder/{number}.txt")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def table(**columns):
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    def run(name, content):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_prompts(str(tmp_path / name))

    return run


@pytest.fixture
def refused(read, tmp_path):
    """What is said of a file that is refused: one line that names it."""

    def run(name, content):
        with pytest.raises(ValueError) as raised:
            read(name, content)
        told = str(raised.value)
        assert str(tmp_path / name) in told and "\n" not in told
        return told

    return run


# what is read

TWO = {
    "txt": b"a cat\na dog",
    "csv": b"id,prompt\n1,a cat\n2,a dog\n",
    "tsv": b"prompt\tid\na cat\t1\na dog\t2\n",
    "jsonl": b'{"prompt": "a cat"}\n"a dog"\n',
    "ndjson": b'{"prompt": "a cat"}\n{"text": "a dog"}\n',
    "json": b'["a cat", {"caption": "a dog"}]',
    "parquet": table(caption=["a cat", "a dog"]),
    "tar.gz": archive(b"a cat", BOM + b"a dog\r\n"),
    "tgz": archive(b"a cat", b"a dog"),
    "prompts": b"a cat\n\n a dog ",
}


@pytest.mark.parametrize("suffix", TWO)
def test_every_ending_in_small_and_capital_letters(read, suffix):
    for name in (f"a.{suffix}", f"A.{suffix.upper()}", f"A.{suffix.title()}"):
        assert read(name, TWO[suffix]) == ["a cat", "a dog"]


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "jsonl", "ndjson", "json"])
@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_order_marks_and_line_ends(read, suffix, mark, end):
    assert read(f"a.{suffix}", mark + TWO[suffix].replace(b"\n", end)) == ["a cat", "a dog"]


def test_files_that_were_joined(read):
    assert read("a.txt", BOM + b"a cat\n" + BOM + b"a dog\n") == ["a cat", "a dog"], "each with its mark"


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\x1c", "\x1d", "\x1e"])
def test_a_line_ends_at_its_end_alone(read, inside):
    """Of the characters at which str.splitlines splits, only \\n ends a line."""
    prompts = [f"a cat{inside}in the snow", "a dog"]
    assert read("a.txt", "\n".join(prompts)) == prompts
    assert read("a.jsonl", "\n".join(json.dumps({"prompt": p}, ensure_ascii=False) for p in prompts)) == prompts
    assert read("a.csv", "\n".join(["prompt", *prompts])) == prompts
    assert read("a.tsv", "\n".join(["prompt\tid", *(f"{p}\t1" for p in prompts)])) == prompts


def test_texts_of_several_lines(read):
    assert read("a.csv", 'prompt\n"a cat\nin the snow, asleep"\na dog\n') == ["a cat\nin the snow, asleep", "a dog"]


# what is refused


def test_what_is_no_text_is_refused_with_its_place_and_value(refused):
    for value, told in (
        ("NaN", "nan (float)"),
        ("null", "None (NoneType)"),
        ("3", "3 (int)"),
        ('["a", "b"]', "['a', 'b'] (list)"),
        ('{"en": "x"}', "{'en': 'x'} (dict)"),
        ("true", "True (bool)"),
    ):
        row = f'{{"prompt": {value}}}'
        expected = f"expected a text, found {told}: write the text or drop the row"
        for suffix in ("jsonl", "ndjson"):
            assert f"line 3: {expected}" in refused(f"a.{suffix}", f'{{"prompt": "a cat"}}\n\n{row}\n')
        assert f"item 2: {expected}" in refused("a.json", f'["a cat", {row}]')
        if not value.startswith("{"):
            assert f"item 2: {expected}" in refused("a.json", f'["a cat", {value}]')
    assert r"'\ud83d' (str) is not a whole text" in refused("a.json", r'["a cat", "\ud83d"]')


def test_columns_that_hold_no_texts(refused, read):
    nan = pyarrow.array([float("nan"), 1.0], from_pandas=False)
    assert "row 1: expected a text, found nan (float)" in refused("f.parquet", table(caption=nan))
    assert "row 1: expected a text, found b'a cat' (bytes)" in refused("f.parquet", table(caption=[b"a cat"]))
    assert "row 1: expected a text, found ['a'] (list)" in refused("f.parquet", table(caption=[["a"]]))
    with pytest.warns(UserWarning, match="f.parquet: rows without a text are left out: 2"):
        assert read("f.parquet", table(caption=[None, "a cat", None])) == ["a cat"], "null is a missing value there"


def test_tables_that_are_not_whole(refused):
    assert "line 3 has 3 fields under 2 names: put quotation marks around texts" in refused(
        "a.csv", "id,prompt\n1,a cat\n2,a dog, asleep\n"
    )
    assert "line 3: expected a text, found None" in refused("a.csv", "id,prompt\n1,a cat\n2\n")
    assert "(the row from line 2 on: unexpected end of data)" in refused("a.csv", 'id,prompt\n1,"a cat\n2,a dog\n'), (
        "an open quote"
    )
    assert "has no column prompt" in refused("a.csv", "id;prompt\n1;a cat\n")


def test_one_format_under_the_ending_of_another(refused):
    assert "line 1 is JSON: let the file's name end in .jsonl" in refused("a.txt", TWO["ndjson"])
    assert "line 1 is JSON" in refused("a.prompts", TWO["json"])
    for suffix in ("yaml", "YML", "xml", "html", "toml", "md"):
        assert f"is not read as .{suffix.lower()}: give a .txt" in refused(f"a.{suffix}", "- a cat\n")
    for name, content in (("a.txt", TWO["parquet"]), ("a", TWO["tgz"]), ("a.parquet", TWO["txt"])):
        refused(name, content)
    for name in ("a.txt.gz", "a.gz", "a.tgz"):
        assert "cannot be read as" in refused(name, gzip.compress(TWO["txt"]))
    assert "line 1 has a carriage return within" in refused("a.txt", "a cat\ra dog")


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "jsonl", "ndjson", "json", "prompts"])
def test_other_encodings_name_the_file(refused, suffix):
    told = "is not UTF-8 text (byte 0xe4): save it as UTF-8"
    changed = TWO[suffix].decode().replace("a dog", "ein Kätzchen")
    assert told in refused(f"a.{suffix}", changed.encode("latin-1"))
    refused(f"a.{suffix}", changed.encode("utf-16"))


def test_other_encodings_in_archives_and_columns(refused):
    word = "Kätzchen".encode("latin-1")
    assert "(byte 0xe4)" in refused("a.tgz", archive(word))
    ends = pyarrow.py_buffer(struct.pack("<2i", 0, len(word)))
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, ends, pyarrow.py_buffer(word)])
    assert "holds a text that is not UTF-8" in refused("a.parquet", table(caption=column))


def test_numbers_that_choose_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "none", "s": None}, {"text": "low", "s": 1}, {"text": "high", "s": "7"}, {"text": "without"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(texts(path, CAPTIONS, ("s", 6))) == ["high", "without"]
    path.write_text('{"text": "a", "s": "x"}')
    with pytest.raises(ValueError, match="a.jsonl line 1: s is 'x' .*: expected a number"):
        list(texts(path, CAPTIONS, ("s", 6)))


def test_json_that_is_not_as_expected(refused):
    deep = "[" * 100_000
    assert "line 1 is not JSON" in refused("a.jsonl", deep)
    assert "cannot be read as .json" in refused("a.json", deep)
    assert "cannot be read as .json" in refused("a.json", f"[{'9' * 5000}]")
    assert "line 1 is not JSON" in refused("a.jsonl", "9" * 5000)
    for annotations in ("[{}]", "3", "[3]", '[{"image_id": 1, "id": 2}, {"image_id": "x", "id": 1}]'):
        assert "expected COCO's annotations" in refused("a.json", f'{{"annotations": {annotations}}}')
    assert "has no column prompt" in refused("a.json", '{"annotations": [{"image_id": 1, "id": 2}]}')


def test_two_hundred_damaged_files(tmp_path):
    """Bytes changed, cut out or put in at random: texts, or one line that names the file."""
    rng, refused = random.Random(0), 0
    for _ in range(20):
        for suffix, content in TWO.items():
            path, broken = tmp_path / f"a.{suffix}", bytearray(content)
            for _ in range(rng.randint(1, 6)):
                place = rng.randrange(len(broken))
                match rng.randrange(3):
                    case 0:
                        broken[place] = rng.randrange(256)
                    case 1:
                        del broken[place : place + rng.randint(1, 4)]
                    case 2:
                        broken[place:place] = rng.choice([b"\0", b'"', b"{", b"\xff", b"\r", b"NaN", b"\n"])
            path.write_bytes(broken)
            try:
                assert all(isinstance(text, str) for text in read_prompts(str(path)))
            except ValueError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 50


# what is repeated


def test_what_is_repeated_is_said(read, tmp_path):
    with pytest.warns(UserWarning, match="repeats 2 of its 4 prompts, such as 'a cat': each counts as often"):
        assert read("a.txt", "a cat\na dog\na cat\na cat") == ["a cat", "a dog", "a cat", "a cat"]
    with pytest.warns(UserWarning, match="a.txt repeats 2 of its 4 prompts, such as 'a cat': each is taken once"):
        assert read_prompts(str(tmp_path / "a.txt"), once=True) == ["a cat", "a dog"]


def test_what_the_encoder_cuts_off_is_said():
    """At the length that is cut: 8 tokens of the tiny tokenizer are 6 letters between two marks."""
    model = SimpleNamespace(name="tiny", text=ClipText(None, tiny.tokenizer()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cut(model, ["abcdef", "a cat", ""])
    told = "2 of 3 prompts are longer than the 8 tokens that tiny reads, and cut off there: 'abcdefg'"
    with pytest.warns(UserWarning, match=told):
        warn_of_cut(model, ["a cat", "abcdefg", "a" * 100])
    model.text = T5Text(None, tiny.tokenizer())
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than the 120 tokens"):
        warn_of_cut(model, ["a" * 118, "a" * 119])


# pairs.jsonl and metadata.jsonl


@pytest.fixture
def pairs(tmp_path):
    """Writes pairs.jsonl and reads it; metadata.jsonl likewise where the row has a file_name."""
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")

    def run(content):
        (tmp_path / "pairs.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_rows(tmp_path)

    return run


PAIR = {"prompt": "a cat", "winner": "a.png", "loser": "b.png"}


def test_pairs_with_a_mark_and_blank_lines(pairs):
    line = json.dumps(PAIR | {"prompt": "a\u2028b"}, ensure_ascii=False).encode()
    assert [row["prompt"] for row in pairs(BOM + line + b"\r\n\n  \n" + line)] == ["a\u2028b"] * 2


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"label": 0}, "label 0 says that the loser won: swap the two"),
        ({"label": 0.5}, "a tie (label 0.5, 'a cat')"),
        ({"loser": "a.png"}, "a tie (label 1, 'a cat')"),
        ({"label": 0, "loser": "a.png"}, "a tie (label 0, 'a cat')"),
        *(({"label": label}, f"label {label!r}: expected 1, the winner won, or none") for label in (2, "1", None, [1])),
        ({"winner": None}, "winner: expected a text, found None"),
        ({"loser": 3}, "loser: expected a text, found 3 (int)"),
        ({"prompt": float("nan")}, "expected a text, found nan (float)"),
        ({"prompt": None}, "expected a text, found None"),
        ({"prompt": ["a"]}, "expected a text, found ['a'] (list)"),
    ],
)
def test_pairs_that_are_none(pairs, tmp_path, changed, told):
    with pytest.raises(ValueError) as raised:
        pairs(f"{json.dumps(PAIR)}\n\n{json.dumps(PAIR | changed)}")
    assert f"{tmp_path / 'pairs.jsonl'} line 3" in str(raised.value) and told in str(raised.value)


@pytest.mark.parametrize("line", ["3", "null", "[]", '"a"', "{}", '{"prompt": "a", "winner": "a.png"}'])
def test_lines_that_are_no_pairs(pairs, line):
    with pytest.raises(ValueError, match=r'pairs.jsonl line 1: expected {"prompt": ..., "winner": ..., "loser": ...}'):
        pairs(line)


def test_pairs_in_another_encoding(pairs):
    with pytest.raises(ValueError, match=r"pairs.jsonl is not UTF-8 text \(byte 0xe4\)"):
        pairs(json.dumps(PAIR | {"prompt": "Kätzchen"}, ensure_ascii=False).encode("latin-1"))


def test_listed_pictures(pairs, tmp_path):
    def listed(*rows):
        (tmp_path / "metadata.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
        return [caption for _, caption in read_pictures(tmp_path)]

    whole = {"file_name": "a.png", "text": "a cat"}
    assert listed(whole, whole) == ["a cat"] * 2
    for wrong, told in (
        ({"file_name": 3}, "line 3: expected a text, found 3"),
        ({"file_name": "a.png", "text": ["a", "b"]}, "line 3: expected a text, found"),
        ({"file_name": "a.png", "text": float("nan")}, "line 3: expected a text, found nan"),
        ({"file_name": "a.png", "text": None}, "a.png has no caption"),
        ([], "line 3: expected"),
    ):
        with pytest.raises(ValueError, match=told):
            listed(whole, wrong)
    (tmp_path / "metadata.jsonl").write_text(json.dumps(whole | {"text": None}))
    assert [caption for _, caption in read_pictures(tmp_path, "a dog")] == ["a dog"], "one for all needs no others"
