"""Build preference pairs on disk, or bring published ones.

python reproduce/build_pairs.py --out reproduce/runs/pairs  # pocket: a teacher and the simulated judge
python reproduce/build_pairs.py --scale full --model sdxl --reward pickscore --prompts pickapic-train --out runs/pairs
python reproduce/build_pairs.py --from pickapic --data folder --out runs/pairs

Pairs are sampled from a teacher at mixed guidance and ranked by the simulated judge, or at full scale by a reward; or
they are Pick-a-Pic's, from its parquet files. A build that was stopped goes on where it stopped when the same command
is given again; `accelerate launch` in place of `python` shares the sampling among processes.

A folder of pairs holds `pairs.jsonl`, one object a line,
{"prompt": ..., "winner": "a.png", "loser": "b.png", "label": 1}, and the pictures. "label" may be left out; 0.5 is a
tie, which no loss here can use, so it is refused.
"""

import argparse
from collections.abc import Sequence

import tyro

from reproduce.common.cli import command_line, refusals
from reproduce.data import pickapic
from reproduce.data.pair_settings import FullPairConfig, PairConfig


def parse(argv: Sequence[str] | None = None):
    """Parse the configuration of the kind of pairs that --from and --scale ask for."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--from", dest="origin", default="samples")
    first.add_argument("--scale", default="pocket")
    named, others = first.parse_known_args(argv)
    kinds = {"pocket": PairConfig, "full": FullPairConfig}
    if named.origin not in ("samples", "pickapic"):
        raise ValueError(f"--from {named.origin!r}: choose from samples, pickapic")
    if named.scale not in kinds:
        raise ValueError(f"unknown scale {named.scale!r}: choose from {', '.join(kinds)}")
    kind = pickapic.PickapicConfig if named.origin == "pickapic" else kinds[named.scale]
    return tyro.cli(kind, description=__doc__, args=others)


def prepare(config: PairConfig | FullPairConfig | pickapic.PickapicConfig):
    """Check the settings of either kind of build, and load what it needs."""
    if isinstance(config, pickapic.PickapicConfig):
        return pickapic.prepare(config)
    from reproduce.data import sampled_pairs  # torch and diffusers come with it

    return sampled_pairs.prepare(config)


def build(job) -> None:
    """Build what `prepare` returned."""
    if isinstance(job, pickapic.Import):
        with refusals():  # of a file that is damaged further on
            return pickapic.build(job)
    from reproduce.data import sampled_pairs

    sampled_pairs.build(job)


def main(argv: Sequence[str] | None = None) -> None:
    command_line(parse, prepare, build, argv, lambda c: (f"finished parts are kept in {c.out}", ""))


if __name__ == "__main__":
    main()
