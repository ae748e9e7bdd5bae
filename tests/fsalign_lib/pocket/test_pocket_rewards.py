"""The rewards' training data and objective: who is compared with whom, and for which prompt."""

import random

import pytest
import torch

from fsalign_lib.pocket import judge, rewards
from fsalign_lib.pocket.captions import random_fact

TASTE = "pickscore"


@pytest.fixture
def pairs_and_facts():
    """Pictures that carry their own number, and what a judge might have seen in them."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    facts = [random_fact(rng) for _ in range(60)]
    pairs = {}
    for offset, side in ((0, "a"), (60, "b")):
        number = (offset + torch.arange(60)).to(torch.uint8)
        pairs[side] = number[:, None, None, None].expand(-1, 3, 4, 4)
        pairs[f"logits_{side}"] = 3 * torch.randn(60, judge.LABELS, generator=generator)
        pairs[f"warmth_{side}"] = torch.rand(60, generator=generator)
        pairs[f"crispness_{side}"] = 0.5 * torch.rand(60, generator=generator)
    return pairs, facts


def objective(pairs, facts, score, monkeypatch):
    """The mean loss of ten steps."""
    losses = []

    def fit(name, module, loss, folder, **settings):
        losses.extend(loss(step, torch.Generator().manual_seed(step)) for step in range(10))

    monkeypatch.setattr(rewards, "fit", fit)
    rewards.bradley_terry("test", None, score, pairs, facts, TASTE, None, 0)
    return torch.stack(losses).mean().item()


def judges_own_score(pairs, facts, mix_up: bool = False):
    seen = {key: torch.cat([rewards.seen_in(pairs, side)[key] for side in "ab"]) for key in rewards.seen_in(pairs, "a")}
    want = judge.targets(facts)

    def score(images, rows, prompt):
        which = (images[:, 0, 0, 0] * 255).round().long()  # (2B,)
        prompts = rows[prompt.flip(1) if mix_up else prompt].repeat(2, 1)  # (2B, K)
        looked = {key: value[which].repeat_interleave(prompts.shape[1], 0) for key, value in seen.items()}
        wanted = {key: value[prompts.flatten()] for key, value in want.items()}
        return judge.utility(looked, wanted, TASTE).view(prompts.shape)

    return score


def test_the_judges_own_utility_reaches_the_entropy_of_its_choices(pairs_and_facts, monkeypatch):
    """Only if scores, pictures and prompts are put together rightly is the loss as low as the noise allows."""
    pairs, facts = pairs_and_facts
    right = objective(pairs, facts, judges_own_score(pairs, facts), monkeypatch)
    want = judge.targets(facts)
    u_a, u_b = (judge.utility(rewards.seen_in(pairs, side), want, TASTE) for side in "ab")
    p = (u_a - u_b).sigmoid().double()
    own = -(p * p.log() + (1 - p) * (1 - p).log()).mean().item()
    # The comparisons with other prompts' pictures have entropies of about the same size as a prompt's own.
    assert right == pytest.approx(2 * own, rel=0.15)
    assert objective(pairs, facts, judges_own_score(pairs, facts, mix_up=True), monkeypatch) > 1.2 * right
    half = judges_own_score(pairs, facts)
    assert objective(pairs, facts, lambda *given: 0.5 * half(*given), monkeypatch) > right
    assert objective(pairs, facts, lambda *given: -half(*given), monkeypatch) > 2 * right


def test_agreement_is_that_of_the_best_ranker_for_the_utility_itself(pairs_and_facts):
    pairs, facts = pairs_and_facts
    want = judge.targets(facts)
    scores = {side: judge.utility(rewards.seen_in(pairs, side), want, TASTE) for side in "ab"}
    agrees, best = rewards.agreement(scores, pairs, facts, TASTE)
    assert agrees == pytest.approx(best)
    agrees, _ = rewards.agreement({side: -score for side, score in scores.items()}, pairs, facts, TASTE)
    assert agrees == pytest.approx(1 - best)


def test_votes_are_the_share_of_annotators():
    u = torch.full((5_000,), 0.7)
    shares = judge.votes(u, torch.zeros(5_000), 16, torch.Generator().manual_seed(0))
    assert shares.unique().numel() <= 17 and ((shares * 16) % 1 == 0).all()
    p = torch.tensor(0.7).sigmoid().item()
    assert shares.mean().item() == pytest.approx(p, abs=0.005)
    assert shares.var().item() == pytest.approx(p * (1 - p) / 16, rel=0.1)
