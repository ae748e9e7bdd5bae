r"""Measure what the training loop costs over the network calls that the formula needs.

python reproduce/benchmarks/step_cost.py

A round of `reproduce/train_online.py` on P pairs with N steps, S of them stochastic, needs, and the loop makes:

| part | online PSO [PSO Eq. 7] | SDPO [SDPO Eq. 16] |
| --- | --- | --- |
| rollout, no gradient | N forwards on 2 P states | 1 forward on P states, as a pair shares its first, N - 1 on 2 P |
| decode | 2 P samples | 5 P predictions: the shared first, two anchors, two lasts |
| updates | 1 forward and backward on 2 P S states | S, on 2 P states each |
| reference, no gradient | 1 forward on 2 P S states | none |

An update of `reproduce/train_distill.py` on B samples, guided in the reference, needs, and the loop makes:

| part | DI++ [DI++ Alg. 1] | DI* [DI* Eq. 3.4] |
| --- | --- | --- |
| student | 1 forward on B latents, and its backward | likewise |
| assistant | 1 forward on B, no gradient | 1 forward on B, backward to its input |
| teacher | 1 forward on 2 B (both halves of guidance), no gradient | 1 forward on 2 B, backward to its input |
| reward | decode B latents, backward to its input | likewise |
| assistant, K times | student: 1 forward on B, no gradient; assistant: 1 forward and backward on B | likewise |

A backward to the input alone leaves out the gradients of the weights, which are frozen.

Everything else counts as overhead: noise by prompt, the kernel's steps, log-probs, ranking, dense rewards and
advantages, loss, gathering the pairs, the gradient's norm, AdamW's steps, the average of the student. The reward itself
is left out of both sides (for distillation: the mean of the picture, which has a gradient).

The loop and the bare calls take turns in one process, on batches of the same shape, so that a slow moment of the
machine meets both; on one CPU thread it is CPU time, which hardly depends on what else runs. What is printed is
the median over repetitions of the ratio, with its quartiles.

Beside the published loops, their own `main` on the same pipeline (pocket-turbo, T = 20, 32 trajectories a round, LoRA
rank 4; CPU seconds a round on one thread, measured once, in November 2026):

| | here | theirs, at their batches | theirs, at the same batches |
| --- | --- | --- | --- |
| SDPO | 5.46 | 12.75 (2.3 times) | 6.01 (1.10 times) |
| DDPO | 4.90 | 8.97 (1.8 times) | 5.26 (1.07 times) |

The large factor is batching, not an algorithm: all steps of a micro-batch go through the network in one forward. What
is left at the same batches is counted work: a pair's first prediction is computed, decoded and scored once (80 pictures
decoded a round in place of 96, 624 states sampled in place of 640).
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from reproduce import (
    train_distill,
    train_online,
)
from reproduce.common.cli import command_line, positive
from reproduce.common.files import plain, writable_folder, write_json
from reproduce.common.provenance import Clock, provenance
from reproduce.recipes import make_config
from reproduce.training.methods import METHODS

TARGETS = {"update": 1.05, "rollout": 1.05}
ONLINE, DISTILL = ("pso-online", "sdpo"), ("dipp", "distar")
TIMED = (*ONLINE, *DISTILL)


@dataclass(kw_only=True)
class CostConfig:
    """Time updates, and the rollout of a round, over the bare network calls."""

    methods: tuple[str, ...] = TIMED
    model: str = "pocket-turbo"
    pairs: int = 32
    """Pairs of the rollout and of each update; of distillation, samples."""
    steps: int | None = None
    """Sampling steps of the online methods; None: the recipe's."""
    teacher: str = "pocket-teacher"
    """Teacher of distillation, where its student starts."""
    repetitions: int = 10
    threads: int | None = None
    """CPU threads of torch."""
    out: Path = Path(__file__).parent / "results" / "step_cost.json"


@dataclass
class Bench:
    """Hold what is timed against what, and what both work on."""

    config: CostConfig
    setups: dict[str, train_online.Setup | train_distill.Setup]  # by method
    folder: tempfile.TemporaryDirectory


def prepare(config: CostConfig) -> Bench:
    """Check the settings, and set up the loop of each method."""
    positive(config, "pairs", "repetitions")
    unknown = [method for method in config.methods if method not in TIMED]
    if unknown:
        raise ValueError(f"unknown method {unknown[0]!r}: choose from {', '.join(TIMED)}")
    writable_folder(config.out.parent)
    folder, setups = tempfile.TemporaryDirectory(prefix="step-cost-"), {}
    for method in config.methods:
        given = {"out": Path(folder.name) / method, "threads": config.threads, "micro_batch": None}
        make = distilled if method in DISTILL else sampled
        setups[method] = make(config, method, given)
    return Bench(config, setups, folder)


def sampled(config: CostConfig, method: str, given: dict) -> train_online.Setup:
    """Prepare an online method, whose reward has no ties and costs nothing."""
    given |= {"model": config.model, "pairs": config.pairs, "minibatch": config.pairs}
    given |= {"steps": config.steps} if config.steps else {}
    run = make_config(train_online.OnlineConfig, method, **given)
    return train_online.prepare(run, reward=lambda images, prompts: torch.arange(len(images)) % 2)


def distilled(config: CostConfig, method: str, given: dict) -> train_distill.Setup:
    """Prepare a method of distillation at the recipe's settings, from the teacher itself."""
    given |= {"model": config.teacher, "teacher": config.teacher, "batch": config.pairs}
    run = make_config(train_distill.DistillConfig, method, start=None, time=399, **given)
    return train_distill.prepare(run, reward=brightness)


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Score pictures by their mean, which costs nothing."""
    return images.mean((1, 2, 3))


def distill_update(setup: train_distill.Setup) -> None:
    """Do one update as the loop does it."""
    K = setup.config.assistant_updates
    for number in range(K):
        train_distill.assistant_update(setup, number)
    train_distill.student_update(setup, K)
    setup.average.update(0)


def bare_distill_update(setup: train_distill.Setup) -> None:
    """Make the network calls of one update."""
    trio, B, run = setup.trio, setup.config.batch, setup.run
    x = torch.randn(2 * B, *setup.model.latent_shape, device=setup.model.device)
    cond, t = setup.cond[torch.arange(2 * B) % len(setup.cond)], torch.randint(1000, (2 * B,)).to(x.device)
    for _ in range(setup.config.assistant_updates):
        with torch.no_grad():
            trio.student.predict_eps(x[:B], 399, cond[:B])
        with run.alone(run.learners[train_distill.ASSISTANT]):
            trio.assistant.predict_eps(x[:B], t[:B], cond[:B]).sum().backward()
    through = "input gradients" in METHODS[setup.config.method].needs
    with run.alone(run.learners[train_distill.STUDENT]):
        made = trio.student.predict_eps(x[:B], 399, cond[:B])
        with torch.set_grad_enabled(through):
            noised = x + torch.cat([made, made]) if through else x
            followed = trio.assistant.predict_eps(noised[:B], t[:B], cond[:B])
            taught = trio.teacher.predict_eps(noised, t, cond)
        total = made.sum() + trio.student.decode(made, setup.config.through_clamp).sum()
        (total + followed.sum() + taught.sum() if through else total).backward()
    for learner in run.learners:
        learner.optimizer.zero_grad()


def updates(setup: train_online.Setup, pairs: train_online.Pairs) -> None:
    """Do all updates of a round as the loop does them."""
    logp_ref = train_online.reference_log_probs(setup, pairs)
    for which, steps in train_online.minibatches(setup, pairs, epoch=0):
        for rows in setup.run.micro_batches([pairs.prompts[i] for i in which], pairs.number):
            loss, diagnostics = train_online.minibatch_loss(setup, pairs, logp_ref, which[rows], steps[rows])
            setup.run.backward(loss, diagnostics, rows)
        setup.run.step()


def calls(setup: train_online.Setup, pairs: train_online.Pairs) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Build inputs (x, t, cond) of each update's call, of the shapes that the loop has."""
    found = []
    for which, steps in train_online.minibatches(setup, pairs, epoch=0):
        t = setup.kernel.timesteps[steps][:, None].expand(-1, 2, -1).flatten().to(setup.model.device)
        cond = pairs.cond[which].repeat_interleave(2 * steps.shape[1], 0)
        found.append((torch.randn(len(t), *setup.model.latent_shape, device=t.device), t, cond))
    return found


def bare_updates(setup: train_online.Setup, inputs: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Make the network calls of a round's updates."""
    if "reference" in METHODS[setup.config.method].needs:
        with torch.no_grad(), setup.model.reference():
            for call in inputs:
                setup.model.predict_eps(*call)
    for call in inputs:
        setup.model.predict_eps(*call).sum().backward()
        setup.run.optimizer.zero_grad()


@torch.no_grad()
def bare_rollout(setup: train_online.Setup, cond: Tensor, queries: int) -> None:
    """Make the network calls of a rollout on conditions (2 P), and decode what is scored."""
    x = torch.randn(len(cond), *setup.model.latent_shape, device=setup.model.device)
    for n, t in enumerate(setup.kernel.timesteps.tolist()):
        share = 2 if n == 0 and setup.config.shared_start else 1
        setup.model.predict_eps(x[::share], t, cond[::share])
    setup.model.decode(x.repeat(-(-queries // len(x)), 1, 1, 1)[:queries])


def seconds(function: Callable[..., None], *args) -> float:
    """Read the clock: CPU time on one CPU thread, else wall time."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    now = time.process_time if alone else time.perf_counter
    started = now()
    function(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return now() - started


def measure(bench: Bench) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Measure seconds of (loop, bare calls) at each repetition; the first, a rehearsal, does not count."""
    duels = {}
    for method, setup in bench.setups.items():
        if method in DISTILL:
            duels[method, "update"] = (distill_update, setup), (bare_distill_update, setup)
            continue
        pairs = train_online.sample_pairs(setup, 0)
        cond = pairs.cond.repeat_interleave(2, 0)
        duels[method, "update"] = (updates, setup, pairs), (bare_updates, setup, calls(setup, pairs))
        duels[method, "rollout"] = (train_online.sample_pairs, setup, 0), (bare_rollout, setup, cond, pairs.queries)
    times: dict[tuple[str, str], list[tuple[float, float]]] = {name: [] for name in duels}
    for repetition in range(bench.config.repetitions + 1):
        for name, (loop, bare) in duels.items():
            if repetition % 2:  # each goes first as often as the other
                spent = seconds(*loop), seconds(*bare)
            else:
                spent = tuple(reversed((seconds(*bare), seconds(*loop))))
            if repetition:
                times[name].append(spent)
    return times


def summary(method: str, part: str, pairs: list[tuple[float, float]]) -> dict:
    """Summarise (loop, bare calls) in seconds, one for each repetition."""
    ratios = sorted(loop / bare for loop, bare in pairs)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    loop, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
    about = {"method": method, "part": part, "ratio": statistics.median(ratios), "quartiles": [low, high]}
    return about | {"range": [ratios[0], ratios[-1]], "loop_seconds": loop, "bare_seconds": bare}


def report(found: list[dict], bench: Bench) -> str:
    """Print a line of the result."""
    c, lines = bench.config, []
    lines.append(
        f"{c.model} and {c.teacher}, {c.pairs} pairs, {c.repetitions} repetitions, {torch.get_num_threads()} threads"
    )
    for one in found:
        target, (low, high), (least, most) = TARGETS[one["part"]], one["quartiles"], one["range"]
        lines.append(
            f"{one['method']:10} {one['part']:8} {one['ratio']:.3f}  quartiles {low:.3f} to {high:.3f}  range "
            f"{least:.3f} to {most:.3f}  ({one['loop_seconds']:.3f} s over {one['bare_seconds']:.3f} s)  target "
            f"{target:.2f}: {'met' if one['ratio'] <= target else 'missed'}"
        )
    return "\n".join(lines)


def run(bench: Bench) -> None:
    """Time every method, and write the result."""
    clock = Clock()
    with bench.folder:
        found = [summary(*name, pairs) for name, pairs in measure(bench).items()]
    write_json(bench.config.out, {"config": plain(bench.config), **provenance(clock), "found": found})
    print(report(found, bench))


def main(argv: Sequence[str] | None = None) -> None:
    command_line(lambda args: tyro.cli(CostConfig, description=__doc__, args=args), prepare, run, argv)


if __name__ == "__main__":
    main()
