"""The page of an evaluation: what it shows, and that nothing in it can run or be fetched."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from reproduce.evaluation import report
from reproduce.evaluation import scores as measure

EVIL = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "costs $5 & $6_", "a cat"]


class Page(HTMLParser):
    """Tags, their attributes, the text between them; unbalanced tags are an error."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []

    def images(self):
        for tag, attrs in self.tags:
            if tag == "img":
                kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", attrs["src"]).groups()
                picture = Image.open(io.BytesIO(base64.b64decode(data)))
                assert picture.format.lower() == kind
                yield attrs, picture


def one(steps, shift=0.0, base=True, fid=None):
    rng = np.random.default_rng(steps)
    there = rng.normal(size=(4, 2)).round(5)
    scores = {"brightness": (there + shift).tolist(), "accuracy": [[1.0, 0.0], [None, None], [1.0, 1.0], [0.0, 1.0]]}
    made = {"prompt_set": "<b>set</b>.txt", "kernel": "ddim", "steps": steps, "seeds": [0, 1], "prompts": EVIL}
    made |= {"scores": scores, "means": {name: measure.mean(values) for name, values in scores.items()}}
    made["intervals"] = {name: measure.interval(values)._asdict() for name, values in scores.items()}
    if base:
        made["base"] = one(steps, base=False)
        made["above_base"] = {name: measure.compare(made, made["base"], name)._asdict() for name in scores}
    if fid:
        made["means"]["fid"], made["fid"] = 12.5, fid
        if base:
            made["base"]["means"]["fid"] = 15.25
    return made


@pytest.fixture
def about(tmp_path):
    for side, value in (("x-4", 200), ("x-4-base", 40)):
        (tmp_path / "e.pictures" / side).mkdir(parents=True)
        for number in range(4):
            picture = Image.new("RGB", (32, 32), (value, 10 * number, 0))
            picture.save(tmp_path / "e.pictures" / side / f"{number:05d}-0.png")
    config = {"model": "m", "scale": "pocket", "checkpoint": str(tmp_path / "run"), "seeds": 2, "note": "<i>"}
    results = [one(4, 0.5, fid={"pictures": 8, "reference": 3000, "dimensions": 2048})]
    results[0]["pictures"] = {"format": "png", "folder": "e.pictures/x-4", "base": "e.pictures/x-4-base"}
    return {"config": config, "command": "python x", "versions": {"torch": "2"}, "results": results}


def make(about, tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(about))
    return report.write(tmp_path / "e.json", tmp_path / "e.html").read_text(encoding="utf-8")


def test_nothing_in_it_runs_or_is_fetched(about, tmp_path):
    text = make(about, tmp_path)
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b", "i", "link", "iframe", "a"})
    assert not any(name.startswith("on") or name == "href" for _, attrs in page.tags for name in attrs)
    assert all(attrs["src"].startswith("data:image/") for tag, attrs in page.tags if tag == "img")
    policy = next(attrs for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "url(" not in text and "@import" not in text
    for prompt in EVIL:
        assert prompt in page.texts, "user text is shown as it is"
    assert "<b>set</b>.txt, 4 steps" in page.texts


def test_numbers_are_those_of_the_evaluation(about, tmp_path):
    page = Page(make(about, tmp_path))
    result = about["results"][0]
    for side, gap in ((result["means"], result["intervals"]), (result["base"]["means"], result["above_base"])):
        assert report.number(side["brightness"]) in page.texts
        assert f"[{report.number(gap['brightness']['low'])}, {report.number(gap['brightness']['high'])}]" in page.texts
    assert {"12.50", "15.25", "-2.750"} <= set(page.texts), "fid has no interval, and a difference"
    bold = [attrs for tag, attrs in page.tags if tag == "tr" and attrs.get("class") == "decided"]
    assert len(bold) == 1, "0.5 excludes zero; equal accuracies do not"
    assert any("fid: 8 pictures for 2048 feature dimensions: the covariance is rank-deficient" in t for t in page.texts)


@pytest.mark.parametrize(
    "value,told", [(0.00012344, "0.000123"), (84.563, "84.56"), (-0.5, "-0.5000"), (0, "0.000"), (1 - 1e-9, "1.000")]
)
def test_numbers_have_four_digits(value, told):
    assert report.number(value) == told
    assert report.number(None) == "–"


def test_pictures_stand_before_and_after(about, tmp_path):
    shown = [picture for _, picture in Page(make(about, tmp_path)).images()]
    assert [picture.getpixel((3, 3))[:2] for picture in shown[:4]] == [(40, 0), (200, 0), (40, 10), (200, 10)]
    assert len(shown) == 8 and all(picture.size == (32, 32) for picture in shown)


def test_large_pictures_are_made_small(about, tmp_path):
    for path in (tmp_path / "e.pictures").rglob("*.png"):
        Image.new("RGB", (1024, 768)).save(path)
    text = make(about, tmp_path)
    sizes = {picture.size for _, picture in Page(text).images()}
    assert sizes == {(256, 192)} and len(text) < 600_000


def test_credit_is_given_where_pocket_pictures_are_shown(about, tmp_path):
    assert report.CREDIT in Page(make(about, tmp_path)).texts and "CC BY-SA 4.0" in report.CREDIT
    about["config"]["scale"] = "full"
    assert report.CREDIT not in Page(make(about, tmp_path)).texts
    about["config"]["scale"] = "pocket"
    del about["results"][0]["pictures"]
    assert report.CREDIT not in Page(make(about, tmp_path)).texts


def plots(page):
    return [(attrs["alt"], picture) for attrs, picture in page.images() if attrs.get("class") == "plot"]


def test_curves_need_two_numbers_of_steps(about, tmp_path):
    assert plots(Page(make(about, tmp_path))) == []
    about["results"].append(one(1, -0.5))
    (curve,) = plots(Page(make(about, tmp_path)))
    assert "brightness, accuracy, fid over sampling steps" == curve[0]
    assert len(np.unique(np.asarray(curve[1].convert("L")))) > 20, "something is drawn"


def test_training_history_is_shown(about, tmp_path):
    page = Page(make(about, tmp_path))
    assert any("No result.json beside" in told for told in page.texts)
    (tmp_path / "run" / "checkpoints" / "000002").mkdir(parents=True)
    history = [{"loss": 0.7, "re$ward_": 1.0, "note": "x"}, {"loss": 0.6, "re$ward_": 2.0, "note": "y"}]
    training = {"config": {"lr": 1e-5, "method": "pso-online"}, "command": "python train", "history": history}
    (tmp_path / "run" / "result.json").write_text(json.dumps(training))
    for checkpoint in ("run", "run/checkpoints/000002"):
        about["config"]["checkpoint"] = str(tmp_path / checkpoint)
        page = Page(make(about, tmp_path))
        assert [alt for alt, _ in plots(page)] == ["training history: loss, re$ward_"]
        assert {"pso-online", "python train", "1e-05"} <= set(page.texts)


def test_a_plain_evaluation_has_a_page(about, tmp_path):
    """No base, no pictures, no training, a metric that says nothing."""
    plain = one(4, base=False)
    plain["means"]["accuracy"], plain["intervals"]["accuracy"] = None, None
    about["config"]["checkpoint"] = None
    page = Page(make({**about, "results": [plain]}, tmp_path))
    assert "m, scored" in page.texts and "–" in page.texts and "base" not in page.texts
