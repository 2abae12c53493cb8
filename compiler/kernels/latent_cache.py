"""What templates/kernels/latent_cache.py.jinja is told: how a row of the cache lies, and the warps of a token."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import NoTile, tiles
from dsc.spec.attention import MlaAttention
from dsc.spec.model import ModelSpec

NAME = "latent_cache"
GROUP = 128  # latent numbers that share a scale in a float8 row


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    rows = cache_rows(spec)
    assert isinstance(spec.attention, MlaAttention)
    latent, rope = spec.attention.kv_lora_rank, spec.attention.qk_rope_head_dim
    (tile,) = tiles(NAME, "write_fp8" if rows == "fp8" else "write", target, {})
    return {"cache_rows": rows, "row_bytes": latent + latent // GROUP * 4 + rope * 2, "write": tile}


def cache_rows(spec: ModelSpec) -> str:
    """How the rows of the cache are kept: "fp8", or "plain" in the type of the cache. Raises NoTile."""
    precision: str = spec.precision.kv_cache
    if precision != "fp8":
        return "plain"
    assert isinstance(spec.attention, MlaAttention)
    if spec.attention.kv_lora_rank % GROUP:
        raise NoTile(f"{NAME}: a latent of {spec.attention.kv_lora_rank} has no whole number of groups of {GROUP}")
    return "fp8"
