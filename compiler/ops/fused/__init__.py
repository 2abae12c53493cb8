"""Ops that one Triton kernel computes: each stands for several plain ones, which a pass of passes/fuse finds."""

from dsc.compiler.ops.fused import norm

__all__ = ["norm"]
