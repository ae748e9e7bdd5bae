r"""Train on given pictures: Diffusion-DPO, offline PSO, mixed PSO; plain fine-tuning, DreamBooth.

python reproduce/build_pairs.py --out runs/pairs
python reproduce/train_offline.py --method pso-offline --pairs runs/pairs --out runs/pso-offline
python reproduce/train_offline.py --method pso --pairs pictures-in-a-style --out runs/style

Pictures are encoded once, before the first update. An update, in `train`:

1. Take a batch of pairs, or of pictures alone where the method needs no losers.
2. Noise each picture to some times: the few-step grid for PSO, one uniform time for Diffusion-DPO and the diffusion
   loss. Compute squared noise errors at all times in one forward, then the reference model's in another.
3. For mixed PSO, sample each picture's prompt from the model as it is now: the log-probs of those transitions are what
   the errors are held against.
4. Update, and record.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fsalign_lib.devices import send
from fsalign_lib.kernels import Kernel
from fsalign_lib.losses.common import Diagnostics, squared_error
from fsalign_lib.losses.preference import pso_weights
from fsalign_lib.models.conditioning import Cond, cat
from fsalign_lib.models.latent_model import LatentModel
from fsalign_lib.rollout import rollout, seeded_noise, step_log_probs
from reproduce.common.cli import check_finite, command_line, generator, positive
from reproduce.common.files import digest
from reproduce.data.encoded_prompts import store_prompts
from reproduce.data.pairs import PairLatents, check_folder, read_latents
from reproduce.data.prompt_sets import warn_of_cut
from reproduce.training.config import KEPT_PROMPTS, TrainConfig, parse_training
from reproduce.training.methods import METHODS, Errors, find
from reproduce.training.run import Run, check_divides, check_training, epoch_rows, kept, load_model, training_kernel


@dataclass(kw_only=True)
class OfflineConfig(TrainConfig):
    """Fine-tune a few-step model on pairs of pictures, a preferred and another."""

    loop: ClassVar = "offline"

    pairs: Path
    """Folder with pairs.jsonl (see reproduce/build_pairs.py); for methods without losers also one of pictures with
    captions (see DATA.md)."""
    updates: int
    """Updates of the model."""
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
    """Weight of the prior's loss."""
    eq5_weights: Literal["printed", "exact"] = "printed"
    """Mixed PSO: omega_n of the targets' errors, 1 as printed or what the derivation gives."""
    halves_every: int | None = None
    """Mixed PSO: updates between measurements of the gradients of the two halves of Eq. 5, beginning with the first;
    each takes about as long as an update. None: never."""
    resize: bool = False
    """Fit pictures of other sizes: the shorter side scaled, the middle cut out. Otherwise they are an error."""


@dataclass
class Setup:
    """Hold everything that a run needs, checked."""

    config: OfflineConfig
    model: LatentModel
    prompts: list[str]  # one a pair
    latents: PairLatents  # by rows: (rows, 2, C, h, w), the winner at index 0, or (rows, 1, C, h, w)
    cond: Cond | None  # one a pair; None where they are too many to keep
    kernel: Kernel
    run: Run
    weight: Tensor | None  # (S,) of Eq. 5
    prior: tuple[PairLatents, Cond] | None  # pictures that preserve the prior, and the conditions of their captions

    @property
    def needs(self) -> tuple[str, ...]:
        """Return what the method needs (see reproduce/training/methods.py)."""
        return METHODS[self.config.method].needs


def prepare(config: OfflineConfig, model: LatentModel | None = None) -> Setup:
    """Check the settings, load what they name, and encode the pictures.

    Args:
        model: taken in place of the named one.

    Raises:
        ValueError: a setting is wrong, or does not go with the others or with the pictures.
    """
    needs = find(config.method, "offline").needs
    positive(config, "updates", "batch", "prior_weight")
    check_training(config)
    check_halves(config)
    check_divides(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    model = model or load_model(config)
    if not model.embeds_guidance:
        model.guidance_scale = 1.0  # the losses are on the network's own error; guidance is for sampling
    kernel = training_kernel(config, model)
    run = Run(config, model)  # checks its settings and folder, so before the pictures are encoded
    if config.prior is not None:
        check_folder(config.prior, model, config.resize, spare=config.out)
    prompts, latents = read_latents(config.pairs, model, config.resize, run.accelerator, spare=config.out)
    warn_of_cut(model, prompts)
    run.same_inputs(prompts=f"{len(prompts)} with digest {digest(prompts)}", pictures=latents.digest())
    if "losers" in needs and latents.places.shape[1] == 1:
        raise ValueError(f"method {config.method} needs pairs, and {config.pairs} has no pairs.jsonl: build some")
    captions, prior = [], None
    if config.prior is not None:
        captions, pictures = read_latents(config.prior, model, config.resize, run.accelerator, spare=config.out)
        run.same_inputs(prior_captions=digest(captions), prior_pictures=pictures.digest())
    if config.scale == "full":
        store_prompts([model], [*prompts, *captions], config.out.parent, config.batch * config.updates)
    cond = model.encode_prompts(prompts) if len(set(prompts)) <= KEPT_PROMPTS else None
    if captions:
        prior = pictures, model.encode_prompts(captions)
    weight = pso_weights(kernel, config.eq5_weights) if "own samples" in needs else None
    return Setup(config, model, prompts, latents, cond, kernel, run, weight, prior)


def check_halves(config: OfflineConfig) -> None:
    """Raise a ValueError where the halves of Eq. 5 are asked for and cannot be had."""
    if config.halves_every is None:
        return
    positive(config, "halves_every")
    mixed = [name for name, method in METHODS.items() if "own samples" in method.needs]
    if config.method not in mixed:
        raise ValueError(f"halves_every = {config.halves_every}: only {', '.join(mixed)} has two halves")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("halves_every measures on one process: leave it out here, or use one process")


@torch.no_grad()
def conditions(setup: Setup, rows: Tensor) -> Cond:
    """Return the conditions of some pairs: encoded once, or batch by batch where there are too many."""
    if setup.cond is not None:
        return setup.cond[send(rows, setup.model.device)]
    return setup.model.text.encode([setup.prompts[i] for i in rows])


def times(setup: Setup, update: int, rows: Tensor) -> Tensor:
    """Return the times that each pair is noised to: the sampler's stochastic steps, or one uniform time.  # (P, S)"""
    if setup.config.times == "grid":
        return setup.kernel.timesteps[list(setup.kernel.stochastic_steps)].expand(len(rows), -1)
    last = setup.model.schedule.num_train_timesteps
    every = torch.randint(last, (len(setup.prompts),), generator=generator("times", setup.config.seed, update))
    return every[rows][:, None]


def prior_rows(setup: Setup, update: int, rows: Tensor) -> Tensor:
    """Return which picture of the prior stands beside each pair.  # (P,)"""
    count = len(setup.prior[0])
    every = torch.randint(count, (len(setup.prompts),), generator=generator("prior", setup.config.seed, update))
    return every[rows]


def noised(setup: Setup, update: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise the pictures of some pairs.

    K pictures a pair: the winner; the loser where the method needs one; a picture of the prior if there is one.

    Returns:
        x_t and its noise (both (P, K, S, C, h, w)), times (P, S), and draws for a rollout (P, N+1, C, h, w), which
        only own samples use.
    """
    c, model = setup.config, setup.model
    t = times(setup, update, rows)
    x0 = send(setup.latents[rows], model.device)
    if "losers" not in setup.needs:
        x0 = x0[:, :1]
    if setup.prior:
        x0 = torch.cat([x0, send(setup.prior[0][prior_rows(setup, update, rows)][:, :1], model.device)], 1)
    P, K, S = *x0.shape[:2], t.shape[1]
    draws = 1 if c.shared_noise else K
    rollouts = setup.kernel.num_steps + 1 if "own samples" in setup.needs else 0
    noise = seeded_noise(c.seed, update, rows, model.latent_shape, draws * S + rollouts)
    noise = send(noise, x0.device)
    eps = noise[:, : draws * S].unflatten(1, (draws, S)).expand(P, K, S, *model.latent_shape)
    t_all = t[:, None].expand(P, K, S)
    x_t = model.schedule.add_noise(x0[:, :, None].expand_as(eps).flatten(0, 2), eps.flatten(0, 2), t_all.flatten())
    return x_t.unflatten(0, (P, K, S)), eps, t, noise[:, draws * S :]


def squared_errors(setup: Setup, x_t: Tensor, eps: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """Return ||eps - eps_hat||^2 of all pictures at all times, from one network call.  # (P, K, S)

    Args:
        x_t, eps: noised pictures and their noise  # (P, K, S, C, h, w)
        t: times  # (P, S)
        cond: conditions of the pictures, pair by pair  # P * K
    """
    P, K, S = x_t.shape[:3]
    at = t[:, None].expand(P, K, S).flatten()
    eps_hat = setup.model.predict_eps(x_t.flatten(0, 2), at, cond.repeat_interleave(S, 0))
    return squared_error(eps_hat, eps.flatten(0, 2), setup.config.reduction).view(P, K, S)


def picture_conditions(setup: Setup, update: int, rows: Tensor, cond: Cond, pictures: int) -> Cond:
    """Return the conditions of P pairs' K pictures, pair by pair (P * K): a picture of the prior has its own caption.

    Args:
        cond: of the pairs  # P
        pictures: K
    """
    if not setup.prior:
        return cond.repeat_interleave(pictures, 0)
    P = len(rows)
    which = torch.arange(P)[:, None].expand(P, pictures).clone()
    which[:, -1] += P
    device = setup.model.device
    captions = setup.prior[1][send(prior_rows(setup, update, rows), device)]
    return cat([cond, captions])[send(which.flatten(), device)]


def own_log_probs(setup: Setup, cond: Cond, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Sample a trajectory for each condition from the model as it is now (PSO Alg. 1), and return its log-probs.

    Args:
        noise: N + 1 draws for each  # (P, N+1, C, h, w)

    Returns:
        of the stochastic transitions under the model, with their graph, and under the reference model.  # (P, S) each
    """
    model, kernel, reduction = setup.model, setup.kernel, setup.config.reduction
    trajectory = rollout(model, kernel, cond, noise, reduction)
    with torch.no_grad(), model.reference():
        logp_ref = step_log_probs(model, kernel, trajectory, cond, kernel.stochastic_steps, reduction)
    return step_log_probs(model, kernel, trajectory, cond, kernel.stochastic_steps, reduction), logp_ref


def batch_errors(setup: Setup, update: int, rows: Tensor) -> tuple[Errors, Tensor | None]:
    """Return what the method's loss sees of some pairs, and the mean error on the prior's pictures, if there are any.

    Raises:
        FloatingPointError: an error is not finite.
    """
    c, model = setup.config, setup.model
    x_t, eps, t, draws = noised(setup, update, rows)
    cond = conditions(setup, rows)
    pictures = x_t.shape[1]
    error = squared_errors(setup, x_t, eps, t, picture_conditions(setup, update, rows, cond, pictures))
    check_finite("the squared error", error, [setup.prompts[i] for i in rows], c.seed, update)
    prior = None
    if setup.prior:
        pictures, prior, error = pictures - 1, error[:, -1].mean(), error[:, :-1]
    errors = Errors(error, error_ref=None, weight=setup.weight)
    if "reference" in setup.needs:
        with torch.no_grad(), model.reference():
            pairs = cond.repeat_interleave(pictures, 0)
            errors.error_ref = squared_errors(setup, x_t[:, :pictures], eps[:, :pictures], t, pairs)
    if "own samples" in setup.needs:
        errors.logp, errors.logp_ref = own_log_probs(setup, cond, draws)
    return errors, prior


def batch_loss(setup: Setup, update: int, rows: Tensor) -> tuple[Tensor, Diagnostics]:
    """Return the method's loss on some pairs, with the prior's added, and diagnostics.

    Args:
        update: its number, which times and noise depend on
        rows: pairs  # (P,) long
    """
    c, method = setup.config, METHODS[setup.config.method]
    data, prior = batch_errors(setup, update, rows)
    loss, diagnostics = method.loss(*method.inputs(data, c))
    diagnostics = {"error": data.error.detach().mean()} | diagnostics
    if prior is None:
        return loss, diagnostics
    return loss + c.prior_weight * prior, diagnostics | {"prior": prior.detach()}


def halves(setup: Setup, update: int, rows: Tensor) -> dict[str, Tensor]:
    """Measure the two halves of Eq. 5 on a minibatch: see `half_gradients`."""

    def terms(some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c, method = setup.config, METHODS[setup.config.method]
        data, _ = batch_errors(setup, update, some)
        return method.loss(*method.inputs(data, c))[0], data.error, data.logp

    return half_gradients(terms, rows.split(setup.config.micro_batch or len(rows)), setup.run.parameters)


def half_gradients(
    terms: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    micro_batches: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
) -> dict[str, Tensor]:
    """Split a loss's gradient in two: through the errors on targets, and through the log-probs of own samples.

    Both hold the same factor -beta sigmoid(-beta h), so their norms are on one scale: that of the update.

    Args:
        terms: rows -> the loss, its mean over them, and the two tensors that the halves are computed from.
        micro_batches: the rows of a minibatch; their gradients are averaged before a norm is taken.

    Returns:
        {"gradient_target", "gradient_reference": norms before clipping, "gradient_cosine": of the two}.
    """
    sums: list[Tensor | float] = [0.0, 0.0]
    for rows in micro_batches:
        loss, *inputs = terms(rows)
        outward = torch.autograd.grad(loss, inputs, retain_graph=True)
        for i, (value, gradient) in enumerate(zip(inputs, outward, strict=True)):
            found = torch.autograd.grad(value, parameters, gradient, retain_graph=i == 0)
            share = len(rows) / sum(map(len, micro_batches))
            sums[i] = sums[i] + share * torch.cat([g.flatten() for g in found])
    target, own = sums
    return {
        "gradient_target": target.norm(),
        "gradient_reference": own.norm(),
        "gradient_cosine": torch.nn.functional.cosine_similarity(target, own, dim=0),
    }


def train(setup: Setup) -> Iterator[dict[str, float]]:
    """Train, and yield each update's record.

    A record has the loss, the gradient's norm, the mean squared error, and the loss's diagnostics; every `halves_every`
    updates also the norms of the two halves' gradients before the update, and their cosine.
    """
    c, run = setup.config, setup.run
    for update in range(run.start, c.updates):
        # Take the batch: epochs of permutations of all pairs.
        batch = epoch_rows("pairs", c.seed, update, len(setup.prompts), c.batch)
        prompts = [setup.prompts[i] for i in batch]

        # Measure the halves, if it is time; the gradients are thrown away.
        measured = halves(setup, update, batch) if c.halves_every and update % c.halves_every == 0 else {}

        # Update: noise the pictures, hold their errors against the reference's, step.
        for rows in run.micro_batches(prompts, update):
            loss, diagnostics = batch_loss(setup, update, batch[rows])
            run.backward(loss, diagnostics, rows)
        record = run.step()

        # Record, and save when it is time.
        yield run.record(update, c.updates, record | measured)


def run(setup: Setup) -> None:
    """Train to the end, with a progress bar, and write the result."""
    total = setup.config.updates
    bar = tqdm(train(setup), initial=setup.run.start, total=total, desc=setup.config.method, unit="update")
    for record in bar:
        bar.set_postfix({k: f"{record[k]:.3g}" for k in ("loss", "accuracy") if k in record})
    setup.run.finish()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    command_line(parse_training(OfflineConfig, "pso-offline", __doc__), prepare, run, argv, kept)


if __name__ == "__main__":
    main()
