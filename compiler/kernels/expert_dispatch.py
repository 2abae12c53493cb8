"""What templates/kernels/expert_dispatch.py.jinja is told: a tile for sorting and one for combining."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import tiles
from dsc.spec.model import ModelSpec

NAME = "expert_dispatch"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    (sort,) = tiles(NAME, "sort", target, {})
    (combine,) = tiles(NAME, "combine", target, {})
    return {"sort": sort, "combine": combine}
