"""Hold the settings at full scale to what the papers print, place by place, typed from the papers."""

import importlib

import pytest

from reproduce.data.prompt_sets import SETS
from reproduce.harness.command import at_scale
from reproduce.harness.dry_run import own_settings, seeds
from reproduce.recipes import recipe

B1, B2, B3, EQ6, EQ7 = "PSO App. B.1", "PSO App. B.2", "PSO App. B.3", "PSO Eq. 6", "PSO Eq. 7"
TABLE2, SETUP = "SDPO Table 2", "SDPO Sec. 4.1"
A2, C1, DIPP2 = "DI++ App. A.2", "DI++ App. C.1", "DI++ Table 2"
DISTAR5 = "DI* Sec. 5"
# place in the paper, what it prints, table, row, setting, value
PRINTED = [
    (B1, "LoRA rank r = 16 for SDXL-DMD2", "pso_table1", "online", "rank", 16),
    (B1, "LoRA rank r = 16 for SDXL-DMD2", "pso_table1", "offline", "rank", 16),
    (B1, "LoRA rank r = 16 for [...] SDXL-Turbo", "pso_table2", "online", "rank", 16),
    (B1, "LoRA rank r = 16 for [...] SDXL-Turbo", "pso_table2", "offline", "rank", 16),
    (B1, "r = 32 for SDXL-LCM", "pso_table3", "online", "rank", 32),
    (B1, "r = 32 for SDXL-LCM", "pso_table3", "offline", "rank", 32),
    (
        B1,
        "We use LoRA [...] to fine-tune all the distilled diffusion models",
        "pso_table2",
        "online",
        "training",
        "lora",
    ),
    (B1, "training distilled steps N = 4", "pso_table1", "online", "steps", 4),
    (B1, "training distilled steps N = 4", "pso_table2", "online", "steps", 4),
    (B1, "training distilled steps N = 4", "pso_table3", "offline", "steps", 4),
    (B1, "beta = 50 for Offline preference tuning", "pso_table1", "offline", "beta", 50.0),
    (B1, "beta = 50 for Offline preference tuning", "pso_table2", "offline", "beta", 50.0),
    (B1, "beta = 5 for Online preference tuning", "pso_table1", "online", "beta", 5.0),
    (B1, "beta = 5 for Online preference tuning", "pso_ablations", "paper", "beta", 5.0),
    (B1, "batch size to 64 [...] for offline experiments", "pso_table1", "offline", "batch", 64),
    (B1, "the learning rate to 1e-5 for offline experiments", "pso_table1", "offline", "lr", 1e-5),
    (B1, "train for 5k steps", "pso_table1", "offline", "updates", 5000),
    (B1, "we first sample 128 pairs of images", "pso_table2", "online", "pairs", 128),
    (B1, "labeled as reference and target with PickScore", "pso_table2", "online", "reward", "pickscore"),
    (B1, "online PSO on the sampled pairs for 1 epoch", "pso_table2", "online", "epochs", 1),
    (B1, "with a batch size of 32", "pso_table2", "online", "minibatch", 32),
    (B1, "and learning rate 1e-5", "pso_table2", "online", "lr", 1e-5),
    (B1, "train for 20k steps: 128 / 32 of them a round", "pso_table2", "online", "rounds", 5000),
    (B1, "a subset of 4K prompts from Pick-a-Pic training prompts", "pso_table2", "online", "prompts", "pickapic-4k"),
    (EQ6, "log sigmoid( -beta sum_n ( ... ) )", "pso_table2", "offline", "sum_steps", "inside"),
    (EQ7, "log sigmoid( -beta / (2 sigma^2) sum_n ( ... ) )", "pso_table2", "online", "sum_steps", "inside"),
    (EQ7, "||x - mu||^2: a sum over dimensions", "pso_table2", "online", "reduction", "sum"),
    (EQ7, "||x - mu||^2: a sum over dimensions", "pso_ablations", "paper", "reduction", "sum"),
    (EQ7, "no clamp", "pso_table2", "online", "clamp", None),
    ("PSO Alg. 3", "forward trajectories at the times of the N steps", "pso_table2", "offline", "times", "grid"),
    ("PSO Table 1", "SDXL-DMD2", "pso_table1", "online", "model", "sdxl-dmd2"),
    ("PSO Table 2", "SDXL-Turbo", "pso_table2", "online", "model", "sdxl-turbo"),
    ("PSO Table 3", "SDXL-LCM", "pso_table3", "online", "model", "sdxl-lcm"),
    (B2, "We adopt SDXL-Turbo", "pso_style", "pso", "model", "sdxl-turbo"),
    (B2, "LoRA of rank r = 16", "pso_style", "pso", "rank", 16),
    (B2, "set beta = 50", "pso_style", "pso", "beta", 50.0),
    (B2, "the batch size of 8", "pso_style", "pso", "batch", 8),
    (B2, "learning rate of 1e-5", "pso_style", "pso", "lr", 1e-5),
    (B2, "train for 3k steps", "pso_style", "pso", "updates", 3000),
    ("PSO Eq. 5", "the two halves are weighed by 1", "pso_style", "pso", "eq5_weights", "printed"),
    (B3, "We also use SDXL-Turbo", "pso_table4", "pso", "model", "sdxl-turbo"),
    (B3, "lora rank r = 16", "pso_table4", "pso", "rank", 16),
    (B3, "beta = 5", "pso_table4", "pso", "beta", 5.0),
    (B3, "learning rate of 5e-5", "pso_table4", "pso", "lr", 5e-5),
    (B3, "train for 1000 steps", "pso_table4", "pso", "updates", 1000),
    (B3, "with batch size of 4", "pso_table4", "pso", "batch", 4),
    (B3, "beta = 5 in the way of Eq. 6", "pso_table4", "pso-eq6", "beta", 5.0),
    *(
        entry
        for reward, lr, batch in (
            ("aesthetic", 1e-4, "2 x 8 on 4 GPUs"),
            ("imagereward", 5e-5, "1 x 32 on 4 GPUs"),
            ("hps", 5e-5, "1 x 32 on 4 GPUs"),
            ("pickscore", 6e-5, "1 x 16 on 4 GPUs"),
        )
        for row in [f"sdpo-{reward}"]
        for entry in [
            (TABLE2, "Random seed 42", "sdpo_table1", row, "seed", 42),
            (TABLE2, "Denoising steps per trajectory T = 50", "sdpo_table1", row, "steps", 50),
            (TABLE2, "Maximum gradient norm 1.0", "sdpo_table1", row, "grad_clip", 1.0),
            (TABLE2, "Optimizer type AdamW", "sdpo_table1", row, "optimizer", "adamw"),
            (TABLE2, "Optimizer weight decay 1e-4", "sdpo_table1", row, "weight_decay", 1e-4),
            (TABLE2, "Optimizer beta_1 = 0.9, beta_2 = 0.999", "sdpo_table1", row, "betas", (0.9, 0.999)),
            (TABLE2, f"Learning rate {lr:g}", "sdpo_table1", row, "lr", lr),
            (TABLE2, "Sampling batch size per GPU 8, batches 4, on 4 GPUs", "sdpo_table1", row, "pairs", 128),
            (TABLE2, "Running statistics buffer size 32", "sdpo_table1", row, "buffer", 32),
            (TABLE2, "Running statistics minimal count 16", "sdpo_table1", row, "min_count", 16),
            (
                TABLE2,
                f"Training batch size per GPU x gradient accumulation steps = {batch}",
                "sdpo_table1",
                row,
                "minibatch",
                128 if "32" in batch else 64,
            ),
            (TABLE2, "Log-ratio scale factor eta = 1.0", "sdpo_table1", row, "eta", 1.0),
            (TABLE2, "Clipping range epsilon = 1e-4", "sdpo_table1", row, "clip", 1e-4),
            (TABLE2, "Discount factor gamma = 0.99", "sdpo_table1", row, "gamma", 0.99),
            (TABLE2, "Decay rate lambda = 0.99", "sdpo_table1", row, "decay", 0.99),
            (SETUP, "four commonly used reward functions", "sdpo_table1", row, "reward", reward),
        ]
    ),
    (SETUP, "we use SD-Turbo", "sdpo_table1", "sdpo-hps", "model", "sd-turbo"),
    (SETUP, "we apply Low-Rank Adaptation", "sdpo_table1", "sdpo-hps", "training", "lora"),
    (SETUP, "the DDIM sampler", "sdpo_table1", "ddpo-hps", "kernel", "ddim"),
    (SETUP, "T = 50 for all algorithms", "sdpo_table1", "d3po-hps", "steps", 50),
    (SETUP, "a prompt set of 45 animal names", "sdpo_table1", "rebel-hps", "prompts", "sdpo-animals"),
    ("SDPO Sec. 4.3", "discount factor 0.9", "sdpo_ablations", "gamma-0.9", "gamma", 0.9),
    ("SDPO Sec. 4.3", "decay factor 0.9", "sdpo_ablations", "decay-0.9", "decay", 0.9),
    ("SDPO Sec. 4.4", "LCM from Dreamshaper v7", "sdpo_lcm", "sdpo", "model", "lcm-dreamshaper-v7"),
    ("SDPO App. A.2", "clipping range as in Tab. 2", "sdpo_lcm", "sdpo", "clip", 1e-4),
    (DIPP2, "Learning rate 5e-6, generator, pre-training", "dipp_table1", "pretrained", "lr", 5e-6),
    (DIPP2, "Learning rate 5e-6, DM, pre-training", "dipp_table1", "pretrained", "assistant_lr", 5e-6),
    (DIPP2, "Batch size 1024, pre-training", "dipp_table1", "pretrained", "batch", 1024),
    (DIPP2, "sigma(t*) = 2.5", "dipp_table1", "pretrained", "sigma_init", 2.5),
    (DIPP2, "Adam beta_0 = 0.0, beta_1 = 0.999", "dipp_table1", "pretrained", "betas", (0.0, 0.999)),
    (DIPP2, "time distribution p_EDM(t) (C.5)", "dipp_table1", "pretrained", "times", "log-normal"),
    (C1, "approximately 16k iterations", "dipp_table1", "pretrained", "updates", 16_000),
    (C1, "the PixelArt-XL-2-512x512 model version", "dipp_table1", "pretrained", "model", "pixart-alpha"),
    (DIPP2, "Learning rate 5e-6, generator, alignment", "dipp_table1", "cfg4.5-reward1", "lr", 5e-6),
    (DIPP2, "Learning rate 5e-6, DM, alignment", "dipp_table1", "cfg4.5-reward1", "assistant_lr", 5e-6),
    (DIPP2, "Batch size 256, alignment", "dipp_table1", "cfg4.5-reward1", "batch", 256),
    (DIPP2, "Weighting lambda_EDM(t) (C.7)", "dipp_table1", "cfg4.5-reward1", "assistant_weighting", "edm"),
    (A2, "a fixed [...] (EMA) rate of 0.95", "dipp_table1", "cfg4.5-reward1", "ema", 0.95),
    (A2, "We use the Image Reward", "dipp_table1", "cfg4.5-reward1", "reward", "imagereward"),
    (A2, "1.0 CFG scale and a 0.0 reward scale", "dipp_table1", "cfg1-reward0", "reward_scale", 0.0),
    (A2, "1.0 CFG scale and 1.0 reward scale", "dipp_table1", "cfg1-reward1", "guidance", 1.0),
    (A2, "4.5 CFG scale and 0.0 reward scale", "dipp_table1", "cfg4.5-reward0", "guidance", 4.5),
    (A2, "4.5 CFG scale and 1.0 reward scale", "dipp_table1", "cfg4.5-reward1", "reward_scale", 1.0),
    (A2, "4.5 CFG scale and 10.0 reward scale", "dipp_table1", "cfg4.5-reward10", "reward_scale", 10.0),
    (A2, "fixed classifier-free guidance scale of 4.5", "dipp_table1", "pretrained", "guidance", 4.5),
    (C1, "bfloat16 precision", "dipp_table1", "cfg4.5-reward1", "mixed_precision", "bf16"),
    (
        C1,
        "log-normal [...] mean of -2.0 and a standard deviation of 2.0",
        "dipp_table1",
        "pretrained",
        "log_sigma",
        (-2, 2),
    ),
    ("DI++ Eq. C.8", "w = 1 / || d_psi - d_ref ||", "dipp_table1", "cfg4.5-reward1", "weighting", "inverse-gap"),
    ("DI++ Sec. 5.2", "prompts from SAM-LLaVA-Caption-10M", "dipp_table1", "cfg4.5-reward1", "prompts", "sam-llava"),
    (DISTAR5, "SDXL [...] as our reference diffusion", "distar_table1", "distar", "teacher", "sdxl"),
    (DISTAR5, "initialize [...] with DMD2-SDXL-1step", "distar_table1", "distar", "model", "sdxl-dmd2-1step"),
    (DISTAR5, "prompts of the LAION-AESTHETIC dataset", "distar_table1", "distar", "prompts", "laion-aesthetics"),
    (DISTAR5, "PickScore [...] as the explicit human reward", "distar_table1", "distar", "reward", "pickscore"),
    (DISTAR5, "inner guidance", "distar_table1", "distar", "guidance_by", "reference"),
    (DISTAR5, "with a scale of 7.5", "distar_table1", "distar", "guidance", 7.5),
    (DISTAR5, "an explicit human reward with a scale of 100", "distar_table1", "distar", "reward_scale", 100.0),
    ("DI* Eq. 3.8", "pseudo-Huber", "distar_table1", "distar", "distance", "pseudo-huber"),
    ("DI* Table 2", "Only CFG", "distar_table2", "sim", "reward", None),
    ("DI* Table 2", "Out CFG", "distar_table2", "distar-out", "guidance_by", "reward"),
]
# Where a row has another value, the words of its source that say so.
OTHERWISE = {
    ("pso-online", "beta"): "published PSO code, of means; PSO App. B.1, of sums: 5",
    ("pso-online", "reduction"): "published PSO code; the paper prints sums",
    ("pso-online", "sum_steps"): "published PSO code; the paper prints the sum inside",
    ("pso-online", "clamp"): "published PSO code; not in the paper",
    ("sdpo", "seed"): "own choice: the training seeds of the table; SDPO Table 2: 42",
    ("dipp", "weighting"): "DI++ App. C.1: constant 1; Eq. C.8 has inverse-gap",
}


def declared(table, row, scale="full"):
    """Return the method of a row, and what the dry run prints of it: setting -> (value, source)."""
    table = at_scale(importlib.import_module(f"reproduce.{table}").TABLE, scale)
    about = table.rows[row]
    own = own_settings(table, about, scale) | {"seed": seeds(table, about, scale)}
    return about.method, recipe(about.method, scale) | own


def test_settings_are_those_that_the_papers_print_or_say_why_not():
    differ = set()
    for place, words, table, row, setting, value in PRINTED:
        method, found = declared(table, row)
        ours, source = found[setting]
        if ours != value:
            differ.add((method, setting))
            assert OTHERWISE.get((method, setting)) == source, (
                f"{place}: {words}: {table}, {row} has {ours!r} # {source}"
            )
    assert differ == set(OTHERWISE)
    assert len(PRINTED) >= 60


def test_what_the_published_code_has_otherwise_is_declared():
    for table, row, setting, words in (
        ("pso_table1", "online", "steps", "published code for DMD2: 8 sampled, 7 trained"),
        ("pso_table2", "online", "rounds", "published code for Turbo: 10,000"),
        ("pso_table2", "online", "rank", "published code for Turbo: 32"),
        ("pso_table2", "online", "optimizer", "published PSO code: AdamW 8-bit"),
        ("pso_table2", "online", "dtype", "published PSO code: float16"),
        ("pso_table4", "pso", "updates", "published PSO code: 400, for the dog 600"),
        ("pso_table4", "pso", "lr", "published PSO code: 2e-4"),
        ("sdpo_table1", "rebel-hps", "minibatch", "not published of the baselines"),
        ("sdpo_table1", "sdpo-hps", "dtype", "the code has float16"),
    ):
        assert words in declared(table, row)[1][setting][1], (table, row, setting)


def test_the_dpo_teacher_is_diffusion_dpos_own():
    _, found = declared("pso_table1", "dpo")
    expected = {"training": "full", "batch": 2048, "updates": 2000, "model": "sdxl", "beta": 2500.0, "seed": (0,)}
    assert {name: found[name][0] for name in expected} == expected
    assert found["lr"][0] == pytest.approx(2.048e-5) and "1e-8 scaled" in found["lr"][1]
    assert not [name for name, (_, source) in found.items() if "PSO App. B.1" in source and name not in ("pairs",)]


def test_prompt_sets_are_as_large_as_the_papers_say():
    """PSO App. B.1 (500, 1632), SDPO Sec. 4.1 (45), DI* Sec. 5 (6.25), PSO Sec. 3.1 (58,960 and 851,293)."""
    counts = {"pickapic-test": 500, "parti": 1632, "sdpo-animals": 45, "pickapic-4k": 4000, "coco-2014-30k": 30_000}
    assert {name: SETS[name].count for name in counts} == counts
    assert SETS["laion-aesthetics"].above == ("AESTHETIC_SCORE", 6.25)
    assert "58,960" in SETS["pickapic-train"].what and "851,293" in SETS["pickapic"].what
