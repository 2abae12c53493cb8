"""What the trainer keeps of weights, gradients and moments between steps, whatever the spec asks for."""

from __future__ import annotations

from collections.abc import Iterator

from dsc.spec.model import ModelSpec


def wide_state(spec: ModelSpec) -> Iterator[str]:
    """What the trainer stores in float32 although the spec asks for less."""
    state = spec.precision.optimizer
    if state.master == "none" and spec.precision.parameters == "bf16":
        yield "precision.optimizer.master: the trainer keeps weights in float32 and computes on copies of them"
    if state.gradients == "bf16":
        yield "precision.optimizer.gradients: the trainer sums gradients in float32"


def with_emitted_state(spec: ModelSpec) -> ModelSpec:
    """The spec with the types that the trainer really stores, which is what a plan has to price."""
    state, wide = spec.precision.optimizer, {"gradients": "fp32"}
    if spec.precision.parameters == "bf16":
        wide["master"] = "fp32"
    precision = spec.precision.model_copy(update={"optimizer": state.model_copy(update=wide)})
    return spec.model_copy(update={"precision": precision})
