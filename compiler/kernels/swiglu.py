"""SwiGLU of feed-forwards, and its formula for every kernel that computes it."""

from __future__ import annotations

from dsc.compiler.kernels.kernel import Kernel, Launch, Probe, widths

FEED_FORWARDS = ("INTERMEDIATE_SIZE", "SHARED_SIZE")
"""Dims that are the width of a feed-forward: dense, of the shared experts."""

SWIGLU = Kernel(
    "swiglu",
    launches=(Launch("forward"), Launch("backward")),
    sizes=widths(*FEED_FORWARDS),
    probes=(Probe("deepseek-v3", everywhere=True), Probe("llama-3.1-8b", everywhere=True)),
)
SWIGLU_FORMULA = Kernel("swiglu_formula", values=lambda graph, spec, target: {"limit": spec.ffn.swiglu_limit})
