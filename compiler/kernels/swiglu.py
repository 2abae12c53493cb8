"""What templates/kernels/swiglu.py.jinja is told: the widths of the model, and the tiles."""

from __future__ import annotations

from collections.abc import Iterable

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Tile, tiles
from dsc.spec.model import ModelSpec

NAME = "swiglu"
FEED_FORWARD = ("INTERMEDIATE_SIZE", "SHARED_SIZE", "EXPERT_SIZE")
"""Constants that are the width of a feed-forward: dense, of the shared experts, of a routed one."""


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    launches = {launch: tile(NAME, launch, target) for launch in ("forward", "backward")}
    return {**launches, "widths": widths(graph, FEED_FORWARD[:2])}


def tile(kernel: str, launch: str, target: Target) -> Tile:
    """The one row of a launch that takes any sizes."""
    (chosen,) = tiles(kernel, launch, target, {})
    return chosen


def widths(graph: Graph, names: Iterable[str]) -> str:
    """Those of the constants that the model has, as the inside of a tuple."""
    known = {constant.name for constant in graph.constants}
    return "".join(f"{name}, " for name in names if name in known)
