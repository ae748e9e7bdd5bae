"""The playground: its JavaScript computes what the library does, by node; and its page draws, in a headless Chromium.

The browser's tests need the page that `make playground` builds; `make browser` builds it. Screenshots: build/browser.
"""

import functools
import http.server
import importlib.util
import json
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fsalign_lib.kernels import build_kernel
from fsalign_lib.models.load import load
from fsalign_lib.pocket.captions import ANIMALS, all_facts, caption, parse
from fsalign_lib.pocket.classifiers import classify
from fsalign_lib.pocket.networks import load_classifier
from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.rewards import load_reward
from fsalign_lib.rollout import rollout
from fsalign_lib.schedules import NoiseSchedule
from fsalign_lib.toy import ToyTeacher, load_student, toy_mixture, toy_reward

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "docs/playground"
SITE = ROOT / "build/playground/site"
SHOTS = ROOT / "build/browser"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node on the PATH")


def load_export():
    spec = importlib.util.spec_from_file_location("playground_export", SOURCES / "export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def export():
    return load_export()


@pytest.fixture(scope="module")
def constants(export):
    return json.loads(json.dumps(export.constants()))


def node(script: str, given):
    """What a script prints as JSON, with `given` from its input; modules are imported from the sources."""
    head = "import { readFileSync } from 'node:fs'; const given = JSON.parse(readFileSync(0, 'utf8'));\n"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", head + script.replace("FROM", f"{SOURCES.as_uri()}")],
        input=json.dumps(given), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["pocket-turbo", "pocket-one-step"])
def test_the_samplers_numbers_are_the_librarys(constants, name):
    """A trajectory by the written numbers alone is the kernel's, with any network's predictions of the noise."""
    numbers, model = constants["models"][name]["sampler"], load(name)
    kernel = model.sampler(len(numbers["steps"]))
    noise, eps = torch.randn(2, 5, 4, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y = kernel.initial(noise[0]), numbers["initial"] * noise[0]
    assert numbers["latent"] == list(model.latent_shape)
    for n, step in enumerate(numbers["steps"]):
        t = int(kernel.timesteps[n])
        x0 = model.schedule.x0_from_eps(kernel.model_input(x, n), eps[n], t)
        x = kernel.sample(x, x0, n, noise[n + 1])
        y0 = (step["input"] * y - step["noise"] * eps[n]) / step["signal"]
        y = step["a"] * y + step["b"] * y0 + step["s"] * noise[n + 1]
        assert step["t"] == t
        torch.testing.assert_close(y, x, rtol=1e-12, atol=1e-12)


BAD = [
    *(
        "",
        "a unicorn",
        "an cat",
        "a cat on the sun",
        "two cat",
        "a cat and a cat",
        "five dogs",
        "it's a cat",
        'a "cat"',
    ),
    *('a cat\'s "hat"', "back\\slash", "a cat\ton  the MOON", " A  Cat ", "cat", "a\u2003cat", "a\ufeff cat"),
]


@needs_node
def test_the_grammar_in_javascript_is_the_grammar(constants):
    """It accepts exactly the grammar's captions, finds the same facts, and says the same of others."""
    script = """
      const { captions, parse } = await import("FROM/grammar.mjs");
      const known = captions(given.grammar);
      const said = given.bad.map((prompt) => {
        try { return parse(known, given.grammar.message, prompt); } catch (error) { return error.message; }
      });
      console.log(JSON.stringify({ known: [...known], said }));
    """
    found = node(script, {"grammar": constants["grammar"], "bad": BAD})

    def plain(fact):
        values = {key: getattr(fact, key) for key in ("animal", "second", "color", "count", "place")}
        return {key: value for key, value in values.items() if value is not None and (key, value) != ("count", 1)}

    expected = {caption(f): plain(f) for f in all_facts()} | {a: {"animal": a} for a in ANIMALS}
    assert dict(found["known"]) == expected

    def says(prompt):
        try:
            return plain(parse(prompt))
        except ValueError as error:
            return str(error).replace("\\ufeff", "\ufeff")  # which repr alone writes out

    assert found["said"] == [says(prompt) for prompt in BAD]
    assert sum(isinstance(answer, str) for answer in found["said"]) >= 10


@needs_node
def test_the_tokens_in_javascript_are_the_tokenizers(constants):
    prompts = [caption(f) for f in all_facts()]
    script = """
      const { tokens } = await import("FROM/grammar.mjs");
      console.log(JSON.stringify(given.prompts.map((prompt) => tokens(given.tokenizer, prompt))));
    """
    found = node(script, {"tokenizer": constants["tokenizer"], "prompts": prompts})
    tokenizer = load("pocket-turbo").text.tokenizer
    assert found == tokenizer(prompts, padding="max_length").input_ids


@needs_node
def test_half_precision_noise_and_lora_in_javascript():
    layer = {"weight": "w", "a": 0, "b": 6, "rank": 2, "inputs": 3, "outputs": 2}
    low = torch.arange(10.0)
    script = """
      const { fromHalf, mergeLora, normal } = await import("FROM/numbers.mjs");
      const halves = [...fromHalf(Uint16Array.from({ length: 65536 }, (_, i) => i).buffer)];
      const weights = new Float32Array(7);
      mergeLora(weights, { w: [1, 6] }, { scale: 0.5, layers: [given.layer] }, given.low);
      const z = [...normal(3, 20000)];
      const same = normal(3, 10).every((value, i) => value === z[i]) && normal(4, 1)[0] !== z[0];
      console.log(JSON.stringify({ halves: halves.map(String), weights: [...weights], z, same }));
    """
    found = node(script, {"layer": layer, "low": low.tolist()})
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.array([float(v.replace("Infinity", "inf")) for v in found["halves"]]), halves)
    expected = 0.5 * low[6:].view(2, 2) @ low[:6].view(2, 3)
    assert found["weights"] == [0, *expected.flatten().tolist()]
    z = np.array(found["z"])
    assert found["same"] and abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03 and abs((z**4).mean() - 3) < 0.3


@needs_node
@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_the_2d_world_in_javascript_is_the_librarys(constants, export, beta):
    """Target, density, mean reward, posterior mean and student, and samples of four steps, for each prompt."""
    mixture, reward, schedule = toy_mixture(), toy_reward(), NoiseSchedule.scaled_linear()
    student, generator = load_student(), torch.Generator().manual_seed(0)
    noise = torch.randn(6, 5, 2, generator=generator)
    script = """
      const toy = await import("FROM/toy.mjs");
      const net = toy.student(given.toy.shapes, Float32Array.from(given.weights));
      console.log(JSON.stringify([0, 1, 2].map((label) => {
        const target = toy.tilted(toy.mixtureOf(given.toy, label), given.toy, label, given.beta);
        const exact = ({ signal, noise }) => (x) => toy.posteriorMean(target, x, signal, noise);
        const at = (step) => toy.studentAt(net, step, label);
        return {
          density: given.points.map((x) => toy.density(target, x)),
          reward: given.points.map((x) => toy.rewardAt(given.toy, label, x)),
          mean: toy.meanReward(given.toy, label, target),
          exact: toy.sample(given.toy.samplers["euler-ancestral"][4], exact, given.noise),
          student: toy.sample(given.toy.samplers.renoise[4], at, given.noise),
        };
      })));
    """
    points = noise[:, 0].tolist()
    given = {"toy": constants["toy"], "beta": beta, "points": points, "noise": noise.flatten().tolist()}
    found = node(script, given | {"weights": export.flat(student).tolist()})
    target, x = mixture.tilted(reward, beta), torch.tensor(points).double()
    for label, answer in enumerate(found):
        classes = torch.full((6,), label)

        def close(name, value, answer=answer, tolerance=1e-6):
            np.testing.assert_allclose(answer[name], value, rtol=tolerance, atol=tolerance, err_msg=name)

        close("density", target.log_prob(x, label).exp())
        close("reward", reward(x, classes))
        own = target.labels == label
        share, means, covs = target.weights[own] / target.weights[own].sum(), target.means[own], target.covs[own]
        quadratic = reward.quadratic[label]
        per = reward(means, torch.full((len(means),), label)) - 0.5 * (covs * quadratic).sum((1, 2))
        close("mean", float(share @ per))
        for name, kernel, model in (("exact", "euler-ancestral", ToyTeacher(target)), ("student", "renoise", student)):
            samples = rollout(model, build_kernel(kernel, schedule, 4), classes, noise).final
            close(name, samples.detach(), tolerance=1e-3 if name == "exact" else 1e-4)


def test_nothing_is_asked_of_another_machine():
    """The sources of the page name no address, but for the two links of the credit."""
    for path in SOURCES.iterdir():
        if path.suffix in (".html", ".css", ".mjs"):
            links = {line for line in path.read_text(encoding="utf-8").split('"') if "://" in line}
            assert links <= {"https://openmoji.org", "https://creativecommons.org/licenses/by-sa/4.0/"}, path
    page = (SOURCES / "index.html").read_text(encoding="utf-8")
    assert "OpenMoji" in page and "CC BY-SA 4.0" in page


# ---- in a browser ----

PROMPTS = ["a cat", "an orange colored fox", "two dogs", "four wolves", "a cat and a dog", "a shark on the moon",
           "three mice in the snow", "a bee at night", "a goose and an ant", "two sheep on the beach"]  # fmt: skip
DRAWN = (("pocket-turbo", 0), ("pocket-one-step", 0), ("pso-online", 4))


@pytest.fixture(scope="module")
def address():
    """The built page, served from this machine."""
    if not (SITE / "playground/data/constants.json").exists():
        pytest.skip("no page in build/playground: make playground, with Node, makes it")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def open_page(chromium, address):
    """Open the page at a width, in a colour scheme. At the end: no other machine was asked, and nothing went wrong."""
    pages, asked, wrong = [], [], []

    def open_one(width=1280, scheme="light"):
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda text: wrong.append(text.text) if text.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{address}/playground/")
        page.wait_for_function("document.getElementById('plane').dataset.points")
        page.asked = asked
        pages.append(page)
        return page

    yield open_one
    for page in pages:
        page.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def wait_for_pictures(page):
    said = r"/\d pictures? in /.test(document.getElementById('message').textContent)"
    page.wait_for_function(f"{said} && !document.querySelector('#draw-form button').disabled", timeout=300_000)


def aligned(export, name: str, snapshot: int):
    """The model that a choice of the page stands for, in torch."""
    training = {t.method: t for t in export.TRAININGS}.get(name)
    model = load(training.model if training else name)
    if training:
        folder = export.train(training, model.fingerprint)
        model.load_adapter(sorted((folder / "snapshots").iterdir())[snapshot - 1])
    return model


@pytest.mark.browser
@pytest.mark.parametrize(("name", "snapshot"), DRAWN)
def test_pictures_are_torchs(open_page, export, name, snapshot):
    """Ten prompts, the same noise: no value of a pixel is further than 2/255 from torch's."""
    model = aligned(export, name, snapshot)
    kernel = model.sampler(1 if model.timesteps else 4)
    shape = (len(PROMPTS), kernel.num_steps + 1, *model.latent_shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.decode(rollout(model, kernel, model.encode_prompts(PROMPTS), noise).final)
    page, worst = open_page(), 0.0
    for prompt, z, picture in zip(PROMPTS, noise, expected, strict=True):
        script = """async ([name, snapshot, prompt, noise]) =>
            [...await (await import("./models.mjs")).draw(name, snapshot, prompt, Float32Array.from(noise))]"""
        drawn = torch.tensor(page.evaluate(script, [name, snapshot, prompt, z.flatten().tolist()]))
        worst = max(worst, float((drawn - picture.flatten()).abs().max()))
    print(f"{name}, snapshot {snapshot}: at most {255 * worst:.3f}/255 apart")
    assert worst <= 2 / 255


@pytest.mark.browser
def test_judges_score_as_the_library_does(open_page):
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    script = """async ([picture, prompt]) =>
        (await import("./models.mjs")).judge(Float32Array.from(picture), prompt)"""
    found = open_page().evaluate(script, [picture.flatten().tolist(), "a cat on the beach"])
    assert set(found["scores"]) == {"pickscore", "hps", "clipscore", "imagereward", "aesthetic"}
    for name, score in found["scores"].items():
        assert score == pytest.approx(float(load_reward(name)(picture, ["a cat on the beach"])), abs=5e-3), name
    assert found["animal"] == ANIMALS[int(classify(load_classifier(WEIGHTS, "classifier"), picture))]


@pytest.mark.browser
def test_the_page_draws_when_it_is_asked(open_page, export):
    page = open_page()
    assert not [url for url in page.asked if url.endswith((".onnx", ".bin", ".wasm"))], "models before a draw"
    page.fill("#prompt", "a unicorn")
    page.press("#prompt", "Enter")
    assert "'a unicorn' is not in the pocket world's grammar" in page.text_content("#message")
    page.fill("#prompt", "a green colored rabbit")
    page.press("#prompt", "Enter")
    wait_for_pictures(page)
    cards = page.locator(".card")
    assert cards.count() == page.locator("#models input").count() == len(export.BASES) + len(export.TRAININGS)

    def pixels():
        every = "all => all.map(c => [...c.getContext('2d').getImageData(0, 0, 64, 64).data])"
        return np.array(page.eval_on_selector_all(".card canvas", every))

    after = pixels()
    assert (after.std(1) > 10).all() and "PickScore" in cards.first.text_content()
    page.focus("#snapshot")
    page.keyboard.press("Home")  # by the keyboard, to the base students
    page.wait_for_function("!document.querySelector('#draw-form button').disabled")
    page.wait_for_function(
        "[...document.querySelectorAll('.card small')].some(s => s.textContent == 'before training')"
    )
    wait_for_pictures(page)
    before = pixels()
    names = page.eval_on_selector_all(".card", "all => all.map(c => c.dataset.model)")
    base_of = {training.method: training.model for training in export.TRAININGS}
    for i, name in enumerate(names):
        base = names.index(base_of.get(name, name))
        assert (before[i] == before[base]).all(), "before training it is the base student"
        assert name.startswith("pocket-") or (after[i] != before[i]).any(), "training changed the picture"


@pytest.mark.browser
def test_beta_moves_the_samples(open_page):
    page, seen = open_page(), []
    for method in ("exact", "votes", "hard"):
        page.select_option("#plane-form [name=method]", method)
        for key in ("Home", "End"):
            before = page.get_attribute("#plane", "data-points")
            page.focus("#plane-form [name=beta]")
            page.keyboard.press(key)
            page.wait_for_function("b => document.getElementById('plane').dataset.points !== b", arg=before)
            seen.append(float(page.text_content("#reward-samples")))
    strong, weak = seen[::2], seen[1::2]
    assert all(a > b for a, b in zip(strong, weak, strict=True)), "a small beta follows the reward further"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots(open_page, width, scheme):
    """Nothing is wider than the page; the pictures are in build/browser, to be looked at."""
    page = open_page(width, scheme)
    page.press("#prompt", "Enter")
    wait_for_pictures(page)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"playground-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
