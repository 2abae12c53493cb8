"""What templates/kernels/router.py.jinja is told: the tile."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import tiles
from dsc.spec.model import ModelSpec

NAME = "router"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    (choose,) = tiles(NAME, "choose", target, {})
    return {"choose": choose}
