"""PSO Table 2: human preference tuning of a 4-step Turbo model by offline and online PSO, sampled at 4 steps and at 1.

python reproduce/pso_table2.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/pso_table2.py --dry-run        # rows, recipes with their sources, claims
python reproduce/pso_table2.py --smoke --out runs/smoke
"""

from collections.abc import Sequence

from reproduce.harness.command import command
from reproduce.harness.declare import Prompts, Row, Table, World

TABLE = Table(
    name="pso_table2",
    title="PSO Table 2: human preference tuning of SDXL-Turbo",
    rows={
        "base": Row("base"),
        "offline": Row("offline PSO", "pso-offline"),
        "online": Row("online PSO", "pso-online"),
    },
    prompts={
        "pickapic": Prompts("Pick-a-Pic's test prompts", "test-pickapic", "pickapic-test"),
        "parti": Prompts("Parti-Prompts", "test-heldout", "parti"),
    },
    steps=(4, 1),
    metrics={
        "pickscore": ("PickScore", 2),
        "clipscore": ("CLIP score", 4),
        "imagereward": ("ImageReward", 4),
        "aesthetic": ("Aesthetic", 3),
    },
    beside={
        "accuracy": ("animal accuracy", 3),
        "diversity": ("diversity", 3),
        "sharpness": ("sharpness", 4),
    },
    models={"pocket": "pocket-turbo", "full": "sdxl-turbo"},
    teachers={"pocket": "pocket-teacher", "full": "sdxl"},
)
SMOKE = World(
    pictures=2,
    prompts=2,
    settings={
        "pairs": {"count": 4, "batch": 4, "steps": 2, "tie": 0.0},
        "pso-offline": {"updates": 1, "batch": 2},
        "pso-online": {"rounds": 1, "pairs": 2, "minibatch": 2},
    },
)


def main(argv: Sequence[str] | None = None) -> None:
    command(TABLE, SMOKE, __doc__, argv)


if __name__ == "__main__":
    main()
