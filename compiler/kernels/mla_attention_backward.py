"""What templates/kernels/mla_attention_backward.py.jinja is told: the tiles of its two passes."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.mla_common import padded, widths
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers, tiles
from dsc.spec.model import ModelSpec

NAME = "mla_attention_backward"


def values(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    nope, rope, v = widths(spec)
    dims = {"nope": nope, "rope": rope, "v": v}

    (keys,) = tiles(NAME, "keys", target, dims)
    (queries,) = tiles(NAME, "queries", target, dims)
    return {"keys": keys, "queries": queries, "padded": padded(spec)}
