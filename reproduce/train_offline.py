r"""Training on given pictures: Diffusion-DPO, offline PSO, mixed PSO; plain fine-tuning, DreamBooth.

python reproduce/build_pairs.py --out runs/pairs
python reproduce/train_offline.py --method pso-offline --pairs runs/pairs --out runs/pso-offline
python reproduce/train_offline.py --method pso --pairs pictures-in-a-style --out runs/style

One update: a batch of pairs, noised to some times (the few-step grid for PSO, one uniform time a pair for Diffusion-DPO
and the diffusion loss); squared noise errors of winners and losers, and of pictures that preserve the prior, at all
times in one forward, the reference's likewise. Pictures are encoded once, before the first update.

Mixed PSO has no losers: each target's prompt is sampled from the model as it is now, and the log-probs of those
transitions are what the errors are held against (references.py).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from fsalign_lib.kernels import Kernel
from fsalign_lib.losses.common import squared_error
from fsalign_lib.losses.preference import pso_weights
from fsalign_lib.models.conditioning import Cond, cat
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.rollout import seeded_noise
from reproduce.common.cli import check_finite, command_line, generator, positive
from reproduce.data.pairs import PairLatents, read_latents
from reproduce.training.methods import METHODS, Errors, find
from reproduce.training.references import half_gradients, reference_log_probs
from reproduce.training.run import Run, TrainConfig, check, divides, load_model, parse_training, training_kernel

KEPT_PROMPTS = 8192  # their conditions are kept: 2.6 GB for SDXL in half precision


@dataclass(kw_only=True)
class OfflineConfig(TrainConfig):
    """Fine-tune a few-step model on pairs of pictures, a preferred and another."""

    loop: ClassVar = "offline"

    pairs: Path
    """Folder with pairs.jsonl (see reproduce/build_pairs.py); for methods without losers also one of pictures with
    captions (see DATA.md)."""
    updates: int
    batch: int
    """Pairs an update."""
    times: Literal["grid", "uniform"]
    """Noise to the sampler's stochastic steps, or to one uniform time a pair."""
    shared_noise: bool
    """The same noise for both pictures of a pair."""
    prior: Path | None = None
    """Folder of pictures with captions whose diffusion loss is added, a picture beside each pair: DreamBooth's
    preservation of the prior. None: no such loss."""
    prior_weight: float = 1.0
    """Of that loss."""
    eq5_weights: Literal["printed", "exact"] = "printed"
    """Mixed PSO: omega_n of the targets' errors, 1 as printed or what the derivation gives."""
    halves_every: int | None = None
    """Mixed PSO: updates between measurements of the gradients of the two halves of Eq. 5, beginning with the first;
    each takes about as long as an update. None: never."""
    resize: bool = False
    """Fit pictures of other sizes: the shorter side scaled, the middle cut out. Otherwise they are an error."""


@dataclass
class Setup:
    """Everything a run needs, checked."""

    config: OfflineConfig
    model: LatentModel
    prompts: list[str]  # a pair each
    latents: PairLatents  # by rows: (rows, 2, C, h, w), the winner at index 0, or (rows, 1, C, h, w)
    cond: Cond | None  # pairs; None where they are too many to keep
    kernel: Kernel
    run: Run
    weight: Tensor | None  # (S,) of Eq. 5
    prior: tuple[PairLatents, Cond] | None  # pictures that preserve the prior, and the conditions of their captions


def prepare(config: OfflineConfig, model: LatentModel | None = None) -> Setup:
    """Check the settings, load what they name. A model that is given is taken in place of the named one."""
    find(config.method, "offline")
    positive(config, "updates", "batch", "prior_weight")
    check(config)
    check_halves(config)
    divides(config, "batch")
    if config.threads:
        torch.set_num_threads(config.threads)
    model = model or load_model(config)
    if not model.embeds_guidance:
        model.guidance_scale = 1.0  # the losses are on the network's own error; guidance is for sampling
    kernel = training_kernel(config, model)
    run = Run(config, model)  # checks its settings and folder, so before the pictures are encoded
    prompts, latents = read_latents(config.pairs, model, config.resize, run.accelerator, spare=config.out)
    if "losers" in METHODS[config.method].needs and latents.places.shape[1] == 1:
        raise ValueError(f"method {config.method} needs pairs, and {config.pairs} has no pairs.jsonl: build some")
    cond = model.encode_prompts(prompts) if len(set(prompts)) <= KEPT_PROMPTS else None
    prior = None
    if config.prior is not None:
        captions, pictures = read_latents(config.prior, model, config.resize, run.accelerator, spare=config.out)
        prior = pictures, model.encode_prompts(captions)
    weight = pso_weights(kernel, config.eq5_weights) if "own samples" in METHODS[config.method].needs else None
    return Setup(config, model, prompts, latents, cond, kernel, run, weight, prior)


def check_halves(config: OfflineConfig) -> None:
    """Raise a ValueError where the halves of Eq. 5 are asked for and cannot be had."""
    if config.halves_every is None:
        return
    positive(config, "halves_every")
    if "own samples" not in METHODS[config.method].needs:
        those = ", ".join(name for name, method in METHODS.items() if "own samples" in method.needs)
        raise ValueError(f"halves_every = {config.halves_every}: only {those} has two halves")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("halves_every measures on one process: leave it out here, or use one process")


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


def times(setup: Setup, update: int, rows: Tensor) -> Tensor:
    """Of each pair: the sampler's stochastic steps, or one uniform time.  # (P, S)"""
    if setup.config.times == "grid":
        return setup.kernel.timesteps[list(setup.kernel.stochastic_steps)].expand(len(rows), -1)
    last = setup.model.schedule.num_train_timesteps
    every = torch.randint(last, (len(setup.prompts),), generator=generator("times", setup.config.seed, update))
    return every[rows][:, None]


def prior_rows(setup: Setup, update: int, rows: Tensor) -> Tensor:
    """Which picture of the prior stands beside each pair.  # (P,)"""
    count = len(setup.prior[0])
    every = torch.randint(count, (len(setup.prompts),), generator=generator("prior", setup.config.seed, update))
    return every[rows]


def noised(setup: Setup, update: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noised latents x_t, the noise (both (P, K, S, C, h, w)), times (P, S), and draws for a rollout (P, N+1, C, h, w).

    K counts the winner, the loser unless the method is without, and a picture of the prior if there is one.
    """
    c, model = setup.config, setup.model
    t = times(setup, update, rows)
    x0 = setup.latents[rows].to(model.device)
    if "losers" not in METHODS[c.method].needs:
        x0 = x0[:, :1]
    if setup.prior:
        x0 = torch.cat([x0, setup.prior[0][prior_rows(setup, update, rows)][:, :1].to(model.device)], 1)
    P, K, S = *x0.shape[:2], t.shape[1]
    draws = 1 if c.shared_noise else K
    rollouts = setup.kernel.num_steps + 1 if "own samples" in METHODS[c.method].needs else 0
    noise = seeded_noise(c.seed, update, rows, model.latent_shape, draws * S + rollouts)
    eps = noise[:, : draws * S].unflatten(1, (draws, S)).expand(P, K, S, *model.latent_shape).to(x0.device)
    t_all = t[:, None].expand(P, K, S)
    x_t = model.schedule.add_noise(
        x0[:, :, None].expand_as(eps).flatten(0, 2), eps.flatten(0, 2), t_all.flatten().to(x0.device)
    )
    return x_t.unflatten(0, (P, K, S)), eps, t, noise[:, draws * S :].to(x0.device)


def squared_errors(setup: Setup, x_t: Tensor, eps: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """||eps - eps_hat||^2 of all pictures at all times, in one network call.  # (P, K, S)

    Args:
        cond: P * K of them, pair by pair.
    """
    P, K, S = x_t.shape[:3]
    at = t[:, None].expand(P, K, S).flatten().to(x_t.device)
    eps_hat = setup.model.predict_eps(x_t.flatten(0, 2), at, cond.repeat_interleave(S, 0))
    return squared_error(eps_hat, eps.flatten(0, 2), setup.config.reduction).view(P, K, S)


def picture_conditions(setup: Setup, update: int, rows: Tensor, cond: Cond, pictures: int) -> Cond:
    """Of P pairs with that many pictures each, the last of the prior if there is one: P * K, pair by pair."""
    if not setup.prior:
        return cond.repeat_interleave(pictures, 0)
    P = len(rows)
    which = torch.arange(P)[:, None].expand(P, pictures).clone()
    which[:, -1] += P
    return cat([cond, setup.prior[1][prior_rows(setup, update, rows)]])[which.flatten()]


def batch_errors(setup: Setup, update: int, rows: Tensor) -> tuple[Errors, Tensor | None]:
    """What the method's loss sees of some pairs, and the mean error on the prior's pictures."""
    c, model = setup.config, setup.model
    x_t, eps, t, draws = noised(setup, update, rows)
    cond = conditions(setup, rows)
    pictures = x_t.shape[1]
    error = squared_errors(setup, x_t, eps, t, picture_conditions(setup, update, rows, cond, pictures))
    check_finite("the squared error", error, [setup.prompts[i] for i in rows], c.seed, update)
    prior = None
    if setup.prior:
        pictures, prior, error = pictures - 1, error[:, -1].mean(), error[:, :-1]
    error_ref = None
    if "reference" in METHODS[c.method].needs:
        with torch.no_grad(), model.reference():
            pairs = cond.repeat_interleave(pictures, 0)
            error_ref = squared_errors(setup, x_t[:, :pictures], eps[:, :pictures], t, pairs)
    found = Errors(error, error_ref, weight=setup.weight)
    if "own samples" in METHODS[c.method].needs:
        found.logp, found.logp_ref = reference_log_probs(model, setup.kernel, cond, draws, c.reduction)
    return found, prior


def batch_loss(setup: Setup, update: int, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The method's loss on some pairs, and the prior's."""
    c = setup.config
    errors, prior = batch_errors(setup, update, rows)
    method = METHODS[c.method]
    loss, diagnostics = method.loss(*method.inputs(errors, c))
    found = {"error": errors.error.detach().mean()} | diagnostics
    if prior is None:
        return loss, found
    return loss + c.prior_weight * prior, found | {"prior": prior.detach()}


def halves(setup: Setup, update: int, rows: Tensor) -> dict[str, Tensor]:
    """Norms of the gradients of the two halves of Eq. 5 on a minibatch, and their cosine (see references.py)."""

    def terms(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        errors, _ = batch_errors(setup, update, part)
        method = METHODS[setup.config.method]
        return method.loss(*method.inputs(errors, setup.config))[0], errors.error, errors.logp

    parts = rows.split(setup.config.micro_batch or len(rows))
    return half_gradients(terms, parts, setup.run.parameters)


def train(setup: Setup) -> Iterator[dict[str, float]]:
    """Yield each update's record: loss, the loss's diagnostics, mean squared error, gradient norm; every `halves_every`
    updates also the norms of the two halves' gradients before the update, and their cosine."""
    c, run = setup.config, setup.run
    for update in range(run.start, c.updates):
        rows = batch_rows(c.seed, update, len(setup.prompts), c.batch)
        measured = halves(setup, update, rows) if c.halves_every and update % c.halves_every == 0 else {}
        record = run.update(rows, partial(batch_loss, setup, update), setup.prompts, update)
        yield run.record(update, c.updates, record | measured)


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
