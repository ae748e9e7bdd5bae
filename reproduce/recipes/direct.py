"""List the settings of what no paper here has, and the arena compares with: the reward's own gradient.

Each setting: scale -> (value, its source); "both" where pocket and full scale agree.
"""

RECIPES = {
    # DRaFT (arXiv 2309.17400) with K = 1: the gradient passes the last step alone. What is not its idea is as online
    # PSO's, so that the two can be held to each other.
    "draft": {
        "kernel": {"both": (None, "the model's own sampler")},
        "steps": {"both": (4, "as online PSO")},
        "reduction": {"both": ("mean", "as online PSO; no log-prob enters the loss")},
        "grad_clip": {"both": (1.0, "as online PSO")},
        "seed": {"both": (0, "own choice")},
        "model": {"pocket": ("pocket-turbo", "own choice"), "full": ("sdxl-turbo", "as online PSO")},
        "dtype": {"full": ("float16", "as online PSO")},
        "mixed_precision": {"full": ("fp16", "as online PSO")},
        "frozen_dtype": {"full": ("float16", "own choice: scores as near as rewards.HALF_AGREES says")},
        "micro_batch": {"full": (1, "fits H100: plan; two pictures are decoded with their graph")},
        "rollout_batch": {"full": (16, "fits H100: plan")},
        "gradient_checkpointing": {"full": (True, "DRaFT Sec. 3: gradient checkpointing")},
        "training": {"pocket": ("full", "as online PSO"), "full": ("lora", "DRaFT Sec. 3: LoRA")},
        "rank": {"both": (16, "as online PSO")},
        "alpha": {"both": (None, "as online PSO: alpha = rank")},
        "lr": {"pocket": (1e-5, "as online PSO"), "full": (1e-5, "as online PSO")},
        "weight_decay": {"both": (1e-6, "as online PSO")},
        "optimizer": {"full": ("adamw", "as online PSO")},
        "reward": {"both": ("pickscore", "as online PSO")},
        "prompts": {"pocket": ("train", "as online PSO"), "full": ("pickapic-4k", "as online PSO")},
        "rounds": {"pocket": (60, "as online PSO"), "full": (5000, "as online PSO")},
        "pairs": {"pocket": (32, "as online PSO"), "full": (128, "as online PSO")},
        "minibatch": {"both": (32, "as online PSO")},
        "epochs": {"both": (1, "as online PSO")},
    },
}
