"""What templates/kernels/mla_common.py.jinja is told: which components of a head form a pair, and what needs padding."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import NoTile
from dsc.spec.attention import MlaAttention
from dsc.spec.model import ModelSpec


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    interleaved = mla(spec).rope.layout == "interleaved"
    if not interleaved and _tile_width(mla(spec).qk_rope_head_dim) != mla(spec).qk_rope_head_dim:
        raise NoTile(f"mla_attention: halves of {mla(spec).qk_rope_head_dim} components do not fill a tile")
    pairs = "(x0, x1), (x2, x3), ..." if interleaved else "(x[i], x[i + R / 2])"
    return {"interleaved": interleaved, "pairs": pairs, "padded": padded(spec)}


def mla(spec: ModelSpec) -> MlaAttention:
    assert isinstance(spec.attention, MlaAttention)
    return spec.attention


def widths(spec: ModelSpec) -> tuple[int, int, int]:
    """Columns of a tile of k_nope, k_rope and v."""
    return tuple(_tile_width(width) for width in _dims(spec))  # type: ignore[return-value]


def padded(spec: ModelSpec) -> bool:
    """Whether some head dim is no width of a tile, so that columns are masked."""
    return widths(spec) != _dims(spec)


def _dims(spec: ModelSpec) -> tuple[int, int, int]:
    return mla(spec).qk_nope_head_dim, mla(spec).qk_rope_head_dim, mla(spec).v_head_dim


def _tile_width(width: int) -> int:
    """Tiles are powers of two wide, and products add up at least 16 columns."""
    return max(16, 1 << (width - 1).bit_length())
