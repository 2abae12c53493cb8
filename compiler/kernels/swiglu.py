"""SwiGLU of feed-forwards, and its formula for every kernel that computes it."""

from __future__ import annotations

from dsc.compiler.kernels.kernel import Kernel, Launch, Probe

SWIGLU = Kernel(
    "swiglu",
    launches=(Launch("forward"), Launch("backward")),
    probes=(Probe("deepseek-v3", everywhere=True), Probe("llama-3.1-8b", everywhere=True)),
)
SWIGLU_FORMULA = Kernel("swiglu_formula", values=lambda graph, spec, target: {"limit": spec.ffn.swiglu_limit})
