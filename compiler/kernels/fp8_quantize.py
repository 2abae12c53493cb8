"""What templates/kernels/fp8_quantize.py.jinja is told: the block, the format of its scales, and the tiles."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, Tile, tiles
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear

NAME = "fp8_quantize"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    linear = spec.precision.linear
    assert isinstance(linear, Fp8BlockLinear), "only fp8 linear layers quantise"
    (rows, block), weight_block = linear.activation_block, linear.weight_block
    dims = {"rows": rows, "block": block, "weight_rows": weight_block[0], "weight_block": weight_block[1]}
    launches = {launch: _tile(launch, target, dims) for launch in ("rows", "rows_and_columns", "blocks")}
    return {**launches, "block": block, "ue8m0": linear.scale == "ue8m0"}


def shared_memory(rows: int, block: int) -> int:
    """Bytes to turn a tile of codes round for its store, rows padded by 16 bytes, beside one row of maxima a warp."""
    return rows * (block + 16) + 4 * block * 16


def _tile(launch: str, target: Target, dims: Numbers) -> Tile:
    block = dims["block"]
    (tile,) = tiles(NAME, launch, target, dims, lambda tile: shared_memory(tile.get("rows", block), block))
    return tile
