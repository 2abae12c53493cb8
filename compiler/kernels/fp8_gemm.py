"""What templates/kernels/fp8_gemm.py.jinja is told: the weights that are multiplied in FP8, and the tiles."""

from __future__ import annotations

from functools import partial

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, tiles
from dsc.compiler.ops.fused.fp8 import Fp8Linears
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

NAME = "fp8_gemm"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    linear = spec.precision.linear
    assert isinstance(linear, Fp8BlockLinear), "only fp8 linear layers multiply in FP8"
    block = linear.weight_block[0]
    assert linear.weight_block == [block, block] and linear.activation_block == [1, block], "blocks of one size"
    forward = tiles(NAME, "forward", target, {"block": block}, partial(shared_memory, block))
    (wgrad,) = tiles(NAME, "wgrad", target, {"block": block}, partial(shared_memory, block))
    return {"block": block, "shapes": shapes(graph), "forward": forward, "wgrad": wgrad}


def shapes(graph: Graph) -> list[tuple[int, int]]:
    """[N, K] of the weights that are multiplied in FP8."""
    return sorted(
        {
            (linear.out_features.substitute(sizes).value(), linear.in_features.substitute(sizes).value())
            for root in graph.methods(graph.root)
            for _, node, sizes in graph.walk(root.key)
            if isinstance(node.op, Fp8Linears)
            for linear in node.op.linears
        }
    )


def shared_memory(block: int, tile: Numbers) -> int:
    """Bytes: a step of both operands for each stage, one byte a code; the scales of a tile's side, and barriers."""
    m, n = tile["block_m"], tile["block_n"]
    return tile["num_stages"] * (m + n) * block + 4 * max(m, n) + 64
