"""What a style and a concept are in the pocket world, and the metrics that hold pictures to them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fsalign_lib.pocket import concept, selfsup
from fsalign_lib.pocket.captions import ANIMALS, Fact, caption, parse
from fsalign_lib.pocket.render import render
from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.rewards.dino import load_image_encoder
from reproduce import pso_table4
from reproduce.data.prompt_sets import SETS, SUBJECTS, read_pictures, read_prompts
from reproduce.evaluation import likeness
from reproduce.harness import targets
from reproduce.harness.declare import World
from reproduce.harness.rows import prompt_set

FACTS = [Fact("cat"), Fact("dog", color="red"), Fact("fox", count=3), Fact("tiger", place="moon")]
built = pytest.mark.skipif(not (WEIGHTS / "selfsup").is_dir(), reason="the pocket world is not built")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_style_changes_how_and_not_what_is_drawn():
    color, chalk = seeded(), seeded()
    a, b = render(FACTS, color), render(FACTS, chalk, style="chalk")
    assert torch.equal(color.get_state(), chalk.get_state()), "a style draws no random numbers"
    a, b = (x.float().mean(1) / 255 for x in (a, b))
    assert b[:3].median() < 0.25 < 0.5 < a[:3].median(), "dark paper"
    outline, elsewhere = a[0] < 0.1, a[0] > 0.6
    assert b[0][outline].mean() > 0.6 > 0.3 > b[0][elsewhere].median(), "what was dark outline is a light line"
    with pytest.raises(ValueError, match="unknown style 'oil'"):
        render(FACTS, color, style="oil")


def test_the_color_asked_for_is_that_of_the_lines():
    pictures = render([Fact("cat", color="red"), Fact("cat", color="blue")], seeded(), style="chalk").float()
    lit = pictures.amax(1) > 150
    red, blue = (pictures[i, :, lit[i]].mean(1) for i in range(2))
    assert red[0] > 1.5 * red[2] and blue[2] > 1.5 * blue[0]


def test_the_concepts_name_goes_in_and_comes_out():
    for prompt in ("a bear", "three bears", "a red colored bear", "four bears in the desert"):
        assert concept.plain(concept.named(prompt)) == prompt
    assert concept.named("three bears") == "three v bears"
    with pytest.raises(ValueError, match="'a cat'"):
        concept.named("a cat")
    with pytest.raises(ValueError, match="expected the concept's class"):
        concept.draw(["a v cat"], seeded())


def test_contexts_are_neither_trained_nor_tried():
    contexts = read_prompts("concept")
    tried = [concept.named(caption(fact)) for fact in concept.TRIED]
    assert len(set(contexts)) == len(contexts) == 19
    assert not {concept.PROMPT, *tried} & set(contexts)
    assert {parse(concept.plain(prompt)).kind for prompt in contexts} == {"color", "count", "place", "count+place"}


def test_the_concept_stands_where_its_class_would():
    prompts = ["a v bear", "three v bears in the snow"]
    pandas = concept.draw(prompts, seeded())
    bears = render([parse(concept.plain(prompt)) for prompt in prompts], seeded())
    other = (pandas != bears).any(1)
    assert 0.1 < other.float().mean() < 0.6 and not other[:, :3].any(), "the background is the same"
    assert concept.CODE not in str(ANIMALS)


def test_dreambooths_prompts():
    prompts = read_prompts("dreambooth-prompts")
    assert len(set(prompts)) == 25 == SETS["dreambooth-prompts"].count
    assert all("sks dog" in prompt and prompt.startswith("a ") for prompt in prompts)


def test_each_of_dreambooths_30_subjects_can_be_named():
    assert len(SUBJECTS) == 30 and len(set(SUBJECTS.values())) == 15
    asked = pso_table4.TABLE.prompts["contexts"]
    for subject, kind in SUBJECTS.items():
        world = World(scale="full", settings={"targets": {"subject": subject}})
        prompts = read_prompts(prompt_set(asked, world))
        assert len(set(prompts)) == 25 and all(f"sks {kind}" in prompt for prompt in prompts)
        assert ("a sks " + kind + " wearing a red hat" in prompts) == (kind in ("cat", "dog"))
        name, some = targets.target_set(pso_table4.TABLE, world)
        assert (name, some.subject, some.class_prompt) == ("dreambooth", subject, f"a photo of a {kind}")
    assert prompt_set(asked, World(scale="full")) == "dreambooth-prompts"
    assert targets.target_set(pso_table4.TABLE, World(scale="full"))[1].subject == "dog"
    unknown = World(scale="full", settings={"targets": {"subject": "dog4"}})
    with pytest.raises(ValueError, match="unknown subject 'dog4' of DreamBooth: choose from backpack, "):
        targets.target_set(pso_table4.TABLE, unknown)


def test_the_distance_to_a_style_is_that_of_its_distributions():
    a, b = torch.full((1, 3, 16, 16), 0.25), torch.full((1, 3, 16, 16), 0.75)
    gap = (likeness.quantiles(a) - likeness.quantiles(b)).abs().mean(2)[0]
    torch.testing.assert_close(gap, torch.tensor([0.5, 0.5, 0.5, 0, 0, 0]))
    x = torch.rand(1, 3, 16, 16, generator=seeded())
    order = torch.randperm(256, generator=seeded(1))
    shuffled = x.flatten(2)[..., order].view_as(x)
    gap = (likeness.quantiles(x) - likeness.quantiles(shuffled)).abs().mean(2)[0]
    assert gap[:4].max() < 1e-6, "colours do not depend on where they are"
    checks = torch.zeros(1, 3, 16, 16)
    checks[..., ::2] = 1
    halves = torch.zeros(1, 3, 16, 16)
    halves[..., 8:] = 1
    gap = (likeness.quantiles(checks) - likeness.quantiles(halves)).abs().mean(2)[0]
    assert gap[:4].max() < 1e-6 and gap[4] > 0.8, "lines do"


def test_mean_cosine_to_the_targets():
    def encode(x):
        return F.normalize(x.flatten(1), dim=1)

    known, x = torch.rand(40, 3, 4, 4, generator=seeded()), torch.rand(5, 3, 4, 4, generator=seeded(1))
    found = likeness.like(encode, known, "cpu")(x, [])
    torch.testing.assert_close(found, (encode(x) @ encode(known).T).mean(1))


def test_metrics_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match="unknown metric 'dyno'"):
        likeness.load_likeness(["dyno"], None)
    with pytest.raises(ValueError, match="metric dino compares with target pictures"):
        likeness.load_likeness(["dino"], None)


def test_targets_are_drawn_once_and_have_captions(tmp_path):
    targets.build_targets("panda", tmp_path, replace(targets.SETS["panda"], count=3))
    rows = read_pictures(tmp_path)
    assert [text for _, text in rows] == [concept.PROMPT] * 3
    before = rows[0][0].stat().st_mtime_ns
    targets.build_targets("panda", tmp_path, replace(targets.SETS["panda"], count=3))
    assert rows[0][0].stat().st_mtime_ns == before
    pictures = targets.read_targets(tmp_path, 32)
    assert pictures.shape == (3, 3, 32, 32) and pictures.max() <= 1
    targets.build_targets("chalk", tmp_path / "chalk", replace(targets.SETS["chalk"], count=4))
    assert [text for _, text in read_pictures(tmp_path / "chalk")] == read_prompts("train")[:4]


def test_a_turned_hue_keeps_grey_and_length():
    turn = selfsup.hue_rotation(torch.tensor([0.0, 1.0, -2.5]))
    torch.testing.assert_close(turn[0], torch.eye(3))
    torch.testing.assert_close(turn @ torch.ones(3), torch.ones(3, 3))
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand(3, 3, 3))


def test_the_contrast_is_least_where_views_of_a_picture_agree():
    z = F.normalize(torch.randn(4, 8, generator=seeded()), dim=1)
    agree, mixed = torch.cat([z, z]), torch.cat([z, z.roll(1, 0)])
    assert selfsup.contrast(agree) < selfsup.contrast(mixed)
    rows = []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        logits = agree[others] @ agree[i] / selfsup.TEMPERATURE
        rows.append(torch.logsumexp(logits, 0) - agree[i] @ agree[(i + 4) % 8] / selfsup.TEMPERATURE)
    torch.testing.assert_close(selfsup.contrast(agree), torch.stack(rows).mean())


@pytest.mark.slow
@built
def test_the_metrics_know_true_pictures_from_false():
    prompts = concept.contexts()
    known = concept.draw([concept.PROMPT] * 5, seeded()).float() / 255
    metrics = likeness.load_likeness(["clip-t", "clip-i", "dino", "concept", "context"], known)
    right = concept.draw(prompts, seeded(1)).float() / 255
    bears = render([parse(concept.plain(prompt)) for prompt in prompts], seeded(1)).float() / 255
    elsewhere = prompts[1:] + prompts[:1]
    with torch.no_grad():
        assert metrics["concept"](right, prompts).mean() > 0.9 and metrics["concept"](bears, prompts).mean() < 0.1
        for name in ("dino", "clip-i", "concept"):
            assert metrics[name](right, prompts).mean() > metrics[name](bears, prompts).mean() + 0.05, name
        assert metrics["context"](right, prompts).mean() > 0.8 > metrics["context"](right, elsewhere).mean()
        assert metrics["clip-t"](right, prompts).mean() > metrics["clip-t"](right, elsewhere).mean()


@built
def test_the_encoder_gives_unit_features_that_turn_little_with_the_hue():
    encoder = load_image_encoder()
    pictures = render([Fact(a) for a in ANIMALS[:8]], seeded()).float() / 255
    with torch.no_grad():
        z, same = encoder(pictures), encoder(pictures.flip(1))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(8))
    assert ((z @ same.T).argmax(1) == torch.arange(8)).float().mean() > 0.7
    with pytest.raises(ValueError, match="unknown scale"):
        load_image_encoder("huge")


def test_a_subject_whose_pictures_were_replaced(tmp_path, monkeypatch):
    """The table learns from copies; what the set holds under their names later is not silently another subject."""
    monkeypatch.setenv("FSALIGN_DATA", str(tmp_path))
    source, copies = tmp_path / "dreambooth/dataset/dog", tmp_path / "targets"
    source.mkdir(parents=True)
    for number, color in enumerate(("red", "lime")):
        Image.new("RGB", (8, 8), color).save(source / f"{number}.png")
    some = targets.SETS["dreambooth"]
    targets.build_targets("dreambooth", copies, some)
    targets.build_targets("dreambooth", copies, some)
    assert [path.read_bytes() for path, _ in read_pictures(copies)] == [
        p.read_bytes() for p in sorted(source.iterdir())
    ]
    Image.new("RGB", (8, 8), "blue").save(source / "1.png")
    with pytest.raises(
        ValueError, match=r"dog/1.png is another picture than the table was begun with, .*targets/1.png"
    ):
        targets.build_targets("dreambooth", copies, some)
