"""What templates/kernels/mla_attention_backward.py.jinja is told: the tiles of its two passes."""

from __future__ import annotations

from collections.abc import Callable

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.mla_common import loading, shared_memory, widths
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, tiles
from dsc.spec.model import ModelSpec

NAME = "mla_attention_backward"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    width = widths(spec)

    def bytes_of(resident: str, streamed: str) -> Callable[[Numbers], int]:
        """One side stays, the other streams through; queries come with dout, keys with values."""
        return lambda tile: shared_memory(
            target,
            tile[resident] * sum(width.values()),
            tile[streamed] * sum(width.values()),
            tile["block_q"] * tile["block_k"],
            tile["num_stages"],
        )

    (keys,) = tiles(NAME, "keys", target, width, bytes_of("block_k", "block_q"))
    (queries,) = tiles(NAME, "queries", target, width, bytes_of("block_q", "block_k"))
    return {"keys": keys, "queries": queries, **loading(spec, target)}
