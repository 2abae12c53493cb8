"""What a search chooses from: ways to share the GPUs, and what each of them may shard, recompute and keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsc.compiler.planner.layout.layout import Activations, Layout
from dsc.compiler.planner.layout.pins import check_pins
from dsc.compiler.planner.layout.space import LayoutFamily, variants
from dsc.compiler.planner.search.problem import Problem

Lacks = Callable[[Layout], tuple[str, ...]]


@dataclass(frozen=True)
class Offer:
    families: tuple[LayoutFamily, ...]
    zeros: Callable[[Layout], tuple[int, ...]]
    """ZeRO stages of one way to share the GPUs, what shards least first."""
    recompute: tuple[tuple[str, ...], ...]
    """Sets, the smallest first."""
    activations: tuple[Activations, ...]
    """What they are kept as, the widest first."""
    lacks: Lacks
    """Why a layout is not on offer, though it is legal and keeps to the pins; empty where it is."""


def everything(problem: Problem) -> Offer:
    """All that is legal. Raises DscError where the spec's pins contradict each other."""
    families = check_pins(problem.spec, problem.world, problem.batch, problem.hardware.cluster.scale_up_domain)
    every = tuple(variants(next(families[0].grids()), problem.spec))
    zeros = tuple(dict.fromkeys(one.zero for one in every))
    return Offer(
        families,
        lambda grid: zeros,
        tuple(dict.fromkeys(one.recompute for one in every)),
        tuple(dict.fromkeys(one.activations for one in every)),
        lambda layout: (),
    )
