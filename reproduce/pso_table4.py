"""PSO Table 4, Figs. 5 and 9, App. B.3: a new creature from five pictures, named [V], and drawn where it never was.

python reproduce/pso_table4.py                  # everything; finished runs are skipped, stopped ones go on
python reproduce/pso_table4.py --dry-run        # rows, recipes with their sources, claims
python reproduce/pso_table4.py --smoke --out runs/smoke

At pocket scale the concept is a panda, its class "bear", its name [V] the rare word "v" (fsalign_lib/pocket/
concept.py says why). All rows learn from the same five pictures, of one prompt; DreamBooth and the last two rows of PSO
also from samples of the class. They are compared on prompts that put the concept into other colours, numbers and
places. Rows of PSO that have the reference model show what leaving it out changes.

At full scale the subject is DreamBooth's dog: which of the 30 subjects the paper averages over is not published.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from reproduce.harness.command import command
from reproduce.harness.declare import Column, Drawing, Own, Prompts, Row, Table
from reproduce.papers import pso

if TYPE_CHECKING:
    from reproduce.harness.rows import Work

POCKET = {"updates": (60, "own tuning at pocket scale"), "batch": (4, "PSO App. B.3")}
FULL = {
    "updates": (1000, "PSO App. B.3; published PSO code: 400, for the dog 600"),
    "lr": (5e-5, "PSO App. B.3; published PSO code: 2e-4"),
    "resize": (True, "own choice: pictures come in any size"),
    "micro_batch": (2, "fits H100: plan"),
}
EQ6 = {
    "lr": (1e-4, "own tuning at pocket scale"),
    "times": ("grid", "PSO Eq. 6: the distilled times n = 2..N"),
    "shared_noise": (True, "published PSO code: eps and t shared in a pair"),
    "beta": (5.0, "PSO App. B.3"),
    "sum_steps": ("inside", "PSO Eq. 6"),
    "prior_weight": (1.0, "DreamBooth: lambda = 1"),
}
NO_PRIOR = {"prior": (None, "PSO Eq. 6 has none"), "lr": (1e-5, "own tuning at pocket scale")}
TRIED = (
    "a run of 60 updates at training seed 7 for each of lr {}; the highest sum of the shares of pictures that show the "
    "concept and that show the context was kept, in 24 pictures of three contexts that the table leaves out"
)
SHOWN = (
    *("a red colored v bear", "a pink colored v bear", "three v bears", "a v bear on the moon", "a v bear in the snow"),
    *("a v bear in the park", "a v bear at night", "two v bears in the ocean"),
)


def draw_concept(work: Work, path: Path) -> None:
    """Draw each row at its first training seed, on the same prompts and noise."""
    import torch

    from fsalign_lib.plotting import contact_sheet, save_pictures
    from reproduce.evaluation.scores import sample
    from reproduce.harness.rows import trained_model

    prompts = work.prompts["contexts"][: len(SHOWN)] if work.world.scale == "full" else list(SHOWN)
    steps, rows = work.table.steps[0], []
    for name, row in work.table.rows.items():
        if row.method is None:
            with work.model.reference():
                rows.append(sample(work.model, None, steps, prompts, [0])[:, 0])
            continue
        how = (row.sampled.kernel, row.sampled.steps) if row.sampled else (None, steps)
        eta = {"eta": row.sampled.eta} if row.sampled else {}
        rows.append(sample(trained_model(work, name, work.table.seeds[0]), *how, prompts, [0], **eta)[:, 0])
    images = torch.stack([row.cpu() for row in rows]).flatten(0, 1)
    heads = [textwrap.fill(prompt, 16) for prompt in prompts]
    titles = [textwrap.fill(row.title, 16) for row in work.table.rows.values()]
    save_pictures(contact_sheet(images, columns=len(prompts), rows=titles, heads=heads), path)


TABLE = Table(
    name="pso_table4",
    title="PSO Table 4: concept customization",
    rows={
        "base": Row("student, untrained"),
        "teacher": Row(
            "DreamBooth, teacher",
            "dreambooth",
            POCKET | {"lr": (3e-4, "own tuning at pocket scale")},
            FULL,
            tuning=TRIED.format("3e-5, 1e-4, 3e-4"),
            sampled=pso.TEACHER,
        ),
        "dreambooth": Row("DreamBooth, student", "dreambooth", POCKET, FULL, tuning=TRIED.format("3e-5, 1e-4, 3e-4")),
        "pso-eq6": Row(
            "offline PSO (Eq. 6)",
            "pso-offline",
            POCKET | EQ6 | NO_PRIOR,
            FULL,
            tuning=TRIED.format("1e-5, 3e-5, 1e-4, 3e-4") + "; none kept the pictures whole",
        ),
        "pso-prior": Row(
            "offline PSO + prior", "pso-offline", POCKET | EQ6, FULL, tuning=TRIED.format("1e-5, 3e-5, 1e-4, 3e-4")
        ),
        "pso": Row(
            "PSO without reference + prior", "pso-customize", POCKET, FULL, tuning=TRIED.format("3e-5, 1e-4, 3e-4")
        ),
    },
    prompts={"contexts": Prompts("the concept in unseen contexts", "concept", "dreambooth-prompts")},
    steps=(4,),
    metrics={"clip-t": Column("CLIP-T", 3), "dino": Column("DINO", 3), "clip-i": Column("CLIP-I", 3)},
    beside={
        "concept": Column("concept recognised", 3),
        "context": Column("context right", 3),
        "sharpness": Column("sharpness", 4),
        "diversity": Column("diversity", 3),
    },
    models={"pocket": "pocket-turbo", "full": "sdxl-turbo"},
    teachers=pso.TEACHER.models,
    pictures={"pocket": 8, "full": 4},
    own=Own(
        targets={"pocket": "panda", "full": "dreambooth"},
        drawings={
            "concept": Drawing(
                "The same unseen contexts and noise in each row of the table, at the first training seed", draw_concept
            )
        },
    ),
    note="CLIP-T is the CLIP score with the concept's name left out of the prompt; CLIP-I and DINO are mean cosines to "
    "the five pictures that were learnt from. At pocket scale DINO is a DINO-like self-supervised encoder "
    "(fsalign_lib/pocket/selfsup.py). The concept is recognised if most of the nearest renders, among as many of each "
    "animal and by the held-out classifier's features, show it. "
    "The teacher is sampled by DDIM with guidance, in 10 steps at pocket scale and 50 at full scale, all others in 4."
    " The untrained student and the rows of offline PSO are ours, not the paper's.",
)

if __name__ == "__main__":
    command(TABLE, __doc__)
