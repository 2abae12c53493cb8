"""Rotary position embedding."""

from __future__ import annotations

from dsc.compiler.kernels.kernel import Dims, Kernel, Launch, Probe


def sizes(dims: Dims) -> tuple[tuple[int, int], ...]:
    """Heads, and the components of each that are rotated, of queries and of keys."""
    if "QK_ROPE_HEAD_DIM" in dims:
        return (dims["NUM_HEADS"], dims["QK_ROPE_HEAD_DIM"]), (1, dims["QK_ROPE_HEAD_DIM"])
    return (dims["NUM_HEADS"], dims["HEAD_DIM"]), (dims["NUM_KV_HEADS"], dims["HEAD_DIM"])


ROPE = Kernel(
    "rope",
    launches=(Launch("rotate"),),
    sizes=sizes,
    probes=(Probe("deepseek-v3", everywhere=True), Probe("llama-3.1-8b", everywhere=True)),
)
