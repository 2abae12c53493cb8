"""The products of experts in FP8, and the gradient of their hidden rows."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.kernels.fp8_block import V3_FP8, block_dims, block_of, block_value, fp8_refusal
from dsc.compiler.kernels.grouped_gemm import FEW_ROWS, MANY_ROWS
from dsc.compiler.kernels.kernel import Kernel, Launch
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.model import ModelSpec


def _launch(name: str, weights: int = 1) -> Launch:
    """`weights` are the tiles of weights that go with one of rows."""

    def shared_memory(tile: Numbers, spec: ModelSpec, target: Target) -> int:
        """The operands in flight, a byte a code, or after them the accumulators, transposed for their store."""
        operands = block_of(spec) * (tile["BLOCK_M"] + weights * tile["BLOCK_N"])
        scales = 4 * (tile["BLOCK_M"] + weights * tile["BLOCK_N"])
        return max(tile["num_stages"] * (operands + scales), 4 * tile["BLOCK_M"] * tile["BLOCK_N"]) + 512

    return Launch(name, "fp8", by_rows=True, dims=block_dims, shared_memory=shared_memory)


PROBES = (
    replace(V3_FP8, tokens=MANY_ROWS),
    replace(V3_FP8, tokens=FEW_ROWS, everywhere=False),
    replace(V3_FP8, model="mixtral-8x7b", tokens=MANY_ROWS, everywhere=False),
    replace(V3_FP8, model="mixtral-8x7b", tokens=FEW_ROWS, everywhere=False),
)
FP8_GROUPED_GEMM = Kernel(
    "fp8_grouped_gemm",
    launches=(_launch("gate_up", weights=2), _launch("product")),
    values=block_value,
    refusal=fp8_refusal,
    probes=PROBES,
)
FP8_GROUPED_GEMM_BACKWARD = Kernel(
    "fp8_grouped_gemm_backward",
    launches=(_launch("down_gradient"),),
    values=block_value,
    refusal=fp8_refusal,
    probes=PROBES,
)
