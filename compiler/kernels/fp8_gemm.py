"""The products of linear layers in FP8."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.kernels.fp8_block import V3_FP8, block_dims, block_of, block_value, fp8_refusal
from dsc.compiler.kernels.kernel import Dims, Kernel, Launch, Probe
from dsc.compiler.kernels.swiglu import FEED_FORWARDS
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.model import ModelSpec


def shared_memory(tile: Numbers, spec: ModelSpec, target: Target) -> int:
    """A step of both operands for each stage, one byte a code; the scales of a tile's side, and barriers."""
    m, n = tile["BLOCK_M"], tile["BLOCK_N"]
    return tile["num_stages"] * (m + n) * block_of(spec) + 4 * max(m, n) + 64


def shapes(dims: Dims) -> tuple[tuple[int, int], ...]:
    """[N, K] of the linear layers of attention and feed-forwards."""
    d, heads = dims["HIDDEN_SIZE"], dims["NUM_HEADS"]
    inner = {dims[name] for name in FEED_FORWARDS if name in dims}
    feed_forward = {(width, d) for width in inner} | {(d, width) for width in inner}
    if "KV_LORA_RANK" not in dims:
        head, kv_heads = dims["HEAD_DIM"], dims["NUM_KV_HEADS"]
        return tuple(sorted(feed_forward | {(heads * head, d), (kv_heads * head, d), (d, heads * head)}))
    rank, nope, rope, v = (dims[n] for n in ("KV_LORA_RANK", "QK_NOPE_HEAD_DIM", "QK_ROPE_HEAD_DIM", "V_HEAD_DIM"))
    queries = {(heads * (nope + rope), dims.get("Q_LORA_RANK", d))}
    if "Q_LORA_RANK" in dims:
        queries.add((dims["Q_LORA_RANK"], d))
    latent = {(rank + rope, d), (heads * (nope + v), rank), (d, heads * v)}
    return tuple(sorted(feed_forward | queries | latent))


TYPICAL = r" (7168 x 16384|16384 x 7168|576 x 7168|7168 x 576)\b"
"""The largest products of DeepSeek-V3, and one that no block divides."""
TRAINING = "forward 4096 |dgrad|wgrad"

FP8_GEMM = Kernel(
    "fp8_gemm",
    launches=(
        Launch("forward", "fp8", by_rows=True, dims=block_dims, shared_memory=shared_memory),
        Launch("wgrad", "fp8", dims=block_dims, shared_memory=shared_memory),
    ),
    values=block_value,
    refusal=fp8_refusal,
    sizes=shapes,
    probes=(
        replace(V3_FP8, only=TYPICAL),
        replace(V3_FP8, only=TRAINING, everywhere=False),
        Probe("llama-3.1-8b", changes=V3_FP8.changes, only=TRAINING),
    ),
)
