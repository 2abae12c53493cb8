"""What templates/kernels/rope.py.jinja is told: the heads that are rotated, and the tile."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import tiles
from dsc.spec.attention import MlaAttention
from dsc.spec.model import ModelSpec

NAME = "rope"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    (rotate,) = tiles(NAME, "rotate", target, {})
    if isinstance(spec.attention, MlaAttention):
        sizes = "((NUM_HEADS, QK_ROPE_HEAD_DIM), (1, QK_ROPE_HEAD_DIM))"
    else:
        sizes = "((NUM_HEADS, HEAD_DIM), (NUM_KV_HEADS, HEAD_DIM))"
    return {"rotate": rotate, "sizes": sizes}
