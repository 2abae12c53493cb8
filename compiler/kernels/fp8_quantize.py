"""What templates/kernels/fp8_quantize.py.jinja is told: the block, and the tiles."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.swiglu import FEED_FORWARD, widths
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import NoTile, Numbers, Tile, tiles
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

NAME = "fp8_quantize"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    linear = spec.precision.linear
    assert isinstance(linear, Fp8BlockLinear), "only fp8 linear layers quantise"
    launches = {launch: tile(NAME, launch, target, linear) for launch in ("rows", "rows_and_columns", "blocks")}
    return {
        **launches,
        "block": linear.activation_block[1],
        "widths": widths(graph, ("HIDDEN_SIZE", *FEED_FORWARD)),
    }


def refusal(linear: Fp8BlockLinear, target: Target) -> str | None:
    """Why the target's kernels cannot multiply in FP8. They take any sizes, but only the blocks that have tiles."""
    if not target.fp8:
        return f"{target.arch} has no units for float8_e4m3fn"
    try:
        tile(NAME, "blocks", target, linear)
    except NoTile:
        weight, activation = (" x ".join(map(str, block)) for block in (linear.weight_block, linear.activation_block))
        return f"the kernels have no tiles for blocks of {weight} and {activation}"
    return None


def tile(kernel: str, launch: str, target: Target, linear: Fp8BlockLinear) -> Tile:
    """The row for these blocks."""
    (rows, block), (weight_rows, weight_block) = linear.activation_block, linear.weight_block
    dims = {"rows": rows, "block": block, "weight_rows": weight_rows, "weight_block": weight_block}

    def taken(tile: Numbers) -> int:
        return shared_memory(tile.get("rows", block), block)

    (chosen,) = tiles(kernel, launch, target, dims, taken)
    return chosen


def shared_memory(rows: int, block: int) -> int:
    """Bytes to turn a tile of codes round for its store, rows padded by 16 bytes, beside a row of maxima for a warp."""
    return rows * (block + 16) + 4 * block * 16
