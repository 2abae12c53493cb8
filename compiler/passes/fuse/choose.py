"""Which fusions a model gets: those that its target has kernels for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.passes.fuse.attention import fuse_latent_attention
from dsc.compiler.passes.fuse.elementwise import fuse_elementwise
from dsc.compiler.passes.fuse.loss import fuse_linear_cross_entropy
from dsc.compiler.passes.fuse.norms import fuse_norms
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

BLOCKS = ([128, 128], [1, 128])  # of weights and activations, that the FP8 kernels multiply


@dataclass(frozen=True)
class Choice:
    passes: tuple[Callable[[Graph], Graph], ...]
    """In order; they come after all other passes."""
    notes: tuple[str, ...] = ()
    """What the target cannot do as the spec has it, and what is done instead."""


def choose_kernels(spec: ModelSpec, target: Target | None) -> Choice:
    """No kernels where no GPU is named: plain PyTorch runs anywhere.

    Attention of grouped queries stays with PyTorch's operator, which runs cuDNN's and FlashAttention's kernels.
    """
    if target is None:
        return Choice((), _without_fp8(spec, "plain PyTorch, for lack of a cluster"))
    passes = (fuse_norms, fuse_latent_attention, fuse_elementwise, fuse_linear_cross_entropy)
    return Choice(passes)


def _without_fp8(spec: ModelSpec, reason: str) -> tuple[str, ...]:
    if not isinstance(spec.precision.linear, Fp8BlockLinear):
        return ()
    return (f"precision.linear: products run in {spec.precision.parameters}, not in FP8: {reason}",)
