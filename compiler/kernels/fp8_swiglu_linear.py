"""What templates/kernels/fp8_swiglu_linear.py.jinja is told: nothing, it only calls the kernels of other files."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    return {}
