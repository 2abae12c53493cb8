"""What templates/kernels/mla_decode.py.jinja is told: how a row of the cache lies, and its tiles."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels import latent_cache
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, tiles
from dsc.spec.attention import MlaAttention
from dsc.spec.model import ModelSpec

NAME = "mla_decode"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    assert isinstance(spec.attention, MlaAttention)
    latent, rope = spec.attention.kv_lora_rank, spec.attention.qk_rope_head_dim
    assert refusal(spec) is None
    known = latent_cache.values(graph, spec, target)
    launch = "decode_fp8" if known["cache_rows"] == "fp8" else "decode"

    def taken(tile: Numbers) -> int:
        return shared_memory(tile, latent, rope, target)

    (decode,) = tiles(NAME, launch, target, {}, taken)
    (combine,) = tiles(NAME, "combine", target, {})
    return {**known, "decode": decode, "combine": combine}


def refusal(spec: ModelSpec) -> str | None:
    """Why the kernel cannot attend in these dims."""
    assert isinstance(spec.attention, MlaAttention)
    latent, rope = spec.attention.kv_lora_rank, spec.attention.qk_rope_head_dim
    if all(size >= 16 and size & (size - 1) == 0 for size in (latent, rope)):
        return None
    return f"a latent of {latent} and {rope} rotary dims; it takes powers of two from 16 on"


def shared_memory(tile: Numbers, latent: int, rope: int, target: Target) -> int:
    """Bytes that one program takes at most, in bfloat16: the queries, the stages of tokens, and a tile of weights.

    On sm_100 the two products run on their own, each with stages of latents of its own, and signal by barriers.
    """
    copies, barriers = (2, 1024) if target.arch == "sm_100" else (1, 0)
    queries = tile["block_m"] * (latent + rope)
    tokens = tile["num_stages"] * tile["block_n"] * (copies * latent + rope)
    return 2 * (queries + tokens + tile["block_m"] * tile["block_n"]) + barriers
