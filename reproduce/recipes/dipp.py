"""List the settings of Diff-Instruct++, and of Diff-Instruct, which makes the generator that it starts from.

Each setting: scale -> (value, its source); "both" where pocket and full scale agree.
"""

import math
from pathlib import Path

RECIPES = {
    "diff-instruct": {
        "kernel": {"both": (None, "of the generator: renoise with a time, Euler ancestral with a sigma_init")},
        "steps": {"both": (1, "one-step generators")},
        "reduction": {"both": ("sum", "printed, and published Diff-Instruct code")},
        "seed": {"both": (0, "own choice")},
        "rank": {"both": (64, "own choice, for --training lora: the papers train all weights")},
        "alpha": {"both": (None, "own choice: alpha = rank")},
        "weight_decay": {"both": (0.0, "DI++ App. C.1: Adam")},
        "betas": {"both": ((0.0, 0.999), "DI++ Table 2 and published Diff-Instruct code")},
        "through_clamp": {"both": (True, "own choice: a saturated value has no gradient through the clamp")},
        "model": {"pocket": ("pocket-teacher", "own choice"), "full": ("pixart-alpha", "DI++ App. C.1")},
        "teacher": {"pocket": ("pocket-teacher", "own choice"), "full": ("pixart-alpha", "DI++ App. C.1")},
        "prompts": {"pocket": ("train", "own choice"), "full": ("sam-llava", "DI++ App. C.1")},
        "training": {"pocket": ("full", "own choice"), "full": ("full", "DI++ App. C.1")},
        "mixed_precision": {"full": ("bf16", "DI++ App. C.1")},
        "frozen_dtype": {
            "full": (
                "bfloat16",
                "own choice: gradients come back through reward and decoder, and would need float16's scale; on the "
                "pocket they keep their direction (cosine above 0.999)",
            )
        },
        "updates": {"pocket": (400, "own choice"), "full": (16_000, "DI++ App. C.1")},
        "batch": {
            "pocket": (16, "own tuning at pocket scale: half of the build's, for time"),
            "full": (1024, "DI++ Table 2"),
        },
        "lr": {
            "pocket": (1e-4, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (5e-6, "DI++ Table 2"),
        },
        "assistant_lr": {
            "pocket": (2e-4, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (5e-6, "DI++ Table 2"),
        },
        "assistant_updates": {
            "pocket": (3, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (1, "K_TA is not published; published Diff-Instruct code: 1"),
        },
        "warmup": {"both": (0, "DI++ Alg. 1 has none")},
        "grad_clip": {
            "pocket": (
                1024.0,
                "as the pocket's own distillation (fsalign_lib/pocket/student.py): 1 on means over D = 1024",
            ),
            "full": (math.inf, "not published; published Diff-Instruct code has none"),
        },
        "micro_batch": {"full": (8, "fits H100: plan")},
        "times": {"pocket": ("uniform", "published DMD2 code"), "full": ("log-normal", "DI++ Eqs. C.5, C.6")},
        "time_range": {"pocket": ((20, 980), "published DMD2 code"), "full": ((0, 999), "not used: log-normal times")},
        "log_sigma": {"pocket": ((-2.0, 2.0), "DI++ App. C.1"), "full": ((-2.0, 2.0), "DI++ Eq. C.6")},
        "assistant_weighting": {
            "pocket": ("eps", "published DMD2 code"),
            "full": ("edm", "DI++ Table 2 and Eq. C.7; the text of C.1 has constant 1"),
        },
        "guidance": {
            "pocket": (2.5, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (4.5, "DI++ App. A.2"),
        },
        "guidance_by": {"pocket": ("reference", "DI++ Alg. 2; DI* choice 2"), "full": ("reference", "DI++ Alg. 2")},
        "ema": {
            "pocket": (0.99, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (0.5 ** (1024 / 500_000), "DI++ App. A.2: as EDM, whose half-life is 500,000 samples"),
        },
        "ema_ramp": {"both": (0.05, "DI++ App. A.2: as EDM")},
        "start": {"both": (None, "DI++ App. A.2: from the teacher")},
        "reward": {"both": (None, "none")},
        "reward_scale": {"both": (0.0, "none")},
        "time": {"both": (None, "sigma_init in its place")},
        "sigma_init": {"pocket": (2.5, "DI++ App. C and published Diff-Instruct code"), "full": (2.5, "DI++ Table 2")},
        "weighting": {
            "pocket": ("dmd2", "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": ("denoiser", "DI++ App. C.1: constant 1; Eq. C.8 has inverse-gap"),
        },
    },
    "dipp": {
        "kernel": {"both": (None, "of the generator: renoise with a time, Euler ancestral with a sigma_init")},
        "steps": {"both": (1, "one-step generators")},
        "reduction": {"both": ("sum", "printed, and published Diff-Instruct code")},
        "seed": {"both": (0, "own choice")},
        "rank": {"both": (64, "own choice, for --training lora: the papers train all weights")},
        "alpha": {"both": (None, "own choice: alpha = rank")},
        "weight_decay": {"both": (0.0, "DI++ App. C.1: Adam")},
        "betas": {"both": ((0.0, 0.999), "DI++ Table 2 and published Diff-Instruct code")},
        "through_clamp": {"both": (True, "own choice: a saturated value has no gradient through the clamp")},
        "model": {
            "pocket": ("pocket-one-step", "DI++ App. A.2: pre-trained by Diff-Instruct"),
            "full": ("pixart-alpha", "DI++ App. C.1"),
        },
        "teacher": {"pocket": ("pocket-teacher", "own choice"), "full": ("pixart-alpha", "DI++ App. C.1")},
        "prompts": {"pocket": ("train", "own choice"), "full": ("sam-llava", "DI++ App. C.1")},
        "training": {"pocket": ("full", "own choice"), "full": ("full", "DI++ App. C.1")},
        "mixed_precision": {"full": ("bf16", "DI++ App. C.1")},
        "frozen_dtype": {
            "full": (
                "bfloat16",
                "own choice: gradients come back through reward and decoder, and would need float16's scale; on the "
                "pocket they keep their direction (cosine above 0.999)",
            )
        },
        "updates": {
            "pocket": (
                60,
                "own tuning at pocket scale: of one trial of DI++ at guidance 4.5 and reward 10, whose "
                "scores moved within 20",
            ),
            "full": (4000, "not published; own choice"),
        },
        "batch": {
            "pocket": (16, "own tuning at pocket scale: half of the build's, for time"),
            "full": (256, "DI++ Table 2"),
        },
        "lr": {
            "pocket": (5e-5, "own tuning at pocket scale, the same trial; no other was tried"),
            "full": (5e-6, "DI++ Table 2"),
        },
        "assistant_lr": {
            "pocket": (2e-4, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (5e-6, "DI++ Table 2"),
        },
        "assistant_updates": {
            "pocket": (3, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (1, "K_TA is not published; published Diff-Instruct code: 1"),
        },
        "warmup": {
            "pocket": (30, "own choice: the assistant starts as the teacher, and has to find the student first"),
            "full": (0, "DI++ Alg. 1 has none"),
        },
        "grad_clip": {
            "pocket": (
                1024.0,
                "as the pocket's own distillation (fsalign_lib/pocket/student.py): 1 on means over D = 1024",
            ),
            "full": (math.inf, "not published; published Diff-Instruct code has none"),
        },
        "micro_batch": {"full": (2, "fits H100: plan")},
        "times": {"pocket": ("uniform", "published DMD2 code"), "full": ("log-normal", "DI++ Eqs. C.5, C.6")},
        "time_range": {"pocket": ((20, 980), "published DMD2 code"), "full": ((0, 999), "not used: log-normal times")},
        "log_sigma": {"pocket": ((-2.0, 2.0), "DI++ App. C.1"), "full": ((-2.0, 2.0), "DI++ Eq. C.6")},
        "assistant_weighting": {
            "pocket": ("eps", "published DMD2 code"),
            "full": ("edm", "DI++ Table 2 and Eq. C.7; the text of C.1 has constant 1"),
        },
        "guidance": {
            "pocket": (2.5, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (4.5, "DI++ App. A.2"),
        },
        "guidance_by": {"pocket": ("reference", "DI++ Alg. 2; DI* choice 2"), "full": ("reference", "DI++ Alg. 2")},
        "ema": {"both": (0.95, "DI++ App. A.2")},
        "ema_ramp": {"both": (None, "DI++ App. A.2: a fixed rate")},
        "start": {
            "pocket": (None, "the model itself"),
            "full": (Path("reproduce/runs/diff-instruct-full"), "DI++ App. A.2: pre-trained by Diff-Instruct"),
        },
        "time": {"pocket": (None, "as the model"), "full": (None, "as the start")},
        "sigma_init": {"pocket": (None, "as the model"), "full": (None, "as the start")},
        "weighting": {
            "pocket": ("inverse-gap", "DI++ Eq. C.8"),
            "full": ("denoiser", "DI++ App. C.1: constant 1; Eq. C.8 has inverse-gap"),
        },
        "reward": {"both": ("imagereward", "DI++ App. A.2")},
        "reward_scale": {"pocket": (1.0, "DI++ App. A.2"), "full": (1.0, "DI++ App. A.2: 0, 1 and 10")},
    },
}

# In the place of a distillation's settings at full scale, for --recipe adapters (see harness/variants.py): student and
# assistant are adapters on the teacher's network, of which there is one.
MEMORY = "not the paper's: memory"
ADAPTERS = {
    "training": ("lora", f"{MEMORY}; student, assistant and teacher are one frozen network"),
    "rank": (64, f"{MEMORY}; own choice"),
    "alpha": (None, "own choice: alpha = rank"),
    "dtype": ("bfloat16", f"{MEMORY}; the adapters are in float32"),
    "mixed_precision": ("no", "the network is in bfloat16 itself"),
    "gradient_checkpointing": (True, MEMORY),
    "lr": (5e-5, "own choice: ten times that of all weights, as is usual for adapters; not tried"),
    "assistant_lr": (5e-5, "own choice: ten times that of all weights, as is usual for adapters; not tried"),
}
