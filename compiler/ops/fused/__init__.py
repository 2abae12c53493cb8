"""Ops that one Triton kernel computes: each stands for several plain ones, which a pass of passes/fuse finds."""

from dsc.compiler.ops.fused import attention, codes, elementwise, experts, fp8, latent, loss, norm, pages, router

__all__ = ["attention", "codes", "elementwise", "experts", "fp8", "latent", "loss", "norm", "pages", "router"]
