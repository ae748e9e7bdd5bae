"""List the settings of Diff-Instruct*, and of SIM, which is the same without a reward.

Each setting: scale -> (value, its source); "both" where pocket and full scale agree.
"""

import math

RECIPES = {
    "sim": {
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
            "full": ("sdxl-dmd2-1step", "DI* Sec. 5"),
        },
        "teacher": {"pocket": ("pocket-teacher", "own choice"), "full": ("sdxl", "DI* Sec. 5")},
        "prompts": {
            "pocket": ("train", "own choice"),
            "full": ("laion-aesthetics", "DI* Sec. 5: aesthetic score above 6.25"),
        },
        "training": {"pocket": ("full", "own choice"), "full": ("full", "the released weights are a whole UNet")},
        "mixed_precision": {"full": ("bf16", "not published; own choice: as DI++ App. C.1")},
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
            "full": (10_000, "not published; own choice"),
        },
        "batch": {
            "pocket": (16, "own tuning at pocket scale: half of the build's, for time"),
            "full": (256, "not published; DI++ Table 2"),
        },
        "micro_batch": {"full": (1, "fits 8 x H100 by FSDP: plan")},
        "lr": {
            "pocket": (5e-5, "own tuning at pocket scale, the same trial; no other was tried"),
            "full": (5e-6, "not published; DI++ Table 2"),
        },
        "assistant_lr": {
            "pocket": (2e-4, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (5e-6, "not published; DI++ Table 2"),
        },
        "assistant_updates": {
            "pocket": (3, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (1, "not published; own choice"),
        },
        "warmup": {
            "pocket": (30, "own choice: the assistant starts as the teacher, and has to find the student first"),
            "full": (0, "DI* Alg. 1 has none"),
        },
        "grad_clip": {
            "pocket": (
                1024.0,
                "as the pocket's own distillation (fsalign_lib/pocket/student.py): 1 on means over D = 1024",
            ),
            "full": (1.0, "not published; own choice"),
        },
        "times": {"pocket": ("uniform", "published DMD2 code"), "full": ("uniform", "not published; own choice")},
        "time_range": {
            "pocket": ((20, 980), "published DMD2 code"),
            "full": ((20, 980), "not published; published DMD2 code"),
        },
        "log_sigma": {"pocket": ((-2.0, 2.0), "DI++ App. C.1"), "full": ((-2.0, 2.0), "not used: uniform times")},
        "assistant_weighting": {
            "pocket": ("eps", "published DMD2 code"),
            "full": ("eps", "not published; published DMD2 code"),
        },
        "guidance": {
            "pocket": (2.5, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (7.5, "DI* Sec. 5"),
        },
        "guidance_by": {
            "pocket": ("reference", "DI++ Alg. 2; DI* choice 2"),
            "full": ("reference", "DI* Sec. 5: inner guidance, choice 2"),
        },
        "ema": {"pocket": (0.95, "DI++ App. A.2"), "full": (0.95, "not published; DI++ App. A.2")},
        "ema_ramp": {"pocket": (None, "DI++ App. A.2: a fixed rate"), "full": (None, "not published; own choice")},
        "start": {
            "pocket": (None, "the model itself"),
            "full": (None, "DI* Sec. 5: the DMD2 1-step weights themselves"),
        },
        "time": {"pocket": (None, "as the model"), "full": (None, "the model's own, t = 399: published DMD2 code")},
        "sigma_init": {"pocket": (None, "as the model"), "full": (None, "the model has its own time")},
        "weighting": {"both": ("denoiser", "not published; own choice")},
        "distance": {"both": ("pseudo-huber", "DI* Eq. 3.8")},
        # For a denoiser of the latent: c grows with the root of the dimension, as a norm does.
        "c": {
            "pocket": (
                0.00054 * math.sqrt(1024),
                "not published; 0.00054 sqrt(D), that of improved consistency training",
            ),
            "full": (
                0.00054 * math.sqrt(65536),
                "not published; 0.00054 sqrt(D), that of improved consistency training",
            ),
        },
        "reward": {"both": (None, "none")},
        "reward_scale": {"both": (0.0, "none")},
    },
    "distar": {
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
            "full": ("sdxl-dmd2-1step", "DI* Sec. 5"),
        },
        "teacher": {"pocket": ("pocket-teacher", "own choice"), "full": ("sdxl", "DI* Sec. 5")},
        "prompts": {
            "pocket": ("train", "own choice"),
            "full": ("laion-aesthetics", "DI* Sec. 5: aesthetic score above 6.25"),
        },
        "training": {"pocket": ("full", "own choice"), "full": ("full", "the released weights are a whole UNet")},
        "mixed_precision": {"full": ("bf16", "not published; own choice: as DI++ App. C.1")},
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
            "full": (10_000, "not published; own choice"),
        },
        "batch": {
            "pocket": (16, "own tuning at pocket scale: half of the build's, for time"),
            "full": (256, "not published; DI++ Table 2"),
        },
        "micro_batch": {"full": (1, "fits 8 x H100 by FSDP: plan")},
        "gradient_checkpointing": {"full": (True, "fits 8 x H100 by FSDP: plan; 91 GB otherwise")},
        "lr": {
            "pocket": (5e-5, "own tuning at pocket scale, the same trial; no other was tried"),
            "full": (5e-6, "not published; DI++ Table 2"),
        },
        "assistant_lr": {
            "pocket": (2e-4, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (5e-6, "not published; DI++ Table 2"),
        },
        "assistant_updates": {
            "pocket": (3, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (1, "not published; own choice"),
        },
        "warmup": {
            "pocket": (30, "own choice: the assistant starts as the teacher, and has to find the student first"),
            "full": (0, "DI* Alg. 1 has none"),
        },
        "grad_clip": {
            "pocket": (
                1024.0,
                "as the pocket's own distillation (fsalign_lib/pocket/student.py): 1 on means over D = 1024",
            ),
            "full": (1.0, "not published; own choice"),
        },
        "times": {"pocket": ("uniform", "published DMD2 code"), "full": ("uniform", "not published; own choice")},
        "time_range": {
            "pocket": ((20, 980), "published DMD2 code"),
            "full": ((20, 980), "not published; published DMD2 code"),
        },
        "log_sigma": {"pocket": ((-2.0, 2.0), "DI++ App. C.1"), "full": ((-2.0, 2.0), "not used: uniform times")},
        "assistant_weighting": {
            "pocket": ("eps", "published DMD2 code"),
            "full": ("eps", "not published; published DMD2 code"),
        },
        "guidance": {
            "pocket": (2.5, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
            "full": (7.5, "DI* Sec. 5"),
        },
        "guidance_by": {
            "pocket": ("reference", "DI++ Alg. 2; DI* choice 2"),
            "full": ("reference", "DI* Sec. 5: inner guidance, choice 2"),
        },
        "ema": {"pocket": (0.95, "DI++ App. A.2"), "full": (0.95, "not published; DI++ App. A.2")},
        "ema_ramp": {"pocket": (None, "DI++ App. A.2: a fixed rate"), "full": (None, "not published; own choice")},
        "start": {
            "pocket": (None, "the model itself"),
            "full": (None, "DI* Sec. 5: the DMD2 1-step weights themselves"),
        },
        "time": {"pocket": (None, "as the model"), "full": (None, "the model's own, t = 399: published DMD2 code")},
        "sigma_init": {"pocket": (None, "as the model"), "full": (None, "the model has its own time")},
        "weighting": {"both": ("denoiser", "not published; own choice")},
        "distance": {"both": ("pseudo-huber", "DI* Eq. 3.8")},
        # For a denoiser of the latent: c grows with the root of the dimension, as a norm does.
        "c": {
            "pocket": (
                0.00054 * math.sqrt(1024),
                "not published; 0.00054 sqrt(D), that of improved consistency training",
            ),
            "full": (
                0.00054 * math.sqrt(65536),
                "not published; 0.00054 sqrt(D), that of improved consistency training",
            ),
        },
        "reward": {"both": ("pickscore", "DI* Sec. 5")},
        "reward_scale": {
            "pocket": (100.0, "DI* Sec. 5"),
            "full": (100.0, "DI* Sec. 5: 0, 1, 10, 100; that it multiplies the cosine is inferred"),
        },
    },
}
