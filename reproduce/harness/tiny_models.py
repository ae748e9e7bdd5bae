"""Write small random twins of all that a table reads at full scale, for --models tiny."""

import os
from pathlib import Path

from fsalign_lib.rewards import REWARDS
from fsalign_lib.twins import save_dino_twin, save_reward_twin, save_twin
from reproduce.common.cli import processes
from reproduce.evaluation.likeness import LIKENESS
from reproduce.harness.declare import Row, Table
from reproduce.recipes import recipe


def make_twins(table: Table, scored: set[str], hub: Path) -> None:
    """Write the twins, and have this process read them in the place of the hub.

    Args:
        scored: names of what pictures are scored by at full scale.
    """
    rewards = {"pickscore", *(row_reward(row) for row in table.rows.values())} - {None}
    rewards |= scored & set(REWARDS["full"])
    if processes().is_main_process:
        others = [row.sampled.models["full"] for row in table.rows.values() if row.sampled]
        others += [row.composed["full"] for row in table.rows.values() if row.composed]
        others += [row.sampled.models["full"] for row in table.own.starts.values() if row.sampled]
        for model in dict.fromkeys((table.models["full"], table.teachers.get("full"), *others)):
            if model is not None:
                save_twin(model, hub)
        like = scored & set(LIKENESS["full"])
        for reward in {*rewards, "aesthetic", *(["clipscore"] if like else [])}:  # whose networks other metrics read
            save_reward_twin(reward, hub)
        if like:
            save_dino_twin(hub)
    processes().wait_for_everyone()
    os.environ["FSALIGN_HUB"] = str(hub)


def row_reward(row: Row) -> str | None:
    """Return what scores a row's pictures in its training at full scale."""
    known = recipe(row.method, "full") if row.method else {}
    return (known | row.settings).get("reward", (None,))[0]
