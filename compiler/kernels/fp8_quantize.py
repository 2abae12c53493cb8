"""Quantization to FP8 codes: of activations, of weights, and of SwiGLU as it is computed."""

from __future__ import annotations

from dsc.compiler.kernels.fp8_block import V3_FP8, block_of, block_value, both_blocks, fp8_refusal
from dsc.compiler.kernels.kernel import Kernel, Launch
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.model import ModelSpec


def _launch(name: str) -> Launch:
    return Launch(name, dims=both_blocks, shared_memory=shared_memory)


def shared_memory(tile: Numbers, spec: ModelSpec, target: Target) -> int:
    """A tile of codes, transposed for its store, rows padded by 16 bytes, beside a row of maxima for each warp."""
    block = block_of(spec)
    return tile.get("ROWS", block) * (block + 16) + 4 * block * 16


FP8_QUANTIZE = Kernel(
    "fp8_quantize",
    launches=(_launch("rows"), _launch("rows_and_columns"), _launch("blocks")),
    values=block_value,
    refusal=fp8_refusal,
    probes=(V3_FP8,),
)
SWIGLU_QUANTIZE = Kernel(
    "swiglu_quantize",
    launches=(_launch("rows"), _launch("columns")),
    values=block_value,
    refusal=fp8_refusal,
    probes=(V3_FP8,),
)
