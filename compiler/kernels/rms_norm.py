"""What templates/kernels/rms_norm.py.jinja is told: the widths that are normed, and a tile for each."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Tile, tiles
from dsc.compiler.ops.norm import RmsNorm
from dsc.spec.model import ModelSpec

NAME = "rms_norm"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    widths = dict.fromkeys(
        node.op.dim for block in graph.blocks.values() for node in block.nodes() if isinstance(node.op, RmsNorm)
    )
    launches = {launch: {width: _tile(launch, width.value(), target) for width in widths} for launch in _LAUNCHES}
    return {**launches, "num_programs": 2 * target.num_sms}


_LAUNCHES = ("forward", "backward")


def _tile(launch: str, width: int, target: Target) -> Tile:
    """The row for this width, or for the power of two above it, at which the kernel works."""
    (tile,) = tiles(NAME, launch, target, {"block": max(16, 1 << (width - 1).bit_length())})
    return tile
