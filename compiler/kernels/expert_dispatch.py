"""Which rows each expert works on, and the way back to the tokens."""

from __future__ import annotations

from dsc.compiler.kernels.kernel import V3, Kernel, Launch, Probe, named

EXPERT_DISPATCH = Kernel(
    "expert_dispatch",
    launches=(Launch("sort"), Launch("combine")),
    sizes=named("NUM_EXPERTS", "TOP_K", "HIDDEN_SIZE"),
    probes=(V3, Probe("mixtral-8x7b")),
)
