"""Each table's script at full scale, on small random twins of the published networks: all of its code runs."""

import json

import pytest
import torch

from fsalign_lib.models.load import load
from fsalign_lib.models.presets import POCKET
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
from reproduce.harness import rows
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
def test_a_table_runs_at_full_scale_on_twins(script, some, tmp_path, monkeypatch):
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


@pytest.mark.skipif(not POCKET.is_dir(), reason="the pocket world is not built")
def test_near_the_last_time_the_precision_of_evaluation_loses_least():
    prompts, times = ["a cat", "a red colored fox"], (999, 989)
    x = torch.randn(2, *load("pocket-turbo").latent_shape, generator=torch.Generator().manual_seed(0))
    found = {}
    assert rows.EVALUATION["full"] == torch.float16
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = load("pocket-turbo", dtype)
        with torch.no_grad():
            found[dtype] = torch.stack([model.predict_x0(x, t, model.encode_prompts(prompts)) for t in times])
    exact = found.pop(torch.float32)
    lost = {dtype: (x0 - exact).square().mean((1, 2, 3, 4)).sqrt() for dtype, x0 in found.items()}
    assert (lost[torch.float16] < lost[torch.bfloat16] / 5).all()
    assert (lost[torch.bfloat16] > 0.03).all() and exact.std() < 2, "a hundredth of what is predicted, and more"
