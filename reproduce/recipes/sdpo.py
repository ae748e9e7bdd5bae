"""List the settings of SDPO, and of DDPO, REBEL and D3PO, with which its paper compares it.

Each setting: scale -> (value, its source); "both" where pocket and full scale agree.
"""

RECIPES = {
    "sdpo": {
        "model": {"pocket": ("pocket-turbo", "own choice"), "full": ("sd-turbo", "SDPO Sec. 4.1")},
        "kernel": {"both": ("ddim", "SDPO Sec. 4.1; eta = 1: published SDPO code")},
        "steps": {"pocket": (20, "own choice: 50 in SDPO Table 2"), "full": (50, "SDPO Table 2")},
        "training": {"both": ("lora", "SDPO Sec. 4.1")},
        "rank": {"both": (4, "published SDPO code")},
        "alpha": {"both": (None, "published SDPO code: alpha = rank")},
        "weight_decay": {"both": (1e-4, "SDPO Table 2")},
        "optimizer": {"both": ("adamw", "SDPO Table 2")},
        "betas": {"both": ((0.9, 0.999), "SDPO Table 2")},
        "grad_clip": {"both": (1.0, "SDPO Table 2")},
        "reduction": {"both": ("mean", "published SDPO code; the paper prints sums")},
        "seed": {"pocket": (0, "own choice"), "full": (42, "SDPO Table 2")},
        "reward": {"both": ("aesthetic", "SDPO Sec. 4.3")},
        "prompts": {
            "pocket": ("animals", "SDPO App. A.1: 45 animals"),
            "full": ("sdpo-animals", "SDPO App. A.1: 45 animals"),
        },
        "rounds": {
            "pocket": (32, "own tuning at pocket scale"),
            "full": (100, "published SDPO code: 100 for Aesthetic, 200 for the other rewards"),
        },
        "pairs": {
            "pocket": (16, "own tuning at pocket scale"),
            "full": (128, "SDPO Table 2: 4 batches of 8 on 4 GPUs"),
        },
        "minibatch": {
            "pocket": (16, "published SDPO code: an update over the round's pairs, for ImageReward and HPS"),
            "full": (64, "SDPO Table 2, Aesthetic: 2 x 8 on 4 GPUs"),
        },
        "epochs": {"both": (1, "published SDPO code")},
        "micro_batch": {"pocket": (32, "own choice"), "full": (8, "fits H100: plan")},
        "rollout_batch": {"full": (32, "fits H100: plan")},
        "save_every": {"pocket": (8, "own choice"), "full": (10, "own choice; published code: each round")},
        # States and log-probs are float32. All of the rounding of float16 moves the pocket's mean log-probs by at most
        # 2.9e-4, within its clip of 1.6e-3, and bfloat16's by 8.7e-3 (DDIM, 20 and 50 steps); SD-Turbo has 16 times
        # the dimensions, so a quarter of that. Between rollout and update only a part of it differs; check_ratio looks.
        "dtype": {
            "full": ("float16", "published SDPO code: the code has float16; bfloat16 moves log-probs beyond the clip")
        },
        "mixed_precision": {"full": ("fp16", "published SDPO code")},
        "frozen_dtype": {"full": ("float16", "own choice: scores as near as rewards.HALF_AGREES says")},
        "buffer": {"both": (32, "SDPO Table 2")},
        "advantage_clip": {"both": (5.0, "published SDPO code and published DDPO code; not in the papers")},
        "min_count": {
            "pocket": (
                4,
                "own choice: 16 in SDPO Table 2, which 45 prompts reach in 3 of its rounds and in 23 of these",
            ),
            "full": (16, "SDPO Table 2"),
        },
        # 1e-4 of SD-Turbo's 16,384 dimensions bounds a step's ratio by e^1.6; the pocket's latents have 1,024.
        "clip": {
            "pocket": (1.6e-3, "own choice: the published 1e-4 in nats a step, on a sixteenth of the dimensions"),
            "full": (1e-4, "SDPO Table 2 and published DDPO code"),
        },
        "shared_start": {"both": (True, "SDPO Fig. 2: one prompt and one x_T")},
        "updates": {"both": ("shuffled", "SDPO Eq. 16")},
        "queries": {"both": ("adaptive", "SDPO Eqs. 9-11")},
        "gamma": {"both": (0.99, "SDPO Table 2")},
        "normalize": {"both": ("step-prompt", "SDPO Sec. 3.3")},
        "eta": {"both": (1.0, "SDPO Table 2")},
        "decay": {"both": (0.99, "SDPO Table 2")},
        "lr": {
            "pocket": (
                1e-3,
                "own tuning at pocket scale: of 1e-3, 2e-3, 3e-3 on Aesthetic, the largest that kept the "
                "animals recognised",
            ),
            "full": (1e-4, "SDPO Table 2, Aesthetic; 5e-5 for ImageReward and HPS, 6e-5 for PickScore"),
        },
    },
    "ddpo": {
        "model": {"pocket": ("pocket-turbo", "own choice"), "full": ("sd-turbo", "SDPO Sec. 4.1")},
        "kernel": {"both": ("ddim", "SDPO Sec. 4.1; eta = 1: published SDPO code")},
        "steps": {"pocket": (20, "own choice: 50 in SDPO Table 2"), "full": (50, "SDPO Table 2")},
        "training": {"both": ("lora", "SDPO Sec. 4.1")},
        "rank": {"both": (4, "published SDPO code")},
        "alpha": {"both": (None, "published SDPO code: alpha = rank")},
        "weight_decay": {"both": (1e-4, "SDPO Table 2")},
        "optimizer": {"both": ("adamw", "SDPO Table 2")},
        "betas": {"both": ((0.9, 0.999), "SDPO Table 2")},
        "grad_clip": {"both": (1.0, "SDPO Table 2")},
        "reduction": {"both": ("mean", "published SDPO code; the paper prints sums")},
        "seed": {"pocket": (0, "own choice"), "full": (42, "SDPO Table 2")},
        "reward": {"both": ("aesthetic", "SDPO Sec. 4.3")},
        "prompts": {
            "pocket": ("animals", "SDPO App. A.1: 45 animals"),
            "full": ("sdpo-animals", "SDPO App. A.1: 45 animals"),
        },
        "rounds": {
            "pocket": (32, "own tuning at pocket scale"),
            "full": (100, "published SDPO code: 100 for Aesthetic, 200 for the other rewards"),
        },
        "pairs": {
            "pocket": (16, "own tuning at pocket scale"),
            "full": (128, "SDPO Table 2: 4 batches of 8 on 4 GPUs"),
        },
        "minibatch": {
            "pocket": (16, "published SDPO code: an update over the round's pairs, for ImageReward and HPS"),
            "full": (
                64,
                "not published of the baselines; SDPO Table 2, Aesthetic: 2 x 8 on 4 GPUs, here for all rewards",
            ),
        },
        "epochs": {"both": (1, "published SDPO code")},
        "micro_batch": {"pocket": (32, "own choice"), "full": (8, "fits H100: plan")},
        "rollout_batch": {"full": (32, "fits H100: plan")},
        "save_every": {"pocket": (8, "own choice"), "full": (10, "own choice; published code: each round")},
        "dtype": {
            "full": ("float16", "published SDPO code: the code has float16; bfloat16 moves log-probs beyond the clip")
        },
        "mixed_precision": {"full": ("fp16", "published SDPO code")},
        "frozen_dtype": {"full": ("float16", "own choice: scores as near as rewards.HALF_AGREES says")},
        "buffer": {"both": (32, "SDPO Table 2")},
        "advantage_clip": {"both": (5.0, "published SDPO code and published DDPO code; not in the papers")},
        "min_count": {
            "pocket": (
                4,
                "own choice: 16 in SDPO Table 2, which 45 prompts reach in 3 of its rounds and in 23 of these",
            ),
            "full": (16, "SDPO Table 2"),
        },
        # 1e-4 of SD-Turbo's 16,384 dimensions bounds a step's ratio by e^1.6; the pocket's latents have 1,024.
        "clip": {
            "pocket": (1.6e-3, "own choice: the published 1e-4 in nats a step, on a sixteenth of the dimensions"),
            "full": (1e-4, "SDPO Table 2 and published DDPO code"),
        },
        "normalize": {"both": ("prompt", "published DDPO code")},
        "lr": {
            "pocket": (
                5e-3,
                "own tuning at pocket scale: of 3e-3, 5e-3, 1e-2, 3e-2 on Aesthetic, the largest that kept "
                "the animals recognised",
            ),
            "full": (3e-4, "published DDPO code"),
        },
    },
    "rebel": {
        "model": {"pocket": ("pocket-turbo", "own choice"), "full": ("sd-turbo", "SDPO Sec. 4.1")},
        "kernel": {"both": ("ddim", "SDPO Sec. 4.1; eta = 1: published SDPO code")},
        "steps": {"pocket": (20, "own choice: 50 in SDPO Table 2"), "full": (50, "SDPO Table 2")},
        "training": {"both": ("lora", "SDPO Sec. 4.1")},
        "rank": {"both": (4, "published SDPO code")},
        "alpha": {"both": (None, "published SDPO code: alpha = rank")},
        "weight_decay": {"both": (1e-4, "SDPO Table 2")},
        "optimizer": {"both": ("adamw", "SDPO Table 2")},
        "betas": {"both": ((0.9, 0.999), "SDPO Table 2")},
        "grad_clip": {"both": (1.0, "SDPO Table 2")},
        "reduction": {"both": ("mean", "published SDPO code; the paper prints sums")},
        "seed": {"pocket": (0, "own choice"), "full": (42, "SDPO Table 2")},
        "reward": {"both": ("aesthetic", "SDPO Sec. 4.3")},
        "prompts": {
            "pocket": ("animals", "SDPO App. A.1: 45 animals"),
            "full": ("sdpo-animals", "SDPO App. A.1: 45 animals"),
        },
        "rounds": {
            "pocket": (32, "own tuning at pocket scale"),
            "full": (100, "published SDPO code: 100 for Aesthetic, 200 for the other rewards"),
        },
        "pairs": {
            "pocket": (16, "own tuning at pocket scale"),
            "full": (128, "SDPO Table 2: 4 batches of 8 on 4 GPUs"),
        },
        "minibatch": {
            "pocket": (16, "published SDPO code: an update over the round's pairs, for ImageReward and HPS"),
            "full": (
                64,
                "not published of the baselines; SDPO Table 2, Aesthetic: 2 x 8 on 4 GPUs, here for all rewards",
            ),
        },
        "epochs": {"both": (1, "published SDPO code")},
        "micro_batch": {
            "pocket": (32, "own choice"),
            "full": (1, "fits H100: plan; a row is a whole pair, 100 pictures at T = 50"),
        },
        "rollout_batch": {"full": (32, "fits H100: plan")},
        "save_every": {"pocket": (8, "own choice"), "full": (10, "own choice; published code: each round")},
        "dtype": {"full": ("float16", "published SDPO code: the code has float16")},
        "mixed_precision": {"full": ("fp16", "published SDPO code")},
        "frozen_dtype": {"full": ("float16", "own choice: scores as near as rewards.HALF_AGREES says")},
        "gradient_checkpointing": {"full": (True, "fits H100: plan; a pair takes 166 GB otherwise")},
        "buffer": {"both": (32, "SDPO Table 2")},
        "advantage_clip": {"both": (5.0, "published SDPO code and published DDPO code; not in the papers")},
        "min_count": {
            "pocket": (
                4,
                "own choice: 16 in SDPO Table 2, which 45 prompts reach in 3 of its rounds and in 23 of these",
            ),
            "full": (16, "SDPO Table 2"),
        },
        "shared_start": {
            "pocket": (
                True,
                "own choice: the normaliser of REBEL's optimum cancels in pairs of one start alone; paper: two",
            ),
            "full": (False, "SDPO Sec. 2.2: two independent trajectories; published RLCM code: a start each"),
        },
        "normalize": {"both": ("prompt", "SDPO App. A.1: running statistics as DDPO")},
        "sum_steps": {"both": ("inside", "REBEL; SDPO Eq. 7 prints it outside")},
        "eta": {"both": (1.0, "own choice")},
        "lr": {
            "pocket": (
                5e-3,
                "own tuning at pocket scale: of 3e-3, 5e-3, 1e-2, 3e-2 on Aesthetic, the largest that kept "
                "the animals recognised",
            ),
            "full": (3e-4, "SDPO App. A.1: as DDPO"),
        },
    },
    "d3po": {
        "model": {"pocket": ("pocket-turbo", "own choice"), "full": ("sd-turbo", "SDPO Sec. 4.1")},
        "kernel": {"both": ("ddim", "SDPO Sec. 4.1; eta = 1: published SDPO code")},
        "steps": {"pocket": (20, "own choice: 50 in SDPO Table 2"), "full": (50, "SDPO Table 2")},
        "training": {"both": ("lora", "SDPO Sec. 4.1")},
        "rank": {"both": (4, "published SDPO code")},
        "alpha": {"both": (None, "published SDPO code: alpha = rank")},
        "weight_decay": {"both": (1e-4, "SDPO Table 2")},
        "optimizer": {"both": ("adamw", "SDPO Table 2")},
        "betas": {"both": ((0.9, 0.999), "SDPO Table 2")},
        "grad_clip": {"both": (1.0, "SDPO Table 2")},
        "reduction": {"both": ("mean", "published SDPO code; the paper prints sums")},
        "seed": {"pocket": (0, "own choice"), "full": (42, "SDPO Table 2")},
        "reward": {"both": ("aesthetic", "SDPO Sec. 4.3")},
        "prompts": {
            "pocket": ("animals", "SDPO App. A.1: 45 animals"),
            "full": ("sdpo-animals", "SDPO App. A.1: 45 animals"),
        },
        "rounds": {
            "pocket": (32, "own tuning at pocket scale"),
            "full": (100, "published SDPO code: 100 for Aesthetic, 200 for the other rewards"),
        },
        "pairs": {
            "pocket": (16, "own tuning at pocket scale"),
            "full": (128, "SDPO Table 2: 4 batches of 8 on 4 GPUs"),
        },
        "minibatch": {
            "pocket": (16, "published SDPO code: an update over the round's pairs, for ImageReward and HPS"),
            "full": (
                64,
                "not published of the baselines; SDPO Table 2, Aesthetic: 2 x 8 on 4 GPUs, here for all rewards",
            ),
        },
        "epochs": {"both": (1, "published SDPO code")},
        "micro_batch": {"pocket": (32, "own choice"), "full": (8, "fits H100: plan")},
        "rollout_batch": {"full": (32, "fits H100: plan")},
        "save_every": {"pocket": (8, "own choice"), "full": (10, "own choice; published code: each round")},
        "dtype": {"full": ("float16", "published SDPO code: the code has float16")},
        "mixed_precision": {"full": ("fp16", "published SDPO code")},
        "frozen_dtype": {"full": ("float16", "own choice: scores as near as rewards.HALF_AGREES says")},
        "shared_start": {"both": (True, "published D3PO code")},
        "beta": {"both": (0.1, "published D3PO code")},
        "clamp": {"both": (0.1, "published D3PO code")},
        "lr": {
            "pocket": (
                5e-3,
                "own tuning at pocket scale: of 3e-3, 5e-3, 1e-2, 3e-2 on Aesthetic, the largest that kept "
                "the animals recognised",
            ),
            "full": (3e-4, "SDPO App. A.1: as DDPO"),
        },
    },
}
