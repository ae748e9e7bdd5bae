"""A table's script in processes of its own, for tests/reproduce/harness/test_tables_under_processes.py."""

import contextlib
import importlib
import io
import os

from reproduce.harness import rows, snapshots, targets  # noqa: F401 what a script imports when it runs something
from reproduce.harness.command import command
from reproduce.harness.declare import SMOKE
from reproduce.recipes import recipe
from reproduce.training.methods import METHODS
from reproduce.training.run import Run
from tests.training_worker import FSDP

of_run = Run.micro_batches


def halves(run: Run, prompts, number, which=0):
    """Cut each minibatch in two, one half for each of two processes: so that one process has the same numbers."""
    run.config.micro_batch = len(prompts) // 2
    return of_run(run, prompts, number, which)


def table(name: str, argv: list[str], sharded: bool = False) -> None:
    """Run reproduce/<name>.py at full scale on small random twins, without its progress bars.

    Args:
        sharded: as under `accelerate launch --config_file reproduce/launch/fsdp.yaml`.
    """
    os.environ.update(FSDP if sharded else {})
    Run.micro_batches, targets.AT_ONCE = halves, 1
    script = importlib.import_module(f"reproduce.{name}")
    for method, settings in SMOKE.settings.items():
        if "rounds" in settings:
            settings = settings | {"rollout_batch": settings["pairs"] // 2}
        if method in METHODS and recipe(method, "full").get("dtype", ("float32",))[0] == "float16":
            # Accelerate scales losses on GPUs alone. Not scaled, small gradients vanish, and half of one is not exact.
            settings = settings | {"dtype": "bfloat16", "mixed_precision": "no", "frozen_dtype": None}
        SMOKE.settings[method] = settings
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command(script.TABLE, None, ["--scale", "full", "--models", "tiny", "--threads", "1", *argv])
    except SystemExit as end:
        print(said.getvalue()[-500:] if end.code else "")
        raise
