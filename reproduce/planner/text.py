"""What reproduce/plan.py prints."""

from typing import Any

from reproduce.harness.declare import Table
from reproduce.planner.gpus import GPU, MEMORIES, USABLE

NOT_COUNTED = """not counted
  hours   text encoding, encoding the pairs' pictures, evaluation, loading, checkpoints, communication between GPUs;
          operations other than matrix products, convolutions and attention, which the utilisation stands for
  memory  workspaces of kernels other than convolutions' (for these, a copy of all they touch), the CUDA context, gaps:
          {reserve:.0%} of a card is left for them. What is fixed is on each GPU (FSDP, DeepSpeed share it)
  assumed attention without an attention matrix (flash or memory-efficient kernels); DDP where there are several GPUs;
          that prompt sets which are not here have {held} prompts, and sets of pairs as many (--held)"""


def text(c: Any, gpu: GPU, table: Table, rows: dict[str, dict[str, Any]]) -> str:
    """A plan as a page: what was asked (see `plan.PlanConfig`), and each trained row's part of plan.py's JSON."""
    half = "bfloat16" if gpu.bf16 else "float16"
    lines = [
        f"{table.title}, scale {c.scale}",
        f"on {c.count} x {c.gpu}: {gpu.memory} GB, {gpu.half:g} TFLOP/s in {half}, {gpu.single:g} in float32 "
        f"({gpu.source}), of which {c.utilisation:g} are reached (assumed)",
    ]
    for name, row in table.rows.items():
        if name in rows:
            lines += ["", *row_text(name, row.title, rows[name])]
        elif not c.row and not row.method:
            lines += ["", f"{name}: the model as it is, nothing is trained"]
    seeds = len(table.seeds)
    off, on = (seeds * sum(row["settings"][i]["hours"] for row in rows.values()) for i in (0, 1))
    lines += ["", f"these rows at {seeds} training seeds: {off:.3g} hours, {on:.3g} with gradient checkpointing", ""]
    return "\n".join(lines) + NOT_COUNTED.format(reserve=1 - USABLE, held=c.held)


def row_text(name: str, title: str, row: dict[str, Any]) -> list[str]:
    c = row["config"]
    how = f"LoRA rank {c['rank']}" if c["training"] == "lora" else "all weights"
    precision = c["dtype"] + ("" if c["mixed_precision"] == "no" else f", autocast {c['mixed_precision']}")
    first = row["settings"][0]["flops"]
    pairs = f"{c['pairs']} pairs, minibatch {c['minibatch']}" if "minibatch" in c else f"{c['batch']} {row['batch_of']}"
    distilled = "teacher" in c
    rollout = "" if distilled else " (rollout batch in pairs)"
    rows = "" if distilled else f", of {row['network_rows']} rows each"
    lines = [
        f"{name}: {title} ({c['method']}), {c['model']} at {row['image_size']} px"
        + (f", assistant and teacher {c['teacher']}" if distilled else ""),
        f"  run         {row['units']} {row['unit']}s of {pairs}",
        f"  settings    {how}, {precision}, {c['optimizer']}" + ", vae_slicing" * c["vae_slicing"],
        f"  trained     {row['trained']:,} of {row['parameters']:,} parameters",
        f"  a forward   {row['forward_flops'] / 1e12:.3g} TFLOP a row, which is a picture at a step; an update has "
        f"{row['batch']} {row['batch_of']}{rows}",
        f"  FLOPs       {row['unit']} {sum(first.values()) / 1e12:.4g} TFLOP: "
        + ", ".join(f"{phase} {value / 1e12:.3g}" for phase, value in first.items()),
        "  fixed GB    " + ", ".join(f"{part} {gb:.2f}" for part, gb in row["fixed_gb"].items()),
        f"  micro-batch in {row['batch_of']}{rollout} and peak GB on a card of",
        f"  {'gradient checkpointing':<24}{'hours':>8}" + "".join(f"{f'{gb} GB':>18}" for gb in MEMORIES),
    ]
    for setting in row["settings"]:
        label = "on" if setting["gradient_checkpointing"] else "off"
        cells = "".join(f"{cell(card):>18}" for card in setting["cards"])
        lines.append(f"  {label:<24}{setting['hours']:>8.3g}{cells}")
    return lines


def cell(card: dict[str, Any]) -> str:
    if card["micro_batch"] is None:
        return f"no: {card['peak_gb']:.1f}"
    rollout = "" if card["rollout_batch"] is None else f" ({card['rollout_batch']})"
    return f"{card['micro_batch']}{rollout} {card['peak_gb']:.1f}"
