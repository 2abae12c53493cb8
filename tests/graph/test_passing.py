"""What ops say that their backward writes for a moment is what it writes on a CPU, to a few numbers for each token."""

import weakref
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dsc.compiler.driver import build, emit
from dsc.compiler.graph.block import Node
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.graph.types import DType
from dsc.compiler.ops.attention import CausalAttention
from dsc.compiler.ops.loss import CrossEntropyAndZLoss
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

SIZES = {"B": 2, "S": 48}
TOKENS = SIZES["B"] * SIZES["S"]
CASES: dict[str, tuple[str, type, dict[str, Any]]] = {
    "z-loss": ("llama-3.1-8b", CrossEntropyAndZLoss, {"z_loss": 0.001}),
    "v padded": ("tiny", CausalAttention, {}),
    "q and k padded": ("tiny", CausalAttention, {"v_head_dim": 64}),
}


class New(TorchDispatchMode):
    """The most bytes of memory at once that operations have made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and func._schema.name != "aten::detach":  # which is how what is saved is read
            for found in results if isinstance(results, tuple) else (results,):
                storage = found.untyped_storage()
                given = (one.untyped_storage()._cdata for one in args if isinstance(one, Tensor))
                if storage._cdata not in given:
                    self.made[storage._cdata] = weakref.ref(storage), storage.nbytes()
        self.most = max(self.most, sum(size for alive, size in self.made.values() if alive() is not None))
        return results


def node_of(graph: Graph, kind: type) -> Node:
    return next(node for block in graph.blocks.values() for node in block.nodes() if type(node.op) is kind)


def spec_of(name: str, changes: dict[str, Any], parameters: str, shrunk: Callable[[ModelSpec], ModelSpec]) -> ModelSpec:
    data = shrunk(load(name)).model_dump()
    data["precision"]["parameters"] = parameters
    attention = {key: value for key, value in changes.items() if key in data["attention"]}
    data["attention"] |= attention
    others = {key: value for key, value in changes.items() if key not in attention}
    return ModelSpec.model_validate({**data, **others, "cluster": None})


@pytest.mark.parametrize("parameters", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_backward_writes_what_is_said(
    case: str, parameters: str, shrunk: Any, emitted: Callable[[Mapping[str, str]], Callable[[str], ModuleType]]
) -> None:
    name, kind, changes = CASES[case]
    program = build(spec_of(name, changes, parameters, shrunk))
    model, node = emitted(emit(program))("model"), node_of(program.training, kind)
    types = [tensor(one) for one in node.input_types]
    dtypes = {DType.FP32: torch.float32, DType.BF16: torch.bfloat16}
    shapes = [[dim.value(SIZES) for dim in one.shape] for one in types]
    floats = [
        torch.randn(shape, dtype=dtypes[one.dtype], requires_grad=True)
        for shape, one in zip(shapes, types, strict=True)
        if one.dtype in dtypes
    ]
    if kind is CausalAttention:
        result = model.causal_attention(*floats)
    else:
        result = model.cross_entropy_and_z_loss(*floats, torch.randint(0, model.VOCAB_SIZE, shapes[1]), 0.001)
    given = torch.ones_like(result)
    with New() as new:
        gradients = torch.autograd.grad(result, floats, given)
    said = sum(one.bytes.value(SIZES) for one in node.op.passing(node.input_types))
    assert abs(new.most - sum(gradient.nbytes for gradient in gradients) - said) < 64 * TOKENS
    assert said > 64 * TOKENS, "what nothing is said of is noticed"
