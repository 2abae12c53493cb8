"""Rotary position embedding."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.kernel import Kernel, Launch, Probe
from dsc.compiler.kernels.target import Target
from dsc.spec.model import ModelSpec


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    return {"half": all(attention.rope.layout == "half" for attention in spec.attentions.values())}


ROPE = Kernel(
    "rope",
    launches=(Launch("rotate"),),
    values=values,
    probes=(Probe("deepseek-v3", everywhere=True), Probe("llama-3.1-8b", everywhere=True)),
)
