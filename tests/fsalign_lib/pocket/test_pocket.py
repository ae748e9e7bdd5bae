"""The pocket world: the grammar is a bijection, pictures follow their seed, the judge prefers what it says."""

import random
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from fsalign_lib.pocket import judge, networks
from fsalign_lib.pocket.captions import ANIMALS, Fact, all_facts, caption, parse, prompts, random_fact
from fsalign_lib.pocket.classifiers import soften
from fsalign_lib.pocket.clip import near_miss
from fsalign_lib.pocket.fit import fit, learning_rate
from fsalign_lib.pocket.render import render, sprites
from fsalign_lib.pocket.weights import WEIGHTS


def test_every_fact_has_one_caption_and_parses_back():
    facts = all_facts()
    assert len(ANIMALS) == 45
    assert len({caption(f) for f in facts}) == len(facts)
    assert all(parse(caption(f)) == f for f in facts)
    assert parse("  CAT ") == Fact("cat")


def test_plural_and_article():
    assert caption(Fact("wolf", count=4, place="park")) == "four wolves in the park"
    assert caption(Fact("ant")) == "an ant"
    assert caption(Fact("rabbit", color="green")) == "a green colored rabbit"


def test_a_prompt_outside_the_grammar_is_named():
    with pytest.raises(ValueError, match="'a unicorn'.*grammar"):
        parse("a unicorn")


def test_held_out_combinations_are_in_no_training_set():
    held_out = prompts("test-heldout")
    assert len(held_out) == len(set(held_out)) == 100
    assert all(parse(p).held_out for p in held_out)
    assert not any(parse(p).held_out for p in prompts("train") + prompts("test-pickapic"))
    unseen = {p for p in prompts("test-pickapic") if parse(p).kind != "animal"}
    assert not unseen & set(prompts("train"))
    rng = random.Random(0)
    assert not any(random_fact(rng).held_out for _ in range(500))


def test_unknown_prompt_set():
    with pytest.raises(ValueError, match="'tset'.*choose one of"):
        prompts("tset")


def test_near_miss_changes_one_part():
    rng = random.Random(0)
    for fact in random.Random(1).sample(all_facts(), 200):
        miss = near_miss(fact, rng)
        changed = [k for k in ("animal", "second", "color", "count", "place") if getattr(fact, k) != getattr(miss, k)]
        assert len(changed) == 1
        assert miss.kind == fact.kind


def test_pictures_follow_their_seed():
    facts = [Fact("cat"), Fact("dog", place="moon"), Fact("wolf", count=3)]
    a, b = (render(facts, torch.Generator().manual_seed(s)) for s in (0, 0))
    assert a.dtype == torch.uint8 and a.shape == (3, 3, 64, 64)
    assert torch.equal(a, b)
    assert not torch.equal(a, render(facts, torch.Generator().manual_seed(1)))


def test_sprites_are_premultiplied_and_fill_their_square():
    s = sprites()
    assert s.shape == (53, 4, 48, 48)
    assert bool((s[:, :3] <= s[:, 3:] + 1e-4).all())
    rows, columns = s[:, 3].amax(2) > 0.2, s[:, 3].amax(1) > 0.2
    assert bool((torch.maximum(rows.float().mean(1), columns.float().mean(1)) > 0.9).all())


def test_colour_words_colour_the_animal():
    g = torch.Generator().manual_seed(0)
    red, blue = render([Fact("cat", color="red")] * 20 + [Fact("cat", color="blue")] * 20, g).float().split(20)
    assert (red[:, 0] - red[:, 2]).mean() > (blue[:, 0] - blue[:, 2]).mean() + 10


def test_every_word_is_one_token_and_unknown_words_are_spelled():
    tokenizer = networks.tokenizer()
    for fact in random.Random(0).sample(all_facts(), 100):
        assert len(tokenizer.tokenize(caption(fact))) == len(caption(fact).split())
    ids = tokenizer("qzx").input_ids
    assert len(ids) > 3 and tokenizer.unk_token_id not in ids[1:-1]


def test_the_tokenizer_is_the_same_in_every_process():
    # The trainer behind it numbers some tokens in the order of a hash table, which differs between processes.
    vocabulary = networks.tokenizer().get_vocab()
    ends = sorted((n, token) for token, n in vocabulary.items() if len(token) == 5 and token.endswith("</w>"))
    used = [token for _, token in ends[:16]]
    assert used == sorted(used) and vocabulary["a</w>"] == 28
    shipped = transformers.CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    assert shipped.get_vocab() == vocabulary


def test_no_shipped_file_names_the_folder_that_it_was_made_in():
    for path in WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(), path


def test_shipped_files_stay_small():
    sizes = [p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert max(sizes) < 12e6 and sum(sizes) < 45e6


class Eye(nn.Module):
    """Sees a cat whatever it is shown."""

    def forward(self, images):
        logits = torch.full((len(images), judge.LABELS), -12.0)
        logits[:, ANIMALS.index("cat")] = 12
        for part in (judge.COLOR, judge.COUNT, judge.PLACE):
            logits[:, part.start] = 12
        return type("Output", (), {"logits": logits})


def utility(images, animal, taste):
    return judge.utility(judge.look(Eye(), images), judge.targets([Fact(animal)]), taste)


def test_the_judge_prefers_what_was_asked_for_and_sharp_pictures():
    picture = render([Fact("cat")], torch.Generator().manual_seed(0)).float() / 255
    for taste in ("pickscore", "hps", "imagereward"):
        right, wrong = (utility(picture, a, taste) for a in ("cat", "dog"))
        assert right > wrong + 1
        blurred = utility(soften(picture, torch.ones(1)), "cat", taste)
        assert right > blurred
    same = [utility(picture, a, "aesthetic") for a in ("cat", "dog")]
    assert same[0] == same[1]


def test_noise_beyond_a_renders_crispness_earns_nothing():
    picture = render([Fact("cat")], torch.Generator().manual_seed(0)).float() / 255
    noisy = (picture + 0.5 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert judge.crispness(noisy) <= 1


def test_choices_follow_bradley_terry():
    u_a, u_b = torch.full((20_000,), 1.0), torch.zeros(20_000)
    rate = judge.prefer(u_a, u_b, torch.Generator().manual_seed(0)).float().mean()
    assert abs(rate - torch.tensor(1.0).sigmoid()) < 0.01
    assert judge.ceiling(u_a, u_b) == pytest.approx(torch.tensor(1.0).sigmoid().item())
    assert judge.ceiling(u_b, u_b) == 0.5


def test_a_stopped_training_resumes_to_the_same_bits(tmp_path: Path):
    def run(folder: Path, stop: int | None = None) -> nn.Module:
        torch.manual_seed(0)
        net, ema = nn.Linear(4, 1), nn.Linear(4, 1)
        ema.load_state_dict(net.state_dict())

        def loss(step, generator):
            if step == stop:
                raise KeyboardInterrupt
            x = torch.randn(8, 4, generator=generator)
            return (net(x)[:, 0] - x.sum(1)).square().mean()

        fit("net", net, loss, folder, steps=30, lr=1e-2, ema=ema, every=10)
        return nn.ModuleList([net, ema])

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=17)
    resumed = run(tmp_path / "stopped")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path):
    net = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="net: loss is nan at step 0"):
        fit("net", net, lambda step, g: net(torch.full((1, 1), float("nan"))).sum(), tmp_path, steps=1, lr=1e-3)


def test_learning_rate_warms_up_holds_and_falls_to_zero():
    rates = [learning_rate(s, 1000, 1.0) for s in range(1000)]
    assert rates[0] == 0.01 and rates[400] == 1.0 and rates[-1] < 0.005
    assert max(rates) == 1.0
