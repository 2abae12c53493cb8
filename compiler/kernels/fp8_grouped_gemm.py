"""What templates/kernels/fp8_grouped_gemm.py.jinja is told: the block, and tiles by the rows of an expert."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, Tile, tiles
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

NAME = "fp8_grouped_gemm"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    block = block_of(spec)
    gate_up = chosen(NAME, "gate_up", target, block, weights=2)
    return {"block": block, "gate_up": gate_up, "product": chosen(NAME, "product", target, block)}


def block_of(spec: ModelSpec) -> int:
    """The one size of all blocks."""
    linear = spec.precision.linear
    assert isinstance(linear, Fp8BlockLinear), "only fp8 linear layers multiply in FP8"
    block = linear.weight_block[0]
    assert linear.weight_block == [block, block] and linear.activation_block == [1, block], "blocks of one size"
    return block


def chosen(kernel: str, launch: str, target: Target, block: int, weights: int = 1) -> tuple[Tile, ...]:
    return tiles(kernel, launch, target, {"block": block}, lambda tile: shared_memory(tile, block, weights))


def shared_memory(tile: Numbers, block: int, weights: int = 1) -> int:
    """Bytes of the operands in flight, one for a code, or after them of sums turned round for their store."""
    operands = block * (tile["BLOCK_M"] + weights * tile["BLOCK_N"])
    scales = 4 * (tile["BLOCK_M"] + weights * tile["BLOCK_N"])
    return max(tile["num_stages"] * (operands + scales), 4 * tile["BLOCK_M"] * tile["BLOCK_N"]) + 512
