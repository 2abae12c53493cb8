"""RMSNorm: a tile for every width that the model norms."""

from __future__ import annotations

from collections.abc import Mapping

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.kernel import Kernel, Probe
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Tile, tiles
from dsc.compiler.ops.norm import RmsNorm
from dsc.spec.model import ModelSpec


def values(graph: Graph, spec: ModelSpec, target: Target) -> Mapping[str, object]:
    widths = dict.fromkeys(
        node.op.dim for block in graph.blocks.values() for node in block.nodes() if isinstance(node.op, RmsNorm)
    )
    launches = {launch: {width: _tile(launch, width.value(), target) for width in widths} for launch in _LAUNCHES}
    return {**launches, "num_programs": 2 * target.num_sms}


_LAUNCHES = ("forward", "backward")


def _tile(launch: str, width: int, target: Target) -> Tile:
    """The row for this width, or for the power of two above it, at which the kernel works."""
    (tile,) = tiles("rms_norm", launch, target, {"block": max(16, 1 << (width - 1).bit_length())})
    return tile


RMS_NORM = Kernel(
    "rms_norm",
    values=values,
    probes=(Probe("deepseek-v3", everywhere=True), Probe("llama-3.1-8b", everywhere=True)),
)
