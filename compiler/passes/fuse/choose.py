"""Which fusions a model gets: those that its target has kernels for."""

from __future__ import annotations

from collections.abc import Callable

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.passes.fuse.attention import fuse_latent_attention
from dsc.compiler.passes.fuse.loss import fuse_linear_cross_entropy
from dsc.compiler.passes.fuse.norms import fuse_norms


def choose_kernels(target: Target | None) -> tuple[Callable[[Graph], Graph], ...]:
    """The passes in order; none where no GPU is named: plain PyTorch runs anywhere.

    Attention of grouped queries stays with PyTorch's operator, which runs cuDNN's and FlashAttention's kernels.
    """
    if target is None:
        return ()
    return (fuse_norms, fuse_linear_cross_entropy)
