"""Take the one-step generator of a finished Diff-Instruct run into the shipped weights.

python reproduce/train_distill.py --method diff-instruct --out build/pocket/one-step --threads 1
python -m fsalign_lib.pocket.one_step --run build/pocket/one-step

The run starts from the teacher's own weights: 400 updates of about 1.7 s on one core. The generator is sampled at one
time alone, which the preset `pocket-one-step` names.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from fsalign_lib.json_files import OPTIONAL, read_json
from fsalign_lib.models import load as models
from fsalign_lib.models.presets import PRESETS
from fsalign_lib.pocket.build import save
from fsalign_lib.pocket.refusals import refusals
from fsalign_lib.pocket.weights import WEIGHTS

KEPT = ("config", "commit", "versions", "device", "threads", "wall_seconds", "peak_memory_mb")
OF_FOLDERS = ("out", "resume", "save_every", "snapshot_every", "tracker")  # settings that change no number


@dataclass
class OneStep:
    """Write the generator, and what its training took, beside the pocket's other weights."""

    run: Path = Path("build/pocket/one-step")
    """Folder of the finished run."""
    out: Path = WEIGHTS / "one-step"


def run(config: OneStep) -> None:
    """Copy the generator into the shipped weights.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: it is damaged, of another model, or sampled otherwise than the preset says.
    """
    result = config.run / "result.json"
    if not result.exists():
        raise FileNotFoundError(f"no {result}: finish the run that this module's first line names")
    about = read_json(result, config=dict, **dict.fromkeys(KEPT[1:4], (str, dict, OPTIONAL)))
    model = models.load("pocket-teacher")
    model.load_adapter(max((config.run / "checkpoints").iterdir()))
    preset = PRESETS["pocket-one-step"]
    if (model.kernel, model.timesteps) != (preset.kernel, preset.timesteps):
        raise ValueError(
            f"{config.run} is sampled by {model.kernel} at {model.timesteps}: expected the preset's {preset.kernel} at "
            f"{preset.timesteps}"
        )
    save(model.unet, config.out / "unet")
    shutil.copytree(WEIGHTS / "teacher" / "scheduler", config.out / "scheduler", dirs_exist_ok=True)
    about["config"] = {name: value for name, value in about["config"].items() if name not in OF_FOLDERS}
    (config.out / "training.json").write_text(json.dumps({name: about[name] for name in KEPT}, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    config = tyro.cli(OneStep, description=__doc__, args=argv)
    with refusals():  # it copies, and computes nothing
        run(config)


if __name__ == "__main__":
    main()
