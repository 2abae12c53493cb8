"""What templates/kernels/grouped_gemm_backward.py.jinja is told: tiles by the number of rows of an expert."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.grouped_gemm import chosen
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec

NAME = "grouped_gemm_backward"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    return {launch: chosen(NAME, launch, target) for launch in ("down_gradient", "weight_gradient")}
