"""Hold what the tables of PSO share, and state what PSO (arXiv 2410.03190) claims of them.

Its printed values are in pso_*.csv.
"""

from dataclasses import replace

from reproduce.harness.declare import Column, Prompts, Row, Sampled
from reproduce.papers.claim import Pattern, TableClaims

PROMPTS = {
    "pickapic": Prompts("Pick-a-Pic's test prompts", "test-pickapic", "pickapic-test"),
    "parti": Prompts("Parti-Prompts", "test-heldout", "parti"),
}
METRICS = {
    "pickscore": Column("PickScore", 2),
    "clipscore": Column("CLIP score", 4),
    "imagereward": Column("ImageReward", 4),
    "aesthetic": Column("Aesthetic", 3),
}
BESIDE = {
    "accuracy": Column("animal accuracy", 3),
    "diversity": Column("diversity", 3),
    "sharpness": Column("sharpness", 4),
}
# 50 steps at full scale, as Tables 1 and 4 print; the text has 25.
TEACHER = Sampled(
    {"pocket": "pocket-teacher", "full": "sdxl"},
    steps={"pocket": 10, "full": 50},
    guidance={"pocket": 2.5, "full": 5.0},
)
TUNING = (
    "Table 2's lr, updates and batch, tried once: 16 updates of 16 pairs at training seed 7, scored on 24 training "
    "prompts; nothing was changed after"
)
# The DPO'd teacher is a row of Table 1. Table 3 starts from it too, and trains it where Table 1 has not.
# At full scale its settings are Diffusion-DPO's own, a run of which takes as long as a table: one training seed.
ONE = Row("teacher, Diffusion-DPO", "diffusion-dpo", tuning=TUNING, sampled=TEACHER, runs="pso_table1")
DPO = {"pocket": ONE, "full": replace(ONE, seeds=(0,))}


def composed(title: str, lora: dict[str, str]) -> dict[str, Row]:
    """Return a row that puts a LoRA on what row "dpo" trained, at each of its training seeds."""
    row = Row(title, start="dpo", composed=lora)
    return {"pocket": row, "full": replace(row, seeds=DPO["full"].seeds)}


# At 1024 px, where a network call takes four times the memory of 512 px, for which the recipes are.
FITS = "fits H100: plan, at 1024 px"
WIDE = {
    "pso-online": {"micro_batch": (2, FITS), "rollout_batch": (8, FITS)},
    "pso-offline": {"micro_batch": (1, FITS)},
    "sft": {"micro_batch": (4, FITS)},
}

ALL = ("pickscore", "clipscore", "imagereward", "aesthetic")
BOTH = ("pickapic", "parti")
NAMED = ("pickscore", "imagereward", "aesthetic")  # of online PSO: "the best results in PickScore, ImageReward, and..."
FORMS = ("code", "paper", "inside", "summed", "beta-5", "beta-500", "shared", "steps-8", "no-clamp", "fast")
FORMS += ("fast-no-clamp",)  # rows of the ablations

CLAIMS = {
    "pso_table1": TableClaims(
        source="PSO Table 1 and the paragraph on it in Sec. 3.1",
        words="SDXL-DPO with the DMD2 LoRA “suffers from a drop in PickScore [...] and Aesthetic Score”; “our "
        "Offline-PSO fine-tuned model achieves higher results in all metrics compared with baselines”; online "
        "PSO “achieves the best results in PickScore, ImageReward, and Aesthetic Score among all distilled "
        "models”, and “can even surpass the performance of multi-step fine-tuned SDXL-DPO”, with PickScore as "
        "the instance. The text has 22.77 where the table has 22.76, and 25 steps of the teacher where the "
        "table has 50.",
        patterns=(
            Pattern("base", "dpo-lora", ("pickscore", "aesthetic"), BOTH, 4),
            Pattern("offline", ("base", "dpo-lora"), ALL, BOTH, 4),
            Pattern("online", ("base", "dpo-lora", "offline"), NAMED, BOTH, 4),
            Pattern("online", "dpo", "pickscore", BOTH, 4),  # the steps are those of the distilled row
        ),
    ),
    "pso_table2": TableClaims(
        source="PSO Table 2 and the paragraph on it in Sec. 3.1",
        words="“Both Offline-PSO and Online-PSO achieves superior results of all metrics in 4-step generation "
        "compared with the base distilled SDXL-Turbo. Moreover, our fine-tuned model also achieves superior "
        "results in 1-step generation.” Online above offline is claimed by “a similar trend as in Table 1”, "
        "where online is best in PickScore, ImageReward and Aesthetic; not in CLIP score, where the printed "
        "order of the two changes from cell to cell.",
        patterns=(
            Pattern(("offline", "online"), "base", ALL, BOTH, (4, 1)),
            Pattern("online", "offline", NAMED, BOTH, (4, 1)),
        ),
    ),
    "pso_table3": TableClaims(
        source="PSO Table 3 and the paragraph on it in App. B.1",
        words="“Our method achieves higher results in all metrics compared with baselines. Specifically, our method "
        "achieves better results compared with SDXL-DPO + LCM-LoRA.” Of online PSO's CLIP score on Pick-a-Pic "
        "the table itself says otherwise (0.3613 < 0.3633): no claim.",
        patterns=(
            Pattern(
                above=("offline", "online"),
                below=("base", "teacher-lora", "dpo-lora"),
                metrics=ALL,
                prompts=BOTH,
                steps=4,
                but=({"above": "online", "below": "dpo-lora", "metric": "clipscore", "prompts": "pickapic"},),
            ),
        ),
    ),
    "pso_table4": TableClaims(
        source="PSO Table 4 and Sec. 3.3",
        words="“Our method shows superior results than vanilla tuning of SDXL-Turbo [...], and comparable results "
        "with the multi-step customization baseline”; “omitting the reference model and add prior preservation "
        "loss leads to performance gain”. That something is comparable is no claim that a difference can "
        "decide.",
        patterns=(
            Pattern("pso", "dreambooth", ("clip-t", "dino", "clip-i"), "contexts", 4, "{above}-above-{below}-{metric}"),
            Pattern("pso", "pso-eq6", ("clip-t", "dino", "clip-i"), "contexts", 4, "pso-above-eq6-{metric}"),
        ),
    ),
    "pso_style": TableClaims(
        source="PSO Fig. 1, Fig. 4, Secs. 2.1 and 3.2",
        words="“Along the fine-tuning progress, the generated images gradually shift from the original generative "
        "distribution to match the style”; “Directly adopting the DDPM [...] formulation and minimizing the "
        "diffusion objective [...] leads to blurry, degraded generation”. Asked of either weighting of Eq. 5. "
        "Nearer means a smaller distance to the style.",
        patterns=(
            Pattern("base", "pso", "style-distance", "prompts", 4, "pso-nearer-than-base"),
            Pattern("base", "pso", "style-distance-rise", "prompts", 4, "pso-nearer-on-the-way", primary=()),
            Pattern("sft", "pso", "style-distance", "prompts", 4, "pso-nearer-than-sft"),
            Pattern("pso", "sft", "sharpness", "prompts", 4, "pso-sharper-than-sft"),
            Pattern("pso", "sft", "creature", "prompts", 4, "pso-recognised-above-sft"),
            Pattern("base", "pso-exact", "style-distance", "prompts", 4, "exact-nearer-than-base"),
            Pattern("base", "pso-exact", "style-distance-rise", "prompts", 4, "exact-nearer-on-the-way", primary=()),
            Pattern("sft", "pso-exact", "style-distance", "prompts", 4, "exact-nearer-than-sft"),
            Pattern("pso-exact", "sft", "sharpness", "prompts", 4, "exact-sharper-than-sft"),
            Pattern("pso-exact", "sft", "creature", "prompts", 4, "exact-recognised-above-sft"),
        ),
    ),
    "pso_ablations": TableClaims(
        source="PSO Sec. 3.1, asked of each form that its online objective has in print and in code",
        words="“Both Offline-PSO and Online-PSO achieves superior results of all metrics in 4-step generation "
        "compared with the base [...]”. The paper has no ablation: which form it used for its tables is the "
        "question, so there are no printed numbers.",
        patterns=(Pattern(FORMS, "base", ALL, "parti", 4),),
    ),
}
