"""Trains the pocket rewards on noisy preferences of the simulated judge.

Both pictures of a pair answer one prompt. Each is right or a near miss, and each is worn to some degree: passed through
the autoencoder with noise on its latents (as an unfinished sampler would leave it) and softened. The judge's utilities
of the two give noisy choices for each kind of annotator; a reward sees the choices alone.
"""

import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsalign_lib.pocket import autoencoder, judge, networks
from fsalign_lib.pocket.captions import Fact
from fsalign_lib.pocket.clip import near_miss
from fsalign_lib.pocket.fit import fit, step_generator
from fsalign_lib.pocket.judges import soften, worn
from fsalign_lib.pocket.render import render
from fsalign_lib.pocket.teacher import captions, token_ids
from fsalign_lib.rewards.aesthetic import AestheticReward
from fsalign_lib.rewards.imagereward import ImageReward

PAIRS, HELD_OUT_PAIRS = 8_000, 2_000
BATCH = 32
STEPS = 700
MATCHING_STEPS = 1_800


@torch.no_grad()
def make_pairs(pictures: Tensor, facts: list[Fact], vae, eye, seed: int, path: Path) -> dict[str, Tensor]:
    """Worn pictures a, b (N, 3, 64, 64) uint8 for each fact, and for each taste the utilities u_a, u_b (N,)."""
    if path.exists():
        return load_file(path)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    shown = [near_miss(f, rng) if rng.random() < 0.6 else f for f in facts]
    others = torch.cat([render(shown[i : i + 1000], generator) for i in range(0, len(shown), 1000)])
    pairs: dict[str, Tensor] = {}
    for side, source in (("a", pictures), ("b", others)):
        rows = []
        for part in source.split(250):
            z = autoencoder.encode(vae, part) * vae.config.scaling_factor
            strength = 0.7 * torch.rand(len(z), 1, 1, 1, generator=generator)
            strength = strength * (torch.rand(len(z), 1, 1, 1, generator=generator) < 0.6)
            x = autoencoder.decode(vae, z + strength * torch.randn(z.shape, generator=generator))
            soft = torch.rand(len(x), generator=generator) * (torch.rand(len(x), generator=generator) < 0.5)
            rows.append((soften(x, soft) * 255).round().to(torch.uint8))
        pairs[side] = torch.cat(rows)
        for taste in judge.TASTES:
            chunks = zip(pairs[side].split(500), range(0, len(facts), 500), strict=True)
            u = [judge.utility(eye, x.float() / 255, facts[i : i + 500], taste) for x, i in chunks]
            pairs[f"{taste}_{side}"] = torch.cat(u)
    save_file(pairs, path)
    return pairs


def bradley_terry(name, module, score, pairs: dict, taste: str, folder: Path, seed: int, lr: float):
    r"""Minimise $-\log\sigma(s_{winner} - s_{loser})$; `score(images, rows) -> (B,)`.

    Each time a pair is met, another annotator chooses, and each picture may be mirrored: with one fixed choice a pair,
    a network learns the annotators' slips by heart.
    """
    u_a, u_b = pairs[f"{taste}_a"], pairs[f"{taste}_b"]

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(u_a), (BATCH,), generator=generator)
        images = torch.cat([pairs["a"][rows], pairs["b"][rows]]).float() / 255
        mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        s_a, s_b = score(torch.where(mirrored, images.flip(-1), images), torch.cat([rows, rows])).chunk(2)
        sign = torch.where(judge.prefer(u_a[rows], u_b[rows], generator), 1.0, -1.0)
        return -F.logsigmoid(sign * (s_a - s_b)).mean()

    fit(name, module, loss, folder, steps=STEPS, lr=lr, seed=seed, weight_decay=0.05)
    return module


def clip_score(model, ids: Tensor):
    """The logit, cosine times scale, that Bradley-Terry fine-tuning of PickScore and HPS uses."""

    def score(images: Tensor, rows: Tensor) -> Tensor:
        image = F.normalize(model.get_image_features(pixel_values=images * 2 - 1).pooler_output, dim=-1)
        text = F.normalize(model.get_text_features(input_ids=ids[rows]).pooler_output, dim=-1)
        return model.logit_scale.exp() * (image * text).sum(-1)

    return score


def match_images_and_texts(reward: ImageReward, pictures, facts, ids: Tensor, miss: Tensor, folder: Path, seed: int):
    """Image-text matching: the own caption against its near miss and six other rows' captions."""

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(facts), (2 * BATCH,), generator=generator)
        own = ids[rows]
        options = torch.stack([own, miss[rows], *(own.roll(k, 0) for k in range(1, 7))], 1)  # (B, 8, 16)
        logits = reward.match(worn(pictures[rows], generator), options)
        same = (options == own[:, None]).all(-1)
        same[:, 0] = False
        return F.cross_entropy(logits.masked_fill(same, float("-inf")), torch.zeros(len(rows), dtype=torch.long))

    fit("imagereward-matching", reward, loss, folder, steps=MATCHING_STEPS, lr=1e-3, seed=seed, weight_decay=0.05)


def train_all(pictures: Tensor, facts: list[Fact], tokenizer, work: Path, out: Path, seed: int, save) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    ids = token_ids(tokenizer, captions(facts, seed))
    miss = token_ids(tokenizer, captions([near_miss(f, rng) for f in facts], seed))
    image_reward = ImageReward(*networks.blip(len(tokenizer)), tokenizer)
    match_images_and_texts(image_reward, pictures, facts, ids, miss, work, seed)

    pairs, facts, ids = preferences(pictures, facts, ids, work, out, seed)

    def image_text(images: Tensor, rows: Tensor) -> Tensor:
        return image_reward.match(images, ids[rows][:, None])[:, 0]

    bradley_terry("imagereward", image_reward, image_text, pairs, "imagereward", work, seed + 1, lr=3e-4)
    with torch.no_grad():  # scores of right pictures get mean 0 and deviation 1, as ImageReward's do
        rows = torch.arange(min(1000, len(facts)))
        scores = image_text(pairs["a"][rows].float() / 255, rows)
    image_reward.mean, image_reward.std = scores.mean().item(), scores.std().item()
    save(image_reward, out / "imagereward")

    model = train_clip("pickscore", networks.load_clip(out, "clip"), pictures, facts, tokenizer, work, out, seed)
    save(model, out / "pickscore")

    vision = networks.vision_with_projection(networks.load_clip(out, "clip"))
    aesthetic = AestheticReward(vision)
    bradley_terry("aesthetic", aesthetic, lambda x, rows: aesthetic(x), pairs, "aesthetic", work, seed + 4, lr=3e-4)
    with torch.no_grad():  # about 5 +- 1 on right pictures, as the LAION predictor's scale reads
        scores = aesthetic(pairs["a"][:1000].float() / 255)
    aesthetic.scale, aesthetic.shift = 1 / scores.std().item(), 5 - scores.mean().item() / scores.std().item()
    save(aesthetic, out / "aesthetic")


def preferences(pictures: Tensor, facts: list[Fact], ids: Tensor, work: Path, out: Path, seed: int):
    """The pairs that every reward is trained on, made once."""
    vae, eye = networks.load_vae(out), networks.load_classifier(out, "eye")
    facts, ids = facts[:PAIRS], ids[:PAIRS]
    return make_pairs(pictures[:PAIRS], facts, vae, eye, seed, work / "pairs.safetensors"), facts, ids


def train_clip(name: str, model, pictures, facts, tokenizer, work: Path, out: Path, seed: int):
    """PickScore and HPS: Bradley-Terry fine-tuning of a contrastive network."""
    ids = token_ids(tokenizer, captions(facts, seed))
    pairs, _, ids = preferences(pictures, facts, ids, work, out, seed)
    with torch.no_grad():  # the contrastive scale is far too sure of itself for noisy choices
        model.logit_scale.fill_(math.log(10))
    return bradley_terry(name, model, clip_score(model, ids), pairs, name, work, seed + 2, lr=3e-4)


def held_out_pairs(vae, eye, seed: int, path: Path) -> tuple[list[Fact], dict[str, Tensor]]:
    """Pairs from scenes that no training has seen, for measuring agreement."""
    from fsalign_lib.pocket.render import scenes

    facts, pictures = scenes(HELD_OUT_PAIRS, seed)
    return facts, make_pairs(pictures, facts, vae, eye, seed, path)


def agreement(scores_a: Tensor, scores_b: Tensor, u_a: Tensor, u_b: Tensor, seed: int) -> tuple[float, float]:
    """How often a reward agrees with the judge's noisy choices, and how often the best possible ranker would."""
    chosen = judge.prefer(u_a, u_b, step_generator(seed, 0))
    return ((scores_a > scores_b) == chosen).float().mean().item(), judge.ceiling(u_a, u_b)
