"""Rotary position embedding."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.kernel import Dims, Kernel, Launch, Probe
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec


def sizes(dims: Dims) -> tuple[tuple[int, int], ...]:
    """Heads, and the components of each that are rotated, of queries and of keys, for each attention of the model."""
    found: list[tuple[int, int]] = []
    for prefix in (name.removesuffix("NUM_HEADS") for name in dims if name.endswith("NUM_HEADS")):
        if f"{prefix}QK_ROPE_HEAD_DIM" in dims:
            width, shared = dims[f"{prefix}QK_ROPE_HEAD_DIM"], 1
        else:
            width, shared = dims[f"{prefix}HEAD_DIM"], dims[f"{prefix}NUM_KV_HEADS"]
        found += [(dims[f"{prefix}NUM_HEADS"], width), (shared, width)]
    return tuple(dict.fromkeys(found))


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    return {"half": all(attention.rope.layout == "half" for attention in spec.attentions.values())}


ROPE = Kernel(
    "rope",
    launches=(Launch("rotate"),),
    values=values,
    sizes=sizes,
    probes=(Probe("deepseek-v3", everywhere=True), Probe("llama-3.1-8b", everywhere=True)),
)
