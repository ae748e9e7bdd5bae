"""Tell what GPUs can do, by their makers' data sheets, and name the ones that a plan is for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """Hold memory in GB, and peak TFLOP/s in half precision on tensor cores, without sparsity."""

    memory: int
    half: float
    source: str

    def peak(self, dtype: str) -> float:
        """Return FLOP/s. Products of float32 are in TF32 (see common/cli.py), which has half the rate on all these."""
        return 1e12 * self.half / (2 if dtype == "float32" else 1)


# A data sheet that gives the figure with sparsity gives twice the number here.
GPUS = {
    "A100-40": GPU(40, 312.0, "NVIDIA A100 data sheet"),
    "A100-80": GPU(80, 312.0, "NVIDIA A100 data sheet"),
    "H100": GPU(80, 989.4, "NVIDIA H100 data sheet, SXM"),
    "H100-PCIe": GPU(80, 756.0, "NVIDIA H100 data sheet, PCIe"),
    "H200": GPU(141, 989.4, "NVIDIA H200 data sheet, SXM"),
    "L40S": GPU(48, 362.05, "NVIDIA L40S data sheet"),
    "A6000": GPU(48, 154.8, "NVIDIA RTX A6000 data sheet, GA102 white paper"),
    "RTX4090": GPU(24, 165.2, "NVIDIA Ada GPU architecture white paper"),
    "RTX3090": GPU(24, 71.0, "NVIDIA GA102 white paper"),
}
# Of a card's memory, what tensors may take. The rest is for the CUDA context, the libraries' workspaces, the
# allocator's gaps, and because a card holds a few percent less than its name says: an allowance, not measured.
USABLE = 0.92


MEASURED = "measured: 0.04 to 0.12"  # shares of an H100's peak, by reproduce/benchmarks/results/full_size.jsonl


@dataclass(kw_only=True)
class Machine:
    """Name the GPUs that rows run on."""

    gpu: str = "H100"
    """See reproduce/planner/gpus.py."""
    count: int = 8
    """GPUs, one process each."""
    utilisation: float = 0.1
    """Share of the peak FLOP/s that is reached. Measured on an H100, at small micro-batches of SD-Turbo and SDXL: 0.04
    to 0.09 in updates, 0.08 to 0.12 in sampling (reproduce/benchmarks/results/full_size.jsonl)."""
    fsdp: bool = False
    """Weights, gradients and moments in parts over the GPUs, where all weights are trained (launch/fsdp.yaml)."""


def named(name: str) -> GPU:
    """Return a GPU by its name; a ValueError for an unknown one."""
    if name not in GPUS:
        raise ValueError(f"unknown GPU {name!r}: choose from {', '.join(GPUS)}")
    return GPUS[name]
