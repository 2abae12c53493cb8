"""What templates/kernels/latent_cache.py.jinja is told: how a row of the cache lies, and the warps of a token."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import tiles
from dsc.spec.attention import MlaAttention
from dsc.spec.model import ModelSpec
from dsc.spec.precision import CACHE_GROUP

NAME = "latent_cache"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    rows = cache_rows(spec, target)
    assert isinstance(spec.attention, MlaAttention)
    latent, rope = spec.attention.kv_lora_rank, spec.attention.qk_rope_head_dim
    (tile,) = tiles(NAME, "write_fp8" if rows == "fp8" else "write", target, {})
    return {"cache_rows": rows, "row_bytes": latent + latent // CACHE_GROUP * 4 + rope * 2, "write": tile}


def cache_rows(spec: ModelSpec, target: Target) -> str:
    """How the rows of the cache are kept: "fp8", or "plain" in the type of what is kept."""
    return "fp8" if spec.precision.kv_cache == "fp8" and target.fp8 else "plain"
