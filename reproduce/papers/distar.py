"""Hold what the tables of DI* share: the rows, each trained once, in runs/distar, by the first table that needs it.

The text of the paper that is at hand has lost the formulas in the names of Table 2's rows. What is known of each: its
order, what its name says, the best row's (alpha_rew, alpha_cfg) = (100, 7.5) (Sec. 5), and that rows of Table 1 with
the same numbers are the same models. So the scale of the reward in `kl-unguided`, `dipp` and `distar-out` is inferred
(that of the best row), and one row whose setting cannot be told (ImageReward 1.020) is left out.

**Reward scales.** alpha_rew multiplies PickScore's cosine, whose gradient has other units at pocket scale: there the
reward's gradient in the latent has a norm of 0.073 per sample, and that of either divergence at most 1 (both are
normalised: DI++ Eq. C.8, DI* Eq. 3.8), so both pull alike at alpha_rew = 14. Of the paper's 1, 10, 100 the pocket world
takes a third, 0.3, 3 and 30, where the reward's share goes from 2% over a fifth to twice the divergence. Measured on a
4-step student at its first step, training prompts, before any run of a table. KL and score rows have the same settings
but for the divergence: the same lr, batch, ratio of updates, average and prompts.

One learning rate for all rows, so that KL and score differ in nothing else. Tried on the four rows Diff-Instruct, SIM,
DI++ and DI*, at a training seed that no table has: 1.5e-5, 5e-5 and 1.5e-4. Rule: the highest PickScore of their
one-step pictures of 48 training prompts, mean over the four rows, among rates that keep animal accuracy within 0.03 of
the model's as it is. All kept it at 1.0; the means are 81.26, 82.84, 82.78, and 76.84 for the model as it is. By
itself DI++ and DI* would take the highest rate (88.20 against 87.23, 87.78 against 87.49), Diff-Instruct and SIM lose
at it (77.20 against 78.41, 77.93 against 78.22). Updates are short, so that a run takes about two minutes of a core.

**Guidance as a reward.** The w(t) of that reward [DI* Eq. 3.6] is not in the paper. Here it is normalised, as the
divergence is (train_distill.py): a sample is pulled by alpha_cfg, 2.5 as in the other rows. With w = 1 it was pulled by
20, where the divergence has 0.76 and the reward 2, and three runs ended at PickScore 66.2 (as it is: 72.2), ImageReward
-2.26 (-0.79) and animal accuracy 0.80 (0.93) on the prompts of Table 2. These were seen before w was chosen; nothing
else was tried.

"Longer training" has three times the updates; the paper does not say how many.
"""

from reproduce.harness.declare import Column, Row, Sampled
from reproduce.papers.claim import Pattern, TableClaims
from reproduce.recipes import recipe

SCALES = {1: 0.3, 10: 3.0, 30: 10.0, 100: 30.0}  # the paper's alpha_rew (30 is ours) -> the pocket world's
UPDATES, LONGER = 80, 3
TUNING = (
    "one learning rate for all rows, of three, by the mean PickScore of four rows at a seed of its own on training "
    "prompts; the pocket world's reward scales follow from norms of gradients at the first step, likewise"
)

TRIAL = "own tuning at pocket scale: papers/distar.py"
POCKET = {
    "updates": (UPDATES, "own choice: about two minutes of a core"),
    "batch": (8, "own choice: about two minutes of a core"),
    "assistant_updates": (2, "own choice: about two minutes of a core"),
    "warmup": (40, "own choice: the assistant starts as the teacher, and has to find the student first"),
    "lr": (5e-5, TRIAL),
    "assistant_lr": (2e-4, "as the pocket's own distillation (fsalign_lib/pocket/student.py)"),
    "ema": (0.9, "own choice: of short runs"),
    "save_every": (40, "own choice"),
    "reward": ("pickscore", "DI* Sec. 5"),
}
# At full scale all rows have DI*'s settings, so DI++ is SDXL's and not PixArt's; but for what a table sets, and the
# divergence's own.
FULL = {
    name: sourced
    for name, sourced in recipe("distar", "full").items()
    if name not in ("model", "teacher", "start", "seed", "distance", "c")
}
SAVED = {"save_every": (250, "own choice")}
LOST = "DI* Table 2, whose formulas are lost: inferred, papers/distar.py"


def row(title: str, method: str, scale: int, source: str = "DI* Table 2", longer: int = 1, **settings) -> Row:
    """Return a trained row.

    Args:
        scale: the paper's alpha_rew.
        source: of it.
        settings: (value, source) each.
    """
    own, full = POCKET | settings, FULL | SAVED | settings
    none = {"reward": (None, f"{source}: no reward"), "reward_scale": (0.0, f"{source}: no reward")}
    if not scale:
        full |= {"gradient_checkpointing": (False, "fits 8 x H100 by FSDP: plan; without a reward to go back through")}
    scaled = f"own choice: the paper's {scale}, by norms of gradients (papers/distar.py)"
    for some, alpha in ((own, (SCALES.get(scale), scaled)), (full, (float(scale), source))):
        some |= {"reward_scale": alpha} if scale else none
        if longer > 1:
            updates, why = some["updates"]
            some["updates"] = (updates * longer, f"own choice: {longer} times as long; not published ({why})")
    return Row(title, method, pocket=own, full=full, tuning=TUNING, runs="distar")


UNGUIDED = {"guidance": (1.0, LOST)}
CURVE = "own choice: a point of a curve that the paper does not draw"
TEACHER = Sampled({"pocket": "pocket-teacher", "full": "sdxl"}, steps=50, guidance={"pocket": 2.5, "full": 5.0})
ROWS = {
    "teacher": Row("SDXL-Base, 50 steps", sampled=TEACHER),
    "base": Row("DMD2 (initial model)"),
    "kl-unguided": row("DI++ (KL), no guidance", "dipp", 100, LOST, **UNGUIDED),
    "diff-instruct": row("Diff-Instruct", "dipp", 0),
    "dipp": row("DI++ (KL)", "dipp", 100, LOST),
    "distar-out": row(
        "DI*, guidance as a reward", "distar", 100, LOST, guidance_by=("reward", "DI* Table 2: Out CFG, choice 1")
    ),
    "distar-unguided": row("DI*, no guidance, no reward", "sim", 0, guidance=(1.0, "DI* Table 2: baseline, no reward")),
    "sim": row("SIM", "sim", 0),
    "distar-1": row("DI*, reward 1", "distar", 1),
    "distar-10": row("DI*, reward 10", "distar", 10),
    "distar": row("DI*", "distar", 100, "DI* Sec. 5"),
    "distar-long": row("DI*, longer training", "distar", 100, "DI* Sec. 5", longer=LONGER),
    # Of the curves over reward scales alone.
    "dipp-10": row("DI++ (KL), reward 10", "dipp", 10, CURVE),
    "dipp-30": row("DI++ (KL), reward 30", "dipp", 30, CURVE),
    "distar-30": row("DI*, reward 30", "distar", 30, CURVE),
}
ELSEWHERE = {
    "sdxl-dpo": Row("SDXL-DPO, 50 steps", elsewhere=True),
    "sd35": Row("SD3.5-large, 28 steps", elsewhere=True),
    "flux": Row("FLUX-dev, 50 steps", elsewhere=True),
}
MODELS = {"pocket": "pocket-one-step", "full": "sdxl-dmd2-1step"}
TEACHERS = {"pocket": "pocket-teacher", "full": "sdxl"}

METRICS = {
    "imagereward": Column("ImageReward", 3),
    "aesthetic": Column("Aesthetic", 3),
    "pickscore": Column("PickScore", 2),
    "clipscore": Column("CLIP score", 4),
}
HELD_OUT = {
    "fid": Column("Frechet distance", 2, lower=True),
    "accuracy": Column("animal accuracy", 3),
    "vendi": Column("Vendi score", 3),
    "modes": Column("backgrounds of 8", 2),
    "precision": Column("precision", 3),
    "recall": Column("recall", 3),
}
STANDS = "SDXL-Base stands for the pocket's teacher, DMD2 for its one-step generator."
PRINTED = (
    "The paper's PickScore and CLIP score are printed here in the units of the other tables: 100 times its cosine, "
    "and its number over 100. Its CLIP score is of another CLIP than ours, which is PSO's, OpenCLIP ViT-H-14: of SDXL "
    "on Parti it prints 0.3272 where PSO prints 0.3607, at nearly the same PickScore. Which it is, it does not say; "
    "the evaluation of DMD2, from which it starts, takes ViT-g-14. Compare differences alone. Reward scales are the "
    "paper's; at pocket scale a reward of 1 is 0.3, 10 is 3, 30 is 10 and 100 is 30 (papers/distar.py says why), and "
    + STANDS
)


def rows(*names: str) -> dict[str, Row]:
    return {name: ROWS[name] for name in names}


PREFERENCE = ("imagereward", "aesthetic", "pickscore")
AHEAD = ("vendi-ahead", "recall-ahead", "modes-ahead")
NAME = "{above}-above-{below}-{metric}-{prompts}"

CLAIMS = {
    "distar_table1": TableClaims(
        source="DI* Table 1, Secs. 1 and 5.1",
        words="The text claims Parti wins over FLUX and SD3.5, which are not part of this project, and that DI* is "
        "better than KL alignment and distillation in preference. The claims are its printed order in the "
        "preference scores: DI* above the initial model, Diff-Instruct, SIM and DI++, and longer training above "
        "DI*; longer training above the 50-step SDXL; and in CLIP score the “trade-off between preference "
        "scores and CLIP scores”: the initial model above DI*.",
        patterns=(
            Pattern("distar", ("base", "diff-instruct", "sim", "dipp"), PREFERENCE, ("parti", "coco"), 1, NAME),
            Pattern("distar-long", ("distar", "teacher"), PREFERENCE, ("parti", "coco"), 1, NAME),
            Pattern("base", "distar", "clipscore", ("parti", "coco"), 1, NAME),
            Pattern("distar", "distar-long", "clipscore", ("parti", "coco"), 1, NAME),
        ),
        by=("prompts", "metric"),
    ),
    "distar_table2": TableClaims(
        source="DI* Table 2 and the ablation study in Sec. 5.1",
        words="“DI* using score-based divergence outperforms the DI++ model under the same configurations and reward "
        "scales”; “with proper reward scales, DI* models show dominant human preference scores”; inner guidance "
        "“results in better performances” than guidance as a reward (choice 2, Sec. 3.3); “the larger-scale "
        "explicit human reward is assigned, the worse the CLIPS score will be”. Where the print contradicts the "
        "sentence (DI* with guidance as a reward has the higher ImageReward and CLIP score, SIM the lower "
        "ImageReward than Diff-Instruct) nothing is claimed.",
        patterns=(
            Pattern("distar", "dipp", PREFERENCE, "parti", 1, NAME),
            Pattern("sim", "diff-instruct", ("aesthetic", "pickscore"), "parti", 1, NAME),
            Pattern("distar", "distar-out", ("aesthetic", "pickscore"), "parti", 1, NAME),
            Pattern("distar", ("sim", "distar-1", "distar-10"), PREFERENCE, "parti", 1, NAME),
            Pattern("distar-long", "distar", PREFERENCE, "parti", 1, NAME),
            Pattern("sim", "distar-unguided", "imagereward", "parti", 1, NAME),
            Pattern("diff-instruct", "kl-unguided", "imagereward", "parti", 1, NAME),
            Pattern(("sim", "distar-10"), "distar", "clipscore", "parti", 1, NAME),
            Pattern("distar", "distar-long", "clipscore", "parti", 1, NAME),
        ),
    ),
    "distar_table3": TableClaims(
        source="DI* Table 3 and the paragraph on it in Sec. 5.1",
        words="“The DI*-SDXL-1step model has a record-breaking HPSv2.1 score of 31.19, outperforming the rest of "
        "text-to-image models.” The other cells are lost from the text at hand.",
        patterns=(
            Pattern(
                above="distar-long",
                below=("teacher", "base", "diff-instruct", "sim", "dipp", "distar"),
                metrics="average",
                prompts="benchmark",
                steps=1,
                id=NAME,
            ),
        ),
    ),
    "distar_pareto": TableClaims(
        source="DI* Abstract, Secs. 1 and 5.1; there in words",
        words="“We find score-based regularization maintains better diversities”; KL “is very easy to collapse to "
        "painting-like images [...] that have high human reward but lack diversities. Instead, using "
        "score-based divergences empirically maintains diversity while still steadily improving human "
        "preferences.” So: at each reward scale DI* has more diversity than KL at the same reward (ahead: above "
        "the model as it is, whose number is 0 by definition).",
        patterns=(Pattern(("distar-10", "distar-30", "distar"), "base", AHEAD, "plain", 1, NAME),),
    ),
}
