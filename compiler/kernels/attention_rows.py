"""What the kernels of attention print in common: tiles of rows, and which keys a query sees."""

from __future__ import annotations

from collections.abc import Mapping

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.kernel import Kernel
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.attention import GroupedQueries, MlaAttention
from dsc.spec.model import ModelSpec


def loading(graph: Graph, spec: ModelSpec, target: Target) -> Mapping[str, object]:
    """`padded`: some head dim is no width of a tile, so that columns are masked. `tma`: tiles are loaded by tensor
    descriptors, which need no registers for addresses but cannot mask columns. `documents`: a row may hold several."""
    padded = tile_widths(spec) != head_dims(spec)
    tma = target.arch in ("sm_90", "sm_100") and not padded
    return {"padded": padded, "tma": tma, "documents": within_documents(spec)}


def within_documents(spec: ModelSpec) -> bool:
    """Whether rows hold several documents, each as if alone."""
    return spec.training.documents == "apart" or spec.rl is not None


def tile_widths(spec: ModelSpec) -> dict[str, int]:
    """Columns of a tile of each part of a head."""
    return {name: tile_width(width) for name, width in head_dims(spec).items()}


def head_dims(spec: ModelSpec) -> dict[str, int]:
    match spec.attention:
        case MlaAttention() as mla:
            return {"nope": mla.qk_nope_head_dim, "rope": mla.qk_rope_head_dim, "v": mla.v_head_dim}
        case _:
            (width,) = grouped_widths(spec)
            return {"head": width}


def grouped_widths(spec: ModelSpec) -> set[int]:
    """Of the heads of its kinds of grouped queries."""
    return {one.head_dim for one in spec.attentions.values() if isinstance(one, GroupedQueries)}


def tile_width(width: int) -> int:
    """Tiles are powers of two wide, and products sum over at least 16 columns."""
    return max(16, 1 << (width - 1).bit_length())


def shared_memory(held: int, streamed: int, tile: Numbers, target: Target) -> int:
    """Bytes in bfloat16 of `held` numbers that stay and `streamed` ones of each stage, barriers beside them.

    Blackwell passes two float32 tiles of scores through shared memory too. AMD keeps in registers what stays, and has
    one stage less.
    """
    scores, stages = tile["BLOCK_M"] * tile["BLOCK_N"], tile["num_stages"]
    if target.arch.startswith("gfx"):
        return 2 * ((stages - 1) * streamed + 2 * scores)
    passed = 4 * scores if target.arch == "sm_100" else 0
    return 2 * (held + stages * streamed + passed) + 2048


def _values(graph: Graph, spec: ModelSpec, target: Target) -> Mapping[str, object]:
    """Grouped queries have the kernel only where each is told the first key that it sees."""
    told = loading(graph, spec, target)
    return told if isinstance(spec.attention, MlaAttention) else {**told, "documents": True}


ATTENTION_ROWS = Kernel("attention_rows", values=_values)
