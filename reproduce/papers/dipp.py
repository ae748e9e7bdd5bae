"""State what Diff-Instruct++ (arXiv 2410.18881) claims of its table; its printed values are in dipp_table1.csv."""

from reproduce.papers.claim import Pattern, TableClaims

ALL = ("aesthetic", "imagereward", "pickscore")
BOTH = ("coco", "sam")
NAME = "{above}-above-{below}-{metric}-{prompts}"
PICKSCORE_ON_COCO = {"metric": "pickscore", "prompts": "coco"}
AESTHETIC_ON_COCO = {"metric": "aesthetic", "prompts": "coco"}

CLAIMS = {
    "dipp_table1": TableClaims(
        source="DI++ Table 1 and Sec. 6.2",
        words="“Models aligned with stronger CFG and human reward show better performances than models aligned with "
        "weaker ones”, and the aligned ones “clearly outperform the reference”. Where the printed numbers do "
        "not bear it out there is no claim: on COCO guidance lowers Aesthetic, PickScore ties (22.3) at "
        "guidance 4.5 and the teacher's is higher.",
        patterns=(
            Pattern("cfg1-reward1", "cfg1-reward0", ALL, BOTH, 1, NAME),
            Pattern("cfg4.5-reward1", "cfg4.5-reward0", ALL, BOTH, 1, NAME, but=(PICKSCORE_ON_COCO,)),
            Pattern("cfg4.5-reward10", "cfg4.5-reward1", ALL, BOTH, 1, NAME, but=(PICKSCORE_ON_COCO,)),
            Pattern("cfg4.5-reward0", "cfg1-reward0", ALL, BOTH, 1, NAME, but=(AESTHETIC_ON_COCO,)),
            Pattern("cfg4.5-reward1", "cfg1-reward1", ALL, BOTH, 1, NAME, but=({"metric": "aesthetic"},)),
            Pattern("cfg4.5-reward10", "teacher", ALL, BOTH, 1, NAME, but=(PICKSCORE_ON_COCO,)),
        ),
    ),
}
