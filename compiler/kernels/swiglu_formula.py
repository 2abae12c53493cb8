"""What templates/kernels/swiglu_formula.py.jinja is told: whether there is a limit."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    return {"limit": spec.ffn.swiglu_limit}
