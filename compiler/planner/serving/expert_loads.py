"""Experts of a deployment on its GPUs, by the load that each was measured to carry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from typing import Any

from dsc.compiler.planner.serving.experts import ExpertPlacement, Load, PlacementError, balanced, contiguous
from dsc.spec.model import ModelSpec

Loads = tuple[tuple[Load, ...], ...]
"""Of each layer of experts, of each of its experts: tokens, or anything that grows with them."""


@dataclass(frozen=True)
class PlacedLayer:
    layer: int
    """Of all layers of the model."""
    placement: ExpertPlacement
    imbalance: float
    """The busiest GPU's load over the mean."""
    of_blocks: float | None
    """The same with the experts in blocks and none doubled; None where the GPUs do not divide the experts."""


def moe_layers(spec: ModelSpec) -> tuple[int, ...]:
    return tuple(layer for layer, kind in enumerate(spec.ffn_kinds) if kind == "moe")


def read_loads(text: str, spec: ModelSpec) -> Loads:
    """A JSON list of a list for each layer of experts. Raises PlacementError with what is wrong with it."""
    layers = moe_layers(spec)
    if not layers:
        raise PlacementError(f"{spec.name} has no experts")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise PlacementError(f"no JSON: {error}") from error
    if not isinstance(found, list) or len(found) != len(layers):
        count = f"a list of {len(found)}" if isinstance(found, list) else f"a {type(found).__name__}"
        raise PlacementError(f"{count}, not a list of {len(layers)}, one for each layer of experts")
    return tuple(_layer(of_layer, index, spec) for of_layer, index in zip(found, layers, strict=True))


def _layer(found: Any, layer: int, spec: ModelSpec) -> tuple[Load, ...]:
    experts = spec.moe().n_routed_experts
    if not isinstance(found, list) or len(found) != experts:
        raise PlacementError(f"layer {layer}: not a list of {experts} loads, one for each expert")
    for expert, load in enumerate(found):
        if type(load) not in (int, float) or not isfinite(load) or load < 0:
            raise PlacementError(f"layer {layer}, expert {expert}: {load!r} is no load")
    if not sum(found):
        raise PlacementError(f"layer {layer}: no expert has a load")
    return tuple(found)


def place_by_load(spec: ModelSpec, loads: Loads, slots: int, gpus: int, gpus_per_node: int) -> tuple[PlacedLayer, ...]:
    """`slots` experts on each of `gpus`, groups of experts on one node each where the nodes divide them."""
    experts, groups = spec.moe().n_routed_experts, spec.moe().router.n_group
    nodes = gpus // gpus_per_node if gpus % gpus_per_node == 0 else 1
    placed = []
    for layer, of_layer in zip(moe_layers(spec), loads, strict=True):
        placement = balanced(of_layer, slots * gpus, groups, nodes, gpus)
        of_blocks = None if experts % gpus else contiguous(experts, gpus).imbalance(of_layer)
        placed.append(PlacedLayer(layer, placement, placement.imbalance(of_layer), of_blocks))
    return tuple(placed)
