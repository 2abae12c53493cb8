"""MLA's attention, expanded: forward, backward, and what both print in common."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.kernel import V3, Kernel, Launch, Probe
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.attention import MlaAttention
from dsc.spec.model import ModelSpec


def _loading(graph: Graph, spec: ModelSpec, target: Target) -> Mapping[str, object]:
    """`padded`: some head dim is no width of a tile, so that columns are masked. `tma`: tiles are loaded by tensor
    descriptors, which need no registers for addresses but cannot mask columns. `documents`: a row may hold several."""
    padded = _tile_widths(spec) != _head_dims(spec)
    documents = spec.training.documents == "apart" or spec.rl is not None
    return {"padded": padded, "tma": target.arch in ("sm_90", "sm_100") and not padded, "documents": documents}


def _common(graph: Graph, spec: ModelSpec, target: Target) -> Mapping[str, object]:
    interleaved = _mla(spec).rope.layout == "interleaved"
    pairs = "(x0, x1), (x2, x3), ..." if interleaved else "(x[i], x[i + R / 2])"
    return {"interleaved": interleaved, "pairs": pairs, **_loading(graph, spec, target)}


def _refusal(spec: ModelSpec, target: Target) -> str | None:
    mla = _mla(spec)
    if mla.rope.layout == "interleaved" or _tile_width(mla.qk_rope_head_dim) == mla.qk_rope_head_dim:
        return None
    return f"halves of {mla.qk_rope_head_dim} rotary components do not fill a tile"


def _shared_memory(resident: str, with_v: bool, tile: Numbers, spec: ModelSpec, target: Target) -> int:
    """Bytes in bfloat16, where the `resident` side of a tile stays and the other streams through.

    Resident tiles and those of every stage on NVIDIA, barriers beside them; Blackwell passes two float32 tiles of
    scores through shared memory too. AMD keeps resident tiles in registers, and one stage less.
    """
    width, scores, stages = _tile_widths(spec), tile["BLOCK_M"] * tile["BLOCK_N"], tile["num_stages"]
    held = tile[resident] * (sum(width.values()) if with_v else width["nope"] + width["rope"])
    streamed = scores // tile[resident] * sum(width.values())
    if target.arch.startswith("gfx"):
        return 2 * ((stages - 1) * streamed + 2 * scores)
    passed = 4 * scores if target.arch == "sm_100" else 0
    return 2 * (held + stages * streamed + passed) + 2048


def _launch(name: str, resident: str, with_v: bool) -> Launch:
    """`with_v`: dout or v, as wide as v, comes with what stays."""
    return Launch(
        name,
        "bf16",
        dims=lambda spec, target: _tile_widths(spec),
        shared_memory=partial(_shared_memory, resident, with_v),
    )


def _tile_widths(spec: ModelSpec) -> dict[str, int]:
    """Columns of a tile of each part of a head."""
    return {name: _tile_width(width) for name, width in _head_dims(spec).items()}


def _head_dims(spec: ModelSpec) -> dict[str, int]:
    mla = _mla(spec)
    return {"nope": mla.qk_nope_head_dim, "rope": mla.qk_rope_head_dim, "v": mla.v_head_dim}


def _mla(spec: ModelSpec) -> MlaAttention:
    assert isinstance(spec.attention, MlaAttention)
    return spec.attention


def _tile_width(width: int) -> int:
    """Tiles are powers of two wide, and products sum over at least 16 columns."""
    return max(16, 1 << (width - 1).bit_length())


PROBES = (V3, Probe("deepseek-v3", changes={"training.documents": "apart"}, everywhere=True))
"""Rows of one document, and of several."""
MLA_COMMON = Kernel("mla_common", values=_common, refusal=_refusal)
MLA_ATTENTION = Kernel(
    "mla_attention",
    launches=(_launch("forward", "BLOCK_M", with_v=False),),
    values=_loading,
    refusal=_refusal,
    probes=PROBES,
)
MLA_ATTENTION_BACKWARD = Kernel(
    "mla_attention_backward",
    launches=(_launch("keys", "BLOCK_N", with_v=True), _launch("queries", "BLOCK_M", with_v=True)),
    values=_loading,
    refusal=_refusal,
    probes=PROBES,
)
