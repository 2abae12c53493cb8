"""Which pipelines run a forward beside a backward, so that each hides the other's all-to-alls."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from dsc.compiler.passes.turns import why_one_by_one
from dsc.compiler.planner.layout.layout import Layout


@dataclass(frozen=True)
class OtherEngines:
    """What engines other than the package do. Published rows of theirs are told with it; no plan is.

    All of them send a token once to each domain of its experts, and copy it there.
    """

    fp8_products: Set[str] = field(default_factory=frozenset)
    """Names of precision.linear.products that they run in FP8 where the package's graph does not."""
    interleaved_hides: bool = False
    """Whether interleaved schedules run the all-to-alls of a forward beside the backward next to it, as Megatron-Core
    can (overlap_moe_expert_parallel_comm)."""
    recompute_hides: bool = False
    """Whether the halves of a DualPipeV may run whole layers again."""


@dataclass(frozen=True)
class Overlap:
    """Of one model."""

    cycles: bool
    """Its layers come in turns, several kinds of them."""
    others: OtherEngines | None = None

    def hides(self, layout: Layout) -> bool:
        """DualPipe itself is other engines' and not emitted, so it does as theirs."""
        if layout.schedule == "dualpipe-v":
            again = () if self.others and self.others.recompute_hides else layout.recompute
            return layout.copy > 1 and why_one_by_one(again, self.cycles) is None
        if layout.schedule == "interleaved":
            return self.others is not None and self.others.interleaved_hides
        return layout.schedule == "dualpipe"
