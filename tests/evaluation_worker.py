"""An evaluation in a process of its own, for the tests of several processes and of kills; imported by those too."""

import json
import os
import signal

import torch
from torch.nn import functional as F

from fsalign_lib.metrics.frechet import Gaussian
from reproduce import evaluate
from reproduce.evaluation.metrics import Frechet, RewardMetric
from tests import tiny

DIMENSIONS = 12


def small_features(images):
    """(B, 12): means of the quarters of each channel."""
    return F.adaptive_avg_pool2d(images, 2).flatten(1)


def metrics():
    reference = lambda prompts: Gaussian(torch.zeros(12).double().numpy(), torch.eye(12).double().numpy())  # noqa: E731
    return {
        "brightness": RewardMetric(tiny.brightness, 1.0),
        "fid": Frechet("quarters", small_features, DIMENSIONS, 8, reference),
    }


def config(folder, prompts, out, **other):
    """Three chunks of two prompts in each of two cells."""
    given = {"model": str(folder), "prompts": (str(prompts),), "steps": (2, 1), "seeds": 2, "batch": 4}
    return evaluate.EvaluateConfig(**given | {"images": "keep", "out": out} | other)


def results(out):
    return json.dumps(json.loads(out.read_text())["results"])


def pictures(out):
    folder = evaluate.pictures_folder(out)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def work(folder, prompts, out, kill_at):
    """What `accelerate launch` starts; SIGKILL before the chunk numbered `kill_at` gets its name."""
    replace, done = os.replace, []

    def counted(source, target):
        if str(target).endswith(".safetensors"):
            if len(done) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(target)
        replace(source, target)

    os.replace = counted
    evaluate.run(evaluate.prepare(config(folder, prompts, out), metrics=metrics()))
