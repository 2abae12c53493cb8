"""What a seed draws, and how parameters are ordered, does not depend on the machine that a package is written for."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsc.compiler.driver import build, emit
from dsc.compiler.graph.graph import Graph
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.zoo import MODELS, names

Importer = Callable[[str], ModuleType]
Emitted = Callable[[Mapping[str, str]], Importer]
Shrink = Callable[[ModelSpec], ModelSpec]

FP8: dict[str, Any] = {"parameters": "bf16", "linear": {"kind": "fp8_block"}}
PRECISIONS: dict[str, dict[str, Any]] = {"bf16": {}, "fp32": {"parameters": "fp32"}, "fp8": FP8}
GPUS = {"kind": "h100", "nodes": 1}


def lowered(spec: ModelSpec, precision: str, cluster: dict[str, Any] | None) -> ModelSpec:
    return ModelSpec.model_validate(spec.model_dump() | {"precision": PRECISIONS[precision], "cluster": cluster})


def drawn(package: Importer) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = package("model").Model()
    return model


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert list(one) == list(two)
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


@pytest.mark.parametrize("name", names(MODELS))
def test_same_seed_same_weights(name: str, emitted: Emitted, shrunk: Shrink) -> None:
    spec = shrunk(load(name))
    plain = drawn(emitted(emit(build(lowered(spec, "bf16", None)))))
    for precision in PRECISIONS:
        for cluster in (None, GPUS):
            other = drawn(emitted(emit(build(lowered(spec, precision, cluster)))))
            assert_same(other.state_dict(), plain.state_dict())
            assert_same(dict(other.named_parameters()), dict(plain.named_parameters()))


def test_the_kernels_alone_would_draw_other_weights(shrunk: Shrink) -> None:
    """So that the test above says something: kernels use some weights in another order than the plain model."""
    program = build(lowered(shrunk(load("tiny")), "fp8", GPUS))

    def used(graph: Graph) -> list[str]:
        return [name for block in graph.blocks.values() for name in block.parameters()]

    assert sorted(used(program.training)) == sorted(used(program.plain))
    assert used(program.training) != used(program.plain)
