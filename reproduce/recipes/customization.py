"""The fourth part of the registry (see recipes.py): methods that teach a model new pictures, by `train_offline.py`.

Mixed PSO for a style, against plain fine-tuning; DreamBooth and PSO for a concept. Losses are recipes.py's.
"""

from pathlib import Path

STYLE_PAPER, CONCEPT_PAPER = "PSO App. B.2", "PSO App. B.3"
CODE, OURS = "published PSO code", "own choice"
TRIAL = "own tuning at pocket scale"
COMMON = {
    "kernel": (None, "the model's own sampler"),
    "steps": (4, "PSO App. B.1: N = 4"),
    "rank": (16, STYLE_PAPER + ", B.3"),
    "alpha": (None, CODE + ": alpha = rank"),
    "weight_decay": (1e-6, CODE),
    "grad_clip": (1.0, CODE),
    "reduction": ("mean", CODE + "; the paper prints sums"),
    "seed": (0, OURS),
}
POCKET = COMMON | {"model": ("pocket-turbo", OURS), "training": ("full", "as the other rows at pocket scale")}
FULL = COMMON | {
    "model": ("sdxl-turbo", STYLE_PAPER + ", B.3"),
    "dtype": ("bfloat16", OURS + ": of the frozen networks; " + CODE + ": float16"),
    "gradient_checkpointing": (True, OURS + ": memory for time"),
    "training": ("lora", STYLE_PAPER + ", B.3"),
    "resize": (True, OURS + ": pictures come in any size"),
}
GRID = {"times": ("grid", "PSO Alg. 1: the distilled times n = 2..N")}
NOISE = {"times": ("uniform", "the diffusion loss: t ~ U{0..999}")}
OWN_NOISE = {"shared_noise": (False, "no pairs of pictures to share it")}

STYLE_POCKET = {
    "pairs": (Path("targets"), "the table draws them: scenes in the style"),
    "updates": (100, TRIAL),
    "batch": (8, STYLE_PAPER),
}
STYLE_FULL = {
    "pairs": (Path("pokemon"), STYLE_PAPER + ": Pokemon pictures with captions; taken down, so bring a folder"),
    "updates": (3000, STYLE_PAPER),
    "batch": (8, STYLE_PAPER),
    "lr": (1e-5, STYLE_PAPER),
}
MIXED = GRID | OWN_NOISE | {"sum_steps": ("inside", "PSO Eq. 5"), "eq5_weights": ("printed", "PSO Eq. 5: 1")}
CONCEPT_POCKET = {
    "pairs": (Path("targets"), "the table draws them: five pictures of the concept"),
    "updates": (60, TRIAL),
    "batch": (4, CONCEPT_PAPER),
}
CONCEPT_FULL = {
    "pairs": (Path("dreambooth"), CONCEPT_PAPER + ": DreamBooth's data set"),
    "updates": (1000, CONCEPT_PAPER + "; " + CODE + ": 400"),
    "batch": (4, CONCEPT_PAPER),
    "lr": (5e-5, CONCEPT_PAPER + "; " + CODE + ": 2e-4"),
}
PRIOR = {
    "prior": (Path("prior"), "DreamBooth: samples of the model itself, of the class"),
    "prior_weight": (1.0, "DreamBooth: lambda = 1; " + CODE + ": 0.5, on the negatives"),
}
DREAMBOOTH = NOISE | OWN_NOISE | PRIOR
PAIRED = GRID | {"shared_noise": (True, CODE + ": eps and t shared in a pair"), "beta": (5.0, CONCEPT_PAPER)}

CUSTOM_RECIPES = {
    ("pso", "pocket"): POCKET | STYLE_POCKET | MIXED | {"lr": (3e-5, TRIAL), "beta": (50.0, STYLE_PAPER)},
    ("pso", "full"): FULL | STYLE_FULL | MIXED | {"beta": (50.0, STYLE_PAPER)},
    ("dreambooth", "pocket"): POCKET | CONCEPT_POCKET | DREAMBOOTH | {"lr": (1e-4, TRIAL)},
    ("dreambooth", "full"): FULL | CONCEPT_FULL | DREAMBOOTH,
    ("pso-customize", "pocket"): POCKET | CONCEPT_POCKET | PAIRED | PRIOR | {"lr": (1e-4, TRIAL)},
    ("pso-customize", "full"): FULL | CONCEPT_FULL | PAIRED | PRIOR,
}
