"""Which rows each expert works on, and the way back to the tokens."""

from __future__ import annotations

from dsc.compiler.kernels.kernel import V3, Kernel, Launch, Probe

EXPERT_DISPATCH = Kernel(
    "expert_dispatch",
    launches=(Launch("sort"), Launch("combine")),
    probes=(V3, Probe("mixtral-8x7b")),
)
