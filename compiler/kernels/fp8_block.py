"""What the kernels of FP8 share: blocks of codes under one scale, and the targets that multiply them."""

from __future__ import annotations

from collections.abc import Mapping

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.kernel import Kernel, Probe
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import NoTile, Numbers, tiles
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

V3_FP8 = Probe("deepseek-v3", changes={"precision.linear.kind": "fp8_block"}, everywhere=True)


def linear_of(spec: ModelSpec) -> Fp8BlockLinear:
    linear = spec.precision.linear
    assert isinstance(linear, Fp8BlockLinear), "only FP8 linear layers have blocks"
    return linear


def block_of(spec: ModelSpec) -> int:
    """The one size of all blocks."""
    linear = linear_of(spec)
    block = linear.weight_block[0]
    assert linear.weight_block == [block, block] and linear.activation_block == [1, block], "blocks of one size"
    return block


def block_value(graph: Graph, spec: ModelSpec, target: Target) -> Mapping[str, object]:
    return {"block": block_of(spec)}


def block_dims(spec: ModelSpec, target: Target) -> Numbers:
    return {"block": block_of(spec)}


def both_blocks(spec: ModelSpec, target: Target) -> Numbers:
    """The blocks of activations and of weights, as tiles of quantization are chosen by."""
    (rows, block), (weight_rows, weight_block) = linear_of(spec).activation_block, linear_of(spec).weight_block
    return {"rows": rows, "block": block, "weight_rows": weight_rows, "weight_block": weight_block}


def fp8_refusal(spec: ModelSpec, target: Target) -> str | None:
    """Products of any sizes are taken, but only blocks that have tiles, and a target that has FP8."""
    if not target.fp8:
        return f"{target.arch} has no units for float8_e4m3fn"
    try:
        tiles("fp8_quantize", "blocks", target, both_blocks(spec, target))
    except NoTile:
        weight, activation = (
            " x ".join(map(str, block)) for block in (linear_of(spec).weight_block, linear_of(spec).activation_block)
        )
        return f"the kernels have no tiles for blocks of {weight} and {activation}"
    return None


FP8_CODES = Kernel(
    "fp8_codes",
    values=lambda graph, spec, target: {"block": block_of(spec), "ue8m0": linear_of(spec).scale == "ue8m0"},
    refusal=fp8_refusal,
)
FP8_LINEAR = Kernel("fp8_linear", values=block_value, refusal=fp8_refusal)
FP8_EXPERTS = Kernel("fp8_experts", values=block_value, refusal=fp8_refusal)
