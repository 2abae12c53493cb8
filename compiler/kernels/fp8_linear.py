"""What templates/kernels/fp8_linear.py.jinja is told: the block. It only calls the kernels of other files."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.fp8_grouped_gemm import block_of
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    return {"block": block_of(spec)}
