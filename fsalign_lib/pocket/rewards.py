"""Train the pocket rewards on noisy preferences of the simulated judge.

Both pictures of a pair answer one prompt. Each is right or a near miss, and each is worn to some degree: passed through
the autoencoder with noise on its latents (as an unfinished sampler would leave it) and softened. For each prompt the
judge compares its own pair and pictures of other prompts, every two of them; its utilities give noisy choices for each
kind of annotator; a reward sees the choices alone.
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
from fsalign_lib.pocket.classifiers import soften, worn
from fsalign_lib.pocket.clip import near_miss
from fsalign_lib.pocket.fit import fit
from fsalign_lib.pocket.render import render
from fsalign_lib.pocket.teacher import captions, token_ids
from fsalign_lib.rewards.aesthetic import AestheticReward
from fsalign_lib.rewards.imagereward import ImageReward

SHARD, SHARDS, HELD_OUT_PAIRS = 8_000, 3, 2_000
BATCH = 32
STEPS = {"pickscore": 10_500, "hps": 10_500, "imagereward": 12_000, "aesthetic": 4_500}
LR = 1e-3
PROMPTS_A_PICTURE = 4  # its own and three others, so that eight pictures are compared for each prompt
ANNOTATORS = 16  # of each comparison
MATCHING_STEPS = 1_800


@torch.no_grad()
def make_pairs(pictures: Tensor, facts: list[Fact], vae, eye, seed: int, path: Path) -> dict[str, Tensor]:
    """Make worn pictures a, b (N, 3, 64, 64) uint8 for each fact, and what the judge sees in them (judge.look)."""
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
        seen = [judge.look(eye, x.float() / 255) for x in pairs[side].split(500)]
        pairs |= {f"{key}_{side}": torch.cat([part[key] for part in seen]) for key in seen[0]}
    save_file(pairs, path)
    return pairs


def seen_in(pairs: dict, side: str) -> dict[str, Tensor]:
    """Return what the judge saw in one side's pictures."""
    return {key: pairs[f"{key}_{side}"] for key in ("logits", "warmth", "crispness")}


def bradley_terry(name, module, score, pairs: dict, facts: list[Fact], taste: str, folder: Path, seed: int):
    r"""Minimise $-\log\sigma(s_{winner} - s_{loser})$ over a prompt's own pair, and over all its candidates.

    `score(images, rows, prompt) -> (2B, K)`: pictures a then b of the rows, each with the K prompts whose places in
    `rows` stand in `prompt` (B, K), the same for a and b. Each time a comparison is met other annotators choose, and
    each picture may be mirrored: with one fixed choice, a network learns the annotators' slips by heart.
    """
    want = judge.targets(facts)
    a, b = (seen_in(pairs, side) for side in "ab")
    seen = {key: torch.stack([a[key], b[key]]) for key in a}
    first, second = torch.triu_indices(2 * PROMPTS_A_PICTURE, 2 * PROMPTS_A_PICTURE, offset=1)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(facts), (BATCH,), generator=generator)
        images = torch.cat([pairs["a"][rows], pairs["b"][rows]]).float() / 255
        mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        shift = torch.randperm(BATCH - 1, generator=generator)[: PROMPTS_A_PICTURE - 1] + 1
        shift = torch.cat([torch.zeros(1, dtype=torch.long), shift])
        place = torch.arange(BATCH)[:, None]
        s = score(torch.where(mirrored, images.flip(-1), images), rows, (place + shift) % BATCH)
        # Prompt p is column k of the pictures of place p - shift[k]: gather its candidates a and b, (B, 2K).
        source = (place - shift) % BATCH
        s = s.view(2, BATCH, -1)[:, source, torch.arange(len(shift))].movedim(0, -1).flatten(1)
        shown = {key: value[:, rows[source]].movedim(0, 2).flatten(0, 2) for key, value in seen.items()}
        wanted = {key: value[rows].repeat_interleave(s.shape[1], 0) for key, value in want.items()}
        u = judge.utility(shown, wanted, taste).view(s.shape)
        votes = judge.votes(u[:, first], u[:, second], ANNOTATORS, generator)
        # -log sigmoid of the margin for those who chose the first, of its opposite for the others.
        losses = F.binary_cross_entropy_with_logits(s[:, first] - s[:, second], votes, reduction="none")
        return losses[:, 0].mean() + losses.mean()  # column 0 compares the prompt's own two

    fit(name, module, loss, folder, steps=STEPS[taste], lr=LR, seed=seed, weight_decay=0.05)
    return module


def clip_score(model, ids: Tensor):
    """Return the logit, cosine times scale, that Bradley-Terry fine-tuning of PickScore and HPS uses."""

    def score(images: Tensor, rows: Tensor, prompt: Tensor) -> Tensor:
        image = F.normalize(model.get_image_features(pixel_values=images * 2 - 1).pooler_output, dim=-1)
        text = F.normalize(model.get_text_features(input_ids=ids[rows]).pooler_output, dim=-1)
        return model.logit_scale.exp() * (image @ text.T).gather(1, prompt.repeat(2, 1))

    return score


def match_images_and_texts(reward: ImageReward, pictures, facts, ids: Tensor, miss: Tensor, folder: Path, seed: int):
    """Train image-text matching: the own caption against its near miss and six other rows' captions."""

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(facts), (2 * BATCH,), generator=generator)
        own = ids[rows]
        options = torch.stack([own, miss[rows], *(own.roll(k, 0) for k in range(1, 7))], 1)  # (B, 8, 16)
        logits = reward.match(worn(pictures[rows], generator), options)
        same = (options == own[:, None]).all(-1)
        same[:, 0] = False
        return F.cross_entropy(logits.masked_fill(same, float("-inf")), torch.zeros(len(rows), dtype=torch.long))

    fit("imagereward-matching", reward, loss, folder, steps=MATCHING_STEPS, lr=1e-3, seed=seed, weight_decay=0.05)


def train_imagereward(pictures: Tensor, facts: list[Fact], tokenizer, work: Path, out: Path, seed: int) -> ImageReward:
    """Train ImageReward: image-text matching first, as BLIP was trained; then the preferences."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    ids = token_ids(tokenizer, captions(facts, seed))
    miss = token_ids(tokenizer, captions([near_miss(f, rng) for f in facts], seed))
    reward = ImageReward(*networks.blip(len(tokenizer)), tokenizer)
    match_images_and_texts(reward, pictures, facts, ids, miss, work, seed)
    pairs, facts, ids = preferences(pictures, facts, tokenizer, work, out, seed)

    def score(images: Tensor, rows: Tensor, prompt: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the processor has it
            return reward.match(images, ids[rows][prompt].repeat(2, 1, 1))

    bradley_terry("imagereward", reward, score, pairs, facts, "imagereward", work, seed + 1)
    with torch.no_grad():  # scores of right pictures get mean 0 and deviation 1, as ImageReward's do
        scores = reward.match(pairs["a"][:1000].float() / 255, ids[:1000, None])
    reward.mean, reward.std = scores.mean().item(), scores.std().item()
    return reward


def train_aesthetic(pictures: Tensor, facts: list[Fact], tokenizer, work: Path, out: Path, seed: int):
    """Train the aesthetic reward: an MLP on the embeddings of the CLIP image half."""
    torch.manual_seed(seed)
    pairs, facts, _ = preferences(pictures, facts, tokenizer, work, out, seed)
    reward = AestheticReward(networks.vision_with_projection(networks.load_clip(out, "clip")))
    with torch.no_grad():  # the default initialisation expects inputs of size 1; a unit vector's are 1/sqrt(width)
        reward.mlp[0].weight.mul_(reward.mlp[0].in_features ** 0.5)

    def score(images: Tensor, rows: Tensor, prompt: Tensor) -> Tensor:
        return reward(images)[:, None].expand(-1, prompt.shape[1])

    bradley_terry("aesthetic", reward, score, pairs, facts, "aesthetic", work, seed + 4)
    with torch.no_grad():  # about 5 +- 1 on right pictures, as the LAION predictor's scale reads
        scores = reward(pairs["a"][:1000].float() / 255)
    reward.scale, reward.shift = 1 / scores.std().item(), 5 - scores.mean().item() / scores.std().item()
    return reward


def train_clip(name: str, model, pictures, facts, tokenizer, work: Path, out: Path, seed: int):
    """Train PickScore or HPS: Bradley-Terry fine-tuning of a contrastive network."""
    pairs, facts, ids = preferences(pictures, facts, tokenizer, work, out, seed)
    with torch.no_grad():  # the contrastive scale is far too sure of itself for noisy choices
        model.logit_scale.fill_(math.log(10))
    return bradley_terry(name, model, clip_score(model, ids), pairs, facts, name, work, seed + 2)


def preferences(pictures: Tensor, facts: list[Fact], tokenizer, work: Path, out: Path, seed: int):
    """Load the pairs that rewards are trained on, made once, in shards; their facts and captions' token ids."""
    facts = facts[: SHARDS * SHARD]
    vae, eye = networks.load_vae(out), networks.load_classifier(out, "eye")
    shards = []
    for k in range(SHARDS):
        rows = slice(k * SHARD, (k + 1) * SHARD)
        path = work / f"pairs-{k}.safetensors"
        shards.append(make_pairs(pictures[rows], facts[rows], vae, eye, seed + 10_000 * k, path))
    pairs = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    return pairs, facts, token_ids(tokenizer, captions(facts, seed))


def held_out_pairs(vae, eye, seed: int, path: Path) -> tuple[list[Fact], dict[str, Tensor]]:
    """Make pairs from scenes that no training has seen, for measuring agreement."""
    from fsalign_lib.pocket.render import scenes

    facts, pictures = scenes(HELD_OUT_PAIRS, seed)
    # Another seed than the scenes': else both pictures of a pair would have the same background and places.
    return facts, make_pairs(pictures, facts, vae, eye, seed + 1, path)


def agreement(
    scores: dict[str, Tensor], pairs: dict[str, Tensor], facts: list[Fact], taste: str
) -> tuple[float, float]:
    """Measure how often a reward agrees with the judge's noisy choices, and how often the best possible ranker would.

    `scores` of the pictures "a" and "b". Both are expectations over the annotators' noise.
    """
    want = judge.targets(facts)
    u_a, u_b = (judge.utility(seen_in(pairs, side), want, taste) for side in "ab")
    p = (u_a - u_b).sigmoid()
    return torch.where(scores["a"] > scores["b"], p, 1 - p).mean().item(), judge.ceiling(u_a, u_b)
