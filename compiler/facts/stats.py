"""Facts of a model, every one summed over its graph."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dsc.compiler.graph.cache_rows import CacheRow, cache_rows
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Parameter
from dsc.spec.model import ModelSpec

MTP = "mtp."
EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True)
class Parameters:
    """Counts. `total` and `active` leave multi-token prediction out; `active` is what one token touches."""

    total: int
    active: int
    active_without_embedding: int
    mtp: int


@dataclass(frozen=True)
class FlopsPerToken:
    """Useful FLOPs of the main model, causal attention counted as half a square."""

    forward: int
    training: int


@dataclass(frozen=True)
class Stats:
    name: str
    num_layers: int
    sequence_length: int
    parameters: Parameters
    flops_per_token: FlopsPerToken
    kv_cache_bytes_per_token: int
    """Growth of the cache per token, once the sequence is longer than every window."""
    kv_cache_bytes_per_token_mtp: int
    kv_cache_bytes: int
    """Of a sequence of sequence_length tokens, windows included."""
    weight_bytes: int
    """The main model's parameters and MTP's, as the spec's precision stores them in memory."""


def compute_stats(spec: ModelSpec, graph: Graph) -> Stats:
    parameters = graph.parameters()
    main = {name: p for name, p in parameters.items() if not name.startswith(MTP)}
    active = sum(active_elements(p) for p in main.values())
    # A tied table is the head as well, and a head is used in full.
    embedding = 0 if spec.tie_word_embeddings else main[EMBEDDING].type.numel.value()
    length = spec.workload.sequence_length
    forward = Fraction(graph.flops("Model.forward").value({"B": 1, "S": length}), length)
    return Stats(
        name=spec.name,
        num_layers=spec.num_layers,
        sequence_length=length,
        parameters=Parameters(
            total=sum(p.type.numel.value() for p in main.values()),
            active=active,
            active_without_embedding=active - embedding,
            mtp=sum(p.type.numel.value() for name, p in parameters.items() if name.startswith(MTP)),
        ),
        flops_per_token=FlopsPerToken(forward=round(forward), training=round(forward * 3)),
        kv_cache_bytes_per_token=_cache_bytes(graph, "Model.forward"),
        kv_cache_bytes_per_token_mtp=_cache_bytes(graph, "MultiTokenPredictor.forward"),
        kv_cache_bytes=sum(row.bytes_of(length) for row in _rows(graph, "Model.forward")),
        weight_bytes=sum(p.type.bytes.value() for p in parameters.values()),
    )


def active_elements(parameter: Parameter) -> int:
    """Elements that one token touches."""
    chosen, all_of_them = (dim.value() for dim in parameter.active)
    return parameter.type.numel.value() * chosen // all_of_them


def _cache_bytes(graph: Graph, key: str) -> int:
    """What one token adds to the caches that keep all tokens, over all layers that a method runs."""
    return sum(row.bytes for row in _rows(graph, key) if row.window is None)


def _rows(graph: Graph, key: str) -> list[CacheRow]:
    return [row for rows in cache_rows(graph, key).values() for row in rows]
