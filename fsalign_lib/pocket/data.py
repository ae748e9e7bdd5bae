"""Draw the pictures that every stage trains on, once, and keep them on disk."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from fsalign_lib.pocket.captions import Fact
from fsalign_lib.pocket.render import scenes

TRAIN, TEST = 30_000, 2_000


def load(folder: Path, seed: int, count: int = TRAIN) -> tuple[list[Fact], Tensor]:
    """Load facts and uint8 pictures; draw them again from the seed if the file is not there."""
    import random

    from fsalign_lib.pocket.captions import random_fact

    path = folder / f"scenes-{seed}-{count}.safetensors"
    if not path.exists():
        facts, pictures = scenes(count, seed)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"pictures": pictures}, path)
        return facts, pictures
    rng = random.Random(seed)
    return [random_fact(rng) for _ in range(count)], load_file(path)["pictures"]
