"""Attention of new tokens over pages of keys and values that heads share."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.kernel import Kernel, Launch, Probe
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Numbers
from dsc.spec.attention import GqaAttention
from dsc.spec.model import ModelSpec


def _shared_memory(tile: Numbers, spec: ModelSpec, target: Target) -> int:
    """Bytes in bfloat16: the queries, the keys and values of every stage, and a tile of probabilities."""
    rows = tile["BLOCK_M"] + 2 * tile["num_stages"] * tile["BLOCK_N"]
    return 2 * (rows * _tile_width(spec) + tile["BLOCK_M"] * tile["BLOCK_N"])


def _form(graph: Graph, spec: ModelSpec, target: Target) -> dict[str, object]:
    """Heads that are no power of two wide take masks in tiles that are."""
    return {"padded": _width(spec) != _tile_width(spec)}


def _tile_width(spec: ModelSpec) -> int:
    return max(16, 1 << (_width(spec) - 1).bit_length())


def _width(spec: ModelSpec) -> int:
    assert isinstance(spec.attention, GqaAttention)
    return spec.attention.head_dim


GQA_DECODE = Kernel(
    "gqa_decode",
    launches=(Launch("split", "bf16", shared_memory=_shared_memory), Launch("combine")),
    values=_form,
    probes=(
        Probe("llama-3.1-8b", everywhere=True),
        Probe("qwen3-30b-a3b"),
        Probe("llama-3.1-8b", changes={"attention.head_dim": 96}),
    ),
)
