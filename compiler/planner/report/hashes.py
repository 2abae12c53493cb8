"""What a plan rests on, as hashes: a plan.yaml holds for the spec and the machines that still have them."""

from __future__ import annotations

import hashlib
import json

from dsc.spec.cluster import Cluster
from dsc.spec.model import ModelSpec

NOT_PLANNED = {"name", "tokens", "initializer_range", "rl", "training", "cluster", "placement"}
"""Of a spec, what changes no figure of its plan; and what a plan says itself: its machines and its placement."""


def spec_hash(spec: ModelSpec) -> str:
    """Of what the plan depends on: comments, the order of keys and the model's name do not count."""
    return sha256(spec.model_dump(mode="json", exclude=NOT_PLANNED))


def hardware_hash(cluster: Cluster) -> str:
    """Of a node's published figures. How well they are reached is the planner's to know, and may be known better."""
    return sha256(cluster.model_dump(mode="json"))


def sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
