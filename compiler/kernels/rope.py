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
    heads: dict[str, None] = {}
    for name, attention in spec.attentions.items():
        prefix = f"{name.upper()}_" if len(spec.attentions) > 1 else ""
        width = f"{prefix}QK_ROPE_HEAD_DIM" if isinstance(attention, MlaAttention) else f"{prefix}HEAD_DIM"
        shared = "1" if isinstance(attention, MlaAttention) else f"{prefix}NUM_KV_HEADS"
        heads |= dict.fromkeys((f"({prefix}NUM_HEADS, {width})", f"({shared}, {width})"))
    half = all(attention.rope.layout == "half" for attention in spec.attentions.values())
    return {"rotate": rotate, "half": half, "sizes": f"({', '.join(heads)})"}
