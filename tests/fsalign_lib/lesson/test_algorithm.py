"""Algorithms: each line stands beside code that is there."""

from pathlib import Path
from unittest import mock

import pytest

from fsalign_lib import advantages, rollout
from fsalign_lib.lesson.algorithm import algorithm


def test_words_and_code_stand_in_one_row():
    first, second = map(str.strip, Path(rollout.__file__).read_text(encoding="utf-8").splitlines()[-2:])
    with mock.patch("IPython.display.display") as display:
        algorithm("[X Alg. 1] a < b", [("1", "take < one", first), ("2-3", "both", f"{first}\n  {second}")], [rollout])
    html = display.call_args.args[0].data
    assert html.count("<tr>") == 3 and "[X Alg. 1] a &lt; b" in html and "take &lt; one" in html


def test_code_that_is_no_longer_there_is_told():
    with pytest.raises(ValueError, match=r"line 2 of Alg\. 1: 'x = nowhere\(\)' stands in none of .*advantages"):
        algorithm("Alg. 1", [("1", "nothing to do", ""), ("2", "go", "x = nowhere()")], [advantages])
