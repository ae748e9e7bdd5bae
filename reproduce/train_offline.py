"""Offline preference optimisation on pairs of pictures: Diffusion-DPO, offline PSO; and plain fine-tuning.

python reproduce/pairs.py --out runs/pairs
python reproduce/train_offline.py --method pso-offline --pairs runs/pairs --out runs/pso-offline

One update: a batch of pairs, noised to some times (the few-step grid for offline PSO, one uniform time a pair for
Diffusion-DPO); squared noise errors of winners and losers at all times in one forward, the reference's likewise.
Pictures are encoded once, before the first update.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from tqdm import tqdm

import recipes
from common import check_finite, command_line, generator, positive
from fsalign_lib.conditioning import Cond
from fsalign_lib.kernels import Kernel
from fsalign_lib.latent import LatentModel
from fsalign_lib.losses.preference import squared_error
from fsalign_lib.rollout import seeded_noise
from pairs import PairLatents, read_latents
from runs import Run, TrainConfig, check, divides, load_model, parse_training, training_kernel

KEPT_PROMPTS = 8192  # their conditions are kept: 2.6 GB for SDXL in half precision


@dataclass(kw_only=True)
class OfflineConfig(TrainConfig):
    """Fine-tune a few-step model on pairs of pictures, a preferred and another."""

    METHODS: ClassVar = recipes.OFFLINE

    pairs: Path
    """Folder with pairs.jsonl (see reproduce/pairs.py)."""
    updates: int
    batch: int
    """Pairs an update."""
    times: Literal["grid", "uniform"]
    """Noise to the sampler's stochastic steps, or to one uniform time a pair."""
    shared_noise: bool
    """The same noise for both pictures of a pair."""
    resize: bool = False
    """Fit pictures of other sizes: the shorter side scaled, the middle cut out. Otherwise they are an error."""


@dataclass
class Setup:
    """Everything a run needs, checked."""

    config: OfflineConfig
    model: LatentModel
    prompts: list[str]  # a pair each
    latents: PairLatents  # by rows: (rows, 2, C, h, w), the winner at index 0
    cond: Cond | None  # pairs; None where they are too many to keep
    kernel: Kernel
    run: Run


def prepare(config: OfflineConfig, model: LatentModel | None = None) -> Setup:
    """Check the settings, load what they name. A model that is given is taken in place of the named one."""
    recipes.recipe(config.method, config.scale, recipes.OFFLINE)
    positive(config, "updates", "batch")
    check(config)
    divides(config, "batch")
    if config.threads:
        torch.set_num_threads(config.threads)
    model = model or load_model(config)
    if not model.embeds_guidance:
        model.guidance_scale = 1.0  # the losses are on the network's own error; guidance is for sampling
    kernel = training_kernel(config, model)
    run = Run(config, model)  # checks its settings and folder, so before the pictures are encoded
    prompts, latents = read_latents(config.pairs, model, config.resize, run.accelerator, spare=config.out)
    cond = model.encode_prompts(prompts) if len(set(prompts)) <= KEPT_PROMPTS else None
    return Setup(config, model, prompts, latents, cond, kernel, run)


@torch.no_grad()
def conditions(setup: Setup, rows: Tensor) -> Cond:
    """Of some pairs: encoded once, or batch by batch where there are too many."""
    if setup.cond is not None:
        return setup.cond[rows]
    return setup.model.text.encode([setup.prompts[i] for i in rows])


def batch_rows(seed: int, update: int, pairs: int, batch: int) -> Tensor:
    """The pairs of an update: epochs of permutations, one after the other.  # (batch,)"""
    places = torch.arange(update * batch, (update + 1) * batch)
    cycles = (places // pairs).unique().tolist()
    orders = {cycle: torch.randperm(pairs, generator=generator("pairs", seed, cycle)) for cycle in cycles}
    return torch.stack([orders[int(p) // pairs][int(p) % pairs] for p in places])


def noised(setup: Setup, update: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noised latents x_t, the noise (both (P, K, S, C, h, w)) and times (P, S), K = 2, or 1 without losers."""
    c, model = setup.config, setup.model
    if c.times == "grid":
        t = setup.kernel.timesteps[list(setup.kernel.stochastic_steps)].expand(len(rows), -1)
    else:
        last = model.schedule.num_train_timesteps
        every = torch.randint(last, (len(setup.prompts),), generator=generator("times", c.seed, update))
        t = every[rows][:, None]
    x0 = setup.latents[rows].to(model.device)
    if c.method in recipes.WITHOUT_LOSERS:
        x0 = x0[:, :1]
    P, K, S = *x0.shape[:2], t.shape[1]
    draws = 1 if c.shared_noise else K
    eps = seeded_noise(c.seed, update, rows, model.latent_shape, draws * S).unflatten(1, (draws, S))
    eps = eps.expand(P, K, S, *model.latent_shape).to(x0.device)
    t_all = t[:, None].expand(P, K, S)
    x_t = model.schedule.add_noise(
        x0[:, :, None].expand_as(eps).flatten(0, 2), eps.flatten(0, 2), t_all.flatten().to(x0.device)
    )
    return x_t.unflatten(0, (P, K, S)), eps, t


def squared_errors(setup: Setup, x_t: Tensor, eps: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """||eps - eps_hat||^2 of all pictures at all times, in one network call.  # (P, K, S)"""
    P, K, S = x_t.shape[:3]
    times = t[:, None].expand(P, K, S).flatten().to(x_t.device)
    eps_hat = setup.model.predict_eps(x_t.flatten(0, 2), times, cond.repeat_interleave(K * S, 0))
    return squared_error(eps_hat, eps.flatten(0, 2), setup.config.reduction).view(P, K, S)


def batch_loss(setup: Setup, update: int, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The method's loss on some pairs."""
    c = setup.config
    x_t, eps, t = noised(setup, update, rows)
    cond = conditions(setup, rows)
    error = squared_errors(setup, x_t, eps, t, cond)
    check_finite("the squared error", error, [setup.prompts[i] for i in rows], c.seed, update)
    error_ref = None
    if c.method not in recipes.WITHOUT_LOSERS:
        with torch.no_grad(), setup.model.reference():
            error_ref = squared_errors(setup, x_t, eps, t, cond)
    loss, diagnostics = recipes.OFFLINE[c.method](recipes.Errors(error, error_ref), c)
    return loss, {"error": error.detach().mean()} | diagnostics


def train(setup: Setup) -> Iterator[dict[str, float]]:
    """Yield each update's record: loss, the loss's diagnostics, mean squared error, gradient norm."""
    c, run = setup.config, setup.run
    for update in range(run.start, c.updates):
        rows = batch_rows(c.seed, update, len(setup.prompts), c.batch)
        record = run.update(rows, partial(batch_loss, setup, update), setup.prompts, update)
        yield run.record(update, c.updates, record)


def run(setup: Setup) -> None:
    total = setup.config.updates
    bar = tqdm(train(setup), initial=setup.run.start, total=total, desc=setup.config.method, unit="update")
    for record in bar:
        bar.set_postfix({k: f"{record[k]:.3g}" for k in ("loss", "accuracy") if k in record})
    setup.run.finish()


def main(argv: Sequence[str] | None = None) -> None:
    command_line(parse_training(OfflineConfig, "pso-offline", __doc__), prepare, run, argv)


if __name__ == "__main__":
    main()
