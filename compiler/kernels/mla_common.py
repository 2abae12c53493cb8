"""What templates/kernels/mla_common.py.jinja is told: how tiles are loaded, and which components form a pair."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.spec.attention import MlaAttention
from dsc.spec.model import ModelSpec


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    mla = _mla(spec)
    interleaved = mla.rope.layout == "interleaved"
    assert refusal(spec) is None
    pairs = "(x0, x1), (x2, x3), ..." if interleaved else "(x[i], x[i + R / 2])"
    return {"interleaved": interleaved, "pairs": pairs, **loading(spec, target)}


def refusal(spec: ModelSpec) -> str | None:
    """Why the kernels cannot attend in these dims."""
    mla = _mla(spec)
    if mla.rope.layout == "interleaved" or _tile_width(mla.qk_rope_head_dim) == mla.qk_rope_head_dim:
        return None
    return f"halves of {mla.qk_rope_head_dim} rotary components do not fill a tile"


def loading(spec: ModelSpec, target: Target) -> dict[str, bool]:
    """`padded`: some head dim is no width of a tile, so that columns are masked. `tma`: tiles are loaded by tensor
    descriptors, which need no registers for addresses but cannot mask columns."""
    padded = widths(spec) != _dims(spec)
    return {"padded": padded, "tma": target.arch in ("sm_90", "sm_100") and not padded}


def widths(spec: ModelSpec) -> dict[str, int]:
    """Columns of a tile of each part of a head."""
    return {name: _tile_width(width) for name, width in _dims(spec).items()}


def shared_memory(target: Target, resident: int, streamed: int, scores: int, stages: int) -> int:
    """Bytes that a program takes at most, in bfloat16, for so many elements of each kind.

    Resident tiles and those of every stage on NVIDIA, barriers beside them; Blackwell passes two float32 tiles of
    scores through shared memory too. AMD keeps resident tiles in registers, and one stage less.
    """
    if target.arch.startswith("gfx"):
        return 2 * ((stages - 1) * streamed + 2 * scores)
    passed = 4 * scores if target.arch == "sm_100" else 0
    return 2 * (resident + stages * streamed + passed) + 2048


def _dims(spec: ModelSpec) -> dict[str, int]:
    mla = _mla(spec)
    return {"nope": mla.qk_nope_head_dim, "rope": mla.qk_rope_head_dim, "v": mla.v_head_dim}


def _mla(spec: ModelSpec) -> MlaAttention:
    assert isinstance(spec.attention, MlaAttention)
    return spec.attention


def _tile_width(width: int) -> int:
    """Tiles are powers of two wide, and products add up at least 16 columns."""
    return max(16, 1 << (width - 1).bit_length())
