"""MLA's attention, expanded: forward, backward, and what both print in common."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.attention_rows import loading, shared_memory, tile_width, tile_widths
from dsc.compiler.kernels.kernel import V3, Kernel, Launch, Probe
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.attention import MlaAttention
from dsc.spec.model import ModelSpec


def _common(graph: Graph, spec: ModelSpec, target: Target) -> Mapping[str, object]:
    interleaved = _mla(spec).rope.layout == "interleaved"
    pairs = "(x0, x1), (x2, x3), ..." if interleaved else "(x[i], x[i + R / 2])"
    return {"interleaved": interleaved, "pairs": pairs, **loading(graph, spec, target)}


def _refusal(spec: ModelSpec, target: Target) -> str | None:
    mla = _mla(spec)
    if mla.rope.layout == "interleaved" or tile_width(mla.qk_rope_head_dim) == mla.qk_rope_head_dim:
        return None
    return f"halves of {mla.qk_rope_head_dim} rotary components do not fill a tile"


def _shared_memory(resident: str, with_v: bool, tile: Numbers, spec: ModelSpec, target: Target) -> int:
    """Bytes where the `resident` side of a tile stays and the other streams through."""
    width, scores = tile_widths(spec), tile["BLOCK_M"] * tile["BLOCK_N"]
    held = tile[resident] * (sum(width.values()) if with_v else width["nope"] + width["rope"])
    return shared_memory(held, scores // tile[resident] * sum(width.values()), tile, target)


def _launch(name: str, resident: str, with_v: bool) -> Launch:
    """`with_v`: dout or v, as wide as v, comes with what stays."""
    return Launch(
        name,
        "bf16",
        dims=lambda spec, target: tile_widths(spec),
        shared_memory=partial(_shared_memory, resident, with_v),
    )


def _mla(spec: ModelSpec) -> MlaAttention:
    assert isinstance(spec.attention, MlaAttention)
    return spec.attention


PROBES = (V3, Probe("deepseek-v3", changes={"training.documents": "apart"}, everywhere=True))
"""Rows of one document, and of several."""
MLA_COMMON = Kernel("mla_common", values=_common, refusal=_refusal)
MLA_ATTENTION = Kernel(
    "mla_attention",
    launches=(_launch("forward", "BLOCK_M", with_v=False),),
    values=loading,
    refusal=_refusal,
    probes=PROBES,
)
MLA_ATTENTION_BACKWARD = Kernel(
    "mla_attention_backward",
    launches=(_launch("keys", "BLOCK_N", with_v=True), _launch("queries", "BLOCK_M", with_v=True)),
    values=loading,
    refusal=_refusal,
    probes=PROBES,
)
