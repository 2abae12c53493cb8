"""What templates/kernels/weighted_swiglu.py.jinja is told: the tiles."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.swiglu import tile
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec

NAME = "weighted_swiglu"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    return {launch: tile(NAME, launch, target) for launch in ("forward", "backward")}
