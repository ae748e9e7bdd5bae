"""Each table's script at full scale, on small random twins of the published networks: all of its code runs."""

import json

import pytest

from reproduce import (
    dipp_table1,
    pso_ablations,
    pso_style,
    pso_table1,
    pso_table2,
    pso_table3,
    pso_table4,
    sdpo_lcm,
    sdpo_table3,
)
from reproduce.harness.command import at_scale, command
from reproduce.harness.rows import row_seeds, run_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "script,some",
    [
        (pso_table2, []),
        (sdpo_table3, []),
        (sdpo_lcm, ["--only", "base", "sdpo", "--seeds", "0"]),
        (pso_style, ["--only", "base", "pso", "--seeds", "0"]),
        (pso_table4, ["--only", "base", "teacher", "pso", "--seeds", "0"]),
        (pso_table1, ["--only", "dpo-lora", "base", "--seeds", "0"]),
        (pso_table3, ["--only", "teacher-lora", "dpo-lora", "--seeds", "0"]),
        (pso_ablations, ["--only", "base", "paper", "--seeds", "0"]),
        (dipp_table1, ["--only", "teacher", "cfg4.5-reward1", "--seeds", "0"]),
    ],
    ids=lambda some: some.TABLE.name if hasattr(some, "TABLE") else "",
)
def test_a_table_runs_at_full_scale_on_twins(script, some, tmp_path, monkeypatch, fresh_accelerate):
    monkeypatch.setenv("FSALIGN_HUB", str(tmp_path))  # which the script sets: so that it is undone
    command(script.TABLE, None, ["--scale", "full", "--models", "tiny", "--out", str(tmp_path), *some])
    done = {path.stem for path in (tmp_path / "runs" / f"{script.TABLE.name}-full").glob("*.json")}
    if some:
        firsts = {row: row_seeds(at_scale(script.TABLE, "full"), row)[0] for row in some[1:-2]}
        assert done == {run_path(tmp_path, row, seed).stem for row, seed in firsts.items()}
        return
    result = json.loads((tmp_path / f"{script.TABLE.name}-full.json").read_text())
    assert result["scale"] == "full" and result["smoke"] and len(result["runs"]) == len(done)
    assert all(claim["status"] != "not run" for claim in result["claims"])
    assert "A smoke run" in (tmp_path / f"{script.TABLE.name}-full.md").read_text()
