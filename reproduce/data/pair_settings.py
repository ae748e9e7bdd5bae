"""Hold the settings with which pairs are sampled, apart from the work, so that they are read without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(kw_only=True)
class PairConfig:
    """Sample pairs from a teacher at mixed guidance, let the simulated judge choose, remove ties."""

    out: Path = Path("reproduce/runs/pairs")
    model: str = "pocket-teacher"
    prompts: str = "train"
    taste: str = "pickscore"
    """Which kind of annotator judges (see fsalign_lib.pocket.judge)."""
    count: int = 640
    """Pairs sampled; the ties among them are dropped."""
    batch: int = 32
    steps: int = 10
    """DDIM steps."""
    guidance: tuple[float, float] = (1.0, 4.0)
    """Each side of each batch draws its guidance weight uniformly from here."""
    tie: float = 0.1
    """Utilities closer than this are a tie; this makes about as many ties as the 12% of Pick-a-Pic."""
    seed: int = 0
    threads: int | None = None


@dataclass(kw_only=True)
class FullPairConfig:
    """Sample pairs from a full-size teacher at mixed guidance, let a reward choose, remove ties."""

    out: Path = Path("reproduce/runs/pairs-full")
    model: str = "sdxl"
    reward: str = "pickscore"
    """Reward that ranks the pairs (see fsalign_lib.rewards)."""
    prompts: str = "pickapic-train"
    """A prompt set (see reproduce/DATA.md), or a file."""
    data: Path | None = None
    """Folder of the data sets; None: FSALIGN_DATA."""
    count: int = 58_960
    """Pairs sampled; as many as Pick-a-Pic has prompts [PSO Sec. 3.1]."""
    batch: int = 4
    steps: int = 25
    """DDIM steps."""
    guidance: tuple[float, float] = (1.0, 9.0)
    """Each side of each batch draws its guidance weight uniformly from here: own choice, around SDXL's default 5."""
    tie: float = 0.001
    """Rewards no further apart than this are a tie: own choice, for PickScore's cosine. Other rewards, other scales."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float16"
    """dtype of the teacher."""
    threads: int | None = None


# Where each setting comes from, at each scale.
SOURCES = {
    "pocket": {
        "model": "own choice: the teacher of the rows' model",
        "prompts": "own choice",
        "taste": "own choice: PickScore's, as PSO Sec. 3.1 ranks online pairs",
        "count": "own choice",
        "batch": "own choice",
        "steps": "own choice",
        "guidance": "own choice: pairs differ in it",
        "tie": "PSO Sec. 3.1: about 12% of Pick-a-Pic's pairs are ties, and left out",
        "seed": "own choice",
    },
    "full": {
        "model": "PSO App. B.1: Pick-a-Pic's are SDXL-beta's and Dreamlike's",
        "reward": "own choice: people rank the paper's; which reward is a metric of the table, too",
        "prompts": "PSO App. B.1: Pick-a-Pic v2",
        "count": "PSO Sec. 3.1: 58,960 prompts; the paper's pairs are 851,293",
        "batch": "own choice",
        "steps": "PSO Sec. 3.1: 25 steps of SDXL",
        "guidance": "own choice: around SDXL's default 5",
        "tie": "own choice, for PickScore's cosine",
        "seed": "own choice",
        "dtype": "own choice: near t = 999 it loses a tenth of what bfloat16 does",
    },
}
