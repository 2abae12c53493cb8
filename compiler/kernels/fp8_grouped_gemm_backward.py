"""What templates/kernels/fp8_grouped_gemm_backward.py.jinja is told: the block, and tiles by the rows of an expert."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.fp8_grouped_gemm import block_of, chosen
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec

NAME = "fp8_grouped_gemm_backward"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    block = block_of(spec)
    return {"block": block, "down_gradient": chosen(NAME, "down_gradient", target, block)}
