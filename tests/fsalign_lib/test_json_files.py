"""Damaged JSON is refused with the file's name, the name within it, and what stands there."""

import json

import pytest

from fsalign_lib.json_files import OPTIONAL, read_json


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"step": 3, "config"', "Expecting"),
        ("", "Expecting value"),
        (b"\xff\xfe\x00", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[1]", r"expected a JSON object, found \[1\]"),
        ("null", "expected a JSON object, found None"),
        ('{"step": 3}', "it has no 'config'"),
        ('{"step": "3", "config": null}', "'step' is '3'"),
        ('{"step": 3, "config": [1]}', r"'config' is \[1\]"),
    ],
)
def test_what_is_damaged_is_named(content, told, tmp_path):
    path = tmp_path / "state.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=told) as raised:
        read_json(path, step=int, config=(dict, OPTIONAL))
    assert str(path) in str(raised.value) and str(raised.value).endswith("restore it, or remove it")


def test_what_is_whole_is_read(tmp_path):
    path = tmp_path / "state.json"
    for found in ({"step": 3, "config": {}}, {"step": 3, "config": None, "more": []}):
        path.write_text(json.dumps(found))
        assert read_json(path, step=int, config=(dict, OPTIONAL)) == found
