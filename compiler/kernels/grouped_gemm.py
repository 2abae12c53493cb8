"""The products of experts and their gradients, in bfloat16."""

from __future__ import annotations

from dsc.compiler.kernels.kernel import Kernel, Launch, Probe
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.model import ModelSpec

FEW_ROWS, MANY_ROWS = 256, 16384
"""Tokens, so that an expert of DeepSeek-V3 has 8 or 512 rows."""


def _launch(name: str, weights: int = 1) -> Launch:
    """`weights` are the tiles of weights that go with one of rows."""

    def shared_memory(tile: Numbers, spec: ModelSpec, target: Target) -> int:
        """The operands in flight, two bytes an element, or after them the accumulators, transposed for their store.

        Hopper and Blackwell multiply out of shared memory while the next copies arrive, which takes one more buffer,
        and barriers.
        """
        asynchronous = target.arch in ("sm_90", "sm_100")
        buffers = tile["num_stages"] - (not asynchronous)
        operands = 2 * tile["BLOCK_K"] * (tile["BLOCK_M"] + weights * tile["BLOCK_N"])
        return max(buffers * operands, 2 * tile["BLOCK_M"] * tile["BLOCK_N"]) + 512 * asynchronous

    return Launch(name, "bf16", by_rows=True, shared_memory=shared_memory)


PROBES = (
    Probe("deepseek-v3", MANY_ROWS, everywhere=True),
    Probe("deepseek-v3", FEW_ROWS),
    Probe("mixtral-8x7b", MANY_ROWS),
    Probe("mixtral-8x7b", FEW_ROWS),
)
GROUPED_GEMM = Kernel(
    "grouped_gemm",
    launches=(_launch("gate_up", weights=2), _launch("product")),
    probes=PROBES,
)
GROUPED_GEMM_BACKWARD = Kernel(
    "grouped_gemm_backward",
    launches=(_launch("down_gradient"), _launch("weight_gradient")),
    probes=PROBES,
)
