"""The lines of a ledger: their names, where each comes from, and what stands in them that no graph tells."""

from __future__ import annotations

from dataclasses import dataclass

from dsc.compiler.planner.machine.calibration import Figure, Provenance

RESERVE = Figure(
    1.040, "assumed", "reserved / allocated over SimuMax's 43 measured B200 and A100 runs: median, 1.028 to 1.093"
)
CONTEXT = Figure(1.26 * 2**30, "assumed", "DeepEP issue 510: 79.10 - 77.84 GiB of an H100 gone before any buffer")
NCCL = Figure(392 * 2**20, "assumed", "aiconfigurator's table for 4 ranks and more")
EXPERT_BUFFER = Figure(
    (453_380_736 + 56_774_016) / 7168,
    "assumed",
    "DeepEP pull request 434: NVLink and RDMA buffers of 16 ranks, 453,380,736 + 56,774,016 bytes for tokens of 7168",
)


DEEPEP_BUFFER = (
    "DeepEP 2.1's calculate_buffer_size: a row of each rank for each token, or what combine needs if that is more"
)


@dataclass(frozen=True)
class MemoryLine:
    """One row of a ledger."""

    name: str
    bytes: int
    provenance: Provenance
    source: str
    """Formula, or who says so."""
    tensors: tuple[str, ...] = ()
    """Of the graph: parameters, or what is saved."""


@dataclass(frozen=True)
class Role:
    """Pipeline ranks that hold the same, and what each GPU of theirs holds."""

    ranks: tuple[int, ...]
    stages: tuple[int, ...]
    """Of the first of the ranks."""
    parts: tuple[tuple[str, ...], ...]
    """Of each stage."""
    lines: tuple[MemoryLine, ...]

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)

    @property
    def allocated(self) -> int:
        """By PyTorch's allocator: tensors, without what it reserves beside them and what others allocate."""
        return sum(line.bytes for line in self.lines if line.name not in ASSUMED)


WEIGHTS, GATHERED, GRADIENTS = "weights", "gathered weights", "gradients"
CODES = "codes of weights"
MASTER, MOMENTS, LOGITS = "master weights", "optimizer moments", "logits"
ACTIVATIONS = "activations of "
WORKING, TRANSFERS, PUT_OFF = "working memory", "pipeline transfers", "gradients put off"
ALLOCATOR, CUDA, COLLECTIVES, EXPERT_BUFFERS = (
    "allocator reserve",
    "CUDA context",
    "collective buffers",
    "expert buffers",
)
IN_TURNS = (
    "of micro-batches that wait for their W: what products read, kept or made again, and gradients of their results, "
    "by how much it is more than was kept"
)
"""The source of what is put off where pairs take turns."""
ASSUMED = {ALLOCATOR: RESERVE, CUDA: CONTEXT, COLLECTIVES: NCCL, EXPERT_BUFFERS: EXPERT_BUFFER}
SOURCES = {
    WEIGHTS: "parameters of the stages",
    GATHERED: "the part that runs and the next one, whole",
    CODES: "FP8, as products read them forward and backward, kept through a step",
    GRADIENTS: "one for each parameter",
    MASTER: "one for each parameter, over those who share it where zero >= 1",
    MOMENTS: "two for each parameter, over those who share it where zero >= 1",
    LOGITS: "what the loss keeps of the vocabulary, for each micro-batch in flight",
    WORKING: "results and gradients that live for a moment, and the gradient of the largest weight",
    TRANSFERS: "what micro-batches in flight have handed on; hidden states and their gradients on their way",
    PUT_OFF: "of micro-batches whose weights' gradients wait for their W: what products' results have, and the input",
}
