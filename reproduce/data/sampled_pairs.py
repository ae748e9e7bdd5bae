"""Sample preference pairs from a teacher, let a judge or a reward choose, and write them as a pair folder.

A folder of pairs holds `pairs.jsonl`, one object a line,
{"prompt": ..., "winner": "a.png", "loser": "b.png", "label": 1}, and the pictures. "label" may be left out; 0.5 is a
tie, which no loss here can use, so it is refused.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fsalign_lib.kernels import build_kernel
from fsalign_lib.models.latent_model import LatentModel, fingerprint
from fsalign_lib.models.load import load
from fsalign_lib.pocket import captions, judge
from fsalign_lib.rollout import rollout, seeded_noise
from reproduce.common.cli import check_finite, generator, positive, processes
from reproduce.common.files import claim, plain, release, writable_folder
from reproduce.common.provenance import Clock, provenance
from reproduce.data.pair_folder import PairFolder, refuse_finished
from reproduce.data.pair_settings import FullPairConfig, PairConfig
from reproduce.data.prompt_sets import read_prompts, warn_of_cut

Utility = Callable[[Tensor, Sequence[str]], Tensor]  # pictures in [0, 1], prompts -> (B,)


@dataclass
class Builder:
    """Hold everything a build needs, checked."""

    config: PairConfig | FullPairConfig
    model: LatentModel
    prompts: list[str]
    utility: Utility
    folder: PairFolder


def prepare(
    config: PairConfig | FullPairConfig, model: LatentModel | None = None, utility: Utility | None = None
) -> Builder:
    """Check the settings, and load what a build needs.

    Args:
        model, utility: taken in place of those that the settings name.

    Raises:
        ValueError: bad settings, an unknown model, reward or taste, a prompt that the judge cannot judge, or a folder
            that holds pairs already or pairs begun with other settings.
        OSError: the folder cannot be written to.
    """
    positive(config, "count", "batch")
    for name, value in (("tie", config.tie), *(("guidance", weight) for weight in config.guidance)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} = {value}: expected a number of 0 or more")
    if config.threads is not None:
        positive(config, "threads")
        torch.set_num_threads(config.threads)
    refuse_finished(config.out)
    full = isinstance(config, FullPairConfig)
    prompts = read_prompts(config.prompts, config.data if full else None)
    model = model or load(config.model, **({"dtype": getattr(torch, config.dtype)} if full else {}))
    warn_of_cut(model, prompts)
    build_kernel("ddim", model.schedule, config.steps)
    if full:
        model.to(processes().device)
        utility = utility or reward_utility(config.reward, model.device)
    elif utility is None:
        for prompt in prompts:
            captions.parse(prompt)
        utility = pocket_utility(config.taste)
    made = {key: value for key, value in plain(config).items() if key not in ("out", "threads", "data")}
    made |= {"weights": model.fingerprint, "autoencoder": model.vae_fingerprint}
    made |= {"text encoders": [fingerprint(encoder) for encoder in model.text.modules]}
    folder = PairFolder(config.out, made | {"sampled from": prompts[: config.count]})
    writable_folder(config.out)
    claim(config.out)
    return Builder(config, model, prompts, utility, folder)


def reward_utility(name: str, device: torch.device) -> Utility:
    """Load a full-size reward as a utility."""
    from fsalign_lib.rewards import load_reward

    reward = load_reward(name, scale="full").to(device)
    return lambda images, prompts: reward(images.to(device), list(prompts)).float().cpu()


def pocket_utility(taste: str) -> Utility:
    """Load the simulated judge of the pocket world as a utility, without its noise."""
    from fsalign_lib.pocket import networks
    from fsalign_lib.pocket.captions import parse
    from fsalign_lib.pocket.weights import WEIGHTS

    if taste not in judge.TASTES:
        raise ValueError(f"unknown taste {taste!r}: choose from {', '.join(judge.TASTES)}")
    eye = networks.load_classifier(WEIGHTS, "eye")

    def utility(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return judge.utility(judge.look(eye, images), judge.targets([parse(p) for p in prompts]), taste)

    return utility


@torch.no_grad()
def build(builder: Builder) -> None:
    """Write the pictures, about.json, and last pairs.jsonl."""
    c, folder, clock, state = builder.config, builder.folder, Clock(), processes()
    if state.is_main_process:
        folder.begin()
    state.wait_for_everyone()
    firsts = range(0, c.count, c.batch)
    with tqdm(firsts[state.process_index :: state.num_processes], desc="pairs") as bar:
        for first in bar:
            if not folder.done(first):
                folder.write(first, *sample_part(builder, first))
    state.wait_for_everyone()
    if state.is_main_process:

        def about(counts: dict[str, int]) -> dict:
            pairs = counts["pairs"]
            kept = {"config": plain(c), "pairs": pairs, "ties": c.count - pairs}
            return kept | {"winner_has_the_higher_utility": counts["right"] / max(pairs, 1), **provenance(clock)}

        folder.finish(firsts, about)
    state.wait_for_everyone()
    release(c.out)


def sample_part(builder: Builder, first: int) -> tuple[list[dict], dict[str, int]]:
    """Sample, judge and save the pairs from number `first` on: their lines, and in how many the better one won."""
    c, model = builder.config, builder.model
    kernel = build_kernel("ddim", model.schedule, c.steps, eta=0.0)
    ids = range(first, min(first + c.batch, c.count))
    prompts = [builder.prompts[i % len(builder.prompts)] for i in ids]
    simulated = isinstance(c, PairConfig)
    # The model keeps the prompts that it encodes; of as many as there are at full scale it must not.
    cond = model.encode_prompts(prompts) if simulated else model.text.encode(prompts)
    noise = seeded_noise(c.seed, 0, ids, model.latent_shape, 2 * (c.steps + 1)).unflatten(1, (2, -1))
    draw = generator("pairs", c.seed, first)
    pictures, utilities = [], []
    for side in range(2):
        low, high = c.guidance
        model.guidance_scale = low + (high - low) * torch.rand((), generator=draw).item()
        sample = rollout(model, kernel, cond, noise[:, side].to(model.device)).final
        pictures.append((model.decode(sample) * 255).round().byte().cpu())
        utilities.append(builder.utility(pictures[-1] / 255, prompts))
        check_finite("what ranks the pairs", utilities[-1], prompts, c.seed, first)
    apart = (utilities[0] - utilities[1]).abs()
    if simulated:
        first_won, tie = judge.prefer(*utilities, draw), apart < c.tie
    else:
        first_won, tie = utilities[0] > utilities[1], apart <= c.tie
    rows = []
    for row in (~tie).nonzero()[:, 0].tolist():
        names = [f"{ids[row]:06d}-{side}.png" for side in "ab"]
        for name, side in zip(names, pictures, strict=True):
            Image.fromarray(side[row].permute(1, 2, 0).numpy()).save(c.out / name)
        winner, loser = names if first_won[row] else reversed(names)
        rows.append({"prompt": prompts[row], "winner": winner, "loser": loser, "label": 1})
    return rows, {"right": int((first_won == (utilities[0] > utilities[1]))[~tie].sum())}
