"""What templates/kernels/fp8_codes.py.jinja is told: the block, and the format of its scales."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    linear = spec.precision.linear
    assert isinstance(linear, Fp8BlockLinear), "only fp8 linear layers quantise"
    return {"block": linear.activation_block[1], "ue8m0": linear.scale == "ue8m0"}
