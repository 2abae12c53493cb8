"""Which fusions a model gets: those that its target has kernels for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.verify import verify
from dsc.compiler.kernels.gqa_attention import GQA_ATTENTION, masked
from dsc.compiler.kernels.latent_cache import MLA_DECODE, cache_rows
from dsc.compiler.kernels.lowering import lowered_for, mixtures
from dsc.compiler.kernels.mla_attention import MLA_ATTENTION
from dsc.compiler.kernels.registry import kernel_named
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import NoTile, TileTooLarge
from dsc.compiler.passes.absorb import absorb_latent
from dsc.compiler.passes.each_expert import add_to_shared, loop_over_experts
from dsc.compiler.passes.few_rows import multiply_few_rows
from dsc.compiler.passes.fuse.attention import fuse_latent_attention, fuse_masked_attention
from dsc.compiler.passes.fuse.elementwise import fuse_elementwise
from dsc.compiler.passes.fuse.experts import fuse_experts
from dsc.compiler.passes.fuse.fp8 import multiply_in_fp8
from dsc.compiler.passes.fuse.loss import fuse_linear_cross_entropy
from dsc.compiler.passes.fuse.norms import fuse_norms
from dsc.compiler.passes.fuse.pages import fuse_grouped_pages, fuse_latent_pages, read_fp8_latents
from dsc.compiler.passes.fuse.router import fuse_router
from dsc.spec.attention import GqaAttention, MlaAttention
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

Pass = Callable[[Graph], Graph]


@dataclass(frozen=True)
class Choice:
    passes: tuple[Pass, ...] = ()
    """In order; they come after all other passes."""
    inference: tuple[Pass, ...] = ()
    """For the graph of generation alone, before them."""
    serving: tuple[Pass, ...] = ()
    """For the graph that the engine runs, before them too."""
    prepared: tuple[Pass, ...] = ()
    """For the same graph, once its weights are prepared."""
    notes: tuple[str, ...] = ()
    """Where the package deviates from the spec because of the target, and what it does instead."""


def choose_kernels(spec: ModelSpec, target: Target | None) -> Choice:
    """No kernels where no GPU is named: plain PyTorch runs anywhere.

    Attention of grouped queries to all keys before them stays with PyTorch's operator, which runs cuDNN's and
    FlashAttention's kernels. That reads no pages, and needs a mask of S x S for a window and for documents: there are
    kernels for these.
    """
    spec, unlike = lowered_for(spec, target)
    if target is None:
        return Choice(serving=(loop_over_experts,), prepared=(multiply_few_rows, add_to_shared), notes=unlike)
    passes: list[Pass] = [fuse_norms]
    inference: list[Pass] = []
    serving: list[Pass] = []
    notes = []
    if isinstance(spec.attention, MlaAttention):
        if (reason := MLA_ATTENTION.refusal(spec, target)) is None:
            passes.append(fuse_latent_attention)
        else:
            notes.append(f"attention: PyTorch's attention instead of kernels/mla_attention.py: {reason}")
        if (reason := MLA_DECODE.refusal(spec, target)) is None:
            inference.append(absorb_latent)
            serving.append(fuse_latent_pages)
            if cache_rows(spec, target) == "fp8":
                serving.append(read_fp8_latents)
        else:
            notes.append(f"infer: expanded attention instead of kernels/mla_decode.py: {reason}")
    elif (reason := GQA_ATTENTION.refusal(spec, target)) is None:
        passes.append(fuse_masked_attention)
        if isinstance(spec.attention, GqaAttention):
            serving.append(fuse_grouped_pages)
    elif masked(spec):
        notes.append(f"attention: PyTorch's attention instead of kernels/gqa_attention.py: {reason}")
    if mixtures(spec) > 1:
        notes.append("ffn: plain PyTorch for routers and experts: the kernels have the sizes of one mixture of experts")
    else:
        passes += [fuse_router, fuse_experts]
    passes += [fuse_elementwise, fuse_linear_cross_entropy]
    if isinstance(linear := spec.precision.linear, Fp8BlockLinear):
        passes.append(partial(multiply_in_fp8, linear=linear))
    return Choice(tuple(passes), tuple(inference), tuple(serving), notes=(*notes, *unlike))


def fused(
    graphs: Sequence[Graph], passes: Iterable[Pass], spec: ModelSpec, target: Target | None
) -> tuple[Sequence[Graph], tuple[str, ...]]:
    """The graphs with the kernels of each pass; plain ops in all, and a note, where one has no tile for the model."""
    notes = []
    for one in passes:
        changed = {id(graph): verify(one(graph), graph) for graph in graphs}  # two may be one graph
        tried = [changed[id(graph)] for graph in graphs]
        wanted = [(kernel, graph) for graph in changed.values() for kernel in called(graph)]
        reasons = [reason for kernel, graph in wanted if (reason := _without_tile(kernel, graph, spec, target))]
        notes += [f"plain PyTorch in place of {reason}" for reason in dict.fromkeys(reasons)]
        graphs = graphs if reasons else tried
    return graphs, tuple(notes)


def called(graph: Graph) -> list[str]:
    """The modules of kernels/ whose functions a graph calls."""
    ops = (node.op for block in graph.blocks.values() for node in block.nodes())
    modules = {module for op in ops for name in op.requires if (module := _module(name))}
    return sorted(modules)


def _module(required: str) -> str:
    room, _, rest = required.partition(".")
    return rest.partition(".")[0] if room == "kernels" else ""


def _without_tile(kernel: str, graph: Graph, spec: ModelSpec, target: Target | None) -> str:
    """Why a kernel cannot be printed for a graph; empty where it can."""
    try:
        kernel_named(kernel).told(graph, spec, target)
    except (NoTile, TileTooLarge) as reason:
        return f"kernels/{kernel}.py: {reason}"
    return ""
