"""Train the pocket CLIP by contrast on (scene, caption) pairs; each picture brings a near miss as negative."""

import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fsalign_lib.pocket import networks
from fsalign_lib.pocket.captions import ANIMALS, COLORS, COUNTS, PLACES, Fact
from fsalign_lib.pocket.classifiers import worn
from fsalign_lib.pocket.fit import fit
from fsalign_lib.pocket.teacher import captions, token_ids

STEPS = 1_300
BATCH = 64


def near_miss(fact: Fact, rng: random.Random) -> Fact:
    """Change one part of a fact: another animal, colour, count or place."""

    def other(values, now):
        return rng.choice([v for v in values if v != now])

    parts = ["animal"]
    parts += ["second"] if fact.second else []
    parts += ["color"] if fact.color else []
    parts += ["count"] if fact.count > 1 else []
    parts += ["place"] if fact.place else []
    part = rng.choice(parts)
    if part == "color":
        return replace(fact, color=other(COLORS, fact.color))
    if part == "count":
        return replace(fact, count=other(COUNTS, fact.count))
    if part == "place":
        return replace(fact, place=other(PLACES, fact.place))
    taken = (fact.animal, fact.second)
    return replace(fact, **{part: rng.choice([a for a in ANIMALS if a not in taken])})


def train(name: str, pictures: Tensor, facts: list[Fact], tokenizer, folder: Path, seed: int):
    """Train by symmetric InfoNCE; a text that equals another row's is no negative for it."""
    torch.manual_seed(seed)
    model = networks.clip(len(tokenizer))
    rng = random.Random(seed)
    ids = token_ids(tokenizer, captions(facts, seed))
    miss = token_ids(tokenizer, captions([near_miss(f, rng) for f in facts], seed))

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(facts), (BATCH,), generator=generator)
        texts = torch.cat([ids[index], miss[index]])
        output = model(pixel_values=worn(pictures[index], generator) * 2 - 1, input_ids=texts)
        logits = output.logits_per_image  # (B, 2B)
        same = (texts[None] == ids[index][:, None]).all(-1)
        same = same & ~torch.eye(BATCH, 2 * BATCH, dtype=torch.bool)
        logits = logits.masked_fill(same, float("-inf"))
        target = torch.arange(BATCH)
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :BATCH].T, target))

    fit(name, model, loss, folder, steps=STEPS, lr=1e-3, seed=seed, weight_decay=0.1, every=100)
    return model
