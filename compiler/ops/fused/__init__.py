"""Ops that one Triton kernel computes: each stands for several plain ones, which a pass of passes/fuse finds."""

from dsc.compiler.ops.fused import attention, elementwise, loss, norm

__all__ = ["attention", "elementwise", "loss", "norm"]
