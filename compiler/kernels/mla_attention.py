"""What templates/kernels/mla_attention.py.jinja is told: the tile of forward."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.mla_common import padded, widths
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, tiles
from dsc.spec.model import ModelSpec

NAME = "mla_attention"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    def shared_memory(tile: Numbers) -> int:
        """Bytes: queries, and keys and values of every stage, in bfloat16."""
        nope, rope, v = widths(spec)
        return 2 * (tile["block_q"] * (nope + rope) + tile["num_stages"] * tile["block_k"] * (nope + rope + v))

    nope, rope, v = widths(spec)
    (forward,) = tiles(NAME, "forward", target, {"nope": nope, "rope": rope, "v": v}, shared_memory)
    return {"forward": forward, "padded": padded(spec)}
