"""Attention of grouped queries to what each is told it sees: forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.attention_rows import (
    grouped_widths,
    head_dims,
    loading,
    shared_memory,
    tile_widths,
    within_documents,
)
from dsc.compiler.kernels.kernel import Kernel, Launch, Probe
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.attention import GqaAttention, GroupedQueries, WindowAttention
from dsc.spec.model import ModelSpec


def _form(graph: Graph, spec: ModelSpec, target: Target) -> Mapping[str, object]:
    """Each query is told the first key that it sees. `windowed`: some see a window only, of documents where these
    are `apart`. `whole`: some see all of their document; without documents that is PyTorch's operator's."""
    told = loading(graph, spec, target)
    windowed, full = _some(WindowAttention, spec), _some(GqaAttention, spec)
    whole = full and (told["documents"] or not windowed)
    return {**told, "documents": True, "windowed": windowed, "apart": told["documents"], "whole": whole}


def _some(kind: type[GroupedQueries], spec: ModelSpec) -> bool:
    return any(isinstance(one, kind) for one in spec.attentions.values())


def _refusal(spec: ModelSpec, target: Target) -> str | None:
    if not all(isinstance(one, GroupedQueries) for one in spec.attentions.values()):
        return "it is for grouped queries alone"
    return "its tiles are cut for heads of one width" if len(grouped_widths(spec)) > 1 else None


def masked(spec: ModelSpec) -> bool:
    """Whether PyTorch's operator would need a mask of S x S in training."""
    return _some(WindowAttention, spec) or within_documents(spec)


def _shared_memory(resident: str, tensors: int, tile: Numbers, spec: ModelSpec, target: Target) -> int:
    """Bytes where so many tensors of the `resident` side of a tile stay, and two of the other stream through."""
    (width,) = tile_widths(spec).values()
    scores = tile["BLOCK_M"] * tile["BLOCK_N"]
    return shared_memory(tensors * tile[resident] * width, 2 * scores // tile[resident] * width, tile, target)


def _launch(name: str, resident: str, tensors: int) -> Launch:
    return Launch(
        name,
        "bf16",
        dims=lambda spec, target: {**tile_widths(spec), "padded": int(tile_widths(spec) != head_dims(spec))},
        shared_memory=partial(_shared_memory, resident, tensors),
    )


APART = {"training.documents": "apart"}
PROBES = (
    Probe("llama-3.1-8b", changes=APART, everywhere=True),
    Probe("qwen3-30b-a3b", changes=APART),
    Probe("mistral-7b"),
    Probe("tiny-window", changes=APART),
    Probe("llama-3.1-8b", changes={**APART, "attention.head_dim": 96}),
)
"""Documents, with 4 and with 8 query heads to a key head; a window; both; heads that are no power of two wide."""
GQA_ATTENTION = Kernel(
    "gqa_attention",
    launches=(_launch("forward", "BLOCK_M", 1),),
    values=_form,
    refusal=_refusal,
    probes=PROBES,
)
GQA_ATTENTION_BACKWARD = Kernel(
    "gqa_attention_backward",
    launches=(_launch("queries", "BLOCK_M", 3), _launch("keys", "BLOCK_N", 2)),
    values=_form,
    refusal=_refusal,
    probes=PROBES,
)
