"""The paged latent cache of MLA: its rows, the write of new tokens, and attention of new tokens over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.kernel import V3, Kernel, Launch
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.attention import MlaAttention
from dsc.spec.model import ModelSpec
from dsc.spec.precision import CACHE_GROUP


def cache_rows(spec: ModelSpec, target: Target) -> str:
    """How the rows of the cache are kept: "fp8", or "plain" in the type of what is kept."""
    return "fp8" if spec.precision.kv_cache == "fp8" and target.fp8 else "plain"


def _rows(graph: Graph, spec: ModelSpec, target: Target) -> Mapping[str, object]:
    latent, rope = _widths(spec)
    row_bytes = latent + latent // CACHE_GROUP * 4 + rope * 2
    return {"cache_rows": cache_rows(spec, target), "row_bytes": row_bytes}


def _row_dims(spec: ModelSpec, target: Target) -> Numbers:
    return {"fp8_rows": int(cache_rows(spec, target) == "fp8")}


def _refusal(spec: ModelSpec, target: Target) -> str | None:
    latent, rope = _widths(spec)
    if all(size >= 16 and size & (size - 1) == 0 for size in (latent, rope)):
        return None
    return f"a latent of {latent} and {rope} rotary dims; it takes powers of two from 16 on"


def _shared_memory(tile: Numbers, spec: ModelSpec, target: Target) -> int:
    """Bytes in bfloat16: the queries, the tokens of every stage, and a tile of probabilities.

    On sm_100 each of the two products has stages of latents of its own, and signals by barriers.
    """
    latent, rope = _widths(spec)
    copies, barriers = (2, 1024) if target.arch == "sm_100" else (1, 0)
    queries = tile["BLOCK_M"] * (latent + rope)
    tokens = tile["num_stages"] * tile["BLOCK_N"] * (copies * latent + rope)
    return 2 * (queries + tokens + tile["BLOCK_M"] * tile["BLOCK_N"]) + barriers


def _widths(spec: ModelSpec) -> tuple[int, int]:
    assert isinstance(spec.attention, MlaAttention)
    return spec.attention.kv_lora_rank, spec.attention.qk_rope_head_dim


PROBES = (V3, replace(V3, changes={"precision.kv_cache": "fp8"}))
LATENT_CACHE = Kernel(
    "latent_cache",
    launches=(Launch("write", dims=_row_dims),),
    values=_rows,
    probes=PROBES,
)
MLA_DECODE = Kernel(
    "mla_decode",
    launches=(Launch("split", "bf16", dims=_row_dims, shared_memory=_shared_memory), Launch("combine")),
    values=_rows,
    refusal=_refusal,
    probes=PROBES,
)
