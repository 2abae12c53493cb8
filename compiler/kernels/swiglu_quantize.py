"""What templates/kernels/swiglu_quantize.py.jinja is told: the block, and the tiles."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.fp8_quantize import tile
from dsc.compiler.kernels.swiglu import FEED_FORWARD, widths
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

NAME = "swiglu_quantize"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    linear = spec.precision.linear
    assert isinstance(linear, Fp8BlockLinear), "only fp8 linear layers quantise"
    launches = {launch: tile(NAME, launch, target, linear) for launch in ("rows", "columns")}
    return {
        **launches,
        "block": linear.activation_block[1],
        "widths": widths(graph, FEED_FORWARD[:2]),
    }
