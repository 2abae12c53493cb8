"""The products of linear layers in FP8."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.kernels.fp8_block import V3_FP8, block_dims, block_of, block_value, fp8_refusal
from dsc.compiler.kernels.kernel import Kernel, Launch, Probe
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.model import ModelSpec


def shared_memory(tile: Numbers, spec: ModelSpec, target: Target) -> int:
    """A step of both operands for each stage, one byte a code; the scales of a tile's side, and barriers."""
    m, n = tile["BLOCK_M"], tile["BLOCK_N"]
    return tile["num_stages"] * (m + n) * block_of(spec) + 4 * max(m, n) + 64


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
    probes=(
        replace(V3_FP8, only=TYPICAL),
        replace(V3_FP8, only=TRAINING, everywhere=False),
        Probe("llama-3.1-8b", changes=V3_FP8.changes, only=TRAINING),
    ),
)
