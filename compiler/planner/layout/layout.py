"""How the ranks share a model: one point of the planner's search space.

Ranks form a grid of pipeline x data x context x tensor parallelism; experts fold the last three anew as
expert parallelism x expert tensor parallelism x expert data parallelism (MoE Parallel Folding, arXiv 2504.14960).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsc.compiler.planner.pipeline.schedule import Schedule, stage_count, stages_of_rank
from dsc.spec.model import ModelSpec
from dsc.spec.placement import Dispatch

Activations = Literal["bf16", "fp8"]

# Sequences that a GPU sees in a step where the spec does not say: DeepSeek-V3's 15360 on 2048 GPUs, 7.5, rounded up.
SEQUENCES_PER_GPU = 8


@dataclass(frozen=True, order=True)
class Layout:
    """How the ranks of one replica group share the model.

    World = pp * dp * cp * tp; experts fold over dp * cp * tp as ep * etp * edp.
    """

    pp: int
    vpp: int
    schedule: Schedule
    tp: int
    cp: int
    ep: int
    etp: int
    dp: int
    zero: int
    """What is sharded over data parallelism: 0 nothing, 1 optimizer, 2 + gradients, 3 + parameters (FSDP)."""
    micro_batch: int
    """Sequences."""
    recompute: tuple[str, ...]
    """A sorted subset of RECOMPUTE: what backward computes again instead of keeping."""
    activations: Activations
    """What dispatched tokens and SwiGLU's inputs are cached as; attention's results then take 12 bits (E5M6)."""
    dispatch: Dispatch = "all_to_all"
    """What takes tokens to other ranks' experts. Nobody but the spec chooses: only its user knows what is installed."""

    @property
    def world(self) -> int:
        return self.pp * self.dp * self.cp * self.tp

    @property
    def copy(self) -> int:
        """Ranks that share one copy of the experts."""
        return self.ep * self.etp

    @property
    def edp(self) -> int:
        """Copies of each expert: expert data parallelism."""
        return self.dp * self.cp * self.tp // self.copy

    @property
    def chunks(self) -> int:
        """Stages of the model."""
        return stage_count(self.schedule, self.pp, self.vpp)

    @property
    def duplicates(self) -> int:
        """Copies of a stage within one pipeline."""
        return 2 if self.schedule == "dualpipe" else 1

    @property
    def keeps_codes(self) -> bool:
        """Whether FP8 codes of weights stay from one micro-batch to the next: among several ranks, save in ZeRO 3."""
        return self.world > 1 and self.zero < 3

    def micro_batches(self, global_batch: int) -> int:
        """Of one pipeline in one step; exact for legal layouts."""
        return global_batch // (self.dp * self.micro_batch)

    def stages(self, rank: int) -> tuple[int, ...]:
        """The stages that pipeline rank `rank` holds, in the order of the model."""
        return stages_of_rank(self.schedule, self.pp, self.vpp, rank)


TRIVIAL = Layout(1, 1, "1f1b", 1, 1, 1, 1, 1, 0, 1, (), "bf16")
"""One GPU."""


def step_sizes(spec: ModelSpec, batch: int) -> tuple[int, ...]:
    """Sequences of a step as training goes on: those of the batch's ramp, and at last the global batch."""
    ramp = spec.training.batch_ramp
    return (batch,) if ramp is None else (*range(ramp.start, batch, ramp.increment), batch)


def global_batch(spec: ModelSpec, world: int) -> int:
    """Sequences of one optimizer step: the spec's, or SEQUENCES_PER_GPU on each GPU."""
    return spec.workload.global_batch or SEQUENCES_PER_GPU * world
