"""What of a layout the times of a part depend on, and of a stage: the keys under which both are known."""

from __future__ import annotations

from typing import NamedTuple

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.time.kernels import Share

PAIRING = ("dualpipe", "dualpipe-v")
"""Schedules that hide expert all-to-alls in F&B pairs of their own."""

SPLITTING = ("zbv", "dualpipe-v")
"""Schedules that put off the gradients of weights, of which the package has code."""

Counts = tuple[tuple[str, int], ...]
"""How many parts of each kind a stage has."""


class PartSharing(NamedTuple):
    """Of a part."""

    micro_batch: int
    tp: int
    cp: int
    ep: int
    etp: int
    codes: bool
    """FP8 codes of weights are there already."""
    deduplicates: bool = False
    """DeepEP sends tokens to their experts."""

    @property
    def share(self) -> Share:
        """Of one rank."""
        return Share(self.cp * self.tp, self.tp, self.ep * self.etp, self.etp)


class StageSharing(NamedTuple):
    """Of a stage, whose weights may be sharded."""

    sharing: PartSharing
    dense_ranks: int
    """Ranks that share a dense parameter."""
    expert_ranks: int
    zero: int
    splits: bool
    """The gradients of weights may be made by themselves."""


def stage_sharing(layout: Layout) -> StageSharing:
    """ZeRO-1 shards nothing that a stage reads, so it is as good as none."""
    sizes = layout.micro_batch, layout.tp, layout.cp, layout.ep, layout.etp
    sharing = PartSharing(*sizes, layout.keeps_codes, layout.dispatch == "deepep")
    if layout.zero > 1:
        return StageSharing(sharing, layout.dp * layout.cp, layout.edp, layout.zero, layout.schedule in SPLITTING)
    return StageSharing(sharing, 1, 1, 0, False)
