"""What templates/kernels/mla_attention.py.jinja is told: the tile of forward."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.mla_common import loading, shared_memory, widths
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, tiles
from dsc.spec.model import ModelSpec

NAME = "mla_attention"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    width = widths(spec)

    def bytes_of(tile: Numbers) -> int:
        """The queries stay, keys and values stream through."""
        resident, streamed = tile["block_q"] * (width["nope"] + width["rope"]), tile["block_k"] * sum(width.values())
        return shared_memory(target, resident, streamed, tile["block_q"] * tile["block_k"], tile["num_stages"])

    (forward,) = tiles(NAME, "forward", target, width, bytes_of)
    return {"forward": forward, **loading(spec, target)}
