"""The choice of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.kernel import V3, Kernel, Launch, Probe
from dsc.compiler.kernels.target import Target
from dsc.compiler.kernels.tuning import Tile
from dsc.spec.model import ModelSpec

LAUNCHES = (Launch("forward"), Launch("backward"))


def values(graph: Graph, spec: ModelSpec, target: Target) -> Mapping[str, object]:
    """The tiles, in tokens: the table counts logits, which a program pads to powers of two."""
    experts, groups = spec.moe().n_routed_experts, spec.moe().router.n_group
    padded = {"forward": _power(groups) * _power(experts // groups), "backward": _power(experts)}
    return {
        launch.name: _in_tokens(launch.tiles("router", spec, target)[0], padded[launch.name]) for launch in LAUNCHES
    }


def _in_tokens(tile: Tile, padded: int) -> Tile:
    return replace(tile, numbers={"ROWS": max(1, tile["elements"] // padded), "num_warps": tile["num_warps"]})


def _power(size: int) -> int:
    """The least power of two that is not below it."""
    return 1 << (size - 1).bit_length()


ROUTER = Kernel(
    "router",
    launches=LAUNCHES,
    values=values,
    probes=(V3, Probe("deepseek-v2"), Probe("kimi-k2"), Probe("qwen3-30b-a3b")),
)
